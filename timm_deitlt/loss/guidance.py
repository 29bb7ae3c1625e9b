"""Losses at each place of an image: with a CNN's feature maps, and with its classifier applied at each place."""
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from .class_weights import full_precision, weighted_cross_entropy


def locality_guidance(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Mean squared difference of two feature maps, summed over all pairs of maps, a scalar.

    In each pair the smaller map is enlarged to the size of the other one, bilinearly.

    Args:
        student: Maps `[B, C, h, w]`, already projected to the teacher's channels.
        teacher: The same number of maps `[B, C, H, W]`. No gradient flows through them.

    Raises:
        ValueError: If student and teacher differ in the number of maps, of images or of channels.

    Source: Locality Guidance for Improving Vision Transformers on Tiny Datasets (https://arxiv.org/abs/2207.10026).
    """
    if len(student) != len(teacher) or any(a.shape[:2] != b.shape[:2] for a, b in zip(student, teacher, strict=True)):
        shapes = [[tuple(x.shape) for x in maps] for maps in (student, teacher)]
        raise ValueError(
            f'Guidance compares maps [B, C, H, W] in pairs of the same images and channels, got {shapes[0]} of the '
            f'student and {shapes[1]} of the teacher.')
    return sum(  # type: ignore[return-value]
        F.mse_loss(_enlarged(ours, theirs), _enlarged(theirs.detach(), ours))
        for ours, theirs in zip(student, teacher, strict=True))


def _enlarged(x: Tensor, other: Tensor) -> Tensor:
    size = tuple(map(max, x.shape[-2:], other.shape[-2:]))
    x = full_precision(x)
    return x if tuple(x.shape[-2:]) == size else F.interpolate(x, size, mode='bilinear', align_corners=False)


def dense_distillation(
        patch_logits: Tensor,
        teacher_maps: Tensor,
        teacher_logits: Tensor,
        share: float,
        weight: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of the student's logits at each place with the teacher's label of that place, a scalar.

    The label of a place is the argmax of share * (teacher's logits there) + (1 - share) * (its logits of the image).
    The logits on the finer grid are first averaged to the coarser grid.

    Args:
        patch_logits: The student's logits at each place, `[B, C, h, w]`.
        teacher_maps: The teacher's logits at each place, `[B, C, H, W]`.
        teacher_logits: The teacher's logits of the images, `[B, C]`.
        share: Weight of the logits of the place, in [0, 1]; the logits of the image have the rest.
        weight: Class weights `[C]` of a weighted mean. If None, all places count the same.

    Raises:
        ValueError: If images or classes differ.

    Source: Cumulative Spatial Knowledge Distillation (https://arxiv.org/abs/2307.08500).
    """
    if not patch_logits.shape[:2] == teacher_maps.shape[:2] == teacher_logits.shape:
        raise ValueError(
            f'Dense distillation takes logits of the same images and classes, got {tuple(patch_logits.shape)} of the '
            f'student, {tuple(teacher_maps.shape)} and {tuple(teacher_logits.shape)} of the teacher.')
    ours, theirs = _averaged(patch_logits, teacher_maps), _averaged(teacher_maps.detach(), patch_logits)
    whole = full_precision(teacher_logits.detach())[:, :, None, None]
    target = (share * theirs + (1 - share) * whole).argmax(dim=1)
    return weighted_cross_entropy(ours.movedim(1, -1).flatten(0, 2), target.flatten(), weight)


def _averaged(x: Tensor, other: Tensor) -> Tensor:
    size = (min(x.shape[-2], other.shape[-2]), min(x.shape[-1], other.shape[-1]))
    x = full_precision(x)
    return x if tuple(x.shape[-2:]) == size else F.adaptive_avg_pool2d(x, size)
