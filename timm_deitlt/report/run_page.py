"""The page of a run: what its files say, in the order in which a reader with two minutes wants it."""
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..utils.files import atomic_write
from ..utils.words import duration_in_words
from .mechanism_plots import (
    attention_distance,
    attention_last_block,
    attention_rollout,
    divergence_by_block,
    feature_rank,
)
from .mistake_plots import confusion_matrix, tail_images
from .page import Plot, details, document, facts, figures, missing, paragraph, table, text
from .plots import drawing, write_plots
from .run_files import GROUPS, Run, short_path
from .run_plots import (
    accuracy_by_class,
    accuracy_by_epoch,
    accuracy_by_shot,
    expert_divergence,
    learning_rate,
    losses,
    teacher_agreement,
)

PAGE, PLOTS = 'report.html', 'plots'
_FILES = {
    'args.yaml': 'settings',
    'summary.csv': 'a row an epoch',
    'metrics.json': 'the figures of this page in full',
    'versions.json': 'versions, commit and machine',
    'signatures.json': 'notes at the top of this page',
    'analysis.json': 'distances, ranks and divergence, from analyze.py',
    'attention.npz': 'the attention maps, from analyze.py',
    'tail_images.npz': 'the mistakes on the tail, from analyze.py',
}
_FIGURES: dict[str, Callable[[Run], Plot | None]] = {
    draw.__name__: draw for draw in (
        accuracy_by_class, accuracy_by_shot, accuracy_by_epoch, losses, learning_rate, expert_divergence,
        divergence_by_block, attention_distance, feature_rank, attention_rollout, attention_last_block,
        teacher_agreement, confusion_matrix, tail_images)
}
_MOST_CLASSES_LISTED = 200
_MOST_PAIRS = 10
_ANALYZE = '`python analyze.py RUN` measures them.'


def write(folder: Path) -> Path:
    """Write page and plots of a run; see `write_report`."""
    run = Run(folder)
    with drawing():
        plots = {name: plot for name, draw in _FIGURES.items() if (plot := draw(run)) is not None}
    write_plots(run.folder / PLOTS, plots, _FIGURES)
    html = _html(run, plots).encode('utf-8')
    atomic_write(folder / PAGE, lambda file: file.write_bytes(html))
    return folder / PAGE


def _html(run: Run, plots: dict[str, Plot]) -> str:
    def shown(*names: str) -> str:
        return figures(plots.get(name) for name in names)

    sections = {
        'Result': _result(run) + shown('accuracy_by_class', 'accuracy_by_shot') + _classes(run),
        'Mistakes': shown('confusion_matrix', 'tail_images') + _confused(run),
        'Training': shown('accuracy_by_epoch', 'losses', 'learning_rate') + _training_missing(run),
        'Inside the network': '' if run.is_cnn else (
            shown('expert_divergence', 'divergence_by_block', 'attention_distance', 'feature_rank')
            + _mechanisms_missing(run)),
        'Where they look': '' if run.is_cnn else (
            shown('attention_rollout', 'attention_last_block') + _attention_missing(run)),
        'Teacher': _teacher(run) + shown('teacher_agreement'),
        'Settings and versions': _settings(run),
        'Files': _files(run, plots),
    }
    return document(
        f'{run.model} on {run.data_name}', _about(run), _sentence(run), sections, _signatures(run),
        '<p>Written by timm_deitlt from the files of the run. It needs no network and holds no script.</p>')


def _about(run: Run) -> str:
    metrics, parts = run.metrics, [f'Run {run.folder.name}']
    date = run.versions.get('date') or metrics.get('date')
    if date:
        parts.append(str(date))
    seed = metrics.get('seed', run.args.get('seed'))
    if seed is not None:
        parts.append(f'seed {seed}')
    trained = metrics.get('epochs_trained') or (int(run.rows[-1]['epoch']) + 1 if run.rows else None)
    if run.epochs:
        unfinished = trained is not None and trained < run.epochs
        parts.append(f'{trained} of {run.epochs} epochs: unfinished' if unfinished else f'{run.epochs} epochs')
    if metrics.get('seconds'):
        parts.append(duration_in_words(metrics['seconds']))
    return ' · '.join(f'<span>{text(part)}</span>' for part in parts)


def _sentence(run: Run) -> str:
    row = run.experts.get('mean')
    if row is None:
        return 'This run was not evaluated, so there is no accuracy to report.'
    subject = 'the mean of both experts' if run.two_experts else 'the model'
    words = (
        f'After {run.metrics.get("epochs_trained") or run.epochs} epochs {subject} is right on {_percent(row["top1"])} '
        f'of {run.data.get("evaluated_on") or "the images"}{_by_group(run, row, ": ")}.')
    if 'teacher' in run.measured:
        words = words[:-1] + (
            f'; its teacher {run.teacher.get("name")} on {_percent(run.teacher["top1"])}'
            f'{_by_group(run, run.teacher, " (", ")")}.')
    return words


