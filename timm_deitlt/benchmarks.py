"""The named long-tailed benchmarks, and the catalogue of weights trained on them, as data.

A benchmark has classes, counts, cuts of head and tail, normalisation and list files. Weights have a name, the form of
their images, and an id on the Hub.
"""
import os
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Benchmark:
    """A named long-tailed benchmark: everything that is known without its files.

    Attributes:
        name: Name for `create_dataset`, e.g. 'lt/digits'.
        recipe: Folder in `timm_deitlt/recipes` with its settings.
        num_classes: Number of classes.
        n_max: Training images of the most frequent class.
        train_images: Number of training images with default settings.
        imbalance_factor: Default n_max / n_min of the chosen images. `None` if the set is long-tailed by itself, so
            that all of its images are used.
        shot_boundaries: Positions of the first mid and the first tail class among the classes, most frequent first.
        mean: Mean per channel of the pixels, in 0..1, of all training images before the long-tailed ones are chosen.
        std: Standard deviation per channel of the same pixels.
        class_names: Names by label. `None` if they are read from the files of the data set.
        files: For each split with a list file, the possible names of the file, preferred first. Empty if there is none.
        files_folder: Usual name of the folder that holds these files.
        files_source: Where these files are published.
        title: Name of the data for people.
        hub_datasets: Ids of the data on the Hugging Face Hub.
    """
    name: str
    recipe: str
    num_classes: int
    n_max: int
    train_images: int
    imbalance_factor: float | None
    shot_boundaries: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    class_names: tuple[str, ...] | None = None
    files: dict[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    files_folder: str | None = None
    files_source: str | None = None
    title: str = ''
    hub_datasets: tuple[str, ...] = ()


# The usual CIFAR-10 statistics. Published code for long-tailed CIFAR-100 uses them as well.
_CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
_CIFAR_STD = (0.2023, 0.1994, 0.2010)
_NUM_INAT18_CLASSES = 8142

BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in (
    Benchmark(
        name='lt/digits',
        title='long-tailed scikit-learn digits',
        recipe='digits',
        num_classes=10,
        n_max=140,
        train_images=568,
        imbalance_factor=10.,
        shot_boundaries=(3, 7),
        mean=(0.3058,) * 3,
        std=(0.3764,) * 3,
        class_names=tuple('0123456789'),
    ),
    Benchmark(
        name='lt/fashion_mnist',
        title='long-tailed Fashion-MNIST',
        hub_datasets=('zalando-datasets/fashion_mnist',),
        recipe='fashion_mnist',
        num_classes=10,
        n_max=6000,
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
        title='long-tailed CIFAR-10',
        hub_datasets=('uoft-cs/cifar10',),
        recipe='cifar10',
        num_classes=10,
        n_max=5000,
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
        title='long-tailed CIFAR-100',
        hub_datasets=('uoft-cs/cifar100',),
        recipe='cifar100',
        num_classes=100,
        n_max=500,
        train_images=10847,
        imbalance_factor=100.,
        shot_boundaries=(36, 71),
        mean=_CIFAR_MEAN,
        std=_CIFAR_STD,
    ),
    Benchmark(
        name='lt/imagenet',
        title='ImageNet-LT',
        hub_datasets=('ILSVRC/imagenet-1k',),
        recipe='imagenet_lt',
        num_classes=1000,
        n_max=1280,
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
        title='iNaturalist 2018',
        recipe='inat18',
        num_classes=_NUM_INAT18_CLASSES,
        n_max=1000,
        train_images=437_513,
        imbalance_factor=None,
        shot_boundaries=(842, 4543),
        mean=(0.466, 0.471, 0.380),
        std=(0.195, 0.194, 0.192),
        # The classes of teacher and student are matched by name. The text lists do not name the species, so the name is
        # the category id, which both kinds of file hold.
        class_names=tuple(map(str, range(_NUM_INAT18_CLASSES))),
        files={
            'train': ('train2018.json', 'iNaturalist18_train.txt'),
            'validation': ('val2018.json', 'iNaturalist18_val.txt'),
        },
        files_folder='iNaturalist18',
        files_source='https://github.com/visipedia/inat_comp/tree/master/2018',
    ),
)}


@dataclass(frozen=True)
class Tag:
    """A tag of weights, which says the benchmark that they are trained on.

    Attributes:
        dataset: Key of `BENCHMARKS`.
        imbalance_factor: n_max / n_min of the chosen images. `None` if all images are used.
        recipe: Folder in `timm_deitlt/recipes` with the recipes of this benchmark.
    """
    dataset: str
    imbalance_factor: float | None
    recipe: str


TAGS: dict[str, Tag] = {
    'imagenet_lt': Tag('lt/imagenet', None, 'imagenet_lt'),
    'cifar10_if100': Tag('lt/cifar10', 100., 'cifar10_if100'),
    'cifar10_if50': Tag('lt/cifar10', 50., 'cifar10_if50'),
    'cifar100_if100': Tag('lt/cifar100', 100., 'cifar100_if100'),
    'cifar100_if50': Tag('lt/cifar100', 50., 'cifar100_if50'),
    'inat18': Tag('lt/inat18', None, 'inat18'),
    'digits_if10': Tag('lt/digits', 10., 'digits'),
}
_CIFAR_TAGS = ('cifar100_if100', 'cifar100_if50', 'cifar10_if100', 'cifar10_if50')
_LARGE_TAGS = ('imagenet_lt', 'inat18')
# The rows of the paper's tables
PAPER_TAGS = (*_CIFAR_TAGS, *_LARGE_TAGS)


