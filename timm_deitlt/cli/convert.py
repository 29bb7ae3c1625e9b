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

After `import timm_deitlt`, timm.create_model('local-dir:OUT', pretrained=True) loads the model. A teacher is used by
train.py --teacher-checkpoint OUT/model.safetensors."""


def get_parser(prog: str = 'convert.py') -> argparse.ArgumentParser:
    """Parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=prog, description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'file', type=Path, metavar='CHECKPOINT', help='released file, such as student.pth or teacher.pth.tar')
    parser.add_argument('out', type=Path, metavar='OUT', help=f'folder for {WEIGHTS} and {CONFIG}')
    parser.add_argument('--benchmark', choices=list(conversion.ROWS), help='the data set, if the file does not say it')
    parser.add_argument('--architecture', metavar='NAME', help='the architecture that the file must have')
    parser.add_argument(
        '--list-file', type=Path, metavar='FILE',
        help='training list that names the classes: ImageNet_LT_train.txt for imagenet_lt, train2018.json or '
             'iNaturalist18_train.txt for inat18')
    parser.add_argument(
        '--class-order', choices=['count', 'list'],
        help='how the network numbers these classes: by count (students and LDAM teachers), or as the list file (PaCo '
             'teachers); by default as its kind does')
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
