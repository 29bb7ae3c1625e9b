"""What settings will not do well, said before hours are spent."""
import math
from collections.abc import Sequence

from ..benchmarks import BENCHMARKS

# Updates of an epoch, and of a run: a dozen in each of the 300 epochs of own_data
ENOUGH_PER_EPOCH = 12
ENOUGH = 300 * ENOUGH_PER_EPOCH
_SMALLEST = 8


def too_few_updates(dataset: str, images: int, update: int, epochs: int) -> str | None:
    """A warning for a set so small, or an update so large, that an epoch has hardly any updates.

    Args:
        dataset: Its name; the recipes of benchmarks are as they are on purpose.
        images: Training images in an epoch.
        update: Images in an update.
        epochs: Epochs.

    Returns:
        The warning, with the flags to type, or None.
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
        f'--global-batch-size {smaller} --batch-size {smaller}: {then} an epoch, {then * epochs:,} in all')
    if then * epochs < ENOUGH:
        words += f'; and --epochs {math.ceil(ENOUGH / then)} or more'
    return f'{words}.'


def named_counts(names: Sequence[str] | None, counts: Sequence[int]) -> str:
    """Classes with their images, most frequent first; of many those at both ends."""
    order = sorted(range(len(counts)), key=lambda label: -counts[label])
    parts = [f'{names[label] if names else label} {counts[label]:,}' for label in order]
    return ', '.join(parts if len(parts) <= 12 else [*parts[:5], '...', *parts[-5:]])
