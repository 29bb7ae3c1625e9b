"""Data sets and loaders of a run, from its arguments."""
import argparse
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from timm.data import Mixup, create_transform
from torch.utils.data import IterableDataset

from ..benchmarks import BENCHMARKS, Benchmark
from ..data.augment import key_transform, train_transform, weak_transform
from ..data.factory import create_dataset, has_split
from ..data.loader import TrainLoader, create_eval_loader
from ..data.long_tail import holdout
from ..evaluation import Shots

_logger = logging.getLogger(__name__)

# Without a validation split this part of the training images is held out
DEFAULT_VAL_FRACTION = 0.1
# Names under which timm reads a folder of class folders
FOLDER_DATASETS = ('', 'folder', 'torch/image_folder', 'torch/folder')


@dataclass
class Data:
    """Data sets of a run and what is reported about them.

    Attributes:
        train: Training images.
        evaluation: Evaluation images, or None for none.
        evaluated_on: Words for what the evaluation images are.
        shots: Head, mid and tail classes.
        name: Name of the data set.
        imbalance_factor: n_max / n_min of the training images.
        split_seed: Seed of subset and hold-out.
    """
    train: Any
    evaluation: Any
    evaluated_on: str
    shots: Shots
    name: str
    imbalance_factor: float
    split_seed: int

    @property
    def bad_images(self) -> int:
        """Unreadable images that were replaced so far, see `--skip-bad-images`."""
        return sum(getattr(part, 'bad_images', 0) for part in (self.train, self.evaluation))

    def describe(self, test_counts: Sequence[int]) -> dict[str, Any]:
        """JSON record of the data."""
        return {
            'name': self.name,
            'imbalance_factor': self.imbalance_factor,
            'train_counts': list(self.train.class_counts),
            'test_counts': [int(count) for count in test_counts],
            'class_names': list(self.train.class_names),
            'evaluated_on': self.evaluated_on,
            'split_seed': self.split_seed,
            'fingerprint': self.train.fingerprint,
        }


def build_data(args: argparse.Namespace, evaluate_split: str | None = None) -> Data:
    """Make training and evaluation sets; hold out a part of the training images where there is no other.

    The part held out is written into `args.val_fraction`. With `evaluate_split` the evaluation set is that split, even
    where a part of the training images was held out.
    """
    benchmark = BENCHMARKS.get(args.dataset)
    common = dict(
        root=args.data_dir,
        split_seed=args.split_seed,
        list_dir=args.list_dir,
        download=args.dataset_download,
        skip_bad_images=args.skip_bad_images,
        input_img_mode=args.input_img_mode or ('L' if input_channels(args) == 1 else 'RGB'),
        class_map=args.class_map or None,
        input_key=args.input_key,
        target_key=args.target_key,
        trust_remote_code=args.dataset_trust_remote_code,
        seed=args.seed,
        batch_size=args.batch_size,
    )
    train = create_dataset(
        args.dataset,
        split=args.train_split,
        imbalance_factor=args.imbalance_factor,
        profile=args.imbalance_profile,
        n_max=args.n_max,
        class_counts_file=args.class_counts,
        num_samples=args.train_num_samples,
        is_training=True,
        **common,
    )
    evaluation, evaluated_on = None, _evaluated_on(benchmark, args.val_split)
    fraction = args.val_fraction = _fraction_to_hold_out(args, isinstance(train, IterableDataset))
    if fraction:
        train, evaluation, small = holdout(train, fraction, args.split_seed)
        evaluated_on = f'{100 * fraction:g} % of the training images, held out'
        _logger.info(
            f'Holding out {len(evaluation)} of {len(train) + len(evaluation)} training images for evaluation, class by '
            'class; they are never trained on.')
        if small:
            names = ', '.join(train.class_names[label] for label in small[:10])
            _logger.warning(f'{len(small)} class(es) are too small to hold out an image and are not evaluated: {names}')
    if evaluate_split or (args.val_split and not fraction):
        evaluated_on = f'split {evaluate_split!r}' if evaluate_split else evaluated_on
        evaluation = create_dataset(
            args.dataset,
            split=evaluate_split or args.val_split,
            num_samples=args.val_num_samples,
            is_training=False,
            class_counts_file=args.class_counts,
            class_names=train.class_names,
            **common,
        )
    if args.num_classes not in (None, train.num_classes):
        raise ValueError(
            f'--num-classes {args.num_classes} differs from the {train.num_classes} classes of the data set; leave the '
            'flag out.')
    _check_channels(args, common['input_img_mode'])
    counts = list(train.class_counts)
    return Data(
        train=train,
        evaluation=evaluation,
        evaluated_on=evaluated_on,
        shots=Shots.from_counts(counts, benchmark.shot_boundaries if benchmark else None),
        name=args.dataset or str(args.data_dir),
        imbalance_factor=max(counts) / min(counts),
        split_seed=args.split_seed,
    )


