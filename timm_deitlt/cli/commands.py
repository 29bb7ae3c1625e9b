"""The commands train, validate, analyze and ablate, and what all share: the log, one line for an error, the result."""
import argparse
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..data.image import image_mode
from ..data.long_tail import UnreadableImageError
from ..data.survey import survey
from ..engine.checkpoint import LAST
from ..engine.meter import NonFiniteLossError
from ..engine.progress import heartbeat
from ..evaluation.fusion import FUSIONS
from ..run.finish import check_run, describe_run, has_mechanisms
from ..run.folds import train_folds
from ..run.mechanisms import analyze
from ..run.settings import FOLDER_DATASETS, input_channels
from ..run.train import train
from ..run.validate import validate
from ..settings.layers import parse_args
from ..studies import ablate, study_names
from ..utils.files import MAKE_ROOM, no_space

FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130


def setup_logging() -> None:
    """Log to stderr. Ranks other than the first log only warnings."""
    primary = int(os.environ.get('RANK', os.environ.get('SLURM_PROCID', 0))) == 0
    logging.basicConfig(level=logging.INFO if primary else logging.WARNING, format='%(message)s', stream=sys.stderr)
    for name in ('timm', 'filelock', 'httpx', 'httpx2', 'huggingface_hub', 'matplotlib', 'onnxscript', 'onnx_ir'):
        logging.getLogger(name).setLevel(logging.WARNING)


def _message(error: Exception) -> str | None:
    """The line to show for an error that the user can mend; None for an error of the program."""
    text = ' '.join(str(error).split())
    if isinstance(error, UnreadableImageError):
        # the text holds the traceback of a loader process; the message is its last line
        return str(error).strip().splitlines()[-1].removeprefix(
            f'{UnreadableImageError.__module__}.{UnreadableImageError.__qualname__}: ')
    if isinstance(error, NonFiniteLossError):
        return text
    frames = list(traceback.walk_tb(error.__traceback__))
    raised_in = frames[-1][0].f_globals.get('__name__', '') if frames else ''
    deliberate = isinstance(error, (ValueError, FileNotFoundError)) and raised_in.startswith('timm_deitlt')
    if deliberate:
        return text
    # a file that `atomic_write` does not write, such as that of a logger
    reason = no_space(error)
    return reason and f'{reason} ({text}). {MAKE_ROOM}'


_GO_ON = (
    'if an epoch was finished, its checkpoint is undamaged: continue with --resume auto and the --experiment name of '
    'the run.')


def guarded(prog: str, run: Callable[[], dict[str, Any]], go_on: str = _GO_ON) -> dict[str, Any]:
    """Run, and print the result as one JSON object on the last line. For bad input, print one line and exit with 2."""
    setup_logging()
    try:
        with heartbeat():
            result = run()
    except KeyboardInterrupt:
        sys.stderr.write(f'\n{prog}: interrupted; {go_on}\n')
        sys.exit(INTERRUPTED)
    except Exception as error:
        message = _message(error)
        if message is None:
            raise
        sys.stderr.write(f'{prog}: error: {message}\n')
        sys.exit(BAD_INPUT)
    if int(os.environ.get('RANK', 0)) == 0:
        print(json.dumps(result), flush=True)
    return result


def survey_of(args: argparse.Namespace) -> dict[str, float]:
    """What the rules of a recipe ask about the images; empty for data that is not a folder of images."""
    if args.dataset not in FOLDER_DATASETS or not args.data_dir:
        return {}
    return survey(args.data_dir, args.train_split, image_mode(input_channels(args), args.input_img_mode))


def train_main(argv: list[str] | None = None, prog: str = 'train.py') -> None:
    """Entry of train.py."""
    def run() -> dict[str, Any]:
        args = parse_args(argv, prog, survey_of)
        return train_folds(args) if args.folds else train(args)

    guarded(prog, run)


