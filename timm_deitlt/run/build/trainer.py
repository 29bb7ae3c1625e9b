"""Everything a run trains with, from its arguments."""
import argparse
import logging
import os
from bisect import bisect_right
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache, partial
from typing import Any

import torch
from timm.data import resolve_data_config
from timm.layers import convert_sync_batchnorm, set_fast_norm
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from torch import nn

from ...data.augment import BatchAugment
from ...data.ramp import AugmentationRamp
from ...data.seeds import seed_everything
from ...engine.device import has_bfloat16, price_of_bfloat16
from ...engine.trainer import Trainer
from .data import Data
from .loaders import build_eval_loader, build_mixup, build_train_loader, update_size
from .model import build_model, build_optimizer, build_task, drw_start

_logger = logging.getLogger(__name__)


def choose_precision(args: argparse.Namespace, device: torch.device) -> tuple[Any, torch.amp.GradScaler | None, str]:
    """Context of forward passes, gradient scaler of fp16, and the words for the log.

    bfloat16 is chosen where the device has instructions for it, and obeyed elsewhere if it is asked for.
    """
    dtype = {'bfloat16': torch.bfloat16, 'float16': torch.float16}[args.amp_dtype]
    amp = args.amp
    if amp is None:
        amp = has_bfloat16(device) if dtype == torch.bfloat16 else device.type == 'cuda'
        amp = amp and args.model_dtype in (None, 'float32')
    if not amp:
        return nullcontext, None, f'{args.model_dtype or "float32"} on {device}'
    scaler = torch.amp.GradScaler(device.type) if dtype == torch.float16 else None
    how = 'chosen automatically, --no-amp turns it off' if args.amp is None else '--amp'
    return partial(torch.autocast, device_type=device.type, dtype=dtype), scaler, (
        f'automatic mixed precision, {args.amp_dtype} on {device} ({how})')


def precision_words(args: argparse.Namespace, device: torch.device) -> str:
    """Words for the precision of a training, the same on every device."""
    return choose_precision(args, device)[2].split(' on ')[0]


def warn_of_slow_bfloat16(args: argparse.Namespace, autocast: Callable, device: torch.device) -> None:
    """Say once what bfloat16 costs where it was asked for and the CPU has no instructions for it."""
    mixed = autocast is not nullcontext and args.amp_dtype == 'bfloat16'
    if device.type == 'cpu' and (mixed or args.model_dtype == 'bfloat16') and not has_bfloat16(device):
        _warn_once(
            f'This CPU has no instructions for bfloat16: a matrix product takes {price_of_bfloat16():.0f} times as '
            f'long as in float32 here. {"Give --no-amp" if mixed else "Leave out --model-dtype"} for float32.')


@cache
def _warn_once(text: str) -> None:
    if not int(os.environ.get('RANK', 0)):
        _logger.warning(text)


def rho_schedule(args: argparse.Namespace) -> Callable[[int, int], float] | None:
    """SAM's radius by epoch and update of the run, both from 0, or None where it does not change."""
    if not args.opt.startswith('sam') or (not args.rho_milestones and args.sam_every == 1):
        return None
    values = [args.rho, *args.rho_values]

    def rho(epoch: int, update: int) -> float:
        return 0. if update % args.sam_every else values[bisect_right(args.rho_milestones, epoch + 1)]

    return rho


def build_trainer(
        args: argparse.Namespace,
        data: Data,
        teacher: nn.Module | None,
        device: torch.device,
        world_size: int = 1,
        rank: int = 0,
        teacher_scale: float = 1.,
) -> Trainer:
    """Everything a run trains with, on its device and wrapped for its ranks; `teacher_scale` as in `DeiTLTTask`."""
    seed_everything(args.seed)
    if args.fast_norm:
        set_fast_norm()
    num_classes = data.train.num_classes
    model = build_model(args, num_classes, training=True)
    config = resolve_data_config(pretrained_cfg=model.pretrained_cfg)
    dtype = getattr(torch, args.model_dtype) if args.model_dtype else torch.float32
    model.to(device=device, dtype=dtype)
    if args.channels_last:
        model.to(memory_format=torch.channels_last)
    if world_size > 1 and args.sync_bn:
        model = convert_sync_batchnorm(model)
    if teacher is not None:
        teacher.to(device=device, dtype=dtype)
        if args.channels_last:
            teacher.to(memory_format=torch.channels_last)
    task = build_task(args, model, teacher, data, device, dtype, teacher_scale)
    optimizer = build_optimizer(args, task.get_trainable_module(), update_size(args, world_size)[1])
    autocast, scaler, words = choose_precision(args, device)
    _logger.info(f'Precision: {words}')
    warn_of_slow_bfloat16(args, autocast, device)
    weak = teacher is not None and args.teacher_view == 'weak'
    second_view = 'key' if args.loss == 'paco' else 'weak' if weak else ''
    loader = build_train_loader(args, data, config, device, world_size, rank, second_view, dtype)
    scheduler, epochs = create_scheduler_v2(
        optimizer, **scheduler_kwargs(args), updates_per_epoch=loader.updates_per_epoch)
    if epochs != args.epochs:
        _logger.info(f'The schedule lasts {epochs} epochs with its warm-up prefix and cool-down.')
    if args.model_ema:
        task.setup_ema(
            decay=args.model_ema_decay,
            use_warmup=args.model_ema_warmup,
            device='cpu' if args.model_ema_force_cpu else None,
        )
        _warn_of_slow_ema(args, loader.updates_per_epoch * epochs)
    evaluation = data.evaluation
    augment = BatchAugment(
        build_mixup(args, num_classes), 0. if args.no_aug else args.reprob, args.remode, args.recount, device)
    views = [view for of_size in loader.transforms for view in of_size]
    return Trainer(
        task=task,
        optimizer=optimizer,
        loader=loader,
        augment=augment,
        eval_loader=None if evaluation is None else build_eval_loader(
            args, evaluation, config, device, world_size, rank, dtype),
        scheduler=scheduler,
        rho=rho_schedule(args),
        ramp=AugmentationRamp(args.aug_ramp, views, augment) if args.aug_ramp else None,
        epochs=epochs,
        seed=args.seed,
        autocast=autocast,
        scaler=scaler,
        clip_grad=args.clip_grad,
        clip_mode=args.clip_mode,
        channels_last=args.channels_last,
        drw_start_epoch=drw_start(args),
        keep_mixup=args.keep_mixup_drw,
        mixup_off_epoch=args.mixup_off_epoch,
        world_size=world_size,
        dist_bn='' if args.sync_bn else args.dist_bn,
        log_interval=args.log_interval,
    )


def _warn_of_slow_ema(args: argparse.Namespace, updates: int) -> None:
    kept = args.model_ema_decay ** updates
    if kept > 0.05 and not args.model_ema_warmup:
        _logger.warning(
            f'After all {updates} updates the EMA still holds {100 * kept:.0f} % of the random start: lower '
            f'--model-ema-decay {args.model_ema_decay} or add --model-ema-warmup.')