def _by_group(run: Run, row: dict[str, Any], before: str, after: str = '') -> str:
    if run.balanced:
        return ''
    return before + ', '.join(f'{group} {_percent(row.get(group))}' for group in GROUPS) + after


def _percent(value: float | None) -> str:
    return 'not measured' if value is None else f'{value:.1f} %'


def _number(value: float | None, digits: int = 1) -> str:
    return '–' if value is None else f'{value:,.{digits}f}'


def _signatures(run: Run) -> str:
    notes = []
    for signature in run.signatures:
        fields = signature if isinstance(signature, dict) else {'message': signature}
        suggestion = fields.get('suggestion')
        notes.append(
            '<div class="note" role="note">\n'
            f'<p><strong>{text(str(fields.get("name", "note")).replace("_", " "))}</strong>: '
            f'{text(fields.get("message", ""))}</p>\n'
            + (f'<p>{text(suggestion)}</p>\n' if suggestion else '') + '</div>')
    return '\n'.join(notes)


def _result(run: Run) -> str:
    if not run.metrics:
        return missing(
            'No metrics.json, so the run has not ended: `python train.py --resume auto --experiment NAME` with its '
            'other settings goes on with it.')
    if not run.experts:
        return missing(
            'There were no evaluation images: `python validate.py RUN --val-split NAME` measures a run, and '
            '`--val-split` or `--val-fraction` of train.py give it some from the start.') + _table(run)
    return _table(run)


def _table(run: Run) -> str:
    keys = {'top1': 'overall', **{group: group for group in GROUPS}, 'balanced': 'balanced', 'top5': 'top-5'}
    measured = dict(run.measured)
    rows, marks = [], []
    if run.shots:
        for key in ('classes', 'train_images', 'test_images'):
            counts = [run.shots[group][key] for group in GROUPS]
            rows.append([key.replace('_', ' '), *(f'{count:,}' for count in (sum(counts), *counts)), '', ''])
    marks += [None] * len(rows)
    ema = {f'EMA, {run.label(name)}': row for name, row in (run.metrics.get('ema') or {}).items()
           if run.two_experts or name == 'mean'}
    for name, row in {**measured, **ema}.items():
        rows.append([run.label(name), *(_number(row.get(key)) for key in keys)])
        marks.append(name if name in measured else None)
    for key in ('top5', 'balanced'):  # no column without a number
        if not any(row.get(key) is not None for row in measured.values()):
            del keys[key]
            rows = [row[:len(keys) + 1] for row in rows]
    notes = [f'Groups: {run.shots["rule"]}.'] if run.shots.get('rule') else []
    if run.experts:
        notes.append('The figures are of the last epoch: no epoch was chosen on these images.')
        notes += [
            f'The {group} has only {run.shots[group]["test_images"]} test images: its accuracy is coarse.'
            for group in GROUPS if run.shots and 0 < run.shots[group]['test_images'] < 30]
        absent = [run.class_name(label) for label in run.shots.get('missing_classes') or ()]
        names = ', '.join(absent[:10]) + (f' and {len(absent) - 10} more' if len(absent) > 10 else '')
        notes += [f'No test images of class {names}; every mean leaves them out.'] if absent else []
    caption = 'Accuracy in percent; in head, mid, tail and balanced each class has equal weight'
    return table(caption, ['', *keys.values()], rows, marks) + paragraph(' '.join(notes), 'small')


def _classes(run: Run) -> str:
    rows = {name: row for name, row in run.measured.items() if row.get('per_class')}
    if not rows or not run.counts:
        return ''
    if len(run.counts) > _MOST_CLASSES_LISTED:
        return missing(f'metrics.json lists the accuracy of all {len(run.counts):,} classes.')
    tests = run.data.get('test_counts') or []
    lines = [
        [run.class_name(label), f'{run.counts[label]:,}', f'{tests[label]:,}' if label < len(tests) else '–',
         *(_number(row['per_class'][label]) for row in rows.values())]
        for label in run.order]
    head = ['class', 'train images', 'test images', *(run.label(name) for name in rows)]
    return details('Every class in figures', table('Accuracy per class in percent', head, lines))


