"""What the results of a study say, for its page: plain values, and what follows from them."""
import csv
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .page import plain
from .run_files import EXPERTS, numbers

TEACHER_VIEW, STUDENT = 'teacher_view', 'DeiT-LT'


class Study:
    """A study, see `write_study_report`.

    Attributes:
        results: Of its arms, by subset, seed and arm.
        subsets: Of the results.
        seeds: Of the results.
    """

    def __init__(
            self,
            name: str,
            arms: Sequence[Mapping[str, Any]],
            results: Iterable[Mapping[str, Any]],
            verdicts: Sequence[Mapping[str, Any]],
            settings: Mapping[str, Any],
            sweep: Mapping[str, Any] | None = None,
    ):
        self.name, self.verdicts, self.settings, self.sweep = name, verdicts, settings, sweep or {}
        self.arms = {arm['name']: arm for arm in arms}
        order = {arm: index for index, arm in enumerate(self.arms)}
        self.results = sorted(
            (result for result in results if result['arm'] in order),
            key=lambda result: (result['subset'], result['seed'], order[result['arm']]))
        self.subsets = sorted({result['subset'] for result in self.results})
        self.seeds = sorted({result['seed'] for result in self.results})

    def runs(self, arm: str | None) -> list[Mapping[str, Any]]:
        """Results of an arm, by subset and seed."""
        return [result for result in self.results if result['arm'] == arm]

    def parent(self, arm: str) -> str | None:
        """Arm that an arm goes on from, if it is one of the study's."""
        parent = self.arms[arm].get('parent')
        return parent if parent in self.arms else None

    def label(self, arm: str, full: bool = False) -> str:
        """Name of an arm for people, on one line; the full one tells arms apart that go on from others."""
        label = plain(self.arms[arm]['label'])
        return f'{label} ({plain(arm)})' if full and self.parent(arm) else label

    def values(self, arm: str | None, of: str, group: str) -> list[float]:
        """Accuracies of the arm's runs in percent, where they were measured; `of` an expert, 'teacher' or a fusion."""
        return known(accuracy(run, of, group) for run in self.runs(arm))

    def experts(self, arm: str) -> list[str]:
        """'mean', 'cls' and 'dist'; of an arm with one expert, whose CLS is the mean, 'mean' alone."""
        return list(EXPERTS) if self.values(arm, 'dist', 'overall') else ['mean']

    def n(self, arms: Iterable[str]) -> str:
        """'n = 3' runs, or from least to most if it differs between arms."""
        return count_words(len(self.runs(arm)) for arm in arms)

    def most_runs(self, arms: Iterable[str]) -> int:
        """Runs of the arm that has most."""
        return max(len(self.runs(arm)) for arm in arms)

    def most_claimed(self, arms: Iterable[str]) -> str | None:
        """The arm that most claims are about, the first of equals."""
        named = [side(claim, which)[0] for claim in self.verdicts for which in 'ab']
        return max(arms, key=named.count, default=None)


def accuracy(result: Mapping[str, Any], of: str, group: str) -> float | None:
    """Accuracy in percent of an expert, of 'teacher' or of a fusion; None where there is none."""
    figures = result['metrics'].get(of) or (result.get('fusion') or {}).get(of) or {}
    return figures.get('top1' if group == 'overall' else group)


