"""The command `publish`: a model goes to the Hugging Face Hub in one verified commit."""
import argparse
import contextlib
import json
import logging
import shutil
import sys
import tempfile
from pathlib import Path

from huggingface_hub import get_token

from ..hub.export import check_free
from ..hub.publish import Options, publish
from ..hub.repository import EXITS, Exit, PublishError
from ..models._hub import HUB_ERRORS, explain

_DESCRIPTION = """
Publish a finished run, a cached teacher or a converted model on the Hugging Face Hub, and verify it there.

    hf auth login                                      # once; or set HF_TOKEN
    %(prog)s output/train/RUN OWNER/NAME --dry-run     # show what would change
    %(prog)s output/train/RUN OWNER/NAME --tag v1.0    # publish, verify, tag

One commit holds the weights (safetensors only), config.json in timm's form, metrics.json, args.yaml, plots, and a model
card with the measured figures. Then everything is downloaded into a fresh cache and compared: the sha256 of each file,
and the logits bit for bit. The tag is set last.

Exit codes: 0 published, or nothing to do; 2 the run or a flag is wrong; 3 no token; 4 invalid token; 5 the token may
not write there; 6 another model or better figures are published (see --replace); 7 others keep changing the repository;
8 no room on the Hub; 9 too many requests; 10 the Hub fails; 11 no network; 12 published, but not verified; 13 the Hub
refuses the content; 14 published and verified, but not tagged; 130 interrupted. The new version is on the Hub after 0,
12 and 14, and after 130 if the message says so. After all other codes nothing has changed there."""


def get_parser(prog: str = 'publish.py') -> argparse.ArgumentParser:
    """Parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=prog, description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'run', type=Path, metavar='RUN_DIR', help='folder of a run, of a cached teacher or of a converted model')
    parser.add_argument('repo_id', metavar='REPO_ID', help='OWNER/NAME on the Hub')
    parser.add_argument('--dry-run', action='store_true', help='build, check and compare, but change nothing')
    parser.add_argument('--folder', type=Path, metavar='DIR', help='keep the files here (default: temporary)')
    parser.add_argument('--json', action='store_true', help='print the report as one JSON object on the last line')
    group = parser.add_argument_group('repository')
    group.add_argument('--private', action='store_true', help='make a new repository private')
    group.add_argument('--revision', default='main', metavar='BRANCH', help='branch, made if missing (default: main)')
    group.add_argument('--create-pr', action='store_true', help='open a pull request instead of changing the branch')
    group.add_argument('--tag', metavar='NAME', help='tag the commit after it was verified; a tag is never moved')
    group.add_argument('--replace', action='store_true', help='replace another model or better figures')
    group = parser.add_argument_group('model card')
    group.add_argument('--license', metavar='ID', help="identifier of the Hub (default: apache-2.0 for benchmarks)")
    group.add_argument('--license-name', metavar='NAME', help='name of the licence, for --license other')
    group.add_argument('--license-link', metavar='URL', help='where the licence is, for --license other')
    group.add_argument('--dataset-name', metavar='TEXT', help='the data in words, if it is not a benchmark')
    group.add_argument('--datasets', nargs='+', default=[], metavar='ID', help='ids of the training data on the Hub')
    group.add_argument(
        '--other-seeds', nargs='+', default=[], type=Path, metavar='RUN_DIR',
        help='runs that differ only in the seed; the card then gives mean and standard deviation')
    group = parser.add_argument_group('figures')
    group.add_argument('--data-dir', metavar='DIR', help='where the data is now (default: as in training)')
    group.add_argument('--list-dir', metavar='DIR', help='list files of lt/imagenet and lt/inat18')
    group.add_argument(
        '--sample', type=int, default=512, metavar='N',
        help='images to evaluate again, if the data is here (default: 512)')
    group.add_argument('--device', help='device for this evaluation (default: cuda if available)')
    return parser


def publish_main(argv: list[str] | None = None, prog: str = 'publish.py') -> int:
    """Entry of publish.py; returns the exit code."""
    values = vars(get_parser(prog).parse_args(argv))
    kept, as_json = values.pop('folder'), values.pop('json')
    options = Options(**values)
    logging.basicConfig(level=logging.INFO, format='%(message)s', stream=sys.stderr)
    for name in ('timm', 'httpx', 'httpx2', 'huggingface_hub', 'filelock', 'timm_deitlt.run.build'):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        with contextlib.ExitStack() as stack:
            folder = kept or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            _empty(folder)
            report = publish(options, folder)
    except KeyboardInterrupt:
        code, message = Exit.INTERRUPTED, f'interrupted: no version of {options.repo_id} was changed.'
    except PublishError as error:
        code, message = error.code, str(error)
    except (*HUB_ERRORS, ValueError) as error:
        failure = explain(error)
        code = EXITS[failure.kind]
        message = str(error) if code == Exit.BAD_INPUT else f'{options.repo_id}: {failure.words}.'
    else:
        if as_json:
            print(json.dumps(report))
        return Exit.DONE
    message = _hidden(' '.join(message.split()))
    print(f'{prog}: error: {message}', file=sys.stderr)
    if as_json:
        print(json.dumps({'repo': options.repo_id, 'error': message, 'code': int(code)}))
    return code


def _empty(folder: Path) -> None:
    """Remove what an earlier call left in the folder of --folder."""
    check_free(folder)
    for path in folder.iterdir() if folder.exists() else ():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _hidden(text: str) -> str:
    """The text without the token."""
    with contextlib.suppress(UnicodeError, OSError):
        if token := get_token():
            return text.replace(token, '(token)')
    return text
