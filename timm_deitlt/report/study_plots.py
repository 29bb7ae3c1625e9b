"""Figures of a study's accuracies and claims. Wherever a mean is shown, the runs are too."""
import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .page import LIGHT, Plot, plain
from .plots import LOOKS, finish, legend, line, mark, new_figure, whole_numbers
from .run_files import EXPERTS, GROUPS
from .study_values import Study, accuracy, count_words, curve, known, side, spread, stage_two

# of claims that are not about accuracies: unit, and digits of a difference
MEASURES = {'rank': ('rank', 2), 'distance': ('pixels', 2), 'divergence': ('1 - cos', 3)}
LEAST = 3  # runs below which nothing is judged
# tenths of an inch: a line of a row's label, what is left free below a row, the marks of an expert and of a claim
_LABEL, _GAP, _LANE, _CLAIM = 1.7, .8, .8, 2.9
_AROUND = .95  # inches: axes and legend
_MARKS = {'holds': ('D', True), 'does not hold': ('X', True), 'not shown at this scale': ('D', False)}


def overall_by_arm(study: Study) -> Plot | None:
    """Accuracy over all classes of each arm and expert: its runs, their mean and standard deviation."""
    return _by_arm(study, 'overall', 'Every arm, all classes',
                   'Look which expert, and which arm, lies furthest to the right.')


def tail_by_arm(study: Study) -> Plot | None:
    """The same for the tail classes."""
    return _by_arm(study, 'tail', 'Every arm, tail classes',
                   'The method wants DIST, the expert of the tail, to the right of CLS.')


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
    figure, (axes,) = row_panels([rows])
    for arm, top in zip(found, place_rows(axes, rows), strict=True):
        filled = [run['subset'] == study.subsets[0] for run in study.runs(arm) if known([accuracy(run, 'mean', group)])]
        for lane, (expert, values) in enumerate(found[arm].items()):
            _draw_runs(axes, values, top + (lane + .5) * _LANE, expert, filled)
    for expert in EXPERTS:
        if any(expert in of for of in found.values()):
            axes.plot([], [], LOOKS[expert].marker, color=LOOKS[expert].color, label=EXPERTS[expert])
    axes.set_xlabel('accuracy, %' if group == 'overall' else f'accuracy on {group} classes, %')
    legend(figure, axes)
    of_subsets = (
        '' if len(study.subsets) < 2 else
        f' Filled dots: subset {study.subsets[0]} of the images; hollow: other subsets.')
    one = ' An arm with one expert has one row.' if any(len(study.experts(arm)) == 1 for arm in found) else ''
    words = (
        f'{study.label(arm, full=True)}: ' + ', '.join(f'{EXPERTS[of]} {spread(values)}' for of, values in each.items())
        + f' ({study.n([arm])}).' for arm, each in found.items())
    return finish(
        figure, f'{group}_by_arm', title,
        f'{look_for} Dot: one run; bar: mean of the runs ({study.n(found)})'
        + ('; line: one standard deviation of the runs to either side.' if study.most_runs(found) > 1 else '.')
        + of_subsets + one,
        f'Accuracy in percent, {group}, mean and standard deviation of the runs. {" ".join(words)}')


def _draw_runs(axes: Axes, values: Sequence[float], y: float, expert: str, filled: Sequence[bool]) -> None:
    look, mean = LOOKS[expert], statistics.fmean(values)
    for value, full in zip(values, filled, strict=True):
        axes.plot([value], [y], look.marker, color=look.color, markersize=3.4, markeredgewidth=.8,
                  markerfacecolor=look.color if full else 'none')
    if len(values) > 1:
        std = statistics.stdev(values)
        axes.plot([mean - std, mean + std], [y, y], color=look.color, linewidth=1.1)
    axes.plot([mean], [y], '|', color=look.color, markersize=8, markeredgewidth=2)


def row_panels(panels: Sequence[Sequence[tuple[str, bool, float]]]) -> tuple[Figure, np.ndarray]:
    """A figure with a panel for each list of rows: label, whether indented, room for marks in tenths of an inch."""
    heights = [sum(len(_wrapped(label)) * _LABEL + room + _GAP for label, _, room in rows) for rows in panels]
    figure, axes = new_figure(
        sum(heights) / 10 + _AROUND * len(panels), len(panels), sharex=False, height_ratios=heights)
    return figure, axes[:, 0]


def place_rows(axes: Axes, rows: Sequence[tuple[str, bool, float]]) -> list[float]:
    """Write the label of each row above the room for its marks, and give the tops of the rooms."""
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
    if y > 30:  # the numbers are near wherever one looks
        axes.tick_params(axis='x', top=True, labeltop=True)
    return tops


