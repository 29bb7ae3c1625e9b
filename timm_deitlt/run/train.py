"""Training as a function: what train.py and the tests call."""
import argparse
import importlib
import json
import logging
import time
from typing import Any

import torch
from timm.utils.distributed import init_distributed_device_so, world_info_from_env

from ..engine.checkpoint import check_checkpoint
from ..engine.fit import end_epoch, fit, restore
from ..engine.progress import doing
from ..engine.run_folder import RunFolder, seconds_of, service_tracker, tensorboard_tracker
from ..engine.speed import choose_speed, speed_before
from ..engine.trainer import Trainer
from ..models.weights import load_weights
from ..settings.checks import validate_args
from ..settings.layers import args_to_yaml, describe_defaults
from ..settings.resolved import Settings
from ..utils.versions import plain_json, versions
from .advice import named_counts, too_few_updates
from .build.data import Data, build_data
from .build.model import check_student
from .build.normalisation import measured_settings
from .build.trainer import build_trainer
from .dry_run import dry_run
from .finish import check_run, discard_findings, finish_run
from .look_ahead import look_ahead
from .results import final_table, run_record, run_result
from .settings import resolve_settings
from .start import Start, claim, find_start, report_changes
from .train_teacher import evaluate_teacher, resolve_teacher

_logger = logging.getLogger(__name__)


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Train as the flags of `settings.layers.parse_args` say: first the teacher if there is none yet, then the model.

    Returns:
        The content of metrics.json; with `--dry-run` that of `dry_run`.

    Raises:
        ValueError: If a setting, a file or the data is not usable; raised before anything is trained.
        FileNotFoundError: If a file or folder is missing.
        NonFiniteLossError: If training diverges.
    """
    began = time.perf_counter()
    validate_args(args)
    _import_modules(args)
    if args.dry_run:
        return dry_run(args)
    _, rank, world_size = world_info_from_env()
    settings = resolve_settings(args, world_size, rank)
    primary = settings.machine.rank == 0
    if primary and settings.output.log_wandb:
        _log_in_to_wandb()
    _logger.info(describe_defaults(settings.flags, settings.sources))
    if settings.loader.processes < args.workers:
        _logger.info(f'{settings.loader.processes} loader processes, one for each core, instead of {args.workers}.')
    start = find_start(settings)
    data = build_data(settings)
    settings = measured_settings(settings, data)
    _logger.info(_describe_data(data))
    _check(settings, start, data)
    with doing('reading the images'):
        data.hold(settings.data.cache_images, settings.loader.processes)
    if primary:
        with doing('timing a step'):
            _logger.info(look_ahead(settings, data, start))
        _warn_of_few_updates(settings, data)
    with doing('waiting for the teacher that another process trains'):
        teacher = resolve_teacher(settings, data)
    device = torch.device(init_distributed_device_so(settings.machine.device)['device'])
    teacher_metrics = evaluate_teacher(settings, teacher, data, device) if teacher else None
    trainer = build_trainer(
        settings, data, teacher.model if teacher else None, device, teacher.logit_scale if teacher else 1.)
    speed = _go_on(trainer, settings, start)
    folder = _open_folder(settings, start)
    trainer.image_folder = folder.path if settings.output.save_images and primary else None
    distribute(trainer, settings, device)
    metrics = fit(trainer, folder, settings, run_record(trainer, settings, data, speed), start.epoch)
    if start.resumes and start.epoch >= end_epoch(trainer, settings.schedule):
        _keep_answer(folder, settings, start)
    earlier = seconds_of(row for row in folder.rows if int(row['epoch']) < start.epoch)
    seconds = earlier + time.perf_counter() - began
    result = plain_json(run_result(settings, data, trainer, folder, metrics, teacher, teacher_metrics, seconds))
    folder.save_metrics(result)
    folder.close()
    _logger.info('\n' + final_table(result, data.shots))
    if data.bad_images:
        _logger.warning(f'{data.bad_images} unreadable image(s) were replaced by others of their class.')
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if primary and settings.output.report:
        with doing('measuring the mechanisms and writing the report'):
            finish_run(folder.path, str(device))
    elif primary:
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
        try:
            if wanted:
                importlib.import_module(module)
        except ImportError as error:
            raise ValueError(f'--log-{module} needs {module}: pip install {package} ({error}).') from error


def _log_in_to_wandb() -> None:
    # now, because on a terminal W&B asks for a key and waits for it
    wandb = importlib.import_module('wandb')
    try:
        wandb.login()
    except wandb.Error as error:
        raise ValueError(
            f'--log-wandb: {error} Log in by "wandb login", or set WANDB_MODE=offline to upload later.') from error


def _check(settings: Settings, start: Start, data: Data) -> None:
    """Fail now, not after hours of training the teacher."""
    train = data.train
    student = check_student(settings, train.num_classes, train.class_counts)
    _logger.info(_describe_stages(settings))
    if start.checkpoint is not None:
        check_checkpoint(
            start.checkpoint, start.source, settings.model.name, train.fingerprint, train.class_names)
        report_changes(start, settings)
        load_weights(student, start.checkpoint['state_dict'], start.source)


def _go_on(trainer: Trainer, settings: Settings, start: Start) -> dict[str, Any]:
    """Load the checkpoint that the run continues from, and choose the fastest options."""
    if start.checkpoint is not None:
        restore(trainer, start.checkpoint, start.source, with_optimizer=not settings.output.no_resume_opt)
    before = speed_before(start.checkpoint, settings.machine) if start.resumes else None
    chosen = (start.checkpoint or {}).get('speed', {})
    if start.resumes and before is None and chosen.get('on_device') and trainer.on_device is not None:
        _logger.warning(
            'The images of this run have been augmented on the device, as --auto-speed had chosen. The flags or the '
            'device are others now, so the random numbers may be others too; --augment-backend device keeps them.')
    with doing('trying what is fastest'):
        return choose_speed(trainer, settings, start.epoch, before)


def _open_folder(settings: Settings, start: Start) -> RunFolder:
    """Make the folder of the run and write what is known before training."""
    primary = settings.machine.rank == 0
    folder = RunFolder(start.path if settings.output.experiment or not primary else claim(start.path), primary)
    if start.checkpoint is not None:
        folder.rewind(start.epoch if start.resumes else 0)
        _logger.info(f'Going on with epoch {start.epoch} from {start.source}')
    if primary:
        discard_findings(folder.path)
        _add_trackers(folder, settings)
    folder.write('args.yaml', args_to_yaml(settings.namespace()))
    folder.write('versions.json', json.dumps(versions(), indent=2) + '\n')
    return folder


def _keep_answer(folder: RunFolder, settings: Settings, start: Start) -> None:
    """Let the checkpoint of a run that was only evaluated again name the answer that the run has now."""
    checkpoint: Any = start.checkpoint
    args = {**vars(checkpoint['args']), 'fusion': settings.output.fusion}
    sources = {name: source for name, source in checkpoint.get('sources', {}).items() if name != 'fusion'}
    if 'fusion' in settings.sources:
        sources['fusion'] = settings.sources['fusion']
    folder.save({**checkpoint, 'args': argparse.Namespace(**args), 'sources': sources})


def _add_trackers(folder: RunFolder, settings: Settings) -> None:
    output = settings.output
    if output.log_tensorboard:
        folder.trackers.append(tensorboard_tracker(folder.path))
    common: dict[str, Any] = dict(name=folder.path.name, config=dict(settings.flags))
    if output.log_trackio:
        folder.trackers.append(service_tracker('trackio', project='timm_deitlt', resume='allow', **common))
    if output.log_wandb:
        resume = dict(resume='must', id=output.wandb_resume_id) if output.wandb_resume_id else {}
        folder.trackers.append(service_tracker(
            'wandb', project=output.wandb_project, tags=list(output.wandb_tags), **resume, **common))


def distribute(trainer: Trainer, settings: Settings, device: torch.device) -> None:
    """Distribute the trainable module of a trainer over the ranks, if there are several."""
    if settings.machine.world_size > 1:
        trainer.task.prepare_distributed(
            device_ids=[device] if device.type == 'cuda' else None,
            **(dict(broadcast_buffers=False) if settings.machine.no_ddp_bb else {}),
        )


def _describe_stages(settings: Settings) -> str:
    stage_two, epochs, warmup = settings.stage_two, settings.schedule.epochs, settings.schedule.warmup_epochs
    if settings.loss.label_loss == 'paco':
        return 'One stage: PaCo re-balances by its class prior from the first epoch on.'
    if stage_two.start_epoch >= epochs:
        return (
            f'There is no stage two, which ends mixing and re-weights classes, in the {epochs} epochs of this run. To '
            'have one, lower --drw-start-epoch.')
    mixing = 'mixing goes on' if stage_two.keep_mixup else 'mixing and label smoothing end'
    prior = '' if settings.loss.cls_loss == 'ce' else f', {settings.loss.cls_loss} on CLS'
    words = (
        f'Stage two begins with epoch {stage_two.start_epoch + 1} of {epochs}: {mixing}, DRW on '
        f'{stage_two.targets}{prior}.')
    if warmup >= epochs:
        words += f' The warm-up of {warmup} epochs lasts the whole run: lower --warmup-epochs.'
    return words


def _describe_data(data: Data) -> str:
    counts = data.train.class_counts
    evaluation = 'no evaluation' if data.evaluation is None else f'evaluated on {data.evaluated_on}'
    return (
        f'{data.name}: {sum(counts)} training images of {len(counts)} classes '
        f'({named_counts(data.train.class_names, counts)}; imbalance factor '
        f'{data.imbalance_factor:.4g}), {evaluation}. {data.shots.rule}')


def _warn_of_few_updates(settings: Settings, data: Data) -> None:
    images, update = sum(data.train.class_counts), settings.loader.update_images
    if few := too_few_updates(settings.data.dataset, images, update, settings.schedule.epochs):
        _logger.warning(few)
