"""Teachers by name: from the cache, or trained now; `teacher_file` reads those of a file or of the Hub.

A name is an architecture and a recipe: 'resnet32_sam' is a ResNet-32 trained by recipes/teachers/sam.yaml. The cache is
keyed by a hash of everything that decides the weights but for rounding, so a cached teacher is the one that would be
trained.
"""
import argparse
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
import torch
from filelock import FileLock, Timeout
from timm.utils.distributed import world_info_from_env
from torch import nn

from ..benchmarks import tag_of
from ..models.weights import WEIGHTS, load_safetensors, load_weights, weights_file
from ..settings.layers import TEACHER_RECIPES, recipes_for, resolve
from ..utils.files import atomic_write, write_text

_logger = logging.getLogger(__name__)

# Raised when training code changes what the same settings give
FORMAT = 2
# Words of --teacher that name no network
NO_NETWORK = ('none', 'labels')
KINDS = tuple(kind for kind in TEACHER_RECIPES if kind != 'plain')
# Longer names of the same, which say LDAM beside PaCo
ALIASES = {'ldam': 'plain', 'ldam_sam': 'sam'}
RECORD = 'teacher.json'

# What a teacher takes over from the student's settings: its data and how often it is evaluated, ...
DATA_SETTINGS = (
    'dataset', 'data_dir', 'train_split', 'val_split', 'dataset_download', 'class_map', 'input_img_mode', 'input_key',
    'target_key', 'dataset_trust_remote_code', 'train_num_samples', 'val_num_samples', 'imbalance_factor',
    'imbalance_profile', 'n_max', 'split_seed', 'val_fraction', 'class_counts', 'list_dir', 'skip_bad_images',
    'in_chans', 'seed', 'device', 'amp', 'amp_dtype', 'pin_mem', 'workers', 'log_interval', 'val_interval',
    'validation_batch_size', 'auto_speed',
)
# ... and for an in-distribution teacher its augmentation
AUGMENTATION_SETTINGS = (
    'no_aug', 'train_crop_mode', 'scale', 'ratio', 'hflip', 'vflip', 'color_jitter', 'color_jitter_prob', 'aa',
    'grayscale_prob', 'gaussian_blur_prob', 'aug_repeats', 'reprob', 'remode', 'recount', 'mixup', 'cutmix',
    'cutmix_minmax', 'mixup_prob', 'mixup_switch_prob', 'mixup_mode', 'mixup_off_epoch', 'smoothing',
    'train_interpolation', 'cutout', 'force_color_jitter', 'augment_backend',
)
# A network whose weights are read from a file starts from no others
NO_WEIGHTS = dict(pretrained=False, pretrained_path=None, initial_checkpoint='')
# Settings that cannot change the weights, or only through the images chosen, of which the key holds a fingerprint
IRRELEVANT_SETTINGS = {
    'output', 'experiment', 'resume', 'no_resume_opt', 'branch_from', 'log_interval', 'log_wandb', 'log_trackio',
    'log_tensorboard', 'wandb_project', 'wandb_tags', 'wandb_resume_id', 'val_interval', 'validation_batch_size',
    'workers', 'pin_mem', 'save_images', 'save_epochs', 'stop_epoch', 'teacher', 'teacher_checkpoint',
    'teacher_cache', 'teacher_epochs', 'teacher_rho', 'teacher_view', 'teacher_normalize', 'teacher_antialias',
    'kd_temperature', 'kd_token_distill_type', 'teacher_source', 'task_loss_weight', 'distill_loss_weight', 'data_dir',
    'dataset_download', 'device', 'device_modules', 'amp', 'amp_dtype', 'val_split', 'val_num_samples', 'sources',
    'config', 'dataset', 'crop_pct', 'imbalance_factor', 'imbalance_profile', 'n_max', 'split_seed', 'val_fraction',
    'class_counts', 'list_dir', 'report', 'dry_run', 'dry_run_world_size', 'distributed', 'local_rank', 'rank',
    'world_size', 'auto_speed', 'cache_images',
}


# Settings younger than the format: with these values they are not in the key, which stays as it was
YOUNGER_SETTINGS = {
    'sam_every': 1, 'augment_backend': 'pillow', 'train_img_sizes': None, 'train_size_probs': None,
    'train_size_schedule': 'constant', 'train_size_schedule_spread': .65, 'train_size_random_mix': .1,
}


