"""From the flags to the settings of a run on this machine. The code below this module never sees the flags."""
import argparse
import logging
import math
import os
from types import MappingProxyType

import torch

from ..benchmarks import BENCHMARKS
from ..data.image import image_mode
from ..data.splits import SPLIT_NAMES, has_split, split_folder, subfolders
from ..engine.device import choose_device, cores, has_bfloat16, local_device
from ..settings.groups import NO_NETWORK
from ..settings.images import AugmentSettings, DataSettings, LoaderSettings
from ..settings.resolved import (
    LossSettings,
    MachineSettings,
    ModelSettings,
    OptimizerSettings,
    OutputSettings,
    Precision,
    ScheduleSettings,
    Settings,
    StageTwoSettings,
    TeacherSettings,
    part,
)

_logger = logging.getLogger(__name__)

# Without a validation split this part of the training images is held out
DEFAULT_VAL_FRACTION = 0.1
# Names under which timm reads a folder of class folders
FOLDER_DATASETS = ('', 'folder', 'torch/image_folder', 'torch/folder')
# Beginnings of the names of data sets that are read as streams
_STREAMS = ('wds', 'tfds', 'hfids')


def resolve_settings(
        args: argparse.Namespace,
        world_size: int = 1,
        rank: int = 0,
        planned: bool = False,
) -> Settings:
    """Work out the settings of a run on this machine from the flags, which `validate_args` has checked before.

    Args:
        args: Flags as `settings.layers.parse_args` returns them; they are not changed.
        world_size: Number of processes that train together.
        rank: Rank of this process among them.
        planned: Whether the run is only planned. Nothing is computed then, so this machine need not have the device.

    Raises:
        ValueError: If the device cannot be used, or an update is not a whole number of micro-batches.
    """
    device = args.device if planned else choose_device(args.device, plain=args.auto_speed == 'off')
    held_out = fraction_to_hold_out(args)
    channels = input_channels(args)
    micro_batches, update_images = update_size(args, world_size)
    flags = {name: value for name, value in vars(args).items() if name != 'sources'}
    return Settings(
        flags=MappingProxyType({**flags, 'device': device, 'val_fraction': held_out}),
        sources=MappingProxyType(dict(getattr(args, 'sources', {}))),
        seed=args.seed,
        data=part(
            DataSettings, args, held_out=held_out, channels=channels,
            image_mode=image_mode(channels, args.input_img_mode)),
        model=model_settings(args),
        augment=part(AugmentSettings, args),
        loader=part(
            LoaderSettings, args, evaluation_batch_size=args.validation_batch_size or args.batch_size,
            processes=loader_processes(args), micro_batches=micro_batches, update_images=update_images),
        loss=part(
            LossSettings, args, label_loss='bce' if args.bce_loss else args.loss,
            prior_tau={'ce': 0., 'balanced_softmax': 1., 'logit_adjust': args.logit_adjust_tau}[args.cls_loss]),
        stage_two=StageTwoSettings(drw_start(args), drw_targets(args), args.drw_beta, args.keep_mixup_drw),
        optimizer=part(OptimizerSettings, args, peak_lr=learning_rate(args, update_images)),
        schedule=part(ScheduleSettings, args),
        teacher=part(
            TeacherSettings, args, 'teacher_', name=args.teacher, is_network=args.teacher not in NO_NETWORK),
        output=part(OutputSettings, args),
        machine=part(
            MachineSettings, args, device=device, world_size=world_size, rank=rank,
            precision=choose_precision(args, None if planned else local_device(device))),
    )


def model_settings(args: argparse.Namespace) -> ModelSettings:
    """Settings of the network that was asked for."""
    return part(ModelSettings, args, name=args.model, channels=input_channels(args))


def choose_precision(args: argparse.Namespace, device: torch.device | None) -> Precision:
    """Precision of a run: what was asked for, else bfloat16 if the device has instructions for it."""
    mixed, weights = args.amp, args.model_dtype or 'float32'
    if mixed is None and weights == 'float32' and device is not None:
        mixed = has_bfloat16(device) if args.amp_dtype == 'bfloat16' else device.type == 'cuda'
    elif mixed is None:
        mixed = weights == 'float32'
    return Precision(args.amp_dtype if mixed else None, weights, chosen=args.amp is None)


