"""Ways to make one prediction from the two experts, without training and without test labels."""
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def mean_probs(cls_logits: Tensor, dist_logits: Tensor, class_counts: Tensor) -> Tensor:
    """Mean of the probabilities."""
    return _mix(cls_logits, dist_logits, torch.full_like(class_counts, .5))


def cls_adjusted(cls_logits: Tensor, dist_logits: Tensor | None, class_counts: Tensor) -> Tensor:
    """CLS alone, after subtracting the log of each class's share of the training images.

    Source: logit adjustment, tau = 1 (https://arxiv.org/abs/2007.07314, equation 9).
    """
    return (cls_logits - (class_counts / class_counts.sum()).log()).log_softmax(dim=-1)


def mean_adjusted(cls_logits: Tensor, dist_logits: Tensor, class_counts: Tensor) -> Tensor:
    """Mean of the log-probabilities of DIST and of `cls_adjusted`."""
    adjusted = cls_adjusted(cls_logits, None, class_counts)
    return ((adjusted + dist_logits.log_softmax(dim=-1)) / 2).log_softmax(dim=-1)


def count_mix(cls_logits: Tensor, dist_logits: Tensor, class_counts: Tensor) -> Tensor:
    """Mean of the probabilities, weighted by class: CLS alone for the most frequent class, DIST alone for the rarest.

    The weight of CLS is linear in the log of the training images: (log n - log n_min) / (log n_max - log n_min).
    Source: ours.
    """
    logs = class_counts.log()
    spread = logs.max() - logs.min()
    share = (logs - logs.min()) / spread if spread > 0 else torch.full_like(logs, .5)
    return _mix(cls_logits, dist_logits, share)


def _mix(cls_logits: Tensor, dist_logits: Tensor, share: Tensor) -> Tensor:
    # in logarithms, because probabilities of confident experts round to 0
    cls_part = share.log() + cls_logits.log_softmax(dim=-1)
    dist_part = (1 - share).log() + dist_logits.log_softmax(dim=-1)
    return torch.logaddexp(cls_part, dist_part).log_softmax(dim=-1)


# from (CLS logits `[B, C]`, DIST logits `[B, C]`, training images per class `[C]`) to log-probabilities `[B, C]`
FUSIONS: Mapping[str, Callable[..., Tensor]] = {
    'mean_probs': mean_probs,
    'cls_adjusted': cls_adjusted,
    'mean_adjusted': mean_adjusted,
    'count_mix': count_mix,
}
# The fusions that need no DIST expert
_OF_CLS = ('cls_adjusted',)


def choose_fusions(name: str, experts: Iterable[str], scaled: bool = False) -> tuple[str, ...]:
    """Names in FUSIONS that the value of `--fusion` stands for.

    Args:
        name: 'mean' for none, because the paper's mean of logits is always computed; 'all' for every fusion that the
            experts allow; or the name of one.
        experts: Experts of the model.
        scaled: Whether the loss scales the outputs, as LDAM does. They are no logits then, and none is possible.

    Raises:
        ValueError: If there is no such fusion, it needs two experts and the model has one, or the outputs are scaled.
    """
    possible = () if scaled else tuple(FUSIONS) if 'dist' in experts else _OF_CLS
    if name in ('mean', 'all'):
        return possible if name == 'all' else ()
    if name not in FUSIONS:
        raise ValueError(f'Unknown fusion {name!r}: --fusion takes mean, {", ".join(FUSIONS)} or all.')
    if name not in possible and not possible:
        raise ValueError(
            f'--fusion {name} needs logits, but the loss of this model scales its outputs (LDAM, cosine classifiers): '
            'use mean.')
    if name not in possible:
        raise ValueError(f'--fusion {name} needs two experts, but this model has only CLS: use {", ".join(_OF_CLS)}.')
    return (name,)


def scale_of_outputs(experts: Iterable[str], logit_scale: float) -> float:
    """Factor from the outputs of a model to logits: that of its label loss, such as LDAM's.

    It is 1 if there are two experts. DIST has another loss, so their mean has no such factor.
    """
    return 1. if 'dist' in experts else logit_scale


def figures_of(metrics: Mapping[str, Any], row: str) -> Mapping[str, Any]:
    """Figures of an expert, of 'teacher', of a fusion or of the 'answer' in metrics.json; empty if there are none."""
    name = metrics.get('answer', 'mean') if row == 'answer' else row
    return metrics.get(name) or (metrics.get('fusion') or {}).get(name) or {}


def class_tensor(class_counts: Sequence[int]) -> Tensor:
    """Training images per class as the fusions take them, `[C]`: none counts as one, whose log is known."""
    return torch.tensor(class_counts, dtype=torch.float32).clamp_min(1)


def fuse(logits: Mapping[str, Tensor], names: Sequence[str], class_counts: Sequence[int]) -> dict[str, Tensor]:
    """The logits `[B, C]` of the experts, and under its name the log-probabilities `[B, C]` of each fusion."""
    counts = class_tensor(class_counts).to(logits['cls'].device)
    dist_logits = logits['dist'].float() if 'dist' in logits else None
    return {**logits, **{name: FUSIONS[name](logits['cls'].float(), dist_logits, counts) for name in names}}