@dataclass
class Teacher:
    """A trained teacher.

    Attributes:
        model: The network in eval mode, its data configuration in `pretrained_cfg`.
        name: Name asked for.
        source: 'file', 'cache', 'hub' or 'trained'.
        path: Where its weights are, a file, a folder, or 'hf-hub:owner/name'.
        args: Settings it was trained with, as far as known.
    """
    model: nn.Module
    name: str
    source: str
    path: Path | str
    args: argparse.Namespace

    @property
    def logit_scale(self) -> float:
        """Factor that makes its outputs the logits of its loss: LDAM's scale, which is no part of the network."""
        return self.args.ldam_scale if self.args.loss == 'ldam' else 1.


def split_name(name: str) -> tuple[str, str]:
    """Architecture and recipe of a teacher's name.

    Raises:
        ValueError: If no model has that name; near matches are named.
    """
    base = name
    kind = 'plain'
    for suffix in sorted((*KINDS, *ALIASES), key=len, reverse=True):
        if name.endswith(f'_{suffix}'):
            base, kind = name.removesuffix(f'_{suffix}'), ALIASES.get(suffix, suffix)
            break
    for architecture in (f'{base}_cifar', base):
        if '.' in base and architecture != base:
            continue  # timm overlooks what follows a tag
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


def benchmark_tag(args: argparse.Namespace) -> str | None:
    """Key of `benchmarks.TAGS` for the images that the settings choose; None if they are not just that benchmark's."""
    usual = args.n_max is None and args.imbalance_profile == 'exp' and not args.split_seed and not args.val_fraction
    return tag_of(args.dataset, args.imbalance_factor) if usual else None


def teacher_args(args: argparse.Namespace, num_images: int) -> argparse.Namespace:
    """Settings of the teacher's own training: its recipe, on the student's data."""
    architecture, kind = split_name(args.teacher)
    overrides = {name: getattr(args, name) for name in DATA_SETTINGS if getattr(args, name) is not None}
    overrides.update(model=architecture, teacher='none')
    if args.in_chans is None and args.input_size:
        overrides['in_chans'] = args.input_size[0]
    if kind.startswith('strong'):  # what the student leaves out too
        overrides.update((name, getattr(args, name)) for name in AUGMENTATION_SETTINGS)
    if args.teacher_epochs:
        overrides['epochs'] = args.teacher_epochs
    if args.teacher_rho is not None:
        overrides.update(rho=args.teacher_rho, rho_milestones=[], rho_values=[])
    settings = resolve(overrides, recipes_for(args.dataset, 'teacher', kind), prog='--teacher')
    if settings.opt.startswith('sam'):
        settings.sam_every = args.sam_every
    elif args.sam_every > 1 and not args.opt.startswith('sam'):
        raise ValueError(
            f'--sam-every belongs to SAM, but {args.teacher} is trained by {settings.opt} and the student by '
            f'{args.opt}: give --teacher {split_name(args.teacher)[0].removesuffix("_cifar")}_sam, or leave it out.')
    if args.teacher_rho is not None and not settings.opt.startswith('sam'):
        raise ValueError(
            f'--teacher-rho is the radius of SAM, but {args.teacher} is trained by {settings.opt}: give --teacher '
            f'{split_name(args.teacher)[0].removesuffix("_cifar")}_sam, or leave it out.')
    if settings.sources['batch_size'].startswith('default'):
        _scale_batch(settings, num_images)
    return settings


def _scale_batch(settings: argparse.Namespace, num_images: int) -> None:
    # The published 128 images and learning rate are for some hundred updates an epoch; a small set still gets about
    # 16, at a learning rate linear in the batch
    batch_size = settings.batch_size
    while batch_size > 16 and num_images / batch_size < 16:
        batch_size //= 2
    for rate in ('lr', 'warmup_lr'):
        if getattr(settings, rate):
            setattr(settings, rate, getattr(settings, rate) * batch_size / settings.batch_size)
    settings.batch_size = batch_size


