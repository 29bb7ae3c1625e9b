"""A run as its folder tells it: the files as they are, what follows from them, and what its page shows."""
import csv
import json
import math
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import yaml

from ..evaluation.shots import GROUPS
from ..settings.groups import NO_NETWORK
from ..settings.layers import model_kind
from ..utils.words import duration_in_words
from .look import EXPERTS, FUSIONS, LOOKS, Table, number, plain

# a folder with one of them is that of a run
_OF_A_RUN = ('args.yaml', 'summary.csv', 'metrics.json')
_FILES = {
    'args.yaml': 'settings',
    'summary.csv': 'one row for each epoch',
    'metrics.json': 'metrics and data of the run',
    'versions.json': 'versions, commit and machine',
    'signatures.json': 'notes at the top of this page',
    'analysis.json': 'mechanisms, from analyze.py',
    'attention.npz': 'attention maps, from analyze.py',
    'tail_images.npz': 'mistakes on the tail, from analyze.py',
}


class Run:
    """The files of a run's folder. The content of a missing file is empty.

    Args:
        folder: Folder of the run.

    Raises:
        FileNotFoundError: If the folder is missing or is not that of a run.
        ValueError: If a file cannot be read.
    """

    def __init__(self, folder: Path):
        self.folder = folder.resolve()
        if not any((folder / name).is_file() for name in _OF_A_RUN):
            raise FileNotFoundError(
                f'{str(folder)!r} is not the folder of a run: it has none of {", ".join(_OF_A_RUN)}. Give the folder '
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
        confusion = self.metrics.get('confusion') or {}
        self.confused = confusion.get('pairs') or []
        self.confused_by = confusion.get('expert', 'mean')
        self.model = self.metrics.get('model') or self.args.get('model') or 'model'
        self.is_cnn = model_kind(str(self.model)) == 'teacher'
        # training images per class, and the classes from most to least frequent, in the order of `evaluation.Shots`
        self.counts: list[int] = self.data.get('train_counts') or []
        self.order = sorted(range(len(self.counts)), key=lambda label: -self.counts[label])
        # positions in this order of the first mid and the first tail class
        self.boundaries = tuple(self.shots['boundaries']) if self.shots.get('boundaries') and self.counts else None
        # balanced classes have no head and no tail
        self.balanced = self.boundaries is not None and not self.boundaries[0]
        self.two_experts = bool(self.metrics.get('dist')) or any('train_distill_loss' in row for row in self.rows)
        self.epochs: int | None = self.metrics.get('epochs') or self.args.get('epochs')

    def _read(self, name: str, read: Callable[[Path], Any], kind: type) -> Any:
        path = self.folder / name
        if not path.is_file():
            return kind()
        try:
            content = read(path)
        except (OSError, ValueError, KeyError, csv.Error, yaml.YAMLError, zipfile.BadZipFile) as error:
            reason = ' '.join(str(error).split())
            raise ValueError(f'{path} cannot be read ({reason}). Write it again, or remove it.') from error
        if not isinstance(content, kind):
            raise ValueError(
                f'{path} must hold a {kind.__name__}, but holds a {type(content).__name__}. Write it again, or remove '
                'it.')
        return content

    @property
    def experts(self) -> dict[str, dict[str, Any]]:
        """Metrics of 'mean', 'cls' and 'dist' where they were measured; a model with one expert has 'mean' alone."""
        found = {name: self.metrics[name] for name in EXPERTS if (self.metrics.get(name) or {}).get('top1') is not None}
        return found if 'dist' in found or 'mean' not in found else {'mean': found['mean']}

    @property
    def measured(self) -> dict[str, dict[str, Any]]:
        """Metrics of the prediction, of the experts, and of the teacher if it was measured."""
        teacher = {'teacher': self.teacher} if self.teacher.get('top1') is not None else {}
        return {**self.fused, **self.experts, **teacher}

    @property
    def answer(self) -> tuple[str, dict[str, Any]] | None:
        """Name and metrics of the run's prediction: of its fusion, else of the mean; None if it was not measured."""
        name = self.metrics.get('answer', 'mean')
        row = (self.metrics.get('fusion') or {}).get(name) or self.experts.get(name)
        return (name, row) if row and row.get('top1') is not None else None

    @property
    def fused(self) -> dict[str, dict[str, Any]]:
        """The prediction by its name, if a fusion other than the mean gives it."""
        return dict([self.answer]) if self.answer and self.answer[0] in FUSIONS else {}

    def label(self, name: str) -> str:
        """Name of an expert, of a fusion or of the teacher for readers."""
        if name in FUSIONS:
            return f'prediction: {FUSIONS[name]}'
        if name == 'mean' and not self.two_experts:
            return 'CLS' if self.fused else 'this model'
        return LOOKS[name].label

    def class_name(self, label: int) -> str:
        """Name of a class on one line."""
        names = self.data.get('class_names') or []
        return plain(names[label]) if label < len(names) else str(label)

    @property
    def stage_two(self) -> tuple[int, str] | None:
        """First epoch of stage two, as `stage_two_start` has it, and what it does; None if it was not reached."""
        args = self.args
        start = stage_two_start(args)
        if start is None or not args.get('epochs') or args.get('loss') == 'paco' or start >= args['epochs'] or (
                self.rows and start > self.rows[-1]['epoch']):
            return None
        target = _drw_target(args)
        words = {'both': 'DRW on CLS and DIST', 'none': 'stage two without DRW'}.get(target, f'DRW on {target.upper()}')
        return start, 'DRW' if target in ('cls', 'both') and not self.two_experts else words

    def column(self, name: str, factor: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """A column of summary.csv where it has a number: epochs trained until then, and its values times `factor`."""
        pairs = [(row['epoch'] + 1, factor * row[name]) for row in self.rows if math.isfinite(row.get(name, math.nan))]
        epochs, values = zip(*pairs, strict=True) if pairs else ((), ())
        return np.array(epochs), np.array(values)


def stage_two_start(settings: Mapping[str, Any]) -> int | None:
    """First epoch of stage two, counted from 0: as given, else after 11/12 of the epochs.

    None if neither is known, or the training does not change in stage two: no class weights, no other loss of CLS, and
    the mixing of images goes on.
    """
    if _drw_target(settings) == 'none' and settings.get('keep_mixup_drw') and settings.get('cls_loss', 'ce') == 'ce':
        return None
    start, epochs = settings.get('drw_start_epoch'), settings.get('epochs')
    return round(epochs * 11 / 12) if start is None and epochs else start


def _drw_target(settings: Mapping[str, Any]) -> str:
    """What stage two re-weights, by the rules of `run.settings.drw_targets`."""
    network = settings.get('teacher') not in (None, *NO_NETWORK)
    return settings.get('drw_on') or ('dist' if network else 'cls' if settings.get('loss') == 'ldam' else 'none')


def short_path(text: str) -> str:
    """A path of this machine as its last part, because others will read the page; any other text as it is."""
    path = PureWindowsPath(text)
    if text.startswith(('/', '~', './', '../')) or path.is_absolute():
        return f'…/{path.name}'
    return text


def setting(value: Any) -> str:
    """The value of a setting for readers."""
    if isinstance(value, Mapping):
        return ' '.join(f'{key}={item}' for key, item in value.items())
    if isinstance(value, list):
        return ', '.join(map(str, value))
    return short_path(value) if isinstance(value, str) else str(value)


def counted(count: int, word: str) -> str:
    """'1 run', or '2 runs'."""
    return f'{count} {word if count == 1 else f"{word}s"}'


def numbers(values: list[float | None] | None) -> np.ndarray:
    """Floats with NaN for None."""
    return np.array(values or (), dtype=float)


def page_values(run: Run) -> dict[str, Any]:
    """What run.html.jinja shows besides figures."""
    empty = [name for name, value in run.args.items() if value is False or value in (None, '', [], {})]
    return {
        'run': run, 'title': f'{run.model} on {_data_name(run)}', 'about': _about(run), 'lede': _sentence(run),
        'accuracy': _accuracy(run), 'classes': _classes(run),
        'coarse': [group for group in GROUPS if run.shots and 0 < run.shots[group]['test_images'] < 30],
        'untested': [run.class_name(label) for label in run.shots.get('missing_classes') or ()],
        'confused': Table(
            ['class', 'predicted as', 'images', '% of the class'],
            [[pair['true'], pair['predicted'], f'{pair["images"]:,}', number(pair['percent'])]
             for pair in run.confused[:10]]),
        'evaluated_by_epoch': any(name.startswith('eval_') and name.endswith('top1') for row in run.rows
                                  for name in row),
        'views': _views(run.analysis.get('ood')), 'versions': _versions(run), 'empty': empty,
        'settings': {name: setting(value) for name, value in run.args.items() if name not in empty},
        'files': _files(run)}


def _data_name(run: Run) -> str:
    return short_path(str(run.data.get('name') or run.args.get('dataset') or 'unknown data'))


def _about(run: Run) -> list[str]:
    metrics, parts = run.metrics, [f'Run {run.folder.name}']
    seed = metrics.get('seed', run.args.get('seed'))
    if seed is not None:
        parts.append(f'seed {seed}')
    trained = metrics.get('epochs_trained') or (int(run.rows[-1]['epoch']) + 1 if run.rows else None)
    if run.epochs:
        unfinished = trained is not None and trained < run.epochs
        parts.append(f'{trained} of {run.epochs} epochs: unfinished' if unfinished else counted(run.epochs, 'epoch'))
    if metrics.get('seconds'):
        parts.append(duration_in_words(metrics['seconds']))
    return parts


def _sentence(run: Run) -> str:
    if run.answer is None:
        return 'This run was not evaluated, so there is no accuracy to report.'
    name, row = run.answer
    subject = 'the ' + FUSIONS.get(name, 'mean of both experts' if run.two_experts else 'model')
    words = (
        f'After {counted(run.metrics.get("epochs_trained") or run.epochs or 0, "epoch")}, {subject} correctly '
        f'classifies {_percent(row["top1"])} of {run.data.get("evaluated_on") or "the images"}'
        f'{_by_group(run, row, ": ")}.')
    if 'teacher' in run.measured:
        words += (f' Its teacher {run.teacher.get("name")} reaches {_percent(run.teacher["top1"])}'
                  f'{_by_group(run, run.teacher, ": ")}.')
    return words


def _by_group(run: Run, row: dict[str, Any], before: str) -> str:
    if run.balanced:
        return ''
    return before + ', '.join(f'{group} {_percent(row.get(group))}' for group in GROUPS)


def _percent(value: float | None) -> str:
    return 'not measured' if value is None else f'{value:.1f} %'


def _accuracy(run: Run) -> Table:
    """Accuracy of the experts, of their moving average and of the teacher, over all classes and by group."""
    measured = {run.label(name): row for name, row in run.measured.items()}
    measured |= {f'EMA, {run.label(name)}': row for name, row in (run.metrics.get('ema') or {}).items()
                 if run.two_experts or name in ('mean', *run.fused)}
    keys = {'top1': 'overall', **{group: group for group in GROUPS}}
    keys |= {key: words for key, words in (('balanced', 'balanced'), ('top5', 'top-5'))  # no column without a number
             if any(row.get(key) is not None for row in run.measured.values())}
    rows: list[list[str]] = []
    for key in ('classes', 'train_images', 'test_images') if run.shots else ():
        counts = [run.shots[group][key] for group in GROUPS]
        cells = [f'{count:,}' for count in (sum(counts), *counts)]
        rows.append([key.replace('_', ' '), *cells, *[''] * (len(keys) - len(cells))])
    marks: list[str | None] = [None] * len(rows) + ['answer' if name in run.fused else name for name in run.measured]
    marks += [None] * (len(rows) + len(measured) - len(marks))
    rows += [[name, *(number(row.get(key)) for key in keys)] for name, row in measured.items()]
    return Table(['', *keys.values()], rows, marks)


def _classes(run: Run) -> Table | None:
    """Accuracy of every class, from most to least frequent; None if it was not measured."""
    rows = {name: row for name, row in run.measured.items() if row.get('per_class')}
    if not rows or not run.counts:
        return None
    tests = run.data.get('test_counts') or []
    return Table(
        ['class', 'train images', 'test images', *map(run.label, rows)],
        [[run.class_name(label), f'{run.counts[label]:,}', f'{tests[label]:,}' if label < len(tests) else '–',
          *(number(row['per_class'][label]) for row in rows.values())] for label in run.order])


def _views(ood: Mapping[str, Any] | None) -> Table | None:
    """What the teacher answers on clean images, and on those that the student is trained on; None if not measured."""
    if not ood:
        return None
    rows = [
        ('teacher is right, %', 'teacher_top1_clean', 'teacher_top1_train_view', 1),
        ("entropy of the teacher's prediction, nats", 'teacher_entropy_clean', 'teacher_entropy_train_view', 2),
        ('teacher predicts a tail class, %', '', 'teacher_tail_share', 1),
        ('the label is a tail class, %', '', 'true_tail_share', 1),
        ('DIST agrees with the teacher, %', '', 'dist_agreement', 1)]
    return Table(
        ['', 'clean', "student's view"],
        [[words, number(ood.get(clean), digits), number(ood.get(seen), digits)] for words, clean, seen, digits in rows])


def _versions(run: Run) -> dict[str, Any]:
    measured = {
        'data fingerprint': run.data.get('fingerprint'), 'split seed': run.data.get('split_seed'),
        'weights sha256': run.metrics.get('weights_sha256'),
        'images per second': run.metrics.get('train_images_per_second')}
    return {**run.versions, **{name: value for name, value in measured.items() if value is not None}}


def _files(run: Run) -> dict[str, str]:
    return {
        **{name: words for name, words in _FILES.items() if (run.folder / name).is_file()},
        **{path.name: 'weights and training state' for path in sorted(run.folder.glob('*.pth.tar'))},
        'plots/*.png': 'the figures of this page'}


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text('utf-8'), parse_constant=lambda name: None)  # NaN: it was not measured


def _read_rows(path: Path) -> list[dict[str, float]]:
    with open(path, newline='', encoding='utf-8') as file:
        rows = [
            {name: float(value) for name, value in row.items() if value not in (None, '')}
            for row in csv.DictReader(file)]
    if not all('epoch' in row for row in rows):
        raise ValueError('a row has no epoch')
    return rows


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
