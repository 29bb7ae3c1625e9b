"""Images in folders of classes. Folders are listed at all levels; no image is opened."""
import logging
import os
import pickle
import re
from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

from timm.data.readers.class_map import load_class_map
from timm.data.readers.reader import Reader

from .image import check_readers, image_suffixes

_logger = logging.getLogger(__name__)

# Operating systems, archivers and network drives create these. Names that begin with a dot are hidden as well.
SYSTEM_NAMES = frozenset({
    '__MACOSX', '__pycache__', 'Thumbs.db', 'ehthumbs.db', 'desktop.ini', 'Desktop.ini', 'Icon\r', '@eaDir',
    '$RECYCLE.BIN', 'System Volume Information', 'lost+found',
})
_NUMBER = re.compile(r'\d+')


@dataclass
class Listing:
    """Files below a folder.

    Attributes:
        files: Path of each image relative to the folder, and its bytes (None for a broken link), in natural order.
        folders: Folders directly in the folder, in natural order, also empty ones.
        left_out: Number of other files, by suffix.
        hidden: Number of hidden and system files and folders. Such folders are not listed.
    """
    files: list[tuple[str, int | None]] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    left_out: Counter = field(default_factory=Counter)
    hidden: int = 0

    def words(self) -> str:
        """Text that says what was skipped; empty if nothing was."""
        parts = [f'{count:,} {suffix or "without a suffix"}' for suffix, count in sorted(
            self.left_out.items(), key=lambda item: (-item[1], item[0]))]
        return ', '.join([*([f'{self.hidden:,} hidden or system entries'] if self.hidden else []), *parts])


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden or belongs to the operating system."""
    return name.startswith('.') or name in SYSTEM_NAMES


def list_images(root: str | os.PathLike, suffixes: Container[str]) -> Listing:
    """List the images below a folder at all levels. Links are followed, unless they lead to a folder that holds them.

    Args:
        root: Folder.
        suffixes: Suffixes of images in lower case, see `image.image_suffixes`.
    """
    listing = Listing()
    blocks = []  # one for each folder, so that names are only sorted within their folder
    waiting: list[tuple[str, tuple[str, ...]]] = [('', ())]
    while waiting:
        place, came_by = waiting.pop()
        images, folders = _list_folder(root, place, suffixes, listing, came_by)
        waiting += [(os.path.join(place, name), trail) for name, trail in folders.items()]
        if not place:
            listing.folders = sorted(folders, key=_order)
        if images:
            images.sort(key=lambda image: _order(image[0]))
            blocks.append((os.path.join(place, ''), images))
    blocks.sort(key=lambda block: _order(block[0]))
    listing.files = [(place + name, size) for place, images in blocks for name, size in images]
    return listing


def _list_folder(
        root: str | os.PathLike,
        place: str,
        suffixes: Container[str],
        listing: Listing,
        came_by: tuple[str, ...],
) -> tuple[list[tuple[str, int | None]], dict[str, tuple[str, ...]]]:
    """Images and folders directly in a folder.

    `came_by` has the real path of each folder where a link was followed on the way here. Each folder that is returned
    has the same for itself.
    """
    images: list[tuple[str, int | None]] = []
    folders: dict[str, tuple[str, ...]] = {}
    with os.scandir(os.path.join(root, place)) as entries:
        for entry in entries:
            name = entry.name
            if is_hidden(name):
                listing.hidden += 1
            elif is_folder(entry):
                if not entry.is_symlink():
                    folders[name] = came_by
                elif _leads_back(entry.path, trail := (*came_by, os.path.realpath(os.path.dirname(entry.path)))):
                    listing.hidden += 1
                else:
                    folders[name] = trail
            elif name[name.rfind('.'):].lower() in suffixes:
                images.append((name, _size(entry)))
            else:
                listing.left_out[os.path.splitext(name)[1].lower()] += 1
    return images, folders


def is_folder(entry: os.DirEntry) -> bool:
    """Whether an entry is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _leads_back(link: str, trail: tuple[str, ...]) -> bool:
    there = os.path.realpath(link)
    return any(os.path.commonpath([folder, there]) == there for folder in trail)


def _size(entry: os.DirEntry) -> int | None:
    try:
        return entry.stat().st_size
    except OSError:  # a broken link; reading the image will report it
        return None


def _order(name: str) -> tuple[str, str]:
    """Sort key with the order of timm's `natural_key` (numbers by length, then by digits), in a quarter of its time."""
    return _NUMBER.sub(_ranked, name.lower()), name


