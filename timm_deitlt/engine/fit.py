"""Epochs of a run: train, evaluate, write, save."""
import inspect
import logging
import time
from typing import Any

from timm.utils import unwrap_model

from ..models.weights import load_weights
from ..optim.layout import match_layout
from ..settings.resolved import ScheduleSettings, Settings
from .progress import Progress
from .run_folder import RunFolder
from .summary import epoch_report, summary_row
from .trainer import Trainer

_logger = logging.getLogger(__name__)


def checkpoint_state(trainer: Trainer, epoch: int, settings: Settings, record: dict[str, Any]) -> dict[str, Any]:
    """State after a finished epoch with timm's keys, and the entries of `record` (data, experts)."""
    state = {
        'epoch': epoch,
        'arch': settings.model.name,
        'args': settings.namespace(),
        'sources': dict(settings.sources),
        'optimizer': trainer.optimizer.state_dict(),
        **trainer.task.get_checkpoint_state(),
        **trainer.task.get_checkpoint_state(ema=True),
        **record,
    }
    if trainer.scaler is not None:
        state['amp_scaler'] = trainer.scaler.state_dict()
    return state


def restore(trainer: Trainer, checkpoint: dict[str, Any], source: str, with_optimizer: bool = True) -> int:
    """Load a checkpoint into a trainer, before DDP wraps its task.

    The optimizer keeps the options of the trainer, because a run that branches off may change --weight-decay or --rho.

    Returns:
        The 0-based epoch to continue with.

    Raises:
        ValueError: If the checkpoint is of another architecture or optimizer.
    """
    task = trainer.task
    load_weights(unwrap_model(task.get_eval_model()), checkpoint['state_dict'], source)
    task.load_task_state(checkpoint.get('task_state'))
    if task.has_ema():
        ema: Any = task.get_trainable_module(ema=True)
        weights = checkpoint.get('state_dict_ema')
        if weights is None:
            _logger.info(f'{source} holds no EMA: the EMA starts from the weights.')
            ema.set(unwrap_model(task.get_trainable_module()))
        else:
            load_weights(unwrap_model(task.get_eval_model(ema=True)), weights, f'the EMA of {source}')
            task.load_task_state(checkpoint.get('task_state_ema'), ema=True)
    if with_optimizer:
        names = _options(trainer.optimizer)
        if trainer.scheduler is None:  # else the schedule sets the learning rate
            names.add('lr')
        options = [
            {name: group[name] for name in names if name in group} for group in trainer.optimizer.param_groups]
        try:
            saved = checkpoint['optimizer']
            # set before loading, because `fused` decides on which device torch puts the step counts
            groups = [{**group, **own} for group, own in zip(saved['param_groups'], options, strict=True)]
            for old, new in zip(saved['param_groups'], groups, strict=True):
                for name in ('amsgrad', 'centered'):
                    if new.get(name) and not old.get(name):
                        raise ValueError(f'{name} needs averages that the state lacks')
            trainer.optimizer.load_state_dict({**saved, 'param_groups': groups})
        except (KeyError, ValueError) as error:
            raise ValueError(
                f'The optimizer state of {source} does not fit {type(trainer.optimizer).__name__}: give --opt, its '
                'options and --guidance as they were, or --no-resume-opt to start with a new optimizer '
                'state.') from error
        match_layout(trainer.optimizer)
        if trainer.scaler is not None and 'amp_scaler' in checkpoint:
            trainer.scaler.load_state_dict(checkpoint['amp_scaler'])
    start_epoch = checkpoint['epoch'] + 1
    if trainer.scheduler is not None:
        if trainer.scheduler.t_in_epochs:
            trainer.scheduler.step(start_epoch)
        else:
            trainer.scheduler.step_update(start_epoch * trainer.loader.updates_per_epoch)
    return start_epoch


def _options(optimizer: Any) -> set[str]:
    """Options of parameter groups that flags set: the arguments of the optimizer, and not what it counts there."""
    kinds = {type(optimizer), type(getattr(optimizer, 'base_optimizer', optimizer))}
    return {name for kind in kinds for name in inspect.signature(kind).parameters} - {'params', 'lr'} | {'lr_scale'}


def end_epoch(trainer: Trainer, schedule: ScheduleSettings) -> int:
    """First 0-based epoch that is not trained, by the schedule or `--stop-epoch`."""
    return min(trainer.epochs, schedule.stop_epoch or trainer.epochs)


def fit(
        trainer: Trainer,
        folder: RunFolder,
        settings: Settings,
        record: dict[str, Any],
        start_epoch: int = 0,
        title: str = 'train',
) -> dict[str, Any] | None:
    """Train from `start_epoch` to the end of the schedule, or to `--stop-epoch`.

    After each epoch a row is added to summary.csv. Every `--save-interval` epochs and after the last, last.pth.tar is
    saved. The evaluation runs every `--val-interval` epochs and after the last. The state at the DRW start and after
    each of `--save-epochs` is kept as a milestone.

    Returns:
        Metrics of the last epoch under 'experts' and, with an EMA, 'ema'; None without evaluation images.
    """
    schedule, loader = settings.schedule, trainer.loader
    end = end_epoch(trainer, schedule)
    with_ema = trainer.task.has_ema() and not settings.machine.model_ema_force_cpu
    progress = Progress(
        title, end, start_epoch, loader.updates_per_epoch, loader.images_per_epoch / loader.updates_per_epoch,
        settings.output.log_interval, folder.primary)
    milestones = {trainer.drw_start_epoch, *(schedule.save_epochs or ())}
    metrics = None
    if trainer.eval_loader is not None and start_epoch >= end:
        metrics = _evaluate(trainer, with_ema)
    try:
        with progress:
            for epoch in range(start_epoch, end):
                progress.begin(epoch)
                trained = trainer.train_one_epoch(epoch, progress)
                trainer.end_epoch(epoch)
                final = epoch + 1 == end
                began = time.perf_counter()
                metrics = None
                if trainer.eval_loader is not None and ((epoch + 1) % schedule.val_interval == 0 or final):
                    metrics = _evaluate(trainer, with_ema)
                folder.add_row(summary_row(epoch, trained, time.perf_counter() - began, metrics))
                milestone = epoch + 1 in milestones
                if (epoch + 1) % schedule.save_interval == 0 or final or milestone:
                    folder.save(checkpoint_state(trainer, epoch, settings, record), milestone)
                progress.line(epoch_report(trainer, title, epoch, trained, metrics))
    finally:
        trainer.graph = None  # which refers to the trainer: freed later, it could end another run's recording
    return metrics


def _evaluate(trainer: Trainer, with_ema: bool) -> dict[str, Any]:
    metrics = {'experts': trainer.evaluate()}
    if with_ema:
        metrics['ema'] = trainer.evaluate(ema=True)
    return metrics
