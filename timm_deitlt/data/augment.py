"""Augmentation: the views of an image for the student and for the teacher.

Transforms work on the CPU and return uint8 images (strong view, weak view, view for PaCo's key encoder). `BatchAugment`
works on batches, on the device: random erasing and Mixup / CutMix.
"""
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageFilter, ImageOps
from timm.data import Mixup, create_transform
from timm.data.auto_augment import AugmentOp, AugMixAugment, AutoAugment, RandAugment
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import str_to_interp_mode
from torch import Tensor
from torchvision import transforms

from .erasing import BatchErasing

_TENSOR_FILTERS = ('random', 'nearest', 'bilinear', 'bicubic')
_FLIPS = (transforms.RandomHorizontalFlip, transforms.RandomVerticalFlip)
CROP_MODES = ('rrc', 'rkrc', 'rkrr', 'pad')


def posterize(img: Image.Image, bits_to_keep: int, **_: Any) -> Image.Image:
    """Keep the `bits_to_keep` highest bits of every pixel; 0 bits give black.

    At magnitude 10 timm's increasing posterize asks for 0 bits, which Pillow 13 refuses. Earlier versions of Pillow
    returned black, so black keeps the distribution of the published recipes.
    """
    if bits_to_keep <= 0:
        return Image.new(img.mode, img.size)
    return img if bits_to_keep >= 8 else ImageOps.posterize(img, bits_to_keep)


def mend_posterize(transform: transforms.Compose) -> transforms.Compose:
    """Let timm's policies in a transform use the `posterize` above, and return the transform."""
    for step in transform.transforms:
        ops: list[AugmentOp] = []
        if isinstance(step, RandAugment | AugMixAugment):
            ops = list(step.ops)
        elif isinstance(step, AutoAugment):
            ops = [op for policy in step.policy for op in policy]
        for op in ops:
            if op.name.startswith('Posterize'):
                op.aug_fn = posterize
    return transform


def _padded_crop(size: tuple[int, int], interpolation: str) -> list:
    # the weak augmentation of CIFAR, which pads 32 px by 4 px, for any size
    padding = (max(1, size[1] // 8), max(1, size[0] // 8))
    mode = transforms.InterpolationMode.BICUBIC if interpolation == 'random' else str_to_interp_mode(interpolation)
    return [
        transforms.Resize(size if size[0] != size[1] else size[0], interpolation=mode),
        transforms.RandomCrop(size, padding=padding, pad_if_needed=True),
    ]


def _cifar10_policy(channels: int) -> transforms.AutoAugment:
    if channels not in (1, 3):
        raise ValueError(
            f'--aa cifar10 augments grey or RGB images, not images of {channels} channels: use another --aa, or leave '
            'it out.')
    # pixels without an image are grey, as in the training of PaCo's teachers
    return transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10, fill=128)


class Cutout:
    """One black square. Its centre is uniform over the image, so the border may cut off a part of it.

    Args:
        side: Side of the square in pixels. If it is even, the centre is the pixel right of and below the middle.

    Raises:
        ValueError: If the side is not positive.

    Source: Cutout (https://arxiv.org/abs/1708.04552).

    Example:
        >>> hole = Cutout(16)(torch.ones(3, 32, 32, dtype=torch.uint8)) == 0
        >>> 64 <= hole[0].sum() <= 256
        tensor(True)
    """

    def __init__(self, side: int):
        if side < 1:
            raise ValueError(f'--cutout {side} is out of range: give the side in pixels, 1 or more, or 0 for none.')
        self.side = side

    def __call__(self, image: Tensor) -> Tensor:
        """Copy of an image `[C, H, W]`, of uint8 or any other type, with the square."""
        top, left = (int(torch.randint(length, ())) - self.side // 2 for length in image.shape[-2:])
        image = image.clone()
        image[..., max(top, 0):top + self.side, max(left, 0):left + self.side] = 0
        return image

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.side})'


class GaussianBlur:
    """Pillow's Gaussian blur of a PIL image, with a radius uniform in 0.1 to 2 pixels.

    timm uses torchvision's blur. It gives the same result except at the border, but is 40 times slower, and its kernel
    of 23 pixels needs images of at least 12 pixels.
    """

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(torch.empty(()).uniform_(.1, 2.).item()))


def check_tensor_filter(interpolation: str) -> None:
    """Refuse a resize filter that torchvision does not have for tensors.

    Raises:
        ValueError: If it does not have the filter. The error names the filters that it has.
    """
    if interpolation not in _TENSOR_FILTERS:
        raise ValueError(
            f'Arrays cannot be resized by {interpolation}: give one of {", ".join(_TENSOR_FILTERS)} as '
            '--train-interpolation and --interpolation.')


