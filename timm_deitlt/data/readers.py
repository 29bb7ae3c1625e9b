"""Data sets that are described by list files: ImageNet-LT and iNaturalist-2018. No image is opened."""
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from timm.data.readers.reader import Reader

from ..benchmarks import Benchmark


class ReaderImageList(Reader):
    """timm reader of the images in a list.

    Args:
        root: Folder of the images.
        paths: Paths of the images relative to `root`, as in the list.
        files: Paths relative to `root` where the images really are.
        targets: Labels of the images `[N]`.
        class_names: Names by label.
    """

    def __init__(
            self,
            root: str | os.PathLike,
            paths: list[str],
            files: list[str],
            targets: Sequence[int],
            class_names: Sequence[str],
    ):
        super().__init__()
        self.root = os.fspath(root)
        self.paths = paths
        self.files = files
        self.targets = np.asarray(targets, dtype=np.int64)
        self.class_names = tuple(class_names)

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        return open(os.path.join(self.root, self.files[index]), 'rb'), int(self.targets[index])

    def __len__(self) -> int:
        return len(self.paths)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        if absolute:
            return os.path.join(self.root, self.files[index])
        return os.path.basename(self.paths[index]) if basename else self.paths[index]


@dataclass
class _Listing:
    """Content of a list file, in its order, with the place of each entry in the file."""
    source: Path
    unit: str
    places: list
    paths: list[str]
    labels: list[int]

    def place(self, i: int) -> str:
        return f'{self.source}, {self.unit} {self.places[i]}'


def read_list(
        benchmark: Benchmark,
        root: str | os.PathLike | None,
        part: str,
        list_dir: str | os.PathLike | None = None,
) -> ReaderImageList:
    """Read the list file of a part of a benchmark, and check that every image exists.

    An image may also lie one level higher than the list says. ImageNet's own `val/` has no class folders (`val/X.JPEG`
    for `val/n01440764/X.JPEG`), and older copies of iNaturalist-2018 have no super-categories.

    Args:
        benchmark: A benchmark with list files: text with `path label` on each line, or JSON with `images` and
            `annotations`.
        root: Folder of the images.
        part: 'train', 'validation' or 'test'.
        list_dir: Folder of the list file; by default `root`, `files_folder` of the benchmark in `root`, and the parent
            of `root` are searched.

    Raises:
        FileNotFoundError: If the list or an image does not exist.
        ValueError: If `root` is None, or the list is not valid. The error names the line.
    """
    if root is None:
        raise ValueError(f'{benchmark.name} needs the folder of its images (--data-dir).')
    listing = _read(benchmark, _find(benchmark, root, part, list_dir), complete=part == 'train')
    class_names: Sequence[str] | None = benchmark.class_names
    if class_names is None:
        names = _folder_names(listing)
        if len(names) < benchmark.num_classes:
            names = {**_folder_names(_read(benchmark, _find(benchmark, root, 'train', list_dir))), **names}
        class_names = [names[label] for label in range(benchmark.num_classes)]
    files = _find_images(root, listing)
    # sorted by path, so that all files that list the same images give the same data set
    order = sorted(range(len(files)), key=listing.paths.__getitem__)
    paths, files = ([column[i] for i in order] for column in (listing.paths, files))
    return ReaderImageList(root, paths, files, [listing.labels[i] for i in order], class_names)


def count_listed(
        benchmark: Benchmark,
        root: str | os.PathLike | None = None,
        list_dir: str | os.PathLike | None = None,
) -> list[int]:
    """Training images per label, from the list file only. The images need not exist.

    Raises:
        FileNotFoundError: If the list does not exist.
        ValueError: If the list is not valid.
    """
    return listed_classes(benchmark, _find(benchmark, root, 'train', list_dir))[0]


def listed_classes(benchmark: Benchmark, source: Path) -> tuple[list[int], list[str]]:
    """Images and names of the classes in a training list, by label.

    Raises:
        ValueError: If the list is not valid, or has no image of a class.
    """
    listing = _read(benchmark, source)
    counts = np.bincount(listing.labels, minlength=benchmark.num_classes).tolist()
    return counts, list(benchmark.class_names or map(_folder_names(listing).__getitem__, range(benchmark.num_classes)))


def _find(
        benchmark: Benchmark,
        root: str | os.PathLike | None,
        part: str,
        list_dir: str | os.PathLike | None,
) -> Path:
    names, folders = benchmark.files[part], []
    if list_dir is not None:
        folders = [Path(list_dir)]
    elif root is not None:
        root = Path(root)
        folders = [root, root / (benchmark.files_folder or ''), root.absolute().parent]
    for folder in folders:
        for name in names:
            if (folder / name).is_file():
                return folder / name
    raise FileNotFoundError(
        f'{benchmark.name} needs {" or ".join(names)}, looked for in {", ".join(map(str, folders)) or "no folder"}. '
        f'Give the folder that holds it by --list-dir; it is published at {benchmark.files_source}.'
    )


