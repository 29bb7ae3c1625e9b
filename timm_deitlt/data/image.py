"""Open an image, in the same way in training, validation, analysis and prediction.

The images of the paper's benchmarks are opened as in the published runs, see `long_tail`. Streams, and sets of
torchvision other than folders, are opened by timm and torchvision. All others are opened here.
"""
import struct
from collections.abc import Container
from functools import cache
from importlib.util import find_spec
from os import PathLike
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from timm.data.readers.img_extensions import get_img_extensions
from torch import Tensor

from .tiff import (
    BITS_PER_SAMPLE,
    INSTALL,
    ORIENTATION,
    TIFF,
    WrongKindError,
    check_tiff,
    is_negative,
    read_tiff,
    refuse_unknown_tiff,
    unknown_range,
)

# Mode of images that are not ordinary pictures: any number of channels, and any numbers
ARRAY = 'array'
# Colour that replaces transparent pixels, because their stored colour is arbitrary
BACKGROUND = 'white'
# Formats that Pillow recognises but does not decode on most machines
_NOT_DECODED = {'BUFR', 'EPS', 'GRIB', 'HDF5', 'MPEG', 'WMF'}
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_NPY = b'\x93NUMPY'


def image_mode(in_chans: int = 3, asked: str | None = None) -> str:
    """Mode in which images of `in_chans` channels are opened: `asked`, or else 'L', 'RGB' or 'array'."""
    return asked or {1: 'L', 3: 'RGB'}.get(in_chans, ARRAY)


@cache
def image_suffixes(mode: str = 'RGB') -> frozenset[str]:
    """Lower-case suffixes of the files that can be opened in a mode: all that Pillow decodes, and .npy as arrays."""
    pillows = {
        suffix for suffix, kind in Image.registered_extensions().items()
        if kind in Image.OPEN and kind not in _NOT_DECODED}
    return frozenset(pillows | {'.npy'} if mode == ARRAY else pillows).union(get_img_extensions(as_set=True))


def open_image(
        source: str | PathLike | BinaryIO,
        in_chans: int = 3,
        mode: str | None = None,
) -> Image.Image | Tensor:
    """Open and decode an image: upright, in the given mode, scaled by its bit depth, on a white background.

    A JPEG is turned upright by its EXIF orientation. Grey images of 16 bits are scaled to 8 bits by their bit depth,
    not by their darkest and lightest pixel. Transparent pixels become white, unless the mode has an alpha channel.

    Args:
        source: Path, or binary file that is open for reading.
        in_chans: Number of channels of the result.
        mode: Mode of Pillow, or 'array'; by default 'L' for 1 channel, 'RGB' for 3, and 'array' for any other number.

    Returns:
        A PIL image. In the mode 'array' a float32 tensor `[in_chans, H, W]`, from an image, a TIFF of many bands, or an
        .npy file of shape `[H, W, C]`, `[C, H, W]` or `[H, W]`. Integers are scaled so that the largest number of their
        type becomes 255, and floats are multiplied by 255. So mean and std are in units of the largest number, or of
        the floats.

    Raises:
        OSError: If the file cannot be read or is not an image.
        ValueError: If a number is not finite; a `WrongKindError` if it has other channels, or the range of its numbers
            is not known.

    Example:
        >>> import io
        >>> file = io.BytesIO()
        >>> Image.new('RGBA', (4, 2), (255, 0, 0, 0)).save(file, 'png')
        >>> open_image(file).getpixel((0, 0))
        (255, 255, 255)
    """
    mode = image_mode(in_chans, mode)
    if isinstance(source, (str, PathLike)):
        with open(source, 'rb') as file:
            return _read(file, in_chans, mode)
    source.seek(0)
    return _read(source, in_chans, mode)


def as_opened(image: Image.Image, in_chans: int = 3, mode: str | None = None) -> Image.Image:
    """What `open_image` makes of an image that Pillow has opened.

    Raises:
        ValueError: If images of so many channels are arrays, not pictures.
    """
    mode = image_mode(in_chans, mode)
    if mode == ARRAY:
        raise ValueError(f'Images of {in_chans} channels are arrays, not pictures: give paths of .npy or TIFF files.')
    return _picture(image, mode)


def check_readers(suffixes: Container[str], mode: str) -> None:
    """Refuse files with these suffixes before the first is opened, if the package that reads them is not installed.

    Pillow is not enough for TIFFs: it reads no more than 4 bands, and only 8 of 16 bits of a colour.

    Raises:
        ValueError: If the package is missing. The error names it.
    """
    if mode == ARRAY and ('.tif' in suffixes or '.tiff' in suffixes) and not find_spec('tifffile'):
        raise ValueError(f'Reading TIFFs as arrays needs tifffile, which is not installed: {INSTALL}.')


def _read(file: BinaryIO, in_chans: int, mode: str) -> Image.Image | Tensor:
    if mode == ARRAY:
        return _as_tensor(_read_array(file, in_chans), in_chans)
    try:
        opened = _open(file)
    except UnidentifiedImageError:
        _refuse_array(file, mode)
        refuse_unknown_tiff(file, mode)
        raise
    with opened as image:
        return _picture(image, mode)


def _open(file: BinaryIO) -> Image.Image:
    try:
        return Image.open(file)
    except UnidentifiedImageError as error:
        file.seek(0)
        if not file.read(1):
            raise OSError('the file is empty') from error
        raise


