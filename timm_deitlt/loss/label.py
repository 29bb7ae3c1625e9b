"""Losses of the labels, for CLS or a CNN: cross-entropy in two stages, and LDAM."""
from collections.abc import Sequence
from typing import Any

import torch
from timm.loss import create_classification_loss
from torch import Tensor, nn

from .class_weights import check_classes, checked_counts, class_weights, full_precision, weighted_cross_entropy


class LDAMLoss(nn.Module):
    """Cross-entropy with label-distribution-aware margins, which are larger for rarer classes.

    The true class j must win by a margin m_j proportional to n_j^(-1/4). So the loss is CE(scale * z, target), where z
    are the logits with m_j subtracted at the true class.

    Args:
        class_counts: Training images per class.
        max_margin: Margin of the rarest class.
        scale: Factor of the logits, which are cosines.

    Raises:
        ValueError: If a class has no image, if the number of classes differs between logits and counts, or if targets
            are distributions, because a mixed image has no single true class.

    Source: LDAM (https://arxiv.org/abs/1906.07413).

    Example:
        >>> LDAMLoss([500, 50, 5])(torch.eye(3), torch.tensor([0, 1, 2])).item() < 1e-6
        True
    """

    margin: Tensor

    def __init__(self, class_counts: Sequence[int] | Tensor, max_margin: float = 0.5, scale: float = 30.0):
        super().__init__()
        margin = checked_counts(class_counts) ** -0.25
        self.register_buffer('margin', (margin * (max_margin / margin.max())).float(), persistent=False)
        self.scale = scale

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Loss of cosines `[B, C]` and class indices `[B]`; a class-weighted mean if `weight` `[C]` is given."""
        if target.ndim != 1:
            raise ValueError(
                f'LDAM needs class indices [B], got targets {tuple(target.shape)}: train without mixup and cutmix.')
        check_classes(logits, len(self.margin))
        own_class = torch.arange(len(self.margin), device=target.device) == target[:, None]
        margin = torch.where(own_class, self.margin, 0.)
        return weighted_cross_entropy(self.scale * (full_precision(logits) - margin), target, weight)


class LabelLoss(nn.Module):
    """Loss of the labels, for CLS or a CNN, in two stages; the second starts at `drw_start_epoch`.

    In the second stage class indices are no longer smoothed (unless `keep_mixup`), and classes are weighted if
    `weighted`. Distributions `[B, C]` are never smoothed here, because the Mixup that made them has done so.

    Args:
        num_classes: Number of classes C.
        loss: 'ce', 'ldam' (`LDAMLoss`) or 'bce' (timm's BinaryCrossEntropy).
        smoothing: Label smoothing of class indices, in [0, 1).
        class_counts: Training images per class, for 'ldam', `weighted` and `prior_tau`.
        drw_start_epoch: First epoch of the second stage, 0-based; None for a single stage.
        weighted: Whether classes are weighted in the second stage, by `class_weights(class_counts, beta)`.
        keep_mixup: Whether mixup, and with it label smoothing, stays on in the second stage.
        prior_tau: In the second stage this times the log of the class prior is added to the logits (logit adjustment).
            1 is the balanced softmax: it adds the log of the counts, which differs only by a constant. 0: off.
        ldam_margin, ldam_scale: See `LDAMLoss`.
        bce_kwargs: 'bce_sum', 'bce_target_thresh', 'pos_weight' of timm's create_classification_loss, for 'bce' only.

    Raises:
        ValueError: If an argument is out of range, is missing or contradicts another, or if the logits do not have
            `num_classes` classes.

    Source: Long-tail learning via logit adjustment, equation 10 (https://arxiv.org/abs/2007.07314); Balanced
    meta-softmax, equation 3 (https://arxiv.org/abs/2007.10740).

    Example:
        >>> loss = LabelLoss(3, class_counts=[500, 50, 5], drw_start_epoch=90, weighted=True, smoothing=.1)
        >>> loss.set_epoch(90)
        >>> loss(torch.zeros(2, 3), torch.tensor([0, 2])).item()  # doctest: +ELLIPSIS
        1.098...
    """

    class_weight: Tensor | None
    prior: Tensor | None

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
            prior_tau: float = 0.,
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
            raise ValueError(f"smoothing={smoothing}, but the 'ldam' loss takes hard labels: set smoothing to 0.")
        if loss == 'bce' and weighted:
            raise ValueError("The 'bce' loss has no class-weighted mean: use 'ce', or leave out `weighted`.")
        if weighted and drw_start_epoch is None:
            raise ValueError('Class weights begin at drw_start_epoch, which is None: give it, or leave out `weighted`.')
        if prior_tau and (loss != 'ce' or weighted or drw_start_epoch is None):
            raise ValueError(
                f"prior_tau={prior_tau} needs loss='ce', weighted=False and a drw_start_epoch, got loss={loss!r}, "
                f'weighted={weighted}, drw_start_epoch={drw_start_epoch}: change these, or set prior_tau to 0.')
        if (weighted or prior_tau or loss == 'ldam') and (class_counts is None or len(class_counts) != num_classes):
            given = 'none' if class_counts is None else len(class_counts)
            raise ValueError(
                f'Class weights, a class prior and LDAM need class_counts of all {num_classes} classes, got {given}.')
        counts = () if class_counts is None else class_counts  # needed by none of the losses that go without
        self.num_classes = num_classes
        self.smoothing = smoothing
        self.keep_mixup = keep_mixup
        self.drw_start_epoch = drw_start_epoch
        self.ldam = LDAMLoss(counts, ldam_margin, ldam_scale) if loss == 'ldam' else None
        # soft targets, because smoothing depends on the stage and is done here; timm still turns indices into one-hot
        self.bce = create_classification_loss('bce', soft_targets=True, **(bce_kwargs or {})) if loss == 'bce' else None
        self.register_buffer('class_weight', class_weights(counts, beta) if weighted else None, persistent=False)
        prior = prior_tau * (checked_counts(counts) / sum(counts)).log().float() if prior_tau else None
        self.register_buffer('prior', prior, persistent=False)
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the stage of a 0-based epoch."""
        self.in_drw_stage = self.drw_start_epoch is not None and epoch >= self.drw_start_epoch

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss of logits `[B, C]` and class indices `[B]` or distributions `[B, C]`."""
        check_classes(logits, self.num_classes, 'num_classes')
        logits = full_precision(logits)
        weight = self.class_weight if self.in_drw_stage else None
        if self.prior is not None and self.in_drw_stage:
            logits = logits + self.prior
        if self.ldam is not None:
            return self.ldam(logits, target, weight)
        if target.ndim == 1 and self.smoothing and (self.keep_mixup or not self.in_drw_stage):
            off = self.smoothing / logits.shape[-1]
            target = torch.full_like(logits, off).scatter_(1, target[:, None], 1. - self.smoothing + off)
        if self.bce is not None:
            return self.bce(logits, target)
        return weighted_cross_entropy(logits, target, weight)
