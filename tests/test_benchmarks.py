import dataclasses

import numpy as np
import pytest
from torchvision.datasets import FashionMNIST

from timm_deitlt.benchmarks import BENCHMARKS
from timm_deitlt.data import class_counts, create_dataset


@pytest.mark.parametrize('benchmark', BENCHMARKS.values(), ids=BENCHMARKS)
def test_a_benchmark_is_consistent(benchmark):
    mid, tail = benchmark.shot_boundaries
    assert BENCHMARKS[benchmark.name] is benchmark
    assert benchmark.name.startswith('lt/') and benchmark.recipe
    assert 0 < mid < tail < benchmark.num_classes
    if benchmark.class_names is not None:
        assert len(set(benchmark.class_names)) == len(benchmark.class_names) == benchmark.num_classes
    assert benchmark.num_classes * benchmark.n_min < benchmark.train_images < benchmark.num_classes * benchmark.n_max
    if benchmark.imbalance_factor is not None:
        counts = class_counts(benchmark.num_classes, benchmark.n_max, benchmark.imbalance_factor)
        assert (counts[0], counts[-1], sum(counts)) == (benchmark.n_max, benchmark.n_min, benchmark.train_images)
    assert bool(benchmark.files) == bool(benchmark.files_folder) == bool(benchmark.files_source)
    hash(benchmark)
    with pytest.raises(dataclasses.FrozenInstanceError):
        benchmark.n_max = 1


@pytest.mark.parametrize('name, imbalance_factor, images', [
    ('lt/digits', None, 568),
    ('lt/fashion_mnist', None, 14886),
    ('lt/cifar10', None, 12406),
    ('lt/cifar10', 50, 13996),
    ('lt/cifar100', None, 10847),
    ('lt/cifar100', 50, 12608),
])
def test_training_sets_have_the_published_size(name, imbalance_factor, images):
    benchmark = BENCHMARKS[name]
    counts = class_counts(
        benchmark.num_classes, benchmark.n_max, imbalance_factor or benchmark.imbalance_factor)
    assert sum(counts) == images


@pytest.mark.parametrize('name, figures', [
    ('lt/imagenet', (1000, 1280, 5, 115846, (390, 835), {'train', 'validation', 'test'})),
    ('lt/inat18', (8142, 1000, 2, 437513, (842, 4543), {'train', 'validation'})),
])
def test_sets_that_are_long_tailed_by_nature_have_the_published_figures(name, figures):
    benchmark = BENCHMARKS[name]
    assert benchmark.imbalance_factor is None
    assert figures == (
        benchmark.num_classes, benchmark.n_max, benchmark.n_min, benchmark.train_images, benchmark.shot_boundaries,
        set(benchmark.files))


def test_digits_statistics_are_those_of_all_images_outside_of_the_test_part():
    from sklearn.datasets import load_digits

    everything = load_digits()
    test = create_dataset('lt/digits', split='test')
    pixels = np.delete(everything.images, test.indices, axis=0) / 16
    assert BENCHMARKS['lt/digits'].mean == pytest.approx([pixels.mean()] * 3, abs=1e-3)
    assert BENCHMARKS['lt/digits'].std == pytest.approx([pixels.std()] * 3, abs=1e-3)


def test_fashion_mnist_has_the_class_names_of_its_files():
    assert list(BENCHMARKS['lt/fashion_mnist'].class_names) == FashionMNIST.classes
