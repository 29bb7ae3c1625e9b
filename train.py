#!/usr/bin/env python3
"""Train a Vision Transformer by DeiT-LT, its CNN teacher first where there is none yet.

    python train.py --model deit_lt_small --teacher resnet32_sam
"""
import sys
from importlib.util import find_spec, module_from_spec

if __name__ == '__main__':
    if {'-h', '--help'} & set(sys.argv[1:]):
        # the package without its __init__, which imports torch and timm: the help is there at once
        sys.modules['timm_deitlt'] = module_from_spec(find_spec('timm_deitlt'))
        from timm_deitlt.settings.layers import build_parser
        build_parser('train.py').print_help()
        sys.exit()
    from timm_deitlt.cli.commands import train_main
    train_main()
