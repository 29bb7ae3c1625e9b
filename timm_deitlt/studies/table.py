"""Tables of a study and verdicts on its claims, from the files of results alone."""
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ..evaluation.fusion import figures_of
from ..utils.tables import markdown_table
from .cells import Cell, cell_path
from .study import GROUPS, Claim, Study

HOLDS, FAILS, OPEN = 'holds', 'does not hold', 'not shown at this scale'
FEW = 'too few runs'
# Smallest number of pairs for a verdict, and the confidence that a verdict needs
_LEAST_PAIRS, _CONFIDENCE = 3, .95
# How the figures of a measure are written; accuracies are in percent
_FORMATS = {'distance': '{:.1f} px', 'divergence': '{:.2f}', 'rank': 'rank {:.1f}'}
_EXPERT_COLUMNS = tuple((expert, group) for expert in ('cls', 'dist') for group in ('overall', 'tail'))


def value(result: Mapping[str, Any], of: str, measure: str) -> float | None:
    """A figure of one result, or None if the arm has none.

    Args:
        result: Content of a file of results.
        of: An expert, 'teacher', a fusion, 'answer' for what the run gives as its answer, or what is measured, see
            `study.MEASURES`.
        measure: 'overall', 'head', 'mid' or 'tail' in percent; 'rank', the mean over blocks; 'distance' in px, the mean
            over the heads of the first two blocks; 'divergence', 1 - cos after the final norm.
    """
    if measure in GROUPS:
        figures = figures_of({**result['metrics'], 'fusion': result.get('fusion')}, of)
        return figures.get('top1' if measure == 'overall' else measure)
    analysis = result.get('analysis') or {}
    if measure == 'rank':
        ranks = analysis.get(f'rank_{of}')
        return statistics.fmean(ranks) if ranks else None
    if measure == 'distance':
        early = [px for block in (analysis.get('attention_distance_px') or [])[:2] for px in block]
        return statistics.fmean(early) if early else None
    cos = analysis.get('cos_norm')
    return None if cos is None else 1 - cos


def verdicts(study: Study, results: Mapping[Cell, Mapping[str, Any]], root: Any = 'results') -> list[dict[str, Any]]:
    """Judge every claim of a study.

    Let d be the differences between the two sides, one for each subset and seed, in the claimed direction. A claim
    *holds* if the 95 % confidence interval of mean(d) by Student's t lies above zero, and the mean over each subset of
    the images is above zero too. It *does not hold* if all of them lie below zero. Otherwise it is *not shown at this
    scale*. With fewer than three differences the verdict is *too few runs*.

    Returns:
        For each claim 'claim', 'verdict', 'n', 'figures' (means of both sides; mean, standard deviation and half the
        confidence interval of d, all differences, and their mean by subset) and 'files', from which the figures come.
    """
    return [_judge(study, claim, results, root) for claim in study.claims]


def _judge(study: Study, claim: Claim, results: Mapping[Cell, Mapping[str, Any]], root: Any) -> dict[str, Any]:
    pairs = [pair for cell in sorted(results) if (pair := _pair(claim, cell, results))]
    differences = [(b - a if claim.less else a - b) for _, a, b in pairs]
    mean = statistics.fmean(differences) if differences else None
    std = statistics.stdev(differences) if len(differences) > 1 else None
    subsets = sorted({cell.subset for cell, *_ in pairs})
    by_subset = {
        subset: statistics.fmean([d for (cell, *_), d in zip(pairs, differences, strict=True) if cell.subset == subset])
        for subset in subsets}
    verdict, limit = FEW, None
    if mean is not None and std is not None and len(differences) >= _LEAST_PAIRS:
        limit = _half_interval(std, len(differences))
        if mean > limit and min(by_subset.values()) > 0:
            verdict = HOLDS
        elif -mean > limit and max(by_subset.values()) < 0:
            verdict = FAILS
        else:
            verdict = OPEN
    names = sorted({
        cell_path(root, study, Cell(cell.subset, cell.seed, side.arm)).as_posix()
        for cell, *_ in pairs for side in (claim.a, claim.b)})
    return {
        'claim': claim.text,
        'verdict': verdict,
        'n': len(pairs),
        'figures': {
            'a': str(claim.a), 'b': str(claim.b), 'claimed': 'a < b' if claim.less else 'a > b',
            'mean_a': _rounded([a for _, a, _ in pairs]), 'mean_b': _rounded([b for *_, b in pairs]),
            'difference': None if mean is None else round(mean, 3), 'std': None if std is None else round(std, 3),
            'half_interval': None if limit is None else round(limit, 3),
            'differences': [round(d, 3) for d in differences],
            'by_subset': {str(subset): round(d, 3) for subset, d in by_subset.items()}},
        'files': names,
    }


def _half_interval(std: float, count: int) -> float:
    from scipy.special import stdtrit  # a slow import that train.py, which imports this module, does not need
    return stdtrit(count - 1, (1 + _CONFIDENCE) / 2).item() * std / math.sqrt(count)


