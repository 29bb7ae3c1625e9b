#!/usr/bin/env python3
"""Evaluate the checkpoint of a run: every expert, overall and by shot.

    python validate.py output/train/NAME
"""
from timm_deitlt.cli.commands import validate_main

if __name__ == '__main__':
    validate_main()
