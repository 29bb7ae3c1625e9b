"""Figures of accuracy and training, from metrics.json and summary.csv."""
import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from .page import LIGHT, Plot
from .plots import (
    LOOKS,
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
from .run_files import GROUPS, Run, numbers

# up to so many classes have their names on the axis, up to so many their own points; beyond, means of neighbours alone
_NAMED, _POINTS = 20, 100


def accuracy_by_class(run: Run) -> Plot | None:
    """Accuracy of each class from the most to the least frequent one, with the training images behind."""
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
        look, label = LOOKS[name], run.label(name)
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
    smoothed = '' if count <= _NAMED else f' Lines: means of about {count / _blocks(count):.0f} neighbours.'
    if 'dist' in rows:
        look_for = 'Where DIST stays above CLS on the right, among the rare classes, the experts have specialised.'
    else:
        look_for = 'The steeper the fall to the right, where classes are rare, the more the model follows the counts.'
    alt = f'Accuracy of {count} classes, from {images[0]:.0f} to {images[-1]:.0f} training images. '
    if count <= _NAMED:
        alt += 'Classes from most to least frequent: ' + ', '.join(run.class_name(label) for label in order) + '. '
        alt += ' '.join(
            f'{run.label(name)}: {", ".join(_round(row["per_class"][label]) for label in order)} %.'
            for name, row in rows.items())
    else:
        alt += _groups_in_words(run, rows)
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
    """Means over neighbouring classes; without test images a class counts for nothing."""
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
            axes.annotate(
                group, ((first + end + 1) / 2, 1), (0, 3), xycoords=('data', 'axes fraction'),
                textcoords='offset points', fontsize=9, color=LIGHT['muted'], ha='center', va='bottom')


def accuracy_by_shot(run: Run) -> Plot | None:
    """Bars of each expert over all, head, mid and tail classes."""
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
            where, np.nan_to_num(heights), width * .92, label=run.label(name), linewidth=1.1, hatch=look.hatch,
            edgecolor=look.color, facecolor='none' if look.hatch else look.color)
        for x, height in zip(where, heights, strict=True):
            axes.annotate(
                _round(height), (x, np.nan_to_num(height)), (0, 2), textcoords='offset points', ha='center',
                va='bottom', fontsize=8)
    axes.set_xticks(range(len(keys)), keys.values())
    axes.tick_params(axis='x', length=0)
    axes.margins(x=.02)
    percent(axes, 0)
    legend(figure, axes)
    look_for = (
        'The method should lift the tail without losing the head: DIST highest on the right, CLS on the left.'
        if 'dist' in rows else 'The gap between head and tail is what re-balancing is to close.')
    return finish(figure, 'accuracy_by_shot', 'Head, mid and tail classes', look_for, _groups_in_words(run, rows))


def accuracy_by_epoch(run: Run) -> Plot | None:
    """Accuracy of the experts after each epoch, over all and over the tail classes."""
    names = [name for name in (('mean', 'cls', 'dist') if run.two_experts else ('mean',))
             if len(run.column(f'eval_{name}_top1')[0])]
    if not names:
        return None
    keys = {'top1': 'all classes, %', **({} if run.balanced else {'tail': 'tail classes, %'})}
    figure, panels = new_figure(2.3 * len(keys), len(keys))
    panels = panels[:, 0]
    for axes, (key, words) in zip(panels, keys.items(), strict=True):
        for name in names:
            line(axes, *run.column(f'eval_{name}_{key}'), LOOKS[name], run.label(name))
        if run.teacher.get(key) is not None:
            axes.axhline(run.teacher[key], color=LOOKS['teacher'].color, linestyle='-.', label='teacher')
        percent(axes, words=words)
    _epochs(run, panels)
    legend(figure, panels[0])
    last = ', '.join(f'{run.label(name)} {_last(run, f"eval_{name}_top1")}' for name in names)
    tail = ', '.join(f'{run.label(name)} {_last(run, f"eval_{name}_tail")}' for name in names)
    look_for = (
        'Accuracy that is still rising at the end would gain from more epochs.' if run.balanced else
        'After the switch to stage two the tail should rise more than the other classes lose.' if run.stage_two else
        'A tail that is still rising at the end would gain from more epochs.')
    return finish(
        figure, 'accuracy_by_epoch', 'Accuracy during training', look_for,
        f'Accuracy by epoch{_switch(run)}. At the end, over all classes: {last} %'
        f'{"" if run.balanced else f"; over the tail: {tail} %"}.')


