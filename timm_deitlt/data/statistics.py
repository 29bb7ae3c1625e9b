"""Mean and standard deviation of the channels of a data set."""
from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor

from .long_tail import ClassificationSet

# Largest number of images to read. Their mean differs from that of all by less than a hundredth of the deviation.
MOST_IMAGES = 4096


def channel_statistics(dataset: ClassificationSet) -> tuple[list[float], list[float], int]:
    """Mean and standard deviation of each channel over all pixels of at most 4,096 images, which have equal weight.

    Args:
        dataset: Images, with `transform` unset.

    Returns:
        Mean and standard deviation of each channel in units of the largest value (0..1 for pictures), with six digits,
        and the number of images that were read. A constant channel gets the deviation 1, so it becomes 0.
    """
    chosen = np.linspace(0, len(dataset) - 1, num=min(MOST_IMAGES, len(dataset))).astype(int)
    first: Any = 0.
    second: Any = 0.
    for i in chosen:
        pixels = _pixels(dataset[int(i)][0])
        first = first + pixels.mean(0)
        second = second + (pixels ** 2).mean(0)
    mean = first / len(chosen)
    std = np.sqrt(np.maximum(second / len(chosen) - mean ** 2, 0))
    return _rounded(mean), [value or 1. for value in _rounded(np.where(std < 1e-6 * np.abs(mean), 0, std))], len(chosen)


def _pixels(image: Any) -> np.ndarray:
    """float64 `[H * W, C]`."""
    values = image.permute(1, 2, 0).numpy() if isinstance(image, Tensor) else np.asarray(image)
    return values.reshape(-1, 1 if values.ndim == 2 else values.shape[-1]).astype(np.float64) / 255


def _rounded(values: Iterable[float]) -> list[float]:
    return [float(f'{value:.6g}') for value in values]
