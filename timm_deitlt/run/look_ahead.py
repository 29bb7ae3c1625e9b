"""What a run will take, in time and on the disk, found out before anything is trained."""
import argparse
import gc
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from timm.utils.distributed import world_info_from_env

from ..data.loader import MicroBatch
from ..engine.device import local_device, return_freed_memory
from ..engine.progress import duration
from ..engine.speed import noise, synchronize
from ..engine.trainer import Trainer
from ..optim import SAM
from ..settings.checks import validate_args
from .build.data import Data
from .build.model import build_model
from .build.trainer import build_trainer, precision_words
from .space import check_space
from .teachers import NO_NETWORK, cache_folder, cache_key, is_cached, teacher_args

# A step of so many seconds is long enough to be timed; a larger batch is in proportion
_LONG_ENOUGH = .5


def teacher_settings(args: argparse.Namespace, data: Data) -> argparse.Namespace:
    """Settings of the teacher's own training, checked."""
    settings = teacher_args(args, sum(data.train.class_counts))
    vars(settings).update(data.measured)
    validate_args(settings)
    return settings


def teacher_key(settings: argparse.Namespace, data: Data) -> dict[str, Any]:
    """What the teacher of these settings is kept by, see `cache_key`."""
    images = build_model(settings, data.train.num_classes).pretrained_cfg
    precision = precision_words(settings, local_device(settings))
    return cache_key(settings, data.train.fingerprint, data.train.class_names, images, precision)


def look_ahead(args: argparse.Namespace, data: Data, folder: Path, start_epoch: int) -> str:
    """How long a run will train, in words; the teacher's training is included where there is none yet.

    A step of student and of teacher is timed with networks that are thrown away.

    Raises:
        ValueError: If the checkpoints do not fit on the disk.
    """
    device, world_size = local_device(args), world_info_from_env()[2]
    settings = network = None
    seconds = {}
    with silenced():
        if args.teacher not in NO_NETWORK:
            settings = teacher_settings(args, data)
            network = build_model(settings, data.train.num_classes)
        trainer = build_trainer(args, data, network, device, world_size)
        check_space(args, folder, trainer, start_epoch)
        seconds['student' if settings else 'model'] = expected_seconds(trainer, args, start_epoch)
        if settings and not (args.teacher_checkpoint or args.teacher_source == 'hub'):
            key = teacher_key(settings, data)
            if not is_cached(args, key):
                trainer = build_trainer(settings, data, None, device)
                check_space(settings, cache_folder(args, key), trainer, 0, '--teacher-cache')
                seconds['teacher'] = expected_seconds(trainer, settings)
    del trainer, network
    gc.collect()  # an optimizer may hold itself
    return_freed_memory()
    parts = ', '.join(f'{duration(part)} for the {name}' for name, part in sorted(seconds.items(), reverse=True))
    return f'By a step timed just now, training will take about {duration(sum(seconds.values()))}: {parts}.'


def expected_seconds(trainer: Trainer, args: argparse.Namespace, start_epoch: int = 0) -> float:
    """Seconds that a training will take from an epoch on, its evaluations included.

    Args:
        trainer: One to be thrown away: its weights and its optimizer's state are changed.
        args: Settings.
        start_epoch: 0-based epoch to begin with.
    """
    epochs = min(trainer.epochs, args.stop_epoch or trainer.epochs) - start_epoch
    if epochs <= 0:
        return 0.
    loader, optimizer = trainer.loader, trainer.optimizer
    sam = isinstance(optimizer, SAM)
    batch = _batch_seconds(trainer, start_epoch)
    step = _timed(optimizer.base_optimizer.step if sam else optimizer.step, trainer)
    passes = 1 + sam / args.sam_every
    compute = loader.grad_accum_steps * batch * passes + step
    image = loader.seconds_per_image() / max(1, args.workers)
    load = image * loader.images_per_epoch / loader.updates_per_epoch / loader.world_size
    update = max(compute, load) if args.workers else compute + load
    seconds = epochs * loader.updates_per_epoch * update
    if trainer.eval_loader is not None:
        # a forward pass is a third of a step
        evaluated = len(trainer.eval_loader) * trainer.eval_loader.loader.batch_size
        models = 1 + (args.model_ema and not args.model_ema_force_cpu)
        seconds += models * epochs / args.val_interval * evaluated * (batch / loader.batch_size / 3 + image)
    return seconds


def _batch_seconds(trainer: Trainer, epoch: int) -> float:
    """Seconds of a micro-batch forward and back, found with a smaller one where that takes long."""
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
    """Least seconds of a call: the first also allocates, and one that takes long is not repeated often."""
    seconds = []
    while len(seconds) < 2 or (len(seconds) < 5 and sum(seconds) < _LONG_ENOUGH):
        began = time.perf_counter()
        step()
        synchronize(trainer.task.device)
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


@contextmanager
def silenced() -> Iterator[None]:
    """Let nothing below an error be logged of what is built: it is thrown away, built again, and says the same then."""
    logger = logging.getLogger(__package__)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
