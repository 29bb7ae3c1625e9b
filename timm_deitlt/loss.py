"""Losses of DeiT-LT: class weights, distillation with deferred re-weighting (DRW), LDAM, and the two-stage label loss.

The stage of a loss is a pure function of the epoch given to `set_epoch`, so no `state_dict` holds it. All is computed
in float32 at least, under autocast too. Class-weighted means are normalised inside the batch given, hence inside the
micro-batch under gradient accumulation, as in the released code.
"""
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.loss import compute_class_weights, create_classification_loss
from torch import Tensor, nn

DISTILLATION_LOSS_TYPES = ('hard', 'soft', 'drw_hard', 'drw_soft')


def _full_precision(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _checked_counts(class_counts: Sequence[int] | Tensor) -> Tensor:
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


def class_weights(class_counts: Sequence[int] | Tensor, beta: float = 0.9999) -> Tensor:
    """Class weights (1 - beta) / (1 - beta^n), float32 `[C]`, by the effective number of images; mean 1.

    Args:
        class_counts: Training images per class, each at least 1.
        beta: In (0, 1); the larger, the closer the weights are to 1 / n.

    Raises:
        ValueError: If a class has no image (it is named), or beta is out of range.

    Source: Class-Balanced Loss Based on Effective Number of Samples (https://arxiv.org/abs/1901.05555).
    """
    counts = _checked_counts(class_counts)
    if not 0. < beta < 1.:
        raise ValueError(f'beta={beta} must lie between 0 and 1, both excluded; the paper uses 0.9999.')
    _, weights = compute_class_weights(counts, counts.sum().item(), method='effective_num', beta=beta)
    return weights


def weighted_cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Cross-entropy of labels or label distributions, as a mean weighted by class.

    With weights it is sum_ic w_c y_ic (-log p_ic) / sum_ic w_c y_ic: for indices, PyTorch's weighted mean. PyTorch
    divides distributions by the number of images instead; the same labels as one-hot rows would then give another
    loss, whose size (in effect the learning rate) varied with the classes that a batch happens to hold.

    Args:
        logits: `[B, C]`.
        target: Class indices `[B]`, or distributions `[B, C]` as Mixup makes them.
        weight: Class weights `[C]`; the mean over images if None.
    """
    logits = _full_precision(logits)
    if target.ndim == 2:
        target = target.to(logits.dtype)
        if weight is None:
            # timm's SoftTargetCrossEntropy, to the last bit
            return torch.sum(-target * F.log_softmax(logits, dim=-1), dim=-1).mean()
        mass = weight * target
        return torch.sum(-mass * F.log_softmax(logits, dim=-1)) / mass.sum()
    return F.cross_entropy(logits, target, None if weight is None else weight.to(logits.dtype))


class DistillationLoss(nn.Module):
    """What DIST learns from the teacher: exactly the losses of timm's TokenDistillationTask.

    Args:
        distill_type: 'hard': cross-entropy with the teacher's argmax. 'soft': T^2 KL(teacher || student).
        temperature: T, divides both logits before the softmax; no effect on 'hard'.

    Raises:
        ValueError: If the type is unknown, the temperature not positive, or teacher and student differ in classes.

    Source: DeiT (https://arxiv.org/abs/2012.12877).

    Example:
        >>> loss = DistillationLoss('soft', temperature=3.)
        >>> loss(torch.zeros(2, 10), torch.zeros(2, 10)).item()
        0.0
    """

    active_weight: Tensor | None = None  # class weights [C] of the present stage; None: all classes count the same

    def __init__(self, distill_type: str = 'hard', temperature: float = 1.0):
        super().__init__()
        if distill_type not in ('hard', 'soft'):
            raise ValueError(f"distill_type={distill_type!r} is unknown: use 'hard' or 'soft'.")
        if not temperature > 0:
            raise ValueError(f'temperature={temperature} must be positive.')
        self.distill_type = distill_type
        self.temperature = temperature

    def set_epoch(self, epoch: int) -> None:
        """Take the 0-based epoch; this loss is the same in all of them."""

    def forward(self, dist_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Loss of DIST logits `[B, C]` given the teacher's logits `[B, C]`, through which no gradient flows."""
        if dist_logits.shape != teacher_logits.shape:
            raise ValueError(
                f'The student gives logits {tuple(dist_logits.shape)}, the teacher {tuple(teacher_logits.shape)}: '
                'both must know the same classes, in the same order.')
        student, teacher = _full_precision(dist_logits), _full_precision(teacher_logits.detach())
        weight = self.active_weight
        if self.distill_type == 'hard':
            return weighted_cross_entropy(student, teacher.argmax(dim=-1), weight)
        student, teacher = student / self.temperature, teacher / self.temperature
        if weight is not None:
            teacher = teacher + weight.log()  # its softmax is q; no probability is formed, so none underflows
        log_s, log_q = F.log_softmax(student, dim=-1), F.log_softmax(teacher, dim=-1)
        return F.kl_div(log_s, log_q, reduction='batchmean', log_target=True) * (self.temperature ** 2)


class DRWDistillationLoss(DistillationLoss):
    """Distillation whose classes are re-weighted once training has reached `drw_start_epoch`.

    Before the start this is `DistillationLoss`. From then on, with w = `class_weights(class_counts, beta)`:
    'hard' is the mean of cross-entropies with the teacher's argmax, weighted by w of the class that the *teacher*
    predicts, whatever the label. 'soft' is T^2 mean_i KL(q_i || softmax(s_i / T)) with q_c = w_c p_c / sum_k w_k p_k
    and p = softmax(t / T).

    Args:
        class_counts, beta: See `class_weights`.
        drw_start_epoch: First re-weighted epoch, 0-based.
        distill_type, temperature: See `DistillationLoss`.

    Raises:
        ValueError: If counts or start epoch are None, or as for `class_weights` and `DistillationLoss`.

    Source: DeiT-LT (https://arxiv.org/abs/2404.02900), DRW from LDAM (https://arxiv.org/abs/1906.07413).

    Example:
        >>> loss = DRWDistillationLoss([500, 50, 5], drw_start_epoch=90)
        >>> loss.set_epoch(90)
        >>> loss(torch.zeros(2, 3), torch.eye(3)[:2]).item()  # doctest: +ELLIPSIS
        1.098...
    """

    def __init__(
            self,
            class_counts: Sequence[int] | Tensor,
            drw_start_epoch: int,
            beta: float = 0.9999,
            distill_type: str = 'hard',
            temperature: float = 1.0,
    ):
        super().__init__(distill_type, temperature)
        if class_counts is None or drw_start_epoch is None:
            raise ValueError(
                f'Re-weighted distillation needs class_counts and drw_start_epoch, got {class_counts} and '
                f"{drw_start_epoch}; use 'hard' or 'soft' distillation to train without re-weighting.")
        self.drw_start_epoch = drw_start_epoch
        self.register_buffer('class_weight', class_weights(class_counts, beta), persistent=False)
        self.set_epoch(0)

    @property
    def active_weight(self) -> Tensor | None:
        """Class weights `[C]` from the DRW start on, else None."""
        return self.class_weight if self.in_drw_stage else None

    def set_epoch(self, epoch: int) -> None:
        """Choose the stage of a 0-based epoch."""
        self.in_drw_stage = epoch >= self.drw_start_epoch


def create_distillation_loss(
        loss_type: str,
        class_counts: Sequence[int] | Tensor | None = None,
        drw_start_epoch: int | None = None,
        beta: float = 0.9999,
        temperature: float = 1.0,
) -> DistillationLoss:
    """Create a distillation loss by name, one of DISTILLATION_LOSS_TYPES.

    Counts, start epoch and beta concern 'drw_*' only, see `DRWDistillationLoss`.

    Raises:
        ValueError: If the name is unknown, or an argument that it needs is missing or wrong.
    """
    if loss_type not in DISTILLATION_LOSS_TYPES:
        raise ValueError(f'Unknown distillation loss {loss_type!r}, expected one of {DISTILLATION_LOSS_TYPES}.')
    distill_type = loss_type.removeprefix('drw_')
    if distill_type == loss_type:
        return DistillationLoss(distill_type, temperature)
    return DRWDistillationLoss(class_counts, drw_start_epoch, beta, distill_type, temperature)


class LDAMLoss(nn.Module):
    """Label-distribution-aware margins: cross-entropy that asks a larger margin of rarer classes.

    The true class must win by m_j, proportional to n_j^(-1/4): CE(scale * (logits - m at the true class), target).

    Args:
        class_counts: Training images per class.
        max_margin: Margin of the rarest class.
        scale: Multiplies the logits, which are cosines.

    Raises:
        ValueError: If a class has no image, or if targets are distributions: a mixed image has no one true class.

    Source: LDAM (https://arxiv.org/abs/1906.07413).

    Example:
        >>> LDAMLoss([500, 50, 5])(torch.eye(3), torch.tensor([0, 1, 2])).item() < 1e-6
        True
    """

    def __init__(self, class_counts: Sequence[int] | Tensor, max_margin: float = 0.5, scale: float = 30.0):
        super().__init__()
        margin = _checked_counts(class_counts) ** -0.25
        self.register_buffer('margin', (margin * (max_margin / margin.max())).float(), persistent=False)
        self.scale = scale

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Loss of cosines `[B, C]` and class indices `[B]`, a mean weighted by class if `weight` `[C]` is given."""
        if target.ndim != 1:
            raise ValueError(
                f'LDAM needs class indices [B], got targets {tuple(target.shape)}: train without mixup and cutmix.')
        margin = self.margin * F.one_hot(target, len(self.margin))
        return weighted_cross_entropy(self.scale * (_full_precision(logits) - margin), target, weight)


class LabelLoss(nn.Module):
    """What CLS, or a CNN, learns from the labels, in two stages that part at `drw_start_epoch`.

    In the second stage class indices are no longer smoothed (unless `keep_mixup`), and classes are weighted if
    `weighted`. Distributions `[B, C]` are taken as they are: the Mixup that made them has smoothed them already.

    Args:
        num_classes: Number of classes C.
        loss: 'ce', 'ldam' (`LDAMLoss`) or 'bce' (timm's BinaryCrossEntropy).
        smoothing: Label smoothing of class indices, in [0, 1).
        class_counts: Training images per class, for 'ldam' and `weighted`.
        drw_start_epoch: First epoch of the second stage, 0-based; None for a single stage.
        weighted: Whether classes are weighted in the second stage, by `class_weights(class_counts, beta)`.
        keep_mixup: Whether mixup, and with it label smoothing, stays on in the second stage.
        ldam_margin, ldam_scale: See `LDAMLoss`.
        bce_kwargs: 'bce_sum', 'bce_target_thresh', 'pos_weight' of timm's create_classification_loss, for 'bce' only.

    Raises:
        ValueError: If an argument is out of range, missing, or at odds with another.

    Example:
        >>> loss = LabelLoss(3, class_counts=[500, 50, 5], drw_start_epoch=90, weighted=True, smoothing=.1)
        >>> loss.set_epoch(90)
        >>> loss(torch.zeros(2, 3), torch.tensor([0, 2])).item()  # doctest: +ELLIPSIS
        1.098...
    """

    def __init__(
            self,
            num_classes: int,
            loss: str = 'ce',
            smoothing: float = 0.,
            class_counts: Sequence[int] | Tensor | None = None,
            drw_start_epoch: int | None = None,
            weighted: bool = False,
            keep_mixup: bool = False,
            beta: float = 0.9999,
            ldam_margin: float = 0.5,
            ldam_scale: float = 30.,
            bce_kwargs: dict[str, Any] | None = None,
    ):
        super().__init__()
        if loss not in ('ce', 'ldam', 'bce'):
            raise ValueError(f"Unknown label loss {loss!r}, expected one of ('ce', 'ldam', 'bce').")
        if not 0. <= smoothing < 1.:
            raise ValueError(f'smoothing={smoothing} must be at least 0 and below 1.')
        if loss == 'ldam' and smoothing:
            raise ValueError(f"The 'ldam' loss takes hard labels: set smoothing to 0, it is {smoothing}.")
        if loss == 'bce' and weighted:
            raise ValueError("The 'bce' loss has no class-weighted mean: use 'ce', or do not weight its classes.")
        if weighted and drw_start_epoch is None:
            raise ValueError('Class weights begin at drw_start_epoch, which is None: give it, or leave them out.')
        if (weighted or loss == 'ldam') and (class_counts is None or len(class_counts) != num_classes):
            given = 'none' if class_counts is None else len(class_counts)
            raise ValueError(f'Class weights and LDAM need class_counts of all {num_classes} classes, got {given}.')
        self.smoothing = smoothing
        self.keep_mixup = keep_mixup
        self.drw_start_epoch = drw_start_epoch
        self.ldam = LDAMLoss(class_counts, ldam_margin, ldam_scale) if loss == 'ldam' else None
        # "soft targets": smoothing depends on the stage and is ours; timm still makes indices one-hot
        self.bce = create_classification_loss('bce', soft_targets=True, **(bce_kwargs or {})) if loss == 'bce' else None
        self.register_buffer('class_weight', class_weights(class_counts, beta) if weighted else None, persistent=False)
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the stage of a 0-based epoch."""
        self.in_drw_stage = self.drw_start_epoch is not None and epoch >= self.drw_start_epoch

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss of logits `[B, C]` and class indices `[B]` or distributions `[B, C]`."""
        logits = _full_precision(logits)
        weight = self.class_weight if self.in_drw_stage else None
        if self.ldam is not None:
            return self.ldam(logits, target, weight)
        if target.ndim == 1 and self.smoothing and (self.keep_mixup or not self.in_drw_stage):
            off = self.smoothing / logits.shape[-1]
            target = torch.full_like(logits, off).scatter_(1, target[:, None], 1. - self.smoothing + off)
        if self.bce is not None:
            return self.bce(logits, target)
        return weighted_cross_entropy(logits, target, weight)
