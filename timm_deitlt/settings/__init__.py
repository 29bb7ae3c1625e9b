"""What a run is asked for: flags, recipes and config files in layers, and the checks on their values.

Imports `benchmarks` alone, and neither torch nor timm, so that `--help` is there at once.
"""
