"""timm's training transform for whole batches on the device, instead of images on the host.

The distribution is the same, the draws are others: they come from one seed for a micro-batch, not from one for an
image. Pixels differ from those of Pillow by rounding. What is rotated, sheared or shifted differs a little more,
because torch's bicubic kernel is another one (a = -0.75 instead of -1).
"""
import copy
import math
import random
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import AugmentOp, RandAugment
from timm.data.transforms import MaybePILToTensor, RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision import transforms

from .batch_ops import MOVES, PIXEL_OPERATIONS, Drawn, apply_operations, first_box, resample_weights, send, to_bytes

_FILTERS = {transforms.InterpolationMode.BILINEAR: 0., transforms.InterpolationMode.BICUBIC: 1.}
_TRIES = 10  # of a random resized crop, as in timm
# Flags that ask for steps that are not done on the device
_FLAGS = {
    'CenterCrop': '--no-aug', 'ResizeKeepRatio': '--train-crop-mode', 'RandomGrayscale': '--grayscale-prob',
    'RandomApply': '--color-jitter-prob, --gaussian-blur-prob', 'AutoAugment': '--aa', 'AugMixAugment': '--aa',
    'Cutout': '--cutout', 'ColorJitter': 'a hue in --color-jitter',
}


def to_device(transform: transforms.Compose) -> transforms.Compose:
    """The same training transform for batches, from uint8 `[B, C, H, W]`, RGB or grey, to uint8 of the final size.

    All draws come from the generators of the host (torch on the CPU, numpy and random). So they depend on the seed
    alone, and are the same on every device.

    Args:
        transform: Result of `augment.train_transform`: a random resized or padded crop, flips, then RandAugment and
            colour jitter.

    Returns:
        Steps from batch to batch. The first is the crop; its `on_host` does the same for an image.

    Raises:
        ValueError: If the transform has another step or operation.

    Example:
        >>> from timm_deitlt.data.augment import train_transform
        >>> augment = to_device(train_transform((3, 48, 48), auto_augment='rand-m9-mstd0.5-inc1'))
        >>> augment(torch.zeros(8, 3, 32, 32, dtype=torch.uint8)).shape
        torch.Size([8, 3, 48, 48])
    """
    steps: list[Any] = []
    for step in transform.transforms:
        crop = next((kind for first, kind in _CROPS.items() if isinstance(step, first)), None)
        if crop is not None and not steps:
            steps.append(crop(step))
        elif isinstance(step, _PARTS) and len(steps) == 1:
            steps[0].parts.append(step)
        elif isinstance(step, RandAugment) and steps:
            steps.append(_RandAugment(step))
        elif isinstance(step, transforms.ColorJitter) and steps and step.hue is None:
            steps.append(_ColorJitter(step))
        elif not isinstance(step, MaybePILToTensor):
            name = type(step).__name__
            raise ValueError(
                f'--augment-backend device does random resized and padded crops, flips, RandAugment and colour jitter, '
                f'but not {name} ({_FLAGS.get(name, "--train-crop-mode")}): leave out the flag for it, or '
                '--augment-backend.')
    return transforms.Compose(steps)


class _Crop:
    """A crop of each image, resized and mirrored: one matrix product for each axis."""

    def __init__(self, step: Any):
        self.parts = [step]
        filters = step.interpolation if isinstance(step.interpolation, (tuple, list)) else (step.interpolation,)
        if any(mode not in _FILTERS for mode in filters):
            raise ValueError(
                '--augment-backend device can only resize by bilinear or bicubic: give one of them as '
                '--train-interpolation, or leave it out.')
        self.filters = torch.tensor([_FILTERS[mode] for mode in filters])

    @property
    def size(self) -> Sequence[int]:
        """Height and width of the result."""
        return next(part.size for part in reversed(self.parts) if hasattr(part, 'size'))

    @property
    def on_host(self) -> transforms.Compose:
        """The same for a PIL image, by Pillow."""
        return transforms.Compose([*self.parts, MaybePILToTensor()])

    def place(self, batch: int, shape: Sequence[int]) -> list[tuple[Tensor, ...]]:
        """Start, scale, low and high of `resample_weights` for both axes of images of this height and width."""
        raise NotImplementedError

    def __call__(self, images: Tensor) -> Tensor:
        batch, _, *shape = images.shape
        bicubic = self.filters[torch.randint(len(self.filters), (batch,))]
        weights = []
        for axis, (place, mirror) in enumerate(zip(self.place(batch, shape), _MIRRORS, strict=True)):
            share = sum(part.p for part in self.parts if isinstance(part, mirror))
            numbers = torch.stack([*place, (torch.rand(batch) < share).float(), bicubic])
            weights.append(resample_weights(send(numbers, images.device), self.size[axis], shape[axis]))
        rows, columns = weights
        wide = images.float().flatten(1, 2) @ columns.mT
        return to_bytes(rows[:, None] @ wide.unflatten(1, images.shape[1:3]), more=.5)  # as Pillow rounds a resize


