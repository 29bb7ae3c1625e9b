"""Figures of a study that are made of curves: over the epochs, over the blocks, and over the levels of a sweep."""
import csv
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from .look import (
    EXPERTS,
    LIGHT,
    LOOKS,
    Look,
    Plot,
    finish,
    from_zero,
    legend,
    line,
    mark,
    new_figure,
    plain,
    shortened,
    whole_numbers,
)
from .run import stage_two_start
from .study import Result, Study, accuracy, analysis, known, resolved, side, spread

TEACHER_VIEW, STUDENT = 'teacher_view', 'DeiT-LT'
_ARMS = (LOOKS['first'], LOOKS['second'], Look(LIGHT['fg'], 'D', ':'))
_RIVAL = Look(LIGHT['muted'], 'v', ':')
_ACROSS, _APART = 265, 14  # points: about the width between the outer levels of a sweep, and between slanted labels
_PANELS = {'overall': 'all classes, %', 'tail': 'tail classes, %'}


def student_and_teacher(study: Study) -> Plot | None:
    """Accuracy over the epochs of the arm that was trained longest, beside the accuracy of its teacher."""
    curves = {arm: [rows for run in study.runs(arm) if (rows := curve(study, run))] for arm in study.arms}
    curves = {arm: of for arm, of in curves.items() if of}
    curves = {arm: of for arm, of in curves.items() if study.values(arm, 'teacher', 'overall')} or curves
    if not curves:
        return None
    # of the arms with as many epochs, those whose first stage is known too
    known_of = {arm: max((max(rows), len(rows)) for rows in of) for arm, of in curves.items()}
    most = max(known_of.values())[0]
    arm = study.most_claimed(arm for arm, of in known_of.items() if of == max(known_of.values()))
    assert arm is not None  # there are curves
    found = [rows for rows in curves[arm] if max(rows) == most]
    epochs = sorted(set.intersection(*map(set, found)))
    settings = resolved(study.runs(arm)[0])
    start = stage_two_start(settings)
    figure, panels = new_figure(4.9, 2)
    for axes, (group, words) in zip(panels[:, 0], _PANELS.items(), strict=True):
        for expert in study.experts(arm):
            name = study.runs(arm)[0]['metrics'].get('answer', 'mean') if expert == 'answer' else expert
            column = f'eval_{name}_{"top1" if group == "overall" else group}'
            each = np.array([[rows[epoch].get(column, math.nan) for epoch in epochs] for rows in found])
            for values in each if len(each) > 1 else ():
                axes.plot(epochs, values, color=LOOKS[expert].color, linewidth=.5, alpha=.6)
            line(axes, np.array(epochs), each.mean(axis=0), LOOKS[expert], LOOKS[expert].label)
        if teacher := study.values(arm, 'teacher', group):
            axes.axhline(statistics.fmean(teacher), color=LOOKS['teacher'].color, linestyle='-.', label='teacher')
        _from_half_time(axes, epochs)
        axes.set_ylabel(words)
        axes.set_xlim(0, max(most, 2) * 1.02)
        if start is not None and start < most:
            mark(axes, start, f'stage two, from epoch {start + 1}' if group == 'overall' else '', start / most)
    axes.set_xlabel('epochs trained')
    whole_numbers(axes.xaxis)
    legend(figure, panels[0, 0])
    runs = 'one run' if len(found) == 1 else f'thick lines: means of {len(found)} runs; thin lines: each of them'
    told = '; '.join(f'{group}: {_in_words(study, arm, group)}' for group in _PANELS)
    return finish(
        figure, 'student_and_teacher', 'Does the student pass its teacher?',
        f'The arm that was trained longest: {study.label(arm, full=True)}, {most} epochs ({runs}). '
        f'{_against_teacher(study, arm)} Early epochs may lie below the panels.',
        f'Accuracy of {study.label(arm, full=True)} over {most} epochs, in percent. At the end, {told}.')


def curve(study: Study, run: Result) -> dict[int, dict[str, float]]:
    """Evaluated epochs of a run, by number from 1, with the earlier ones of the run that it continues."""
    rows = {}
    for row in csv.DictReader(run.get('curve') or ()):
        values = {name: float(value) for name, value in row.items() if name and value}
        if math.isfinite(values.get('eval_mean_top1', math.nan)):
            rows[int(values['epoch']) + 1] = values
    parent = study.parent(run['arm'])
    if rows and parent:
        key = run['subset'], run['seed']
        for first_stage in study.runs(parent):
            if (first_stage['subset'], first_stage['seed']) == key:
                earlier = curve(study, first_stage)
                rows |= {epoch: values for epoch, values in earlier.items() if epoch < min(rows)}
    return dict(sorted(rows.items()))