def _ranked(match: re.Match) -> str:
    digits = match[0].lstrip('0')
    return f'\0{chr(len(digits))}{digits}'  # the \0 sorts a number before any letter


class ReaderFolder(Reader):
    """timm reader of a folder that holds one folder for each class. Images may lie at any level below it.

    Args:
        root: Folder.
        class_map: Labels by class name, or a class map file of timm. Images of other classes are skipped.
        input_key: Suffixes of images, such as '.jpg;.png'; by default all that can be opened in `mode`.
        mode: Mode that images will be opened in, see `image.image_mode`.
        complete: Whether every class folder must hold an image, as in training.

    Raises:
        ValueError: If there is no image, if an image lies outside of the class folders, or if `complete` is set and a
            class has no image.
    """

    def __init__(
            self,
            root: str | os.PathLike,
            class_map: str | Mapping[str, int] = '',
            input_key: str | None = None,
            mode: str = 'RGB',
            complete: bool = True,
    ):
        super().__init__()
        self.root = os.fspath(root)
        suffixes = frozenset(input_key.lower().split(';')) if input_key else image_suffixes(mode)
        listing = list_images(self.root, suffixes)
        wanted = f'--input-key {input_key}' if input_key else f'any format that Pillow reads{_arrays(listing)}'
        if listing.words():
            _logger.info(f'Skipped in {self.root}: {listing.words()}.')
        classes = [path.partition(os.sep)[0] if os.sep in path else '' for path, _ in listing.files]
        if not class_map:
            self._check(listing, set(classes), wanted if complete else '')
        names = set(classes)
        self.class_to_idx = read_class_map(class_map, self.root) if class_map else {
            name: label for label, name in enumerate(sorted(names, key=_order))}
        kept = [i for i, name in enumerate(classes) if name in self.class_to_idx]
        if not kept:
            raise ValueError(self._nothing(listing, names))
        if len(kept) < len(classes):
            _logger.info(f'Skipped in {self.root}: {len(classes) - len(kept):,} images of classes not in --class-map.')
        _check_encoding({classes[i] for i in kept})
        self.paths = [listing.files[i][0] for i in kept]
        self.targets = [self.class_to_idx[classes[i]] for i in kept]
        self.image_keys = [f'{path}:{size}' for path, size in (listing.files[i] for i in kept)]
        check_readers({os.path.splitext(path)[1].lower() for path in self.paths}, mode)

    def _check(self, listing: Listing, names: set[str], wanted: str) -> None:
        """Refuse images outside of class folders and, if they are `wanted`, class folders without images."""
        if '' in names:
            loose = [path for path, _ in listing.files if os.sep not in path]
            raise ValueError(
                f'Images lie directly in {self.root}, {len(loose):,} in all, such as {loose[0]}: put each image into '
                'the folder of its class.')
        empty = [name for name in listing.folders if name not in names]
        if names and empty and wanted:
            raise ValueError(
                f'Class {empty[0]!r} has no image in {os.path.join(self.root, empty[0])}: add images ({wanted}), '
                'remove the folder, or name the classes by --class-map.')

    def _nothing(self, listing: Listing, names: set[str]) -> str:
        if names:
            return (
                f'Found 0 images of the classes in --class-map in {self.root}, which has classes such as '
                f'{min(names)!r}: name the classes in --class-map as the folders are named.')
        return (
            f'Found 0 images in the folders of {self.root} (skipped: {listing.words() or "nothing"}): give the folder '
            f'that holds one folder for each class, with images that Pillow reads{_arrays(listing)}.')

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        return open(os.path.join(self.root, self.paths[index]), 'rb'), self.targets[index]

    def __len__(self) -> int:
        return len(self.paths)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        path = self.paths[index]
        return os.path.join(self.root, path) if absolute else os.path.basename(path) if basename else path


def _check_encoding(names: set[str]) -> None:
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f'The name of the folder {os.fsencode(name)!r} is not UTF-8, so it could not be written into the files '
                'of a run: rename the folder.') from error


def read_class_map(class_map: str | Mapping[str, int], root: str = '') -> Mapping[str, int]:
    """Labels by class name, from a class map file of timm.

    Raises:
        ValueError: If the file cannot be read as one.
    """
    try:
        return load_class_map(class_map, root)
    except (AssertionError, ValueError, OSError, pickle.UnpicklingError) as error:
        raise ValueError(
            f'--class-map {class_map} cannot be read ({error}): give a .txt file, one class name a line.') from error


def _arrays(listing: Listing) -> str:
    return '; .npy needs --in-chans N or --input-img-mode array' if '.npy' in listing.left_out else ''
