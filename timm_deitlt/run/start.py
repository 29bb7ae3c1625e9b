"""Where a run begins: its folder, and the checkpoint that it continues from."""
import logging
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from timm.models import safe_model_name

from ..engine.checkpoint import LAST, load_run
from ..settings.groups import NOT_TRAINED
from ..settings.resolved import Settings
from .settings import drw_start, update_size

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """Where a run begins.

    Attributes:
        path: Its folder.
        checkpoint: Checkpoint that it continues from, or None.
        source: Name of the checkpoint in messages.
        epoch: 0-based epoch that it begins with.
        resumes: Whether it continues the run of the checkpoint; False if it branches off from it.
    """
    path: Path
    checkpoint: dict[str, Any] | None = None
    source: str = ''
    epoch: int = 0
    resumes: bool = False


def find_start(settings: Settings) -> Start:
    """Find the folder of a run and the checkpoint that it continues from.

    Raises:
        ValueError: If the folder cannot be written to, or holds another run.
        FileNotFoundError: If there is no such checkpoint.
    """
    output = settings.output
    root = Path(output.output)
    if output.resume == 'auto':
        path = root / output.experiment
        _check_writable(path)
        last = path / LAST
        if not last.is_file():
            _logger.info(f'There is no {last} yet: starting from the beginning.')
            return Start(path)
        return _going_on(path, last)
    path = root / (output.experiment or _dated_name(settings))
    _check_writable(path)
    if (path / LAST).exists() and not output.resume:
        raise ValueError(
            f'{path} holds a run already: continue it with --resume auto, or give another --experiment.')
    if output.resume:
        if (path / LAST).exists() and not os.path.samefile(path, Path(output.resume).parent):
            raise ValueError(
                f'{path} holds another run, which {output.resume} would overwrite: give another --experiment, or '
                '--resume auto to go on with the one that is there.')
        return _going_on(path, output.resume)
    if output.branch_from:
        checkpoint = load_run(output.branch_from)
        return Start(path, checkpoint, output.branch_from, checkpoint['epoch'] + 1)
    return Start(path)


def _going_on(path: Path, source: Path | str) -> Start:
    checkpoint = load_run(source)
    return Start(path, checkpoint, str(source), checkpoint['epoch'] + 1, resumes=True)


def _dated_name(settings: Settings) -> str:
    model = settings.model
    size = model.img_size or (model.input_size[-1] if model.input_size else None)
    return '-'.join([
        datetime.now().strftime('%Y%m%d-%H%M%S'), safe_model_name(model.name), *([str(size)] if size else [])])


def claim(path: Path) -> Path:
    """Make the folder of a dated run; its name gets a number if another run of the same second has the folder."""
    for number in range(1, 1000):
        folder = path if number == 1 else path.with_name(f'{path.name}-{number}')
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
    raise ValueError(f'{path} exists, and so do 998 folders of that name with a number: give a name by --experiment.')


def _check_writable(folder: Path) -> None:
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
    if not os.path.isdir(existing) or not os.access(existing, os.W_OK):
        raise ValueError(
            f'The run cannot be written to {folder}, because {existing} is not a folder that can be written to: give '
            'another --output.')


def report_changes(start: Start, settings: Settings) -> None:
    """Log how the settings differ from those in the checkpoint that the run continues from."""
    theirs, now = (start.checkpoint or {})['args'], settings.flags
    before = vars(theirs)
    changed = [
        f'{name} {before[name]} -> {now[name]}' for name in sorted(now)
        if name in before and before[name] != now[name] and name not in NOT_TRAINED
    ]
    stage_two, images = settings.stage_two.start_epoch, settings.loader.update_images
    if now['drw_start_epoch'] is None and stage_two != drw_start(theirs):
        changed.append(f'start of stage two {drw_start(theirs)} -> {stage_two}')
    _, images_before = update_size(theirs, getattr(theirs, 'world_size', 1))
    if images_before != images:
        changed.append(f'images in an update {images_before} -> {images}')
    if not start.resumes:
        _logger.info(
            f'Branching from {start.source} after epoch {start.epoch - 1}; changed: {"; ".join(changed) or "-"}')
    elif changed:
        _logger.warning(f'The settings are not those of {start.source}; changed: {"; ".join(changed)}')
