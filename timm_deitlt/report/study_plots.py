"""Figures of a study that are made of rows: arms, claims, fusions. Wherever a mean is shown, the runs are too."""
import statistics
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..evaluation.shots import GROUPS
from .look import EXPERTS, FUSIONS, LIGHT, LOOKS, Plot, finish, legend, new_figure, plain, shortened
from .study import LEAST, MEASURES, Study, accuracy, count_words, known, side, spread

# tenths of an inch: a line of a row's label, the gap below a row, and the marks of an expert, a claim and a fusion
_LABEL, _GAP, _LANE, _CLAIM, _FUSION = 1.7, .8, .8, 2.9, 2.6
_AROUND = .95  # inches: axes and legend
_MARKS = {'holds': ('D', True), 'does not hold': ('X', True), 'not shown at this scale': ('D', False)}
_Row = tuple[str, bool, float]  # label, whether it is indented, room for its marks in tenths of an inch


def overall_by_arm(study: Study) -> Plot | None:
    """Accuracy over all classes of each arm and expert: its runs, their mean and standard deviation."""
    return _by_arm(study, 'overall', 'Every arm, all classes',
                   'Look which expert, and which arm, is furthest to the right.')


def tail_by_arm(study: Study) -> Plot | None:
    """The same for the tail classes."""
    return _by_arm(study, 'tail', 'Every arm, tail classes',
                   'DIST is the expert of the tail, so it should be to the right of CLS.')


def head_by_arm(study: Study) -> Plot | None:
    """The same for the head classes."""
    return _by_arm(study, 'head', 'Every arm, head classes', 'What an arm wins on the tail should not be lost here.')


def _by_arm(study: Study, group: str, title: str, look_for: str) -> Plot | None:
    found = {arm: {of: values for of in study.experts(arm) if (values := study.values(arm, of, group))}
             for arm in study.arms}
    found = {arm: of for arm, of in found.items() if of}
    if not found:
        return None
    rows = [(study.label(arm), study.parent(arm) is not None, len(of) * _LANE) for arm, of in found.items()]
    figure, (axes,) = _row_panels([rows])
    for arm, top in zip(found, _place_rows(axes, rows), strict=True):
        filled = [run['subset'] == study.subsets[0] for run in study.runs(arm) if known([accuracy(run, 'mean', group)])]
        for lane, (expert, values) in enumerate(found[arm].items()):
            _draw_runs(axes, values, top + (lane + .5) * _LANE, expert, filled)
    for expert in ('answer', *EXPERTS):
        if any(expert in of for of in found.values()):
            axes.plot([], [], LOOKS[expert].marker, color=LOOKS[expert].color, label=LOOKS[expert].label)
    axes.set_xlabel('accuracy, %' if group == 'overall' else f'accuracy on {group} classes, %')
    legend(figure, axes)
    of_subsets = (
        '' if len(study.subsets) < 2 else
        f' Filled dots: subset {study.subsets[0]} of the images; hollow: other subsets.')
    one = ' An arm with one expert has one row.' if any('dist' not in study.experts(arm) for arm in found) else ''
    words = (
        f'{study.label(arm, full=True)}: '
        + ', '.join(f'{LOOKS[of].label} {spread(values)}' for of, values in each.items())
        + f' ({study.n([arm])}).' for arm, each in found.items())
    return finish(
        figure, f'{group}_by_arm', title,
        f'{look_for} Dot: one run; bar: mean of the runs ({study.n(found)})'
        + ('; line: one standard deviation to either side.' if study.most_runs(found) > 1 else '.')
        + of_subsets + one,
        f'Accuracy in percent, {group}, mean and standard deviation of the runs. {" ".join(words)}')


def _draw_runs(axes: Axes, values: Sequence[float], y: float, expert: str, filled: Sequence[bool]) -> None:
    look, mean = LOOKS[expert], statistics.fmean(values)
    for value, full in zip(values, filled, strict=True):
        axes.plot([value], [y], look.marker, color=look.color, markersize=3.4, markeredgewidth=.8,
                  markerfacecolor=look.color if full else 'none')
    _deviation(axes, values, y, look.color, 1.1)
    axes.plot([mean], [y], '|', color=look.color, markersize=8, markeredgewidth=2)


def _deviation(axes: Axes, values: Sequence[float], y: float, color: str, width: float = 1.4) -> None:
    if len(values) > 1:
        mean, std = statistics.fmean(values), statistics.stdev(values)
        axes.plot([mean - std, mean + std], [y, y], color=color, linewidth=width)


def _dots(axes: Axes, values: Sequence[float], y: float) -> None:
    axes.plot(values, [y] * len(values), 'o', color=LIGHT['muted'], markersize=3.4, markeredgewidth=0)


