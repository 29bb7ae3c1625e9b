"""Warnings about settings that will not train well, given before hours are spent."""
import math
from collections.abc import Sequence

from ..benchmarks import BENCHMARKS

# A run with fewer updates than both gets a warning; the recipe own_data has 300 epochs
ENOUGH_PER_EPOCH = 12
ENOUGH = 300 * ENOUGH_PER_EPOCH
_SMALLEST = 8


def too_few_updates(dataset: str, images: int, update: int, epochs: int) -> str | None:
    """A warning if the data set is so small, or an update so large, that a run has too few updates.

    Args:
        dataset: Name of the data set. Benchmarks get no warning, because their recipes are made for them.
        images: Training images in an epoch.
        update: Images in an update.
        epochs: Epochs of the run.

    Returns:
        The warning, with the flags to type, or None if there are enough updates.
    """
    per_epoch = math.ceil(images / update)
    if per_epoch >= ENOUGH_PER_EPOCH or per_epoch * epochs >= ENOUGH or dataset in BENCHMARKS:
        return None
    said = f'{per_epoch} update{"s" * (per_epoch > 1)} an epoch, {per_epoch * epochs:,} in all'
    smaller = max(_SMALLEST, 2 ** int(math.log2(max(1., images / ENOUGH_PER_EPOCH))))
    if smaller >= update:
        return (
            f'{images:,} images make {said}: too few to learn from scratch. Give --epochs '
            f'{math.ceil(ENOUGH / per_epoch)} or more.')
    then = math.ceil(images / smaller)
    words = (
        f'{images:,} images in updates of {update:,} make {said}: too few to learn from scratch. Give '
        f'--global-batch-size {smaller} --batch-size {smaller}: {then} updates an epoch, {then * epochs:,} in all')
    if then * epochs < ENOUGH:
        words += f'. Also give --epochs {math.ceil(ENOUGH / then)} or more'
    return f'{words}.'


def named_counts(names: Sequence[str] | None, counts: Sequence[int]) -> str:
    """Each class with its number of images, most frequent first; of more than 12 only the first and last five."""
    order = sorted(range(len(counts)), key=lambda label: -counts[label])
    parts = [f'{names[label] if names else label} {counts[label]:,}' for label in order]
    return ', '.join(parts if len(parts) <= 12 else [*parts[:5], '...', *parts[-5:]])
