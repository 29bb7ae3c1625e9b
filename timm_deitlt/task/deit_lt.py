"""DeiT-LT: CLS learns the labels, DIST learns the prediction of a teacher for the same image."""
from collections.abc import Hashable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from timm.task import TokenDistillationTask
from timm.utils import unwrap_model
from torch import Tensor, nn

from ..evaluation import Shots
from ..loss import DistillationLoss
from ..loss.guidance import dense_distillation, locality_guidance
from .common import AuxiliaryTask, frozen_statistics, hard_labels, set_epochs, stages
from .guidance import Guidance, GuidedStudent, GuidingTeacher


class DeiTLTTask(AuxiliaryTask, TokenDistillationTask):
    """DeiT-LT: CLS learns the labels, DIST learns the teacher's prediction for the same image.

    loss = a * label_loss(CLS, target) + (1 - a) * distillation_loss(DIST, teacher), with a = `task_loss_weight`.
    With `guidance` the losses of `loss.guidance` are added, each with its weight.

    Before the DRW start this is timm's `TokenDistillationTask` with one difference: images are resized to the size that
    the teacher was trained at. With 'hard' or 'soft' distillation, which have no DRW, this holds in all epochs.

    Args:
        student_model: Distilled ViT whose `pretrained_cfg` holds the mean and std of its images.
        teacher_model: Network whose `pretrained_cfg` holds its mean, std and input_size, or timm's DistillationTeacher.
        distillation_loss: Loss of (dist_logits, teacher_logits); see `create_distillation_loss`.
        criterion: Loss of (cls_logits, target); cross-entropy if None.
        teacher_normalize: 'own': the teacher's images are normalised as in its training. 'student': as the student's.
        teacher_antialias: Whether the teacher's images are filtered before they are made smaller.
        teacher_scale: Factor of the teacher's logits. Give the scale of the teacher's loss, such as LDAM's, if it has a
            cosine classifier: without the scale its probabilities are almost uniform, which would spoil soft
            distillation. It has no effect on 'hard'.
        guidance: What the student learns at each place from the teacher's feature maps, or None. This needs 1 x 1
            convolutions, which are trained with the student and saved in checkpoints as state of the task.
        shots: Groups of classes for `create_evaluator`.
        kwargs: `task_loss_weight`, `distill_loss_weight`, `device`, `dtype`, `verbose` as in timm.

    Raises:
        ValueError: If teacher and student differ in the number of classes or channels, or if one of them does not have
            the feature maps that the guidance needs.

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
    auxiliary_words = (
        "the checkpoint's guidance",
        'Give --guidance, --guidance-blocks and --guidance-stages as they were in training.')
    student_mean: Tensor  # timm's buffers
    student_std: Tensor

    def __init__(
            self,
            student_model: nn.Module,
            teacher_model: nn.Module,
            distillation_loss: DistillationLoss,
            criterion: nn.Module | None = None,
            teacher_normalize: str = 'own',
            teacher_antialias: bool = True,
            teacher_scale: float = 1.,
            guidance: Guidance | None = None,
            shots: Shots | None = None,
            **kwargs: Any,
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
                    f'The teacher has {what}={theirs}, but the student has {ours}: use a teacher that was trained on '
                    'the same classes and channels as the student.')
        self.teacher.requires_grad_(False).eval()
        self.distillation_loss = distillation_loss.to(self.device)
        self.teacher_normalize = teacher_normalize
        # asked once: timm's `normalize_input` compares them on the device, and so waits for it, in every batch
        kept: Any = self.teacher
        self._other_statistics = not (
            torch.equal(self.student_mean, kept.mean_kd) and torch.equal(self.student_std, kept.std_kd))
        self.teacher_antialias = teacher_antialias
        self.teacher_scale = teacher_scale
        self.teacher_size = tuple(network.pretrained_cfg['input_size'][-2:])
        self.shots = shots
        self._tokens = _watch_tokens(student)
        self.guidance = guidance
        if guidance is not None:
            stages = guidance.stages if guidance.weight else ()
            self.teacher.model = GuidingTeacher(network, stages, bool(guidance.dense))
            blocks = guidance.blocks if guidance.weight else ()
            self.trainable_module = GuidedStudent(student, self.teacher.model.channels, blocks, bool(guidance.dense))
        self._epoch = 0

    if TYPE_CHECKING:  # timm's is said to return a TokenDistillationTask, which has no `set_epoch`
        def train(self, mode: bool = True) -> 'DeiTLTTask': ...

    def set_epoch(self, epoch: int) -> None:
        """Tell the losses the 0-based epoch, which alone determines the stage."""
        set_epochs([self.criterion, self.distillation_loss], epoch)
        self._epoch = epoch

    def stage(self) -> Hashable:
        """See `ShotEvaluation.stage`."""
        guidance = self.guidance
        if guidance is not None and guidance.dense:
            return None  # in each epoch the places have another share
        return (
            *stages([self.criterion, self.distillation_loss], self._epoch),
            guidance is not None and guidance.guides(self._epoch))

    def teacher_view(self, images: Tensor) -> Tensor:
        """Turn images `[B, C, H, W]`, normalised for the student, into the teacher's normalisation and size."""
        if images.shape[-2:] != self.teacher_size:
            images = F.interpolate(
                images.float(), self.teacher_size, mode='bicubic', antialias=self.teacher_antialias).to(images.dtype)
        # the normalisation gives the same before resizing, but now there are usually fewer pixels
        if self.teacher_normalize == 'own' and self._other_statistics:
            kept: Any = self.teacher
            images = (images * self.student_std + self.student_mean - kept.mean_kd) / kept.std_kd
        return images

    def teacher_logits(self, images: Tensor) -> Tensor:
        """Logits `[B, C]` of the teacher for images `[B, C, H, W]` that are normalised for the student."""
        shown = self.teacher(self.teacher_view(images))
        return shown if self.guidance is None else shown[0]

    def forward(
            self,
            input: Tensor,
            target: Tensor,
            weak: Tensor | None = None,
            second_pass: bool = False,
    ) -> dict[str, Tensor]:
        """Forward pass of student and teacher, and the loss.

        Args:
            input: Images for the student, `[B, C, H, W]`.
            target: Class indices `[B]` or distributions `[B, num_classes]`.
            weak: Images for the teacher, normalised for the student, `[B, C, H, W]`. If None, the student's images.
            second_pass: Whether this is SAM's second pass, which changes no state but gradients.

        Returns:
            As in timm's task: 'loss', 'output' (CLS logits), 'task_loss' and 'distill_loss'. With guidance also
            'guidance_loss' and 'dense_loss', which are 0 while they are off. As sums over the batch: 'teacher_correct'
            (the teacher predicts the dominant label), 'agreement' (DIST and the teacher predict the same class) and
            'cosine' (similarity of the CLS and DIST tokens after the final norm).
        """
        guidance = self.guidance
        guided = () if guidance is None else (guidance.guides(self._epoch),)
        if guided and weak is not None:
            raise ValueError(
                'Guidance compares places of the same image, but the teacher gets a weak view: use --teacher-view '
                'student.')
        with frozen_statistics(self.trainable_module) if second_pass else nullcontext():
            cls_logits, dist_logits, *places = self.trainable_module(input, *guided)
        task_loss = self.criterion(cls_logits, target)
        with torch.no_grad():
            shown = self.teacher(self.teacher_view(input if weak is None else weak).detach())
            teacher_logits, *teacher_places = shown if guided else (shown,)
        extra = {} if guidance is None else self._guidance_losses(
            guidance, places, teacher_logits, teacher_places)
        if self.teacher_scale != 1.:  # in full precision, so that rounding does not make different logits equal
            teacher_logits = teacher_logits.float() * self.teacher_scale
        distill_loss = self.distillation_loss(dist_logits, teacher_logits)
        loss = self.task_loss_weight * task_loss + self.distill_loss_weight * distill_loss
        if guidance is not None:
            loss = loss + guidance.weight * extra['guidance_loss'] + guidance.dense * extra['dense_loss']
        return {
            'loss': loss,
            'output': cls_logits,
            'task_loss': task_loss,
            'distill_loss': distill_loss,
            **extra,
            **self._measure(dist_logits, teacher_logits, target),
        }

    def _guidance_losses(
            self,
            guidance: Guidance,
            places: list[Any],
            teacher_logits: Tensor,
            teacher_places: list[Any],
    ) -> dict[str, Tensor]:
        (maps, patch_logits), (teacher_maps, teacher_local) = places, teacher_places
        zero = teacher_logits.new_zeros((), dtype=torch.float32)
        return {
            'guidance_loss': locality_guidance(maps, teacher_maps) if maps else zero,
            # in stage two the loss of the places is re-weighted too; otherwise it would undo the re-weighting of DIST
            'dense_loss': zero if patch_logits is None else dense_distillation(
                patch_logits, teacher_local, teacher_logits, guidance.share_of_places(self._epoch),
                self.distillation_loss.active_weight),
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
    """Keep the CLS and DIST tokens `[B, 2, D]` of the last forward pass in training, detached."""
    # has its entry from the start, because torch.compile would recompile the student when one is added
    tokens = {'cls_dist': torch.empty(0)}

    # a plain function, because the EMA's deep copy of the student would copy the whole task with a method
    def keep(module: nn.Module, _: Any, output: Tensor) -> None:
        if module.training:
            tokens['cls_dist'] = output[:, :2].detach()

    cast(Any, student).norm.register_forward_hook(keep)
    return tokens
