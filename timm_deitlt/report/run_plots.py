"""Figures of a run from metrics.json and summary.csv: accuracy and training curves."""
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ..evaluation.shots import GROUPS
from .look import (
    EXPERTS,
    LIGHT,
    LOOKS,
    Look,
    Plot,
    above,
    finish,
    from_zero,
    legend,
    line,
    log_scale,
    mark,
    new_figure,
    percent,
    shortened,
    whole_numbers,
)
from .run import Run, numbers

# up to so many classes have their names on the axis, up to so many have points; more are drawn as means of neighbours
_NAMED, _POINTS = 20, 100
Curve = tuple[Look, str, np.ndarray, np.ndarray]  # look, label, x and y


def accuracy_by_class(run: Run) -> Plot | None:
    """Accuracy of each class from the most to the least frequent one, in front of its number of training images."""
    rows = {name: row for name, row in run.measured.items() if row.get('per_class')}
    if not rows or not run.counts:
        return None
    order, count = run.order, len(run.counts)
    figure, ((axes,),) = new_figure(3.5)
    images = np.array([run.counts[label] for label in order], dtype=float)
    _count_bars(axes, images)
    offsets = np.linspace(-.24, .24, len(rows)) if count <= _NAMED else np.zeros(len(rows))
    for offset, (name, row) in zip(offsets, rows.items(), strict=True):
        accuracy = numbers(row['per_class'])[order]
        look, label = LOOKS[name], _legend(run, name)
        places = np.arange(1, count + 1) + offset
        if count <= _NAMED:
            line(axes, places, accuracy, look, label, linewidth=.9, markevery=1)
            continue
        if count <= _POINTS:
            axes.plot(places, accuracy, look.marker, color=look.color, markersize=2.5, alpha=.35, markeredgewidth=0)
        line(axes, *_smoothed(accuracy), look, label)
    percent(axes)
    axes.set_xlim(.4, count + .6)
    _group_borders(axes, run)
    if count <= _NAMED:
        names = [shortened(run.class_name(label), 14) for label in order]
        upright = max(map(len, names)) * count <= 40
        axes.set_xticks(range(1, count + 1), names, **(
            {} if upright else dict(rotation=40, ha='right', rotation_mode='anchor')))
        axes.set_xlabel('class, from most to least training images')
    else:
        whole_numbers(axes.xaxis)
        axes.set_xlabel('rank of the class by training images')
    legend(figure, axes)
    smoothed = '' if count <= _NAMED else f' Each line shows means of about {count / _blocks(count):.0f} neighbours.'
    look_for = (
        'If DIST is above CLS on the right, among the rare classes, the experts have specialised.' if 'dist' in rows
        else 'The steeper the fall to the right, the more the model depends on the number of training images.')
    alt = f'Accuracy of {count} classes, from {images[0]:.0f} to {images[-1]:.0f} training images. '
    if count <= _NAMED:
        alt += 'Classes from most to least frequent: ' + ', '.join(run.class_name(label) for label in order) + '. '
        alt += ' '.join(
            f'{run.label(name)}: {", ".join(_round(row["per_class"][label]) for label in order)} %.'
            for name, row in rows.items())
    else:
        alt += _groups_in_words(run)
    return finish(
        figure, 'accuracy_by_class', 'Accuracy per class', f'{look_for} Grey bars: training images.{smoothed}', alt)


def _count_bars(axes: Axes, images: np.ndarray) -> None:
    behind = axes.twinx()
    axes.set_zorder(behind.get_zorder() + 1)
    axes.patch.set_visible(False)
    shown = np.maximum(images, 1)
    positions = np.arange(1, len(images) + 1)
    if len(images) > 400:  # more steps than a screen can show
        kept = np.linspace(0, len(images) - 1, 400).round().astype(int)
        positions, shown = positions[kept], shown[kept]
    lowest = shown.min() / 2
    if len(images) <= _NAMED:
        behind.bar(
            positions, shown - lowest, .86, bottom=lowest, color=LIGHT['count'], edgecolor=LIGHT['count-edge'],
            linewidth=.6)
    else:
        behind.fill_between(positions, lowest, shown, color=LIGHT['count'], linewidth=0, step='mid')
        behind.plot(positions, shown, color=LIGHT['count-edge'], linewidth=.8, drawstyle='steps-mid')
    log_scale(behind, lowest, shown.max() * 1.3)
    behind.set_ylabel('training images', color=LIGHT['muted'])
    behind.grid(False)
    behind.spines['right'].set_visible(True)