def _model_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """Parser of a script that takes a trained model and the data to evaluate it on."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument(
        'checkpoint', help='folder of a run or of an exported model, checkpoint of a run, or hf-hub:OWNER/NAME')
    parser.add_argument('--data-dir', metavar='DIR', help='where the data set is (default: as in training)')
    parser.add_argument('--dataset', metavar='NAME', help='data set of an exported model')
    parser.add_argument('--list-dir', metavar='DIR', help='list files of lt/imagenet and lt/inat18')
    parser.add_argument('--imbalance-factor', type=float, metavar='X', help='its imbalance factor')
    parser.add_argument('--val-split', metavar='NAME', help='split to evaluate (default: as in training)')
    parser.add_argument(
        '-b', '--batch-size', dest='validation_batch_size', type=int, metavar='N', help='images in a batch')
    parser.add_argument('-j', '--workers', type=int, metavar='N', help='loader processes')
    parser.add_argument('--device', help='cuda, cuda:N or cpu (default: cuda if available)')
    parser.add_argument('--amp', action=argparse.BooleanOptionalAction, help='mixed precision (default: as trained)')
    return parser


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def validate_main(argv: list[str] | None = None, prog: str = 'validate.py') -> None:
    """Entry of validate.py."""
    parser = _model_parser(prog, 'Evaluate a run or an exported model: every expert, by class group.')
    parser.add_argument(
        '--fusion', default='mean', choices=('mean', *FUSIONS, 'all'),
        help='another way to combine the experts, too (default: only the mean of their logits)')
    values = vars(parser.parse_args(argv))
    path, fusion = values.pop('checkpoint'), values.pop('fusion')
    guarded(prog, lambda: validate(path, _given(values), fusion), 'run it again.')


def analyze_main(argv: list[str] | None = None, prog: str = 'analyze.py') -> None:
    """Entry of analyze.py."""
    parser = _model_parser(
        prog,
        'Measure what a run or an exported model learned: how local its attention is, how many dimensions its tokens '
        'use, how far CLS and DIST differ, and what its teacher predicts for the training images.')
    parser.add_argument(
        '--num-images', type=int, default=1000, metavar='N', help='largest number of images (default: 1000)')
    values = vars(parser.parse_args(argv))
    path, num_images = values.pop('checkpoint'), values.pop('num_images')

    def analyze_and_describe() -> dict[str, Any]:
        folder = Path(path).parent if Path(path).name == LAST else Path(path)
        is_run = (folder / 'metrics.json').is_file() and (folder / LAST).is_file()
        if is_run and not has_mechanisms(folder):
            result = {}  # a CNN, or a run without evaluation images; the page is written all the same
        else:
            result = analyze(path, _given(values), num_images)
        if is_run:
            check_run(folder)
            describe_run(folder)
        return result

    guarded(prog, analyze_and_describe, 'run it again.')


def ablate_main(argv: list[str] | None = None, prog: str = 'ablate.py') -> None:
    """Entry of ablate.py."""
    parser = argparse.ArgumentParser(
        prog=prog, description='Train the arms of a study with several seeds; print its table and verdicts.')
    parser.add_argument('study', help=f'{", ".join(study_names())}, or a YAML file of the same form')
    parser.add_argument('--arms', nargs='+', metavar='NAME', help='arms to train (default: all)')
    parser.add_argument('--seeds', nargs='+', type=int, metavar='N', help="seeds of the runs (default: the study's)")
    parser.add_argument('--subsets', nargs='+', type=int, default=[0], metavar='N', help='seeds of the images')
    parser.add_argument('--data-dir', metavar='DIR', help='where the data set is')
    parser.add_argument('--results', type=Path, default=Path('results'), metavar='DIR', help='folder of results')
    parser.add_argument('--work', type=Path, default=Path('output/ablate'), metavar='DIR', help='folder of the runs')
    parser.add_argument('--jobs', type=int, default=1, metavar='N', help='trainings at a time; they share the cores')
    parser.add_argument('--table', action='store_true', help='do not train; write verdicts.json and print the table')
    parser.add_argument('--readme', type=Path, metavar='FILE', help='also put the table between its marks in this file')
    args = parser.parse_args(argv)
    result = guarded(
        prog, lambda: ablate(**vars(args)),
        'what is finished is kept; run the same command to continue with the rest.')
    if result['failed']:
        sys.exit(FAILED)
