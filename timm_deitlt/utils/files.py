"""Reading and writing small files, completely or not at all, and errors of a full disk."""
import csv
import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

MAKE_ROOM = 'Make room and start again; a run continues with --resume auto and its --experiment name.'
# a full disk, a quota that is used up, and a file larger than the file system or `ulimit -f` allows
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def no_space(error: BaseException | None) -> str | None:
    """The operating system's message if lack of space caused this error; None for any other error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            return os.strerror(error.errno)
        error = error.__cause__ or error.__context__
    return None


def atomic_write(path: Path, write: Callable[[Path], object], size: int | None = None) -> None:
    """Call `write(temporary path)` and move the result to `path`. A crash leaves the old file or the new one.

    Args:
        path: File to write.
        write: Writes the file by Python's own file objects, whose errors say that a disk is full.
        size: Approximate bytes of the file, for the message.

    Raises:
        ValueError: If there is no space for it. The error names the folder, the space needed and the space left.
    """
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.tmp')
    try:
        write(temporary)
        with open(temporary, 'rb+') as file:
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # safetensors writes files that only their owner can read
        os.replace(temporary, path)
    except Exception as error:  # on a full disk torch's writer raises a RuntimeError about file positions
        reason = no_space(error)
        if reason is None:
            raise
        temporary.unlink(missing_ok=True)
        needed = '' if size is None else f'It needs about {amount(size)}, and '
        left = amount(free_bytes(path.parent))
        raise ValueError(
            f'{path.name} cannot be written to {path.parent}: {reason}. {needed}{left} are left there. The files that '
            f'were there are undamaged. {MAKE_ROOM}') from error
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == 'nt':
        return  # there a folder cannot be opened
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    atomic_write(path, lambda temporary: temporary.write_text(text, encoding='utf-8'), len(text.encode()))


def read_json(path: Path) -> Any:
    """Content of a JSON file, or an empty dict if there is none."""
    return json.loads(path.read_text()) if path.is_file() else {}


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file by the names of its columns, or none if there is no file."""
    if not path.is_file():
        return []
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


def free_bytes(folder: Path) -> int:
    """Bytes left in a folder, which need not exist yet."""
    folder = Path(folder).absolute()
    return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free


def amount(size: int) -> str:
    """A number of bytes with its unit, such as '1.50 GB'."""
    for unit, factor in (('GB', 1e9), ('MB', 1e6)):
        if size >= factor:
            return f'{size / factor:.2f} {unit}'
    return f'{size / 1e3:.1f} kB'