def _smoothed(accuracy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean rank and mean accuracy of blocks of neighbouring classes. A class without test images is left out."""
    blocks = np.array_split(np.arange(len(accuracy)), _blocks(len(accuracy)))
    known = [block[np.isfinite(accuracy[block])] for block in blocks]
    return (
        np.array([block.mean() + 1 for block in blocks]),
        np.array([accuracy[block].mean() if len(block) else math.nan for block in known]))


def _blocks(classes: int) -> int:
    return min(40, classes // 5)


def _group_borders(axes: Axes, run: Run) -> None:
    if run.boundaries is None or run.balanced:
        return
    borders = [0, *run.boundaries, len(run.counts)]
    for border in borders[1:-1]:
        mark(axes, border + .5)
    for group, first, end in zip(GROUPS, borders, borders[1:], strict=False):
        if end > first:
            above(axes, (first + end + 1) / 2, group)


def accuracy_by_shot(run: Run) -> Plot | None:
    """Accuracy of each expert over all, head, mid and tail classes, as bars."""
    rows = run.measured
    if not rows or run.balanced:
        return None
    figure, ((axes,),) = new_figure(3.1)
    keys = {'top1': 'overall', **{group: group for group in GROUPS}}
    width = .94 / len(rows)
    for place, (name, row) in enumerate(rows.items()):
        look = LOOKS[name]
        heights = numbers([row.get(key) for key in keys])
        where = np.arange(len(keys)) + (place - (len(rows) - 1) / 2) * width
        axes.bar(
            where, np.nan_to_num(heights), width * .92, label=_legend(run, name), linewidth=1.1, hatch=look.hatch,
            edgecolor=look.color, facecolor='none' if look.hatch else look.color)
        for x, height in zip(where, heights, strict=True):
            axes.annotate(
                _round(height), (x, np.nan_to_num(height)), (0, 2), textcoords='offset points', ha='center',
                va='bottom', fontsize=8 if len(rows) < 5 else 7.3)
    axes.set_xticks(range(len(keys)), keys.values())
    axes.tick_params(axis='x', length=0)
    axes.margins(x=.02)
    percent(axes, 0)
    legend(figure, axes)
    look_for = 'Re-balancing should close the gap between head and tail.'
    if 'dist' in rows:
        look_for = 'DeiT-LT should raise the tail without losing the head' + (
            '.' if run.fused else ': DIST is highest on the tail, CLS on the head.')
    return finish(
        figure, 'accuracy_by_shot', 'Head, mid and tail classes', look_for, _groups_in_words(run))


def _round(value: float | None) -> str:
    return '-' if value is None or not math.isfinite(value) else f'{value:.0f}'


def _groups_in_words(run: Run) -> str:
    words = (
        f'{run.label(name)}: ' + ', '.join(
            f'{key} {"unknown" if row.get(of) is None else f"{row[of]:.1f}"}'
            for key, of in zip(('overall', *GROUPS), ('top1', *GROUPS), strict=True))
        for name, row in run.measured.items())
    return f'Accuracy in percent. {". ".join(words)}.'


def accuracy_by_epoch(run: Run) -> Plot | None:
    """Accuracy of the experts after each epoch, over all and over the tail classes."""
    keys = {'top1': 'all classes', **({} if run.balanced else {'tail': 'tail classes'})}
    panels = {f'{words}, %': _columns(run, {name: f'eval_{name}_{key}' for name in _experts(run)})
              for key, words in keys.items()}

    def scale(axes: Axes, words: str) -> None:
        teacher = run.teacher.get('tail' if words.startswith('tail') else 'top1')
        if teacher is not None:
            axes.axhline(teacher, color=LOOKS['teacher'].color, linestyle='-.', label='teacher')
        percent(axes, words=words)

    return _by_epoch(
        run, 'accuracy_by_epoch', 'Accuracy during training', panels if panels['all classes, %'] else {},
        'If the accuracy still rises at the end, more epochs may help.' if run.balanced else
        'After the switch to stage two, the tail should gain more than the other classes lose.' if run.stage_two else
        'If the tail still rises at the end, more epochs may help it.', scale)


def losses(run: Run) -> Plot | None:
    """Training loss of each expert, and loss on the evaluation images."""
    training = {'mean': 'train_loss', 'cls': 'train_task_loss', 'dist': 'train_distill_loss'}
    panels = {'training loss': _columns(run, training, both='both'),
              'evaluation loss': _columns(run, {name: f'eval_{name}_loss' for name in _experts(run)}, both='both')}
    look_for = (
        'The model over-fits if its evaluation loss rises while its training loss falls.' if panels['evaluation loss']
        else 'If the loss still falls at the end, more epochs may help.')
    look_for += ' The step at the switch to stage two comes from the new loss.' if run.stage_two else ''
    return _by_epoch(run, 'losses', 'Losses', panels if panels['training loss'] else {}, look_for)


def learning_rate(run: Run) -> Plot | None:
    """Learning rate at the end of each epoch."""
    epochs, rates = run.column('train_lr')
    if not (rates > 0).any():
        return None
    epochs, rates = epochs[rates > 0], rates[rates > 0]  # zero has no place on a logarithmic axis
    return _by_epoch(
        run, 'learning_rate', 'Learning rate', {'learning rate': [(LOOKS['mean'], '', epochs, rates)]},
        'The rate that is left at the switch decides how much stage two can change.' if run.stage_two else
        'The rate should rise during the warm-up and fall to nearly zero at the end.',
        lambda axes, _: log_scale(axes, rates.min() / 2, rates.max() * 2, '{:.0e}'))


def expert_divergence(run: Run) -> Plot | None:
    """1 - cos(CLS, DIST) of the final tokens during training."""
    epochs, cosines = run.column('train_cosine')
    return _by_epoch(
        run, 'expert_divergence', 'CLS and DIST grow apart',
        {'1 - cos(CLS, DIST)': [(LOOKS['mean'], '', epochs, 1 - cosines)]} if len(epochs) and run.two_experts else {},
        'The curve should rise: if the two tokens stay alike (near 0), they are one expert under two names.')


def teacher_agreement(run: Run) -> Plot | None:
    """How often the teacher is right on the student's images, and how often DIST agrees with it."""
    curves = [(LOOKS[name], label, *run.column(column, 100)) for name, label, column in (
        ('teacher', 'teacher is right', 'train_teacher_correct'), ('dist', 'DIST agrees with it', 'train_agreement'))]
    return _by_epoch(
        run, 'teacher_agreement', "The teacher on the student's images",
        {'of training images, %': [curve for curve in curves if len(curve[2])]} if len(curves[0][2]) else {},
        'These images are augmented and mixed. DeiT-LT wants a teacher that is often wrong on them, but still useful, '
        'and a DIST that learns to follow it.', lambda axes, words: percent(axes, words=words))


def _experts(run: Run) -> list[str]:
    return [*run.fused, *(EXPERTS if run.two_experts else ('mean',))]


def _legend(run: Run, name: str) -> str:
    """Name of an expert for a legend, which has no room for how a fusion works."""
    return LOOKS[name].label if name in run.fused else run.label(name)


def _columns(run: Run, columns: Mapping[str, str], both: str = '') -> list[Curve]:
    """Curves of the columns of summary.csv that have a number; `both` is a shorter name for the mean of both."""
    curves = []
    for name, column in columns.items():
        epochs, values = run.column(column)
        if len(epochs):
            label = both if both and name == 'mean' and run.two_experts else _legend(run, name)
            curves.append((LOOKS[name], label, epochs, values))
    return curves


def _by_epoch(
        run: Run,
        name: str,
        title: str,
        panels: Mapping[str, Sequence[Curve]],
        look_for: str,
        scale: Callable[[Axes, str], Any] = lambda axes, _: from_zero(axes),
) -> Plot | None:
    """Curves by epoch with the switch to stage two, in a panel for each title of a y axis; None without curves."""
    panels = {words: curves for words, curves in panels.items() if curves}
    if not panels:
        return None
    figure, grid = new_figure(2.8 if len(panels) == 1 else 4.6, len(panels))
    last = max(row['epoch'] + 1 for row in run.rows)
    told = []
    for axes, (words, curves) in zip(grid[:, 0], panels.items(), strict=True):
        for look, label, x, y in curves:
            line(axes, x, y, look, label or None)
            told.append(f'{words}{", " if label else ""}{label}: {y[0]:.3g} after epoch {x[0]:.0f}, {y[-1]:.3g} after '
                        f'epoch {x[-1]:.0f}.')
        axes.set_ylabel(words)
        scale(axes, words)
        axes.set_xlim(0, max(last, 2) * 1.02)
        if run.stage_two:
            start, what = run.stage_two
            mark(axes, start, f'{what}, from epoch {start + 1}' if axes is grid[0, 0] else '', start / last)
    whole_numbers(axes.xaxis)
    axes.set_xlabel('epochs trained')
    legend(figure, grid[0, 0])
    switch = f' {run.stage_two[1]} from epoch {run.stage_two[0] + 1} on.' if run.stage_two else ''
    return finish(figure, name, title, look_for, f'{title} by epoch.{switch} {" ".join(told)}')


FIGURES = (
    accuracy_by_class, accuracy_by_shot, accuracy_by_epoch, losses, learning_rate, expert_divergence, teacher_agreement)
