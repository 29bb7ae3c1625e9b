"""Signs that a run failed at what DeiT-LT is for, each with what to try."""
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# Points of accuracy by which something is far below or has grown
_FAR = 10.
# Cosine of CLS and DIST after the final norm from which on they are one expert
_ALIKE = .97
# A teacher right on more of the student's images than this, in percent, only repeats the labels
_TOO_GOOD = 90.


def failure_signatures(
        metrics: Mapping[str, Any],
        rows: Sequence[Mapping[str, Any]] = (),
        analysis: Mapping[str, Any] | None = None,
) -> list[dict[str, str]]:
    """Check a run for known failures; what was not measured is not judged.

    Args:
        metrics: Content of metrics.json.
        rows: Rows of summary.csv, one an epoch.
        analysis: Content of analysis.json, if there is any.

    Returns:
        Of each sign that was found its 'name', a 'message' with the figures, and a 'suggestion'.
    """
    run = _Run(metrics, rows, analysis or {})
    found = ((check.__name__, check(run)) for check in CHECKS)
    return [dict(name=name, message=said[0], suggestion=said[1]) for name, said in found if said]


class _Run:
    def __init__(self, metrics: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], analysis: Mapping[str, Any]):
        self.metrics, self.rows, self.analysis = metrics, rows, analysis

    def accuracy(self, who: str, group: str) -> float | None:
        return (self.metrics.get(who) or {}).get(group)

    def last(self, column: str) -> float | None:
        """The last number of a column of summary.csv."""
        numbers = [row[column] for row in self.rows if row.get(column) not in (None, '')]
        return float(numbers[-1]) if numbers else None


def dist_not_above_cls_on_the_tail(run: _Run) -> tuple[str, str] | None:
    """DIST, which has learned from the teacher, is no expert of the tail."""
    cls, dist, teacher = (run.accuracy(who, 'tail') for who in ('cls', 'dist', 'teacher'))
    if cls is None or dist is None or teacher is None or dist > cls:
        return None
    message = f'DIST finds {dist:.1f} % of the tail, no more than CLS ({cls:.1f} %).'
    if teacher <= max(cls, dist):
        return message, (
            f'Its teacher finds {teacher:.1f} % there: train a better one first (--teacher resnet32_sam re-balances; '
            'more --teacher-epochs).')
    return message, (
        f'Its teacher finds {teacher:.1f} %, so there is something to learn: train longer, or look whether the '
        "teacher's answers on the student's images still make sense (analyze.py RUN).")


def head_far_below(run: _Run) -> tuple[str, str] | None:
    """The head was given up for the tail."""
    mean, cls, teacher = (run.accuracy(who, 'head') for who in ('mean', 'cls', 'teacher'))
    if mean is None or run.accuracy('dist', 'head') is None:
        return None
    others = {'its teacher': teacher, 'CLS': cls}
    above = {name: figure for name, figure in others.items() if figure is not None and figure - mean > _FAR}
    if not above:
        return None
    figures = ' and '.join(f'{figure:.1f} % by {name}' for name, figure in above.items())
    message = f'The mean finds {mean:.1f} % of the head, against {figures}.'
    if (run.accuracy('mean', 'tail') or 0.) < mean / 2:
        return message, 'The tail has not gained from it: train longer.'
    return message, (
        'Stage two weighs the tail too much or too long: a later --drw-start-epoch, a smaller --drw-beta, or --drw-on '
        'dist. Mixing kept on in stage two (--keep-mixup-drw) costs head classes too.')


def tail_gap_grows(run: _Run) -> tuple[str, str] | None:
    """The few tail images are learned by heart."""
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
        'Stage two fits the few tail images: start it later (--drw-start-epoch), lower --drw-beta, or augment more.')


def experts_alike(run: _Run) -> tuple[str, str] | None:
    """CLS and DIST have become one expert."""
    cosine = run.analysis.get('cos_norm')
    cosine = run.last('train_cosine') if cosine is None else cosine
    if cosine is None or cosine <= _ALIKE or not run.metrics.get('teacher'):
        return None  # without a teacher network both learn the same labels
    return f'CLS and DIST are still alike (cosine {cosine:.3f} after the final norm).', (
        "What the teacher says hardly differs from the labels, or training was too short: more epochs, or images that "
        'are further from those of the teacher (stronger --aa, --mixup, --cutmix, --reprob; a teacher trained on weak '
        'augmentation such as resnet32_sam).')


def teacher_too_good_or_useless(run: _Run) -> tuple[str, str] | None:
    """The teacher repeats the labels of the student's images, or guesses."""
    ood = run.analysis.get('ood') or {}
    right, clean = ood.get('teacher_top1_train_view'), ood.get('teacher_top1_clean')
    classes = len((run.metrics.get('data') or {}).get('train_counts') or ())
    if right is None or clean is None or not classes:
        return None
    chance = 100 / classes
    if clean - chance < (100 - chance) / 10:
        return f'The teacher is right on {clean:.1f} % of clean images: it guesses among {classes} classes.', (
            'Train a better one: more --teacher-epochs, or another --teacher.')
    if right > _TOO_GOOD:
        return f"The teacher is right on {right:.1f} % of the student's images: it only repeats the labels.", (
            'Stronger augmentation of the student (--aa, --mixup, --cutmix, --reprob) takes its images out of the '
            "teacher's distribution. Where accuracy is higher without, compare with --teacher none --drw-on cls.")
    if right - chance < (clean - chance) / 10:
        return (
            f"The teacher is right on {clean:.1f} % of clean images, but on {right:.1f} % of the student's: there it "
            f'guesses among {classes} classes.'), (
            'Weaker augmentation of the student, or --teacher-view weak, which lets the teacher see the image before '
            'it.')
    return None


def mean_below_dist(run: _Run) -> tuple[str, str] | None:
    """CLS drags the mean down."""
    mean, dist = run.accuracy('mean', 'balanced'), run.accuracy('dist', 'balanced')
    if mean is None or dist is None or dist - mean < 3:
        return None
    return f'The mean of both experts is right on {mean:.1f} % of a class on average, DIST alone on {dist:.1f} %.', (
        'CLS follows the class counts, as it does in short runs: train longer, weigh CLS too in stage two '
        '(--drw-on both, --cls-loss balanced_softmax), or join the experts otherwise (validate.py RUN --fusion all).')


CHECKS: tuple[Callable[[_Run], tuple[str, str] | None], ...] = (
    dist_not_above_cls_on_the_tail, head_far_below, tail_gap_grows, experts_alike, teacher_too_good_or_useless,
    mean_below_dist)
