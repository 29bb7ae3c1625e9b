"""TIFFs: what of them Pillow reads, what it would read wrongly, and all of their numbers as an array."""
import struct
from typing import Any, BinaryIO

import numpy as np
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

# First bytes of a TIFF
TIFF = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')
INSTALL = "pip install 'timm_deitlt[tiff]'"
ORIENTATION, BITS_PER_SAMPLE = 274, 258
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
_SAMPLES_PER_PIXEL = 277
_PLANES, _SEPARATE = 284, 2
_SAMPLE_FORMAT, _SIGNED, _FLOAT = 339, 2, 3
_ARRAYS = '--input-img-mode array --in-chans 1 --mean auto --std auto'
_OFFSETS = (273, 324)  # of strips and of tiles


class WrongKindError(ValueError):
    """A whole image of a kind that cannot be used as the settings say."""


def check_tiff(image: TiffImageFile, mode: str) -> None:
    """Refuse a TIFF of which Pillow would read only some bands, or the numbers wrongly.

    Raises:
        WrongKindError: If it is one. The error says how to read it.
    """
    tags = image.tag_v2
    samples, bits = tags.get(_SAMPLES_PER_PIXEL, 1), max(tags.get(BITS_PER_SAMPLE, (1,)))
    in_planes = samples > 1 and tags.get(_PLANES) == _SEPARATE
    passed_over = image.mode == 'RGBX' or samples != len(image.getbands())  # RGBX in older Pillows
    if passed_over or (in_planes and bits > 8):
        _refuse_bands(samples, mode)
    if samples == 1 and image.mode not in ('1', 'P') and image.n_frames > 1:
        size = image.size
        image.seek(1)
        if image.size == size:  # else it is a preview
            _refuse_bands(image.n_frames, mode)
        image.seek(0)
    if _SIGNED in tags.get(_SAMPLE_FORMAT, ()) and mode not in ('I', 'F'):
        raise WrongKindError(unknown_range(f'signed whole numbers of {bits} bits'))


def is_negative(image: Any) -> bool:
    """Whether an image that Pillow has opened holds 0 for white. Of such TIFFs Pillow inverts up to 8 bits, no more."""
    return (
        isinstance(image, TiffImageFile) and image.mode.startswith('I;16')
        and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO)


def refuse_unknown_tiff(file: BinaryIO, mode: str) -> None:
    """Say what to do with a TIFF of which Pillow knows no mode. Other files, and damaged ones, are left alone.

    Raises:
        WrongKindError: If it is one.
    """
    tags = _tags(file)
    _refuse_bands(int(tags.get(_SAMPLES_PER_PIXEL, 1)), mode)
    if BITS_PER_SAMPLE not in tags or not any(tag in tags for tag in _OFFSETS):
        return
    bits, kinds = max(tags[BITS_PER_SAMPLE]), tags.get(_SAMPLE_FORMAT, ())
    if _FLOAT in kinds:
        raise WrongKindError(unknown_range('floats'))
    if _SIGNED in kinds or bits > 16:
        raise WrongKindError(unknown_range(f'{"signed " if _SIGNED in kinds else ""}whole numbers of {bits} bits'))
    white = ', big-endian and with 0 for white (MinIsWhite),' if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else ''
    raise WrongKindError(
        f'it is a TIFF of {bits} bits{white} that Pillow does not read: save it as unsigned whole numbers of 8 or 16 '
        f'bits with 0 for black (MinIsBlack), or train with {_ARRAYS}')


def unknown_range(what: str) -> str:
    """Text that says what to do with numbers whose range is not known."""
    return (
        f'it holds {what}, whose range is not known: save it as unsigned whole numbers of 8 or 16 bits, or train on '
        f'the numbers as they are with {_ARRAYS}')


def read_tiff(file: BinaryIO) -> np.ndarray:
    """All numbers of a TIFF, upright; grey that holds 0 for white is inverted.

    Raises:
        WrongKindError: If its numbers cannot be inverted, because the largest is not known.
        ValueError: If tifffile cannot read it.
    """
    import tifffile  # an optional dependency

    try:
        with tifffile.TiffFile(file) as tiff:
            array, axes, page = tiff.asarray(), tiff.series[0].axes, tiff.series[0].keyframe
            orientation = page.tags.valueof(ORIENTATION, 1)
            negative = page.photometric == _WHITE_IS_ZERO and page.samplesperpixel == 1
            bits = page.bitspersample
    except Exception as error:  # tifffile and its codecs raise many types of errors
        raise ValueError(
            f'tifffile cannot read it ({" ".join(str(error).split())}): if a codec is missing, {INSTALL}') from error
    return _turned(_inverted(array, bits) if negative else array, axes, orientation)


def _inverted(array: np.ndarray, bits: int) -> np.ndarray:
    if array.dtype.kind == 'b':
        return ~array
    if array.dtype.kind != 'u':
        raise WrongKindError(
            f'it holds {array.dtype} with 0 for white (MinIsWhite), and what is black is not known: save it with 0 for '
            'black (MinIsBlack), or as unsigned whole numbers')
    return array.dtype.type(2 ** bits - 1) - array


def _turned(array: np.ndarray, axes: str, orientation: int) -> np.ndarray:
    """Turn an array of axes such as 'YXS' or 'SYX' upright; then it is `[H, W, ...]`."""
    if orientation not in range(2, 9) or 'Y' not in axes or 'X' not in axes or array.ndim != len(axes):
        return array
    array = np.moveaxis(array, (axes.index('Y'), axes.index('X')), (0, 1))
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return array[::-1] if orientation in (3, 4, 7, 8) else array


def _tags(file: BinaryIO) -> Any:
    """Tags of a file that may be a TIFF, by number; none if it is no TIFF or damaged."""
    file.seek(0)
    head = file.read(8)
    if not head.startswith(TIFF):
        return {}
    try:
        tags = ImageFileDirectory_v2(head + (file.read(8) if head[2] == 43 else b''))
        file.seek(tags.next)
        tags.load(file)
        return {tag: tags[tag] for tag in (
            _SAMPLES_PER_PIXEL, BITS_PER_SAMPLE, _SAMPLE_FORMAT, _PHOTOMETRIC, *_OFFSETS) if tag in tags}
    except (OSError, SyntaxError, struct.error, ValueError, TypeError):
        return {}


def _refuse_bands(bands: int, mode: str) -> None:
    if bands > 1:
        as_array = ' --input-img-mode array' if bands == 3 else ''
        raise WrongKindError(
            f'its {bands} bands cannot be read as an image of mode {mode}: train with --in-chans {bands}{as_array} '
            '--mean auto --std auto to use all of them, or save those that you need as an image of their own')
