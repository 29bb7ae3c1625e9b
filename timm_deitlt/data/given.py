"""The images that a command line names: files, folders, globs, a list."""
import glob
import os
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from PIL import Image

# Folders that systems make beside the images
_SYSTEM = ('__MACOSX',)


@cache
def image_suffixes() -> frozenset[str]:
    """Suffixes, in lower case, of the formats that Pillow reads."""
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN)


def given_images(names: Iterable[str], listed: Iterable[str] = ()) -> list[str]:
    """Paths of the images that are named, each once, in the order in which they are named.

    Args:
        names: Files, whatever their suffix; folders, of which all images below are taken, in the order of their paths,
            but no hidden ones; globs, in which `**` reaches through folders; '-' for `listed`.
        listed: Lines with one path each. A file that is not there is found out when it is read.

    Raises:
        FileNotFoundError: If a name is neither a file nor a folder, and a glob that matches nothing.
        ValueError: If no image is found.
    """
    names = list(names)
    found: dict[str, None] = {}
    for name in names:
        found.update(dict.fromkeys(_images_of(name, listed)))
    if not found:
        raise ValueError(
            f'There is no image in {", ".join(names)}: images are known by their suffix, such as .jpg, .png or .tif.')
    return list(found)


def _images_of(name: str, listed: Iterable[str]) -> Iterator[str]:
    if name == '-':
        yield from (path for line in listed if (path := line.rstrip('\r\n')))
        return
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        yield from _below(path)
        return
    if os.path.exists(path):
        yield path
        return
    matches = sorted(glob.glob(path, recursive=True))
    if not matches:
        raise FileNotFoundError(
            f'There is no file or folder {name!r}, and it matches none as a glob: give files, folders, globs, or - for '
            'a list of paths on standard input.')
    for match in matches:
        if not os.path.isdir(match):
            yield match
        elif not name.endswith('**'):  # which matches what lies in the folder too
            yield from _below(match)


def _below(folder: str) -> Iterator[str]:
    suffixes = image_suffixes()
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith('.') and name not in _SYSTEM)
        for name in sorted(files):
            if not name.startswith('.') and Path(name).suffix.lower() in suffixes:
                yield os.path.join(root, name)
