"""The commands as functions: train, validate, analyze and dry run. `build` makes their parts from the settings.

It may import every room except `hub`, `studies` and `cli`.
"""