def _jitter(size: tuple[int, int, int], strength: float | tuple[float, ...], probability: float | None) -> list[Any]:
    stages = create_transform(
        size, is_training=True, color_jitter=strength, color_jitter_prob=probability, separate=True)
    return stages[1].transforms


def train_transform(
        input_size: tuple[int, int, int],
        train_crop_mode: str | None = None,
        interpolation: str = 'random',
        hflip: float = 0.5,
        vflip: float = 0.,
        no_aug: bool = False,
        auto_augment: str | None = None,
        color_jitter: float | tuple[float, ...] | None = 0.4,
        color_jitter_prob: float | None = None,
        force_color_jitter: bool = False,
        cutout: int = 0,
        arrays: bool = False,
        **kwargs: Any,
) -> transforms.Compose:
    """Training transform of timm, or one with a padded crop, from a PIL image to uint8 `[C, H, W]`.

    Args:
        input_size: Channels, height and width of the result.
        train_crop_mode: timm's 'rrc' (default), 'rkrc' or 'rkrr'; or 'pad': resize, pad by an eighth, random crop.
        interpolation: Name of the resize filter. 'random' chooses bilinear or bicubic for each image; 'pad' then takes
            bicubic.
        hflip, vflip: Probability of a horizontal and of a vertical flip.
        no_aug: Only resize to the size of the result; as in timm, this squeezes images of another shape.
        auto_augment: A policy of timm, or 'cifar10', which is AutoAugment's policy for CIFAR-10.
        color_jitter: As in timm. With a policy it is off, except for timm's '3a'.
        color_jitter_prob: Probability of the jitter; None for always.
        force_color_jitter: Jitter the colours before a policy too.
        cutout: Side of a black square in pixels, see `Cutout`; 0 for none.
        arrays: Whether images are float tensors `[C, H, W]` of any channels; steps for colours are then left out.
        kwargs: Further arguments of `timm.data.create_transform` (scale, mean, ...).

    Raises:
        ValueError: If the crop mode is unknown, `cutout` is negative, or the policy does not work on such images.
    """
    if train_crop_mode not in (None, *CROP_MODES):
        raise ValueError(f'Unknown crop mode {train_crop_mode!r}: --train-crop-mode takes {", ".join(CROP_MODES)}.')
    if arrays:
        auto_augment, color_jitter, kwargs['grayscale_prob'] = None, None, 0.
        check_tensor_filter(interpolation)
    elif input_size[0] not in (1, 3) and auto_augment != 'cifar10':  # such as RGBA: Pillow has no such operations
        if auto_augment and not force_color_jitter:
            color_jitter = None  # as timm leaves it out beside a policy
        auto_augment, kwargs['grayscale_prob'] = None, 0.
        color_jitter = color_jitter[:3] if isinstance(color_jitter, tuple) else color_jitter
    padded = train_crop_mode == 'pad'
    extra: list[Any] = []
    if auto_augment and force_color_jitter and color_jitter is not None:
        extra += _jitter(input_size, color_jitter, color_jitter_prob)
        color_jitter = None
    if auto_augment == 'cifar10':
        extra.append(_cifar10_policy(input_size[0]))
        auto_augment, color_jitter = None, None
    colours: dict[str, Any] = dict(
        auto_augment=auto_augment, color_jitter=color_jitter, color_jitter_prob=color_jitter_prob)
    stages = create_transform(
        input_size, is_training=True, train_crop_mode=None if padded else train_crop_mode, interpolation=interpolation,
        hflip=hflip, vflip=vflip, no_aug=no_aug, use_prefetcher=True, separate=not no_aug, **colours, **kwargs)
    if no_aug:
        return stages
    primary, secondary, final = (stage.transforms for stage in stages)
    if padded:
        primary = _padded_crop((input_size[1], input_size[2]), interpolation) + [
            step for step in primary if isinstance(step, _FLIPS)]
    holes = [Cutout(cutout)] if cutout else []
    return mend_posterize(transforms.Compose([*primary, *extra, *secondary, *final, *holes]))


def weak_transform(
        input_size: tuple[int, int, int],
        interpolation: str = 'bicubic',
        hflip: float = 0.5,
        vflip: float = 0.,
) -> transforms.Compose:
    """Weak view for the teacher: padded crop and flips, no RandAugment, jitter or erasing; uint8 `[C, H, W]`."""
    return train_transform(
        input_size, 'pad', interpolation=interpolation, hflip=hflip, vflip=vflip, color_jitter=None, auto_augment=None)