def _read(benchmark: Benchmark, source: Path, complete: bool = True) -> _Listing:
    num_classes = benchmark.num_classes
    try:
        listing = _read_json(source) if source.suffix == '.json' else _read_text(source)
    except UnicodeDecodeError as error:
        raise ValueError(f'{source} is not a text file in UTF-8 ({error}): download it again.') from error
    if not listing.paths:
        raise ValueError(f'{source} names no image: download it again.')
    for i, label in enumerate(listing.labels):
        if type(label) is not int or not 0 <= label < num_classes:
            raise ValueError(
                f'{listing.place(i)}: the label {label!r} of {listing.paths[i]} is none of the {num_classes} classes. '
                f'Allowed are 0 to {num_classes - 1}.'
            )
    if len(set(listing.paths)) < len(listing.paths):
        (path, times), = Counter(listing.paths).most_common(1)
        last = len(listing.paths) - 1 - listing.paths[::-1].index(path)
        raise ValueError(f'{listing.place(last)}: {path} is listed {times} times, but only once is allowed.')
    absent = sorted(set(range(num_classes)).difference(listing.labels))
    if absent and complete:
        raise ValueError(
            f'{source} has no image of {len(absent)} of the {num_classes} classes: label '
            f'{", ".join(map(str, absent[:10]))}. Use the complete list.'
        )
    return listing


def _read_text(source: Path) -> _Listing:
    places, paths, labels = [], [], []
    with open(source, encoding='utf-8-sig') as file:
        for number, line in enumerate(file, 1):
            fields = line.rsplit(maxsplit=1)  # a path may hold spaces
            if not fields:
                continue
            try:
                path, label = fields
                labels.append(int(label))
            except ValueError as error:
                raise ValueError(
                    f'{source}, line {number}: expected "path label" with a whole number as label, got '
                    f'{line.strip()!r}.'
                ) from error
            paths.append(path)
            places.append(number)
    return _Listing(source, 'line', places, paths, labels)


def _read_json(source: Path) -> _Listing:
    try:
        with open(source, encoding='utf-8') as file:
            content = json.load(file)
        notes = content['annotations']
        labels = {note['image_id']: note['category_id'] for note in notes}
        images = [image['id'] for image in content['images']]
        paths = [str(image['file_name']) for image in content['images']]
    except UnicodeDecodeError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{source} must be a JSON object with "images" (id, file_name) and "annotations" (image_id, category_id): '
            f'{error!r}.'
        ) from error
    if len(labels) < len(notes):
        (image, times), = Counter(note['image_id'] for note in notes).most_common(1)
        raise ValueError(f'{source}, image id {image!r}: it has {times} annotations, but exactly one is needed.')
    bare = next((i for i, image in enumerate(images) if image not in labels), None)
    if bare is not None:
        raise ValueError(
            f'{source}, image id {images[bare]!r}: it has no annotation, so the class of {paths[bare]} is unknown.')
    return _Listing(source, 'image id', images, paths, [labels[image] for image in images])


def _folder_names(listing: _Listing) -> dict[int, str]:
    """Class names by label. The name is that of the folder of the images, which is the WordNet id in ImageNet."""
    names: dict[int, str] = {}
    labels: dict[str, int] = {}
    for i, (path, label) in enumerate(zip(listing.paths, listing.labels, strict=True)):
        folder = path.rpartition('/')[0].rpartition('/')[2]
        if names.setdefault(label, folder) != folder or labels.setdefault(folder, label) != label:
            raise ValueError(
                f'{listing.place(i)}: {path} has label {label}, but elsewhere label {label} is folder '
                f'{names[label]!r} and folder {folder!r} is label {labels.get(folder, label)}: each class needs its '
                'own folder.'
            )
    return names


def _find_images(root: str | os.PathLike, listing: _Listing) -> list[str]:
    """Path of every image relative to `root`, where it really is."""
    files = list(listing.paths)
    elsewhere = _missing(root, files, range(len(files)))
    for i in elsewhere:
        top, _, rest = files[i].partition('/')
        files[i] = f'{top}/{rest.partition("/")[2]}'
    missing = _missing(root, files, elsewhere)
    if missing:
        first = min(missing)
        raise FileNotFoundError(
            f'{listing.place(first)}: {listing.paths[first]} is not in {root}, where {len(missing)} of the '
            f'{len(files)} listed images are missing. Give the folder that the paths start from by --data-dir.'
        )
    return files


def _missing(root: str | os.PathLike, files: list[str], positions: Iterable[int]) -> list[int]:
    # list each folder once, because checking every image would take minutes on a network file system
    folders = defaultdict(list)
    for i in positions:
        folders[files[i].rpartition('/')[0]].append(i)
    missing = []
    for folder, images in folders.items():
        try:
            present = set(os.listdir(os.path.join(root, folder)))
        except (FileNotFoundError, NotADirectoryError):
            present = set()
        missing += [i for i in images if files[i].rpartition('/')[2] not in present]
    return missing
