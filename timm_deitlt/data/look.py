"""A look at some images of a set before any work: images of a kind that cannot be used are an error now."""
import logging
from typing import Any

import numpy as np
from PIL import Image
from timm.data import ImageDataset

from .image import ARRAY
from .long_tail import ClassificationSet, UnreadableImageError
from .tiff import WrongKindError

_logger = logging.getLogger(__name__)

# So many images are opened, spread over the set
_LOOKED_AT = 24
# If a smaller part of the pixels is opaque, the fourth band is probably not transparency
_OPAQUE = .01


def look_at(dataset: Any) -> None:
    """Open some images of a set of files, and warn if their fourth band does not look like transparency.

    Benchmarks and streams are not looked at. Damaged images are left to training.

    Raises:
        UnreadableImageError: If an image is of a kind that cannot be used as the settings say; if bad images are
            skipped, only if all are.
    """
    if not isinstance(dataset, ClassificationSet) or dataset.opener is None or not len(dataset):
        return
    chosen = np.unique(np.linspace(0, len(dataset) - 1, num=_LOOKED_AT).astype(int)).tolist()
    wrong = [error for i in chosen if (error := _wrong_kind(dataset, i))]
    if wrong and (len(wrong) == len(chosen) or not dataset.skip_bad_images):
        raise wrong[0]
    if dataset.input_img_mode == ARRAY or not isinstance(dataset.base, ImageDataset):
        return
    faint = sum(_hardly_opaque(dataset.base, int(dataset.indices[i])) for i in chosen)
    if 10 * faint >= len(chosen):
        _logger.warning(
            f'Hardly a pixel is opaque in {faint} of {len(chosen)} images of {dataset.place} that were looked at, so '
            'they become (almost) white. If their fourth band is not transparency, give --in-chans 4 --mean auto '
            '--std auto.')


def _wrong_kind(dataset: ClassificationSet, i: int) -> UnreadableImageError | None:
    try:
        dataset.read(i)
    except UnreadableImageError as error:
        return error if isinstance(error.__cause__, WrongKindError) else None
    return None


def _hardly_opaque(base: ImageDataset, index: int) -> bool:
    try:
        with base.reader[index][0] as file, Image.open(file) as image:
            return image.mode == 'RGBA' and float(np.mean(np.asarray(image)[..., 3] == 255)) < _OPAQUE
    except Exception:  # a damaged image: Pillow and its decoders raise many kinds
        return False
