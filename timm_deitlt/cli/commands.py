"""The commands train, validate, analyze and ablate, and what all share: the log, one line for an error, the result."""
import argparse
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from timm.utils.distributed import world_info_from_env

from ..data.image import image_mode
from ..data.long_tail import UnreadableImageError
from ..data.survey import survey
from ..engine.checkpoint import LAST
from ..engine.device import use_free_cores
from ..engine.meter import NonFiniteLossError
from ..engine.progress import heartbeat
from ..run.finish import check_run, describe_run, has_mechanisms
from ..run.folds import train_folds
from ..run.mechanisms import analyze
from ..run.settings import FOLDER_DATASETS, input_channels
from ..run.train import train
from ..run.validate import validate
from ..settings.checks import check_bounds
from ..settings.layers import parse_args
from ..studies import ablate
from ..utils.files import MAKE_ROOM, no_space
from .parsers import ablate_parser, analyze_parser, validate_parser

_logger = logging.getLogger(__name__)

FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130


def _is_primary() -> bool:
    return world_info_from_env()[1] == 0


def setup_logging() -> None:
    """Log to stderr. Ranks other than the first log only warnings."""
    level = logging.INFO if _is_primary() else logging.WARNING
    logging.basicConfig(level=level, format='%(message)s', stream=sys.stderr)
    warnings.filterwarnings('once', message='This DataLoader will create')  # else for every loader
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
    'the last checkpoint, if there is one, is undamaged: continue with --resume auto and the --experiment name of '
    'the run.')


def guarded(prog: str, run: Callable[[], dict[str, Any]], go_on: str = _GO_ON) -> dict[str, Any]:
    """Run, and print the result as one JSON object on the last line. For bad input, print one line and exit with 2."""
    setup_logging()
    use_free_cores()
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
    if _is_primary():
        print(json.dumps(result), flush=True)
    return result


def survey_of(args: argparse.Namespace) -> dict[str, float]:
    """What the rules of a recipe ask about the images; empty for data that is not a folder of images."""
    is_folder = args.dataset in FOLDER_DATASETS
    if is_folder and not args.data_dir:
        return {}  # the error follows
    if not is_folder or os.path.isfile(args.data_dir):
        _logger.info(
            f'The rules of the recipe look at folders of images, not at {args.dataset or args.data_dir}, so they '
            'choose as for many large images. For fewer than 1,000 images give --global-batch-size 32 --batch-size 32 '
            '--epochs 600, for images of 32 px --img-size 32. What the recipe adds for fewer than 5,000 (weak '
            'augmentation, guidance, Muon and more) stands under `augmentation` and `small_data` at its end.')
        return {}
    return survey(args.data_dir, args.train_split, image_mode(input_channels(args), args.input_img_mode))


def warn_without_recipe(args: argparse.Namespace) -> None:
    """Warn if a student is trained on a folder of images by settings that no file has fitted to it."""
    unfitted = set(args.sources.values()) <= {'default', 'default/student', 'command line'}
    if unfitted and args.dataset in FOLDER_DATASETS and args.data_dir and _is_primary():
        _logger.warning(
            'These settings are not fitted to your images: -c own_data chooses image size, model, epochs, optimizer '
            'and augmentation by their number and size.')


def train_main(argv: list[str] | None = None, prog: str = 'train.py') -> None:
    """Entry of train.py."""
    def run() -> dict[str, Any]:
        args = parse_args(argv, prog, survey_of)
        warn_without_recipe(args)
        return train_folds(args) if args.folds else train(args)

    guarded(prog, run)


def _given(values: dict[str, Any]) -> dict[str, Any]:
    values = {name: value for name, value in values.items() if value is not None}
    check_bounds({name.removeprefix('validation_'): value for name, value in values.items()})  # as the flag is called
    return values


def validate_main(argv: list[str] | None = None, prog: str = 'validate.py') -> None:
    """Entry of validate.py."""
    values = vars(validate_parser(prog).parse_args(argv))
    path, fusion = values.pop('checkpoint'), values.pop('fusion')
    guarded(prog, lambda: validate(path, _given(values), fusion), 'run it again.')


def analyze_main(argv: list[str] | None = None, prog: str = 'analyze.py') -> None:
    """Entry of analyze.py."""
    values = vars(analyze_parser(prog).parse_args(argv))
    path, num_images = values.pop('checkpoint'), values.pop('num_images')

    def analyze_and_describe() -> dict[str, Any]:
        folder = Path(path).parent if Path(path).name == LAST else Path(path)
        is_run = (folder / 'metrics.json').is_file() and (folder / LAST).is_file()
        if is_run and not has_mechanisms(folder, values['val_split']):
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
    args = ablate_parser(prog).parse_args(argv)
    result = guarded(
        prog, lambda: ablate(**vars(args)),
        'what is finished is kept; run the same command to continue with the rest.')
    if result['failed']:
        sys.exit(FAILED)
