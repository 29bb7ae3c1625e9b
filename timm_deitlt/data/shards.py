"""Count the images in shards of a WebDataset without an _info.json, once."""
import hashlib
import json
import logging
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..utils.files import write_text

_logger = logging.getLogger(__name__)

# timm's default suffixes of images, and its names of the file that describes the shards
_IMAGE_KEYS = 'jpg;png;webp'
_INFO = ('_info.json', 'info.json')


def count_shards(
        name: str,
        root: str | os.PathLike,
        split: str,
        num_samples: int | None = None,
        input_key: str | None = None,
        target_key: str | None = None,
        class_map: Any = None,
        **options: Any,
) -> tuple[dict[str, int], list[int] | None]:
    """Count the images of local shards if neither a file nor the split says their number. The count is cached.

    Args:
        name: Name of the data set, for messages.
        root: Folder of the shards.
        split: Names of the shards with braces, such as 'train-{0000..0003}.tar'. With '|N' at the end, N is the number
            of images and nothing is counted.
        num_samples: Number of images. If given, nothing is counted.
        input_key: Suffixes of images; by default those of timm.
        target_key: Field of the .json file that holds the label; by default the label is in the .cls file.
        class_map: Labels by class name. With this or `target_key` classes are not counted.
        options: Other options of the data set, which are ignored here.

    Returns:
        'num_samples' for timm if it was counted, and the images of each label if they are known.

    Raises:
        ValueError: If the shards are not named, are not local, or hold no image.
        FileNotFoundError: If a shard is missing.
    """
    if num_samples is not None or '|' in split or any(os.path.isfile(os.path.join(root, info)) for info in _INFO):
        return {}, None
    files = [os.path.join(root, file) for file in _expand(name, root, split)]
    found = [(os.path.abspath(file), os.stat(file).st_size, os.stat(file).st_mtime_ns) for file in files]
    key = hashlib.sha256(json.dumps([found, input_key, target_key]).encode()).hexdigest()
    cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'timm_deitlt' / 'shards' / f'{key}.json'
    counted = _read(cache)
    if counted is None:
        _logger.info(f'{name} has no _info.json: counting the images of {len(files)} shard(s) once.')
        counted = _count(files, input_key or _IMAGE_KEYS, target_key)
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
            write_text(cache, json.dumps(counted))
        except (OSError, ValueError) as error:  # `write_text` says in a ValueError that the disk is full
            _logger.warning(f'The count of {name} cannot be kept for the next run: {error.__cause__ or error}')
    if not counted['num_samples']:
        raise ValueError(
            f'{split} in {root} holds no image with a label: each image N.jpg (or .png, .webp) needs a label N.cls. '
            'Give other suffixes by --input-key and --target-key.')
    labels = counted['labels'] if not class_map else None
    counts = None if labels is None else [labels.get(str(label), 0) for label in range(1 + max(map(int, labels)))]
    return {'num_samples': counted['num_samples']}, counts


def _expand(name: str, root: str | os.PathLike, split: str) -> list[str]:
    if 'tar' not in split and '..' not in split:  # timm's rule
        tars = sorted(file for file in os.listdir(root) if file.endswith('.tar')) if os.path.isdir(root) else []
        there = f' ({tars[0]}{f" to {tars[-1]}" if len(tars) > 1 else ""})' if tars else ''
        raise ValueError(
            f'{root} has no _info.json that names the shards of the split {split!r}{there}: name them by '
            "--train-split or --val-split, such as 'train-{0000..0003}.tar'.")
    if '://' in split or split.startswith('pipe:'):
        raise ValueError(
            f"{split} is not on this machine, so its images cannot be counted: give their number N as '{split}|N'.")
    try:
        from webdataset.shardlists import expand_urls
    except ImportError as error:
        raise ValueError(f'{name} needs the package webdataset ({error}): pip install webdataset') from error
    files = expand_urls(split)
    missing = [file for file in files if not os.path.isfile(os.path.join(root, file))]
    if missing:
        raise FileNotFoundError(
            f'{len(missing)} of {len(files)} shards are not in {root}, such as {missing[0]}: check {split!r}.')
    return files


def _read(cache: Path) -> dict[str, Any] | None:
    try:
        counted = json.loads(cache.read_text())
        return counted if {'num_samples', 'labels'} <= counted.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _count(files: Sequence[str], input_key: str, target_key: str | None) -> dict[str, Any]:
    """Number of images that have a label, and number of images of each label in .cls files."""
    images = 0
    labels: dict[str, int] = {}
    for file in files:
        samples: dict[str, dict[str, str]] = {}
        try:
            with tarfile.open(file) as shard:
                for member in shard:
                    folder, _, base = member.name.rpartition('/')
                    stem, _, suffix = base.partition('.')
                    if not member.isfile() or not stem:
                        continue
                    content = shard.extractfile(member) if suffix == 'cls' else None
                    text = content.read().decode() if content else ''
                    samples.setdefault(f'{folder}/{stem}', {})[suffix.lower()] = text.strip()
        except (tarfile.TarError, OSError, UnicodeDecodeError) as error:
            raise ValueError(f'The shard {file} cannot be read ({error}): download it again.') from error
        kept = [
            sample for sample in samples.values()
            if sample.keys() & set(input_key.split(';')) and ('json' if target_key else 'cls') in sample]
        images += len(kept)
        for sample in kept:
            labels[sample.get('cls', '')] = labels.get(sample.get('cls', ''), 0) + 1
    known = not target_key and labels and all(label.isdecimal() for label in labels)
    return {'num_samples': images, 'labels': {str(int(k)): n for k, n in labels.items()} if known else None}
