"""Loaders of a run and what happens to images on the way, from its arguments."""
import argparse
import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from timm.data import Mixup, create_transform
from torch.utils.data import IterableDataset

from ...data.augment import check_tensor_filter, key_transform, train_transform, weak_transform
from ...data.image import ARRAY, image_mode
from ...data.loader import TrainLoader, create_eval_loader
from ...data.sizes import SizeSchedule
from .data import Data

_logger = logging.getLogger(__name__)


def build_mixup(args: argparse.Namespace, num_classes: int) -> Mixup | None:
    """timm's Mixup / CutMix, or None for hard labels.

    Raises:
        ValueError: If the range of the box ratio is none.
    """
    if not (args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax is not None):
        return None
    if args.cutmix_minmax is not None and len(args.cutmix_minmax) != 2:
        raise ValueError(f'--cutmix-minmax takes two numbers, got {args.cutmix_minmax}.')
    return Mixup(
        mixup_alpha=args.mixup,
        cutmix_alpha=args.cutmix,
        cutmix_minmax=args.cutmix_minmax,
        prob=args.mixup_prob,
        switch_prob=args.mixup_switch_prob,
        mode=args.mixup_mode,
        label_smoothing=args.smoothing,
        num_classes=num_classes,
    )


def size_schedule(args: argparse.Namespace) -> SizeSchedule | None:
    """The sizes of `--train-img-sizes`, or None for one size."""
    if not args.train_img_sizes:
        return None
    return SizeSchedule(
        args.train_img_sizes, args.train_size_probs, args.train_size_schedule, args.epochs,
        args.train_size_schedule_spread, args.train_size_random_mix, args.seed)


def build_train_transform(args: argparse.Namespace, config: dict[str, Any]) -> Callable:
    """The training transform, from a PIL image to uint8 `[C, H, W]`.

    Raises:
        ValueError: If timm cannot make it of the augmentation settings, or the backend does not know a part of it.
    """
    try:
        transform = train_transform(
            config['input_size'],
            no_aug=args.no_aug,
            train_crop_mode=args.train_crop_mode,
            scale=tuple(args.scale),
            ratio=tuple(args.ratio),
            hflip=args.hflip,
            vflip=args.vflip,
            color_jitter=args.color_jitter or None,
            color_jitter_prob=args.color_jitter_prob,
            grayscale_prob=args.grayscale_prob or 0.,
            gaussian_blur_prob=args.gaussian_blur_prob or 0.,
            force_color_jitter=args.force_color_jitter,
            auto_augment=args.aa,
            cutout=args.cutout or 0,
            interpolation=args.train_interpolation if args.train_interpolation and not args.no_aug else
            config['interpolation'],
            mean=config['mean'],
            arrays=_are_arrays(args, config),
        )
    except (AssertionError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f'timm cannot make the training transform ({error or type(error).__name__}): look at --aa {args.aa}, '
            f'--scale {args.scale} and --ratio {args.ratio} (two numbers each).') from error
    if args.augment_backend == 'pillow':
        return transform
    if config['input_size'][0] not in (1, 3) or args.input_img_mode not in (None, 'L', 'RGB'):
        raise ValueError(
            f'--augment-backend opencv augments grey or RGB images, not images of {config["input_size"][0]} channels '
            f'in mode {args.input_img_mode}: leave it out.')
    try:
        from ...data.opencv import to_opencv
    except ImportError as error:
        raise ValueError(
            f'--augment-backend opencv needs OpenCV ({error}): pip install opencv-python-headless, or leave it out.'
        ) from error
    return to_opencv(transform)


