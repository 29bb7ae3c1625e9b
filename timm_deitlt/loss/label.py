"""What CLS, or a CNN, learns from the labels: cross-entropy in two stages, LDAM."""
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.loss import create_classification_loss
from torch import Tensor, nn

from .classes import check_classes, checked_counts, class_weights, full_precision, weighted_cross_entropy


class LDAMLoss(nn.Module):
    """Label-distribution-aware margins: cross-entropy that asks a larger margin of rarer classes.

    The true class must win by m_j, proportional to n_j^(-1/4): CE(scale * (logits - m at the true class), target).

    Args:
        class_counts: Training images per class.
        max_margin: Margin of the rarest class.
        scale: Multiplies the logits, which are cosines.

    Raises:
        ValueError: If a class has no image, if the logits are not of as many classes as there are counts, or if targets
            are distributions: a mixed image has no one true class.

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
        """Loss of cosines `[B, C]` and class indices `[B]`, a mean weighted by class if `weight` `[C]` is given."""
        if target.ndim != 1:
            raise ValueError(
                f'LDAM needs class indices [B], got targets {tuple(target.shape)}: train without mixup and cutmix.')
        check_classes(logits, len(self.margin))
        margin = self.margin * F.one_hot(target, len(self.margin))
        return weighted_cross_entropy(self.scale * (full_precision(logits) - margin), target, weight)


class LabelLoss(nn.Module):
    """What CLS, or a CNN, learns from the labels, in two stages that part at `drw_start_epoch`.

    In the second stage class indices are no longer smoothed (unless `keep_mixup`), and classes are weighted if
    `weighted`. Distributions `[B, C]` are taken as they are: the Mixup that made them has smoothed them already.

    Args:
        num_classes: Number of classes C.
        loss: 'ce', 'ldam' (`LDAMLoss`) or 'bce' (timm's BinaryCrossEntropy).
        smoothing: Label smoothing of class indices, in [0, 1).
        class_counts: Training images per class, for 'ldam', `weighted` and `prior_tau`.
        drw_start_epoch: First epoch of the second stage, 0-based; None for a single stage.
        weighted: Whether classes are weighted in the second stage, by `class_weights(class_counts, beta)`.
        keep_mixup: Whether mixup, and with it label smoothing, stays on in the second stage.
        prior_tau: Add this times the log of the class prior to the logits in the second stage: logit adjustment, and
            with 1 the balanced softmax, which adds the log of the counts and so differs by a constant only. 0: off.
        ldam_margin, ldam_scale: See `LDAMLoss`.
        bce_kwargs: 'bce_sum', 'bce_target_thresh', 'pos_weight' of timm's create_classification_loss, for 'bce' only.

    Raises:
        ValueError: If an argument is out of range, missing, or at odds with another, or the logits are not of
            `num_classes`.

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
            raise ValueError(f"The 'ldam' loss takes hard labels: set smoothing to 0, it is {smoothing}.")
        if loss == 'bce' and weighted:
            raise ValueError("The 'bce' loss has no class-weighted mean: use 'ce', or do not weight its classes.")
        if weighted and drw_start_epoch is None:
            raise ValueError('Class weights begin at drw_start_epoch, which is None: give it, or leave them out.')
        if prior_tau and (loss != 'ce' or weighted or drw_start_epoch is None):
            raise ValueError(
                f"prior_tau={prior_tau} re-balances 'ce' from drw_start_epoch on: it goes with no other loss, no class "
                f'weights and no single stage; got {loss!r}, weighted={weighted}, drw_start_epoch={drw_start_epoch}.')
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
        # "soft targets": smoothing depends on the stage and is ours; timm still makes indices one-hot
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