def _wrapped(label: str) -> list[str]:
    return textwrap.wrap(label, 58, max_lines=2, placeholder='…') or ['']


def beside(axes: Axes, y: float, words: str, color: str) -> None:
    """A word to the right of a panel."""
    axes.annotate(
        words, (1, y), (4, 0), xycoords=('axes fraction', 'data'), textcoords='offset points', va='center',
        fontsize=8.5, color=color, annotation_clip=False)


def zero(axes: Axes, top: float, room: float) -> None:
    """The line of no difference beside the marks of a row, where it crosses no label."""
    axes.plot([0, 0], [top, top + room], color=LIGHT['fg'], linewidth=1, solid_capstyle='butt')


def claims_overall(study: Study) -> Plot | None:
    """Paired differences of the claims about accuracy over all classes."""
    claims = [claim for claim in study.verdicts if side(claim, 'a')[2] == 'overall']
    return _claims('claims_overall', 'Claims about all classes', [(claims, 'points', 2)])


def claims_groups(study: Study) -> Plot | None:
    """Paired differences of the claims about head, mid or tail."""
    claims = [claim for claim in study.verdicts if side(claim, 'a')[2] in GROUPS]
    return _claims('claims_groups', 'Claims about head and tail', [(claims, 'points', 2)])


def claims_measures(study: Study) -> Plot | None:
    """Paired differences of the claims about the inside of the network, one panel a measure."""
    panels = [([claim for claim in study.verdicts if side(claim, 'a')[2] == measure], unit, digits)
              for measure, (unit, digits) in MEASURES.items()]
    return _claims('claims_measures', 'Claims about mechanisms', panels)


def _claims(name: str, title: str, panels: Sequence[tuple[Sequence[Mapping[str, Any]], str, int]]) -> Plot | None:
    panels = [panel for panel in panels if any(claim['n'] for claim in panel[0])]
    if not panels:
        return None
    rows = [[(plain(claim['claim']), False, _CLAIM) for claim in claims] for claims, *_ in panels]
    figure, axes_of = row_panels(rows)
    words = []
    for axes, of, (claims, unit, digits) in zip(axes_of, rows, panels, strict=True):
        for claim, top in zip(claims, place_rows(axes, of), strict=True):
            words.append(_draw_claim(axes, claim, top, digits))
        axes.set_xlabel(f'difference in the claimed direction, {unit}')
    several = any(len(claim['figures'].get('by_subset') or ()) > 1 for claims, *_ in panels for claim in claims)
    of_subsets = ' Upright bars: means of each subset of the images.' if several else ''
    n = count_words(claim['n'] for claims, *_ in panels for claim in claims if claim['n'])
    return finish(
        figure, name, title,
        'Right of zero speaks for the claim. Dot: the difference of one pair with the same images and seed; mark: '
        f'their mean ({n}); line and ±: its 95 % confidence interval, of {LEAST} pairs or more. Filled mark: the claim '
        f'holds; hollow: not shown at this scale; cross: it does not hold.{of_subsets}',
        f'Mean differences ({", ".join(unit for _, unit, _ in panels)}). {" ".join(words)}')


def _draw_claim(axes: Axes, claim: Mapping[str, Any], top: float, digits: int) -> str:
    """Draw a claim below `top`, and say it in words."""
    figures, verdict, n = claim['figures'], claim['verdict'], claim['n']
    upper, lower = top + .28 * _CLAIM, top + .78 * _CLAIM
    mean, number = figures['difference'], ''
    zero(axes, top, _CLAIM)
    axes.plot(figures['differences'], [lower] * n, 'o', color=LIGHT['muted'], markersize=3.4, markeredgewidth=0)
    if mean is not None:
        number = f'{mean:+.{digits}f}'
    if len(subsets := (figures.get('by_subset') or {}).values()) > 1:
        axes.plot(list(subsets), [lower] * len(subsets), '|', color=LIGHT['muted'], markersize=8, markeredgewidth=1.4)
    error = figures.get('half_interval')
    if error is not None:
        number += f' ± {error:.{digits}f}'
        axes.plot([mean - error, mean + error], [upper, upper], color=LIGHT['fg'], linewidth=1.4)
        marker, filled = _MARKS.get(verdict, ('D', False))
        axes.plot([mean], [upper], marker, color=LIGHT['fg'], markersize=6,
                  markerfacecolor=LIGHT['fg'] if filled else LIGHT['bg'])
    beside(axes, upper, verdict.removesuffix(' at this scale'), LIGHT['fg'])
    beside(axes, lower, number or 'no runs', LIGHT['muted'])
    return f'{plain(claim["claim"])}: {verdict}, n = {n}{f", {number}" if number else ""}.'


