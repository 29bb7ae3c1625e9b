"""An image from a file, as training, evaluation and prediction see it."""
import os
from typing import BinaryIO

from PIL import Image, ImageOps

# Pillow's modes by their number of channels
_MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}


def open_image(path_or_file: str | os.PathLike | BinaryIO, in_chans: int = 3) -> Image.Image:
    """Open and decode an image, upright by its EXIF orientation.

    Args:
        path_or_file: Path, or a file that is open for reading bytes.
        in_chans: Channels wanted: 1 is grey, 3 RGB, 4 RGBA.

    Raises:
        ValueError: If Pillow has no mode of so many channels.
        OSError: If the file cannot be read, or is no image. Pillow's decoders raise others for a damaged one.
    """
    with Image.open(path_or_file) as image:
        return as_opened(image, in_chans)


def as_opened(image: Image.Image, in_chans: int = 3) -> Image.Image:
    """What `open_image` makes of an image that Pillow has opened."""
    if in_chans not in _MODES:
        raise ValueError(f'Images of {in_chans} channels cannot be opened: 1, 3 and 4 are allowed.')
    return ImageOps.exif_transpose(image).convert(_MODES[in_chans])
