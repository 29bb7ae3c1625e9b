"""The named long-tailed benchmarks as data: classes, counts, shot cuts and normalisation."""
from dataclasses import dataclass


@dataclass(frozen=True)
class Benchmark:
    """A named long-tailed benchmark: what does not depend on the files.

    Attributes:
        name: Name for `create_dataset`, e.g. 'lt/digits'.
        recipe: Folder of `timm_deitlt/recipes` with its settings.
        num_classes: Number of classes.
        n_max: Training images of the most frequent class.
        imbalance_factor: Default n_max / n_min.
        shot_boundaries: First mid and first tail class, over the classes sorted by count, descending.
        mean: Mean per channel of the 0..1 pixels of all training images, before long-tailing.
        std: Standard deviation per channel of the same pixels.
        class_names: Names by label; `None` where they are read from the data set's files.
    """
    name: str
    recipe: str
    num_classes: int
    n_max: int
    imbalance_factor: float
    shot_boundaries: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    class_names: tuple[str, ...] | None = None


# The usual CIFAR-10 statistics; the field's long-tailed CIFAR-100 code uses them as well.
_CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
_CIFAR_STD = (0.2023, 0.1994, 0.2010)

BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in (
    Benchmark(
        name='lt/digits',
        recipe='digits',
        num_classes=10,
        n_max=140,
        imbalance_factor=10.,
        shot_boundaries=(3, 7),
        mean=(0.3058,) * 3,
        std=(0.3764,) * 3,
        class_names=tuple('0123456789'),
    ),
    Benchmark(
        name='lt/fashion_mnist',
        recipe='fashion_mnist',
        num_classes=10,
        n_max=6000,
        imbalance_factor=100.,
        shot_boundaries=(3, 7),
        mean=(0.2860,) * 3,
        std=(0.3530,) * 3,
        class_names=(
            'T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat', 'Sandal', 'Shirt', 'Sneaker', 'Bag', 'Ankle boot',
        ),
    ),
    Benchmark(
        name='lt/cifar10',
        recipe='cifar10',
        num_classes=10,
        n_max=5000,
        imbalance_factor=100.,
        shot_boundaries=(3, 7),
        mean=_CIFAR_MEAN,
        std=_CIFAR_STD,
        class_names=(
            'airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck',
        ),
    ),
    Benchmark(
        name='lt/cifar100',
        recipe='cifar100',
        num_classes=100,
        n_max=500,
        imbalance_factor=100.,
        shot_boundaries=(36, 71),
        mean=_CIFAR_MEAN,
        std=_CIFAR_STD,
    ),
)}
