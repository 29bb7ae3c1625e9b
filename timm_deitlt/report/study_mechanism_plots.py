"""Figures of a study about what is inside: mechanisms by block, fusions of the experts, a sweep."""
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from .page import LIGHT, Plot, plain
from .plots import LOOKS, Look, finish, from_zero, line, new_figure, shortened, whole_numbers
from .run_files import EXPERTS
from .study_plots import beside, place_rows, row_panels, zero
from .study_values import (
    TEACHER_VIEW,
    Level,
    Study,
    accuracy,
    analysis,
    by_block,
    distances,
    gains,
    has_scale,
    known,
    levels,
    rival_name,
    side,
    spread,
)

FUSIONS = {
    'mean_probs': 'mean of the probabilities', 'cls_adjusted': 'CLS alone, adjusted by the class prior',
    'mean_adjusted': 'mean of DIST and adjusted CLS', 'count_mix': 'mix by training count'}
BY_BLOCK: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    'mean distance, pixels': distances,
    'rank of DIST': lambda of: of.get('rank_dist'),
    'effective rank of DIST': lambda of: of.get('effective_rank_dist'),
    '1 - cos(CLS, DIST)': lambda of: of.get('divergence'),
}
_ARMS = (LOOKS['first'], LOOKS['second'], Look(LIGHT['fg'], 'D', ':'))
_RIVAL = Look(LIGHT['muted'], 'v', ':')
_ACROSS, _APART = 265, 14  # points: about the width between the outer levels of a sweep, and between slanted labels
_ROOM = 2.6  # tenths of an inch for the marks of a fusion


def distance_by_arm(study: Study) -> Plot | None:
    """Mean attention distance of the heads of each block."""
    uniform = known(analysis(run).get('uniform_attention_distance_px') for run in study.results)
    return _by_block(
        study, 'distance_by_arm', 'How far the heads look', ['mean distance, pixels'], 'distance',
        'Blocks far below the dotted line look at their neighbourhood, as a CNN does.', uniform[0] if uniform else None)


def rank_by_arm(study: Study) -> Plot | None:
    """Rank and effective rank of the DIST features after each block."""
    return _by_block(
        study, 'rank_by_arm', 'Rank of the DIST features', ['rank of DIST', 'effective rank of DIST'], 'rank',
        'The paper says that a teacher trained by SAM lowers the curve.')


def divergence_by_arm(study: Study) -> Plot | None:
    """1 - cos(CLS, DIST) after each block."""
    return _by_block(
        study, 'divergence_by_arm', 'Where CLS and DIST part', ['1 - cos(CLS, DIST)'], 'divergence',
        'Tokens that stay alike (near 0) are one expert under two names.')


def _by_block(
        study: Study,
        name: str,
        title: str,
        kinds: list[str],
        measure: str,
        look_for: str,
        limit: float | None = None,
) -> Plot | None:
    series = {kind: found for kind in kinds if (found := by_block(study, BY_BLOCK[kind]))}
    if not series:
        return None
    figure, panels = new_figure(3.4 if len(series) == 1 else 5, len(series))
    told = []
    for axes, (kind, found) in zip(panels[:, 0], series.items(), strict=True):
        shown = _claimed(study, measure, found)
        others = [arm for arm in found if arm not in shown]
        for arm in others:
            values = found[arm].mean(axis=0)
            axes.plot(np.arange(1, len(values) + 1), values, color=LIGHT['count-edge'], linewidth=.9)
        for arm, look in zip(shown, _ARMS, strict=False):
            values = found[arm].mean(axis=0)
            blocks = np.arange(1, len(values) + 1)
            line(axes, blocks, values, look, shortened(study.label(arm, full=True), 54), markevery=1)
            if len(found[arm]) > 1:
                std = found[arm].std(axis=0, ddof=1)
                axes.vlines(blocks, values - std, values + std, color=look.color, linewidth=1)
            told.append(f'{kind}, {study.label(arm, full=True)}: {", ".join(f"{value:.3g}" for value in values)}.')
        if others:
            axes.plot([], [], color=LIGHT['count-edge'], linewidth=.9, label=f'the other {len(others)} arms')
        if limit is not None:
            axes.axhline(limit, color=LIGHT['fg'], linestyle=':', linewidth=1, label='uniform attention')
        from_zero(axes)
        axes.set_ylabel(kind)
    whole_numbers(axes.xaxis)
    axes.set_xlabel('block' if limit is not None else 'after block')
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc='outside upper left')
    claimed = 'Named are arms that claims compare, or else the first; the table has all. ' if others else ''
    return finish(
        figure, name, title,
        f'{look_for} {claimed}Means of the runs ({study.n(found)})'
        + (', with one standard deviation to either side.' if study.most_runs(found) > 1 else '.'),
        f'Means of the runs by block. {" ".join(told)}' + (f' Uniform attention: {limit:.1f}.' if limit else ''))


