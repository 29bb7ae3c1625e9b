"""A data set that knows its labels without decoding images, and its long-tailed and held-out subsets."""
import hashlib
import json
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import ImageDataset
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder

from .class_names import label_table
from .folders import ReaderFolder
from .held import HeldImages
from .sampling import (
    Integers,
    check_classes,
    check_imbalance,
    class_counts,
    largest_imbalance_factor,
    largest_n_max,
    long_tailed_indices,
    profile_counts,
    stratified_split,
)
from .tiff import WrongKindError

# Errors of PIL and its decoders if a file is not an image, is truncated or is damaged.
_DECODE_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError,
)


class UnreadableImageError(ValueError):
    """An image that cannot be opened or decoded."""


class ClassificationSet(Dataset):
    """Map-style set of images whose labels are known without decoding an image.

    Args:
        base: Data set that yields `(PIL image, target, ...)`.
        targets: Label of every image of `base`.
        class_names: Names by label.
        name: Name of the data set, part of the fingerprint.
        indices: Images of `base` that belong to this set, in order; all by default.
        keys: A unique string for every image of `base`, such as its file name; part of the fingerprint.
        input_img_mode: PIL mode that images are converted to.
        skip_bad_images: Replace an unreadable image by the next readable one of its class instead of raising.
        opener: Opens a file of timm's data sets. By default Pillow alone opens it, as in the published runs.

    Attributes:
        transform: Applied to the PIL image. With `None` the image is returned unchanged.
        targets: Labels of the images of this set, int64 `[N]`.
        indices: Positions of these images in `base`, int64 `[N]`.
        held: Decoded images by their position in `base`, see `hold`, or None.

    Raises:
        UnreadableImageError: On access, if an image cannot be read. With `skip_bad_images` only if no image of the
            class can be read.

    Example:
        >>> from timm_deitlt.data import create_dataset
        >>> train_set = create_dataset('lt/digits')
        >>> len(train_set), train_set.class_counts[:3]
        (568, [140, 108, 83])
    """

    def __init__(
            self,
            base: Dataset,
            targets: Integers,
            class_names: Sequence[str],
            name: str,
            indices: Integers | None = None,
            keys: Sequence[str] | None = None,
            input_img_mode: str = 'RGB',
            skip_bad_images: bool = False,
            opener: Callable | None = None,
    ):
        self.base = base
        self._base_targets = np.asarray(targets, dtype=np.int64)
        self.class_names = tuple(str(class_name) for class_name in class_names)
        self.name = name
        self.indices = np.arange(len(self._base_targets)) if indices is None else np.asarray(indices, dtype=np.int64)
        self.keys = keys
        self.input_img_mode = input_img_mode
        self.skip_bad_images = skip_bad_images
        self.opener = opener
        self.transform: Callable | None = None
        self.held: HeldImages | None = None
        self.targets = self._base_targets[self.indices]
        low, high = self._base_targets.min(initial=0), self._base_targets.max(initial=-1)
        if low < 0 or high >= self.num_classes:
            raise ValueError(
                f'{name} has labels from {low} to {high}, but its {self.num_classes} classes allow 0 to '
                f'{self.num_classes - 1}.'
            )
        # One flag per image instead of a counter, because several workers may meet the same image, and in each epoch.
        self._bad = torch.zeros(len(self._base_targets), dtype=torch.bool).share_memory_() if skip_bad_images else None

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def class_counts(self) -> list[int]:
        """Images per label."""
        return np.bincount(self.targets, minlength=self.num_classes).tolist()

    @property
    def place(self) -> str:
        """The folder of its images, or else its name: for messages."""
        reader = getattr(self.base, 'reader', self.base)
        return str(reader.root) if isinstance(reader, ReaderFolder | ImageFolder) else self.name

    @property
    def bad_images(self) -> int:
        """Number of different unreadable images that this process and its loader workers have met so far."""
        return 0 if self._bad is None else int(self._bad[torch.from_numpy(self.indices)].sum())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the name of the set and of its images with their class names, independent of their order."""
        seen: Counter[str] = Counter()
        names = []
        for class_name in self.class_names:  # classes that share a name are still different classes
            names.append(f'{class_name} {seen[class_name]}')
            seen[class_name] += 1
        images = self.indices.tolist() if self.keys is None else [self.keys[i] for i in self.indices.tolist()]
        pairs = sorted(zip(images, [names[target] for target in self.targets.tolist()], strict=True))
        return hashlib.sha256(json.dumps([self.name, pairs], separators=(',', ':')).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        try:
            image = self.read(i)
        except UnreadableImageError as error:
            if self._bad is None:
                raise
            image = self._replacement(i, self._bad, error)
        return image if self.transform is None else self.transform(image), int(self.targets[i])

    @property
    def is_decoded_anew(self) -> bool:
        """Whether each access decodes a file that `hold` could keep. Sets of torchvision are in memory anyway."""
        known = isinstance(self.base, ImageDataset) and self.input_img_mode in ('L', 'RGB', 'RGBA')
        return known and self.held is None and len(self) > 0

    def hold(self, max_bytes: float) -> bool:
        """Decode the images of timm's data sets (folders, lists, archives) once and keep them in memory if they fit.

        Args:
            max_bytes: Largest allowed size of all images. It is first estimated from a few images.

        Returns:
            Whether the images are kept.

        Raises:
            UnreadableImageError: If an image cannot be read. With `skip_bad_images` the image is not kept instead.
        """
        if not self.is_decoded_anew:
            return self.held is not None
        some = np.linspace(0, len(self) - 1, num=min(len(self), 32)).astype(int)
        sizes = [len(image.tobytes()) for _, image in self._readable(some)]
        if not sizes or np.mean(sizes) * len(self) > max_bytes:
            return False
        try:
            self.held = HeldImages(self._readable(range(len(self))), max_bytes)
        except MemoryError:
            return False
        return True

    def _readable(self, positions: Iterable[int]) -> Iterator[tuple[int, Image.Image]]:
        for i in positions:
            try:
                yield int(self.indices[i]), self.read(i)
            except UnreadableImageError:
                if self._bad is None:
                    raise

    def read(self, i: int) -> Image.Image:
        """An image without its transform, or an UnreadableImageError; never another image in its place."""
        index = int(self.indices[i])
        if self.held is not None and index in self.held:
            return self.held[index]
        try:
            if not isinstance(self.base, ImageDataset):
                image = self.base[index][0]
                return image.convert(self.input_img_mode) if self.input_img_mode else image
            # timm's ImageDataset would replace an unreadable image by the next one, even of another class.
            with self.base.reader[index][0] as file:
                if self.opener is not None:
                    return self.opener(file)
                with Image.open(file) as image:
                    return image.convert(self.input_img_mode or image.mode)
        except _DECODE_ERRORS as error:
            skip = ' (--skip-bad-images takes the next image of the class instead).'
            raise UnreadableImageError(
                f'Cannot read image {self._file(index)} of class {self.class_names[self.targets[i]]!r}: {error}'
                f'{"." if isinstance(error, WrongKindError) else skip}') from error

    def _replacement(self, i: int, bad: torch.Tensor, error: UnreadableImageError) -> Image.Image:
        same_class = np.flatnonzero(self.targets == self.targets[i])
        after = np.roll(same_class, -1 - np.searchsorted(same_class, i % len(self)))
        bad[self.indices[i]] = True
        for candidate in after[:-1]:
            try:
                return self.read(candidate)
            except UnreadableImageError:
                bad[self.indices[candidate]] = True
        raise UnreadableImageError(
            f'None of the {len(same_class)} images of class {self.class_names[self.targets[i]]!r} of {self.place} can '
            f'be read. {error}'
        )

    def _file(self, index: int) -> str:
        name = self.base.filename(index, absolute=True) if isinstance(self.base, ImageDataset) else None
        return str(name or f'number {index} of {self.name}')

    def subset(self, positions: Integers) -> 'ClassificationSet':
        """Subset of the images at these positions, in this order. It shares decoded images and flags of bad images."""
        return self._derive(self._base_targets, self.class_names, self.indices[np.asarray(positions)])

    def with_classes(self, class_names: Sequence[str]) -> 'ClassificationSet':
        """The same images with labels in the order of `class_names`, matched by name.

        Raises:
            ValueError: If this set has a class that is not among `class_names`.
        """
        class_names = tuple(class_names)
        table = np.asarray(label_table(self.class_names, class_names, self.place))
        return self._derive(table[self._base_targets], class_names, self.indices)

    def _derive(
            self,
            base_targets: np.ndarray,
            class_names: Sequence[str],
            indices: np.ndarray,
    ) -> 'ClassificationSet':
        derived = ClassificationSet(
            self.base, base_targets, class_names, self.name, indices, self.keys, self.input_img_mode,
            opener=self.opener,
        )
        derived.skip_bad_images, derived._bad, derived.transform = self.skip_bad_images, self._bad, self.transform
        derived.held = self.held
        return derived


def holdout(
        dataset: ClassificationSet,
        fraction: float,
        seed: int = 0,
) -> tuple[ClassificationSet, ClassificationSet, list[int]]:
    """Hold out a stratified part of a training set for validation.

    Returns:
        The set for training, the held-out set, and the labels of classes that are too small to give an image.

    Raises:
        ValueError: If the set cannot be indexed, the fraction is not between 0 and 1, or no class can give an image.
    """
    if not isinstance(dataset, ClassificationSet):
        raise ValueError(
            f'{dataset.name} is read as a stream and cannot be indexed, so no part of it can be held out: give a '
            'validation split instead (--val-split).'
        )
    stay, held, small = stratified_split(dataset.targets, fraction, seed)
    if len(held) == 0:
        raise ValueError(
            f'Holding out {fraction} of {dataset.place} takes no image, because its largest class has '
            f'{max(dataset.class_counts)}: give a larger --val-fraction, or evaluate all images in turn by --folds.'
        )
    return dataset.subset(stay), dataset.subset(held), small


def long_tailed_subset(
        dataset: ClassificationSet,
        imbalance_factor: float,
        profile: str = 'exp',
        n_max: int | None = None,
        seed: int = 0,
        by_frequency: bool = True,
) -> ClassificationSet:
    """Long-tailed random subset of a data set.

    Args:
        dataset: Set to choose from. Every class has an image.
        imbalance_factor: n_max / n_min, at least 1.
        profile: As for `sampling.class_counts`.
        n_max: Images of the most frequent class; by default as many as the classes can supply.
        seed: Seed of the choice.
        by_frequency: If True, the classes are taken in the order of the counts in `dataset` (by label among equal
            ones). If False, in the order of the labels.

    Raises:
        ValueError: If a class would be empty or has too few images. The error names the largest possible imbalance
            factor or n_max.
    """
    check_imbalance(imbalance_factor, profile)
    available = np.asarray(dataset.class_counts)
    order = np.argsort(-available, kind='stable') if by_frequency else np.arange(len(available))
    available = available[order].tolist()
    check_classes(len(available))
    largest = largest_n_max(available, imbalance_factor, profile)
    if n_max is None and min(profile_counts(len(available), largest, imbalance_factor, profile)) == 0:
        raise ValueError(
            f'An imbalance factor of {imbalance_factor:.10g} leaves a class of {dataset.place} without an image: with '
            f'{max(available)} to {min(available)} images in a class the largest allowed is '
            f'{largest_imbalance_factor(available, profile)}.'
        )
    counts = np.asarray(class_counts(len(available), largest if n_max is None else n_max, imbalance_factor, profile))
    if np.any(counts > available):
        short = int(np.argmax(counts > available))
        raise ValueError(
            f'With n_max {n_max} class {dataset.class_names[order[short]]!r} of {dataset.place} needs {counts[short]} '
            f'images but has {available[short]}: the largest allowed n_max is {largest}.'
        )
    by_label = np.empty_like(counts)
    by_label[order] = counts
    return dataset.subset(long_tailed_indices(dataset.targets, by_label, seed))
