"""Iterable data sets (WebDataset, TFDS, streamed Hugging Face sets), and their class counts."""
import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

from timm.data import IterableImageDataset

from .class_names import label_table
from .targets import reader_class_names


class Stream(IterableImageDataset):
    """timm's iterable data set as `describe_stream` leaves it: what type checkers know of it."""
    name: str
    place: str
    class_names: tuple[str, ...]
    num_classes: int
    class_counts: list[int] | None
    fingerprint: str


def read_class_counts(path: str | os.PathLike) -> tuple[list[str] | None, list[int]]:
    """Class names, if the file has them, and training images per class.

    Args:
        path: A JSON list of counts by label, a JSON object {class name: count} in the order of the labels, or a text
            file with one count a line.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds anything else.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f'The file of class counts {path} (--class-counts) does not exist.')
    try:
        with open(path, encoding='utf-8') as file:
            text = file.read().strip()
        content = json.loads(text) if text[:1] in ('[', '{') else [int(line) for line in text.splitlines()]
    except ValueError as error:
        raise ValueError(
            f'{path} must be a JSON list of counts, a JSON object of class names and counts, or a text file with one '
            f'count a line: {error}'
        ) from error
    names, counts = (list(content), list(content.values())) if isinstance(content, dict) else (None, content)
    wrong = [count for count in counts if type(count) is not int or count < 0]
    if wrong or not counts:
        raise ValueError(f'{path} must hold one whole number for every class, found {wrong[0] if wrong else "none"!r}.')
    return names, counts


def describe_stream(
        dataset: Any,
        name: str,
        split: str,
        training: bool,
        class_counts_file: str | os.PathLike | None = None,
        class_names: Sequence[str] | None = None,
        counted: Sequence[int] | None = None,
) -> Stream:
    """Give an iterable set those attributes of `ClassificationSet` that need no index.

    These are `name` and `place` (the name too), `class_names`, `num_classes`, `class_counts` (`None` of an evaluation
    set without a file) and `fingerprint`. With `class_names` the labels are changed to that order, by name.

    Args:
        dataset: timm's iterable data set, which is changed and returned.
        name: Its name.
        split: Name of its split.
        training: Whether counts are needed.
        class_counts_file: See `read_class_counts`.
        class_names: Class names in the order that the labels shall have.
        counted: Training images of each label, if they were counted. A file of counts takes precedence.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If counts or names are missing or contradict each other.
    """
    counts = list(counted) if training and counted and class_counts_file is None else None
    if training and class_counts_file is None and counts is None:
        raise ValueError(
            f'{name} is read as a stream, so its images per class are not known: give them by --class-counts FILE (a '
            f'JSON list, a JSON object of class names and counts, or one count a line).')
    own: Sequence[str] = reader_class_names(dataset) if dataset.target_transform is None else []
    if class_counts_file is not None:
        file_names, counts = read_class_counts(class_counts_file)
        if file_names and own and sorted(file_names) != sorted(own):
            other = sorted(set(file_names) ^ set(own))
            raise ValueError(f'{class_counts_file} does not name the classes of {name}: they differ in {other[0]!r}.')
        if file_names and own:
            by_name = dict(zip(file_names, counts, strict=True))
            counts = [by_name[class_name] for class_name in own]
        own = own or file_names or [str(label) for label in range(len(counts))]
        if len(counts) != len(own):
            raise ValueError(f'{class_counts_file} has {len(counts)} counts, but {name} has {len(own)} classes.')
    elif counts is not None:
        own = own or [str(label) for label in range(len(counts))]
    own = tuple(own or class_names or ())
    wanted = own if class_names is None else tuple(class_names)
    if not wanted:
        raise ValueError(f'{name} does not name its classes: give them by --class-counts FILE.')
    table = label_table(own, wanted, name)
    if own != wanted:
        dataset.target_transform = table.__getitem__
        if counts is not None:
            by_label = dict(zip(table, counts, strict=True))
            counts = [by_label.get(label, 0) for label in range(len(wanted))]
    dataset.name = dataset.place = name
    dataset.class_names, dataset.num_classes, dataset.class_counts = wanted, len(wanted), counts
    content = json.dumps([name, split, wanted, counts], separators=(',', ':'))
    dataset.fingerprint = hashlib.sha256(content.encode()).hexdigest()
    return dataset
