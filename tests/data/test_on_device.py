"""Batches instead of single images: timm's distribution by other draws, each image with its own."""
import doctest
import random

import numpy as np
import pytest
import torch
from PIL import Image
from test_opencv import pictures
from timm.data.auto_augment import AugmentOp
from timm.data.random_erasing import RandomErasing

from timm_deitlt.data import erasing, on_device
from timm_deitlt.data.augment import posterize, train_transform, weak_transform
from timm_deitlt.data.batch_ops import MOVES, PIXEL_OPERATIONS, apply_operations, first_box
from timm_deitlt.data.on_device import to_device
from timm_deitlt.data.seeds import seed_everything

RECIPE = dict(auto_augment='rand-m9-mstd0.5-inc1', color_jitter=None, interpolation='bicubic')


def batch(images):
    """uint8 `[B, C, H, W]` of PIL images of one size."""
    arrays = [np.array(image).reshape(*image.size[::-1], -1) for image in images]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


def operation(name, mode, level, resample):
    op = AugmentOp(name, prob=1., magnitude=level, hparams={
        'magnitude_std': level / 3, 'magnitude_max': 30 if level > 10 else None, 'translate_const': 30,
        'img_mean': (128,) if mode == 'L' else (120, 130, 140), 'interpolation': resample})
    if name.startswith('Posterize'):
        op.aug_fn = posterize
    return op


def difference(name, images, level=9., resample=(Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)):
    """Mean difference from Pillow's images, in levels, and the largest; every image has draws of its own."""
    pillow, ours = [], []
    for draw, image in enumerate(images):
        op = operation(name, image.mode, level, resample)
        seed_everything(0, draw)
        if image.mode == 'L':
            op.kwargs['fillcolor'] = 128
        pillow.append(op(image))
        state = random.getstate()
        op = operation(name, image.mode, level, resample)
        seed_everything(0, draw)
        ours.append(on_device._recorded(op)(None))
        if name in MOVES:
            assert random.getstate() == state, 'as many draws'
    actual = apply_operations(batch(images), ours)
    assert actual.dtype == torch.uint8
    found = (actual.int() - batch(pillow).int()).abs().float()
    return found.mean().item(), found.max().item()


@pytest.mark.parametrize('mode', ['RGB', 'L'])
@pytest.mark.parametrize('name', [*PIXEL_OPERATIONS, *MOVES])
def test_each_operation_makes_pillows_images(name, mode):
    print(name, mode, difference(name, pictures(40, (72, 48), mode)), difference(name, pictures(40, (72, 48), mode), resample=Image.Resampling.BILINEAR),difference(name, pictures(40, (24, 24), mode, grain=24), level=28.))
