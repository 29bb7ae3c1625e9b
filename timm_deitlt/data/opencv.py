"""timm's training transform by OpenCV and torch instead of Pillow: the same random numbers, about twice as fast.

Pixels differ from those of Pillow by rounding. Rotated images differ in two more ways: OpenCV's bicubic kernel is
another one (a = -0.75 instead of -1), and Pillow fills half a pixel more along the border.
"""
import copy
import math
import random
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data.auto_augment import AugmentOp, RandAugment
from timm.data.transforms import MaybePILToTensor, RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision import transforms

from .augment import Cutout

cv2.setNumThreads(1)  # a loader process uses one core, as with Pillow

_FILTERS = {transforms.InterpolationMode.BILINEAR: 'bilinear', transforms.InterpolationMode.BICUBIC: 'bicubic'}
_LEVELS = np.arange(256)
# Pillow's SMOOTH
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], dtype=np.float32) / 13
# Flags that ask for steps that OpenCV does not do here
_FLAGS = {
    'Resize': '--train-crop-mode, --no-aug', 'ColorJitter': '--color-jitter', 'RandomGrayscale': '--grayscale-prob',
    'RandomApply': '--color-jitter-prob, --gaussian-blur-prob', 'AutoAugment': '--aa', 'AugMixAugment': '--aa',
}


def to_opencv(transform: transforms.Compose) -> transforms.Compose:
    """The same training transform on arrays, from a PIL image, RGB or grey, to uint8 `[C, H, W]`.

    It draws the same random numbers as timm's, in the same order. So a seed gives the same crop, flip and operations.

    Args:
        transform: Result of `augment.train_transform`: a random resized crop, then flips, RandAugment and cutout.

    Raises:
        ValueError: If it has another step or operation.
    """
    steps: list[Any] = []
    for step in transform.transforms:
        if isinstance(step, RandomResizedCropAndInterpolation):
            steps.append(_Crop(step))
        elif isinstance(step, (transforms.RandomHorizontalFlip, transforms.RandomVerticalFlip)) and len(steps) == 1:
            steps[0].flips.append((step.p, 1 if isinstance(step, transforms.RandomHorizontalFlip) else 0))
        elif isinstance(step, RandAugment) and steps:
            # an array, because timm would convert a list for every image
            ops = np.array([_on_arrays(op) for op in step.ops])
            steps.append(RandAugment(ops, step.num_layers, step.choice_weights))
        elif isinstance(step, MaybePILToTensor) and steps:
            steps.append(_to_tensor)
        elif isinstance(step, Cutout):
            steps.append(step)
        else:
            name = type(step).__name__
            raise ValueError(
                f'--augment-backend opencv does random resized crops, flips, RandAugment and cutout, but not {name} '
                f'({_FLAGS.get(name, "--train-crop-mode")}): leave out the flag for it, or --augment-backend.')
    return transforms.Compose(steps)


class _Crop:
    """Random resized crop and flips. The flips come before enlarging the crop, which is faster."""

    def __init__(self, step: RandomResizedCropAndInterpolation):
        self.step = step
        self.flips: list[tuple[float, int]] = []
        filters = step.interpolation if isinstance(step.interpolation, (tuple, list)) else (step.interpolation,)
        self.filters = [_FILTERS[mode] for mode in filters if mode in _FILTERS]
        if len(self.filters) < len(filters):
            raise ValueError(
                '--augment-backend opencv can only resize by bilinear or bicubic: give one of them as '
                '--train-interpolation, or leave it out.')

    def __call__(self, image: Image.Image) -> np.ndarray:
        top, left, height, width = self.step.get_params(image, self.step.scale, self.step.ratio)
        mode = random.choice(self.filters) if len(self.filters) > 1 else self.filters[0]
        flips = [code for p, code in self.flips if torch.rand(1).item() < p]
        channels = len(image.getbands())
        if not height * width:  # an empty crop of a tiny image, for which Pillow returns black
            return np.zeros((*self.step.size, channels), np.uint8)
        pixels = np.asarray(image)[top:top + height, left:left + width]
        for code in flips:
            pixels = cv2.flip(pixels, code)
        batch = torch.from_numpy(np.array(pixels).reshape(1, height, width, channels)).permute(0, 3, 1, 2)
        if (height, width) != tuple(self.step.size):
            batch = F.interpolate(batch, self.step.size, mode=mode, antialias=True)
        return batch[0].permute(1, 2, 0).numpy()

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.step}, flips={self.flips})'


