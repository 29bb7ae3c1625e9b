"""Teachers by name: the settings of their training, and the key under which they are cached.

A name is an architecture and a recipe: 'resnet32_sam' is a ResNet-32 trained by recipes/teachers/sam.yaml. The key is
made of everything that decides the weights, except for rounding. So a cached teacher is the one that would be trained.
"""
import argparse
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm

from ..benchmarks import tag_of
from ..models._timm import TimmModel
from ..settings.checks import validate_args
from ..settings.groups import NO_NETWORK, NOT_TRAINED
from ..settings.images import DataSettings
from ..settings.layers import TEACHER_RECIPES, recipes_for, resolve
from ..settings.resolved import Settings
from .build.data import Data
from .build.model import build_model
from .settings import resolve_settings

_logger = logging.getLogger(__name__)

# Increase it when the training code changes so that the same settings give other weights
FORMAT = 2
KINDS = tuple(kind for kind in TEACHER_RECIPES if kind != 'plain')
# Other names of the same recipes; they name the loss, LDAM, as those of PaCo do
ALIASES = {'ldam': 'plain', 'ldam_sam': 'sam'}

# Settings that a teacher takes over from its student: the data, and how it is loaded and evaluated
DATA_SETTINGS = (
    'dataset', 'data_dir', 'train_split', 'val_split', 'dataset_download', 'class_map', 'input_img_mode', 'input_key',
    'target_key', 'dataset_trust_remote_code', 'train_num_samples', 'val_num_samples', 'imbalance_factor',
    'imbalance_profile', 'n_max', 'split_seed', 'val_fraction', 'class_counts', 'list_dir', 'skip_bad_images',
    'in_chans', 'seed', 'device', 'amp', 'amp_dtype', 'pin_mem', 'workers', 'log_interval', 'val_interval',
    'save_interval', 'validation_batch_size', 'auto_speed',
)
# An in-distribution teacher also takes over the augmentation
AUGMENTATION_SETTINGS = (
    'no_aug', 'train_crop_mode', 'scale', 'ratio', 'hflip', 'vflip', 'color_jitter', 'color_jitter_prob', 'aa',
    'grayscale_prob', 'gaussian_blur_prob', 'aug_repeats', 'reprob', 'remode', 'recount', 'mixup', 'cutmix',
    'cutmix_minmax', 'mixup_prob', 'mixup_switch_prob', 'mixup_mode', 'mixup_off_epoch', 'smoothing',
    'train_interpolation', 'cutout', 'force_color_jitter', 'augment_backend', 'aug_ramp',
)
# For a network whose weights are read from a file: load no other weights before
NO_WEIGHTS = dict(pretrained=False, pretrained_path=None, initial_checkpoint='')
# Settings that the key leaves out. They cannot change the weights, with two exceptions. Some choose the images, but the
# key has a fingerprint of these. And --auto-speed may augment on a GPU, with other random numbers of one distribution
IRRELEVANT_SETTINGS = NOT_TRAINED | {
    'no_resume_opt', 'val_interval', 'save_epochs', 'teacher', 'teacher_checkpoint', 'teacher_epochs', 'teacher_rho',
    'teacher_view', 'teacher_normalize', 'teacher_antialias', 'kd_temperature', 'kd_token_distill_type',
    'teacher_source', 'task_loss_weight', 'distill_loss_weight', 'device_modules', 'amp', 'amp_dtype', 'val_split',
    'val_num_samples', 'sources', 'config', 'dataset', 'crop_pct', 'imbalance_factor', 'imbalance_profile', 'n_max',
    'split_seed', 'val_fraction', 'class_counts', 'list_dir', 'dry_run', 'dry_run_world_size', 'folds', 'fold',
    'fusion',
}


# Settings that were added after FORMAT was last increased. With these values the key leaves them out, so that teachers
# that were cached before are still found
YOUNGER_SETTINGS = {
    'sam_every': 1, 'augment_backend': 'pillow', 'train_img_sizes': None, 'train_size_probs': None,
    'train_size_schedule': 'constant', 'train_size_schedule_spread': .65, 'train_size_random_mix': .1,
    'guidance': 0., 'guidance_blocks': None, 'guidance_stages': None, 'guidance_end': 1., 'dense_distill': 0.,
    'logit_standardize': False, 'init': None, 'muon_hidden_only': False, 'aug_ramp': 0,
}


@dataclass
class Teacher:
    """A trained teacher.

    Attributes:
        model: The network in eval mode, its data configuration in `pretrained_cfg`.
        name: Name asked for.
        source: 'file', 'cache', 'hub' or 'trained'.
        path: Where its weights are: a file, a folder, or 'hf-hub:owner/name'.
        logit_scale: Factor that makes its outputs the logits of its loss.
    """
    model: TimmModel
    name: str
    source: str
    path: Path | str
    logit_scale: float = 1.


def split_name(name: str) -> tuple[str, str]:
    """Architecture and recipe of a teacher's name.

    Raises:
        ValueError: If no model has that name; the message suggests similar names.
    """
    base = name
    kind = 'plain'
    for suffix in sorted((*KINDS, *ALIASES), key=len, reverse=True):
        if name.endswith(f'_{suffix}'):
            base, kind = name.removesuffix(f'_{suffix}'), ALIASES.get(suffix, suffix)
            break
    for architecture in (f'{base}_cifar', base):
        if '.' in base and architecture != base:
            continue  # timm ignores what follows a tag, so it would accept this name
        if timm.is_model(architecture):
            return architecture, kind
    ours = [model.removesuffix('_cifar') for model in timm.list_models('*_cifar')]
    known = [*NO_NETWORK, *ours, *(f'{model}_{kind}' for model in ours for kind in KINDS)]
    known += [model if kind == 'plain' else f'{model}_{kind}' for model in timm.list_models()]
    near = get_close_matches(name, known, n=3)
    hint = f' Did you mean {" or ".join(near)}?' if near else ''
    raise ValueError(
        f'Unknown teacher {name!r}.{hint} A teacher is a model of timm, alone or followed by '
        f'{", ".join("_" + kind for kind in KINDS)}, such as resnet32_sam; or none, or labels.')


