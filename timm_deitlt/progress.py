"""What a person sees while a run goes on: a bar where there is a terminal, plain lines where not."""
import logging
import sys
import time

from tqdm import tqdm

from .meter import Meter

_logger = logging.getLogger(__name__)


class Progress:
    """Progress of one run over all its epochs.

    Args:
        title: Name before the figures.
        epochs: Epochs of the run.
        start_epoch: First epoch still to run.
        updates_per_epoch: Updates in an epoch.
        images_per_update: Mean images of an update over all ranks.
        log_interval: Updates between two plain lines.
        enabled: Whether this rank prints.
    """

    def __init__(
            self,
            title: str,
            epochs: int,
            start_epoch: int,
            updates_per_epoch: int,
            images_per_update: float,
            log_interval: int = 50,
            enabled: bool = True,
    ):
        self.title, self.epochs, self.updates = title, epochs, updates_per_epoch
        self.images_per_update, self.log_interval, self.enabled = images_per_update, log_interval, enabled
        self.start_epoch = self.epoch = start_epoch
        self.started, self.done = time.perf_counter(), 0
        self.bar = None
        if enabled and sys.stderr.isatty():
            self.bar = tqdm(
                total=epochs * updates_per_epoch, initial=start_epoch * updates_per_epoch, desc=title, unit='update',
                dynamic_ncols=True, leave=False)

    def update(self, index: int, meter: Meter, lr: float) -> None:
        """Count one update; print when it is time to."""
        if not self.enabled:
            return
        self.done += 1
        if self.bar is not None:
            self.bar.update()
        last = index + 1 == self.updates
        if self.bar is None and (index + 1) % self.log_interval:
            return
        if self.bar is not None and not last and (index + 1) % max(1, self.log_interval // 10):
            return
        rate = self.done * self.images_per_update / (time.perf_counter() - self.started)
        if self.bar is not None:
            self.bar.set_postfix_str(f'epoch {self.epoch + 1} loss {meter.loss():.3f} {rate:.0f} img/s')
        else:
            _logger.info(
                f'{self.title} epoch {self.epoch + 1}/{self.epochs} [{index + 1}/{self.updates}] '
                f'loss {meter.loss():.3f} lr {lr:.2e} {rate:.0f} img/s, {self._left()} left')

    def _left(self) -> str:
        total = (self.epochs - self.start_epoch) * self.updates
        seconds = (time.perf_counter() - self.started) / self.done * (total - self.done)
        return f'{int(seconds // 60)}:{int(seconds % 60):02d}'

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        if not self.enabled:
            return
        if self.bar is not None:
            self.bar.write(text, file=sys.stderr)
        else:
            _logger.info(text)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
