"""The figures of a model: of these weights, whole, and agreeing with themselves."""
import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..evaluation import GROUPS, Shots
from ..run.results import EXPERTS

METRICS, VALIDATION = 'metrics.json', 'validation.json'
_NEEDED = ('shots', 'data', 'model', 'epochs', 'seed', 'versions', *EXPERTS)
_DATA_NEEDED = (
    'name', 'imbalance_factor', 'train_counts', 'test_counts', 'class_names', 'evaluated_on', 'split_seed',
    'fingerprint')


def find_figures(folder: Path, weights_sha256: str, names: Sequence[str]) -> dict[str, Any]:
    """The first of the files of figures that was measured with these weights, checked.

    Raises:
        ValueError: If there is none, or its figures contradict each other.
    """
    found = []
    for name in names:
        if not (folder / name).is_file():
            continue
        try:
            metrics = json.loads((folder / name).read_text())
            own = metrics['weights_sha256']
        except (KeyError, TypeError, ValueError):
            found.append(f'{name} does not say of which weights it is')
            continue
        if own == weights_sha256:
            check_figures(metrics, str(folder / name))
            return metrics
        found.append(f'{name} is of other weights')
    raise ValueError(
        f'The figures in {folder} do not belong to its weights: {"; ".join(found) or f"there is no {names[0]}"}. '
        f'Measure them: python validate.py {shlex.quote(str(folder))}')


def check_figures(metrics: dict[str, Any], name: str) -> None:
    """Refuse figures that lack a part, are no numbers, or do not follow from the accuracies per class.

    Raises:
        ValueError: Naming what is wrong.
    """
    mend = 'Measure them anew: python validate.py RUN_DIR'
    data = metrics.get('data') or {}
    missing = [key for key in _NEEDED if key not in metrics]
    missing += [f'data.{key}' for key in _DATA_NEEDED if key not in data]
    if missing:
        raise ValueError(f'{name} lacks {", ".join(missing)}: it was written by another version. {mend}')
    if headline(metrics) is None:
        raise ValueError(f'{name} holds no figures: the run was never evaluated. Give validate.py a --val-split.')
    try:
        shots = Shots.from_counts(data['train_counts'], tuple(metrics['shots']['boundaries']))
        rows = {row: metrics.get(row) for row in (*EXPERTS, 'teacher')}
        wrong = [
            f'{row}.{key} {found}, which is {expected} by its accuracies per class'
            for row, figures in rows.items() if figures and figures.get('top1') is not None
            for key, expected in _recomputed(figures['per_class'], data['test_counts'], shots).items()
            if not _same(found := figures.get(key), expected)]
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f'{name} is damaged ({type(error).__name__}: {error}). {mend}') from error
    if wrong:
        raise ValueError(f'{name} contradicts itself: {"; ".join(wrong[:3])}. {mend}')


def _recomputed(per_class: Sequence[float | None], counts: Sequence[int], shots: Shots) -> dict[str, float | None]:
    if any(value is not None and not 0 <= value <= 100 for value in per_class):  # NaN too
        raise ValueError('an accuracy is not between 0 and 100')

    def mean(labels: Sequence[int]) -> float | None:
        known = [per_class[label] for label in labels if per_class[label] is not None]
        return sum(known) / len(known) if known else None

    top1 = sum(n * value for n, value in zip(counts, per_class, strict=True) if n) / sum(counts)
    return {
        'top1': top1, 'balanced': mean(range(len(counts))),
        **{group: mean(shots.groups[group]) for group in GROUPS}}


def _same(found: Any, expected: float | None) -> bool:
    if found is None or expected is None:
        return found is expected
    return math.isclose(found, expected, abs_tol=1e-6)


def headline(metrics: dict[str, Any]) -> dict[str, Any] | None:
    """Figures of the answer: the mean of the experts; None without any."""
    for expert in EXPERTS:
        figures = metrics.get(expert)
        if isinstance(figures, dict) and figures.get('top1') is not None:
            return figures
    return None


def better_figures(old: Any, new: dict[str, Any] | None) -> list[str]:
    """Words for each figure, of any expert and group, that is better in `old` or missing in `new`.

    Args:
        old: What a file of figures holds, of whatever origin.
        new: The figures that would take its place.
    """
    found = []
    for expert in EXPERTS if isinstance(old, dict) else ():
        before, now = old.get(expert), (new or {}).get(expert) or {}
        for key in ('top1', *GROUPS) if isinstance(before, dict) else ():
            was, is_now = before.get(key), now.get(key)
            if isinstance(was, (int, float)) and (is_now is None or was > is_now + 1e-9):
                found.append(f'{expert} {key} {was:.1f} %, here {"none" if is_now is None else f"{is_now:.1f} %"}')
    return found