def cache_key(
        settings: argparse.Namespace,
        data_fingerprint: str,
        class_names: tuple[str, ...],
        images: Mapping[str, Any],
        precision: str,
) -> dict:
    """Everything that decides a teacher's weights, as plain JSON values.

    Args:
        settings: Settings of its training.
        data_fingerprint: Says which images it is trained on, and their labels.
        class_names: Class names in order.
        images: Its data configuration: size, mean and std, where the settings leave them to the model.
        precision: Words for the precision of its training.
    """
    return json.loads(json.dumps({
        'format': FORMAT,
        'data': data_fingerprint,
        'class_names': list(class_names),
        'images': {name: images[name] for name in ('input_size', 'mean', 'std', 'interpolation')},
        'precision': precision,
        'settings': {
            name: value for name, value in sorted(vars(settings).items())
            if name not in IRRELEVANT_SETTINGS and not (name in YOUNGER_SETTINGS and value == YOUNGER_SETTINGS[name])},
    }))


def key_sha256(key: dict) -> str:
    """Digest of a key of `cache_key`."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def cache_folder(args: argparse.Namespace, key: dict) -> Path:
    """Where the teacher of a key lies."""
    root = Path(args.teacher_cache).expanduser() if args.teacher_cache else Path.home() / '.cache' / 'timm_deitlt'
    architecture, kind = split_name(args.teacher)
    name = architecture.removesuffix('_cifar') + ('' if kind == 'plain' else f'_{kind}')
    return root / 'teachers' / f'{name}-{key_sha256(key)[:16]}'


def is_cached(args: argparse.Namespace, key: dict) -> bool:
    """Whether the teacher of a key is in the cache."""
    return (cache_folder(args, key) / RECORD).is_file()


def cached_or_trained(
        args: argparse.Namespace,
        settings: argparse.Namespace,
        key: dict,
        create: Callable[[], nn.Module],
        fetch: Callable[[], tuple[dict[str, torch.Tensor], str] | None],
        train: Callable[[Path], nn.Module],
) -> Teacher:
    """The teacher of a key from the cache, else fetched or trained now by one process under a lock.

    Args:
        args: The student's settings.
        settings: The teacher's settings.
        key: Its key, see `cache_key`.
        create: Makes the untrained network.
        fetch: Gets its weights and their id from where they are published, or None.
        train: Trains it in a folder, going on with a checkpoint that lies there, and returns the network.
    """
    folder = cache_folder(args, key)
    source, path = 'cache', folder / WEIGHTS
    while world_info_from_env()[0] and not (folder / RECORD).is_file():
        time.sleep(.5)  # the first rank of a machine trains, and shows how far it is
    if not (folder / RECORD).is_file():
        with _one_process(folder, args.teacher):
            if not (folder / RECORD).is_file():
                fetched = fetch()
                if fetched is None:
                    source, weights = 'trained', weights_file(train(folder / 'train').state_dict())
                else:
                    source, path = 'hub', fetched[1]
                    weights = weights_file(fetched[0])
                atomic_write(folder / WEIGHTS, lambda path: path.write_bytes(weights), len(weights))
                write_text(folder / RECORD, json.dumps(key, indent=2) + '\n')
    mend = f'Delete the folder {folder} to have the teacher trained anew, or give another --teacher-cache.'
    stored = read_record(folder / RECORD, mend)
    if stored != key:
        differing = ', '.join(sorted(name for name in {**key, **stored} if stored.get(name) != key.get(name)))
        raise ValueError(f'The cached teacher in {folder} was trained otherwise ({differing} differ). {mend}')
    # read back even if trained just now, so that a teacher is the same, memory layout included, wherever it comes from
    model = create()
    load_weights(model, load_safetensors(folder / WEIGHTS, mend), str(folder / WEIGHTS))
    return Teacher(model.eval(), args.teacher, source, path, settings)


@contextmanager
def _one_process(folder: Path, name: str) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # the operating system frees the lock of a process that died, so there is no stale one
        lock = FileLock(folder / '.lock')
        try:
            lock.acquire(timeout=0)
        except Timeout:
            _logger.warning(f'Another process is training the teacher {name} in {folder}: waiting for it.')
            lock.acquire()
    except OSError as error:
        raise ValueError(
            f'The teacher {name} cannot be kept in {folder} ({error.strerror}): give a folder that can be written to '
            'by --teacher-cache.') from error
    try:
        yield
    finally:
        lock.release()


def read_record(path: Path, mend: str) -> dict[str, Any]:
    """The key that a cached teacher was trained by."""
    try:
        record = json.loads(path.read_text())
    except ValueError:
        record = None
    if not isinstance(record, dict) or not {'data', 'class_names', 'settings'} <= record.keys():
        raise ValueError(f'{str(path)!r} is damaged. {mend}')
    return record
