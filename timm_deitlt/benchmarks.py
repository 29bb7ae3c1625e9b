"""The named long-tailed benchmarks as data: classes, counts, shot cuts, normalisation and list files."""
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Benchmark:
    """A named long-tailed benchmark: what does not depend on the files.

    Attributes:
        name: Name for `create_dataset`, e.g. 'lt/digits'.
        recipe: Folder of `timm_deitlt/recipes` with its settings.
        num_classes: Number of classes.
        n_max: Training images of the most frequent class.
        n_min: Training images of the rarest class, by default settings.
        train_images: Training images, by default settings.
        imbalance_factor: Default n_max / n_min of the images chosen; `None` where the set is long-tailed by itself and
            all of its images are used.
        shot_boundaries: First mid and first tail class, over the classes sorted by count, descending.
        mean: Mean per channel of the 0..1 pixels of all training images, before long-tailing.
        std: Standard deviation per channel of the same pixels.
        class_names: Names by label; `None` where they are read from the data set's files.
        files: Names of the list files of each split that has one, preferred first; empty where no list is read.
        files_folder: Usual name of the folder of these files.
        files_source: Where these files are published.
    """
    name: str
    recipe: str
    num_classes: int
    n_max: int
    n_min: int
    train_images: int
    imbalance_factor: float | None
    shot_boundaries: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    class_names: tuple[str, ...] | None = None
    files: dict[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    files_folder: str | None = None
    files_source: str | None = None


# The usual CIFAR-10 statistics; the field's long-tailed CIFAR-100 code uses them as well.
_CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
_CIFAR_STD = (0.2023, 0.1994, 0.2010)
_NUM_INAT18_CLASSES = 8142

BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in (
    Benchmark(
        name='lt/digits',
        recipe='digits',
        num_classes=10,
        n_max=140,
        n_min=14,
        train_images=568,
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
        n_min=60,
        train_images=14886,
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
        n_min=50,
        train_images=12406,
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
        n_min=5,
        train_images=10847,
        imbalance_factor=100.,
        shot_boundaries=(36, 71),
        mean=_CIFAR_MEAN,
        std=_CIFAR_STD,
    ),
    Benchmark(
        name='lt/imagenet',
        recipe='imagenet_lt',
        num_classes=1000,
        n_max=1280,
        n_min=5,
        train_images=115_846,
        imbalance_factor=None,
        shot_boundaries=(390, 835),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        files={
            'train': ('ImageNet_LT_train.txt', 'Imagenet_LT_train.txt'),
            'validation': ('ImageNet_LT_val.txt', 'Imagenet_LT_val.txt'),
            'test': ('ImageNet_LT_test.txt', 'Imagenet_LT_test.txt'),
        },
        files_folder='ImageNet_LT',
        files_source='https://github.com/zhmiao/OpenLongTailRecognition-OLTR',
    ),
    Benchmark(
        name='lt/inat18',
        recipe='inat18',
        num_classes=_NUM_INAT18_CLASSES,
        n_max=1000,
        n_min=2,
        train_images=437_513,
        imbalance_factor=None,
        shot_boundaries=(842, 4543),
        mean=(0.466, 0.471, 0.380),
        std=(0.195, 0.194, 0.192),
        # Names are how the class orders of a teacher and a student are matched, and the text lists know no species: the
        # category id is the name that both kinds of file have.
        class_names=tuple(map(str, range(_NUM_INAT18_CLASSES))),
        files={
            'train': ('train2018.json', 'iNaturalist18_train.txt'),
            'validation': ('val2018.json', 'iNaturalist18_val.txt'),
        },
        files_folder='iNaturalist18',
        files_source='https://github.com/visipedia/inat_comp/tree/master/2018',
    ),
)}
