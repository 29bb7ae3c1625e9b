"""Data sets by name: the benchmarks, and every data set that timm can open. Both can be made long-tailed.

Benchmarks are 'lt/digits', 'lt/fashion_mnist', 'lt/cifar10', 'lt/cifar100', 'lt/imagenet' and 'lt/inat18'. The last two
are long-tailed as published, the others are made so: their counts fall with the label. In every other set that is made
long-tailed the class with the most images stays the largest.

Splits of the benchmarks: 'train', 'validation', and, except in 'lt/inat18', 'test', which is the same as 'validation'
except in 'lt/imagenet'. Those that are made long-tailed also have 'unused': training images that were not chosen, the
same number of each class, at most 1,000.
"""
import difflib
import inspect
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from urllib.error import URLError

import numpy as np
import timm.data
from timm.data.dataset_factory import _EVAL_SYNONYM, _TORCH_BASIC_DS, _TRAIN_SYNONYM
from torch.utils.data import Dataset, IterableDataset

from ..benchmarks import BENCHMARKS, Benchmark
from .folders import ReaderFolder
from .hf_columns import find_columns
from .image import ARRAY, image_mode, open_image
from .long_tail import ClassificationSet, long_tailed_subset
from .sampling import check_imbalance, long_tailed_indices
from .shards import count_shards
from .sources import load_benchmark
from .splits import SPLIT_NAMES, check_split, split_folder
from .streams import Stream, describe_stream
from .targets import image_keys, read_class_names, read_targets

_logger = logging.getLogger(__name__)

_PREFIXES = ('', 'lt', 'torch', 'hfds', 'hfids', 'tfds', 'wds')
# Split of training images that a long-tailed benchmark does not use. Settings can be chosen on them.
UNUSED = 'unused'
_MOST_UNUSED = 1000  # images per class
_TORCH_NAMES = (*_TORCH_BASIC_DS, 'qmnist', 'imagenet', 'inaturalist', 'places365', 'image_folder')
_TORCH_FOLDERS = ('torch/image_folder', 'torch/folder')
# options of timm that a benchmark ignores
_TIMM_OPTIONS = {*inspect.signature(timm.data.create_dataset).parameters, 'input_key', 'target_key'} - {'class_map'}


def create_dataset(
        name: str,
        root: str | os.PathLike | None = None,
        split: str = 'train',
        imbalance_factor: float | None = None,
        profile: str = 'exp',
        n_max: int | None = None,
        split_seed: int = 0,
        download: bool = False,
        *,
        list_dir: str | os.PathLike | None = None,
        class_names: Sequence[str] | None = None,
        class_counts_file: str | os.PathLike | None = None,
        skip_bad_images: bool = False,
        input_img_mode: str | None = None,
        in_chans: int = 3,
        is_training: bool | None = None,
        **kwargs: Any,
) -> ClassificationSet | Stream:
    """Open a data set by name, and make its training images long-tailed if asked for.

    Args:
        name: A benchmark such as 'lt/cifar10', or a name of `timm.data.create_dataset`: '' for a folder or tar file,
            'torch/...', 'hfds/...', 'hfids/...', 'tfds/...', 'wds/...'.
        root: Folder of the data; 'lt/digits' needs none.
        split: 'train', or 'validation' and timm's synonyms. Benchmarks have more, see the head of this module.
        imbalance_factor: n_max / n_min of the training images. None keeps all, or takes the benchmark's own.
        profile: 'exp' or 'step', or one of them with '_reversed', see `class_counts`.
        n_max: Training images of the most frequent class; by default that of the benchmark, or the largest possible.
        split_seed: Seed of the choice of images, and of the test part of 'lt/digits'.
        download: Let torchvision or timm fetch missing files.
        list_dir: Folder of a benchmark's list files; by default `root` and the folders around it are searched.
        class_names: Class names of the training set, in order. The labels are matched to them by name.
        class_counts_file: File with the images per class of an iterable training set, see `read_class_counts`.
        skip_bad_images: Replace an unreadable image by another one of its class.
        input_img_mode: PIL mode that images are converted to, or 'array'; by default it follows from `in_chans`.
        in_chans: Channels of an image, see `image.open_image`.
        is_training: Whether the split is used for training; by default whether its name contains 'train'.
        kwargs: Further arguments of timm's `create_dataset`, its readers and torchvision's data sets.

    Raises:
        ValueError: If the name is unknown, an option does not fit, or a class has no training image.
        FileNotFoundError: If the files are missing.
    """
    transform = kwargs.pop('transform', None)
    request = _Request(
        name, None if root is None else os.fspath(root), split, imbalance_factor, profile, n_max, split_seed, download,
        list_dir, class_names, class_counts_file, skip_bad_images, image_mode(in_chans, input_img_mode), in_chans,
        is_training, {key: value for key, value in kwargs.items() if value is not None})
    dataset = _open_benchmark(request) if request.prefix == 'lt' else _open_other(request)
    dataset.transform = transform
    return dataset


