"""Operations of timm's RandAugment, and crops, on batches: uint8 images `[B, C, H, W]`, each with its own numbers.

Numbers are drawn on the CPU and sent to the device without waiting for it. So the host always knows which images an
operation changes, and no operation asks the device for anything.
"""
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as TF
from torch import Tensor


class Drawn(NamedTuple):
    """An operation for one image: its name in timm, its argument, and how pixels are moved and filled."""
    name: str
    argument: float = 0.
    bicubic: bool = True
    fill: Sequence[int] = ()


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on `device`; neither waits for the other."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == 'cuda' else tensor.to(device)


def apply_operations(images: Tensor, drawn: Sequence[Drawn | None]) -> Tensor:
    """Apply to each image of `images` its operation, or none, in place.

    Raises:
        KeyError: If an operation is in neither of `PIXEL_OPERATIONS` and `MOVES`.
    """
    groups: dict[Callable, list[tuple[int, Sequence[float]]]] = defaultdict(list)
    for position, op in enumerate(drawn):
        if op is None:
            continue
        if op.name in MOVES:
            numbers: Sequence[float] = MOVES[op.name](op.argument, *images.shape[-2:])
            groups[_BICUBIC_MOVE if op.bicubic else _BILINEAR_MOVE].append((position, (*numbers, *op.fill)))
        else:
            groups[PIXEL_OPERATIONS[op.name]].append((position, (op.argument,)))
    for operation, members in groups.items():
        positions, numbers = zip(*members, strict=True)
        where = send(torch.tensor(positions), images.device)
        columns = send(torch.tensor(numbers)[..., None, None, None], images.device).unbind(1)
        images.index_copy_(0, where, operation(images.index_select(0, where), *columns))
    return images


def to_bytes(images: Tensor, more: float = 1e-3) -> Tensor:
    """Floats to uint8 as Pillow converts them: clipped, decimals cut off. `more` is added first, against rounding."""
    return (images + more).clamp_(0, 255).to(torch.uint8)


# Pixel operations get uint8 `[B, C, H, W]` and one number for each image, `[B, 1, 1, 1]`

def _auto_contrast(images, _):
    # torchvision's own assigns by a mask, for which the host waits
    pixels = images.float()
    low, high = pixels.amin((2, 3), keepdim=True), pixels.amax((2, 3), keepdim=True)
    return torch.where(high > low, to_bytes((pixels - low) * (255 / (high - low))), images)


def _posterize(images, bits):
    return images & (256 - torch.exp2(8 - bits.clamp(0, 8)).round()).to(torch.uint8)


def _solarize(images, threshold):
    return torch.where(images < threshold, images, 255 - images)


def _solarize_add(images, add):
    return torch.where(images < 128, images + add.to(torch.uint8), images)


def _grey(images: Tensor) -> Tensor:
    return TF.rgb_to_grayscale(images.float()).round()


def _blend(other: Tensor | float, images: Tensor, factor: Tensor) -> Tensor:
    return to_bytes(other + factor * (images - other))


def _color(images, factor):
    return images if images.shape[1] == 1 else _blend(_grey(images), images, factor)


def _contrast(images, factor):
    return _blend(_grey(images).mean((1, 2, 3), keepdim=True).round(), images, factor)


def _sharpness(images, factor):
    smooth = images.float()  # a copy, whose border stays as it is
    smooth[..., 1:-1, 1:-1] = ((9 * F.avg_pool2d(smooth, 3, 1) + 4 * smooth[..., 1:-1, 1:-1]) / 13).round()
    return _blend(smooth, images, factor)


PIXEL_OPERATIONS: dict[str, Callable[..., Tensor]] = {
    'AutoContrast': _auto_contrast, 'Equalize': lambda images, _: TF.equalize(images),
    'Invert': lambda images, _: 255 - images,
    'Posterize': _posterize, 'PosterizeIncreasing': _posterize, 'PosterizeOriginal': _posterize,
    'Solarize': _solarize, 'SolarizeIncreasing': _solarize, 'SolarizeAdd': _solarize_add,
    'Color': _color, 'ColorIncreasing': _color, 'Contrast': _contrast, 'ContrastIncreasing': _contrast,
    'Brightness': partial(_blend, 0.), 'BrightnessIncreasing': partial(_blend, 0.),
    'Sharpness': _sharpness, 'SharpnessIncreasing': _sharpness,
}


