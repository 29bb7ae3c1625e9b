"""Loaders and image transforms of a run, from its settings."""
import logging
from collections.abc import Callable
from typing import Any

import torch
from timm.data import Mixup, create_transform
from torch.utils.data import IterableDataset

from ...data.augment import BatchAugment, check_tensor_filter, key_transform, train_transform, weak_transform
from ...data.device_loader import DeviceLoader
from ...data.image import ARRAY
from ...data.loader import TrainLoader, create_eval_loader
from ...data.multi_scale import SizeSchedule
from ...data.on_device import to_device
from ...settings.images import AugmentSettings
from ...settings.resolved import Settings
from .data import Data

_logger = logging.getLogger(__name__)


def build_mixup(augment: AugmentSettings, num_classes: int) -> Mixup | None:
    """timm's Mixup / CutMix, or None for hard labels.

    Raises:
        ValueError: If `--cutmix-minmax` does not have two numbers.
    """
    if not augment.mixes:
        return None
    if augment.cutmix_minmax is not None and len(augment.cutmix_minmax) != 2:
        raise ValueError(f'--cutmix-minmax takes two numbers, got {list(augment.cutmix_minmax)}.')
    return Mixup(
        mixup_alpha=augment.mixup,
        cutmix_alpha=augment.cutmix,
        cutmix_minmax=augment.cutmix_minmax,
        prob=augment.mixup_prob,
        switch_prob=augment.mixup_switch_prob,
        mode=augment.mixup_mode,
        label_smoothing=augment.smoothing,
        num_classes=num_classes,
    )


def build_batch_augment(augment: AugmentSettings, num_classes: int, device: torch.device) -> BatchAugment:
    """Erasing and mixing of batches on the device."""
    return BatchAugment(
        build_mixup(augment, num_classes), augment.erasing, augment.remode, augment.recount, device,
        batched=augment.augment_backend == 'device')


def size_schedule(settings: Settings) -> SizeSchedule | None:
    """The schedule of `--train-img-sizes`, or None for one size."""
    augment = settings.augment
    if not augment.train_img_sizes:
        return None
    return SizeSchedule(
        augment.train_img_sizes, augment.train_size_probs, augment.train_size_schedule, settings.schedule.epochs,
        augment.train_size_schedule_spread, augment.train_size_random_mix, settings.seed)


def build_train_transform(augment: AugmentSettings, config: dict[str, Any], image_mode: str = 'RGB') -> Callable:
    """The training transform, from a PIL image to uint8 `[C, H, W]`; with `--augment-backend device` for batches.

    Args:
        augment: What it does.
        config: Data configuration of the model: input size, interpolation and mean.
        image_mode: Pillow's mode of the images, or 'array'.

    Raises:
        ValueError: If timm cannot make it from the augmentation settings, or the backend lacks a part of it.
    """
    interpolation = '' if augment.no_aug else augment.train_interpolation
    try:
        transform = train_transform(
            config['input_size'],
            no_aug=augment.no_aug,
            train_crop_mode=augment.train_crop_mode,
            scale=augment.scale,
            ratio=augment.ratio,
            hflip=augment.hflip,
            vflip=augment.vflip,
            color_jitter=augment.color_jitter or None,
            color_jitter_prob=augment.color_jitter_prob,
            grayscale_prob=augment.grayscale_prob or 0.,
            gaussian_blur_prob=augment.gaussian_blur_prob or 0.,
            force_color_jitter=augment.force_color_jitter,
            auto_augment=augment.aa,
            cutout=augment.cutout or 0,
            interpolation=interpolation or config['interpolation'],
            mean=config['mean'],
            arrays=image_mode == ARRAY,
        )
    except (AssertionError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f'timm cannot make the training transform ({error or type(error).__name__}): look at --aa {augment.aa}, '
            f'--scale {list(augment.scale)} and --ratio {list(augment.ratio)} (two numbers each).') from error
    if augment.augment_backend == 'pillow':
        return transform
    if config['input_size'][0] not in (1, 3) or image_mode not in ('L', 'RGB'):
        raise ValueError(
            f'--augment-backend {augment.augment_backend} augments grey or RGB images, not images of '
            f'{config["input_size"][0]} channels in mode {image_mode}: leave it out.')
    if augment.augment_backend == 'device':
        return to_device(transform)
    try:
        from ...data.opencv import to_opencv
    except ImportError as error:
        raise ValueError(
            f'--augment-backend opencv needs OpenCV ({error}): pip install opencv-python-headless, or leave it out.'
        ) from error
    return to_opencv(transform)


