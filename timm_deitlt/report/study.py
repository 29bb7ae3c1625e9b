"""A study as its results tell it: plain values, what follows from them, and what its page shows."""
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..evaluation.fusion import figures_of
from ..evaluation.shots import GROUPS
from .look import EXPERTS, FUSIONS, LOOKS, Table, number, plain
from .run import counted, numbers, setting

Result = Mapping[str, Any]  # the content of a file of results
Analysis = Mapping[str, Any]  # what analyze.py measured of a run
LEAST = 3  # with fewer pairs of runs, no claim is judged
# of claims that are not about accuracies: unit, and digits of a difference
MEASURES = {'rank': ('rank', 2), 'distance': ('pixels', 2), 'divergence': ('1 - cos', 3)}
# of one claim, and of several
_VERDICTS = {
    'holds': ('holds', 'hold'), 'does not hold': ('does not hold', 'do not hold'),
    'not shown at this scale': ('is not shown at this scale', 'are not shown at this scale'),
    'too few runs': ('has too few runs', 'have too few runs')}
_EXPERT_COLUMNS = tuple((of, group) for of in ('cls', 'dist', 'teacher') for group in ('overall', 'tail'))
_VIEWS = {
    'teacher_top1_clean': 'right on clean images, %', 'teacher_top1_train_view': "right on the student's, %",
    'teacher_entropy_clean': 'entropy on clean, nats', 'teacher_entropy_train_view': "on the student's, nats",
    'teacher_tail_share': 'its answers in the tail, %', 'true_tail_share': 'labels in the tail, %',
    'dist_agreement': 'DIST agrees, %'}