def _evaluated_on(benchmark: Benchmark | None, split: str) -> str:
    if benchmark is None:
        return f'split {split!r}'
    # the public evaluation set of iNaturalist-2018 is its validation part, ImageNet-LT has both
    return 'the test images' if split == 'test' or not benchmark.files else 'the validation images'


def _fraction_to_hold_out(args: argparse.Namespace, iterable: bool) -> float | None:
    """Part of the training images to evaluate on: as given, else a tenth of a folder without the evaluation split."""
    fraction = args.val_fraction
    if args.dataset in BENCHMARKS and args.val_split in ('train', 'training'):
        raise ValueError(
            f'--val-split {args.val_split} would evaluate {args.dataset} on its training images: leave it out for '
            'the test images, or give --val-fraction to hold a part of the training images out.')
    if (
            args.val_split and not fraction and args.dataset in FOLDER_DATASETS and args.data_dir
            and not has_split(args.data_dir, args.val_split)
    ):
        fraction = DEFAULT_VAL_FRACTION
        _logger.info(f'{args.data_dir} has no {args.val_split!r} split.')
    if iterable and (fraction or args.aug_repeats):
        flag = '--val-fraction' if fraction else '--aug-repeats'
        raise ValueError(
            f'{flag} needs images that can be indexed, but {args.dataset!r} is read as a stream. Leave {flag} out'
            f'{", and give a --val-split" if fraction else ""}.')
    return fraction


def _check_channels(args: argparse.Namespace, mode: str) -> None:
    channels = input_channels(args)
    if len(Image.new(mode, (1, 1)).getbands()) != channels:
        raise ValueError(
            f'Images of mode {mode} do not have {channels} channels (--in-chans): give --input-img-mode, such as L for '
            '1, RGB for 3, RGBA for 4.')


def input_channels(args: argparse.Namespace) -> int:
    """Channels of the input images."""
    if args.in_chans is not None:
        return args.in_chans
    return args.input_size[0] if args.input_size is not None else 3


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


def build_train_transform(args: argparse.Namespace, config: dict[str, Any]) -> Callable:
    """The training transform, from a PIL image to uint8 `[C, H, W]`.

    Raises:
        ValueError: If timm cannot make it of the augmentation settings.
    """
    try:
        return train_transform(
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
        )
    except (AssertionError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f'timm cannot make the training transform ({error or type(error).__name__}): look at --aa {args.aa}, '
            f'--scale {args.scale} and --ratio {args.ratio} (two numbers each).') from error


def accumulation_steps(args: argparse.Namespace, world_size: int = 1) -> int:
    """Micro-batches of each device in an update.

    Raises:
        ValueError: If the global batch is not a whole number of micro-batches on that many devices.
    """
    if args.global_batch_size is None:
        return args.grad_accum_steps
    per_step = args.batch_size * world_size
    steps, rest = divmod(args.global_batch_size, per_step)
    if rest or not steps:
        raise ValueError(
            f'An update of {args.global_batch_size} images (--global-batch-size) cannot be cut into micro-batches of '
            f'{args.batch_size} (--batch-size) on {world_size} device(s): give a multiple of {per_step}, or another '
            '--batch-size.')
    if args.grad_accum_steps not in (1, steps):
        raise ValueError(
            f'--global-batch-size {args.global_batch_size} makes {steps} accumulation step(s) of {args.batch_size} '
            f'images on {world_size} device(s), but --grad-accum-steps is {args.grad_accum_steps}: leave one of them '
            'out.')
    return steps


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
    views = [build_train_transform(args, config)]
    common = dict(interpolation=config['interpolation'], hflip=args.hflip, vflip=args.vflip)
    if second_view == 'weak':
        views.append(weak_transform(config['input_size'], **common))
    elif second_view == 'key':
        views.append(key_transform(
            config['input_size'],
            scale=tuple(args.key_scale),
            color_jitter=tuple(args.key_color_jitter),
            color_jitter_prob=args.key_color_jitter_prob,
            **common,
        ))
    return TrainLoader(
        data.train,
        views,
        config['mean'],
        config['std'],
        batch_size=args.batch_size,
        grad_accum_steps=accumulation_steps(args, world_size),
        world_size=world_size,
        rank=rank,
        repeats=args.aug_repeats,
        even=build_mixup(args, 2) is not None,
        seed=args.seed,
        workers=args.workers,
        pin_memory=args.pin_mem,
        device=device,
        dtype=dtype,
    )


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
    transform = create_transform(
        config['input_size'], is_training=False, interpolation=config['interpolation'], crop_pct=config['crop_pct'],
        crop_mode=config.get('crop_mode'), use_prefetcher=True)
    return create_eval_loader(
        dataset, transform, config['mean'], config['std'], args.validation_batch_size or args.batch_size, args.workers,
        world_size, rank, args.pin_mem, device, dtype)