def _on_arrays(op: AugmentOp) -> AugmentOp:
    if op.name not in OPERATIONS:
        raise ValueError(
            f'--augment-backend opencv does not have the operation {op.name}: leave it out, or use another --aa.')
    op = copy.copy(op)
    op.aug_fn = OPERATIONS[op.name]
    return op


def _to_tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)  # the loader's copy into the batch makes it contiguous


# Operations on uint8 arrays `[H, W, C]`, RGB or grey, with the arguments of timm's operations of the same name

def _keep_channels(image: np.ndarray, result: np.ndarray) -> np.ndarray:
    return result.reshape(image.shape)  # OpenCV drops a single channel


def _scalar(fillcolor: Sequence[int] | int) -> tuple[int, ...]:
    return (fillcolor,) * 3 if isinstance(fillcolor, int) else tuple(fillcolor)


@lru_cache(maxsize=8)
def _filled(shape: tuple[int, ...], fillcolor: Sequence[int] | int) -> np.ndarray:
    return np.full(shape, fillcolor, np.uint8)


def _is_bicubic(resample: Sequence[int] | int) -> bool:
    return (random.choice(resample) if isinstance(resample, (tuple, list)) else resample) == Image.Resampling.BICUBIC


def _between(t: np.ndarray, bicubic: bool) -> np.ndarray:
    """Pillow's weights `[..., 4]` of the pixels -1, 0, 1, 2 for interpolation at position `t` in 0 to 1."""
    if not bicubic:
        return np.stack([0 * t, 1 - t, t, 0 * t], axis=-1)
    return np.stack([t * (t * (2 - t) - 1), 1 - t * t * (2 - t), t * (1 + t * (1 - t)), t * t * (t - 1)], axis=-1)


def _swap(image: np.ndarray) -> np.ndarray:
    return cv2.transpose(image).reshape(image.shape[1], image.shape[0], -1)


def _shear_x(
        image: np.ndarray,
        factor: float,
        fillcolor: Sequence[int] | int,
        resample: Sequence[int] | int,
) -> np.ndarray:
    height, width, channels = image.shape
    shifts = factor * (np.arange(height) + .5)  # pixel x of row y comes from x + shifts[y] in the source
    whole = np.floor(shifts).astype(int)
    weights = torch.from_numpy(_between(shifts - whole, _is_bicubic(resample)).astype(np.float32))
    whole = whole.clip(-width - 1, width)  # rows that are shifted further are empty
    margin = int(abs(whole).max()) + 2
    padded = cv2.copyMakeBorder(image, 0, 0, margin, margin, cv2.BORDER_REPLICATE).reshape(height, -1)
    length = (width + 3) * channels
    windows = np.lib.stride_tricks.as_strided(
        padded, (height, padded.shape[1] - length + 1, length), (*padded.strides, 1), writeable=False)
    pixels = torch.from_numpy(windows[np.arange(height), (whole + margin - 1) * channels]).float()
    length = width * channels
    sheared = pixels[:, :length] * weights[:, :1]
    for tap in (1, 2, 3):
        sheared.addcmul_(pixels[:, tap * channels:tap * channels + length], weights[:, tap:tap + 1])
    # Pillow truncates decimals, OpenCV rounds them
    result = cv2.subtract(sheared.numpy(), .499, dtype=cv2.CV_8U).reshape(image.shape)
    columns = np.arange(width, dtype=np.float32)
    first = (-.5 - shifts.astype(np.float32))[:, None]
    outside = (columns < first) | (columns >= first + width)
    return _keep_channels(image, cv2.copyTo(_filled(image.shape, fillcolor), outside.view(np.uint8), result))


def _shear_y(image, factor, **kwargs):
    return _swap(_shear_x(_swap(image), factor, **kwargs))


def _translate_x(
        image: np.ndarray,
        pixels: float,
        fillcolor: Sequence[int] | int,
        resample: Sequence[int] | int,
) -> np.ndarray:
    bicubic = _is_bicubic(resample)
    height, width, channels = image.shape
    # the columns x for which x + pixels lies at most half a pixel outside of the source
    first, last = max(0, math.ceil(-pixels - .5)), min(width, math.ceil(width - pixels - .5))
    if first >= last:
        return _filled(image.shape, fillcolor).copy()
    whole = math.floor(pixels)
    weights = _between(np.array([pixels - whole]), bicubic)
    padded = cv2.copyMakeBorder(image, 0, 0, 2, 2, cv2.BORDER_REPLICATE)
    between = cv2.filter2D(padded, -1, weights, anchor=(1, 0)).reshape(height, width + 4, channels)
    return _keep_channels(image, cv2.copyMakeBorder(
        between[:, first + whole + 2:last + whole + 2], 0, 0, first, width - last, cv2.BORDER_CONSTANT,
        value=_scalar(fillcolor)))