@dataclass(frozen=True)
class _Request:
    """The arguments of `create_dataset`, checked. `mode` is a PIL mode or 'array', `options` are those of timm."""
    name: str
    root: str | None
    split: str
    imbalance_factor: float | None
    profile: str
    n_max: int | None
    split_seed: int
    download: bool
    list_dir: str | os.PathLike | None
    class_names: Sequence[str] | None
    class_counts_file: str | os.PathLike | None
    skip_bad_images: bool
    mode: str
    in_chans: int
    is_training: bool | None
    options: dict[str, Any]

    def __post_init__(self) -> None:
        check_imbalance(1 if self.imbalance_factor is None else self.imbalance_factor, self.profile)
        if self.mode == ARRAY and self.prefix not in ('', 'hfds'):
            raise ValueError(
                f'Images of {self.in_chans} channels as arrays are read from folders and hfds/, not from {self.name}: '
                'give an --input-img-mode such as L, RGB or RGBA, and the --in-chans that fit it.')
        if self.list_dir is not None and not (self.name in BENCHMARKS and BENCHMARKS[self.name].files):
            listed = [known for known, candidate in BENCHMARKS.items() if candidate.files]
            raise ValueError(
                f'{self.name or "A folder"} has no list files, only {", ".join(listed)}: leave --list-dir out.')

    @property
    def prefix(self) -> str:
        return self.name.partition('/')[0].lower() if '/' in self.name else ''

    @property
    def training(self) -> bool:
        return 'train' in self.split if self.is_training is None else self.is_training

    @property
    def images(self) -> dict[str, Any]:
        """How a `ClassificationSet` is to give its images."""
        return {'input_img_mode': self.mode, 'skip_bad_images': self.skip_bad_images}

    def check_n_max(self, training: bool) -> None:
        if training and self.n_max is not None and self.imbalance_factor is None:
            raise ValueError('n_max needs an imbalance factor: give one (1 is the balanced set) or leave n_max out.')

    def long_tailed(self, dataset: ClassificationSet, by_frequency: bool) -> ClassificationSet:
        """The long-tailed subset. The caller knows that there is an imbalance factor."""
        assert self.imbalance_factor is not None
        return long_tailed_subset(
            dataset, self.imbalance_factor, self.profile, self.n_max, self.split_seed, by_frequency=by_frequency)


def _open_benchmark(request: _Request) -> ClassificationSet:
    benchmark = _find_benchmark(request.name, request.options)
    part = _benchmark_part(benchmark, request.split)
    natural = benchmark.imbalance_factor is None  # long-tailed as it was published
    if not natural:
        request = replace(
            request, n_max=benchmark.n_max if request.n_max is None else request.n_max,
            imbalance_factor=benchmark.imbalance_factor if request.imbalance_factor is None
            else request.imbalance_factor)
    request.check_n_max(training=part == 'train')
    dataset = load_benchmark(
        benchmark, request.root, 'train' if part == UNUSED else part, request.split_seed, request.download,
        request.list_dir, **request.images)
    if part == UNUSED:  # only benchmarks that are made long-tailed have it
        dataset = _left_over(dataset, request)
    return _finish(dataset, request, part == 'train', natural)