def analysis(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """What analyze.py measured, or nothing."""
    return result.get('analysis') or {}


def known(values: Iterable[float | None]) -> list[float]:
    """Those that were measured."""
    return [value for value in values if value is not None and math.isfinite(value)]


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean and, of two or more, standard deviation (n - 1); a dash if there is none."""
    if not values:
        return '–'
    mean = f'{statistics.fmean(values):.{digits}f}'
    return f'{mean} ± {statistics.stdev(values):.{digits}f}' if len(values) > 1 else mean


def count_words(counts: Iterable[int]) -> str:
    """'n = 3', or 'n from 1 to 3'."""
    counts = sorted(set(counts))
    return f'n = {counts[0]}' if len(counts) == 1 else f'n from {counts[0]} to {counts[-1]}'


def side(claim: Mapping[str, Any], which: str) -> tuple[str, str, str]:
    """Arm, expert and measure of a side, 'a' or 'b', of a claim."""
    arm, of, measure = claim['figures'][which].rsplit(' ', 2)
    return arm, of, measure


def stage_two(settings: Mapping[str, Any]) -> int | None:
    """First epoch of stage two, from 0, as given or else 11/12 of the epochs; None if an arm has none."""
    if settings.get('keep_mixup_drw') and settings.get('drw_on') == 'none':
        return None
    start, epochs = settings.get('drw_start_epoch'), settings.get('epochs')
    return start if start is not None else round(epochs * 11 / 12) if epochs else None


def curve(study: Study, run: Mapping[str, Any]) -> dict[int, dict[str, float]]:
    """Rows of the evaluated epochs of a run, by epoch from 1, behind those of the run that it goes on from."""
    rows = {}
    for row in csv.DictReader(run.get('curve') or ()):
        values = {name: float(value) for name, value in row.items() if name and value}
        if math.isfinite(values.get('eval_mean_top1', math.nan)):
            rows[int(values['epoch']) + 1] = values
    parent = study.parent(run['arm'])
    if rows and parent:
        key = run['subset'], run['seed']
        first_stage = next((other for other in study.runs(parent) if (other['subset'], other['seed']) == key), {})
        earlier = curve(study, first_stage) if first_stage else {}
        rows |= {epoch: values for epoch, values in earlier.items() if epoch < min(rows)}
    return dict(sorted(rows.items()))


def by_block(study: Study, of: Callable[[Mapping[str, Any]], Any]) -> dict[str, np.ndarray]:
    """A measure of analyze.py after each block, `[runs, blocks]`, of the arms that have it."""
    found = {}
    for arm in study.arms:
        runs = [numbers(values) for run in study.runs(arm) if (values := of(analysis(run)))]
        if runs and len(set(map(len, runs))) == 1:
            found[arm] = np.array(runs)
    return found


def distances(of: Mapping[str, Any]) -> list[float]:
    """Attention distance in pixels after each block, mean of the heads."""
    return [statistics.fmean(heads) for heads in of.get('attention_distance_px') or () if heads]


@dataclass(frozen=True)
class Level:
    """A level of a sweep that was run.

    Attributes:
        label: Name for people.
        x: Place on the axis.
        student: Arm of DeiT-LT.
        rival: Arm of the baseline at the same level, if any was run.
    """
    label: str
    x: float
    student: str
    rival: str | None


def has_scale(study: Study) -> bool:
    """Whether the levels of the sweep have their places on an axis; else they stand beside each other as given."""
    return study.sweep.get('x') == TEACHER_VIEW or all(
        level.get('x') is not None for level in study.sweep.get('levels') or ())


def rival_name(study: Study) -> str | None:
    """The baseline of the sweep, if it has one."""
    return next((name for level in study.sweep.get('levels') or () for name in level['arms'] if name != STUDENT), None)


def levels(study: Study) -> list[Level]:
    """The levels of the study's sweep that were run, from low to high x."""
    found = []
    for place, level in enumerate(study.sweep.get('levels') or ()):
        student, other = level['arms'].get(STUDENT), level['arms'].get(rival_name(study))
        x = level.get('x') if has_scale(study) else place
        if study.sweep.get('x') == TEACHER_VIEW:
            seen = known((analysis(run).get('ood') or {}).get('teacher_top1_train_view') for run in study.runs(student))
            x = statistics.fmean(seen) if seen else None
        if x is not None and study.values(student, 'mean', 'overall'):
            found.append(Level(plain(level['label']), float(x), student, other if study.runs(other) else None))
    return sorted(found, key=lambda level: level.x)


def gains(study: Study) -> list[tuple[Level, float]]:
    """How much the mean of both is above the baseline at the same level, in points over all classes."""
    return [
        (level, statistics.fmean(study.values(level.student, 'mean', 'overall'))
         - statistics.fmean(study.values(level.rival, 'mean', 'overall')))
        for level in levels(study) if level.rival]
