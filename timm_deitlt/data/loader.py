"""Loaders in which every image, micro-batch and update is a function of (seed, epoch, position) only.

An update is a global batch that is cut into micro-batches of a fixed size. The rank only decides who computes which
micro-batch. So a resumed run is the same run, and 1 rank with 4 micro-batches makes the same updates as 2 ranks with 2.
"""
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import torch
from timm.data.distributed_sampler import OrderedDistributedSampler, RepeatAugSampler
from timm.data.loader import PrefetchLoader
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from .collate import collate
from .multi_scale import SizeSchedule
from .seeds import STREAM, derive_seed, seed_everything, seed_host


@dataclass(frozen=True)
class MicroBatch:
    """One forward and backward pass of one rank.

    Attributes:
        number: Position in the epoch, counted over all ranks. It seeds everything that is random in the micro-batch.
        indices: Positions of its images in the data set.
        weight: Weight of its mean loss in the loss of the update: its images / images in the update. It is 0 if the
            rank has nothing to do in a short last update.
        last: Whether it is the last one of this rank in the update.
        size_index: Position of its image size in the list of sizes.
    """
    number: int
    indices: tuple[int, ...]
    weight: float
    last: bool
    size_index: int = 0


class MicroBatchSampler(Sampler):
    """Batch sampler of one rank: lists of (image, seed, position of its size), in the order of the updates.

    Args:
        num_images: Number of images in the data set.
        batch_size: Images in a micro-batch.
        grad_accum_steps: Micro-batches of each rank in an update.
        world_size: Number of ranks.
        rank: This rank.
        repeats: Views of each image in an epoch (repeated augmentation); 0 or 1 for none. The epoch keeps its length,
            so it then holds 1 / repeats of the images. From 2560 images on its length is a multiple of 256, as
            published.
        even: Drop one image of an odd last micro-batch, because Mixup pairs images. A last micro-batch of a single
            image is always dropped, because BatchNorm cannot normalise it.
        seed: Seed of the run.
        global_batch_size: Images in an update; by default batch_size * grad_accum_steps * world_size. If a smaller
            multiple of `batch_size` does not fill all ranks, some have nothing to do, as in a short last update.
        sizes: Chooses the image size of each update; None for one size.
    """

    def __init__(
            self,
            num_images: int,
            batch_size: int,
            grad_accum_steps: int = 1,
            world_size: int = 1,
            rank: int = 0,
            repeats: float = 0,
            even: bool = False,
            seed: int = 0,
            global_batch_size: int | None = None,
            sizes: SizeSchedule | None = None,
    ):
        self.num_images = num_images
        self.batch_size = batch_size
        self.per_update = global_batch_size or batch_size * grad_accum_steps * world_size
        self.world_size = world_size
        self.rank = rank
        self.seed = seed
        self.sizes = sizes
        self.epoch = 0
        # of 2560 images the published multiple of 256 drops less than a tenth, but of fewer images up to a half
        self.repeat_sampler = RepeatAugSampler(
            range(num_images), num_replicas=1, rank=0, num_repeats=repeats,
            selected_round=256 if num_images >= 2560 else 0) if repeats > 1 else None
        length = len(self.repeat_sampler) if self.repeat_sampler else num_images
        if length % batch_size == 1 < length or even and length % batch_size % 2:
            length -= 1
        self.images_per_epoch = length
        self.updates_per_epoch = math.ceil(length / self.per_update)
        if not length:
            raise ValueError(
                f'{num_images} training image(s) leave no batch, because Mixup pairs images: use more images, or '
                '--mixup 0 --cutmix 0.')

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def order(self) -> list[int]:
        """Images of the epoch in order, the same on every rank."""
        seed = derive_seed(self.seed, self.epoch)
        if self.repeat_sampler:
            self.repeat_sampler.set_epoch(seed)
            return list(self.repeat_sampler)
        return torch.randperm(self.num_images, generator=torch.Generator().manual_seed(seed)).tolist()

    def plan(self) -> list[MicroBatch]:
        """Micro-batches of this rank in the epoch, in order."""
        order = self.order()[:self.images_per_epoch]
        plan, number = [], 0
        for update, start in enumerate(range(0, len(order), self.per_update)):
            images = order[start:start + self.per_update]
            size_index = self.sizes.choice(self.epoch, update) if self.sizes else 0
            count = math.ceil(len(images) / self.batch_size)
            if self.repeat_sampler:  # put the views of an image into different micro-batches of a full update
                images = [image for first in range(count) for image in images[first::count]]
            cuts = [tuple(images[i * self.batch_size:(i + 1) * self.batch_size]) for i in range(count)]
            steps = math.ceil(count / self.world_size)
            for step in range(steps):
                turn = step * self.world_size + self.rank
                idle = turn >= count
                turn = 0 if idle else turn
                weight = 0. if idle else len(cuts[turn]) / len(images)
                plan.append(MicroBatch(number + turn, cuts[turn], weight, step == steps - 1, size_index))
            number += count
        return plan

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        for batch in self.plan():
            yield [
                (index, derive_seed(self.seed, self.epoch, batch.number, position), batch.size_index)
                for position, index in enumerate(batch.indices)
            ]

    def __len__(self) -> int:
        return len(self.plan())


