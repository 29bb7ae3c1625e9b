"""Signs that DeiT-LT did not work in a run, each with advice on what to try."""
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .fusion import figures_of

# Points of accuracy that count as a large difference
_FAR = 10.
# Points of accuracy that are shown as 100.0 %
_PERFECT = 99.95
# Above this cosine of CLS and DIST after the final norm, the two count as one expert
_ALIKE = .97
# If the teacher is right on more of the student's images than this (in percent), it only repeats the labels
_TOO_GOOD = 90.


def failure_signatures(
        metrics: Mapping[str, Any],
        rows: Sequence[Mapping[str, Any]] = (),
        analysis: Mapping[str, Any] | None = None,
) -> list[dict[str, str]]:
    """Check a run for known failures. A check is skipped if its figures were not measured.

    Args:
        metrics: Content of metrics.json.
        rows: Rows of summary.csv, one per epoch.
        analysis: Content of analysis.json, if there is any.

    Returns:
        For each sign that was found: its 'name', a 'message' with the figures, and a 'suggestion'.
    """
    run = _Run(metrics, rows, analysis or {})
    found = ((check.__name__, check(run)) for check in CHECKS)
    return [dict(name=name, message=said[0], suggestion=said[1]) for name, said in found if said]


class _Run:
    def __init__(self, metrics: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], analysis: Mapping[str, Any]):
        self.metrics, self.rows, self.analysis = metrics, rows, analysis
        self.fusion = metrics.get('answer')
        self.answer = f'The prediction ({self.fusion})' if self.fusion else 'The mean of both experts'

    def accuracy(self, who: str, group: str) -> float | None:
        return figures_of(self.metrics, who).get(group)

    def last(self, column: str) -> float | None:
        """The last number of a column of summary.csv."""
        numbers = [row[column] for row in self.rows if row.get(column) not in (None, '')]
        return float(numbers[-1]) if numbers else None


def dist_not_above_cls_on_the_tail(run: _Run) -> tuple[str, str] | None:
    """DIST, which learned from the teacher, is not better than CLS on the tail."""
    cls, dist, teacher = (run.accuracy(who, 'tail') for who in ('cls', 'dist', 'teacher'))
    if cls is None or dist is None or teacher is None or dist > cls or cls > _PERFECT:
        return None
    message = f'DIST reaches {dist:.1f} % on the tail, which is not more than CLS ({cls:.1f} %).'
    if teacher <= max(cls, dist):
        return message, (
            f'The teacher itself is no better there ({teacher:.1f} %): train a better one first (--teacher '
            'resnet32_sam, which re-balances, or more --teacher-epochs).')
    return message, (
        f'The teacher reaches {teacher:.1f} %, so there is something to learn: train longer, or look in the report '
        "(analyze.py RUN) how often the teacher is right on the student's images.")


def head_far_below(run: _Run) -> tuple[str, str] | None:
    """The model has lost accuracy on the head in favour of the tail."""
    answer, cls, teacher = (run.accuracy(who, 'head') for who in ('answer', 'cls', 'teacher'))
    if answer is None or run.accuracy('dist', 'head') is None:
        return None
    others = {'its teacher': teacher, 'CLS': cls}
    above = {name: figure for name, figure in others.items() if figure is not None and figure - answer > _FAR}
    if not above:
        return None
    figures = ' and '.join(f'{figure:.1f} % of {name}' for name, figure in above.items())
    message = f'{run.answer} reaches {answer:.1f} % on the head, against {figures}.'
    tail = run.accuracy('answer', 'tail')
    if tail is not None and tail < answer / 2:
        return message, 'The tail has not gained from this: train longer.'
    if run.fusion and (run.accuracy('mean', 'head') or 0.) - answer > _FAR:
        return message, 'The mean of the logits keeps the head: compare with it (validate.py RUN --fusion all).'
    return message, (
        'Stage two gives the tail too much weight, or for too long: try a later --drw-start-epoch, a smaller '
        '--drw-beta, or --drw-on dist. Mixup in stage two (--keep-mixup-drw) also costs accuracy on the head.')


