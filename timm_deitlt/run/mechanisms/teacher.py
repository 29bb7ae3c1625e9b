"""What the teacher predicts for the images that the student is trained on."""
import logging
from dataclasses import replace
from typing import Any

import torch

from ...analysis import TeacherView
from ...data.ramp import AugmentationRamp
from ...data.seeds import seed_everything
from ...engine.trainer import expert_logits
from ..build.loaders import build_batch_augment, build_train_loader
from ..build.model import build_task
from ..teacher_file import from_file
from ..teacher_settings import Teacher, teacher_settings
from .subject import Subject

_logger = logging.getLogger(__name__)


def _load_teacher(subject: Subject) -> Teacher | None:
    """The teacher of a run, or None, with the reason in the log."""
    settings, data = subject.settings, subject.data
    if not subject.has_dist or not settings.teacher.is_network:
        _logger.info('The model was trained without a teacher network, so there is no teacher to measure.')
        return None
    if subject.teacher is None:
        _logger.warning("The teacher's file is not known, so its predictions on the training images are not measured.")
        return None
    try:
        named = teacher_settings(settings, sum(data.train.class_counts), planned=True)
        asked = replace(settings, teacher=replace(settings.teacher, checkpoint=subject.teacher))
        return from_file(asked, named, data)
    except (FileNotFoundError, ValueError) as error:
        _logger.warning(f"The teacher's predictions on the training images are not measured. {error}")
        return None


def measure_teacher(subject: Subject, images: Any, max_views: int) -> dict[str, Any] | None:
    """Measure the teacher on exactly the views that the student sees in its first epoch, and on the evaluation images.

    The student's views are used even if the teacher was shown weaker ones in training (`--teacher-view weak`).
    """
    teacher = _load_teacher(subject)
    if teacher is None:
        return None
    settings, data, model, device = subject.settings, subject.data, subject.model, subject.device
    task: Any = build_task(settings, model, teacher.model.to(device), data, device, torch.float32)
    in_training, on_clean = (TeacherView(data.shots.groups['tail'], teacher.logit_scale) for _ in range(2))
    loader = build_train_loader(settings, data, model.pretrained_cfg, device, '', torch.float32)
    augment = build_batch_augment(settings.augment, data.train.num_classes, device)
    if settings.augment.aug_ramp:
        views = [view for of_size in loader.transforms for view in of_size]
        AugmentationRamp(settings.augment.aug_ramp, views, augment).set_epoch(0)
    augment.mixup_enabled = settings.stage_two.keep_mixup or settings.stage_two.start_epoch > 0
    with torch.inference_mode():
        for plan, batch, target in (micro_batch for update in loader.epoch(0) for micro_batch in update):
            # as in training, see Trainer
            seed_everything(settings.seed, 0, plan.number)
            batch, _, target = augment(batch, target)
            with subject.autocast():
                dist_logits = expert_logits(model, batch, ('cls', 'dist'))['dist']
                in_training.update(task.teacher_logits(batch), target, dist_logits)
            if in_training.num_views >= max_views:
                break
        for batch, target in subject.batches(images):
            with subject.autocast():
                on_clean.update(task.teacher_logits(batch), target)
    seen, clean = in_training.compute(), on_clean.compute()
    return {
        'teacher_top1_clean': clean['top1'],
        'teacher_top1_train_view': seen['top1'],
        'teacher_entropy_train_view': seen['entropy'],
        'teacher_entropy_clean': clean['entropy'],
        'teacher_tail_share': seen['tail_share'],
        'true_tail_share': seen['true_tail_share'],
        'dist_agreement': seen['agreement'],
        'num_views': seen['num_views'],
    }