def _open_other(request: _Request) -> ClassificationSet | Stream:
    request.check_n_max(request.training)
    options, counts = dict(request.options), None
    opener = partial(open_image, in_chans=request.in_chans, mode=request.mode)
    if request.prefix == 'hfds':
        options.update(find_columns(request.name, request.root, request.split, **options))
    elif request.prefix == 'wds' and request.root is not None:
        found, counts = count_shards(request.name, request.root, request.split, **options)
        options.update(found)
    opened = _open(request, opener, **options)
    if isinstance(opened, IterableDataset):
        if request.training and request.imbalance_factor is not None:
            raise ValueError(
                f'{request.name} is read as a stream and cannot be indexed, so a long-tailed subset cannot be chosen: '
                'leave --imbalance-factor out.')
        stream = describe_stream(
            opened, request.name, request.split, request.training, request.class_counts_file, request.class_names,
            counts)
        _check_classes(stream, request.training)
        return stream
    targets = read_targets(opened, request.name, request.root, request.split)
    dataset = ClassificationSet(
        opened, targets, read_class_names(opened, targets), request.name or 'folder', keys=image_keys(opened),
        opener=opener, **request.images)
    return _finish(dataset, request, request.training, natural=True)


def _finish(dataset: ClassificationSet, request: _Request, training: bool, natural: bool) -> ClassificationSet:
    """Make a set long-tailed if it is for training, and match its labels to the class names."""
    if request.class_counts_file is not None:
        raise ValueError(f'The class counts of {dataset.name} are known from its labels: leave --class-counts out.')
    if training and request.imbalance_factor is not None:
        _check_classes(dataset, training)
        dataset = request.long_tailed(dataset, by_frequency=natural)
    if request.class_names is not None:
        dataset = dataset.with_classes(request.class_names)
    _check_classes(dataset, training)
    return dataset


def _find_benchmark(name: str, options: dict) -> Benchmark:
    if name not in BENCHMARKS:
        raise ValueError(f'Unknown data set {name!r}{_near(name)} The benchmarks are {", ".join(BENCHMARKS)}.')
    if set(options) - _TIMM_OPTIONS:
        raise ValueError(f'{name} has no option {", ".join(sorted(set(options) - _TIMM_OPTIONS))}: leave it out.')
    return BENCHMARKS[name]


def _benchmark_part(benchmark: Benchmark, split: str) -> str:
    part = 'train' if split in _TRAIN_SYNONYM else 'validation' if split in _EVAL_SYNONYM else split
    unused = () if benchmark.files else (UNUSED,)
    if part not in ('train', 'validation', 'test', *unused):
        raise ValueError(
            f'{benchmark.name} has no split {split!r}: use {", ".join((*_TRAIN_SYNONYM, *unused))} or test, '
            f'{", ".join(_EVAL_SYNONYM)}.'
        )
    if benchmark.files and part not in benchmark.files:
        raise ValueError(
            f'{benchmark.name} has no labels of its {part} images, because the public evaluation set is its validation '
            'split: use validation (--val-split).'
        )
    return part


def _left_over(dataset: ClassificationSet, request: _Request) -> ClassificationSet:
    chosen = request.long_tailed(dataset, by_frequency=False)
    rest = dataset.subset(np.flatnonzero(~np.isin(dataset.indices, chosen.indices)))
    count = min(_MOST_UNUSED, *rest.class_counts)
    if not count:
        name = rest.class_names[rest.class_counts.index(0)]
        raise ValueError(
            f'All images of class {name!r} of {dataset.name} are used for training, so none is left for the split '
            f'{UNUSED}: give a smaller --n-max, or another --val-split.')
    return rest.subset(np.sort(long_tailed_indices(rest.targets, [count] * rest.num_classes, request.split_seed)))