def update_size(args: argparse.Namespace, world_size: int = 1) -> tuple[int, int]:
    """Micro-batches of each device in an update, and images in an update over all devices.

    Where `--global-batch-size` has fewer micro-batches than there are devices, or not a whole number for each, some
    devices idle: the update stays the same.

    Raises:
        ValueError: If the global batch is not a whole number of micro-batches, or contradicts the accumulation.
    """
    size = args.global_batch_size
    if size is None:
        return args.grad_accum_steps, args.batch_size * args.grad_accum_steps * world_size
    batches, rest = divmod(size, args.batch_size)
    if rest or not batches:
        raise ValueError(
            f'An update of {size} images (--global-batch-size) is no whole number of micro-batches of '
            f'{args.batch_size} (--batch-size): give a multiple of it, or another --batch-size.')
    steps = math.ceil(batches / world_size)
    if args.grad_accum_steps not in (1, steps):
        raise ValueError(
            f'--global-batch-size {size} makes {steps} accumulation step(s) of {args.batch_size} images on '
            f'{world_size} device(s), but --grad-accum-steps is {args.grad_accum_steps}: leave one of them out.')
    return steps, size


def build_train_loader(
        args: argparse.Namespace,
        data: Data,
        config: dict[str, Any],
        device: torch.device,
        world_size: int,
        rank: int,
        second_view: str,
        dtype: torch.dtype,
) -> TrainLoader:
    """Loader of the training images, with the teacher's 'weak' view or PaCo's 'key' view beside; '' for neither."""
    sizes = size_schedule(args)
    configs = [config] if sizes is None else [
        {**config, 'input_size': (config['input_size'][0], size, size)} for size in sizes.sizes]
    steps, global_batch_size = update_size(args, world_size)
    if isinstance(data.train, IterableDataset) and global_batch_size != steps * args.batch_size * world_size:
        raise ValueError(
            f'{data.name} is read as a stream, of which each of the {world_size} devices takes its part: give a '
            f'--global-batch-size that is a multiple of {args.batch_size * world_size}.')
    idle = steps * world_size - global_batch_size // args.batch_size
    if idle and not rank:
        _logger.warning(
            f'{global_batch_size // args.batch_size} micro-batches an update are shared by {world_size} devices: '
            f'{idle} of {steps * world_size} turns are idle.')
    return TrainLoader(
        data.train,
        [_views(args, of_size, second_view) for of_size in configs],
        config['mean'],
        config['std'],
        batch_size=args.batch_size,
        grad_accum_steps=steps,
        world_size=world_size,
        rank=rank,
        repeats=args.aug_repeats,
        even=build_mixup(args, 2) is not None,
        seed=args.seed,
        workers=args.workers,
        pin_memory=args.pin_mem,
        device=device,
        dtype=dtype,
        global_batch_size=global_batch_size,
        sizes=sizes,
    )


def _views(args: argparse.Namespace, config: dict[str, Any], second_view: str) -> list[Callable]:
    views = [build_train_transform(args, config)]
    if second_view == 'weak':
        views.append(weak_transform(config['input_size'], config['interpolation'], hflip=args.hflip, vflip=args.vflip))
    elif second_view == 'key':
        views.append(key_transform(
            config['input_size'],
            scale=tuple(args.key_scale),
            color_jitter=tuple(args.key_color_jitter),
            color_jitter_prob=args.key_color_jitter_prob,
            hflip=args.hflip,
            vflip=args.vflip,
            arrays=_are_arrays(args, config),
        ))
    return views


def _are_arrays(args: argparse.Namespace, config: dict[str, Any]) -> bool:
    return image_mode(config['input_size'][0], args.input_img_mode) == ARRAY


def build_eval_loader(
        args: argparse.Namespace,
        dataset: Any,
        config: dict[str, Any],
        device: torch.device,
        world_size: int = 1,
        rank: int = 0,
        dtype: torch.dtype = torch.float32,
) -> Any:
    """Loader of evaluation images as a model with the data configuration `config` expects them."""
    if _are_arrays(args, config):
        check_tensor_filter(config['interpolation'])
    transform = create_transform(
        config['input_size'], is_training=False, interpolation=config['interpolation'], crop_pct=config['crop_pct'],
        crop_mode=config.get('crop_mode'), use_prefetcher=True)
    return create_eval_loader(
        dataset, transform, config['mean'], config['std'], args.validation_batch_size or args.batch_size, args.workers,
        world_size, rank, args.pin_mem, device, dtype)
