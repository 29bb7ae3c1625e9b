"""What losses share: precision, class counts and weights, and the class-weighted cross-entropy."""
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.loss import compute_class_weights
from torch import Tensor


def full_precision(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def checked_counts(class_counts: Sequence[int] | Tensor) -> Tensor:
    # training images per class, float64 [C]
    counts = torch.as_tensor(class_counts, dtype=torch.float64)
    if counts.ndim != 1 or not len(counts):
        raise ValueError(f'class_counts must list the training images of each class, got shape {tuple(counts.shape)}.')
    for index, count in enumerate(counts.tolist()):
        if not count >= 1:
            raise ValueError(
                f'Class {index} has {count:g} training images, but every class needs at least 1: '
                'remove the class or add images.')
    return counts


def check_classes(logits: Tensor, num_classes: int, given: str = 'class_counts') -> None:
    # otherwise PyTorch would complain about a weight, or broadcast a single class without an error
    if logits.shape[-1] != num_classes:
        raise ValueError(
            f'{given} is for {num_classes} classes, but the logits {tuple(logits.shape)} are of {logits.shape[-1]}: '
            'give the loss and the model the same classes, and list the images of each class in class_counts.')


def class_weights(class_counts: Sequence[int] | Tensor, beta: float = 0.9999) -> Tensor:
    """Class weights by the effective number of images: (1 - beta) / (1 - beta^n), scaled to mean 1, float32 `[C]`.

    Args:
        class_counts: Training images per class, each at least 1.
        beta: In (0, 1). The larger it is, the closer the weights are to 1 / n.

    Raises:
        ValueError: If a class has no image (the error names it), or beta is out of range.

    Source: Class-Balanced Loss Based on Effective Number of Samples (https://arxiv.org/abs/1901.05555).
    """
    counts = checked_counts(class_counts)
    if not 0. < beta < 1.:
        raise ValueError(f'beta={beta} must lie between 0 and 1, both excluded; the paper uses 0.9999.')
    _, weights = compute_class_weights(counts, int(counts.sum()), method='effective_num', beta=beta)
    return weights


def weighted_cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Cross-entropy of labels or label distributions, as a mean weighted by class.

    With weights it is sum_ic w_c y_ic (-log p_ic) / sum_ic w_c y_ic. For indices this is PyTorch's weighted mean. For
    distributions PyTorch divides by the number of images instead. Then one-hot rows would give another loss than the
    same labels as indices, and its size (in effect the learning rate) would depend on the classes in the batch.

    Args:
        logits: `[B, C]`.
        target: Class indices `[B]`, or distributions `[B, C]` as Mixup makes them.
        weight: Class weights `[C]`. None gives the plain mean over images.
    """
    logits = full_precision(logits)
    if target.ndim == 2:
        target = target.to(logits.dtype)
        if weight is None:
            # bit-identical to timm's SoftTargetCrossEntropy
            return torch.sum(-target * F.log_softmax(logits, dim=-1), dim=-1).mean()
        mass = weight * target
        return torch.sum(-mass * F.log_softmax(logits, dim=-1)) / mass.sum()
    return F.cross_entropy(logits, target, None if weight is None else weight.to(logits.dtype))