def student_and_teacher(study: Study) -> Plot | None:
    """Accuracy over the epochs of the arm that was trained longest, against its teacher's."""
    curves = {arm: [rows for run in study.runs(arm) if (rows := curve(study, run))] for arm in study.arms}
    curves = {arm: of for arm, of in curves.items() if of}
    curves = {arm: of for arm, of in curves.items() if study.values(arm, 'teacher', 'overall')} or curves
    if not curves:
        return None
    # of those with as many epochs, one whose first stage is known too
    known_of = {arm: max((max(rows), len(rows)) for rows in of) for arm, of in curves.items()}
    most = max(known_of.values())[0]
    arm = study.most_claimed(arm for arm, of in known_of.items() if of == max(known_of.values()))
    found = [rows for rows in curves[arm] if max(rows) == most]
    epochs = sorted(set.intersection(*map(set, found)))
    start = stage_two(study.runs(arm)[0]['settings'])
    figure, panels = new_figure(4.9, 2)
    for axes, group in zip(panels[:, 0], ('overall', 'tail'), strict=True):
        for expert in study.experts(arm):
            column = f'eval_{expert}_{"top1" if group == "overall" else group}'
            each = np.array([[rows[epoch].get(column, math.nan) for epoch in epochs] for rows in found])
            for values in each if len(each) > 1 else ():
                axes.plot(epochs, values, color=LOOKS[expert].color, linewidth=.5, alpha=.6)
            line(axes, np.array(epochs), each.mean(axis=0), LOOKS[expert], EXPERTS[expert])
        if teacher := study.values(arm, 'teacher', group):
            axes.axhline(statistics.fmean(teacher), color=LOOKS['teacher'].color, linestyle='-.', label='teacher')
        _from_half_time(axes, epochs, group)
        axes.set_xlim(0, max(most, 2) * 1.02)
        if start is not None and start < most:
            mark(axes, start, f'stage two, from epoch {start + 1}' if group == 'overall' else '', start / most)
    axes.set_xlabel('epochs trained')
    whole_numbers(axes.xaxis)
    legend(figure, panels[0, 0])
    runs = 'one run' if len(found) == 1 else f'thick lines: means of {len(found)} runs, thin ones: each of them'
    measured = {**EXPERTS, 'teacher': 'teacher'}
    words = '; '.join(
        f'{group}: ' + ', '.join(f'{measured[of]} {spread(values)}' for of in (*study.experts(arm), 'teacher')
                                 if (values := study.values(arm, of, group))) for group in ('overall', 'tail'))
    return finish(
        figure, 'student_and_teacher', 'Does the student pass its teacher?',
        f'Trained longest: {study.label(arm, full=True)}, {most} epochs ({runs}). {_against_teacher(study, arm)} '
        'Early epochs may lie below the panels.',
        f'Accuracy of {study.label(arm, full=True)} over {most} epochs, in percent. At the end, {words}.')


def _from_half_time(axes: Axes, epochs: Sequence[int], group: str) -> None:
    """A y axis that holds what is drawn from half of the epochs on, when the student has come near its teacher."""
    late = [y for drawn in axes.lines for x, y in zip(drawn.get_xdata(), drawn.get_ydata(), strict=True)
            if math.isfinite(y) and (x >= epochs[-1] / 2 or len(drawn.get_xdata()) == 2)]
    room = max(.06 * (max(late) - min(late)), 2)
    axes.set_ylim(min(late) - room, max(late) + room)
    axes.set_ylabel('all classes, %' if group == 'overall' else 'tail classes, %')


def _against_teacher(study: Study, arm: str) -> str:
    sentences = []
    for group, where in (('overall', 'Over all classes'), ('tail', 'On the tail')):
        gaps = {}
        for of in study.experts(arm):
            pairs = [(accuracy(run, of, group), accuracy(run, 'teacher', group)) for run in study.runs(arm)]
            gaps[of] = [student - teacher for student, teacher in pairs if None not in (student, teacher)]
        ends = [f'{EXPERTS[of]} {abs(statistics.fmean(gap)):.1f} {"above" if statistics.fmean(gap) > 0 else "below"}'
                for of, gap in gaps.items() if gap]
        sentences += [f'{where} they end, in points from their teacher: {", ".join(ends)}.'] if ends else []
    return ' '.join(sentences) or 'It has no teacher.'