def _pair(claim: Claim, cell: Cell, results: Mapping[Cell, Mapping[str, Any]]) -> tuple[Cell, float, float] | None:
    """Both sides of a claim for one subset and seed. Only the cell of side a gives a pair, so each is counted once."""
    if cell.arm != claim.a.arm:
        return None
    other = results.get(Cell(cell.subset, cell.seed, claim.b.arm))
    if other is None:
        return None
    a, b = (value(result, side.of, side.measure) for result, side in ((results[cell], claim.a), (other, claim.b)))
    return None if a is None or b is None else (cell, a, b)


def _rounded(values: Sequence[float]) -> float | None:
    return round(statistics.fmean(values), 3) if values else None


def format_study(study: Study, results: Mapping[Cell, Mapping[str, Any]]) -> str:
    """The tables of a study in Markdown: the arms with mean and standard deviation for each subset, then the claims.

    If some claims are main claims, they come first, and the rest is folded. Arms and claims that have not run have no
    row; a sentence below the table names them.
    """
    lines = []
    for subset in sorted({cell.subset for cell in results}):
        if subset:
            lines += ['', f'Other images of the same classes and counts (`--subsets {subset}`):', '']
        lines.append(_arm_table(study, {cell: result for cell, result in results.items() if cell.subset == subset}))
    if missing := _missing(study, results):
        lines += ['', missing]
    judged = list(zip(study.claims, verdicts(study, results), strict=True))
    main = [found for claim, found in judged if claim.main]
    others = [found for claim, found in judged if not claim.main]
    if others:
        lines += ['', _claim_table(others)]
    if main:
        ran = {cell.arm for cell in results}
        title = 'The arm' if len(study.arms) == 1 else f'{len(ran)} of {len(study.arms)} arms' if (
            len(ran) < len(study.arms)) else f'All {len(ran)} arms'
        title += ', and the other claims' if others else ''
        lines = [_claim_table(main), '', f'<details><summary>{title}</summary>', '', *lines, '', '</details>']
    return '\n'.join(lines)


def _claim_table(judged: Sequence[Mapping[str, Any]]) -> str:
    open_claims = '; '.join(found['claim'] for found in judged if not found['n'])
    sentence = f'Not measured yet: {open_claims}.' if open_claims else ''
    judged = [found for found in judged if found['n']]
    if not judged:
        return sentence
    rows = []
    for found in judged:
        figures = found['figures']
        difference = '' if figures['difference'] is None else f"{figures['difference']:+.2f}" + (
            '' if figures['half_interval'] is None else f" ± {figures['half_interval']:.2f}")
        written = _FORMATS.get(figures['a'].split()[-1], '{:.1f}')
        sides = (figures[f'mean_{side}'] for side in 'ab')
        rows.append([
            found['claim'], str(found['n']), *('' if mean is None else written.format(mean) for mean in sides),
            difference, f"*{found['verdict']}*"])
    table = markdown_table(['claim', 'n', 'first', 'second', 'difference (95 %)', 'verdict'], rows, words=(0, 5))
    return f'{table}\n\n{sentence}' if sentence else table


def _arm_table(study: Study, results: Mapping[Cell, Mapping[str, Any]]) -> str:
    fused = any('answer' in result['metrics'] for result in results.values())
    columns = [
        *(('answer' if fused else 'mean', group) for group in GROUPS), *([('mean', 'overall')] if fused else []),
        *_EXPERT_COLUMNS]
    rows = []
    for name, arm in study.arms.items():
        runs = [result for cell, result in sorted(results.items()) if cell.arm == name]
        if not runs:
            continue
        label = f'&nbsp;&nbsp;{arm.label}' if arm.parent else arm.label
        figures = (_cell([value(run, *column) for run in runs]) for column in columns)
        rows.append([label, str(len(runs)), *figures])
    return markdown_table(['arm', 'n', *(f'{of} {group}' for of, group in columns)], rows)


def _missing(study: Study, results: Mapping[Cell, Mapping[str, Any]]) -> str:
    """A sentence that says which arms lack which seeds of the study on the first subset that was run."""
    lacking: dict[str, list[str]] = {}
    first = min((cell.subset for cell in results), default=0)
    for name in study.arms:
        seeds = [seed for seed in study.seeds if Cell(first, seed, name) not in results]
        if seeds:
            lacking.setdefault(', '.join(map(str, seeds)), []).append(f'`{name}`')
    if not lacking:
        return ''
    parts = [f'{", ".join(names)} (seed {seeds})' for seeds, names in lacking.items()]
    return f'Not run yet: {"; ".join(parts)}.'


def _cell(values: Sequence[float | None]) -> str:
    known = [v for v in values if v is not None]
    if not known:
        return ''
    return f'{statistics.fmean(known):.1f}' + (f' ± {statistics.stdev(known):.1f}' if len(known) > 1 else '')
