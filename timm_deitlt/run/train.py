"""A run as functions: what train.py, validate.py and the tests call."""
import argparse
import importlib
import json
import logging
import os
import time
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from timm.models import safe_model_name
from timm.task.evaluator import evaluation_sample_limit
from timm.utils import init_distributed_device, unwrap_model
from timm.utils.distributed import world_info_from_env
from torch import nn

from ..engine.checkpoint import check_checkpoint, load_checkpoint
from ..engine.device import choose_device, local_device
from ..engine.fit import fit, restore
from ..engine.folder import RunFolder, tensorboard_tracker, trackio_tracker, wandb_tracker
from ..engine.progress import doing
from ..engine.speed import choose_speed, speed_before
from ..engine.trainer import Trainer, evaluate
from ..evaluation import ShotEvaluator, format_table
from ..models.weights import load_weights
from ..settings.checks import validate_args
from ..settings.layers import args_to_yaml, describe_defaults
from ..utils.versions import plain_json, versions
from .build.data import Data, build_data
from .build.loaders import build_eval_loader, update_size
from .build.model import build_model, check_student, drw_start, drw_targets
from .build.trainer import build_trainer, choose_precision, precision_words
from .dry_run import dry_run
from .finish import check_run, discard_findings, finish_run
from .look_ahead import look_ahead, teacher_key, teacher_settings
from .results import final_table, run_result
from .teacher_file import from_file, from_hub
from .teachers import NO_NETWORK, Teacher, cached_or_trained

_logger = logging.getLogger(__name__)

