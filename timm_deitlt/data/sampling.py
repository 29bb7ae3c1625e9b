"""Which images to choose, and how many of each class: count profiles, long-tailed subsets, stratified splits."""
import math
from collections.abc import Sequence

import numpy as np

_REVERSED = '_reversed'
PROFILES = ('exp', 'step', f'exp{_REVERSED}', f'step{_REVERSED}')
Integers = Sequence[int] | np.ndarray


def check_imbalance(imbalance_factor: float, profile: str = 'exp') -> None:
    """Refuse an imbalance factor or profile that does not describe a long-tailed set.

    Raises:
        ValueError: If the factor is below 1 or infinite, or the profile is unknown.
    """
    if profile not in PROFILES:
        raise ValueError(f'Unknown imbalance profile {profile!r}, choose one of {", ".join(PROFILES)}.')
    if not 1 <= imbalance_factor < math.inf:
        raise ValueError(
            f'The imbalance factor is n_max / n_min and must be at least 1 (1 is a balanced set), got '
            f'{imbalance_factor}.'
        )


def check_classes(num_classes: int) -> None:
    """Raise ValueError if there are too few classes for a long-tailed set."""
    if num_classes < 2:
        raise ValueError(f'A long-tailed set needs at least 2 classes, got {num_classes}.')


def profile_counts(num_classes: int, n_max: int, imbalance_factor: float, profile: str) -> list[int]:
    """Class counts without any check, so that the smallest may be 0."""
    if profile.endswith(_REVERSED):
        return profile_counts(num_classes, n_max, imbalance_factor, profile.removesuffix(_REVERSED))[::-1]
    if profile == 'step':
        head = num_classes // 2
        return [n_max] * head + [int(n_max / imbalance_factor)] * (num_classes - head)
    return [int(n_max * (1 / imbalance_factor) ** (i / (num_classes - 1))) for i in range(num_classes)]


def class_counts(num_classes: int, n_max: int, imbalance_factor: float, profile: str = 'exp') -> list[int]:
    """Training images per class, from the most to the least frequent, or the other way round.

    Args:
        num_classes: Number of classes C, at least 2.
        n_max: Images of the most frequent class.
        imbalance_factor: n_max / n_min, at least 1; 1 is a balanced set.
        profile: With 'exp' class i has int(n_max * (1 / imbalance_factor) ** (i / (C - 1))) images. With 'step' the
            first half of the classes has n_max images, and the others have int(n_max / imbalance_factor). With
            'exp_reversed' and 'step_reversed' the first class is the rarest.

    Raises:
        ValueError: If an argument is out of its range, or a class would get no image.

    Source: Cao et al., LDAM-DRW (https://arxiv.org/abs/1906.07413), IMBALANCECIFAR.
    """
    check_imbalance(imbalance_factor, profile)
    check_classes(num_classes)
    if n_max < 1:
        raise ValueError(f'n_max, the images of the most frequent class, must be at least 1, got {n_max}.')
    counts = profile_counts(num_classes, n_max, imbalance_factor, profile)
    if min(counts) == 0:
        # n * (1 / n) may round to just below 1, for example with n = 49, and the published formula truncates it to 0.
        largest = n_max if min(profile_counts(num_classes, n_max, n_max, profile)) else n_max - 0.01
        raise ValueError(
            f'An imbalance factor of {imbalance_factor:.10g} leaves {counts.count(0)} of {num_classes} classes without '
            f'an image if the largest class has {n_max}: the largest allowed is {largest:.10g}.'
        )
    return counts


