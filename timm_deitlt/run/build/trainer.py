"""Everything a run trains with, from its settings."""
import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import cache, partial
from typing import Any, cast

import torch
from timm.data import resolve_data_config
from timm.layers import convert_sync_batchnorm, set_fast_norm
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.utils.distributed import world_info_from_env
from torch import nn
from torch.utils.data import IterableDataset

from ...data.ramp import AugmentationRamp
from ...data.seeds import seed_everything
from ...engine.device import has_bfloat16, price_of_bfloat16
from ...engine.trainer import Trainer
from ...evaluation.fusion import choose_fusions, scale_of_outputs
from ...optim.rho_schedule import rho_schedule
from ...settings.resolved import MachineSettings, Precision, Settings
from .data import Data
from .loaders import build_batch_augment, build_eval_loader, build_train_loader
from .model import build_model, build_optimizer, build_task

_logger = logging.getLogger(__name__)


def autocast_of(precision: Precision, device: torch.device) -> Callable:
    """Context of forward passes; warns if they are slow in this precision."""
    warn_of_slow_bfloat16(precision, device)
    if not precision.mixed:
        return nullcontext
    return partial(torch.autocast, device_type=device.type, dtype=getattr(torch, precision.mixed))


def warn_of_slow_bfloat16(precision: Precision, device: torch.device) -> None:
    """Warn once if bfloat16 was asked for and the CPU has no instructions for it."""
    if device.type == 'cpu' and 'bfloat16' in (precision.mixed, precision.weights) and not has_bfloat16(device):
        _warn_once(
            f'This CPU has no instructions for bfloat16: a matrix product takes {price_of_bfloat16():.0f} times as '
            f'long as in float32 here. {"Give --no-amp" if precision.mixed else "Leave out --model-dtype"} for '
            'float32.')


@cache
def _warn_once(text: str) -> None:
    if world_info_from_env()[1] == 0:
        _logger.warning(text)


def build_trainer(
        settings: Settings,
        data: Data,
        teacher: nn.Module | None,
        device: torch.device,
        teacher_scale: float = 1.,
) -> Trainer:
    """Everything a run trains with, on its device and wrapped for its ranks; `teacher_scale` as in `DeiTLTTask`."""
    machine, optimizer, augment = settings.machine, settings.optimizer, settings.augment
    seed_everything(settings.seed)
    if machine.fast_norm:
        set_fast_norm()
    num_classes = data.train.num_classes
    model = build_model(settings.model, num_classes, augment.train_img_sizes or ())
    config = resolve_data_config(pretrained_cfg=model.pretrained_cfg)
    dtype = getattr(torch, machine.precision.weights)
    for network in (model, teacher):
        if network is not None:
            network.to(device=device, dtype=dtype)
        if network is not None and machine.channels_last:
            network.to(memory_format=torch.channels_last)
    if machine.world_size > 1 and machine.sync_bn:
        model = convert_sync_batchnorm(model)
    task = build_task(settings, model, teacher, data, device, dtype, teacher_scale)
    if not optimizer.lr:
        _logger.info(
            f'Learning rate {optimizer.peak_lr:.3g}: {optimizer.lr_base} for {optimizer.lr_base_size} images, scaled '
            'to the batch')
    built = build_optimizer(settings, cast(nn.Module, task.get_trainable_module()))
    _logger.info(f'Precision: {machine.precision.words_on(device)}')
    autocast = autocast_of(machine.precision, device)
    view = _second_view(settings, teacher)
    feed = partial(_feed, data=data, config=config, device=device, second_view=view, dtype=dtype)
    images = feed(settings)
    loader = images['loader']
    scheduler, epochs = create_scheduler_v2(
        built, **scheduler_kwargs(settings.schedule), updates_per_epoch=loader.updates_per_epoch)
    if epochs != settings.schedule.epochs:
        _logger.info(f'The schedule lasts {epochs} epochs with its warm-up prefix and cool-down.')
    _set_up_ema(task, machine, loader.updates_per_epoch * epochs)
    return Trainer(
        task=task,
        optimizer=built,
        **images,
        on_device=_on_device(settings, data, feed) if device.type == 'cuda' else None,
        eval_loader=None if data.evaluation is None else build_eval_loader(
            settings, data.evaluation, config, device, dtype),
        scheduler=scheduler,
        rho=rho_schedule(optimizer),
        epochs=epochs,
        seed=settings.seed,
        autocast=autocast,
        scaler=torch.amp.GradScaler(device.type) if machine.precision.mixed == 'float16' else None,
        clip_grad=optimizer.clip_grad,
        clip_mode=optimizer.clip_mode,
        channels_last=machine.channels_last,
        drw_start_epoch=settings.stage_two.start_epoch,
        keep_mixup=settings.stage_two.keep_mixup,
        mixup_off_epoch=augment.mixup_off_epoch,
        world_size=machine.world_size,
        dist_bn='' if machine.sync_bn else machine.dist_bn,
        log_interval=settings.output.log_interval,
        fusions=choose_fusions(settings.output.fusion, task.experts),
        logit_scale=scale_of_outputs(task.experts, settings.loss.logit_scale),
    )


def _feed(settings: Settings, data: Data, **options: Any) -> dict[str, Any]:
    """What gives a trainer its images: loader, augmentation of batches, and what lets it grow stronger."""
    augment = settings.augment
    loader = build_train_loader(settings, data, **options)
    batches = build_batch_augment(augment, data.train.num_classes, options['device'])
    views = [view for of_size in loader.transforms for view in of_size]
    ramp = AugmentationRamp(augment.aug_ramp, views, batches) if augment.aug_ramp else None
    return dict(loader=loader, augment=batches, ramp=ramp)


def _on_device(settings: Settings, data: Data, feed: Callable) -> Callable | None:
    """`feed` for images that are augmented on the device, if --auto-speed may choose it; None if it may not."""
    free = settings.sources.get('augment_backend') == 'default' and settings.loss.label_loss != 'paco'
    if not free or isinstance(data.train, IterableDataset):
        return None
    return partial(feed, replace(settings, augment=replace(settings.augment, augment_backend='device')))


def _second_view(settings: Settings, teacher: nn.Module | None) -> str:
    if settings.loss.label_loss == 'paco':
        return 'key'
    return 'weak' if teacher is not None and settings.teacher.view == 'weak' else ''


def _set_up_ema(task: Any, machine: MachineSettings, updates: int) -> None:
    if not machine.model_ema:
        return
    task.setup_ema(
        decay=machine.model_ema_decay,
        use_warmup=machine.model_ema_warmup,
        device=torch.device('cpu') if machine.model_ema_force_cpu else None,
    )
    kept = machine.model_ema_decay ** updates
    if kept > 0.05 and not machine.model_ema_warmup:
        _logger.warning(
            f'After all {updates} updates the EMA still holds {100 * kept:.0f} % of the random initial weights: lower '
            f'--model-ema-decay {machine.model_ema_decay} or add --model-ema-warmup.')