# Moves get their argument, height and width, and return the six numbers of `_move`

def _rotate(degrees: float, height: int, width: int) -> tuple[float, ...]:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return cos, -sin * height / width, 0, sin * width / height, cos, 0


MOVES: dict[str, Callable[[float, int, int], tuple[float, ...]]] = {
    'Rotate': _rotate,
    'ShearX': lambda factor, h, w: (1, factor * h / w, factor * h / w, 0, 1, 0),
    'ShearY': lambda factor, h, w: (1, 0, 0, factor * w / h, 1, factor * w / h),
    'TranslateX': lambda pixels, h, w: (1, 0, 2 * pixels / w, 0, 1, 0),
    'TranslateY': lambda pixels, h, w: (1, 0, 0, 0, 1, 2 * pixels / h),
    'TranslateXRel': lambda share, h, w: (1, 0, 2 * share, 0, 1, 0),
    'TranslateYRel': lambda share, h, w: (1, 0, 0, 0, 1, 2 * share),
}


def _move(images: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, e: Tensor, f: Tensor, *fill: Tensor,
          mode: str) -> Tensor:
    """Take the pixel at (x, y), which go from -1 to 1, from (ax + by + c, dx + ey + f), or `fill` outside."""
    height, width = images.shape[-2:]
    x, y = (
        ((2 * torch.arange(length, device=images.device) + 1) / length - 1).view(shape)
        for length, shape in ((width, (1, 1, -1)), (height, (1, -1, 1))))
    # not by affine_grid, whose matrix product is inexact if TF32 is allowed
    grid = torch.stack([(a[:, 0] * x + b[:, 0] * y + c[:, 0]), (d[:, 0] * x + e[:, 0] * y + f[:, 0])], dim=-1)
    moved = F.grid_sample(images.float(), grid, mode=mode, padding_mode='border', align_corners=False)
    outside = ((grid < -1) | (grid >= 1)).any(-1)[:, None]
    return torch.where(outside, torch.cat(fill, dim=1).to(torch.uint8), to_bytes(moved))


_BICUBIC_MOVE, _BILINEAR_MOVE = partial(_move, mode='bicubic'), partial(_move, mode='bilinear')


def first_box(areas: Tensor, ratios: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of several tries for each image the first box that fits.

    Args:
        areas: Areas of the boxes in pixels, `[tries, B]`.
        ratios: Their width divided by their height.
        height: Largest height in pixels.
        width: Largest width.

    Returns:
        Height, width, and whether one of the boxes fits, each `[B]`.
    """
    heights, widths = (areas / ratios).sqrt().round(), (areas * ratios).sqrt().round()
    fits = (heights <= height) & (widths <= width)
    first = fits.int().argmax(dim=0, keepdim=True)
    return heights.gather(0, first)[0], widths.gather(0, first)[0], fits.any(dim=0)


def resample_weights(numbers: Tensor, size: int, length: int) -> Tensor:
    """Weights `[B, size, length]` by which Pillow resizes an axis of `length` pixels to `size` pixels.

    Args:
        numbers: For each image, `[6, B]`: where in the source the first pixel begins; pixels of the source for a pixel
            of the result; the first pixel of the source that may be used, and the first after those (what lies outside
            becomes black); whether the result is mirrored, 0 or 1; whether the filter is Pillow's bicubic (1) or its
            bilinear (0), which both widen where they shrink an image.
        size: Pixels of the result.
        length: Pixels of the source.
    """
    start, scale, low, high, flip, bicubic = numbers[..., None, None]
    pixel = torch.arange(size, device=numbers.device)[:, None] + .5
    centre = start + scale * torch.where(flip > 0, size - pixel, pixel)
    source = torch.arange(length, device=numbers.device) + .5
    t = (source - centre).abs() / scale.clamp_min(1)
    cubic = torch.where(t < 1, (1.5 * t - 2.5) * t * t + 1, (((-.5 * t + 2.5) * t - 4) * t + 2) * (t < 2))
    weights = torch.where(bicubic > 0, cubic, (1 - t).clamp_min(0))
    weights = weights * ((source > low) & (source < high) & (centre >= low) & (centre < high))
    return weights / weights.sum(dim=2, keepdim=True).clamp_min(1e-6)