def _translate_y(image, pixels, **kwargs):
    return _swap(_translate_x(_swap(image), pixels, **kwargs))


def _translate_x_rel(image, share, **kwargs):
    return _translate_x(image, share * image.shape[1], **kwargs)


def _translate_y_rel(image, share, **kwargs):
    return _translate_y(image, share * image.shape[0], **kwargs)


def _rotate(
        image: np.ndarray,
        degrees: float,
        fillcolor: Sequence[int] | int,
        resample: Sequence[int] | int,
) -> np.ndarray:
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.)
    return _keep_channels(image, cv2.warpAffine(
        image, matrix, (width, height), borderValue=_scalar(fillcolor),
        flags=cv2.INTER_CUBIC if _is_bicubic(resample) else cv2.INTER_LINEAR))


def _look_up(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Look up levels in a table `[256]` or `[256, C]`, truncated to integers and clipped to 0 to 255 as in Pillow."""
    table = np.clip(table, 0, 255).astype(np.uint8)
    if table.ndim == 2:
        table = table.reshape(1, 256, -1)
    return _keep_channels(image, cv2.LUT(image, table))


def _auto_contrast(image, **_):
    low, high = image.min(axis=0).min(axis=0).astype(int), image.max(axis=0).max(axis=0).astype(int)
    scale = np.where(high > low, 255. / np.maximum(high - low, 1), 1.)
    return _look_up(image, np.where(high > low, _LEVELS[:, None] * scale - low * scale, _LEVELS[:, None]))


def _equalize(image, **_):
    return _look_up(image, np.stack([_equalizing(image, channel) for channel in range(image.shape[2])], axis=1))


def _equalizing(image: np.ndarray, channel: int) -> np.ndarray:
    counts = cv2.calcHist([image], [channel], None, [256], [0, 256]).reshape(256).astype(np.int64)
    step = (counts.sum() - counts[counts.nonzero()[0][-1]]) // 255
    return (step // 2 + counts.cumsum() - counts) // step if step else _LEVELS


def _invert(image, **_):
    return 255 - image


def _solarize(image, thresh, **_):
    return _look_up(image, np.where(thresh > _LEVELS, _LEVELS, 255 - _LEVELS))


def _solarize_add(image, add, thresh=128, **_):
    return _look_up(image, np.where(thresh > _LEVELS, _LEVELS + add, _LEVELS))


def _posterize(image, bits_to_keep, **_):
    return image & np.uint8(0xFF << max(0, 8 - max(bits_to_keep, 0)) & 0xFF)


def _grey(image: np.ndarray) -> np.ndarray:
    return image if image.shape[2] == 1 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]


def _blend(other: np.ndarray, image: np.ndarray, factor: float) -> np.ndarray:
    return _keep_channels(image, cv2.addWeighted(image, factor, other, 1 - factor, 0))


def _color(image, factor, **_):
    return image if image.shape[2] == 1 else _blend(cv2.cvtColor(_grey(image), cv2.COLOR_GRAY2RGB), image, factor)


def _contrast(image, factor, **_):
    mean = int(_grey(image).mean() + .5)
    return _look_up(image, np.float32(mean) + np.float32(factor) * (_LEVELS - mean).astype(np.float32))


def _brightness(image, factor, **_):
    return _look_up(image, np.float32(factor) * _LEVELS.astype(np.float32))


def _sharpness(image, factor, **_):
    smooth = _keep_channels(image, cv2.filter2D(image, -1, _SMOOTH)).copy()
    for border in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):  # Pillow does not change the border
        smooth[border] = image[border]
    return _blend(smooth, image, factor)


OPERATIONS: dict[str, Callable[..., np.ndarray]] = {
    'AutoContrast': _auto_contrast, 'Equalize': _equalize, 'Invert': _invert, 'Rotate': _rotate,
    'Posterize': _posterize, 'PosterizeIncreasing': _posterize, 'PosterizeOriginal': _posterize,
    'Solarize': _solarize, 'SolarizeIncreasing': _solarize, 'SolarizeAdd': _solarize_add,
    'Color': _color, 'ColorIncreasing': _color, 'Contrast': _contrast, 'ContrastIncreasing': _contrast,
    'Brightness': _brightness, 'BrightnessIncreasing': _brightness,
    'Sharpness': _sharpness, 'SharpnessIncreasing': _sharpness,
    'ShearX': _shear_x, 'ShearY': _shear_y, 'TranslateX': _translate_x, 'TranslateY': _translate_y,
    'TranslateXRel': _translate_x_rel, 'TranslateYRel': _translate_y_rel,
}
