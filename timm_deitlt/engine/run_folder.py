"""The folder of a run: args.yaml, summary.csv, metrics.json, checkpoints; and trackers that get the same rows."""
import csv
import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..utils.files import write_text
from .checkpoint import LAST, save_checkpoint

_logger = logging.getLogger(__name__)

# Takes each row of summary.csv as it is written
Tracker = Callable[[dict[str, Any]], None]


class RunFolder:
    """Files of one run. Only the primary rank writes, and it writes a file completely or not at all.

    Args:
        path: Folder, made if missing.
        primary: Whether this rank writes.
    """

    def __init__(self, path: Path, primary: bool = True):
        self.path = Path(path)
        self.primary = primary
        self.trackers: list[Any] = []
        self.rows: list[dict[str, Any]] = []
        if primary:
            self.path.mkdir(parents=True, exist_ok=True)

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.path / LAST

    def rewind(self, start_epoch: int) -> None:
        """Read back summary.csv and drop the rows of epochs that will be trained again."""
        summary = self.path / 'summary.csv'
        if summary.is_file():
            with open(summary, newline='') as file:
                self.rows = [row for row in csv.DictReader(file) if int(row['epoch']) < start_epoch]

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
            tracker(row)

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


def tensorboard_tracker(path: Path) -> Tracker:
    """Tracker that writes TensorBoard events.

    Raises:
        ValueError: If tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("--log-tensorboard needs tensorboard: pip install 'timm_deitlt[report]'.") from error
    writer = SummaryWriter(str(path))

    def track(row: dict[str, Any]) -> None:
        for name, value in row.items():
            if name != 'epoch' and value not in (None, ''):
                writer.add_scalar(name.replace('_', '/', 1), float(value), int(row['epoch']))
        writer.flush()

    return track


def wandb_tracker(
        project: str | None,
        name: str,
        config: dict[str, Any],
        tags: list[str],
        resume_id: str,
) -> Tracker:
    """Tracker that logs to Weights & Biases.

    Raises:
        ValueError: If wandb is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise ValueError('--log-wandb needs wandb: pip install wandb.') from error
    resume = dict(resume='must', id=resume_id) if resume_id else {}
    wandb.init(project=project, name=name, config=config, tags=tags, **resume)
    return _track_by(wandb)


def trackio_tracker(name: str, config: dict[str, Any]) -> Tracker:
    """Tracker that logs to Trackio, on this machine.

    Raises:
        ValueError: If trackio is not installed.
    """
    try:
        import trackio
    except ImportError as error:
        raise ValueError('--log-trackio needs trackio: pip install trackio.') from error
    trackio.init(project='timm_deitlt', name=name, config=config, resume='allow')
    return _track_by(trackio)


def _track_by(module: Any) -> Tracker:
    def track(row: dict[str, Any]) -> None:
        module.log({key: value for key, value in row.items() if value not in (None, '')}, step=int(row['epoch']))

    return track
