"""Ways to make one answer of the two experts, without training and without test labels."""
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor


def mean_probs(cls_logits: Tensor, dist_logits: Tensor, class_counts: Tensor) -> Tensor:
    """Mean of the probabilities."""
    return _mix(cls_logits, dist_logits, torch.full_like(class_counts, .5))


def cls_adjusted(cls_logits: Tensor, dist_logits: Tensor | None, class_counts: Tensor) -> Tensor:
    """CLS alone, less the log of the class's share of the training images.

    Source: logit adjustment, tau = 1 (https://arxiv.org/abs/2007.07314, equation 9).
    """
    return (cls_logits - (class_counts / class_counts.sum()).log()).log_softmax(dim=-1)


def mean_adjusted(cls_logits: Tensor, dist_logits: Tensor, class_counts: Tensor) -> Tensor:
    """Mean of the log-probabilities of DIST and of `cls_adjusted`."""
    adjusted = cls_adjusted(cls_logits, None, class_counts)
    return ((adjusted + dist_logits.log_softmax(dim=-1)) / 2).log_softmax(dim=-1)


def count_mix(cls_logits: Tensor, dist_logits: Tensor, class_counts: Tensor) -> Tensor:
    """Mean of the probabilities with a weight per class: the most frequent is CLS's, the rarest DIST's.

    CLS's weight is linear in the log of the class's training images: (log n - log n_min) / (log n_max - log n_min).
    Source: ours.
    """
    logs = class_counts.log()
    spread = logs.max() - logs.min()
    share = (logs - logs.min()) / spread if spread > 0 else torch.full_like(logs, .5)
    return _mix(cls_logits, dist_logits, share)


def _mix(cls_logits: Tensor, dist_logits: Tensor, share: Tensor) -> Tensor:
    # by logarithms: probabilities of confident experts round to 0
    cls_part = share.log() + cls_logits.log_softmax(dim=-1)
    dist_part = (1 - share).log() + dist_logits.log_softmax(dim=-1)
    return torch.logaddexp(cls_part, dist_part).log_softmax(dim=-1)


# (CLS logits, DIST logits, training images per class) to log-probabilities, all `[B, C]`
FUSIONS: Mapping[str, Callable[..., Tensor]] = {
    'mean_probs': mean_probs,
    'cls_adjusted': cls_adjusted,
    'mean_adjusted': mean_adjusted,
    'count_mix': count_mix,
}
# Those that need no DIST expert
_OF_CLS = ('cls_adjusted',)


def choose_fusions(name: str, experts: Iterable[str]) -> tuple[str, ...]:
    """Fusions of FUSIONS that a word asks for: 'mean' is the paper's mean of logits, which is always there.

    Args:
        name: 'mean' for no other, 'all' for whatever the experts allow, or a name.
        experts: Experts of the model.

    Raises:
        ValueError: If there is no such fusion, or the model has one expert and it takes two.
    """
    possible = tuple(FUSIONS) if 'dist' in experts else _OF_CLS
    if name in ('mean', 'all'):
        return possible if name == 'all' else ()
    if name not in FUSIONS:
        raise ValueError(f'Unknown fusion {name!r}: --fusion takes mean, {", ".join(FUSIONS)} or all.')
    if name not in possible:
        raise ValueError(f'--fusion {name} takes two experts, and this model has CLS alone: {", ".join(_OF_CLS)} does.')
    return (name,)


def fuse(logits: Mapping[str, Tensor], names: Sequence[str], class_counts: Sequence[int]) -> dict[str, Tensor]:
    """Logits `[B, C]` of the experts, and by name the log-probabilities `[B, C]` of each fusion."""
    counts = torch.tensor(class_counts, dtype=torch.float32, device=logits['cls'].device).clamp_min(1)
    dist_logits = logits['dist'].float() if 'dist' in logits else None
    return {**logits, **{name: FUSIONS[name](logits['cls'].float(), dist_logits, counts) for name in names}}