def _from_half_time(axes: Axes, epochs: Sequence[int]) -> None:
    """A y axis for what is drawn from half of the epochs on, when the student has come near its teacher."""
    late: list[float] = []
    for drawn in axes.lines:
        x, y = (np.asarray(values, dtype=float) for values in drawn.get_data())
        late += y[np.isfinite(y) & ((x >= epochs[-1] / 2) | (len(x) == 2))].tolist()
    room = max(.06 * (max(late) - min(late)), 2)
    axes.set_ylim(min(late) - room, max(late) + room)


def _in_words(study: Study, arm: str, group: str) -> str:
    return ', '.join(f'{LOOKS[of].label} {spread(values)}' for of in ('answer', *EXPERTS, 'teacher')
                     if (of == 'teacher' or of in study.experts(arm)) and (values := study.values(arm, of, group)))


def _against_teacher(study: Study, arm: str) -> str:
    sentences = []
    for group, where in (('overall', 'over all classes'), ('tail', 'on the tail')):
        ends = []
        for of in study.experts(arm):
            pairs = [(accuracy(run, of, group), accuracy(run, 'teacher', group)) for run in study.runs(arm)]
            gaps = [student - teacher for student, teacher in pairs if student is not None and teacher is not None]
            if gaps:
                gap = statistics.fmean(gaps)
                ends.append(f'{LOOKS[of].label} {abs(gap):.1f} {"above" if gap > 0 else "below"}')
        sentences += [f'Points above or below its teacher {where}: {", ".join(ends)}.'] if ends else []
    return ' '.join(sentences) or 'It has no teacher.'


def distance_by_arm(study: Study) -> Plot | None:
    """Attention distance of each block, averaged over its heads."""
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
        'If the two tokens stay alike (near 0), they are one expert under two names.')


def _by_block(
        study: Study,
        name: str,
        title: str,
        kinds: list[str],
        measure: str,
        look_for: str,
        limit: float | None = None,
) -> Plot | None:
    series = {kind: found for kind in kinds if (found := study.by_block(kind))}
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
    legend(figure, panels[0, 0], columns=1)
    claimed = 'The named arms are those that claims compare, or else the first ones; the table has all. '
    return finish(
        figure, name, title,
        f'{look_for} {claimed if others else ""}Curves: means of the runs ({study.n(found)})'
        + ('; upright lines: one standard deviation to either side.' if study.most_runs(found) > 1 else '.'),
        f'Means of the runs by block. {" ".join(told)}' + (f' Uniform attention: {limit:.1f}.' if limit else ''))


def _claimed(study: Study, measure: str, found: Iterable[str]) -> list[str]:
    """Arms that claims compare by a measure, or else the first ones."""
    named = [side(claim, which)[0] for claim in study.verdicts if side(claim, 'a')[2] == measure for which in 'ab']
    return list(dict.fromkeys(arm for arm in named if arm in found) or found)[:len(_ARMS)]


@dataclass(frozen=True)
class Level:
    """A level of a sweep that was run.

    Attributes:
        label: Name for readers.
        x: Place on the axis.
        student: Arm of DeiT-LT.
        rival: Arm of the baseline at the same level, if it was run.
    """
    label: str
    x: float
    student: str
    rival: str | None


def levels(study: Study) -> list[Level]:
    """The levels of the study's sweep that were run, from low to high x."""
    found = []
    for place, level in enumerate(study.sweep.get('levels') or ()):
        student, other = level['arms'].get(STUDENT), level['arms'].get(_rival_name(study))
        x = level.get('x') if _has_scale(study) else place
        if study.sweep.get('x') == TEACHER_VIEW:
            seen = known((analysis(run).get('ood') or {}).get('teacher_top1_train_view') for run in study.runs(student))
            x = statistics.fmean(seen) if seen else None
        if x is not None and study.values(student, 'answer', 'overall'):
            found.append(Level(plain(level['label']), float(x), student, other if study.runs(other) else None))
    return sorted(found, key=lambda level: level.x)


def _has_scale(study: Study) -> bool:
    """Whether the levels have places on an axis. If not, they stand side by side in the given order."""
    return study.sweep.get('x') == TEACHER_VIEW or all(
        level.get('x') is not None for level in study.sweep.get('levels') or ())


def _rival_name(study: Study) -> str | None:
    """Name of the sweep's baseline, if it has one."""
    return next((name for level in study.sweep.get('levels') or () for name in level['arms'] if name != STUDENT), None)


def _gains(study: Study) -> list[tuple[Level, float]]:
    """How far the student's prediction is above the baseline's at the same level, in points over all classes."""
    return [
        (level, statistics.fmean(study.values(level.student, 'answer', 'overall'))
         - statistics.fmean(study.values(level.rival, 'answer', 'overall')))
        for level in levels(study) if level.rival]