def losses(run: Run) -> Plot | None:
    """Training losses of each expert, and the cross-entropy of the test images."""
    training = {'mean': 'train_loss', 'cls': 'train_task_loss', 'dist': 'train_distill_loss'}
    training = {name: column for name, column in training.items() if len(run.column(column)[0])}
    evaluation = {name: f'eval_{name}_loss' for name in ('mean', 'cls', 'dist')[:3 if run.two_experts else 1]}
    evaluation = {name: column for name, column in evaluation.items() if len(run.column(column)[0])}
    if not training:
        return None
    kinds = [(training, 'training loss'), *([(evaluation, 'evaluation loss')] if evaluation else [])]
    figure, panels = new_figure(4.6 if evaluation else 3.1, len(kinds))
    panels = panels[:, 0]
    for axes, (columns, words) in zip(panels, kinds, strict=True):
        for name, column in columns.items():
            line(axes, *run.column(column), LOOKS[name], 'both' if run.two_experts and name == 'mean' else
                 run.label(name))
        axes.set_ylabel(words)
        from_zero(axes)
    _epochs(run, panels)
    legend(figure, panels[0])
    look_for = (
        'An evaluation loss that turns upwards while the training loss falls is over-fitting' if evaluation else
        'A loss that still falls at the end would gain from more epochs')
    look_for += '; a step at the switch is the change of the loss itself.' if run.stage_two else '.'
    values = '; '.join(
        f'{words} at the end: ' + ', '.join(f'{name} {_last(run, column, 3)}' for name, column in columns.items())
        for columns, words in kinds)
    return finish(figure, 'losses', 'Losses', look_for, f'Losses by epoch{_switch(run)}. {values}.')


def learning_rate(run: Run) -> Plot | None:
    """Learning rate at the end of each epoch."""
    epochs, rates = run.column('train_lr')
    if not len(epochs) or not (rates > 0).any():
        return None
    figure, ((axes,),) = new_figure(2.5)
    positive = rates[rates > 0]
    line(axes, epochs, np.where(rates > 0, rates, math.nan), LOOKS['mean'])
    log_scale(axes, positive.min() / 2, positive.max() * 2, '{:.0e}')
    axes.set_ylabel('learning rate')
    _epochs(run, [axes])
    return finish(
        figure, 'learning_rate', 'Learning rate',
        'The rate that is left at the switch decides how much stage two can still change.' if run.stage_two else
        'The rate should rise during the warm-up and fall to nearly nothing at the end.',
        f'Learning rate by epoch{_switch(run)}: {rates.max():.2g} at most, {rates[-1]:.2g} at the end.')


def expert_divergence(run: Run) -> Plot | None:
    """1 - cos(CLS, DIST) of the final tokens during training."""
    epochs, cosines = run.column('train_cosine')
    if not len(epochs) or not run.two_experts:
        return None
    figure, ((axes,),) = new_figure(2.7)
    line(axes, epochs, 1 - cosines, LOOKS['mean'])
    axes.set_ylabel('1 - cos(CLS, DIST)')
    from_zero(axes)
    _epochs(run, [axes])
    return finish(
        figure, 'expert_divergence', 'CLS and DIST grow apart',
        'The curve should rise: tokens that stay alike (near 0) are one expert under two names.',
        f'1 - cos(CLS, DIST) of the final tokens on training images by epoch{_switch(run)}: {1 - cosines[0]:.3f} after '
        f'the first epoch, {1 - cosines[-1]:.3f} at the end, {1 - cosines.min():.3f} at most.')


def teacher_agreement(run: Run) -> Plot | None:
    """How often the teacher is right on the student's images, and DIST says what the teacher says."""
    correct, agreement = run.column('train_teacher_correct', 100), run.column('train_agreement', 100)
    if not len(correct[0]):
        return None
    figure, ((axes,),) = new_figure(2.9)
    line(axes, *correct, LOOKS['teacher'], 'teacher is right')
    if len(agreement[0]):
        line(axes, *agreement, LOOKS['dist'], 'DIST agrees with it')
    percent(axes, words='of training images, %')
    _epochs(run, [axes])
    legend(figure, axes)
    return finish(
        figure, 'teacher_agreement', "The teacher on the student's images",
        'The method wants a teacher that is often wrong here, but not useless, and a DIST that learns to follow it.',
        f'On the augmented and mixed training images the teacher names the label {correct[1].mean():.1f} % of the time '
        f'on average; DIST agrees with it on {_last(run, "train_agreement", 1, 100)} % at the end.')


def _epochs(run: Run, panels: list[Axes]) -> None:
    """The x axis of curves by epoch, with the switch to stage two."""
    last = max(row['epoch'] + 1 for row in run.rows)
    for axes in panels:
        axes.set_xlim(0, max(last, 2) * 1.02)
        if run.stage_two:
            start, words = run.stage_two
            mark(axes, start, f'{words}, from epoch {start + 1}' if axes is panels[0] else '', start / last)
    whole_numbers(panels[-1].xaxis)
    panels[-1].set_xlabel('epochs trained')


def _switch(run: Run) -> str:
    return f', with the switch ({run.stage_two[1]}) from epoch {run.stage_two[0] + 1} on' if run.stage_two else ''


def _last(run: Run, column: str, digits: int = 1, factor: float = 1.0) -> str:
    values = run.column(column, factor)[1]
    return f'{values[-1]:.{digits}f}' if len(values) else 'unknown'


def _round(value: float | None) -> str:
    return '-' if value is None or not math.isfinite(value) else f'{value:.0f}'


def _groups_in_words(run: Run, rows: dict[str, dict[str, Any]]) -> str:
    def words(row: dict[str, Any]) -> str:
        values = [row.get(key) for key in ('top1', *GROUPS)]
        return ', '.join(
            f'{key} {"unknown" if value is None else f"{value:.1f}"}'
            for key, value in zip(('overall', *GROUPS), values, strict=True))

    return 'Accuracy in percent. ' + ' '.join(f'{run.label(name)}: {words(row)}.' for name, row in rows.items())