def _confused(run: Run) -> str:
    confusion = run.metrics.get('confusion') or {}
    pairs = (confusion.get('pairs') or [])[:_MOST_PAIRS]
    if not pairs:
        return ''
    lines = [
        [pair['true'], pair['predicted'], f'{pair["images"]:,}', _number(pair['percent'])] for pair in pairs]
    return table(
        f'Most confused classes, by {run.label("mean")}', ['class', 'taken for', 'images', '% of the class'], lines,
        kind='pairs')


def _training_missing(run: Run) -> str:
    if not run.rows:
        return missing('No summary.csv with an epoch: train.py writes it while it trains.')
    if not any(name.startswith('eval_') and name.endswith('top1') for row in run.rows for name in row):
        return missing('No accuracy by epoch, as no epoch was evaluated: `--val-split` gives train.py images for it.')
    return ''


def _mechanisms_missing(run: Run) -> str:
    if run.analysis:
        return ''
    return missing(f'Attention distance, rank of the features and divergence per block: {_ANALYZE}')


def _attention_missing(run: Run) -> str:
    return '' if run.attention else missing(f'Attention maps of head and tail images: {_ANALYZE}')


def _teacher(run: Run) -> str:
    if not run.teacher:
        words = {
            'labels': 'No teacher network: both tokens learned the labels.',
            'none': 'No teacher: the labels alone.',
        }.get(str(run.args.get('teacher', '')))
        return missing(words) if words else ''
    origin = {
        'trained': ', trained for this run', 'cache': ', from the cache', 'hub': ', from the Hub',
        'file': ', from a file',
    }.get(run.teacher.get('source'), '')
    accuracy = '; its accuracy stands in the table above' if 'teacher' in run.measured else ''
    html = paragraph(f'{run.teacher.get("name")}{origin}{accuracy}.')
    ood = run.analysis.get('ood')
    if not ood:
        return html + missing("How far the student's images are from those that the teacher knows, image by image: "
                              '`python analyze.py RUN` measures it.')
    rows = [
        ['teacher names the label, %', _number(ood.get('teacher_top1_clean')),
         _number(ood.get('teacher_top1_train_view'))],
        ['entropy of its answer, nats', _number(ood.get('teacher_entropy_clean'), 2),
         _number(ood.get('teacher_entropy_train_view'), 2)],
        ['its answer is a tail class, %', '–', _number(ood.get('teacher_tail_share'))],
        ['the label is a tail class, %', '–', _number(ood.get('true_tail_share'))],
        ['DIST gives the same answer, %', '–', _number(ood.get('dist_agreement'))],
    ]
    views = f' ({ood["num_views"]:,} of these)' if ood.get('num_views') else ''
    caption = (
        'The teacher on clean evaluation images, and on training images augmented and mixed as the student sees them'
        + views)
    return html + table(caption, ['', 'clean', "student's view"], rows) + paragraph(
        'The further its accuracy falls from the first column to the second, the further out of distribution the '
        "student's images are for it. Where it answers with tail classes more often than they are there, DIST learns "
        'the tail from it.', 'small')


def _settings(run: Run) -> str:
    measured = {
        'data fingerprint': run.data.get('fingerprint'),
        'split seed': run.data.get('split_seed'),
        'weights sha256': run.metrics.get('weights_sha256'),
        'images per second': run.metrics.get('train_images_per_second'),
    }
    pairs = [(name, value) for name, value in run.versions.items() if name != 'date']
    pairs += [(name, value) for name, value in measured.items() if value is not None]
    html = facts(pairs) if pairs else missing('No versions.json: train.py writes it at the start of a run.')
    if not run.args:
        return html + missing('No args.yaml: train.py writes it at the start of a run.')
    empty = [name for name, value in run.args.items() if value is False or value in (None, '', [], {})]
    given = [(name, _setting(value)) for name, value in run.args.items() if name not in empty]
    words = f'Off or not given: {", ".join(empty)}. Of folders only the last part is shown.'
    return html + details(f'Settings ({len(run.args)})', facts(given) + paragraph(words, 'small'))


def _setting(value: Any) -> str:
    if isinstance(value, str):
        return short_path(value)
    if isinstance(value, dict):
        return ' '.join(f'{key}={item}' for key, item in value.items())
    return ', '.join(map(str, value)) if isinstance(value, list) else str(value)


def _files(run: Run, plots: dict[str, Plot]) -> str:
    pairs = [(name, words) for name, words in _FILES.items() if (run.folder / name).is_file()]
    pairs += [(path.name, 'weights and state') for path in sorted(run.folder.glob('*.pth.tar'))]
    pairs.append((f'{PLOTS}/*.png', f'the {len(plots)} figures of this page'))
    return facts(pairs)
