"""A loader whose images are augmented on the device, in whole batches."""
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .batch_ops import send
from .held import pixel_table
from .loader import MicroBatchSampler, TrainLoader
from .seeds import BATCH, seed_host


class DeviceLoader(TrainLoader):
    """Micro-batches like those of `TrainLoader`, augmented on the device.

    A set that is in memory, with images of one size, lies on the device. Only the positions of its images go there, and
    no loader process is started. The images of any other set are read, cropped and mirrored on the host, by the draws
    and the loader processes of `TrainLoader`; the rest is done on the device.

    What is drawn for a micro-batch depends on (seed, epoch, number of the micro-batch), whatever the device, the number
    of ranks and of loader processes.

    Args:
        dataset: Map-style data set of (PIL image, class index) with `transform` unset.
        transforms: As in `TrainLoader`, made by `on_device.to_device`.
        mean: Mean of the normalisation, one value per channel, in 0..1.
        std: Standard deviation of the normalisation.
        workers: Loader processes.
        device: Device of the batches.
        dtype: Type of the images.
        kwargs: Further arguments of `TrainLoader`.
    """

    def __init__(
            self,
            dataset: Dataset,
            transforms: Sequence[Sequence],
            mean: Sequence[float],
            std: Sequence[float],
            workers: int = 0,
            device: torch.device | str = 'cpu',
            dtype: torch.dtype = torch.float32,
            **kwargs: Any,
    ):
        table = pixel_table(dataset)
        on_host = [[view.transforms[0].on_host for view in views] for views in transforms]
        super().__init__(  # with this mean and std the images stay as they are, numbers from 0 to 255
            dataset, on_host, (0.,) * len(mean), (1 / 255,) * len(std), workers=0 if table else workers, device=device,
            **kwargs)
        self.transforms, self.dtype, self.in_memory = transforms, dtype, table is not None
        source: Iterable[tuple[Tensor, Tensor]] = self.loader
        if table is not None:
            pixels, targets = table
            source = _Table(pixels.to(device), targets.to(device), cast(Any, self.sampler), self.num_views)
        steps = [[view.transforms[0 if table else 1:] for view in views] for views in transforms]
        scale = [
            torch.tensor([255 * value for value in values], device=device, dtype=dtype)[:, None, None]
            for values in (mean, std)]
        self.loader = _Augmented(source, cast(Any, self.sampler), steps, *scale)

    def seconds_per_image(self, images: int = 8) -> float:
        """Seconds to augment an image on the device, or, if the set is not in memory, to read and crop it."""
        if not self.in_memory:
            return super().seconds_per_image(images)
        for _ in range(2):  # the first also allocates
            began = time.perf_counter()
            batch, _ = next(iter(self.loader))
            batch[0, 0, 0, 0].item()  # waits for the device
        return (time.perf_counter() - began) / len(batch) * self.num_views


class _Table:
    """Batches of a set that lies on the device."""

    def __init__(self, images: Tensor, targets: Tensor, sampler: MicroBatchSampler, num_views: int):
        self.images, self.targets, self.sampler, self.num_views = images, targets, sampler, num_views

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for plan in self.sampler.plan():
            where = send(torch.tensor(plan.indices), self.images.device)
            yield self.images[where].repeat(self.num_views, 1, 1, 1), self.targets[where].repeat(self.num_views)


class _Augmented:
    """Augmented and normalised batches, from uint8 images or floats from 0 to 255 of a source, view after view."""

    def __init__(
            self,
            source: Iterable[tuple[Tensor, Tensor]],
            sampler: MicroBatchSampler,
            steps: Sequence[Sequence[Sequence[Callable]]],
            mean: Tensor,
            std: Tensor,
    ):
        self.source, self.sampler, self.steps, self.mean, self.std = source, sampler, steps, mean, std

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for plan, (images, target) in zip(self.sampler.plan(), self.source, strict=True):
            seed_host(self.sampler.seed, self.sampler.epoch, plan.number, 0, BATCH)
            views = []
            sized = self.steps[plan.size_index]
            for view, steps in zip(images.to(torch.uint8).chunk(len(sized)), sized, strict=True):
                for step in steps:
                    view = step(view)
                views.append(view)
            yield torch.cat(views).to(self.mean.dtype).sub_(self.mean).div_(self.std), target