# Settings that may differ when a run goes on, without a word
NOT_OF_THE_RUN = {
    'experiment', 'branch_from', 'output', 'resume', 'device', 'workers', 'teacher_cache', 'data_dir', 'stop_epoch',
    'log_interval', 'validation_batch_size', 'log_tensorboard', 'log_wandb', 'log_trackio', 'save_images', 'pin_mem',
    'report', 'auto_speed', 'cache_images',
}


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Train by the settings of `settings.layers.parse_args`: the teacher where there is none yet, then the model.

    Returns:
        The content of metrics.json; with `--dry-run` that of `dry_run`.

    Raises:
        ValueError: If a setting, a file or the data is not usable; before anything is trained.
        FileNotFoundError: If a file or folder is missing.
        NonFiniteLossError: If training diverges.
    """
    start = time.perf_counter()
    validate_args(args)
    _import_modules(args)
    if args.dry_run:
        return dry_run(args)
    choose_device(args, plain=args.auto_speed == 'off')
    _logger.info(describe_defaults(args))
    primary = int(os.environ.get('RANK', os.environ.get('SLURM_PROCID', 0))) == 0
    checkpoint, source, path = _starting_point(args)
    update_size(args, world_info_from_env()[2])
    data = build_data(args)
    _logger.info(_describe_data(data))
    # what does not fit is an error before the teacher is trained
    student = check_student(args, data.train.num_classes, data.train.class_counts)
    _logger.info(_describe_stages(args))
    if checkpoint is not None:
        check_checkpoint(checkpoint, source, args.model, data.train.fingerprint, data.train.class_names)
        _report_changes(checkpoint, source, args)
        load_weights(student, checkpoint['state_dict'], source)
    del student
    with doing('reading the images'):
        data.hold(args.cache_images, args.workers)
    if primary:
        with doing('timing a step'):
            start_epoch = checkpoint['epoch'] + 1 if checkpoint and args.resume else 0
            _logger.info(look_ahead(args, data, path, start_epoch))
    with doing('waiting for the teacher that another process makes'):
        teacher = resolve_teacher(args, data)
    device = init_distributed_device(args)
    teacher_metrics = evaluate_teacher(args, teacher, data, device) if teacher else None

    trainer = build_trainer(
        args, data, teacher.model if teacher else None, device, args.world_size, args.rank,
        teacher.logit_scale if teacher else 1.)
    start_epoch = 0
    if checkpoint is not None:
        start_epoch = restore(trainer, checkpoint, source, with_optimizer=not args.no_resume_opt)
    with doing('trying what is fastest'):
        speed = choose_speed(trainer, args, start_epoch, speed_before(checkpoint, args) if args.resume else None)
    folder = RunFolder(path if args.experiment or not primary else _claim(path), primary)
    if checkpoint is not None:
        folder.rewind(start_epoch if args.resume else 0)
        _logger.info(f'Going on with epoch {start_epoch} from {source}')
    if primary:
        discard_findings(folder.path)
    folder.write('args.yaml', args_to_yaml(args))
    folder.write('versions.json', json.dumps(versions(), indent=2) + '\n')
    _add_trackers(folder, args)
    trainer.image_folder = folder.path if args.save_images and primary else None
    distribute(trainer, args, device)
    record = {**_record(trainer, args, data, device), 'speed': speed}
    metrics = fit(trainer, folder, args, record, start_epoch)
    result = plain_json(run_result(
        args, data, trainer, folder, metrics, teacher, teacher_metrics, time.perf_counter() - start))
    folder.save_metrics(result)
    _logger.info('\n' + final_table(result, data.shots))
    if data.bad_images:
        _logger.warning(f'{data.bad_images} unreadable image(s) were replaced by others of their class.')
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if primary:
        if args.report:
            with doing('measuring the mechanisms and writing the report'):
                finish_run(folder.path, args.device)
        else:
            check_run(folder.path)
    _logger.info(f'Everything is in {folder.path}')
    return result


def _import_modules(args: argparse.Namespace) -> None:
    try:
        for module in args.device_modules or ():
            importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f'--device-modules: {error}; install it or correct the name.') from error
    for wanted, module, package in (
            (args.log_tensorboard, 'tensorboard', "'timm_deitlt[report]'"), (args.log_wandb, 'wandb', 'wandb'),
            (args.log_trackio, 'trackio', 'trackio')):
        if wanted and not find_spec(module):
            raise ValueError(f'--log-{module} needs {module}: pip install {package}.')


def _starting_point(args: argparse.Namespace) -> tuple[dict[str, Any] | None, str, Path]:
    """Checkpoint to start from, its name for messages, and the folder of the run."""
    root = Path(args.output)
    name = args.experiment
    if args.resume == 'auto':
        if not name:
            raise ValueError('--resume auto looks for the run of an --experiment NAME in --output: give its name.')
        path = root / name
        _check_writable(path)
        last = path / 'last.pth.tar'
        if not last.is_file():
            _logger.info(f'There is no {last} yet: starting from the beginning.')
            return None, '', path
        return load_checkpoint(last), str(last), path
    if not name:
        size = args.img_size or (args.input_size[-1] if args.input_size else None)
        name = '-'.join([
            datetime.now().strftime('%Y%m%d-%H%M%S'), safe_model_name(args.model), *([str(size)] if size else [])])
    path = root / name
    _check_writable(path)
    if (path / 'last.pth.tar').exists() and not args.resume:
        raise ValueError(
            f'{path} holds a run already: go on with it by --resume auto, or give another --experiment.')
    source = args.resume or args.branch_from or ''
    return (load_checkpoint(source) if source else None), source, path


def _claim(path: Path) -> Path:
    """Make the folder of a dated run; another run of the same second has another one."""
    for number in range(1, 1000):
        folder = path if number == 1 else path.with_name(f'{path.name}-{number}')
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
    raise ValueError(f'{path} and 998 more exist: give an --experiment name.')


def _check_writable(folder: Path) -> None:
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
    if not os.path.isdir(existing) or not os.access(existing, os.W_OK):
        raise ValueError(
            f'The run cannot be written to {folder}, as {existing} is no folder that can be written to: give another '
            '--output.')


def _report_changes(checkpoint: dict[str, Any], source: str, args: argparse.Namespace) -> None:
    before, now = vars(checkpoint['args']), vars(args)
    changed = [
        f'{name} {before[name]} -> {now[name]}' for name in sorted(now)
        if name in before and before[name] != now[name] and name not in NOT_OF_THE_RUN
    ]
    if args.drw_start_epoch is None and drw_start(args) != drw_start(checkpoint['args']):
        changed.append(f'start of stage two {drw_start(checkpoint["args"])} -> {drw_start(args)}')
    sizes = [update_size(x, world)[1] for x, world in (
        (checkpoint['args'], getattr(checkpoint['args'], 'world_size', 1)), (args, world_info_from_env()[2]))]
    if sizes[0] != sizes[1]:
        changed.append(f'images in an update {sizes[0]} -> {sizes[1]}')
    if args.branch_from:
        _logger.info(f'Branching from {source} after epoch {checkpoint["epoch"]}; changed: {"; ".join(changed) or "-"}')
    elif changed:
        _logger.warning(f'Not the run that {source} was: changed: {"; ".join(changed)}')


def resolve_teacher(args: argparse.Namespace, data: Data) -> Teacher | None:
    """The teacher network of `--teacher`: file, cache, Hub, or trained now; None for 'none' and 'labels'."""
    if args.teacher in NO_NETWORK:
        if args.teacher_checkpoint:
            raise ValueError(f'--teacher-checkpoint is given, but --teacher is {args.teacher}: name its architecture.')
        return None
    settings = teacher_settings(args, data)

    def create(settings: argparse.Namespace) -> nn.Module:
        return build_model(settings, data.train.num_classes)

    if args.teacher_checkpoint or args.teacher_source == 'hub':
        return from_file(args, settings, data, create)
    device = local_device(args)
    key = teacher_key(settings, data)
    return cached_or_trained(
        args, settings, key, lambda: create(settings), lambda: from_hub(args, key),
        lambda path: train_teacher(settings, data, path, device))


def train_teacher(settings: argparse.Namespace, data: Data, path: Path, device: torch.device) -> nn.Module:
    """Train a teacher in one process, going on with the checkpoint in its folder."""
    start = time.perf_counter()
    _logger.info(f'Training the teacher {settings.model} ({settings.opt}, {settings.loss}) in {path}')
    _logger.info(describe_defaults(settings))
    folder = RunFolder(path)
    trainer = build_trainer(settings, data, None, device)
    start_epoch = 0
    before = None
    if folder.last.is_file():
        checkpoint = load_checkpoint(folder.last)
        start_epoch, before = restore(trainer, checkpoint, str(folder.last)), speed_before(checkpoint, settings)
        folder.rewind(start_epoch)
        _logger.info(f'Going on with epoch {start_epoch} of the teacher')
    with doing('trying what is fastest'):
        speed = choose_speed(trainer, settings, start_epoch, before)
    folder.write('args.yaml', args_to_yaml(settings))
    record = {**_record(trainer, settings, data, device), 'speed': speed}
    metrics = fit(trainer, folder, settings, record, start_epoch, title='teacher')
    folder.save_metrics(plain_json(run_result(
        settings, data, trainer, folder, metrics, None, None, time.perf_counter() - start)))
    return unwrap_model(trainer.task.get_eval_model())


def evaluate_teacher(args: argparse.Namespace, teacher: Teacher, data: Data, device: torch.device) -> dict[str, Any]:
    """The teacher's own accuracy on the evaluation images as it was trained to see them."""
    if data.evaluation is None:
        return {}
    model = teacher.model.to(device)
    loader = build_eval_loader(
        args, data.evaluation, model.pretrained_cfg, device, getattr(args, 'world_size', 1), getattr(args, 'rank', 0))
    evaluator = ShotEvaluator(
        data.shots, experts=('cls',), device=device, max_samples=evaluation_sample_limit(loader))
    autocast, _, _ = choose_precision(args, device)
    metrics = evaluate(model, loader, evaluator, autocast, distributed=getattr(args, 'distributed', False))['cls']
    _logger.info('\n' + format_table({'teacher': metrics}, data.shots, evaluator.test_counts))
    return metrics