def key_transform(
        input_size: tuple[int, int, int],
        interpolation: str = 'bilinear',
        hflip: float = 0.5,
        vflip: float = 0.,
        scale: tuple[float, float] = (.2, 1.),
        color_jitter: tuple[float, ...] | None = (.4, .4, .4, .1),
        color_jitter_prob: float | None = .8,
        grayscale_prob: float = .2,
        gaussian_blur_prob: float = .5,
        arrays: bool = False,
) -> transforms.Compose:
    """View for PaCo's key encoder, from a PIL image to uint8 `[C, H, W]`, as in SimCLR.

    The defaults are those of CIFAR. ImageNet-LT and iNaturalist use `scale=(.08, 1.)`, `color_jitter=(.4, .4, .4)`
    and `color_jitter_prob=None` (always).

    Args:
        input_size: Channels, height and width of the result. For images that are not RGB the jitter only changes
            brightness and contrast, and there is no conversion to grey.
        interpolation: Name of the resize filter. 'random' chooses bilinear or bicubic for each image.
        hflip: Probability of a horizontal flip.
        vflip: Probability of a vertical flip.
        scale: Smallest and largest share of the image in the random crop.
        color_jitter: Strength of brightness, contrast, saturation and, if given, hue; None for no jitter.
        color_jitter_prob: Probability of the jitter; None for always.
        grayscale_prob: Probability of a grey image.
        gaussian_blur_prob: Probability of a blur, see `GaussianBlur`.
        arrays: Whether images are float tensors. Then only crop and flips are used.

    Source: PaCo (https://arxiv.org/abs/2107.12028), as in its released training.
    """
    if input_size[0] != 3:
        grayscale_prob = 0.
        color_jitter = color_jitter and (*color_jitter[:2], 0., 0.)
    transform = train_transform(
        input_size,
        interpolation=interpolation,
        hflip=hflip,
        vflip=vflip,
        scale=scale,
        color_jitter=color_jitter,
        color_jitter_prob=color_jitter_prob,
        grayscale_prob=grayscale_prob,
        arrays=arrays,
    )
    if gaussian_blur_prob and not arrays:
        # before the last step, which turns the image into a tensor
        transform.transforms.insert(-1, transforms.RandomApply([GaussianBlur()], p=gaussian_blur_prob))
    return transform


class Views(NamedTuple):
    """A batch ready for the task.

    Attributes:
        student: View for the student, normalised for the student, `[B, C, H, W]`.
        weak: Weak view with the same mixing and normalisation, or None if the teacher sees the student's view.
        target: Class indices `[B]`, or after Mixup a distribution `[B, num_classes]`.
    """
    student: Tensor
    weak: Tensor | None
    target: Tensor


class BatchAugment:
    """Random erasing of the student's view, then the same Mixup / CutMix of all views of a batch.

    The views are mixed as channels of one image, so lambda, box and partner are the same. Erasing comes first and only
    changes the student's view, so no pixel of the weak view is ever erased.

    Args:
        mixup: timm's `Mixup`, or None for hard labels.
        re_prob: Probability of erasing a box of an image.
        re_mode: Fill of the box, 'const', 'rand' or 'pixel'.
        re_count: Largest number of boxes.
        device: Device of the batch.
        batched: Whether to erase by `BatchErasing`, which draws otherwise than timm's, but has fewer steps.

    Example:
        >>> augment = BatchAugment(Mixup(num_classes=10), re_prob=.25, re_mode='pixel')
        >>> views = augment(torch.randn(8, 3, 32, 32), torch.arange(8))
        >>> views.target.shape
        torch.Size([8, 10])
    """

    def __init__(
            self,
            mixup: Mixup | None = None,
            re_prob: float = 0.,
            re_mode: str = 'const',
            re_count: int = 1,
            device: torch.device | str = 'cpu',
            batched: bool = False,
    ):
        self.mixup = mixup
        self.mixup_enabled = True
        erasing = BatchErasing if batched else RandomErasing
        self.erase = erasing(re_prob, mode=re_mode, max_count=re_count, device=device) if re_prob > 0. else None

    def __call__(self, images: Tensor, target: Tensor, num_views: int = 1) -> Views:
        """Augment normalised images `[V * B, C, H, W]` (V is 1 or 2, view after view) with class indices `[V * B]`."""
        student, *weak = images.chunk(num_views)
        target = target[:len(student)]
        if self.erase is not None:
            student = self.erase(student)
        if self.mixup is not None and self.mixup_enabled:
            mixed, target = self.mixup(torch.cat([student, *weak], dim=1), target)
            student, *weak = mixed.chunk(num_views, dim=1)
        return Views(student.contiguous(), weak[0].contiguous() if weak else None, target)
