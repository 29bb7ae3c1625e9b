"""What a run is asked for: flags, recipes and config files in layers, and the checks on their values.

It may import only `benchmarks`, and neither torch nor timm, so that `--help` appears at once.
"""