@dataclass(frozen=True)
class Entry:
    """An entry of the catalogue of weights.

    Attributes:
        architecture: Name for `timm.create_model`, without a tag.
        benchmark: Key of `TAGS`.
        kind: 'student', or the recipe of a teacher: 'sam' (LDAM, a cosine classifier) or 'paco_sam' (a linear one).
    """
    architecture: str
    benchmark: str
    kind: str

    @property
    def tag(self) -> str:
        """timm's tag: the benchmark, followed by the recipe if it is a teacher."""
        return self.benchmark if self.kind == 'student' else f'{self.benchmark}_{self.kind}'

    @property
    def name(self) -> str:
        """Name with the tag, such as 'deit_lt_base.cifar100_if100'."""
        return f'{self.architecture}.{self.tag}'


# In the order of timm's tags: the default of an architecture is its first published entry, or else its first entry. The
# ResNet-50 of PaCo is timm's own model, to which we cannot add tags.
CATALOGUE: dict[str, Entry] = {entry.name: entry for entry in (
    *(Entry(f'deit_lt_{size}', tag, 'student') for size in ('tiny', 'small', 'base') for tag in TAGS),
    *(
        Entry(f'resnet{depth}_cifar', tag, kind)
        for depth in (20, 32, 44, 56) for tag in (*_CIFAR_TAGS, 'digits_if10') for kind in ('sam', 'paco_sam')
    ),
    *(Entry('resnet50_cosine', tag, 'sam') for tag in _LARGE_TAGS),
    *(Entry('resnet50', tag, 'paco_sam') for tag in _LARGE_TAGS),
)}

# Entries for which the authors of DeiT-LT or of its teachers have released a file that hfhub/convert.py reads
RELEASED: frozenset[str] = frozenset((
    *(f'deit_lt_base.{tag}' for tag in PAPER_TAGS),
    *(f'resnet32_cifar.{tag}_paco_sam' for tag in _CIFAR_TAGS),
    *(f'resnet50.{tag}_paco_sam' for tag in _LARGE_TAGS),
    'resnet32_cifar.cifar10_if100_sam',
    'resnet32_cifar.cifar100_if100_sam',
    *(f'resnet50_cosine.{tag}_sam' for tag in _LARGE_TAGS),
))

# Entries whose weights are on the Hub. After hfhub/publish.py has put them there, a maintainer adds the name, such as
# 'deit_lt_base.cifar100_if100'.
PUBLISHED: frozenset[str] = frozenset()
_OTHER_OWNER = os.environ.get('TIMM_DEITLT_HUB_OWNER', '').strip()
OWNER = _OTHER_OWNER or 'timm-deitlt'


def hub_id(name: str) -> str:
    """Id on the Hub that the weights named, for example 'deit_lt_base.cifar100_if100', have or would have."""
    return f'{OWNER}/{name}'


def published_id(name: str) -> str | None:
    """Id on the Hub of the weights of a name, or `None` if they are not published or not in the catalogue.

    If the environment variable TIMM_DEITLT_HUB_OWNER is set at import, the whole catalogue counts as published.
    """
    return hub_id(name) if name in CATALOGUE and (_OTHER_OWNER or name in PUBLISHED) else None


def tag_of(dataset: str, imbalance_factor: float | None = None) -> str | None:
    """Key of `TAGS` for the settings of a run, or `None`.

    Args:
        dataset: Name of the data set.
        imbalance_factor: Value of the flag. `None` is the default of the data set; a set that is long-tailed by itself
            then uses all of its images.
    """
    if imbalance_factor is None and dataset in BENCHMARKS:
        imbalance_factor = BENCHMARKS[dataset].imbalance_factor
    asked = (dataset, imbalance_factor)
    return next((name for name, tag in TAGS.items() if (tag.dataset, tag.imbalance_factor) == asked), None)


def pretrained_cfgs(architecture: str) -> dict[str, dict[str, Any]]:
    """Entries of timm's pretrained_cfg about data and weights, for every tag of an architecture.

    Returns:
        By name with tag, in order: the number of classes, the size and normalisation of the images as in the recipes,
        and, if the weights are published, their id and file on the Hub.
    """
    return {
        name: {
            'num_classes': BENCHMARKS[TAGS[entry.benchmark].dataset].num_classes,
            **_images(entry),
            **_weights(name),
        } for name, entry in CATALOGUE.items() if entry.architecture == architecture}


def _images(entry: Entry) -> dict[str, Any]:
    data = BENCHMARKS[TAGS[entry.benchmark].dataset]
    if entry.kind == 'student' and data.name != 'lt/digits':
        # on every benchmark the paper tests a central 224 px crop of an image resized to 256 px, normalised as ImageNet
        size, interpolation, crop_pct, data = 224, 'bicubic', .875, BENCHMARKS['lt/imagenet']
    elif entry.benchmark in _LARGE_TAGS:
        size, interpolation, crop_pct = 224, 'bilinear', .875
    else:
        size = 16 if entry.kind != 'student' and data.name == 'lt/digits' else 32
        interpolation, crop_pct = 'bicubic', 1.
    return dict(
        input_size=(3, size, size), mean=data.mean, std=data.std, interpolation=interpolation, crop_pct=crop_pct)


def _weights(name: str) -> dict[str, str]:
    known = published_id(name)
    # As the file is named, timm sends a single request and never falls back to a pickle.
    return dict(hf_hub_id=known, hf_hub_filename='model.safetensors') if known else {}