def largest_n_max(available: Sequence[int], imbalance_factor: float, profile: str = 'exp') -> int:
    """Largest n_max whose class counts do not exceed the available images.

    Args:
        available: Available images per class, in the order of `class_counts`.
        imbalance_factor: n_max / n_min, at least 1.
        profile: As for `class_counts`.
    """
    if profile.endswith(_REVERSED):
        return largest_n_max(available[::-1], imbalance_factor, profile.removesuffix(_REVERSED))
    num_classes = len(available)
    if profile == 'step':
        shares = [1.] * (num_classes // 2) + [1 / imbalance_factor] * (num_classes - num_classes // 2)
    else:
        shares = [(1 / imbalance_factor) ** (i / (num_classes - 1)) for i in range(num_classes)]
    # int(n * share) <= a as long as n < (a + 1) / share. The loop corrects rounding errors.
    n_max = math.ceil(min((a + 1) / share for a, share in zip(available, shares, strict=True)))
    while np.any(np.greater(profile_counts(num_classes, n_max, imbalance_factor, profile), available)):
        n_max -= 1
    return n_max


def largest_imbalance_factor(available: Sequence[int], profile: str = 'exp') -> int:
    """Largest whole imbalance factor that leaves no class empty at its `largest_n_max`.

    Args:
        available: Available images per class, none of them 0, in the order of `class_counts`.
        profile: As for `class_counts`.
    """
    if profile.endswith(_REVERSED):
        return largest_imbalance_factor(available[::-1], profile.removesuffix(_REVERSED))
    last = len(available) - 1
    bound: float = min(available[:(last + 1) // 2])
    if profile == 'exp':
        # The last class has an image if n_max >= factor, and n_max * factor ** (-i / last) < a_i + 1.
        bound = math.exp(min(last / (last - i) * math.log(available[i] + 1) for i in range(last)))
    for factor in range(int(bound), 1, -1):
        n_max = largest_n_max(available, factor, profile)
        if min(profile_counts(last + 1, n_max, factor, profile)) > 0:
            return factor
    return 1


def by_label(targets: np.ndarray, num_labels: int) -> list[np.ndarray]:
    """Ascending indices of every label, by a single sort for any number of labels."""
    order = np.argsort(targets, kind='stable')
    return np.split(order, np.searchsorted(targets[order], np.arange(num_labels + 1)))[1:-1]


def long_tailed_indices(targets: Integers, counts: Integers, seed: int = 0) -> np.ndarray:
    """Indices of a random subset with the given number of images per label.

    For the same seed it is the choice of the published long-tailed CIFAR sets. It has its own generator, so the global
    random state is neither used nor changed.

    Args:
        targets: Labels `[N]`.
        counts: Images to take of each label `[C]`.
        seed: Seed of the choice.

    Returns:
        int64 indices, ordered by label.

    Raises:
        ValueError: If a label has fewer images than asked for.

    Source: Cao et al., LDAM-DRW (https://arxiv.org/abs/1906.07413): numpy seed 0, labels in ascending order, each
    label's indices shuffled and the first n taken.
    """
    targets = np.asarray(targets)
    rng = np.random.RandomState(seed)
    chosen = []
    for label, (candidates, count) in enumerate(zip(by_label(targets, len(counts)), counts, strict=True)):
        if not 0 <= count <= len(candidates):
            raise ValueError(f'{count} images of label {label} are asked for, but there are {len(candidates)}.')
        rng.shuffle(candidates)
        chosen.append(candidates[:count])
    return np.concatenate(chosen).astype(np.int64)


def stratified_split(
        targets: Integers,
        fraction: float,
        seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Split off the same fraction of every class, but leave at least one image of each class.

    Args:
        targets: Labels `[N]`.
        fraction: Fraction to hold out, 0 < fraction < 1. Of n images of a class, round(n * fraction) are held out.
        seed: Seed of the choice, which has its own generator.

    Returns:
        Indices that stay and indices held out (both sorted), and the labels of classes too small to give an image.

    Raises:
        ValueError: If the fraction is not between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise ValueError(f'The fraction to hold out must be greater than 0 and less than 1, got {fraction}.')
    targets = np.asarray(targets)
    rng = np.random.RandomState(seed)
    stay, held, small = [np.empty(0, np.int64)], [np.empty(0, np.int64)], []
    for label, members in enumerate(by_label(targets, int(targets.max(initial=-1)) + 1)):
        if len(members) == 0:
            continue
        rng.shuffle(members)
        count = min(round(len(members) * fraction), len(members) - 1)
        if count == 0:
            small.append(label)
        held.append(members[:count])
        stay.append(members[count:])
    return np.sort(np.concatenate(stay)), np.sort(np.concatenate(held)), small