def benchmark_tag(data: DataSettings) -> str | None:
    """Key of `benchmarks.TAGS` for the images that the settings choose; None if they are no benchmark, or not all."""
    whole = not (data.split_seed or data.held_out or data.folds)
    usual = whole and data.n_max is None and data.imbalance_profile == 'exp'
    return tag_of(data.dataset, data.imbalance_factor) if usual else None


def teacher_settings(
        student: Settings,
        num_images: int,
        measured: Mapping[str, list[float]] | None = None,
        planned: bool = False,
) -> Settings:
    """Settings of the teacher's own training in one process: its recipe, on the student's data.

    Args:
        student: Settings of the student.
        num_images: Number of training images.
        measured: Mean and std of the training images, if they were measured.
        planned: Whether the run is only planned, see `resolve_settings`.

    Raises:
        ValueError: If the teacher's name is unknown, or a setting does not fit its recipe.
    """
    args = teacher_args(argparse.Namespace(**student.flags), num_images)
    vars(args).update(measured or {})
    validate_args(args)
    return resolve_settings(args, planned=planned)


def teacher_args(args: argparse.Namespace, num_images: int) -> argparse.Namespace:
    """Flags of a teacher's own training, made from the flags of its student."""
    architecture, kind = split_name(args.teacher)
    overrides = {name: getattr(args, name) for name in DATA_SETTINGS if getattr(args, name) is not None}
    overrides.update(model=architecture, teacher='none')
    if args.in_chans is None and args.input_size:
        overrides['in_chans'] = args.input_size[0]
    if overrides.get('in_chans', 3) not in (1, 3):  # the recipes have mean and std for 1 or 3 channels only
        overrides.update((name, getattr(args, name)) for name in ('mean', 'std') if getattr(args, name))
    if kind.startswith('strong'):  # None as well: the teacher leaves out what the student leaves out
        overrides.update((name, getattr(args, name)) for name in AUGMENTATION_SETTINGS)
    if args.teacher_epochs:
        overrides['epochs'] = args.teacher_epochs
    if args.teacher_rho is not None:
        overrides.update(rho=args.teacher_rho, rho_milestones=[], rho_values=[])
    settings = resolve(overrides, recipes_for(args.dataset, 'teacher', kind), prog='--teacher')
    if kind.startswith('strong') and args.aug_ramp:
        settings.aug_ramp = max(1, round(args.aug_ramp * settings.epochs / args.epochs))
    if settings.opt.startswith('sam'):
        settings.sam_every = args.sam_every
    elif args.sam_every > 1 and not args.opt.startswith('sam'):
        raise ValueError(
            f'--sam-every belongs to SAM, but {args.teacher} is trained by {settings.opt} and the student by '
            f'{args.opt}: give --teacher {split_name(args.teacher)[0].removesuffix("_cifar")}_sam, or leave '
            '--sam-every out.')
    if args.teacher_rho is not None and not settings.opt.startswith('sam'):
        raise ValueError(
            f'--teacher-rho is the radius of SAM, but {args.teacher} is trained by {settings.opt}: give --teacher '
            f'{split_name(args.teacher)[0].removesuffix("_cifar")}_sam, or leave --teacher-rho out.')
    if settings.sources['batch_size'].startswith('default'):
        _scale_batch(settings, num_images)
    return settings


def _scale_batch(settings: argparse.Namespace, num_images: int) -> None:
    # The published batch of 128 and its learning rate are for about a hundred updates an epoch. For a small set the
    # batch is halved until an epoch has 16 updates, and the learning rate is halved with it
    batch_size = settings.batch_size
    while batch_size > 16 and num_images / batch_size < 16:
        batch_size //= 2
    for rate in ('lr', 'warmup_lr'):
        if getattr(settings, rate):
            setattr(settings, rate, getattr(settings, rate) * batch_size / settings.batch_size)
    settings.batch_size = batch_size


def cache_key(
        flags: Mapping[str, Any],
        data_fingerprint: str,
        class_names: Sequence[str],
        images: Mapping[str, Any],
        precision: str,
) -> dict:
    """Everything that decides a teacher's weights, as plain JSON values.

    Args:
        flags: Flags of its training, see `Settings`.
        data_fingerprint: Fingerprint of its training images and their labels.
        class_names: Class names in order.
        images: Its data configuration, for the sizes, mean and std that the settings leave to the model.
        precision: Words for the precision of its training.
    """
    return json.loads(json.dumps({
        'format': FORMAT,
        'data': data_fingerprint,
        'class_names': list(class_names),
        'images': {name: images[name] for name in ('input_size', 'mean', 'std', 'interpolation')},
        'precision': precision,
        'settings': {
            name: value for name, value in sorted(flags.items())
            if name not in IRRELEVANT_SETTINGS and not (name in YOUNGER_SETTINGS and value == YOUNGER_SETTINGS[name])},
    }))


def teacher_key(teacher: Settings, data: Data) -> dict[str, Any]:
    """Key of a teacher with these settings, see `cache_key`."""
    images = build_model(teacher.model, data.train.num_classes).pretrained_cfg
    return cache_key(
        teacher.flags, data.train.fingerprint, data.train.class_names, images, teacher.machine.precision.words)


def key_sha256(key: dict) -> str:
    """SHA-256 of a key of `cache_key`."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
