"""What a folder of images holds, found out in seconds: how many there are, and how large they are."""
import os
from statistics import median

import numpy as np
from PIL import Image

from .folders import list_images
from .image import image_suffixes
from .splits import split_folder

# So many images, spread over the folder, tell its usual size
_MEASURED = 48


def survey(root: str | os.PathLike, split: str = 'train', mode: str = 'RGB') -> dict[str, float]:
    """Number of images of a split of a folder, and the median of their shorter sides in pixels.

    Args:
        root: Folder of class folders, with or without folders for its splits.
        split: Split that is trained on.
        mode: Mode that the images will be opened in, see `image.image_mode`.

    Returns:
        'images', and 'side' if any of the images that were looked at can be read; nothing if there is no image. Only
        headers are read.
    """
    folder = split_folder(root, split) or os.fspath(root)
    if not os.path.isdir(folder):
        return {}
    files = list_images(folder, image_suffixes(mode)).files
    if not files:
        return {}
    step = max(1, len(files) // _MEASURED)
    sides = [side for name, _ in files[::step] if (side := _shorter_side(os.path.join(folder, name)))]
    return {'images': len(files), **({'side': median(sides)} if sides else {})}


def _shorter_side(path: str) -> int | None:
    try:
        if path.lower().endswith('.npy'):
            return min(sorted(np.load(path, mmap_mode='r', allow_pickle=False).shape)[-2:])
        with Image.open(path) as image:
            return min(image.size)
    except Exception:  # Pillow, numpy and their decoders raise many kinds; training will say what is wrong
        return None
