"""A look at some images of a set before any work: images of a kind that cannot be used are an error now."""
import logging
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from timm.data import ImageDataset

from .image import ARRAY
from .long_tail import ClassificationSet, UnreadableImageError
from .tiff import BITS_PER_SAMPLE, WrongKindError

_logger = logging.getLogger(__name__)

# So many images are opened, spread over the set
_LOOKED_AT = 24
# If a smaller part of the pixels is opaque, the fourth band is probably not transparency
_OPAQUE = .01
# If no number of 16 bits is larger, the sensor probably has fewer bits, and the images are hardly to be seen
_DARK = 65535 // 8


class _Glimpse(NamedTuple):
    """What is odd about an image: hardly a pixel is opaque; largest number of grey with 16 bits, else None."""
    faint: bool = False
    largest: int | None = None


def look_at(*datasets: Any) -> None:
    """Open some images of sets of files, and warn if they become almost white or almost black.

    Almost white if their fourth band does not look like transparency, almost black if grey images of 16 bits only use a
    small part of them. Benchmarks and streams are not looked at. Damaged images are left to training.

    Args:
        datasets: Data sets of a run, or None.

    Raises:
        UnreadableImageError: If an image is of a kind that cannot be used as the settings say; if bad images are
            skipped, only if all are.
    """
    largest: list[int] = []
    place = ''
    for dataset in datasets:
        if isinstance(dataset, ClassificationSet) and dataset.opener is not None and len(dataset):
            found = [glimpse.largest for glimpse in _look_at(dataset) if glimpse.largest is not None]
            place = place or (dataset.place if found else '')
            largest += found
    if 0 < max(largest, default=0) < _DARK:
        _logger.warning(
            f'{len(largest)} grey images of 16 bits, in {place}, were looked at. Their largest number is '
            f'{max(largest):,} of 65,535, so they become almost black. If their sensor has fewer than 16 bits, give '
            '--input-img-mode array --in-chans 1 --mean auto --std auto.')


def _look_at(dataset: ClassificationSet) -> list[_Glimpse]:
    chosen = np.unique(np.linspace(0, len(dataset) - 1, num=_LOOKED_AT).astype(int)).tolist()
    wrong = [error for i in chosen if (error := _wrong_kind(dataset, i))]
    if wrong and (len(wrong) == len(chosen) or not dataset.skip_bad_images):
        raise wrong[0]
    if dataset.input_img_mode == ARRAY or not isinstance(dataset.base, ImageDataset):
        return []
    glimpses = [_glimpse(dataset.base, int(dataset.indices[i])) for i in chosen]
    faint = sum(glimpse.faint for glimpse in glimpses)
    if 10 * faint >= len(chosen):
        _logger.warning(
            f'Hardly a pixel is opaque in {faint} of {len(chosen)} images of {dataset.place} that were looked at, so '
            'they become (almost) white. If their fourth band is not transparency, give --in-chans 4 --mean auto '
            '--std auto.')
    return glimpses


def _wrong_kind(dataset: ClassificationSet, i: int) -> UnreadableImageError | None:
    try:
        dataset.read(i)
    except UnreadableImageError as error:
        return error if isinstance(error.__cause__, WrongKindError) else None
    return None


def _glimpse(base: ImageDataset, index: int) -> _Glimpse:
    try:
        with base.reader[index][0] as file, Image.open(file) as image:
            if image.mode == 'RGBA':
                return _Glimpse(faint=float(np.mean(np.asarray(image)[..., 3] == 255)) < _OPAQUE)
            bits = image.tag_v2.get(BITS_PER_SAMPLE, (16,))[0] if hasattr(image, 'tag_v2') else 16
            if bits == 16 and (image.mode.startswith('I;16') or (image.mode == 'I' and image.format == 'PNG')):
                return _Glimpse(largest=int(np.asarray(image).max()))
    except Exception:  # a damaged image: Pillow and its decoders raise many kinds
        pass
    return _Glimpse()
