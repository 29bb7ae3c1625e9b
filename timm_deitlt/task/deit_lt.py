"""DeiT-LT: CLS learns the labels, DIST what a teacher says of the same image."""
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from timm.task import TokenDistillationTask
from timm.utils import unwrap_model
from torch import Tensor, nn

from ..evaluation import Shots
from ..loss import DistillationLoss
from .common import ShotEvaluation, frozen_statistics, hard_labels, set_epochs


class DeiTLTTask(ShotEvaluation, TokenDistillationTask):
    """DeiT-LT: CLS learns the labels, DIST what the teacher says of the very image the student sees.

    loss = a * label_loss(CLS, target) + (1 - a) * distillation_loss(DIST, teacher), a = `task_loss_weight`.

    Before the DRW start, and with 'hard' or 'soft' distillation throughout, this is timm's `TokenDistillationTask`, but
    for the teacher's size: its input is brought to the size it was trained at.

    Args:
        student_model: Distilled ViT whose `pretrained_cfg` holds the mean and std of its images.
        teacher_model: Network whose `pretrained_cfg` holds its mean, std and input_size, or timm's DistillationTeacher.
        distillation_loss: Loss of (dist_logits, teacher_logits); see `create_distillation_loss`.
        criterion: Loss of (cls_logits, target); cross-entropy if None.
        teacher_normalize: 'own': the teacher's images are normalised as in its training; 'student': as the student's.
        teacher_antialias: Whether shrinking the teacher's images filters them first.
        teacher_scale: Factor of the teacher's logits, for one whose loss had it: LDAM's of a cosine classifier, without
            which soft distillation sees an almost uniform teacher. Of no effect on 'hard'.
        shots: Groups of classes for `create_evaluator`.
        kwargs: `task_loss_weight`, `distill_loss_weight`, `device`, `dtype`, `verbose` as in timm.

    Raises:
        ValueError: If teacher and student differ in the number of classes or channels.

    Source: DeiT-LT (https://arxiv.org/abs/2404.02900).

    Example:
        >>> student = timm.create_model('deit_lt_tiny', num_classes=10, img_size=64)
        >>> teacher = timm.create_model('resnet32_cifar', num_classes=10)
        >>> loss = create_distillation_loss('drw_hard', class_counts=range(100, 0, -10), drw_start_epoch=9)
        >>> task = DeiTLTTask(student, teacher, loss, task_loss_weight=.5)
        >>> task.set_epoch(0)
        >>> task(torch.randn(2, 3, 64, 64), torch.tensor([0, 1]))['loss'].backward()
    """

    experts = ('mean', 'cls', 'dist')

    def __init__(
            self,
            student_model: nn.Module,
            teacher_model: nn.Module,
            distillation_loss: DistillationLoss,
            criterion: nn.Module | None = None,
            teacher_normalize: str = 'own',
            teacher_antialias: bool = True,
            teacher_scale: float = 1.,
            shots: Shots | None = None,
            **kwargs,
    ):
        if teacher_normalize not in ('own', 'student'):
            raise ValueError(f"teacher_normalize={teacher_normalize!r} is unknown: use 'own' or 'student'.")
        super().__init__(
            student_model,
            teacher_model,
            criterion=criterion,
            criterion_kwargs=None,
            distill_type=distillation_loss.distill_type,
            temperature=distillation_loss.temperature,
            **kwargs,
        )
        student, network = unwrap_model(student_model), unwrap_model(self.teacher.model)
        for what in ('num_classes', 'in_chans'):
            ours, theirs = getattr(student, what, None), getattr(network, what, None)
            if None not in (ours, theirs) and ours != theirs:
                raise ValueError(
                    f'The teacher has {what}={theirs}, the student {ours}: distillation needs a teacher trained on the '
                    "student's own classes and images.")
        self.teacher.requires_grad_(False).eval()
        self.distillation_loss = distillation_loss.to(self.device)
        self.teacher_normalize = teacher_normalize
        self.teacher_antialias = teacher_antialias
        self.teacher_scale = teacher_scale
        self.teacher_size = tuple(network.pretrained_cfg['input_size'][-2:])
        self.shots = shots
        self._tokens = _watch_tokens(student)

    def set_epoch(self, epoch: int) -> None:
        """Tell the losses the 0-based epoch; the stage is a function of it alone."""
        set_epochs([self.criterion, self.distillation_loss], epoch)

    def teacher_view(self, images: Tensor) -> Tensor:
        """Bring images `[B, C, H, W]`, normalised for the student, to the teacher's normalisation and size."""
        if images.shape[-2:] != self.teacher_size:
            images = F.interpolate(
                images.float(), self.teacher_size, mode='bicubic', antialias=self.teacher_antialias).to(images.dtype)
        if self.teacher_normalize == 'own':  # commutes with resizing, after which there are usually fewer pixels
            images = self.teacher.normalize_input(images, self.student_mean, self.student_std)
        return images

    def forward(
            self,
            input: Tensor,
            target: Tensor,
            weak: Tensor | None = None,
            second_pass: bool = False,
    ) -> dict[str, Tensor]:
        """Forward pass of student and teacher, and the loss.

        Args:
            input: What the student sees, `[B, C, H, W]`.
            target: Class indices `[B]` or distributions `[B, num_classes]`.
            weak: What the teacher sees, normalised for the student, `[B, C, H, W]`; the student's images if None.
            second_pass: Whether this is SAM's second pass, which changes no state but gradients.

        Returns:
            As timm's task: 'loss', 'output' (CLS logits), 'task_loss', 'distill_loss'; and, as sums over the batch,
            'teacher_correct' (the teacher finds the dominant label), 'agreement' (DIST says what the teacher says) and
            'cosine' (of the CLS and DIST tokens after the final norm).
        """
        with frozen_statistics(self.trainable_module) if second_pass else nullcontext():
            cls_logits, dist_logits = self.trainable_module(input)
        task_loss = self.criterion(cls_logits, target)
        with torch.no_grad():
            teacher_logits = self.teacher(self.teacher_view(input if weak is None else weak).detach())
            if self.teacher_scale != 1.:  # in full precision, in which different logits stay different
                teacher_logits = teacher_logits.float() * self.teacher_scale
        distill_loss = self.distillation_loss(dist_logits, teacher_logits)
        loss = self.task_loss_weight * task_loss + self.distill_loss_weight * distill_loss
        return {
            'loss': loss,
            'output': cls_logits,
            'task_loss': task_loss,
            'distill_loss': distill_loss,
            **self._measure(dist_logits, teacher_logits, target),
        }

    @torch.no_grad()
    def _measure(self, dist_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        teacher_labels = teacher_logits.argmax(dim=-1)
        cls_token, dist_token = self._tokens['cls_dist'].float().unbind(dim=1)
        return {
            'teacher_correct': (teacher_labels == hard_labels(target)).sum(),
            'agreement': (dist_logits.argmax(dim=-1) == teacher_labels).sum(),
            'cosine': F.cosine_similarity(cls_token, dist_token).sum(),
        }


def _watch_tokens(student: nn.Module) -> dict[str, Tensor]:
    """Keep the CLS and DIST tokens `[B, 2, D]` of the last training forward, detached."""
    # filled beforehand: torch.compile would compile the student again once the dictionary is no longer empty
    tokens = {'cls_dist': torch.empty(0)}

    # a plain function: an EMA's deep copy of the student then shares it instead of copying the task
    def keep(module: nn.Module, _, output: Tensor) -> None:
        if module.training:
            tokens['cls_dist'] = output[:, :2].detach()

    student.norm.register_forward_hook(keep)
    return tokens