def sweep(study: Study) -> Plot | None:
    """Accuracy of student, baseline and teacher over the levels of a sweep."""
    found, gains = levels(study), _gains(study)
    if not found:
        return None
    fused = any('answer' in study.experts(level.student) for level in found)
    series = [(LOOKS[expert], LOOKS[expert].label, expert, False) for expert in (*['answer'] * fused, *EXPERTS)]
    series += [(LOOKS['teacher'], 'teacher, clean images', 'teacher', False),
               (_RIVAL, plain(_rival_name(study)), 'answer', True)]

    def values_of(level: Level, of: str, rival: bool, group: str) -> list[float]:
        return study.values(level.rival if rival else level.student, of, group)

    figure, panels = new_figure(5.4, 2)
    places = np.array([level.x for level in found])
    for axes, (group, words) in zip(panels[:, 0], _PANELS.items(), strict=True):
        for (one, before), (two, after) in zip(gains, gains[1:], strict=False):
            if group == 'overall' and (before > 0) != (after > 0):  # here student and baseline change places
                axes.axvspan(one.x, two.x, color=LIGHT['count'], linewidth=0, zorder=.1)
        for look, label, of, rival in series:
            each = [values_of(level, of, rival, group) for level in found]
            if any(each):
                means = np.array([statistics.fmean(values) if values else np.nan for values in each])
                line(axes, places, means, look, label, markevery=1)
                for x, values in zip(places, each, strict=True):
                    if len(values) > 1:
                        axes.plot([x] * len(values), values, '_', color=look.color, markersize=6)
        axes.set_ylabel(words)
    _sweep_axis(study, panels[:, 0], found)
    legend(figure, panels[0, 0], columns=3)
    told = '; '.join(
        f'{level.label} ({level.x:.3g}): ' + ', '.join(
            f'{label} {spread(values)}' for _, label, of, rival in series
            if (values := values_of(level, of, rival, 'overall'))) for level in found)
    arms = [arm for level in found for arm in (level.student, level.rival) if arm]
    return finish(
        figure, 'sweep',
        'Where distillation stops helping' if study.sweep['x'] == TEACHER_VIEW else f'Accuracy over {study.sweep["x"]}',
        f'{_turning_point(study, gains)} Each point is a mean of runs ({study.n(arms)})'
        + ('; the small bars are the runs.' if study.most_runs(arms) > 1 else
           '. A difference of a few points may therefore be chance.'),
        f'Accuracy over all classes in percent by level. {told}.')


def _sweep_axis(study: Study, panels: np.ndarray, found: Sequence[Level]) -> None:
    places, axes = np.array([level.x for level in found]), panels[-1]
    axes.set_xlabel("teacher's accuracy on the student's images, %" if study.sweep['x'] == TEACHER_VIEW else
                    plain(study.sweep['x']))
    if not _has_scale(study):
        axes.set_xticks(places, [shortened(level.label, 14) for level in found])
        return
    if min(places) > 0 and max(places) >= 10 * min(places):
        places = np.log(places)
        axes.set_xscale('log')
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:,.6g}'))
        axes.xaxis.set_minor_locator(NullLocator())
    across = (places - places[0]) * _ACROSS / max(places[-1] - places[0], 1e-9)
    free = 0.0
    for level, place in zip(found, across, strict=True):
        # labels that would lie on each other are moved apart
        shift, free = max(0, free - place), max(free, place) + _APART
        panels[0].annotate(
            shortened(level.label, 24), (level.x, 1), (shift, 3), xycoords=('data', 'axes fraction'),
            textcoords='offset points', rotation=40, rotation_mode='anchor', fontsize=8.5, annotation_clip=False)


def _turning_point(study: Study, gains: Sequence[tuple[Level, float]]) -> str:
    """A sentence on the levels at which the student is better than the baseline."""
    rival = plain(_rival_name(study))
    if not gains:
        return ('There is no baseline beside it, so the sweep shows where the student is best, but not whether its '
                'teacher helps.')
    parts = [[(level, gain) for level, gain in gains if (gain > 0) == above] for above in (True, False)]
    if not parts[0]:
        return f'At no level is the student above {rival}.'
    if not parts[1]:
        level, gain = min(parts[0], key=lambda pair: pair[1])
        return f'The student is above {rival} at every level, by {gain:.1f} points or more ({level.label}).'
    named = [', '.join(f'{level.label} ({gain:+.1f})' for level, gain in part) for part in parts]
    return (f'The student is above {rival} at {named[0]}, and not at {named[1]}. It crosses {rival} where the '
            'plot is grey.')


FIGURES = (student_and_teacher, distance_by_arm, rank_by_arm, divergence_by_arm, sweep)
