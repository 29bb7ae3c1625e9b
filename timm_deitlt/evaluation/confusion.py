"""Which classes a model takes for which others, by name."""
from collections.abc import Sequence
from typing import Any

# Of more classes a file of figures lists the pairs alone
_MOST_CLASSES = 100
_MOST_PAIRS = 20


def confused_pairs(confusion: Sequence[Sequence[int]], class_names: Sequence[str]) -> list[dict[str, Any]]:
    """The pairs of classes that are confused in most images, at most 20, most first.

    Args:
        confusion: Images by their class and the class they are given, `[C][C]`.
        class_names: Names by label.

    Returns:
        'true' and 'predicted' class by name, 'images' that were confused, and 'percent', their share of the images of
        the true class. Equal numbers are ordered by that share, then by label.
    """
    pairs = [
        (count, 100 * count / sum(row), true, predicted)
        for true, row in enumerate(confusion) for predicted, count in enumerate(row) if count and true != predicted]
    pairs.sort(key=lambda pair: (-pair[0], -pair[1], *pair[2:]))
    return [
        {'true': class_names[true], 'predicted': class_names[predicted], 'images': count, 'percent': percent}
        for count, percent, true, predicted in pairs[:_MOST_PAIRS]]


def describe_confusion(
        confusion: Sequence[Sequence[int]] | None,
        class_names: Sequence[str],
        answer: Sequence[str] = (),
) -> dict[str, Any] | None:
    """What metrics.json says of `ShotEvaluator.confusion`: 'pairs', and the 'matrix' of at most 100 classes.

    `answer` holds the fusion that gave the classes; it is empty if the mean of the logits did.
    """
    if confusion is None:
        return None
    small = len(confusion) <= _MOST_CLASSES
    return {
        'expert': next(iter(answer), 'mean'),
        'matrix': [list(row) for row in confusion] if small else None,
        'pairs': confused_pairs(confusion, class_names),
    }