class AugmentedViews(Dataset):
    """One or two views of each image. The key of an item is (index, seed, position of its size)."""

    def __init__(self, dataset: Dataset, transforms: Sequence[Sequence]):
        self.dataset: Any = dataset
        self.transforms = [_AllViews(views) for views in transforms]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: tuple[int, int, int]) -> tuple[Any, int]:
        index, seed, size_index = item
        seed_host(seed)
        image, target = self.dataset[index]
        return self.transforms[size_index](image), target


class _InProcess:
    """The batches of timm's PrefetchLoader on a CPU without workers; normalises each image while it is in the cache.

    This goes through memory once instead of five times (zero, collate, convert to float, subtract, divide).
    """

    def __init__(self, views: AugmentedViews, sampler: MicroBatchSampler, mean: Tensor, std: Tensor):
        self.views, self.sampler = views, sampler
        self.mean, self.std = mean, std

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for items in self.sampler:
            images: Any = []
            target = []
            for position, item in enumerate(items):
                views, label = self.views[item]
                views = views if isinstance(views, tuple) else (views,)
                if not position:
                    images = self.mean.new_empty(len(views), len(items), *views[0].shape)
                for view, pixels in zip(images, views, strict=True):
                    view[position].copy_(pixels).sub_(self.mean).div_(self.std)
                target.append(label)
            yield images.flatten(0, 1), torch.tensor(target).repeat(len(images))