class _ResizedCrop(_Crop):
    def __init__(self, step: RandomResizedCropAndInterpolation):
        super().__init__(step)
        self.scale, self.ratio = step.scale, step.ratio

    def place(self, batch, shape):
        height, width = shape
        areas = torch.empty(_TRIES, batch).uniform_(*self.scale) * height * width
        ratios = torch.empty(_TRIES, batch).uniform_(*map(math.log, self.ratio)).exp()
        *sides, fits = first_box(areas, ratios, height, width)
        axes = []
        # if none of the boxes fits, the largest in the centre that has an allowed ratio
        for side, most, length, size in zip(
                sides, (round(width / self.ratio[0]), round(height * self.ratio[1])), shape, self.size, strict=True):
            side = torch.where(fits, side, min(most, length))
            start = torch.where(fits, torch.rand(batch) * (length - side + 1), (length - side) / 2).floor()
            axes.append((start, side / size, start, start + side))
        return axes


class _PaddedCrop(_Crop):
    def place(self, batch, shape):
        resize, crop = self.parts[:2]
        short = min(shape)
        resized = [int(resize.size * length / short) for length in shape] if isinstance(
            resize.size, int) else resize.size
        axes = []
        for length, now, padding, size in zip(shape, resized, reversed(crop.padding), crop.size, strict=True):
            start = (torch.rand(batch) * (now + 2 * padding - size + 1)).floor() - padding
            scale = torch.full((batch,), length / now)
            axes.append((start * scale, scale, torch.zeros(batch), torch.full((batch,), float(length))))
        return axes


class _RandAugment(RandAugment):
    """timm's RandAugment, which draws as ever; what it draws is then done to all images that drew the same."""

    def __init__(self, step: RandAugment):
        super().__init__([_recorded(op) for op in step.ops], step.num_layers, step.choice_weights)

    def __call__(self, images: Tensor) -> Tensor:
        count, weights = len(self.ops), self.choice_weights
        chosen = np.random.randint(count, size=(len(images), self.num_layers)) if weights is None else np.stack([
            np.random.choice(count, self.num_layers, replace=False, p=weights) for _ in images])
        for layer in chosen.T:
            images = apply_operations(images, [self.ops[number](None) for number in layer])
        return images


def _recorded(op: AugmentOp) -> AugmentOp:
    if op.name not in PIXEL_OPERATIONS and op.name not in MOVES:
        raise ValueError(
            f'--augment-backend device does not have the operation {op.name}: leave it out, or use another --aa.')
    op = copy.copy(op)
    op.aug_fn = partial(_record, op.name)  # type: ignore[assignment]
    return op


def _record(name: str, _: None, argument: float = 0., *, fillcolor: Sequence[int], resample: Any) -> Drawn:
    mode = random.choice(resample) if isinstance(resample, (tuple, list)) else resample
    return Drawn(name, argument, mode == Image.Resampling.BICUBIC, fillcolor)


class _ColorJitter:
    """torchvision's jitter of brightness, contrast and saturation, in an order of its own for each image."""

    def __init__(self, step: transforms.ColorJitter):
        ranges = dict(Brightness=step.brightness, Contrast=step.contrast, Color=step.saturation)
        self.ranges = {name: limits for name, limits in ranges.items() if limits is not None}

    def __call__(self, images: Tensor) -> Tensor:
        drawn = [
            [Drawn(name, factor) for factor in torch.empty(len(images)).uniform_(*limits).tolist()]
            for name, limits in self.ranges.items()]
        for order in torch.rand(len(drawn), len(images)).argsort(dim=0).tolist():
            images = apply_operations(images, [drawn[name][image] for image, name in enumerate(order)])
        return images


_CROPS: dict[type, type[_Crop]] = {
    RandomResizedCropAndInterpolation: _ResizedCrop, transforms.Resize: _PaddedCrop}
_MIRRORS = (transforms.RandomVerticalFlip, transforms.RandomHorizontalFlip)  # of rows and of columns
_PARTS = (transforms.RandomCrop, *_MIRRORS)
