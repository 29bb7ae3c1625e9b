"""What settings will not do well, said before hours are spent."""
import math
from collections.abc import Sequence

from ..benchmarks import BENCHMARKS

# An epoch of fewer updates is little, and so are fewer updates in all: the shortest recipes that learn from scratch
FEW_PER_EPOCH = 12
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
    if per_epoch >= FEW_PER_EPOCH or dataset in BENCHMARKS:
        return None
    said = f'{per_epoch} update{"s" * (per_epoch > 1)} an epoch, {per_epoch * epochs:,} in all'
    smaller = max(_SMALLEST, 2 ** int(math.log2(max(1., images / FEW_PER_EPOCH))))
    if smaller >= update:
        longer = math.ceil(epochs * FEW_PER_EPOCH / per_epoch)
        return f'{images:,} images make {said}: too few to learn from scratch. Give --epochs {longer} or more.'
    then = math.ceil(images / smaller)
    words = (
        f'{images:,} images in updates of {update:,} make {said}: too few to learn from scratch. Give '
        f'--global-batch-size {smaller} --batch-size {smaller}: {then} an epoch, {then * epochs:,} in all')
    if then < FEW_PER_EPOCH:
        words += f'; and --epochs {math.ceil(epochs * FEW_PER_EPOCH / then)} or more'
    return f'{words}.'


def named_counts(names: Sequence[str] | None, counts: Sequence[int]) -> str:
    """Classes with their images, most frequent first; of many those at both ends."""
    order = sorted(range(len(counts)), key=lambda label: -counts[label])
    parts = [f'{names[label] if names else label} {counts[label]:,}' for label in order]
    return ', '.join(parts if len(parts) <= 12 else [*parts[:5], '...', *parts[-5:]])
