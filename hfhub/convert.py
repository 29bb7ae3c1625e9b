#!/usr/bin/env python3
"""Turn a released checkpoint of DeiT-LT, or of one of its teachers, into model.safetensors and config.json.

    python hfhub/convert.py student.pth OUT --benchmark cifar100_if100
"""
import sys

from timm_deitlt.cli.convert import convert_main

if __name__ == '__main__':
    sys.exit(convert_main())
