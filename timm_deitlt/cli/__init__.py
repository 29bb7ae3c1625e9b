"""The commands. Each parses its flags, calls `run`, `studies` or `hub`, and prints the result.

Bad input ends in one line on stderr and exit code 2. No other room imports this one.
"""