def _check_classes(dataset: ClassificationSet | Stream, training: bool) -> None:
    if dataset.num_classes < 2:
        only = f' ({dataset.class_names[0]})' if dataset.class_names else ''
        raise ValueError(
            f'{dataset.place} has {dataset.num_classes} class(es){only}, at least 2 are needed: add classes.')
    counts = (dataset.class_counts if training else None) or []
    empty = [dataset.class_names[label] for label, count in enumerate(counts) if count == 0]
    if empty:
        raise ValueError(
            f'{len(empty)} class(es) of {dataset.place} have no training image: {", ".join(map(repr, empty[:10]))}. '
            f'Add images or leave the class out.'
        )


def _open(request: _Request, opener: Callable, **options: Any) -> Dataset:
    name, prefix, root, split = request.name, request.prefix, request.root, request.split
    if prefix not in _PREFIXES or (prefix == '' and f'lt/{name.lower()}' in BENCHMARKS):
        raise ValueError(
            f'Unknown data set {name!r}{_near(name)} Allowed are {", ".join(BENCHMARKS)}, and names that begin with '
            f'{", ".join(f"{known}/" for known in _PREFIXES[2:])}. For a folder of images give no name.'
        )
    is_folder = prefix == '' or name.lower() in _TORCH_FOLDERS
    if root is None and prefix in ('', 'torch', 'wds'):
        raise ValueError(f'Data set {name or "folder"!r} needs the folder of its files (--data-dir){_near(name)}')
    if root is not None and (is_folder or (prefix == 'torch' and not request.download)):
        if not os.path.exists(root):
            raise FileNotFoundError(f'There is no folder {root} (--data-dir) for the data set {name or "folder"!r}.')
        if is_folder and options.pop('search_split', True):
            check_split(root, split)
            root = split_folder(root, split) or root
    if is_folder:
        options['search_split'] = False
    if name.lower() in _TORCH_FOLDERS:
        options['loader'] = opener
    options.update(is_training=request.training, input_img_mode=request.mode)
    if prefix == '' and root is not None and os.path.isdir(root):
        return _open_folder(root, **options)
    try:
        return timm.data.create_dataset(name, root=root, split=split, download=request.download, **options)
    except (AssertionError, ImportError, RuntimeError, TypeError, ValueError, URLError) as error:
        if 'Unknown torchvision dataset' in str(error):
            raise ValueError(f'Unknown data set {name!r}{_near(name)}') from error
        if prefix == 'torch' and isinstance(error, RuntimeError | URLError):
            raise FileNotFoundError(
                f'{name} is not complete in {root}; --dataset-download fetches what torchvision can fetch. ({error})'
            ) from error
        raise ValueError(f'Cannot open the data set {name or "folder"!r} in {root}: {error}') from error


def _open_folder(
        folder: str,
        is_training: bool,
        input_img_mode: str,
        target_transform: Callable | None = None,
        **kwargs: Any,
) -> timm.data.ImageDataset:
    options = {key: kwargs.pop(key) for key in ('class_map', 'input_key') if key in kwargs}
    if unknown := set(kwargs) - (_TIMM_OPTIONS - {'target_key'}):
        raise ValueError(
            f'A folder has no option {", ".join(sorted(unknown))}: leave it out (the classes are the folders).')
    reader = ReaderFolder(folder, mode=input_img_mode, complete=is_training, **options)
    splits = [name for name in reader.class_to_idx if name.lower() in SPLIT_NAMES]
    if splits and is_training:
        _logger.warning(
            f'The folders {", ".join(splits)} in {folder} are read as classes. If they are splits, name them train and '
            'val, and keep no other folders beside them.')
    return timm.data.ImageDataset(
        folder, reader=reader, input_img_mode=input_img_mode, target_transform=target_transform)


def _near(name: str) -> str:
    known = [*BENCHMARKS, *(f'torch/{torch_name}' for torch_name in _TORCH_NAMES)]
    tail = name.lower().rpartition('/')[2]
    near = [candidate for candidate in known if tail and candidate.rpartition('/')[2] == tail]
    near += [match for match in difflib.get_close_matches(name.lower(), known) if match not in near]
    return f'; did you mean {" or ".join(near)}?' if near else '.'
