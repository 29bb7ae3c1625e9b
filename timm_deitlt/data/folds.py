"""K folds of a data set that is too small to hold out images."""
import numpy as np

from .long_tail import ClassificationSet
from .sampling import Integers, by_label


def stratified_folds(targets: Integers, folds: int, seed: int = 0) -> np.ndarray:
    """Fold of every image. Images are dealt out one by one, and each class continues where the class before it ended.

    So two folds differ by at most one image, in each class and in total. A class with a single image is in no fold,
    because it would have no image left for training.

    Args:
        targets: Labels `[N]`.
        folds: Number of folds, at least 2.
        seed: Seed of the choice, from a generator of its own.

    Returns:
        int64 `[N]`: the fold from 0 to `folds` - 1 that evaluates the image, or -1 for none.

    Raises:
        ValueError: If there are fewer than 2 folds, or fewer images than folds.
    """
    targets = np.asarray(targets)
    if not 2 <= folds <= len(targets):
        raise ValueError(f'--folds must be at least 2 and at most the number of images ({len(targets)}), got {folds}.')
    rng = np.random.RandomState(seed)
    dealt, result = 0, np.full(len(targets), -1)
    for members in by_label(targets, int(targets.max()) + 1):
        if len(members) < 2:
            continue
        rng.shuffle(members)
        result[members] = (dealt + np.arange(len(members))) % folds
        dealt += len(members)
    return result


def split_fold(
        dataset: ClassificationSet,
        folds: int,
        fold: int,
        seed: int = 0,
) -> tuple[ClassificationSet, ClassificationSet, list[int]]:
    """Training and evaluation images of one fold, see `stratified_folds`.

    Returns:
        Training set, evaluation set, and the labels of the classes that no fold evaluates.

    Raises:
        ValueError: If the set cannot be indexed, or the fold is empty.
    """
    if not isinstance(dataset, ClassificationSet):
        raise ValueError(
            f'{dataset.name} is read as a stream and cannot be cut into folds: give a --val-split instead of --folds.')
    of_image = stratified_folds(dataset.targets, folds, seed)
    train, evaluation = np.flatnonzero(of_image != fold), np.flatnonzero(of_image == fold)
    if not len(evaluation):
        dealt = int((of_image >= 0).sum())
        mend = f'give at most --folds {dealt}' if dealt else 'add images, because every class has only one'
        raise ValueError(f'Fold {fold} of {folds} has no image of {dataset.place}: {mend}.')
    single = [label for label, count in enumerate(dataset.class_counts) if count == 1]
    return dataset.subset(train), dataset.subset(evaluation), single