def distribute(trainer: Trainer, args: argparse.Namespace, device: torch.device) -> None:
    """Distribute the trainable module of a trainer over the ranks, where there are several."""
    if args.distributed:
        trainer.task.prepare_distributed(
            device_ids=[device] if device.type == 'cuda' else None,
            **(dict(broadcast_buffers=False) if args.no_ddp_bb else {}),
        )


def _record(trainer: Trainer, args: argparse.Namespace, data: Data, device: torch.device) -> dict[str, Any]:
    """What a checkpoint says beside the state of training."""
    return {
        'experts': list(trainer.task.experts), 'data': data.describe(_test_counts(data)),
        'precision': precision_words(args, device)}


def _add_trackers(folder: RunFolder, args: argparse.Namespace) -> None:
    if not folder.primary:
        return
    if args.log_tensorboard:
        folder.trackers.append(tensorboard_tracker(folder.path))
    config = {name: value for name, value in vars(args).items() if name != 'sources'}
    if args.log_trackio:
        folder.trackers.append(trackio_tracker(folder.path.name, config))
    if args.log_wandb:
        folder.trackers.append(wandb_tracker(
            args.wandb_project, folder.path.name, config, args.wandb_tags, args.wandb_resume_id))


def _test_counts(data: Data) -> list[int]:
    return list(getattr(data.evaluation, 'class_counts', [])) if data.evaluation is not None else []


def _describe_stages(args: argparse.Namespace) -> str:
    start = drw_start(args)
    if args.loss == 'paco':
        return 'One stage: PaCo re-balances by its class prior from the first epoch on.'
    if start >= args.epochs:
        return (
            f'Stage two, which ends mixing and re-weights classes, would begin after {start} epochs: this run of '
            f'{args.epochs} never reaches it. Give --drw-start-epoch.')
    target = drw_targets(args, args.teacher not in NO_NETWORK)
    mixing = 'mixing goes on' if args.keep_mixup_drw else 'mixing and label smoothing end'
    prior = '' if args.cls_loss == 'ce' else f', {args.cls_loss} on CLS'
    words = f'Stage two begins with epoch {start + 1} of {args.epochs}: {mixing}, DRW on {target}{prior}.'
    if args.warmup_epochs >= args.epochs:
        words += f' The warm-up of {args.warmup_epochs} epochs lasts the whole run: lower --warmup-epochs.'
    return words


def _describe_data(data: Data) -> str:
    counts = sorted(data.train.class_counts, reverse=True)
    shown = ', '.join(map(str, counts if len(counts) <= 12 else counts[:5])) + (
        f', ..., {counts[-1]}' if len(counts) > 12 else '')
    evaluation = 'no evaluation' if data.evaluation is None else f'evaluated on {data.evaluated_on}'
    return (
        f'{data.name}: {sum(counts)} training images of {len(counts)} classes ({shown}; imbalance factor '
        f'{data.imbalance_factor:.4g}), {evaluation}. {data.shots.rule}')
