"""Labels, class names and file names of the map-style data sets of timm and torchvision."""
import hashlib
import logging
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from .sources import pixel_keys

_logger = logging.getLogger(__name__)


def read_targets(base: Dataset, name: str, root: str | os.PathLike | None, split: str) -> np.ndarray:
    """Label of every image, from the attributes of the set. If it has none, all images are read once.

    Args:
        base: Data set of timm or torchvision.
        name: Name of the set, for messages and the cache.
        root: Folder of the set, for the cache.
        split: Split of the set, for the cache.

    Returns:
        Labels after the `target_transform` of the set, int64 `[N]`.

    Raises:
        ValueError: If the images do not have one class index each.
    """
    known = _known_targets(base)
    if known is None:
        return _scan(base, name, root, split)
    transform = getattr(base, 'target_transform', None)
    return _as_labels(known if transform is None else [transform(target) for target in known], name)


def _known_targets(base: Dataset) -> list | None:
    source = getattr(base, 'reader', base)
    if hasattr(source, 'iter_targets'):
        return list(source.iter_targets())
    for attribute in ('targets', 'labels', '_labels'):
        known = getattr(source, attribute, None)
        if known is not None and np.ndim(known) == 1:
            return np.asarray(known).tolist()
    samples = getattr(source, 'samples', None)
    return None if samples is None else [sample[1] for sample in samples]


def _as_labels(values: Iterable, name: str) -> np.ndarray:
    try:
        labels = np.asarray(values)
    except ValueError:  # lists of different lengths
        labels = np.empty((0, 0))
    if labels.ndim != 1 or labels.dtype.kind not in 'iu' or np.any(labels < 0):
        raise ValueError(
            f'{name} must have one class index of 0 or more for every image, but has labels such as '
            f'{next(iter(values), None)!r}: turn names into indices by --class-map. Sets without labels, or with '
            f'several labels per image, are not supported.'
        )
    return labels.astype(np.int64)


def _scan(base: Any, name: str, root: str | os.PathLike | None, split: str) -> np.ndarray:
    place = '' if root is None else os.path.abspath(root)
    key = '\n'.join([type(base).__module__, type(base).__qualname__, name, place, split, str(len(base))])
    cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
    cache = cache / 'timm_deitlt' / 'targets' / f'{hashlib.sha256(key.encode()).hexdigest()}.npy'
    # with a target transform the labels are not cached, because the key does not say what it computes
    cached = getattr(base, 'target_transform', None) is None
    if cached and cache.is_file():
        try:
            return _as_labels(np.load(cache, allow_pickle=False), name)
        except (OSError, ValueError, EOFError):
            _logger.warning(f'{cache} is damaged, so it is created again.')
    _logger.info(f'{name} has no list of its labels: reading its {len(base)} images once.')
    labels = _as_labels([_plain(base[i][1]) for i in range(len(base))], name)
    if cached:
        try:
            _save(labels, cache)
        except OSError as error:
            _logger.warning(f'The labels of {name} cannot be kept for the next run: {error}')
    return labels


def _plain(target):
    return target.item() if hasattr(target, 'item') and np.ndim(target) == 0 else target


def _save(labels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix='.tmp', delete=False) as file:
        np.save(file, labels)
    os.replace(file.name, path)


def reader_class_names(base: Any) -> list[str]:
    """Class names by label of a timm data set, if its reader knows them.

    Several names of a label are joined; a label without a name has its number as name.
    """
    reader = base.reader
    class_to_idx = getattr(reader, 'class_to_idx', None) or getattr(reader, 'class_name_to_idx', None) or {}
    names: list[list[str]] = [[] for _ in range(max(class_to_idx.values(), default=-1) + 1)]
    for class_name, index in class_to_idx.items():
        names[index].append(str(class_name))
    return [' / '.join(same) or str(index) for index, same in enumerate(names)]


def read_class_names(base: Dataset, targets: np.ndarray) -> list[str]:
    """Class names by label. The name of a label without a name is its number."""
    if getattr(base, 'target_transform', None) is not None:
        names = []  # the names belong to the labels before the transform
    elif hasattr(base, 'reader'):
        names = reader_class_names(base)
    else:
        names = [
            ', '.join(class_name) if isinstance(class_name, tuple) else str(class_name)
            for class_name in getattr(base, 'classes', [])
        ]
    return names + [str(label) for label in range(len(names), int(targets.max(initial=-1)) + 1)]


def image_keys(base: Any) -> list[str] | None:
    """A string that identifies each image, whatever folder the set is in: file and size, or a checksum of pixels."""
    source = getattr(base, 'reader', base)
    if known := getattr(source, 'image_keys', None):
        return known
    samples = getattr(source, 'samples', None)
    if samples is None:
        samples = getattr(source, 'imgs', None)
    if samples is not None:
        return [_file_key(sample[0], source.root) for sample in samples]
    pixels = getattr(base, 'data', None)
    return pixel_keys(pixels) if pixels is not None and len(pixels) == len(base) else None


def _file_key(file: Any, root: str | os.PathLike) -> str:
    if isinstance(file, tuple | list | np.ndarray):
        file = file[0]
    if hasattr(file, 'path'):  # in a tar file
        return f'{file.path}:{file.size}'
    try:
        size = os.path.getsize(file)
    except OSError:  # a broken link; reading the image will report it
        size = None
    return f'{os.path.relpath(file, root)}:{size}'
