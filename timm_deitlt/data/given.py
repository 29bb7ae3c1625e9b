"""The images that a command line names: files, folders, globs, a list."""
import glob
import logging
import os
from collections.abc import Container, Iterable, Iterator

from .folders import Listing, list_images
from .image import image_suffixes

_logger = logging.getLogger(__name__)


def given_images(names: Iterable[str], listed: Iterable[str] = (), mode: str = 'RGB') -> list[str]:
    """Paths of the images that are named, each once, in the order in which they are named.

    Args:
        names: Files, whatever their suffix; folders, of which all images below are taken, in timm's order,
            but no hidden ones; globs, in which `**` reaches through folders; '-' for `listed`.
        listed: Lines with one path each. A file that is not there is found out when it is read.
        mode: Mode that they will be opened in; as 'array' .npy files are images too.

    Raises:
        FileNotFoundError: If a name is neither a file nor a folder, and a glob that matches nothing.
        ValueError: If no image is found.
    """
    names, suffixes = list(names), image_suffixes(mode)
    found: dict[str, str] = {}  # the path as it was named, by its place
    skipped = Listing()
    for name in names:
        for path in _images_of(name, listed, suffixes, skipped):
            found.setdefault(_place(path), path)
    words = skipped.words()
    if not found:
        arrays = f' This model takes images of mode {mode}, not .npy arrays.' if '.npy' in skipped.left_out else ''
        raise ValueError(
            f'There is no image in {", ".join(names)} (skipped: {words or "nothing"}): images are known by their '
            f'suffix, such as .jpg, .png or .tif.{arrays}')
    if words:
        _logger.info(f'Skipped in {", ".join(names)}: {words}.')
    return list(found.values())


def _place(path: str) -> str:
    """The same for a.png and ./a.png. With '..' another spelling may be another file, if a folder is a link."""
    return path if '..' in path.split(os.sep) else os.path.abspath(path)


def _images_of(name: str, listed: Iterable[str], suffixes: Container[str], skipped: Listing) -> Iterator[str]:
    if name == '-':
        yield from (path for line in listed if (path := line.rstrip('\r\n')))
        return
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        yield from _below(path, suffixes, skipped)
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
            yield from _below(match, suffixes, skipped)


def _below(folder: str, suffixes: Container[str], skipped: Listing) -> Iterator[str]:
    listing = list_images(folder, suffixes)
    skipped.left_out += listing.left_out
    skipped.hidden += listing.hidden
    for name, _ in listing.files:
        yield os.path.join(folder, name)
