#!/usr/bin/env python3
"""Train the arms of a study over seeds, one file of results each; print its table and the verdicts on its claims.

    python ablate.py fashion_mnist --data-dir /usr/share/datasets/fashion-mnist --seeds 1 2 3 --jobs 2
    python ablate.py fashion_mnist --table
"""
from timm_deitlt.cli.commands import ablate_main

if __name__ == '__main__':
    ablate_main()
