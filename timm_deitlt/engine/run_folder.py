"""The folder of a run: args.yaml, summary.csv, metrics.json, checkpoints; and trackers that get the same rows."""
import csv
import importlib
import io
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..utils.files import read_rows, write_text
from .checkpoint import LAST, save_checkpoint

_logger = logging.getLogger(__name__)


class Tracker(NamedTuple):
    """Takes each row of summary.csv as it is written, and is told when the run ends."""
    track: Callable[[dict[str, Any]], None]
    finish: Callable[[], None]


class RunFolder:
    """Files of one run. Only the primary rank writes, and it writes a file completely or not at all.

    Args:
        path: Folder, made if missing.
        primary: Whether this rank writes.
    """

    def __init__(self, path: Path, primary: bool = True):
        self.path = Path(path)
        self.primary = primary
        self.trackers: list[Tracker] = []
        self.rows: list[dict[str, Any]] = []
        if primary:
            self.path.mkdir(parents=True, exist_ok=True)

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.path / LAST

    def rewind(self, start_epoch: int) -> None:
        """Read back summary.csv and drop the rows of epochs that will be trained again."""
        self.rows = [row for row in read_rows(self.path / 'summary.csv') if int(row['epoch']) < start_epoch]

    def write(self, name: str, text: str) -> None:
        """Write a text file."""
        if self.primary:
            write_text(self.path / name, text)

    def add_row(self, row: dict[str, Any]) -> None:
        """Add the row of an epoch to summary.csv and the trackers."""
        if not self.primary:
            return
        self.rows.append(row)
        columns = list(dict.fromkeys(name for r in self.rows for name in r))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator='\n')
        writer.writeheader()
        writer.writerows(self.rows)
        self.write('summary.csv', text.getvalue())
        for tracker in self.trackers:
            tracker.track(row)

    def save(self, state: dict[str, Any], milestone: bool = False) -> None:
        """Save the newest checkpoint, and if `milestone` also as milestone-N.pth.tar, where N epochs are finished."""
        if not self.primary:
            return
        # the milestone first: a run that is killed in between repeats the epoch and saves the milestone again
        if milestone:
            save_checkpoint(self.path / f'milestone-{state["epoch"] + 1}.pth.tar', state)
        save_checkpoint(self.last, state)

    def save_metrics(self, metrics: dict[str, Any]) -> None:
        """Save metrics.json."""
        self.write('metrics.json', json.dumps(metrics, indent=2) + '\n')

    def close(self) -> None:
        """End the trackers."""
        while self.trackers:  # the next fold of the same process has trackers of its own
            self.trackers.pop().finish()


def seconds_of(rows: Iterable[Mapping[str, Any]]) -> float:
    """Seconds of training and evaluation in rows of summary.csv."""
    return sum(float(row['train_seconds']) + float(row['eval_seconds']) for row in rows)


def tensorboard_tracker(path: Path) -> Tracker:
    """Tracker that writes TensorBoard events."""
    from torch.utils.tensorboard import SummaryWriter
    writer = SummaryWriter(str(path))

    def track(row: dict[str, Any]) -> None:
        for name, value in row.items():
            if name != 'epoch' and value not in (None, ''):
                writer.add_scalar(name.replace('_', '/', 1), float(value), int(row['epoch']))
        writer.flush()

    return Tracker(track, writer.close)


def service_tracker(service: str, **options: Any) -> Tracker:
    """Tracker that logs to 'wandb' or 'trackio', begun with these options of its `init`."""
    module = importlib.import_module(service)
    module.init(**options)

    def track(row: dict[str, Any]) -> None:
        module.log({key: value for key, value in row.items() if value not in (None, '')}, step=int(row['epoch']))

    return Tracker(track, module.finish)