def _row_panels(panels: Sequence[Sequence[_Row]]) -> tuple[Figure, np.ndarray]:
    """A figure with a panel for each list of rows."""
    heights = [sum(len(_wrapped(label)) * _LABEL + room + _GAP for label, _, room in rows) for rows in panels]
    figure, axes = new_figure(
        sum(heights) / 10 + _AROUND * len(panels), len(panels), sharex=False, height_ratios=heights)
    return figure, axes[:, 0]


def _place_rows(axes: Axes, rows: Sequence[_Row]) -> list[float]:
    """Write the label of each row above the room for its marks, and return the top of each room."""
    tops, y = [], 0.0
    for index, (label, indented, room) in enumerate(rows):
        start, y = y, y + _GAP / 2
        for words in _wrapped(label):
            axes.annotate(
                words, (0, y + _LABEL / 2), (14 if indented else 2, 0), xycoords=('axes fraction', 'data'),
                textcoords='offset points', fontsize=8.5, va='center', annotation_clip=False).set_in_layout(False)
            y += _LABEL
        tops.append(y)
        y += room + _GAP / 2
        if index % 2:
            axes.axhspan(start, y, facecolor=LIGHT['box'], linewidth=0, zorder=.1)
    axes.set_ylim(y, 0)
    axes.yaxis.set_visible(False)
    axes.spines['left'].set_visible(False)
    axes.grid(axis='x')
    if y > 30:  # in a tall panel, numbers at the bottom alone are too far away
        axes.tick_params(axis='x', top=True, labeltop=True)
    return tops


def _wrapped(label: str) -> list[str]:
    return textwrap.wrap(label, 58, max_lines=2, placeholder='…') or ['']


def _beside(axes: Axes, y: float, words: str, color: str) -> None:
    """Words to the right of a panel."""
    axes.annotate(
        words, (1, y), (4, 0), xycoords=('axes fraction', 'data'), textcoords='offset points', va='center',
        fontsize=8.5, color=color, annotation_clip=False)


def _zero(axes: Axes, top: float, room: float) -> None:
    """The line of no difference beside the marks of a row, where it crosses no label."""
    axes.plot([0, 0], [top, top + room], color=LIGHT['fg'], linewidth=1, solid_capstyle='butt')


def claims_overall(study: Study) -> Plot | None:
    """Paired differences of the claims about accuracy over all classes."""
    return _claims(study, 'claims_overall', 'Claims about all classes', [(('overall',), 'points', 2)])


def claims_groups(study: Study) -> Plot | None:
    """Paired differences of the claims about head, mid or tail."""
    return _claims(study, 'claims_groups', 'Claims about head, mid and tail', [(GROUPS, 'points', 2)])


def claims_measures(study: Study) -> Plot | None:
    """Paired differences of the claims about mechanisms, in one panel for each measure."""
    panels = [((measure,), unit, digits) for measure, (unit, digits) in MEASURES.items()]
    return _claims(study, 'claims_measures', 'Claims about mechanisms', panels)


def _claims(study: Study, name: str, title: str, kinds: Iterable[tuple[Sequence[str], str, int]]) -> Plot | None:
    """Claims about some measures, their unit and the digits of their differences, with a panel for each kind."""
    panels = [([claim for claim in study.verdicts if side(claim, 'a')[2] in measures], unit, digits)
              for measures, unit, digits in kinds]
    panels = [panel for panel in panels if any(claim['n'] for claim in panel[0])]
    if not panels:
        return None
    rows = [[(plain(claim['claim']), False, _CLAIM) for claim in claims] for claims, *_ in panels]
    figure, axes_of = _row_panels(rows)
    words = []
    for axes, of, (claims, unit, digits) in zip(axes_of, rows, panels, strict=True):
        for claim, top in zip(claims, _place_rows(axes, of), strict=True):
            words.append(_draw_claim(axes, claim, top, digits))
        axes.set_xlabel(f'difference in the claimed direction, {unit}')
    several = any(len(claim['figures'].get('by_subset') or ()) > 1 for claims, *_ in panels for claim in claims)
    of_subsets = ' Upright bars: means of each subset of the images.' if several else ''
    n = count_words(claim['n'] for claims, *_ in panels for claim in claims if claim['n'])
    return finish(
        figure, name, title,
        'Right of zero speaks for the claim. Dot: the difference of one pair with the same images and seed; mark: '
        f'mean of the pairs ({n}); line and ±: its 95 % confidence interval, given {LEAST} pairs or more. Filled mark: '
        f'the claim holds; hollow: not shown at this scale; cross: it does not hold.{of_subsets}',
        f'Mean differences ({", ".join(unit for _, unit, _ in panels)}). {" ".join(words)}')


