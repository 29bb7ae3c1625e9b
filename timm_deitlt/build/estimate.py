"""How long a training will take, from a step of it timed beforehand."""
import argparse
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ..data.loader import MicroBatch
from ..engine import Trainer
from ..optim import SAM
from .speed import noise, synchronize

# A step of so many seconds is long enough to be timed; a larger batch is in proportion
_LONG_ENOUGH = .5


def expected_seconds(trainer: Trainer, args: argparse.Namespace, start_epoch: int = 0) -> float:
    """Seconds that a training will take from an epoch on, its evaluations included.

    Args:
        trainer: One to be thrown away: its weights and its optimizer's state are changed.
        args: Settings.
        start_epoch: 0-based epoch to begin with.
    """
    loader, optimizer = trainer.loader, trainer.optimizer
    sam = isinstance(optimizer, SAM)
    batch = _batch_seconds(trainer, start_epoch)
    step = _timed(optimizer.base_optimizer.step if sam else optimizer.step, trainer)
    passes = 1 + sam / args.sam_every
    compute = loader.grad_accum_steps * batch * passes + step
    image = loader.seconds_per_image() / max(1, args.workers)
    load = image * loader.images_per_epoch / loader.updates_per_epoch / loader.world_size
    update = max(compute, load) if args.workers else compute + load
    epochs = min(trainer.epochs, args.stop_epoch or trainer.epochs) - start_epoch
    seconds = epochs * loader.updates_per_epoch * update
    if trainer.eval_loader is not None:
        # a forward pass is a third of a step
        evaluated = len(trainer.eval_loader) * trainer.eval_loader.loader.batch_size
        seconds += epochs / args.val_interval * evaluated * (batch / loader.batch_size / 3 + image)
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


def _timed(step, trainer: Trainer) -> float:
    """Seconds of the second of two calls: the first also allocates."""
    for _ in range(2):
        began = time.perf_counter()
        step()
        synchronize(trainer.task.device)
        seconds = time.perf_counter() - began
    return seconds


@contextmanager
def silenced() -> Iterator[None]:
    """Log nothing below an error: what is built to be thrown away is built again, and says the same then."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
