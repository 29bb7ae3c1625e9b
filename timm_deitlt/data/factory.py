"""Data sets by name: the benchmarks, and every data set that timm can open. Both can be made long-tailed."""
import difflib
import inspect
import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from urllib.error import URLError

import numpy as np
import timm.data
from timm.data.dataset_factory import _EVAL_SYNONYM, _TORCH_BASIC_DS, _TRAIN_SYNONYM
from torch.utils.data import Dataset, IterableDataset

from ..benchmarks import BENCHMARKS, Benchmark
from .folders import SPLIT_NAMES, ReaderFolder, split_folder, subfolders
from .hf_columns import find_columns
from .image import ARRAY, image_mode, open_image
from .long_tail import ClassificationSet, long_tailed_subset
from .sampling import check_imbalance, long_tailed_indices
from .shards import count_shards
from .sources import load_benchmark
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
        name: 'lt/digits', 'lt/fashion_mnist', 'lt/cifar10', 'lt/cifar100', 'lt/imagenet', 'lt/inat18', or any name of
            `timm.data.create_dataset`: '' for a folder or tar file, 'torch/...', 'hfds/...', 'hfids/...', 'tfds/...',
            'wds/...'.
        root: Folder of the data; 'lt/digits' needs none.
        split: 'train', or 'validation' and timm's synonyms. 'lt/' names except 'lt/inat18' also have 'test', which is
            the same as 'validation' except in 'lt/imagenet'. 'unused' of the 'lt/' names that are made long-tailed:
            training images that were not chosen, the same number of each class, at most 1,000.
        imbalance_factor: n_max / n_min of the training images. `None` is the default of an 'lt/' name; 'lt/imagenet',
            'lt/inat18' and all other names then keep all of their images. In those sets the class with the most images
            stays the largest; in the other 'lt/' sets counts fall with the label.
        profile: 'exp' or 'step', see `class_counts`.
        n_max: Training images of the most frequent class; by default that of the benchmark, or the largest possible.
        split_seed: Seed of the choice of images, and of the test part of 'lt/digits'.
        download: Let torchvision or timm fetch missing files.
        list_dir: Folder of the list files of 'lt/imagenet' or 'lt/inat18'; by default `root` and the folders around it
            are searched.
        class_names: Class names of the training set, in order. The labels are matched to them by name.
        class_counts_file: File with the images per class of an iterable training set, see `read_class_counts`.
        skip_bad_images: Replace an unreadable image by another one of its class.
        input_img_mode: PIL mode that images are converted to, or 'array'; by default it follows from `in_chans`.
        in_chans: Channels of an image, see `image.open_image`.
        is_training: Whether the split is used for training; by default whether its name contains 'train'.
        kwargs: Further arguments of timm's `create_dataset`, its readers and torchvision's data sets.

    Raises:
        ValueError: If the name is unknown, an option does not fit, a class has no training image, or there are fewer
            than 2 classes.
        FileNotFoundError: If the files are missing.
    """
    check_imbalance(1 if imbalance_factor is None else imbalance_factor, profile)
    root = None if root is None else os.fspath(root)  # timm expects a string
    transform = kwargs.pop('transform', None)
    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    mode = image_mode(in_chans, input_img_mode)
    images: dict[str, Any] = dict(input_img_mode=mode, skip_bad_images=skip_bad_images)
    prefix = name.partition('/')[0].lower() if '/' in name else ''
    if mode == ARRAY and prefix not in ('', 'hfds'):
        raise ValueError(
            f'Images of {in_chans} channels as arrays are read from folders and hfds/, not from {name}: give an '
            '--input-img-mode such as L, RGB or RGBA, and the --in-chans that fit it.')
    if prefix == 'lt':
        benchmark = _find_benchmark(name, kwargs)
        part = _benchmark_part(benchmark, split)
        training, natural = part == 'train', benchmark.imbalance_factor is None
        if not natural:
            imbalance_factor = benchmark.imbalance_factor if imbalance_factor is None else imbalance_factor
            n_max = benchmark.n_max if n_max is None else n_max
    else:
        training, natural = 'train' in split if is_training is None else is_training, True
    if training and n_max is not None and imbalance_factor is None:
        raise ValueError('n_max needs an imbalance factor: give one (1 is the balanced set) or leave n_max out.')
    if list_dir is not None and not (prefix == 'lt' and benchmark.files):
        listed = [known for known, candidate in BENCHMARKS.items() if candidate.files]
        raise ValueError(f'{name or "A folder"} has no list files, only {", ".join(listed)}: leave --list-dir out.')
    if prefix == 'lt':
        whole = 'train' if part == UNUSED else part
        whole_set = load_benchmark(benchmark, root, whole, split_seed, download, list_dir, **images)
        dataset: ClassificationSet | Stream = whole_set
        if part == UNUSED and imbalance_factor is not None:  # which every benchmark with such a part has
            dataset = _left_over(whole_set, imbalance_factor, profile, n_max, split_seed)
    else:
        opener = partial(open_image, in_chans=in_chans, mode=mode)
        counts = None
        if prefix == 'hfds':
            kwargs.update(find_columns(name, root, split, **kwargs))
        elif prefix == 'wds' and root is not None:
            found, counts = count_shards(name, root, split, **kwargs)
            kwargs.update(found)
        opened = _open(
            name, prefix, root, split, download, opener, is_training=training, input_img_mode=mode, **kwargs)
        if isinstance(opened, IterableDataset):
            if training and imbalance_factor is not None:
                raise ValueError(
                    f'{name} is read as a stream and cannot be indexed, so a long-tailed subset cannot be chosen: '
                    f'leave --imbalance-factor out.'
                )
            dataset = describe_stream(opened, name, split, training, class_counts_file, class_names, counts)
        else:
            targets = read_targets(opened, name, root, split)
            dataset = ClassificationSet(
                opened, targets, read_class_names(opened, targets), name or 'folder', keys=image_keys(opened),
                opener=opener, **images)
    if isinstance(dataset, ClassificationSet):
        if class_counts_file is not None:
            raise ValueError(f'The class counts of {dataset.name} are known from its labels: leave --class-counts out.')
        if training and imbalance_factor is not None:
            _check_classes(dataset, training)
            dataset = long_tailed_subset(dataset, imbalance_factor, profile, n_max, split_seed, by_frequency=natural)
        if class_names is not None:
            dataset = dataset.with_classes(class_names)
    _check_classes(dataset, training)
    dataset.transform = transform
    return dataset


def has_split(root: str | os.PathLike, split: str) -> bool:
    """Whether a folder of images has a folder for this split, see `split_folder`."""
    return split_folder(root, split) is not None


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


def _left_over(
        dataset: ClassificationSet,
        imbalance_factor: float,
        profile: str,
        n_max: int | None,
        seed: int,
) -> ClassificationSet:
    chosen = long_tailed_subset(dataset, imbalance_factor, profile, n_max, seed, by_frequency=False)
    rest = dataset.subset(np.flatnonzero(~np.isin(dataset.indices, chosen.indices)))
    count = min(_MOST_UNUSED, *rest.class_counts)
    if not count:
        name = rest.class_names[rest.class_counts.index(0)]
        raise ValueError(
            f'All images of class {name!r} of {dataset.name} are used for training, so none is left for the split '
            f'{UNUSED}: give a smaller --n-max, or another --val-split.')
    return rest.subset(np.sort(long_tailed_indices(rest.targets, [count] * rest.num_classes, seed)))


def _check_classes(dataset: ClassificationSet | Stream, training: bool) -> None:
    if dataset.num_classes < 2:
        only = f' ({dataset.class_names[0]})' if dataset.class_names else ''
        raise ValueError(
            f'{_place(dataset)} has {dataset.num_classes} class(es){only}, at least 2 are needed: add classes.')
    counts = (dataset.class_counts if training else None) or []
    empty = [dataset.class_names[label] for label, count in enumerate(counts) if count == 0]
    if empty:
        raise ValueError(
            f'{len(empty)} class(es) of {_place(dataset)} have no training image: {", ".join(map(repr, empty[:10]))}. '
            f'Add images or leave the class out.'
        )


def _place(dataset: ClassificationSet | Stream) -> str:
    return dataset.place if isinstance(dataset, ClassificationSet) else dataset.name


def _open(
        name: str,
        prefix: str,
        root: Any,
        split: str,
        download: bool,
        opener: Callable,
        **kwargs: Any,
) -> Dataset:
    if prefix not in _PREFIXES or (prefix == '' and f'lt/{name.lower()}' in BENCHMARKS):
        raise ValueError(
            f'Unknown data set {name!r}{_near(name)} Allowed are {", ".join(BENCHMARKS)}, and names that begin with '
            f'{", ".join(f"{known}/" for known in _PREFIXES[2:])}. For a folder of images give no name.'
        )
    is_folder = prefix == '' or name.lower() in _TORCH_FOLDERS
    if root is None and prefix in ('', 'torch', 'wds'):
        raise ValueError(f'Data set {name or "folder"!r} needs the folder of its files (--data-dir){_near(name)}')
    if is_folder or (prefix == 'torch' and not download):
        if not os.path.exists(root):
            raise FileNotFoundError(f'There is no folder {root} (--data-dir) for the data set {name or "folder"!r}.')
        if is_folder and kwargs.pop('search_split', True):
            _check_split(root, split)
            root = split_folder(root, split) or root
    if is_folder:
        kwargs['search_split'] = False
    if name.lower() in _TORCH_FOLDERS:
        kwargs['loader'] = opener
    if prefix == '' and os.path.isdir(root):
        return _open_folder(root, **kwargs)
    try:
        return timm.data.create_dataset(name, root=root, split=split, download=download, **kwargs)
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


def _check_split(root: str, split: str) -> None:
    # without a folder for this split timm would read all of root, and validate on training images too
    if not os.path.isdir(root) or has_split(root, split):
        return
    others = [
        name for name in subfolders(root) if name.lower() in SPLIT_NAMES and has_split(root, name.lower())
        and subfolders(os.path.join(root, name))]  # else a class of that name
    if others:
        raise FileNotFoundError(f'{root} has no folder for the split {split!r}, only for {", ".join(others)}.')
