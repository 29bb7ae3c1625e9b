"""Images/s per core of the data pipeline: images of 32 px are augmented by the recipe, erased and normalised.

    python speed/data.py
    python speed/data.py --img-size 32

Each variant loads in one process with one thread. timm's create_loader is measured too. Of a GPU the last row is what
the device augments; the others say what one core of the host does.
"""
import argparse
from functools import partial
from itertools import chain, count

import numpy as np
import torch
from pairs import Step, main
from PIL import Image
from timm.data import create_loader
from torch.utils.data import Dataset

from timm_deitlt.data.augment import BatchAugment, mend_posterize, train_transform
from timm_deitlt.data.device_loader import DeviceLoader
from timm_deitlt.data.loader import TrainLoader
from timm_deitlt.data.on_device import to_device
from timm_deitlt.data.opencv import to_opencv
from timm_deitlt.engine.device import keep_freed_memory

RECIPE = dict(auto_augment='rand-m9-mstd0.5-inc1', interpolation='bicubic')
ERASING = dict(re_prob=.25, re_mode='pixel')
MEAN, STD = (.485, .456, .406), (.229, .224, .225)


class Pictures(Dataset):
    """Smooth random images of 32 px, in memory."""

    def __init__(self, images: int = 4096):
        coarse = np.random.default_rng(0).integers(0, 256, (images, 6, 6, 3), dtype=np.uint8)
        self.data = np.stack([Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC) for image in coarse])
        self.transform = None

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int):
        image = Image.fromarray(self.data[index])
        return image if self.transform is None else self.transform(image), index % 10


def theirs(asked: argparse.Namespace) -> Step:
    """A batch of timm's loader."""
    torch.set_num_threads(1)
    dataset = Pictures()
    loader = create_loader(
        dataset, (3, asked.img_size, asked.img_size), asked.batch_size, is_training=True, num_workers=0, **RECIPE,
        **ERASING, color_jitter=None, mean=MEAN, std=STD, device=torch.device(asked.device), pin_memory=False)
    mend_posterize(dataset.transform)  # with Pillow 13 it stops at random
    batches = chain.from_iterable(loader for _ in count())
    return lambda: next(batches)


def ours(asked: argparse.Namespace, backend: str) -> Step:
    """A batch of our loader."""
    torch.set_num_threads(1)
    keep_freed_memory()
    transform = train_transform((3, asked.img_size, asked.img_size), color_jitter=None, **RECIPE)
    convert = {'pillow': lambda transform: transform, 'opencv': to_opencv, 'device': to_device}[backend]
    make = DeviceLoader if backend == 'device' else TrainLoader
    loader = make(Pictures(), [(convert(transform),)], MEAN, STD, batch_size=asked.batch_size, device=asked.device)
    augment = BatchAugment(**ERASING, device=asked.device, batched=backend == 'device')
    updates = chain.from_iterable(map(loader.epoch, count()))

    def step() -> None:
        (_, images, target), = next(updates)
        augment(images, target)

    return step


VARIANTS = {
    "timm's loader": theirs,
    'ours': partial(ours, backend='pillow'),
    'ours, --augment-backend opencv': partial(ours, backend='opencv'),
    'ours, --augment-backend device': partial(ours, backend='device'),
}


if __name__ == '__main__':
    main(__doc__, VARIANTS, img_size=224, batch_size=64, rounds=21)