def update_size(args: argparse.Namespace, world_size: int = 1) -> tuple[int, int]:
    """Micro-batches of each device in an update, and images in an update over all devices.

    If the micro-batches of `--global-batch-size` cannot be shared evenly by the devices, some devices idle; the update
    stays the same.

    Raises:
        ValueError: If the global batch is not a whole number of micro-batches, or contradicts `--grad-accum-steps`.
    """
    size = args.global_batch_size
    if size is None:
        return args.grad_accum_steps, args.batch_size * args.grad_accum_steps * world_size
    batches, rest = divmod(size, args.batch_size)
    if rest or not batches:
        raise ValueError(
            f'--global-batch-size {size} is not a multiple of --batch-size {args.batch_size}: change one of them.')
    steps = math.ceil(batches / world_size)
    if args.grad_accum_steps not in (1, steps):
        raise ValueError(
            f'--global-batch-size {size} makes {steps} accumulation step(s) of {args.batch_size} images on '
            f'{world_size} device(s), but --grad-accum-steps is {args.grad_accum_steps}: leave one of them out.')
    return steps, size


def loader_processes(args: argparse.Namespace) -> int:
    """Loader processes: `--workers`, but no more than there are cores.

    They do not change the images, but for streams, which are cut up among them: there it is always `--workers`.
    """
    if args.dataset.partition('/')[0].lower() in _STREAMS:
        return args.workers
    return min(args.workers, cores())


def learning_rate(args: argparse.Namespace, update_images: int) -> float:
    """Peak learning rate: `--lr`, else `--lr-base` scaled to the images of an update."""
    if args.lr:
        return args.lr
    ratio = update_images / args.lr_base_size
    name = args.opt.lower()
    scale = args.lr_base_scale or ('sqrt' if any(word in name for word in ('ada', 'lamb')) else 'linear')
    return args.lr_base * (ratio ** 0.5 if scale == 'sqrt' else ratio)


def drw_start(args: argparse.Namespace) -> int:
    """0-based epoch at which stage two begins: as given, else after 11/12 of the epochs, as in the paper on CIFAR."""
    if args.drw_start_epoch is None:
        return round(args.epochs * 11 / 12)
    if args.drw_start_epoch < args.epochs:
        return args.drw_start_epoch
    # never: not in the epochs that timm adds to --epochs either
    cycles = math.ceil(sum(args.lr_cycle_mul ** cycle for cycle in range(args.lr_cycle_limit)))
    return max(1, cycles) * args.epochs + args.cooldown_epochs + (args.warmup_epochs if args.warmup_prefix else 0)


def drw_targets(args: argparse.Namespace) -> str:
    """Experts that stage two re-weights: as given, else 'dist' with a teacher, 'cls' with LDAM, or 'none'."""
    if args.drw_on == 'both' and args.teacher == 'none':
        return 'cls'  # the only expert
    if args.drw_on:
        return args.drw_on
    return 'dist' if args.teacher not in NO_NETWORK else 'cls' if args.loss == 'ldam' else 'none'


def input_channels(args: argparse.Namespace) -> int:
    """Channels of the input images."""
    if args.in_chans is not None:
        return args.in_chans
    return args.input_size[0] if args.input_size is not None else 3


def fraction_to_hold_out(args: argparse.Namespace) -> float | None:
    """Part of the training images to hold out: as given, else a tenth if a folder lacks the evaluation split."""
    if args.dataset in BENCHMARKS and args.val_split in ('train', 'training'):
        raise ValueError(
            f'--val-split {args.val_split} would evaluate {args.dataset} on its training images: leave it out to '
            'evaluate on the test images, or give --val-fraction to hold out a part of the training images.')
    if (
            args.val_split and not args.val_fraction and not args.folds and args.dataset in FOLDER_DATASETS
            and args.data_dir and not has_split(args.data_dir, args.val_split)
    ):
        _logger.info(f'{args.data_dir} has no {args.val_split!r} split.')
        _warn_of_unused_splits(args)
        return DEFAULT_VAL_FRACTION
    return args.val_fraction


def _unused_folders(args: argparse.Namespace) -> list[str]:
    """Folders beside that of the training split; none if the folder of the data has no splits."""
    train = split_folder(args.data_dir, args.train_split)
    if train is None:
        return []
    return [name for name in subfolders(args.data_dir) if not name.startswith('_') and name != os.path.basename(train)]


def _warn_of_unused_splits(args: argparse.Namespace) -> None:
    unused = _unused_folders(args)
    splits = [name for name in unused if name.lower() in SPLIT_NAMES]
    if unused:
        _logger.warning(f'{args.data_dir} also holds {", ".join(unused)}, which is not used. ' + (
            f'Evaluate on it with --val-split {splits[0]}.' if splits else
            f'If these are classes beside a class {args.train_split!r}, give the folder of that class another name.'))


def say_what_folds_leave_out(args: argparse.Namespace) -> None:
    """Log that `--folds` deals the training images alone, if the folder of the data has other splits too."""
    if args.dataset not in FOLDER_DATASETS or not args.data_dir:
        return
    if unused := _unused_folders(args):
        _logger.warning(
            f'--folds deals the images of the {args.train_split!r} split; those in {", ".join(unused)} of '
            f'{args.data_dir} are not used. To deal all images, put them into one folder for each class, without '
            'folders for the splits.')
