"""The command `convert`: a released checkpoint becomes a folder in timm's form."""
import json
import sys

from safetensors import SafetensorError

from ..hub.convert import convert_file
from .parsers import convert_parser

BAD_INPUT = 2


def convert_main(argv: list[str] | None = None, prog: str = 'convert.py') -> int:
    """Entry of convert.py; returns the exit code."""
    args = convert_parser(prog).parse_args(argv)
    try:
        report = convert_file(**vars(args))
    except (OSError, SafetensorError, ValueError) as error:
        print(f'{prog}: error: {error}', file=sys.stderr)
        return BAD_INPUT
    print(json.dumps(report))
    return 0
