"""What the folder of a run says, for its page: the files as they are, and what follows from them."""
import csv
import json
import math
import zipfile
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import yaml

from ..settings.layers import model_kind
from .page import plain

EXPERTS = {'mean': 'mean of both', 'cls': 'CLS', 'dist': 'DIST'}
GROUPS = ('head', 'mid', 'tail')
# a run is known by one of them
_OF_A_RUN = ('args.yaml', 'summary.csv', 'metrics.json')


class Run:
    """The files of a run's folder; a missing one is empty.

    Args:
        folder: Folder of the run.

    Raises:
        FileNotFoundError: If the folder is missing or holds nothing of a run.
        ValueError: If a file cannot be read.
    """

    def __init__(self, folder: Path):
        self.folder = folder.resolve()
        if not any((folder / name).is_file() for name in _OF_A_RUN):
            raise FileNotFoundError(
                f'{str(folder)!r} is no folder of a run, as it holds none of {", ".join(_OF_A_RUN)}: give the folder '
                'that train.py wrote.')
        self.args = self._read('args.yaml', lambda path: yaml.safe_load(path.read_text('utf-8')), dict)
        self.rows = self._read('summary.csv', _read_rows, list)
        self.metrics = self._read('metrics.json', _read_json, dict)
        self.versions = self._read('versions.json', _read_json, dict) or self.metrics.get('versions') or {}
        self.signatures = self._read('signatures.json', _read_json, list)
        self.analysis = self._read('analysis.json', _read_json, dict)
        self.attention = self._read('attention.npz', _read_arrays, dict)
        self.tail_images = self._read('tail_images.npz', _read_arrays, dict)

        self.data = self.metrics.get('data') or {}
        self.shots = self.metrics.get('shots') or {}
        self.teacher = self.metrics.get('teacher') or {}
        self.model = self.metrics.get('model') or self.args.get('model') or 'model'
        self.is_cnn = model_kind(str(self.model)) == 'teacher'

    def _read(self, name: str, read: Callable[[Path], Any], kind: type) -> Any:
        path = self.folder / name
        if not path.is_file():
            return kind()
        try:
            content = read(path)
        except (OSError, ValueError, KeyError, csv.Error, yaml.YAMLError, zipfile.BadZipFile) as error:
            reason = ' '.join(str(error).split())
            raise ValueError(f'{path} cannot be read ({reason}): write it again, or remove it.') from error
        if not isinstance(content, kind):
            raise ValueError(f'{path} should hold a {kind.__name__}, not {type(content).__name__}: write it again.')
        return content

    @property
    def data_name(self) -> str:
        """Name of the data, of a folder the last part."""
        return short_path(str(self.data.get('name') or self.args.get('dataset') or 'unknown data'))

    @property
    def experts(self) -> dict[str, dict[str, Any]]:
        """Metrics of 'mean', 'cls', 'dist' where they were measured; of a single expert under 'mean' alone."""
        found = {name: self.metrics[name] for name in EXPERTS if (self.metrics.get(name) or {}).get('top1') is not None}
        return found if 'dist' in found or 'mean' not in found else {'mean': found['mean']}

    @property
    def measured(self) -> dict[str, dict[str, Any]]:
        """Metrics of the experts, and of the teacher if it has any."""
        return {**self.experts, **({'teacher': self.teacher} if self.teacher.get('top1') is not None else {})}

    def label(self, name: str) -> str:
        """Name of an expert or of the teacher for people."""
        if name == 'mean' and not self.two_experts:
            return 'this model'
        return EXPERTS.get(name, name)

    @property
    def two_experts(self) -> bool:
        """Whether the run has a DIST expert."""
        return bool(self.metrics.get('dist')) or any('train_distill_loss' in row for row in self.rows)

    @property
    def counts(self) -> list[int]:
        """Training images per class, by class index."""
        return self.data.get('train_counts') or []

    @property
    def order(self) -> list[int]:
        """Class indices from most to least frequent, equally frequent ones by index, as in `evaluation.Shots`."""
        return sorted(range(len(self.counts)), key=lambda label: -self.counts[label])

    @property
    def boundaries(self) -> tuple[int, int] | None:
        """Positions in `order` of the first mid and the first tail class."""
        return tuple(self.shots['boundaries']) if self.shots.get('boundaries') and self.counts else None

    @property
    def balanced(self) -> bool:
        """Whether its classes have no head and no tail."""
        return bool(self.boundaries) and not self.boundaries[0]

    def class_name(self, label: int) -> str:
        """Name of a class on one line."""
        names = self.data.get('class_names') or []
        return plain(names[label]) if label < len(names) else str(label)

    @property
    def epochs(self) -> int | None:
        """Epochs of the schedule."""
        return self.metrics.get('epochs') or self.args.get('epochs')

    @property
    def stage_two(self) -> tuple[int, str] | None:
        """First epoch, from 0, of stage two and what it does; None if it is not known or never came.

        The start is as given, else 11/12 of the epochs; the experts as in `run.build.model`: as given, else DIST with a
        teacher, the labels with LDAM.
        """
        args = self.args
        if not args.get('epochs') or args.get('loss') == 'paco':
            return None
        start = args.get('drw_start_epoch')
        start = round(args['epochs'] * 11 / 12) if start is None else start
        if start >= args['epochs'] or (self.rows and start > self.rows[-1]['epoch']):
            return None
        network = args.get('teacher') not in (None, 'none', 'labels')
        target = args.get('drw_on') or ('dist' if network else 'cls' if args.get('loss') == 'ldam' else 'none')
        words = {'both': 'DRW on CLS and DIST', 'none': 'stage two without DRW'}.get(target, f'DRW on {target.upper()}')
        return start, 'DRW' if target in ('cls', 'both') and not self.two_experts else words

    def column(self, name: str, factor: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """Epochs trained and values of a column of summary.csv where it has a number."""
        pairs = [(row['epoch'] + 1, factor * row[name]) for row in self.rows if math.isfinite(row.get(name, math.nan))]
        epochs, values = zip(*pairs, strict=True) if pairs else ((), ())
        return np.array(epochs), np.array(values)


def short_path(text: str) -> str:
    """A path of this machine as its last part, since a page is shown to others; anything else as it is."""
    path = PureWindowsPath(text)
    if text.startswith(('/', '~', './', '../')) or path.is_absolute():
        return f'…/{path.name}'
    return text


def numbers(values: list[float | None] | None) -> np.ndarray:
    """Floats with NaN for None."""
    return np.array([math.nan if value is None else value for value in values or ()], dtype=float)


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text('utf-8'), parse_constant=lambda name: None)  # a NaN was not measured


def _read_rows(path: Path) -> list[dict[str, float]]:
    with open(path, newline='', encoding='utf-8') as file:
        rows = [
            {name: float(value) for name, value in row.items() if value not in (None, '')}
            for row in csv.DictReader(file)]
    if not all('epoch' in row for row in rows):
        raise ValueError('a row names no epoch')
    return rows


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
