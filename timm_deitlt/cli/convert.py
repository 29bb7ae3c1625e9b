"""The command `convert`: a released checkpoint becomes a folder in timm's form."""
import argparse
import json
import sys
from pathlib import Path

from safetensors import SafetensorError

from ..hub.convert import convert_file
from ..models import conversion
from ..models.weights import CONFIG, WEIGHTS

BAD_INPUT = 2
_DESCRIPTION = """
Turn a released checkpoint of DeiT-LT, or of one of its teachers, into model.safetensors and config.json.

    %(prog)s student.pth OUT --benchmark cifar100_if100
    %(prog)s teacher.pth.tar OUT --list-file ImageNet_LT_train.txt

What OUT holds is for timm.create_model('local-dir:OUT', pretrained=True), after `import timm_deitlt`, and for
train.py --teacher-checkpoint OUT/model.safetensors."""


def get_parser(prog: str = 'convert.py') -> argparse.ArgumentParser:
    """Parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=prog, description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'file', type=Path, metavar='CHECKPOINT', help='released file, such as student.pth or teacher.pth.tar')
    parser.add_argument('out', type=Path, metavar='OUT', help=f'folder for {WEIGHTS} and {CONFIG}')
    parser.add_argument('--benchmark', choices=list(conversion.ROWS), help='the data set, where the file does not tell')
    parser.add_argument('--architecture', metavar='NAME', help='confirms the architecture, such as resnet32_cifar')
    parser.add_argument(
        '--list-file', type=Path, metavar='FILE',
        help='training list that names the classes, for imagenet_lt (ImageNet_LT_train.txt) and inat18 (train2018.json '
             'or iNaturalist18_train.txt)')
    parser.add_argument(
        '--class-order', choices=['count', 'list'],
        help='how the network numbers these classes: by count, descending, as students and LDAM teachers do, or as the '
             'list file, as PaCo teachers do; by default as its kind does')
    parser.add_argument('--overwrite', action='store_true', help='replace a converted model in OUT')
    return parser


def convert_main(argv: list[str] | None = None, prog: str = 'convert.py') -> int:
    """Entry of convert.py; returns the exit code."""
    args = get_parser(prog).parse_args(argv)
    try:
        report = convert_file(**vars(args))
    except (OSError, SafetensorError, ValueError) as error:
        print(f'{prog}: error: {error}', file=sys.stderr)
        return BAD_INPUT
    print(json.dumps(report))
    return 0
