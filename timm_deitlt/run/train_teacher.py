"""Find or train the teacher of a run, and evaluate it."""
import logging
import time
from pathlib import Path
from typing import Any

import torch
from timm.task.evaluator import evaluation_sample_limit
from timm.utils import unwrap_model
from torch import nn

from ..engine.checkpoint import load_checkpoint
from ..engine.device import local_device
from ..engine.fit import fit, restore
from ..engine.meter import NonFiniteLossError
from ..engine.progress import doing
from ..engine.run_folder import RunFolder, seconds_of
from ..engine.speed import choose_speed, speed_before
from ..engine.trainer import evaluate
from ..evaluation import ShotEvaluator, format_table
from ..settings.layers import args_to_yaml, describe_defaults
from ..settings.resolved import Settings
from ..utils.versions import plain_json
from .build.data import Data
from .build.loaders import build_eval_loader
from .build.model import build_model
from .build.trainer import autocast_of, build_trainer
from .results import run_record, run_result
from .teacher_cache import cached_or_trained
from .teacher_file import from_file, from_hub
from .teacher_settings import Teacher, teacher_key, teacher_settings

_logger = logging.getLogger(__name__)


def resolve_teacher(settings: Settings, data: Data) -> Teacher | None:
    """The teacher network of `--teacher` from a file, the cache or the Hub, or trained now; None without a network."""
    asked = settings.teacher
    if not asked.is_network:
        return None
    own = teacher_settings(settings, sum(data.train.class_counts), data.measured)
    if asked.checkpoint or asked.source == 'hub':
        return from_file(settings, own, data)
    key = teacher_key(own, data)
    return cached_or_trained(
        asked,
        key,
        create=lambda: build_model(own.model, data.train.num_classes),
        fetch=lambda: from_hub(settings, key),
        train=lambda path: train_teacher(own, data, path),
        logit_scale=own.loss.logit_scale,
    )


def train_teacher(settings: Settings, data: Data, path: Path) -> nn.Module:
    """Train a teacher in one process, continuing from the checkpoint in its folder if there is one."""
    start = time.perf_counter()
    device = local_device(settings.machine.device)
    _logger.info(
        f'Training the teacher {settings.model.name} ({settings.optimizer.opt}, {settings.flags["loss"]}) in {path}')
    _logger.info(describe_defaults(settings.flags, settings.sources))
    folder = RunFolder(path)
    trainer = build_trainer(settings, data, None, device)
    start_epoch = 0
    before = None
    if folder.last.is_file():
        checkpoint = load_checkpoint(folder.last)
        start_epoch = restore(trainer, checkpoint, str(folder.last))
        before = speed_before(checkpoint, settings.machine)
        folder.rewind(start_epoch)
        _logger.info(f'Going on with epoch {start_epoch} of the teacher')
    with doing('trying what is fastest'):
        speed = choose_speed(trainer, settings, start_epoch, before)
    folder.write('args.yaml', args_to_yaml(settings.namespace()))
    earlier = seconds_of(folder.rows)
    try:
        metrics = fit(
            trainer, folder, settings, run_record(trainer, settings, data, speed), start_epoch, title='teacher')
    except NonFiniteLossError as error:
        radius = ', a smaller --teacher-rho' if settings.optimizer.opt.startswith('sam') else ''
        raise NonFiniteLossError(
            f'The training of the teacher {settings.model.name} failed. {error.where}',
            f'Use --no-amp{radius} or another --teacher; its last complete checkpoint is in {path}.') from error
    folder.save_metrics(plain_json(run_result(
        settings, data, trainer, folder, metrics, None, None, earlier + time.perf_counter() - start)))
    return unwrap_model(trainer.task.get_eval_model())


def evaluate_teacher(settings: Settings, teacher: Teacher, data: Data, device: torch.device) -> dict[str, Any]:
    """Accuracy of the teacher on the evaluation images, prepared as in its own training."""
    if data.evaluation is None:
        return {}
    model = teacher.model.to(device)
    loader = build_eval_loader(settings, data.evaluation, model.pretrained_cfg, device)
    evaluator = ShotEvaluator(
        data.shots, experts=('cls',), device=device, max_samples=evaluation_sample_limit(loader),
        logit_scale=teacher.logit_scale)
    metrics = evaluate(
        model, loader, evaluator, autocast_of(settings.machine.precision, device),
        distributed=settings.machine.world_size > 1)['cls']
    _logger.info('\n' + format_table(
        {'teacher': metrics}, data.shots, evaluator.test_counts, class_names=data.train.class_names))
    return metrics
