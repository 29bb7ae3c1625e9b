"""Progress of a run for the person who waits: a bar on a terminal, log lines elsewhere.

If the output is piped, that person must be able to tell a slow run from a dead one. So `heartbeat` logs what is being
done after every `LONGEST_SILENCE` seconds without a log line.
"""
import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from .meter import Meter

_logger = logging.getLogger(__name__)

LONGEST_SILENCE = 15.  # seconds
# What is being done, the innermost last; None if a bar shows it
_doing: list[str | Callable[[], str] | None] = []


@contextmanager
def doing(what: str | Callable[[], str] | None) -> Iterator[None]:
    """Tell `heartbeat` what is being done inside: words, a function that returns them, or None to log nothing."""
    _doing.append(what)
    try:
        yield
    finally:
        _doing.pop()


class _LastLine(logging.Handler):
    # remembers when something was logged last
    def __init__(self):
        super().__init__()
        self.time = time.perf_counter()

    def emit(self, record: logging.LogRecord) -> None:
        self.time = time.perf_counter()


@contextmanager
def heartbeat(silence: float = LONGEST_SILENCE) -> Iterator[None]:
    """Log what is being done (see `doing`) whenever nothing was logged for so many seconds."""
    last, ended = _LastLine(), threading.Event()

    def beat() -> None:
        while not ended.wait(min(1., silence / 4)):
            if time.perf_counter() - last.time < silence:
                continue
            what = _doing[-1] if _doing else 'still at work'
            if what is not None:
                _logger.info(what() if callable(what) else f'... {what}')

    root = logging.getLogger()
    root.addHandler(last)
    thread = threading.Thread(target=beat, name='heartbeat', daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        root.removeHandler(last)


def duration(seconds: float) -> str:
    """Seconds as '4:05' minutes, or as '1:02:05' hours."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02d}:{seconds:02d}' if hours else f'{minutes}:{seconds:02d}'


class Progress:
    """Progress of one run over all its epochs, a context manager.

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
        self.index, self.loss, self.lr = 0, float('nan'), float('nan')
        self.bar: Any = None
        self._stack = ExitStack()

    def __enter__(self) -> 'Progress':
        if self.enabled and sys.stderr.isatty():
            self.bar = tqdm(
                total=self.epochs * self.updates, initial=self.start_epoch * self.updates, desc=self.title,
                unit='update', dynamic_ncols=True, leave=False)
            self._stack.callback(self.bar.close)
            self._stack.enter_context(logging_redirect_tqdm())
        self._stack.enter_context(doing(self.words if self.bar is None else None))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def begin(self, epoch: int) -> None:
        """Note that a 0-based epoch begins."""
        self.epoch, self.index = epoch, 0

    def update(self, index: int, meter: Meter, lr: float) -> None:
        """Count one update, and print if it is due."""
        if not self.enabled:
            return
        self.done += 1
        last = index + 1 == self.updates
        interval = self.log_interval if self.bar is None else max(1, self.log_interval // 10)
        due = (index + 1) % interval == 0 or (last and self.bar is not None)
        if due or meter.pending_on_host:  # on other devices, reading the loss would make the device wait
            self.loss = meter.loss()
        self.index, self.lr = index + 1, lr
        if self.bar is not None:
            self.bar.update()
            if due:
                self.bar.set_postfix_str(f'epoch {self.epoch + 1} loss {self.loss:.3f} {self._rate():.0f} img/s')
        elif due:
            _logger.info(self.words())

    def words(self) -> str:
        """How far the run is, in a line."""
        where = f'{self.title} epoch {self.epoch + 1}/{self.epochs} [{self.index}/{self.updates}]'
        if not self.done:
            return f'{where} the first update is still running'
        seconds = (time.perf_counter() - self.started) / self.done
        left = (self.epochs - self.start_epoch) * self.updates - self.done
        loss = '' if math.isnan(self.loss) else f' loss {self.loss:.3f}'  # not read yet
        return f'{where}{loss} lr {self.lr:.2e} {self._rate():.0f} img/s, {duration(seconds * left)} left'

    def _rate(self) -> float:
        return self.done * self.images_per_update / (time.perf_counter() - self.started)

    def line(self, text: str) -> None:
        """Log a line."""
        if self.enabled:
            _logger.info(text)