def _claimed(study: Study, measure: str, found: Mapping[str, Any]) -> list[str]:
    """Arms that claims compare by a measure, else the first ones."""
    named = [side(claim, which)[0] for claim in study.verdicts if side(claim, 'a')[2] == measure for which in 'ab']
    return list(dict.fromkeys(arm for arm in named if arm in found) or found)[:len(_ARMS)]


def fusion_gains(study: Study, arm: str, fusion: str, group: str) -> list[float]:
    """How much a fusion is above the mean of logits in each run of an arm, in points."""
    pairs = [(accuracy(run, fusion, group), accuracy(run, 'mean', group)) for run in study.runs(arm)]
    return [other - mean for other, mean in pairs if other is not None and mean is not None]


def fusions(study: Study) -> Plot | None:
    """Each fusion of the experts against the mean of their logits, over all and over the tail classes."""
    arms = [arm for arm in study.arms if len(study.experts(arm)) > 1 and any(
        fusion_gains(study, arm, fusion, 'overall') for fusion in FUSIONS)]
    if not arms:
        return None
    first = study.most_claimed(arms)
    rows = [(words, False, _ROOM) for words in FUSIONS.values()]
    figure, panels = row_panels([rows, rows])
    told = []
    for axes, group in zip(panels, ('overall', 'tail'), strict=True):
        for fusion, top in zip(FUSIONS, place_rows(axes, rows), strict=True):
            gains_of = {arm: of for arm in arms if (of := fusion_gains(study, arm, fusion, group))}
            if gains_of:
                above = _draw_fusion(axes, gains_of, first, top)
                best = '' if first not in gains_of else (
                    f'; {study.label(first, full=True)} {statistics.fmean(gains_of[first]):+.2f}')
                told.append(f'{FUSIONS[fusion]}, {group}: above in {above}{best}.')
        axes.set_xlabel(
            f'points above the mean of logits, {"all classes" if group == "overall" else "tail classes"}')
    of_runs = 'one run' if len(arms) == 1 else 'mean of the runs of one arm'
    axes = panels[0]
    axes.plot([], [], 'o', color=LIGHT['muted'], markersize=3.4, label=of_runs)
    axes.plot([], [], 'D', color=LOOKS['first'].color, label=shortened(study.label(first, full=True), 50))
    figure.legend(*axes.get_legend_handles_labels(), loc='outside upper left')
    return finish(
        figure, 'fusions', 'Joining the experts in other ways',
        "A way that is better than the paper's mean of logits lies right of zero for every arm, in both panels. "
        f'Dot: {of_runs} ({study.n(arms)}); '
        + ('line: one standard deviation of the runs to either side; ' if study.most_runs(arms) > 1 else '')
        + 'at the right: how many dots lie above zero.',
        f'Differences to the mean of logits in points, {len(arms)} arms. {" ".join(told)}')


def _draw_fusion(axes: Axes, gains_of: Mapping[str, list[float]], first: str, top: float) -> str:
    """Draw one fusion below `top`, and give how many dots are above zero."""
    upper, lower = top + .28 * _ROOM, top + .78 * _ROOM
    zero(axes, top, _ROOM)
    dots = list(gains_of.values())[0] if len(gains_of) == 1 else [statistics.fmean(of) for of in gains_of.values()]
    axes.plot(dots, [lower] * len(dots), 'o', color=LIGHT['muted'], markersize=3.4, markeredgewidth=0, alpha=.8)
    if of := gains_of.get(first):
        mean = statistics.fmean(of)
        if len(of) > 1:
            std = statistics.stdev(of)
            axes.plot([mean - std, mean + std], [upper, upper], color=LOOKS['first'].color, linewidth=1.4)
        axes.plot([mean], [upper], 'D', color=LOOKS['first'].color)
    words = f'{sum(dot > 0 for dot in dots)} of {len(dots)}'
    beside(axes, lower, words, LIGHT['muted'])
    return words


