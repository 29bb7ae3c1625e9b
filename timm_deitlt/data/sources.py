"""All images of the named benchmarks: digits, Fashion-MNIST, CIFAR, and those with list files."""
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timm.data import ImageDataset
from torch.utils.data import Dataset
from torchvision.datasets import CIFAR10, CIFAR100, FashionMNIST
from torchvision.datasets.mnist import read_image_file, read_label_file
from torchvision.datasets.utils import extract_archive

from ..benchmarks import Benchmark
from .long_tail import ClassificationSet
from .readers import read_list
from .sampling import long_tailed_indices

_DIGITS_TEST_IMAGES = 34  # per class


class GreyImages(Dataset):
    """Grey images in memory.

    Args:
        images: uint8 `[N, H, W]`.
        targets: Labels `[N]`.
    """

    def __init__(self, images: np.ndarray, targets: np.ndarray):
        self.data = images
        self.targets = targets

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.data[i]), int(self.targets[i])


def pixel_keys(images: Iterable) -> list[str]:
    """A checksum of the pixels of every image, which identifies the image."""
    return [f'{zlib.crc32(np.ascontiguousarray(image).data):08x}' for image in images]


def load_benchmark(
        benchmark: Benchmark,
        root: str | os.PathLike | None,
        part: str,
        split_seed: int = 0,
        download: bool = False,
        list_dir: str | os.PathLike | None = None,
        **options: Any,
) -> ClassificationSet:
    """All images of a part of a benchmark, before a long-tailed subset is chosen.

    Args:
        benchmark: The benchmark.
        root: Folder of its files; the digits need none.
        part: 'train', 'validation' or 'test'; the last two are the same where the set has only one of them.
        split_seed: Seed of the test part of the digits. All other benchmarks have fixed parts.
        download: Let torchvision fetch missing files into `root`.
        list_dir: Folder of the list files, see `read_list`.
        options: Further arguments of `ClassificationSet`.

    Raises:
        ValueError: If `root` is None, a file is damaged, or a list file is not valid.
        FileNotFoundError: If files are missing. The error names them.
    """
    training = part == 'train'
    if benchmark.files:
        reader = read_list(benchmark, root, part, list_dir)
        base: Any = ImageDataset(reader.root, reader=reader)
        return ClassificationSet(
            base, reader.targets, reader.class_names, benchmark.name, keys=reader.paths, **options)
    if benchmark.name == 'lt/digits':
        base = _digits()
    elif root is None:
        raise ValueError(
            f'{benchmark.name} needs the folder of its files: give it by --data-dir, and add --dataset-download to '
            f'download the files into it.'
        )
    elif benchmark.name == 'lt/fashion_mnist':
        base = _fashion_mnist(benchmark.name, Path(root), training, download)
    else:
        base = _cifar(benchmark, root, training, download)
    class_names = benchmark.class_names or base.classes
    dataset = ClassificationSet(
        base, base.targets, class_names, benchmark.name, keys=pixel_keys(base.data), **options)
    if benchmark.name != 'lt/digits':
        return dataset
    test = np.sort(long_tailed_indices(dataset.targets, [_DIGITS_TEST_IMAGES] * len(class_names), split_seed))
    return dataset.subset(np.setdiff1d(np.arange(len(dataset)), test) if training else test)


def _digits() -> GreyImages:
    from sklearn.datasets import load_digits  # takes longer to import than the rest of the package

    digits = load_digits()
    return GreyImages(np.rint(digits.images * (255 / 16)).astype(np.uint8), digits.target)


def _fashion_mnist(name: str, root: Path, training: bool, download: bool) -> GreyImages:
    part = 'train' if training else 't10k'
    files = [f'{part}-images-idx3-ubyte', f'{part}-labels-idx1-ubyte']
    folders = [root, root / 'FashionMNIST' / 'raw']
    found = _find_idx(folders, files)
    failure = ''
    if found is None and download:
        try:
            FashionMNIST(root, download=True)
        except (RuntimeError, OSError) as error:
            failure = f' The download failed: {error}'
        found = _find_idx(folders, files)
    if found is None:
        raise FileNotFoundError(
            f'{name} needs {" and ".join(files)} (or .gz), looked for in {folders[0]} and {folders[1]}. '
            f'Give the folder that holds them by --data-dir, or download them by --dataset-download.{failure}'
        )
    images, targets = _read_idx(found[0], read_image_file), _read_idx(found[1], read_label_file)
    if len(images) != len(targets):
        raise ValueError(
            f'{found[0]} holds {len(images)} images and {found[1]} holds {len(targets)} labels: download them again.')
    return GreyImages(images, targets)


def _find_idx(folders: list[Path], files: list[str]) -> list[Path] | None:
    for folder in folders:
        found = [
            next((path for path in (folder / file, folder / f'{file}.gz') if path.is_file()), None) for file in files]
        present = [path for path in found if path is not None]
        if len(present) == len(files):
            return present
    return None


def _read_idx(path: Path, read: Callable) -> np.ndarray:
    # torchvision checks the content by assertions, and cannot read .gz files
    try:
        if path.suffix != '.gz':
            return read(str(path)).numpy()
        with tempfile.TemporaryDirectory() as folder:
            return read(extract_archive(str(path), folder)).numpy()
    except (OSError, EOFError, zlib.error, ValueError, TypeError, RuntimeError, AssertionError, KeyError) as error:
        raise ValueError(f'{path} is damaged or not the expected idx file ({error}): download it again.') from error


def _cifar(benchmark: Benchmark, root: str | os.PathLike, training: bool, download: bool) -> CIFAR10:
    cifar = {'lt/cifar10': CIFAR10, 'lt/cifar100': CIFAR100}[benchmark.name]
    try:
        return cifar(root, train=training, download=download)
    except (RuntimeError, OSError) as error:
        folder = Path(root) / cifar.base_folder
        files = [file for file, _ in (*cifar.train_list, *cifar.test_list)] + [cifar.meta['filename']]
        missing = [file for file in files if not (folder / file).is_file()]
        trouble = f'without {", ".join(missing)}' if missing else 'where a file is not the published one (by checksum)'
        raise FileNotFoundError(
            f'{benchmark.name} needs the python version of {cifar.__name__}, looked for in {folder}, {trouble}. '
            f'Give the folder that holds {cifar.base_folder} by --data-dir, or download it by --dataset-download. '
            f'({error})'
        ) from error
