"""The augmentation hook: what the student sees and what the teacher sees of the same image.

Three transforms make uint8 images on the CPU (strong, weak, evaluation); `BatchAugment` does on the device what belongs
to a batch: random erasing and Mixup / CutMix.
"""
from typing import NamedTuple

import torch
from PIL import Image, ImageOps
from timm.data import Mixup, create_transform
from timm.data.auto_augment import AugmentOp, AutoAugment, RandAugment
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import str_to_interp_mode
from torch import Tensor
from torchvision import transforms

CROP_MODES = ('rrc', 'rkrc', 'rkrr', 'pad')


def posterize(img: Image.Image, bits_to_keep: int, **_) -> Image.Image:
    """Keep the `bits_to_keep` highest bits of every pixel; 0 bits give black.

    Pillow 13 refuses 0 bits, which timm's increasing posterize asks for at magnitude 10. Black is what Pillow made of
    it until then, so the distribution of the published recipes is kept.
    """
    if bits_to_keep <= 0:
        return Image.new(img.mode, img.size)
    return img if bits_to_keep >= 8 else ImageOps.posterize(img, bits_to_keep)


def _mend_posterize(transform: transforms.Compose) -> transforms.Compose:
    for step in transform.transforms:
        ops: list[AugmentOp] = []
        if isinstance(step, RandAugment):
            ops = list(step.ops)
        elif isinstance(step, AutoAugment):
            ops = [op for policy in step.policy for op in policy]
        for op in ops:
            if op.name.startswith('Posterize'):
                op.aug_fn = posterize
    return transform


def _padded_crop(size: tuple[int, int], interpolation: str) -> list:
    # CIFAR's weak augmentation, 4 pixels at 32, at any size
    padding = (max(1, size[1] // 8), max(1, size[0] // 8))
    mode = transforms.InterpolationMode.BICUBIC if interpolation == 'random' else str_to_interp_mode(interpolation)
    return [
        transforms.Resize(size if size[0] != size[1] else size[0], interpolation=mode),
        transforms.RandomCrop(size, padding=padding, pad_if_needed=True),
    ]


def train_transform(
        input_size: tuple[int, int, int],
        train_crop_mode: str | None = None,
        interpolation: str = 'random',
        hflip: float = 0.5,
        vflip: float = 0.,
        no_aug: bool = False,
        **kwargs,
) -> transforms.Compose:
    """Training transform of timm, or with a padded crop, from a PIL image to uint8 `[C, H, W]`.

    Args:
        input_size: Channels, height and width of the result.
        train_crop_mode: 'rrc' (default), 'rkrc' or 'rkrr' as in timm, or 'pad': resize, then a random crop after
            padding by an eighth of the size with zeros.
        interpolation: Name of the resize filter, 'random' for bilinear or bicubic by chance.
        hflip: Probability of a horizontal flip.
        vflip: Probability of a vertical flip.
        no_aug: Only resize and crop the centre.
        kwargs: Further arguments of `timm.data.create_transform` (auto_augment, scale, color_jitter, mean, ...).

    Raises:
        ValueError: If the crop mode is not known.
    """
    if train_crop_mode not in (None, *CROP_MODES):
        raise ValueError(f'Unknown crop mode {train_crop_mode!r}: --train-crop-mode takes {", ".join(CROP_MODES)}.')
    padded = train_crop_mode == 'pad'
    stages = create_transform(
        input_size,
        is_training=True,
        train_crop_mode=None if padded else train_crop_mode,
        interpolation=interpolation,
        hflip=hflip,
        vflip=vflip,
        no_aug=no_aug,
        use_prefetcher=True,
        separate=not no_aug,
        **kwargs,
    )
    if no_aug:
        return stages
    primary, secondary, final = (stage.transforms for stage in stages)
    if padded:
        flips = [step for step in primary if isinstance(step, (
            transforms.RandomHorizontalFlip, transforms.RandomVerticalFlip))]
        primary = _padded_crop(tuple(input_size[-2:]), interpolation) + flips
    return _mend_posterize(transforms.Compose([*primary, *secondary, *final]))


def weak_transform(
        input_size: tuple[int, int, int],
        interpolation: str = 'bicubic',
        hflip: float = 0.5,
        vflip: float = 0.,
) -> transforms.Compose:
    """The teacher's own weak view: padded crop and flips, no RandAugment, jitter or erasing; uint8 `[C, H, W]`."""
    return train_transform(
        input_size, 'pad', interpolation=interpolation, hflip=hflip, vflip=vflip, color_jitter=None, auto_augment=None)


class Views(NamedTuple):
    """A batch ready for the task.

    Attributes:
        student: What the student sees, normalised for it, `[B, C, H, W]`.
        weak: The weak view mixed like the student's, normalised likewise, or None where the teacher sees the student's.
        target: Class indices `[B]`, or after Mixup a distribution `[B, num_classes]`.
    """
    student: Tensor
    weak: Tensor | None
    target: Tensor


class BatchAugment:
    """Random erasing of the student's view, then one Mixup / CutMix of all views of a batch.

    The views are mixed as extra channels of one image, so that lambda, box and partner are the same; erasing comes
    before and only touches the student's view, so no pixel of the weak view is ever erased.

    Args:
        mixup: timm's `Mixup`, or None for hard labels.
        re_prob: Probability of erasing a box of an image.
        re_mode: Fill of the box, 'const', 'rand' or 'pixel'.
        re_count: Largest number of boxes.
        device: Where the batch lies.

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
    ):
        self.mixup = mixup
        self.mixup_enabled = True
        self.erase = RandomErasing(re_prob, mode=re_mode, max_count=re_count, device=device) if re_prob > 0. else None

    def __call__(self, images: Tensor, target: Tensor, num_views: int = 1) -> Views:
        """Augment normalised images `[V * B, C, H, W]` (view after view, V is 1 or 2) with class indices `[V * B]`."""
        student, *weak = images.chunk(num_views)
        target = target[:len(student)]
        if self.erase is not None:
            student = self.erase(student)
        if self.mixup is not None and self.mixup_enabled:
            mixed, target = self.mixup(torch.cat([student, *weak], dim=1), target)
            student, *weak = mixed.chunk(num_views, dim=1)
        return Views(student.contiguous(), weak[0].contiguous() if weak else None, target)