def _refuse_array(file: BinaryIO, mode: str) -> None:
    file.seek(0)
    if file.read(len(_NPY)) == _NPY:
        raise WrongKindError(
            f'it is an .npy array, not an image of mode {mode}: train with --in-chans N or --input-img-mode array')


def _picture(image: Image.Image, mode: str) -> Image.Image:
    if isinstance(image, TiffImageFile):
        check_tiff(image, mode)
    upright = _upright(image)
    if is_negative(image):
        upright = Image.fromarray(65535 - np.asarray(upright))
    return _in_mode(upright, mode, image.format)


def _upright(image: Image.Image) -> Image.Image:
    image = _with_alpha(image)
    image.load()  # this already turns a TIFF upright
    try:
        orientation = image.getexif().get(ORIENTATION)
    except (SyntaxError, struct.error, ValueError, KeyError, TypeError):  # damaged EXIF in an undamaged image
        orientation = None
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _with_alpha(image: Image.Image) -> Image.Image:
    """Put the transparent colour of a PNG of three times 16 bits into an alpha channel; other images stay as they are.

    Pillow keeps the high byte of each number, and compares it with all 16 bits of that colour.
    """
    if not isinstance(image, PngImageFile) or [tile[3] for tile in image.tile] != ['RGB;16B']:
        return image
    colour = image.info.get('transparency')
    if colour is None or image.fp is None:
        return image
    with Image.open(image.fp) as low:
        # this layout takes the low byte of a big-endian number
        low.tile = [(*tile[:3], 'RGB;16L') for tile in low.tile]  # type: ignore[misc]
        seen = np.asarray(low) != np.array(colour) % 256
    seen |= np.asarray(image) != np.array(colour) // 256
    image = image.copy()
    image.putalpha(Image.fromarray(seen.any(-1).astype(np.uint8) * 255))
    image.info.pop('transparency', None)
    return image


def _in_mode(image: Image.Image, mode: str, kind: str | None) -> Image.Image:
    if image.mode == mode:
        return image if image.info.get('transparency') is None else _on_background(image).convert(mode)
    if _has_16_bits(image, kind):
        bits = image.tag_v2.get(BITS_PER_SAMPLE, (16,))[0] if hasattr(image, 'tag_v2') else 16
        values, hidden = np.asarray(image).astype(np.uint16), image.info.get('transparency')
        image = Image.fromarray(_eight_bits(bits)[values])
        if hidden is not None:
            image.putalpha(Image.fromarray(np.where(values == hidden, 0, 255).astype(np.uint8)))
    elif image.mode in ('I', 'F') and mode not in ('I', 'F'):
        raise WrongKindError(unknown_range('floats' if image.mode == 'F' else 'whole numbers of 32 bits'))
    if image.has_transparency_data and mode not in ('RGBA', 'LA', 'PA', 'RGBa', 'La'):
        image = _on_background(image)
    return image.convert(mode)


def _has_16_bits(image: Image.Image, kind: str | None) -> bool:
    """Whether these are grey values of 16 bits. Those of a PGM file have the mode of 32 bits."""
    return image.mode.startswith('I;16') or (image.mode == 'I' and kind in ('PNG', 'PPM'))


def _on_background(image: Image.Image) -> Image.Image:
    image = image.convert('RGBA')
    return Image.alpha_composite(Image.new('RGBA', image.size, BACKGROUND), image)


@cache
def _eight_bits(bits: int) -> np.ndarray:
    """8-bit value of each 16-bit value, for an image with this many significant bits."""
    largest = 2 ** bits - 1
    return np.rint(np.arange(2 ** 16).clip(max=largest) * (255 / largest)).astype(np.uint8)


def _read_array(file: BinaryIO, in_chans: int) -> np.ndarray:
    head = file.read(8)
    file.seek(0)
    if head.startswith(_NPY):
        return np.load(file, allow_pickle=False)
    if head.startswith(TIFF):
        check_readers(('.tiff',), ARRAY)
        return read_tiff(file)
    with _open(file) as image:
        upright = _upright(image)
        if _has_16_bits(upright, image.format):
            values, hidden = np.asarray(upright).astype(np.uint16), upright.info.get('transparency')
            return values if hidden is None else np.where(values == hidden, np.uint16(65535), values)
        if upright.has_transparency_data and in_chans in (1, 3):
            upright = _on_background(upright).convert(image_mode(in_chans))
        elif upright.mode in ('P', '1', 'PA', 'CMYK', 'YCbCr', 'LAB', 'HSV'):
            upright = upright.convert(image_mode(in_chans) if in_chans in (1, 3) else 'RGB')
        return np.asarray(upright)


def _as_tensor(array: np.ndarray, in_chans: int) -> Tensor:
    shape = array.shape
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim == 3 and array.shape[-1] != in_chans == array.shape[0]:
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[-1] != in_chans or not array.size:
        raise WrongKindError(
            f'it has the shape {list(shape)}, but needs height, width and {in_chans} channels (--in-chans {in_chans})')
    kind = array.dtype.kind
    if kind not in 'buif':
        raise WrongKindError(f'it holds {array.dtype}, but real numbers are needed')
    largest = np.iinfo(array.dtype).max if kind in 'ui' else 1
    array = np.ascontiguousarray(array.transpose(2, 0, 1)).astype(np.float32) * np.float32(255 / largest)
    if not np.isfinite(array).all():
        raise ValueError('it holds numbers that are not finite (NaN or infinite): replace them before training')
    return torch.from_numpy(array)
