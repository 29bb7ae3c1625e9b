#!/usr/bin/env python3
"""Train a Vision Transformer by DeiT-LT, its CNN teacher first where there is none yet.

    python train.py --model deit_lt_small --teacher resnet32_sam
"""
from timm_deitlt.cli import train_main

if __name__ == '__main__':
    train_main()
