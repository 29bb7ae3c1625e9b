"""The cache of teachers: a hash of everything that decides a teacher's weights names it; one process trains it once."""
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from timm.utils.distributed import world_info_from_env
from torch import nn

from ..models._timm import TimmModel
from ..models.weights import WEIGHTS, load_safetensors, load_weights, weights_file
from ..settings.resolved import TeacherSettings
from ..utils.files import atomic_write, write_text
from .teacher_settings import Teacher, key_sha256, split_name

_logger = logging.getLogger(__name__)

RECORD = 'teacher.json'


def cache_folder(teacher: TeacherSettings, key: dict) -> Path:
    """Folder of the teacher with this key."""
    root = Path(teacher.cache).expanduser() if teacher.cache else Path.home() / '.cache' / 'timm_deitlt'
    architecture, kind = split_name(teacher.name)
    name = architecture.removesuffix('_cifar') + ('' if kind == 'plain' else f'_{kind}')
    return root / 'teachers' / f'{name}-{key_sha256(key)[:16]}'


def is_cached(teacher: TeacherSettings, key: dict) -> bool:
    """Whether the teacher with this key is in the cache."""
    return (cache_folder(teacher, key) / RECORD).is_file()


def cached_or_trained(
        teacher: TeacherSettings,
        key: dict,
        create: Callable[[], TimmModel],
        fetch: Callable[[], tuple[dict[str, torch.Tensor], str] | None],
        train: Callable[[Path], nn.Module],
        logit_scale: float = 1.,
) -> Teacher:
    """The teacher with this key: from the cache, else downloaded or trained now, by one process that holds a lock.

    Args:
        teacher: What was asked for.
        key: Its key, see `cache_key`.
        create: Makes the untrained network.
        fetch: Downloads its published weights and returns them with their id, or None if there are none.
        train: Trains it in a folder, from the checkpoint there if there is one, and returns the network.
        logit_scale: Factor that makes its outputs the logits of its loss.
    """
    folder = cache_folder(teacher, key)
    source = 'cache'
    path: Path | str = folder / WEIGHTS
    while world_info_from_env()[0] and not (folder / RECORD).is_file():
        time.sleep(.5)  # the first rank of each machine trains it and shows the progress
    if not (folder / RECORD).is_file():
        with _one_process(folder, teacher.name):
            if not (folder / RECORD).is_file():
                fetched = fetch()
                if fetched is None:
                    source, weights = 'trained', weights_file(train(folder / 'train').state_dict())
                else:
                    source, path = 'hub', fetched[1]
                    weights = weights_file(fetched[0])
                atomic_write(folder / WEIGHTS, lambda path: path.write_bytes(weights), len(weights))
                write_text(folder / RECORD, json.dumps(key, indent=2) + '\n')
    mend = f'Delete the folder {folder} to have the teacher trained again, or give another --teacher-cache.'
    stored = read_record(folder / RECORD, mend)
    if stored != key:
        differing = ', '.join(sorted(name for name in {**key, **stored} if stored.get(name) != key.get(name)))
        raise ValueError(
            f'The cached teacher in {folder} was trained with other settings or data ({differing} differ). {mend}')
    # Read the file even if the teacher was trained just now: so it is the same, memory layout included, in every case
    model = create()
    load_weights(model, load_safetensors(folder / WEIGHTS, mend), str(folder / WEIGHTS))
    return Teacher(model.eval(), teacher.name, source, path, logit_scale)


@contextmanager
def _one_process(folder: Path, name: str) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # the operating system frees the lock of a process that died, so there is no stale one
        lock = FileLock(folder / '.lock')
        try:
            lock.acquire(timeout=0)
        except Timeout:
            _logger.warning(f'Another process is training the teacher {name} in {folder}: waiting for it.')
            lock.acquire()
    except OSError as error:
        raise ValueError(
            f'The teacher {name} cannot be kept in {folder} ({error.strerror}): give --teacher-cache a folder that can '
            'be written to.') from error
    try:
        yield
    finally:
        lock.release()


def read_record(path: Path, mend: str) -> dict[str, Any]:
    """The key that was saved with a cached teacher.

    Raises:
        ValueError: If the file is damaged; the message ends with `mend`.
    """
    try:
        record = json.loads(path.read_text())
    except ValueError:
        record = None
    if not isinstance(record, dict) or not {'data', 'class_names', 'settings'} <= record.keys():
        raise ValueError(f'{str(path)!r} is damaged. {mend}')
    return record