def build_train_loader(
        settings: Settings,
        data: Data,
        config: dict[str, Any],
        device: torch.device,
        second_view: str,
        dtype: torch.dtype,
) -> TrainLoader:
    """Loader of the training images. `second_view` is 'weak' for the teacher, 'key' for PaCo, or '' for none."""
    loader, world_size, rank = settings.loader, settings.machine.world_size, settings.machine.rank
    sizes = size_schedule(settings)
    configs = [config] if sizes is None else [
        {**config, 'input_size': (config['input_size'][0], size, size)} for size in sizes.sizes]
    turns, batches = loader.micro_batches * world_size, loader.update_images // loader.batch_size
    if isinstance(data.train, IterableDataset) and loader.update_images != turns * loader.batch_size:
        raise ValueError(
            f'{data.name} is read as a stream, which the {world_size} devices have to share evenly: give a '
            f'--global-batch-size that is a multiple of {loader.batch_size * world_size}.')
    if turns > batches and not rank:
        _logger.warning(
            f'The {batches} micro-batches of an update cannot be shared evenly by {world_size} devices: in '
            f'{turns - batches} of {turns} turns a device is idle.')
    made = DeviceLoader if settings.augment.augment_backend == 'device' else TrainLoader
    return made(
        data.train,
        [_views(settings, of_size, second_view) for of_size in configs],
        config['mean'],
        config['std'],
        batch_size=loader.batch_size,
        grad_accum_steps=loader.micro_batches,
        world_size=world_size,
        rank=rank,
        repeats=loader.aug_repeats,
        even=settings.augment.mixes,
        seed=settings.seed,
        workers=loader.processes,
        pin_memory=pinned(settings, device),
        device=device,
        dtype=dtype,
        global_batch_size=loader.update_images,
        sizes=sizes,
    )


def _views(settings: Settings, config: dict[str, Any], second_view: str) -> list[Callable]:
    augment = settings.augment
    views = [build_train_transform(augment, config, settings.data.image_mode)]
    flips: dict[str, Any] = dict(hflip=augment.hflip, vflip=augment.vflip)
    if second_view == 'weak':
        weak = weak_transform(config['input_size'], config['interpolation'], **flips)
        views.append(to_device(weak) if augment.augment_backend == 'device' else weak)
    elif second_view == 'key':
        views.append(key_transform(
            config['input_size'],
            scale=augment.key_scale,
            color_jitter=augment.key_color_jitter,
            color_jitter_prob=augment.key_color_jitter_prob,
            arrays=settings.data.image_mode == ARRAY,
            **flips,
        ))
    return views


def pinned(settings: Settings, device: torch.device) -> bool:
    """Whether batches wait in pinned memory, from which a GPU copies them while it computes."""
    return settings.loader.pin_mem or device.type == 'cuda'


def build_eval_loader(
        settings: Settings,
        dataset: Any,
        config: dict[str, Any],
        device: torch.device,
        dtype: torch.dtype = torch.float32,
) -> Any:
    """Loader of evaluation images as a model with the data configuration `config` expects them."""
    if settings.data.image_mode == ARRAY:
        check_tensor_filter(config['interpolation'])
    transform = create_transform(
        config['input_size'], is_training=False, interpolation=config['interpolation'], crop_pct=config['crop_pct'],
        crop_mode=config.get('crop_mode'), use_prefetcher=True)
    loader, machine = settings.loader, settings.machine
    return create_eval_loader(
        dataset, transform, config['mean'], config['std'], loader.evaluation_batch_size, loader.processes,
        machine.world_size, machine.rank, pinned(settings, device), device, dtype)
