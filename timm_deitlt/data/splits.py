"""The folders of the splits in a folder of images."""
import os

from timm.data.dataset_factory import _EVAL_SYNONYM, _TRAIN_SYNONYM, _search_split

from .folders import is_folder, is_hidden

# Names of folders that hold a split, in lower case
SPLIT_NAMES = (*_TRAIN_SYNONYM, *_EVAL_SYNONYM, 'test', 'testing')


def split_folder(root: str | os.PathLike, split: str) -> str | None:
    """Folder of a split in a folder of images, or None if it has none.

    As in timm, 'val' also finds 'validation', and 'train' also 'training'. Upper and lower case may differ if at least
    two folders are named as splits, or if there is no other folder: among other classes 'Train' is a class.
    """
    root = os.fspath(root)
    if not split or not os.path.isdir(root):
        return None
    found = _search_split(root, split)
    if found != root:
        return found
    folders = subfolders(root)
    named = [name for name in folders if name.lower() in SPLIT_NAMES]
    if len(named) < min(2, len(folders)):
        return None
    asked = split.partition('[')[0].lower()
    words = next((same for same in (_TRAIN_SYNONYM, _EVAL_SYNONYM) if asked in same), ())
    return next(
        (os.path.join(root, name) for word in (asked, *words) for name in named if name.lower() == word), None)


def has_split(root: str | os.PathLike, split: str) -> bool:
    """Whether a folder of images has a folder for this split, see `split_folder`."""
    return split_folder(root, split) is not None


def check_split(root: str, split: str) -> None:
    """Refuse a folder that has other splits but not this one. timm would read all of it, training images too.

    Raises:
        FileNotFoundError: If it has other splits, which the error names.
    """
    if not os.path.isdir(root) or has_split(root, split):
        return
    others = [
        name for name in subfolders(root) if name.lower() in SPLIT_NAMES and has_split(root, name.lower())
        and subfolders(os.path.join(root, name))]  # else a class of that name
    if others:
        raise FileNotFoundError(f'{root} has no folder for the split {split!r}, only for {", ".join(others)}.')


def subfolders(root: str | os.PathLike) -> list[str]:
    """Sorted names of the folders directly in a folder, without hidden and system folders."""
    with os.scandir(os.fspath(root)) as entries:
        return sorted(entry.name for entry in entries if is_folder(entry) and not is_hidden(entry.name))
