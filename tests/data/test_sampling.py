import collections
from fractions import Fraction

import numpy as np
import pytest

from timm_deitlt.data import class_counts, long_tailed_indices, stratified_split
from timm_deitlt.data.sampling import PROFILES, largest_imbalance_factor, largest_n_max


@pytest.mark.parametrize('num_classes, n_max, factor', [(2, 7, 3), (10, 140, 10), (10, 1000, 100), (7, 333, 9)])
def test_exponential_counts_equal_exact_arithmetic(num_classes, n_max, factor):
    counts = class_counts(num_classes, n_max, factor)
    for i, count in enumerate(counts):
        # n <= n_max * factor ** (-i / (C - 1)) < n + 1, raised to the power C - 1 and freed of roots
        assert count ** (num_classes - 1) * factor ** i <= n_max ** (num_classes - 1)
        assert (count + 1) ** (num_classes - 1) * factor ** i > n_max ** (num_classes - 1)


def test_published_counts():
    assert class_counts(10, 140, 10) == [140, 108, 83, 64, 50, 38, 30, 23, 18, 14]
    assert class_counts(10, 1000, 100) == [1000, 599, 359, 215, 129, 77, 46, 27, 16, 10]
    assert class_counts(10, 5000, 100) == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    cifar100 = class_counts(100, 500, 100)
    assert [cifar100[i] for i in (0, 35, 36, 70, 71, 99)] == [500, 98, 93, 19, 18, 5]


def test_a_step_has_two_heights():
    assert class_counts(4, 50, 10, profile='step') == [50, 50, 5, 5]
    assert class_counts(5, 55, 10, profile='step') == [55, 55, 5, 5, 5]


def test_reversed_the_first_class_is_the_rarest():
    assert class_counts(4, 50, 10, profile='step_reversed') == [5, 5, 50, 50]
    assert class_counts(10, 1000, 100, profile='exp_reversed') == class_counts(10, 1000, 100)[::-1]


@pytest.mark.parametrize('profile', PROFILES)
def test_imbalance_one_is_the_balanced_set(profile):
    assert class_counts(6, 17, 1, profile) == [17] * 6


@pytest.mark.parametrize('factor', [0.01, 0.99, 0, -5, float('nan'), float('inf')])
def test_imbalance_below_one_is_refused(factor):
    with pytest.raises(ValueError, match='at least 1'):
        class_counts(10, 100, factor)


@pytest.mark.parametrize('profile', PROFILES)
@pytest.mark.parametrize('n_max, largest', [(140, '140'), (49, '4[89]'), (98, '9[78]'), (1, '1')])
def test_the_largest_allowed_factor_is_named_and_allowed(n_max, largest, profile):
    with pytest.raises(ValueError, match=f'the largest allowed is {largest}') as error:
        class_counts(10, n_max, n_max + 1, profile)
    named = float(str(error.value).split()[-1].rstrip('.'))
    assert min(class_counts(10, n_max, named, profile)) == 1


def test_other_bad_counts_are_refused():
    with pytest.raises(ValueError, match='exp, step'):
        class_counts(10, 100, 10, profile='pareto')
    with pytest.raises(ValueError, match='at least 2 classes'):
        class_counts(1, 100, 10)
    with pytest.raises(ValueError, match='n_max'):
        class_counts(10, 0, 10)


AVAILABLE = [[20, 20, 20], [30, 9, 2], [17, 17, 3, 1], [40, 1], [12, 11, 11, 10, 1]]


def fits(available, n_max, factor, profile):
    try:
        return all(n <= a for n, a in zip(class_counts(len(available), n_max, factor, profile), available, strict=True))
    except ValueError:
        return None


@pytest.mark.parametrize('profile', PROFILES)
@pytest.mark.parametrize('available', AVAILABLE)
def test_largest_n_max_and_factor_equal_a_search_over_all(available, profile):
    possible = []
    for factor in range(1, 60):
        best = [n for n in range(1, 200) if fits(available, n, factor, profile)]
        if best:
            assert largest_n_max(available, factor, profile) == max(best)
            possible.append(factor)
    assert largest_imbalance_factor(available, profile) == max(possible)


@pytest.mark.parametrize('counts', [[3, 5], [4, 0, 2], [0, 0, 0, 1]])
def test_the_choice_is_that_of_the_published_code_with_numpys_global_generator(counts):
    # the published sets themselves are in test_sources.py
    targets = np.random.RandomState(7).randint(0, len(counts), 60)
    state = np.random.get_state()
    try:
        np.random.seed(3)
        expected = []
        for label, count in enumerate(counts):
            members = [i for i, target in enumerate(targets.tolist()) if target == label]
            np.random.shuffle(members)
            expected += members[:count]
    finally:
        np.random.set_state(state)
    assert long_tailed_indices(targets, counts, seed=3).tolist() == expected


def test_another_seed_chooses_other_images():
    targets = np.repeat([0, 1], 50)
    assert set(long_tailed_indices(targets, [20, 5], 0)) != set(long_tailed_indices(targets, [20, 5], 1))


@pytest.mark.parametrize('counts', [[3, 1], [1, -1]])
def test_more_images_than_there_are_cannot_be_chosen(counts):
    with pytest.raises(ValueError, match='are asked for'):
        long_tailed_indices([0, 0, 1], counts)


@pytest.mark.parametrize('fraction', [0.1, 0.25, 0.5, 0.9])
def test_a_stratified_split_takes_the_same_part_of_every_class(fraction):
    sizes = [40, 13, 7, 3, 2, 1]
    targets = np.random.RandomState(3).permutation(np.repeat(np.arange(6), sizes))
    stay, held, small = stratified_split(targets, fraction, seed=5)
    assert sorted([*stay, *held]) == list(range(len(targets)))
    assert list(held) == sorted(held) and list(stay) == sorted(stay)
    taken = collections.Counter(targets[held].tolist())
    for label, size in enumerate(sizes):
        expected = min(round(Fraction(size) * Fraction(fraction)), size - 1)
        assert taken[label] == expected
        assert (label in small) == (expected == 0)
    assert held.tolist() == stratified_split(targets, fraction, seed=5)[1].tolist()
    assert held.tolist() != stratified_split(targets, fraction, seed=6)[1].tolist()


def test_a_label_without_images_takes_no_part_in_a_split():
    stay, held, small = stratified_split([3, 0, 3, 3, 0], 0.4)
    assert (len(stay), sorted(np.asarray([3, 0, 3, 3, 0])[held]), small) == (3, [0, 3], [])
    assert stratified_split([2, 2], 0.1)[2] == [2]
