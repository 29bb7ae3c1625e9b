"""Which columns of a Hugging Face data set hold the images and the labels."""
import logging
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .folders import read_class_map

_logger = logging.getLogger(__name__)

_LABEL = re.compile(r'labels?|targets?|.*_(label|target)', re.IGNORECASE)


def find_columns(
        name: str,
        root: str | os.PathLike | None,
        split: str,
        input_key: str | None = None,
        target_key: str | None = None,
        class_map: str | Mapping[str, int] | None = None,
        **options: Any,
) -> dict[str, Any]:
    """Find the columns of images and labels by their features, and number class names.

    The column of images is 'image', or else the only one with the feature Image. The column of labels is 'label', or
    else the only one with the feature ClassLabel, or else the only one of whole numbers or text with a name such as
    'target' or 'fine_label', or else the only text column if none holds whole numbers. The names in a text column are
    numbered in sorted order, or by a class map. The log says which columns are used, unless they are 'image' and
    'label'.

    Args:
        name: 'hfds/' followed by the id or the folder of the set.
        root: Cache folder, as for timm.
        split: Name of the split.
        input_key: Column of the images, if known.
        target_key: Column of the labels, if known.
        class_map: Labels by class name, or a class map file of timm.
        options: Other options of the data set, which are ignored here.

    Returns:
        'input_key', 'target_key' and, for a text column, 'class_map', as timm takes them.

    Raises:
        ValueError: If the package datasets is missing, or it is not clear which column to use. The error lists them.
        FileNotFoundError: If there is no such data set.
    """
    table, kinds = _open(name, root, split)
    text = [column for column, kind in kinds.items() if 'string' in kind]
    numbers = [column for column, kind in kinds.items() if kind.startswith(('int', 'uint'))]
    asked = (input_key, target_key)
    if input_key is None:
        input_key = _only('image', 'Image', [column for column, kind in kinds.items() if kind == 'Image'], name, kinds)
    if target_key is None:
        labels = [column for column, kind in kinds.items() if kind == 'ClassLabel']
        labels = labels or [column for column in kinds if column == 'label']
        labels = labels or [column for column in (*text, *numbers) if _LABEL.fullmatch(column)]
        target_key = _only('label', 'ClassLabel', labels or (text and [*text, *numbers]), name, kinds)
    if (input_key, target_key) != ('image', 'label') and None in asked:
        _logger.info(f'{name}, split {split!r}: images are column {input_key!r}, labels are column {target_key!r}.')
    found: dict[str, Any] = {'input_key': input_key, 'target_key': target_key}
    if target_key in text:
        found['class_map'] = _labels(table.unique(target_key), class_map, f'Column {target_key!r} of {name}')
    return found


def _open(name: str, root: str | os.PathLike | None, split: str) -> tuple[Any, dict[str, str]]:
    """The split, and the kinds of its columns: 'Image', 'ClassLabel', the types of plain values such as 'int64'."""
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f'{name} needs the package datasets ({error}): pip install datasets') from error
    try:
        table = datasets.load_dataset(name.partition('/')[2], split=split, cache_dir=root)
    except FileNotFoundError as error:
        raise FileNotFoundError(f'There is no data set {name}: {" ".join(str(error).split())}') from error
    except (ValueError, RuntimeError, OSError) as error:
        words = f'Cannot open {name}, split {split!r}: {" ".join(str(error).split())}'
        if 'Unknown split' in words:
            words += (
                f'{"" if words.endswith(".") else "."} Name a split by --train-split or --val-split. If there is none '
                'to evaluate on, hold out a tenth of each class by --val-fraction 0.1, or evaluate every image once by '
                '--folds 5.')
        raise ValueError(words) from error
    kinds = {
        column: str(feature.dtype) if isinstance(feature, datasets.Value) else type(feature).__name__
        for column, feature in table.features.items()}
    return table, kinds


def _only(usual: str, feature: str, columns: Sequence[str], name: str, kinds: Mapping[str, str]) -> str:
    if usual in columns:
        return usual
    if len(columns) == 1:
        return columns[0]
    listed = ', '.join(f'{column} ({kind})' for column, kind in kinds.items())
    which = f'{len(columns)} columns could be the {usual}: ' if columns else f'No column has the feature {feature}: '
    raise ValueError(
        f'{which}{name} has {listed}. Name it by --{"input" if usual == "image" else "target"}-key.')


def _labels(names: Sequence[Any], class_map: str | Mapping[str, int] | None, where: str) -> Mapping[str, int]:
    if None in names:
        raise ValueError(f'{where} has images without a label: remove these images.')
    if not class_map:
        return {name: label for label, name in enumerate(sorted(names))}
    known = read_class_map(class_map)
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(
            f'{where} has {len(unknown)} name(s) that --class-map does not have, such as {unknown[0]!r}: add them '
            'there.')
    return known
