"""How much time and disk space a run will take, found out before anything is trained."""
import gc
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..data.loader import MicroBatch
from ..engine import fit
from ..engine.checkpoint import LAST, load_checkpoint
from ..engine.device import local_device, return_freed_memory
from ..engine.progress import duration
from ..engine.speed import noise, synchronize
from ..engine.trainer import Trainer
from ..optim import SAM
from ..settings.resolved import Settings
from .build.data import Data
from .build.model import build_model
from .build.trainer import build_trainer
from .space import check_space
from .start import Start
from .teacher_cache import cache_folder, is_cached
from .teacher_settings import teacher_key, teacher_settings

# Seconds. A step this long is timed well enough; the time of a larger batch is scaled up from it
_LONG_ENOUGH = .5


def look_ahead(settings: Settings, data: Data, start: Start) -> str:
    """A sentence on how long a run will train, with the teacher's training if there is no teacher yet.

    One step of each is timed, on networks that are thrown away afterwards.

    Raises:
        ValueError: If the checkpoints do not fit on the disk, or the checkpoint to start from does not fit the run.
    """
    device = local_device(settings.machine.device)
    teacher = network = None
    seconds = {}
    with silenced():
        if settings.teacher.is_network:
            teacher = teacher_settings(settings, sum(data.train.class_counts), data.measured)
            network = build_model(teacher.model, data.train.num_classes)
        trainer = build_trainer(settings, data, network, device)
        check_space(settings, start.path, trainer, start.epoch)
        seconds['student' if teacher else 'model'] = expected_seconds(trainer, settings, start.epoch)
        if start.checkpoint is not None:
            # after the step, which would change the optimizer's state in the checkpoint itself
            fit.restore(trainer, start.checkpoint, start.source, with_optimizer=not settings.output.no_resume_opt)
        if teacher and not (settings.teacher.checkpoint or settings.teacher.source == 'hub'):
            key = teacher_key(teacher, data)
            if not is_cached(settings.teacher, key):
                folder = cache_folder(settings.teacher, key) / 'train'
                last = folder / LAST
                epoch = load_checkpoint(last)['epoch'] + 1 if last.is_file() else 0
                trainer = build_trainer(teacher, data, None, device)
                check_space(teacher, folder, trainer, epoch, '--teacher-cache')
                seconds['teacher'] = expected_seconds(trainer, teacher, epoch)
    del trainer, network
    gc.collect()  # an optimizer may be part of a reference cycle
    return_freed_memory()
    parts = ', '.join(f'{duration(part)} for the {name}' for name, part in sorted(seconds.items(), reverse=True))
    return f'Training will take about {duration(sum(seconds.values()))}, estimated from one timed step: {parts}.'


def expected_seconds(trainer: Trainer, settings: Settings, start_epoch: int = 0) -> float:
    """Seconds that training and evaluation will take, from `start_epoch` to the end.

    Args:
        trainer: A trainer that is thrown away afterwards, because its weights and optimizer state change.
        settings: Settings of the training.
        start_epoch: 0-based epoch to begin with.
    """
    epochs = min(trainer.epochs, settings.schedule.stop_epoch or trainer.epochs) - start_epoch
    if epochs <= 0:
        return 0.
    loader, optimizer = trainer.loader, trainer.optimizer
    batch = _batch_seconds(trainer, start_epoch)
    step = _timed(optimizer.base_optimizer.step if isinstance(optimizer, SAM) else optimizer.step, trainer)
    passes = 1 + isinstance(optimizer, SAM) / settings.optimizer.sam_every
    compute = loader.grad_accum_steps * batch * passes + step
    image = loader.seconds_per_image() / max(1, settings.loader.processes)
    load = image * loader.images_per_epoch / loader.updates_per_epoch / loader.world_size
    update = max(compute, load) if settings.loader.processes else compute + load
    seconds = epochs * loader.updates_per_epoch * update
    if trainer.eval_loader is not None:
        # a forward pass takes about a third of the time of forward and backward
        evaluated = len(trainer.eval_loader) * trainer.eval_loader.loader.batch_size
        models = 1 + (settings.machine.model_ema and not settings.machine.model_ema_force_cpu)
        evaluations = models * epochs / settings.schedule.val_interval
        seconds += evaluations * evaluated * (batch / loader.batch_size / 3 + image)
    return seconds


def _batch_seconds(trainer: Trainer, epoch: int) -> float:
    """Seconds of forward and backward of a micro-batch; if that takes long, scaled up from a smaller one."""
    trainer.task.train()
    trainer.task.set_epoch(epoch)
    trainer.augment.mixup_enabled = trainer.mixing(epoch)
    plan = MicroBatch(number=0, indices=(), weight=1., last=True)
    full = trainer.loader.batch_size
    size = min(8, full)
    while True:
        images, target = noise(trainer, size)
        seconds = _timed(lambda: trainer.forward_backward(epoch, plan, images.clone(), target), trainer)  # noqa: B023
        if size == full or seconds > _LONG_ENOUGH:
            return seconds * full / size
        size = min(full, 4 * size)


def _timed(step: Callable[[], Any], trainer: Trainer) -> float:
    """Shortest time of a call in seconds, over a few calls. The first is not counted, because it also allocates."""
    seconds: list[float] = []
    while len(seconds) < 2 or (len(seconds) < 5 and sum(seconds) < _LONG_ENOUGH):
        began = time.perf_counter()
        step()
        synchronize(trainer.task.device)
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


@contextmanager
def silenced() -> Iterator[None]:
    """Log only errors inside: what is built there is thrown away, and logs the same when it is built again."""
    levels = {logger: logger.level for logger in (logging.getLogger(__package__), logging.getLogger(fit.__name__))}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