class TrainLoader:
    """Micro-batches of an epoch, normalised and on the device, grouped by update.

    Args:
        dataset: Map-style data set of (PIL image, class index) with `transform` unset, or timm's iterable data set.
        transforms: For each of `sizes`, or for the only size, one transform per view, from a PIL image to uint8
            `[C, H, W]`: first that of the student, then that of the weak view.
        mean: Mean of the normalisation, one value per channel, in 0..1.
        std: Standard deviation of the normalisation.
        batch_size: Images in a micro-batch.
        grad_accum_steps: Micro-batches of each rank in an update.
        world_size: Number of ranks.
        rank: This rank.
        repeats: Views of each image in an epoch.
        even: Whether micro-batches must have an even size (Mixup).
        seed: Seed of the run.
        workers: Loader processes. They start again in each epoch, so that a resumed epoch is the same epoch.
        pin_memory: Whether to pin host memory.
        device: Device of the batches.
        dtype: Type of the images.
        global_batch_size: Images in an update, see `MicroBatchSampler`. It has no effect on an iterable set.
        sizes: Chooses the image size of each update, for map-style sets only; None for one size.
    """

    def __init__(
            self,
            dataset: Dataset,
            transforms: Sequence[Sequence],
            mean: Sequence[float],
            std: Sequence[float],
            batch_size: int,
            grad_accum_steps: int = 1,
            world_size: int = 1,
            rank: int = 0,
            repeats: float = 0,
            even: bool = False,
            seed: int = 0,
            workers: int = 0,
            pin_memory: bool = False,
            device: torch.device | str = 'cpu',
            dtype: torch.dtype = torch.float32,
            global_batch_size: int | None = None,
            sizes: SizeSchedule | None = None,
    ):
        self.num_views, self.sizes, self.dtype = len(transforms[0]), sizes, dtype
        self.transforms = transforms
        self.batch_size, self.grad_accum_steps = batch_size, grad_accum_steps
        self.world_size, self.rank, self.seed, self.workers = world_size, rank, seed, workers
        loader_args: dict[str, Any] = dict(num_workers=workers, collate_fn=collate, pin_memory=pin_memory)
        self.sampler: MicroBatchSampler | None = None
        self.iterable = isinstance(dataset, IterableDataset)
        self.dataset = cast(Any, dataset)
        if self.iterable:
            if hasattr(dataset, 'set_loader_cfg'):
                dataset.set_loader_cfg(num_workers=workers)
            self.dataset.transform = _AllViews(transforms[0])
            loader = DataLoader(dataset, batch_size=batch_size, drop_last=True, **loader_args)
            self.updates_per_epoch = math.ceil(len(loader) / grad_accum_steps)
            self.images_per_epoch = len(loader) * batch_size * world_size
        else:
            self.sampler = MicroBatchSampler(
                len(self.dataset), batch_size, grad_accum_steps, world_size, rank, repeats, even, seed,
                global_batch_size, sizes)
            self.views = AugmentedViews(dataset, transforms)
            loader = DataLoader(self.views, batch_sampler=self.sampler, **loader_args)
            self.updates_per_epoch = self.sampler.updates_per_epoch
            self.images_per_epoch = self.sampler.images_per_epoch
        prefetched = PrefetchLoader(
            loader, mean=tuple(mean), std=tuple(std), channels=len(mean), device=torch.device(device), img_dtype=dtype)
        self.loader: Iterable[tuple[Tensor, Tensor]] = prefetched
        if self.sampler is not None and not workers and prefetched.device.type == 'cpu':
            self.loader = _InProcess(self.views, self.sampler, prefetched.mean[0], prefetched.std[0])

    def epoch(self, epoch: int) -> Iterator[list[tuple[MicroBatch, Tensor, Tensor]]]:
        """Yield each update as a list of this rank's (plan, images `[V * B, C, H, W]`, class indices `[V * B]`)."""
        if self.sampler is None:
            yield from self._stream(epoch)
            return
        self.sampler.set_epoch(epoch)
        group = []
        for plan, (images, target) in zip(self.sampler.plan(), self.loader, strict=True):
            group.append((plan, images, target))
            if plan.last:
                yield group
                group = []

    def seconds_per_image(self, images: int = 8) -> float:
        """Seconds to read and augment one image in one process, measured on a few images; 0 for a stream."""
        if self.sampler is None:
            return 0.
        items = next(iter(self.sampler))[:images]
        began = time.perf_counter()
        for item in items:
            self.views[item]
        return (time.perf_counter() - began) / len(items)

    def _stream(self, epoch: int) -> Iterator[list[tuple[MicroBatch, Tensor, Tensor]]]:
        # an iterable set only estimates its length, so an update is planned when its micro-batches have arrived
        if hasattr(self.dataset, 'set_epoch'):
            self.dataset.set_epoch(epoch)
        seed_everything(self.seed, epoch, self.rank, 0, STREAM)  # images of a stream have no positions to seed them by
        batches = enumerate(self.loader)
        while group := list(islice(batches, self.grad_accum_steps)):
            weight = 1 / (len(group) * self.world_size)
            yield [
                (MicroBatch(step * self.world_size + self.rank, (), weight, last=step == group[-1][0]), *batch)
                for step, batch in group
            ]


class _Transformed(Dataset):
    # a wrapper, so that teacher and student can each transform the same images in their own way
    def __init__(self, dataset: Dataset, transform: Callable):
        self.dataset: Any = dataset
        self.transform = transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, target = self.dataset[index]
        return self.transform(image), target


class _AllViews:
    def __init__(self, transforms: Sequence):
        self.transforms = tuple(transforms)

    def __call__(self, image):
        views = tuple(transform(image) for transform in self.transforms)
        return views if len(views) > 1 else views[0]


def create_eval_loader(
        dataset: Dataset,
        transform: Callable,
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int,
        workers: int = 0,
        world_size: int = 1,
        rank: int = 0,
        pin_memory: bool = False,
        device: torch.device | str = 'cpu',
        dtype: torch.dtype = torch.float32,
) -> PrefetchLoader:
    """Loader over a whole data set in order. Ranks take turns, and timm's evaluators know about the padding."""
    sampler = None
    if isinstance(dataset, IterableDataset):
        cast(Any, dataset).transform = transform
        if hasattr(dataset, 'set_loader_cfg'):
            dataset.set_loader_cfg(num_workers=workers)
    else:
        dataset = _Transformed(dataset, transform)
        if world_size > 1:
            sampler = OrderedDistributedSampler(dataset, num_replicas=world_size, rank=rank)
    # torch draws the seed of the workers from this generator, so that evaluation does not change the global one
    loader = DataLoader(
        dataset, batch_size=batch_size, sampler=sampler, num_workers=workers, collate_fn=collate,
        pin_memory=pin_memory, generator=torch.Generator())
    return PrefetchLoader(
        loader, mean=tuple(mean), std=tuple(std), channels=len(mean), device=torch.device(device), img_dtype=dtype)