def _draw_claim(axes: Axes, claim: Mapping[str, Any], top: float, digits: int) -> str:
    """Draw a claim below `top`, and say it in words."""
    figures, verdict, n = claim['figures'], claim['verdict'], claim['n']
    upper, lower = top + .28 * _CLAIM, top + .78 * _CLAIM
    mean, error = figures['difference'], figures.get('half_interval')
    shown = '' if mean is None else f'{mean:+.{digits}f}'
    _zero(axes, top, _CLAIM)
    _dots(axes, figures['differences'], lower)
    if len(subsets := (figures.get('by_subset') or {}).values()) > 1:
        axes.plot(list(subsets), [lower] * len(subsets), '|', color=LIGHT['muted'], markersize=8, markeredgewidth=1.4)
    if error is not None:
        shown += f' ± {error:.{digits}f}'
        axes.plot([mean - error, mean + error], [upper, upper], color=LIGHT['fg'], linewidth=1.4)
        marker, filled = _MARKS.get(verdict, ('D', False))
        axes.plot([mean], [upper], marker, color=LIGHT['fg'], markersize=6,
                  markerfacecolor=LIGHT['fg'] if filled else LIGHT['bg'])
    _beside(axes, upper, verdict.removesuffix(' at this scale'), LIGHT['fg'])
    _beside(axes, lower, shown or 'no runs', LIGHT['muted'])
    return f'{plain(claim["claim"])}: {verdict}, n = {n}{f", {shown}" if shown else ""}.'


def fusions(study: Study) -> Plot | None:
    """Each fusion of the experts against the mean of their logits, over all and over the tail classes."""
    arms = [arm for arm in study.arms if 'dist' in study.experts(arm) and any(
        _fusion_gains(study, arm, fusion, 'overall') for fusion in FUSIONS)]
    first = study.most_claimed(arms)
    if first is None:
        return None
    rows = [(words, False, _FUSION) for words in FUSIONS.values()]
    figure, panels = _row_panels([rows, rows])
    told = []
    for axes, group in zip(panels, ('overall', 'tail'), strict=True):
        for fusion, top in zip(FUSIONS, _place_rows(axes, rows), strict=True):
            gains_of = {arm: of for arm in arms if (of := _fusion_gains(study, arm, fusion, group))}
            if gains_of:
                above = _draw_fusion(axes, gains_of, first, top)
                best = '' if first not in gains_of else (
                    f'; {study.label(first, full=True)} {statistics.fmean(gains_of[first]):+.2f}')
                told.append(f'{FUSIONS[fusion]}, {group}: above in {above}{best}.')
        axes.set_xlabel(f'points above the mean of logits, {"all" if group == "overall" else "tail"} classes')
    of_runs = 'one run' if len(arms) == 1 else 'mean of the runs of one arm'
    panels[0].plot([], [], 'o', color=LIGHT['muted'], markersize=3.4, label=of_runs)
    panels[0].plot([], [], 'D', color=LOOKS['first'].color, label=shortened(study.label(first, full=True), 50))
    legend(figure, panels[0], columns=1)
    return finish(
        figure, 'fusions', 'Joining the experts in other ways',
        "A way that is better than the paper's mean of logits lies right of zero for every arm, in both panels. "
        f'Dot: {of_runs} ({study.n(arms)}); '
        + ('line: one standard deviation to either side; ' if study.most_runs(arms) > 1 else '')
        + 'at the right: how many dots lie above zero.',
        f'Differences to the mean of logits in points, {len(arms)} arms. {" ".join(told)}')


def _fusion_gains(study: Study, arm: str, fusion: str, group: str) -> list[float]:
    """How far a fusion is above the mean of logits in each run of an arm, in points."""
    pairs = [(accuracy(run, fusion, group), accuracy(run, 'mean', group)) for run in study.runs(arm)]
    return [other - mean for other, mean in pairs if other is not None and mean is not None]


def _draw_fusion(axes: Axes, gains_of: Mapping[str, list[float]], first: str, top: float) -> str:
    """Draw one fusion below `top`, and say how many dots are above zero."""
    upper, lower = top + .28 * _FUSION, top + .78 * _FUSION
    _zero(axes, top, _FUSION)
    dots = list(gains_of.values())[0] if len(gains_of) == 1 else [statistics.fmean(of) for of in gains_of.values()]
    _dots(axes, dots, lower)
    if of := gains_of.get(first):
        _deviation(axes, of, upper, LOOKS['first'].color)
        axes.plot([statistics.fmean(of)], [upper], 'D', color=LOOKS['first'].color)
    words = f'{sum(dot > 0 for dot in dots)} of {len(dots)}'
    _beside(axes, lower, words, LIGHT['muted'])
    return words


FIGURES = (claims_overall, claims_groups, claims_measures, overall_by_arm, tail_by_arm, head_by_arm, fusions)
