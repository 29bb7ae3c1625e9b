"""What DIST learns from the teacher, with or without deferred re-weighting (DRW)."""
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from .class_weights import check_classes, class_weights, full_precision, weighted_cross_entropy

DISTILLATION_LOSS_TYPES = ('hard', 'soft', 'drw_hard', 'drw_soft')


class DistillationLoss(nn.Module):
    """What DIST learns from the teacher: exactly the losses of timm's TokenDistillationTask.

    Args:
        distill_type: 'hard': cross-entropy with the teacher's argmax. 'soft': T^2 KL(teacher || student).
        temperature: T. Both logits are divided by it before the softmax. It has no effect on 'hard'.
        standardize: Whether the logits of each image are first brought to mean 0 and standard deviation 1, for student
            and teacher. Then the student need not match the range of the teacher's logits. For 'soft' only.

    Raises:
        ValueError: If the type is unknown, the temperature is not positive, `standardize` is set for 'hard', or teacher
            and student do not have the same number of classes.

    Source: DeiT (https://arxiv.org/abs/2012.12877); logit standardisation (https://arxiv.org/abs/2403.01427).

    Example:
        >>> loss = DistillationLoss('soft', temperature=3.)
        >>> loss(torch.zeros(2, 10), torch.zeros(2, 10)).item()
        0.0
    """

    in_drw_stage = False

    @property
    def active_weight(self) -> Tensor | None:
        """Class weights `[C]` of the present stage; None: all classes count the same."""
        return None

    def __init__(self, distill_type: str = 'hard', temperature: float = 1.0, standardize: bool = False):
        super().__init__()
        if distill_type not in ('hard', 'soft'):
            raise ValueError(f"distill_type={distill_type!r} is unknown: use 'hard' or 'soft'.")
        if not temperature > 0:
            raise ValueError(f'temperature={temperature} must be positive.')
        if standardize and distill_type == 'hard':
            raise ValueError(
                "standardize has no effect on 'hard' distillation, as standardised logits have the same argmax: use "
                "'soft', or leave standardize out.")
        self.distill_type = distill_type
        self.temperature = temperature
        self.standardize = standardize

    def set_epoch(self, epoch: int) -> None:
        """Do nothing with the 0-based epoch, because this loss is the same in all epochs."""

    def forward(self, dist_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Loss of DIST logits `[B, C]` given the teacher's logits `[B, C]`, through which no gradient flows."""
        if dist_logits.shape != teacher_logits.shape:
            raise ValueError(
                f'The student gives logits {tuple(dist_logits.shape)}, the teacher {tuple(teacher_logits.shape)}: '
                'both need the same classes, in the same order.')
        student, teacher = full_precision(dist_logits), full_precision(teacher_logits.detach())
        weight = self.active_weight
        if self.distill_type == 'hard':
            return weighted_cross_entropy(student, teacher.argmax(dim=-1), weight)
        if self.standardize:
            student, teacher = _standardized(student), _standardized(teacher)
        student, teacher = student / self.temperature, teacher / self.temperature
        if weight is not None:
            teacher = teacher + weight.log()  # its softmax is q; with logarithms no probability underflows to 0
        log_s, log_q = F.log_softmax(student, dim=-1), F.log_softmax(teacher, dim=-1)
        return F.kl_div(log_s, log_q, reduction='batchmean', log_target=True) * (self.temperature ** 2)


def _standardized(logits: Tensor) -> Tensor:
    return (logits - logits.mean(dim=-1, keepdim=True)) / (logits.std(dim=-1, keepdim=True) + 1e-6)


class DRWDistillationLoss(DistillationLoss):
    """Distillation whose classes are re-weighted once training has reached `drw_start_epoch`.

    Before the start this is `DistillationLoss`. From then on, with w = `class_weights(class_counts, beta)`:
    'hard' is the weighted mean of the cross-entropies with the teacher's argmax. The weight is w of the class that the
    *teacher* predicts, not of the label. 'soft' is T^2 mean_i KL(q_i || softmax(s_i / T)) with p = softmax(t / T) and
    q_c = w_c p_c / sum_k w_k p_k.

    Args:
        class_counts, beta: See `class_weights`.
        drw_start_epoch: First re-weighted epoch, 0-based.
        distill_type, temperature, standardize: See `DistillationLoss`. The weights are applied after standardising.

    Raises:
        ValueError: If counts or start epoch are None, if the number of classes differs between logits and counts (this
            is checked in every epoch), or as for `class_weights` and `DistillationLoss`.

    Source: DeiT-LT (https://arxiv.org/abs/2404.02900), DRW from LDAM (https://arxiv.org/abs/1906.07413).

    Example:
        >>> loss = DRWDistillationLoss([500, 50, 5], drw_start_epoch=90)
        >>> loss.set_epoch(90)
        >>> loss(torch.zeros(2, 3), torch.eye(3)[:2]).item()  # doctest: +ELLIPSIS
        1.098...
    """

    class_weight: Tensor

    def __init__(
            self,
            class_counts: Sequence[int] | Tensor | None,
            drw_start_epoch: int | None,
            beta: float = 0.9999,
            distill_type: str = 'hard',
            temperature: float = 1.0,
            standardize: bool = False,
    ):
        super().__init__(distill_type, temperature, standardize)
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

    def forward(self, dist_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """As `DistillationLoss`. The number of classes is checked in stage one too, not only hours later."""
        check_classes(dist_logits, len(self.class_weight))
        return super().forward(dist_logits, teacher_logits)


def create_distillation_loss(
        loss_type: str,
        class_counts: Sequence[int] | Tensor | None = None,
        drw_start_epoch: int | None = None,
        beta: float = 0.9999,
        temperature: float = 1.0,
        standardize: bool = False,
) -> DistillationLoss:
    """Create a distillation loss by name, one of DISTILLATION_LOSS_TYPES.

    Counts, start epoch and beta are for 'drw_*' only, see `DRWDistillationLoss`.

    Raises:
        ValueError: If the name is unknown, or an argument that it needs is missing or wrong.
    """
    if loss_type not in DISTILLATION_LOSS_TYPES:
        raise ValueError(f'Unknown distillation loss {loss_type!r}, expected one of {DISTILLATION_LOSS_TYPES}.')
    distill_type = loss_type.removeprefix('drw_')
    if distill_type == loss_type:
        return DistillationLoss(distill_type, temperature, standardize)
    return DRWDistillationLoss(class_counts, drw_start_epoch, beta, distill_type, temperature, standardize)