def sweep(study: Study) -> Plot | None:
    """Accuracy of student, baseline and teacher over the levels of a sweep."""
    found = levels(study)
    if not found:
        return None
    figure, panels = new_figure(5.4, 2)
    places = np.array([level.x for level in found])
    for axes, group in zip(panels[:, 0], ('overall', 'tail'), strict=True):
        for level, after in _turns(study):
            axes.axvspan(level.x, after.x, color=LIGHT['count'], linewidth=0, zorder=.1)
        for of, look, label in (
                *((expert, LOOKS[expert], EXPERTS[expert]) for expert in EXPERTS),
                ('teacher', LOOKS['teacher'], 'teacher, clean images'), ('rival', _RIVAL, plain(rival_name(study)))):
            each = [
                study.values(level.rival, 'mean', group) if of == 'rival' else study.values(level.student, of, group)
                for level in found]
            if any(each):
                means = np.array([statistics.fmean(values) if values else np.nan for values in each])
                line(axes, places, means, look, label, markevery=1)
                for x, values in zip(places, each, strict=True):
                    if len(values) > 1:
                        axes.plot([x] * len(values), values, '_', color=look.color, markersize=6)
        axes.set_ylabel('all classes, %' if group == 'overall' else 'tail classes, %')
    _sweep_axis(study, panels[:, 0], found)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc='outside upper left', ncols=3)
    told = '; '.join(
        f'{level.label} ({level.x:.3g}): ' + ', '.join(
            f'{words} {spread(values)}' for words, values in (
                *((EXPERTS[of], study.values(level.student, of, 'overall')) for of in EXPERTS),
                (plain(rival_name(study)), study.values(level.rival, 'mean', 'overall')),
                ('teacher', study.values(level.student, 'teacher', 'overall'))) if values) for level in found)
    arms = [arm for level in found for arm in (level.student, level.rival) if arm]
    return finish(
        figure, 'sweep',
        'Where distillation stops helping' if study.sweep['x'] == TEACHER_VIEW else f'Accuracy over {study.sweep["x"]}',
        f'{turning_point(study)} Each point: {study.n(arms)} a level and arm'
        + ('; small bars: the runs.' if study.most_runs(arms) > 1 else
           ', so that a difference of a few points may be chance.'),
        f'Accuracy over all classes in percent by level. {told}.')


def _sweep_axis(study: Study, panels: np.ndarray, found: list[Level]) -> None:
    places, axes = [level.x for level in found], panels[-1]
    axes.set_xlabel("teacher's accuracy on the student's images, %" if study.sweep['x'] == TEACHER_VIEW else
                    plain(study.sweep['x']))
    if not has_scale(study):
        axes.set_xticks(places, [shortened(level.label, 14) for level in found])
        return
    if min(places) > 0 and max(places) >= 10 * min(places):
        places = np.log(places)
        axes.set_xscale('log')
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:,.6g}'))
        axes.xaxis.set_minor_locator(NullLocator())
    across = (np.array(places) - places[0]) * _ACROSS / max(places[-1] - places[0], 1e-9)
    free = 0.0
    for level, place in zip(found, across, strict=True):
        # labels of neighbours that lie close together are moved apart
        shift, free = max(0, free - place), max(free, place) + _APART
        panels[0].annotate(
            shortened(level.label, 24), (level.x, 1), (shift, 3), xycoords=('data', 'axes fraction'),
            textcoords='offset points', rotation=40, rotation_mode='anchor', fontsize=8.5, annotation_clip=False)


def _turns(study: Study) -> list[tuple[Level, Level]]:
    """Neighbouring levels between which the mean of both falls below the baseline, or rises above it."""
    found = gains(study)
    return [(one, two) for (one, before), (two, after) in zip(found, found[1:], strict=False)
            if (before > 0) != (after > 0)]


def turning_point(study: Study) -> str:
    """A sentence on the levels at which the student is better than the baseline."""
    found, rival = gains(study), plain(rival_name(study))
    if not found:
        return 'With no baseline beside it, the sweep shows where the student is best, not whether its teacher helps.'
    above = [(level, gain) for level, gain in found if gain > 0]
    below = [(level, gain) for level, gain in found if gain <= 0]
    if not above:
        return f'At no level is the mean of both above {rival}.'
    if not below:
        level, gain = min(above, key=lambda pair: pair[1])
        return f'The mean of both is above {rival} at every level, by {gain:.1f} points or more ({level.label}).'
    named = [', '.join(f'{level.label} ({gain:+.1f})' for level, gain in part) for part in (above, below)]
    return (f'The mean of both is above {rival} at {named[0]}, and not at {named[1]}: it crosses where the '
            'plot is grey.')
