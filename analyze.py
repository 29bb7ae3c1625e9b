#!/usr/bin/env python3
"""Measure the mechanisms of a run: locality, rank and divergence of its tokens, and its teacher's view of the images.

    python analyze.py output/train/NAME
"""
from timm_deitlt.cli.commands import analyze_main

if __name__ == '__main__':
    analyze_main()