class Study:
    """A study. Its arguments are those of `write_study_report`.

    Attributes:
        arms: Arms by name.
        results: Results of these arms, ordered by subset, seed and arm.
        subsets: Subsets of the images in the results.
        seeds: Seeds in the results.
    """

    def __init__(
            self,
            name: str,
            arms: Sequence[Mapping[str, Any]],
            results: Iterable[Result],
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

    def runs(self, arm: str | None) -> list[Result]:
        """Results of an arm, by subset and seed."""
        return [result for result in self.results if result['arm'] == arm]

    def parent(self, arm: str) -> str | None:
        """The arm that an arm continues, if it belongs to the study."""
        parent = self.arms[arm].get('parent')
        return parent if parent in self.arms else None

    def label(self, arm: str, full: bool = False) -> str:
        """Name of an arm for readers, on one line; `full` adds the arm's own name where labels may repeat."""
        label = plain(self.arms[arm]['label'])
        return f'{label} ({plain(arm)})' if full and self.parent(arm) else label

    def values(self, arm: str | None, of: str, group: str) -> list[float]:
        """Accuracies of the arm's runs in percent, where measured; `of` is as in `figures_of`."""
        return known(accuracy(run, of, group) for run in self.runs(arm))

    def experts(self, arm: str) -> list[str]:
        """'mean', 'cls' and 'dist', before them 'answer' if the prediction of a run is another than the mean.

        An arm with one expert has no 'cls', because 'mean' equals it.
        """
        experts = list(EXPERTS) if self.values(arm, 'dist', 'overall') else ['mean']
        return [*(['answer'] if any(map(is_fused, self.runs(arm))) else []), *experts]

    def n(self, arms: Iterable[str]) -> str:
        """'n = 3' runs, or the least and the most if arms differ."""
        return count_words(len(self.runs(arm)) for arm in arms)

    def most_runs(self, arms: Iterable[str]) -> int:
        """Number of runs of the arm that has most."""
        return max(len(self.runs(arm)) for arm in arms)

    def most_claimed(self, arms: Iterable[str]) -> str | None:
        """The arm that most claims are about; the first one if there are several."""
        named = [side(claim, which)[0] for claim in self.verdicts for which in 'ab']
        return max(arms, key=named.count, default=None)

    def by_block(self, kind: str) -> dict[str, np.ndarray]:
        """A measure in `BY_BLOCK` after each block, `[runs, blocks]`, of the arms for which it was measured."""
        found = {}
        for arm in self.arms:
            runs = [numbers(values) for run in self.runs(arm) if (values := BY_BLOCK[kind](analysis(run)))]
            if runs and len(set(map(len, runs))) == 1:
                found[arm] = np.array(runs)
        return found


def accuracy(result: Result, of: str, group: str) -> float | None:
    """Accuracy in percent, None where there is none; `of` is as in `figures_of`."""
    measured = figures_of({**result['metrics'], 'fusion': result.get('fusion')}, of)
    return measured.get('top1' if group == 'overall' else group)


def is_fused(result: Result) -> bool:
    """Whether the prediction of a run is another than the mean of the logits."""
    return result['metrics'].get('answer', 'mean') != 'mean'


def analysis(result: Result) -> Analysis:
    """What analyze.py measured of a run; empty if nothing."""
    return result.get('analysis') or {}


def resolved(result: Result) -> Mapping[str, Any]:
    """All settings of a run, also those that a recipe gave it."""
    return result.get('resolved') or result['settings']


def known(values: Iterable[float | None]) -> list[float]:
    """The values that were measured."""
    return [value for value in values if value is not None and math.isfinite(value)]


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean and, with two values or more, standard deviation (n - 1); a dash without values."""
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


def _distances(of: Analysis) -> list[float]:
    """Attention distance of each block in pixels, averaged over the heads."""
    return [statistics.fmean(heads) for heads in of.get('attention_distance_px') or () if heads]


def _mean_of(values: Sequence[float] | None) -> float | None:
    return statistics.fmean(values) if values else None


BY_BLOCK: Mapping[str, Callable[[Analysis], Any]] = {
    'mean distance, pixels': _distances,
    'rank of DIST': lambda of: of.get('rank_dist'),
    'effective rank of DIST': lambda of: of.get('effective_rank_dist'),
    '1 - cos(CLS, DIST)': lambda of: of.get('divergence'),
}
# one number of a run, and its digits
_Column = tuple[Callable[[Analysis], float | None], int]
_MECHANISMS: Mapping[str, _Column] = {
    'distance, first two blocks, px': (
        lambda of: _mean_of([px for heads in (of.get('attention_distance_px') or [])[:2] for px in heads]), 1),
    'distance, all blocks, px': (lambda of: _mean_of(_distances(of)), 1),
    'rank of CLS': (lambda of: _mean_of(of.get('rank_cls')), 1),
    'rank of DIST': (lambda of: _mean_of(of.get('rank_dist')), 1),
    'effective rank of DIST': (lambda of: _mean_of(of.get('effective_rank_dist')), 1),
    '1 - cos(CLS, DIST), final norm': (lambda of: None if of.get('cos_norm') is None else 1 - of['cos_norm'], 3),
}


def page_values(study: Study) -> dict[str, Any]:
    """What study.html.jinja shows besides figures and the number of levels that were run."""
    own = [f'{run["arm"]}-subset{run["subset"]}-seed{run["seed"]}.json' for run in study.results
           if run['study'] == study.name]
    cells = {tuple((run['subset'], run['seed']) for run in runs) for arm in study.arms if (runs := study.runs(arm))}
    analysed = [arm for arm in study.arms if any(analysis(run) for run in study.runs(arm))]
    seen = [arm for arm in analysed if any(analysis(run).get('ood') for run in study.runs(arm))]
    views: dict[str, _Column] = {
        words: (lambda of, key=key: (of.get('ood') or {}).get(key), 2 if 'entropy' in key else 1)  # type: ignore[misc]
        for key, words in _VIEWS.items()}
    versions = _versions(study)
    return {
        'study': study, 'title': f'Study {study.name}', 'about': _about(study), 'lede': _sentence(study),
        'unfinished': _unfinished(study), 'claims': _claims(study), 'least': LEAST, 'arms': _arms(study),
        'unlike_runs': len(cells) > 1, 'changes': _changes(study), 'fusions': _fusions(study),
        'mechanisms': _means(study, analysed, _MECHANISMS), 'views': _means(study, seen, views),
        'blocks': {f'{kind[0].upper()}{kind[1:]}': _blocks(study, kind) for kind in BY_BLOCK if study.by_block(kind)},
        'versions': {name: next(iter(found)) if len(found) == 1 else
                     ', '.join(f'{value} ({counted(count, "run")})' for value, count in found.items())
                     for name, found in versions.items()},
        'differing': listed([name for name, found in versions.items() if len(found) > 1]),
        'settings': {name: setting(value) for name, value in study.settings.items()},
        'results': own, 'files': _files(study, own)}


def listed(words: Sequence[str]) -> str:
    """'a, b and c'."""
    return ' and '.join(filter(None, (', '.join(words[:-1]), *words[-1:])))


def _about(study: Study) -> list[str]:
    dataset, model, epochs = (_shared(study, name) for name in ('dataset', 'model', 'epochs'))
    parts = [setting(dataset)] if dataset else []
    parts += [str(model)] if model else []
    parts += [counted(epochs, 'epoch')] if epochs else []
    parts += [counted(len(study.arms), 'arm'), counted(len(study.results), 'run')]
    if study.results:
        parts += [f'{word if len(of) == 1 else f"{word}s"} {", ".join(map(str, of))}'
                  for word, of in (('seed', study.seeds), ('subset', study.subsets))]
        seconds = sum(known(run['metrics'].get('seconds') for run in study.results))
        parts.append(f'{seconds / 3600:.1f} hours')
    return parts


def _shared(study: Study, name: str) -> Any:
    """A setting of all runs, from the study or a recipe; None if they differ in it."""
    values = [resolved(run).get(name) for run in study.results] or [study.settings.get(name)]
    return values[0] if values.count(values[0]) == len(values) else None


def _sentence(study: Study) -> str:
    found = Counter(claim['verdict'] for claim in study.verdicts)
    if not found:
        return f'{counted(len(study.results), "run")} of {counted(len(study.arms), "arm")}, and no claims to judge.'
    order = [*_VERDICTS, *sorted(set(found) - set(_VERDICTS))]
    words = [f'{found[verdict]} {_VERDICTS.get(verdict, (verdict, verdict))[found[verdict] != 1]}'
             for verdict in order if found[verdict]]
    return f'Of {counted(len(study.verdicts), "claim")}, {listed(words)}.'


def _unfinished(study: Study) -> list[str]:
    """Sentences on the runs that some arms have and others lack."""
    lines = [] if study.results else ['No arm has been run.']
    for subset in study.subsets:
        seeds = sorted({run['seed'] for run in study.results if run['subset'] == subset})
        short = []
        for arm in study.arms:
            there = {run['seed'] for run in study.runs(arm) if run['subset'] == subset}
            gone = ', '.join(str(seed) for seed in seeds if seed not in there)
            if gone:
                short.append(f'{arm} (seed {gone})' if there else arm)
        if short:
            lines.append(f'Subset {subset}, seeds {", ".join(map(str, seeds))}: {", ".join(short)}.')
    return lines


def _keys(study: Study, arms: Iterable[str]) -> list[str | None]:
    return ['sub' if study.parent(arm) else None for arm in arms]


def _claims(study: Study) -> Table:
    """Claims with their verdict, the paired difference, and the mean of both sides."""
    rows = []
    for claim in study.verdicts:
        found, measure = claim['figures'], side(claim, 'a')[2]
        digits = MEASURES.get(measure, ('', 2))[1]
        means = [number(found[f'mean_{which}'], 3 if measure == 'divergence' else 1) for which in 'ab']
        difference = number(found['difference'], digits, '+')
        if found.get('half_interval') is not None:
            difference += f' ± {found["half_interval"]:.{digits}f}'
        sign = '<' if '<' in found['claimed'] else '>'
        rows.append([
            claim['claim'], claim['verdict'], claim['n'], difference, *means, f'{found["a"]} {sign} {found["b"]}'])
    return Table(['claim', 'verdict', 'n', 'difference', 'first', 'second', 'what is compared'], rows)


def _arms(study: Study) -> Table:
    """Accuracies of every arm."""
    fused = any(map(is_fused, study.results))
    words = {of: 'mean' if of == 'mean' else LOOKS[of].label for of in ('answer', *EXPERTS, 'teacher')}
    columns = [
        *(('answer' if fused else 'mean', group) for group in ('overall', *GROUPS)),
        *([('mean', 'overall')] if fused else []), *_EXPERT_COLUMNS]
    rows = []
    for arm in study.arms:
        runs = len(study.runs(arm))
        cells = [spread(study.values(arm, *column)) if runs else '' for column in columns]
        rows.append([study.label(arm), runs or 'not run', *cells])
    return Table(['arm', 'n', *(f'{words[of]} {group}' for of, group in columns)], rows, _keys(study, study.arms))


def _changes(study: Study) -> Table:
    """What every arm sets in another way than the study."""
    rows = []
    for arm in study.arms:
        runs = study.runs(arm)
        changed = {name: value for name, value in (runs[0]['settings'] if runs else {}).items()
                   if name not in ('seed', 'split_seed')
                   and (name not in study.settings or study.settings[name] != value)}
        words = ', '.join(f'{name}={value}' for name, value in changed.items()) or 'nothing'
        rows.append([study.label(arm), arm, study.parent(arm) or '–', words if runs else 'not run'])
    return Table(['arm', 'in files', 'continues', 'settings'], rows, _keys(study, study.arms))


def _fusions(study: Study) -> Table | None:
    """Accuracies of every fusion; None if none was measured."""
    names = {'mean': 'mean of the logits', **FUSIONS}
    measured = [arm for arm in study.arms if any(study.values(arm, fusion, 'overall') for fusion in FUSIONS)]
    columns = [(of, group) for of in names for group in ('overall', 'tail')]
    return Table(
        ['arm', *(f'{names[of]}, {group}' for of, group in columns)],
        [[study.label(arm), *(spread(study.values(arm, *column)) for column in columns)] for arm in measured],
        _keys(study, measured)) if measured else None


def _means(study: Study, arms: Sequence[str], columns: Mapping[str, _Column]) -> Table | None:
    """Mean and standard deviation of what analyze.py measured of some arms; None without arms."""
    return Table(
        ['arm', *columns],
        [[study.label(arm), *(spread(known(of(analysis(run)) for run in study.runs(arm)), digits)
                              for of, digits in columns.values())] for arm in arms],
        _keys(study, arms)) if arms else None


def _blocks(study: Study, kind: str) -> Table:
    """Mean of a measure after each block."""
    found = study.by_block(kind)
    digits, count = 3 if 'cos' in kind else 1, max(values.shape[1] for values in found.values())
    rows = []
    for arm, values in found.items():
        cells = [f'{value:.{digits}f}' for value in values.mean(axis=0)]
        rows.append([study.label(arm), *cells, *[''] * (count - len(cells))])
    return Table(['arm', *range(1, count + 1)], rows, _keys(study, found))


def _versions(study: Study) -> dict[str, Counter]:
    """How many runs had each version."""
    versions: dict[str, Counter] = {}
    for run in study.results:
        for name, value in {**run['versions'], 'threads': run.get('threads')}.items():
            if value is not None:
                versions.setdefault(name, Counter())[str(value)] += 1
    return versions


def _files(study: Study, own: Sequence[str]) -> dict[str, str]:
    others = Counter(run['study'] for run in study.results if run['study'] != study.name)
    return {
        '*.json': f'{counted(len(own), "run")}: settings, metrics, curve, versions',
        **{f'../{name}/*.json': f'{counted(count, "run")} of that study' for name, count in others.items()},
        **({'../verdicts.json': 'the claims, and the files that they rest on'} if study.verdicts and own else {}),
        'plots/*.png': 'the figures of this page'}
