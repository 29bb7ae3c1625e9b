"""The commands: parse, call `run`, `studies` or `hub`, print the result; bad input is one line and exit code 2."""