def tail_gap_grows(run: _Run) -> tuple[str, str] | None:
    """The few tail images are memorised."""
    gap = run.analysis.get('tail_gap') or {}
    if len(gap.get('epochs') or ()) < 2:
        return None
    (train, train_now), (test, test_now) = gap['train'][-2:], gap['test'][-2:]
    if (train_now - test_now) - (train - test) <= _FAR:
        return None
    return (
        f'In stage two (from epoch {gap["epochs"][-2]} to {gap["epochs"][-1]}) the accuracy on the tail went from '
        f'{train:.1f} to {train_now:.1f} % of its training images, and from {test:.1f} to {test_now:.1f} % of its '
        'evaluation images.'), (
        'Stage two memorises the few tail images: start it later (--drw-start-epoch), lower --drw-beta, or use '
        'stronger augmentation.')


def experts_alike(run: _Run) -> tuple[str, str] | None:
    """CLS and DIST have become one expert."""
    cosine = run.analysis.get('cos_norm')
    cosine = run.last('train_cosine') if cosine is None else cosine
    if cosine is None or cosine <= _ALIKE or not run.metrics.get('teacher'):
        return None  # without a teacher both learn the same labels
    return f'CLS and DIST are still almost the same (cosine {cosine:.3f} after the final norm).', (
        "The teacher's classes hardly differ from the labels, or training was too short: train for more epochs, or let "
        'the images differ more from those of the teacher (stronger --aa, --mixup, --cutmix, --reprob, or a teacher '
        'trained on weak augmentation, such as resnet32_sam).')


def teacher_too_good_or_useless(run: _Run) -> tuple[str, str] | None:
    """The teacher only repeats the labels of the student's images, or is hardly better than guessing."""
    ood = run.analysis.get('ood') or {}
    right, clean = ood.get('teacher_top1_train_view'), ood.get('teacher_top1_clean')
    classes = len((run.metrics.get('data') or {}).get('train_counts') or ())
    if right is None or clean is None or not classes:
        return None
    chance = 100 / classes
    if clean - chance < (100 - chance) / 10:
        return (
            f'The teacher is right on {clean:.1f} % of clean images, which is hardly more than by guessing among '
            f'{classes} classes.'), (
            'Train a better one: more --teacher-epochs, or another --teacher.')
    if right > _TOO_GOOD:
        return f"The teacher is right on {right:.1f} % of the student's images: it only repeats the labels.", (
            'Augment the student more (--aa, --mixup, --cutmix, --reprob): then its images are out of distribution for '
            'the teacher. If this lowers accuracy, compare with --teacher none --drw-on cls.')
    if right - chance < (clean - chance) / 10:
        return (
            f"The teacher is right on {clean:.1f} % of clean images, but only on {right:.1f} % of the student's, which "
            f'is hardly more than by guessing among {classes} classes.'), (
            'Augment the student less, or give --teacher-view weak, which shows the teacher the image before strong '
            'augmentation.')
    return None


def prediction_below_dist(run: _Run) -> tuple[str, str] | None:
    """CLS makes the prediction worse than DIST alone."""
    answer, dist = run.accuracy('answer', 'balanced'), run.accuracy('dist', 'balanced')
    if answer is None or dist is None or dist - answer < 3:
        return None
    return f'{run.answer} has a balanced accuracy of {answer:.1f} %, DIST alone has {dist:.1f} %.', (
        'CLS prefers frequent classes, as it does in short runs: train longer, re-weight CLS too in stage two '
        '(--drw-on both, --cls-loss balanced_softmax), or join the experts in another way (validate.py RUN --fusion '
        'all).')


CHECKS: tuple[Callable[[_Run], tuple[str, str] | None], ...] = (
    dist_not_above_cls_on_the_tail, head_far_below, tail_gap_grows, experts_alike, teacher_too_good_or_useless,
    prediction_below_dist)
