"""Arrays instead of Pillow's images: the same draws, nearly the same pixels."""
import random
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import AugmentOp

from timm_deitlt.build.loaders import build_train_transform
from timm_deitlt.config import parse_args
from timm_deitlt.data import opencv
from timm_deitlt.data.augment import train_transform
from timm_deitlt.data.seeds import seed_everything

RECIPE = dict(auto_augment='rand-m9-mstd0.5-inc1', color_jitter=None, interpolation='bicubic')


def pictures(count, size=32, mode='RGB'):
    """Photographs of a kind: noise, blurred by being enlarged."""
    rng = np.random.default_rng(0)
    shape = (6, 6) if mode == 'L' else (6, 6, 3)
    return [
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
        for _ in range(count)]


def array(image):
    return np.array(image).reshape(*image.size[::-1], -1)


@pytest.mark.parametrize('mode', ['RGB', 'L'])
@pytest.mark.parametrize('name', opencv.OPERATIONS)
def test_each_operation_makes_pillows_image(name, mode):
    differences = []
    for draw in range(40):
        op = AugmentOp(name, prob=1., magnitude=9, hparams={'magnitude_std': 3., 'translate_const': 10, 'img_mean': (
            (128,) if mode == 'L' else (120, 130, 140))})
        if mode == 'L':
            op.kwargs['fillcolor'] = 128
        if name.startswith('Posterize'):
            op.level_fn = lambda level, _: (max(1, int(level) - 2),)  # Pillow 13 refuses 0 bits
        image, = pictures(1, 64, mode)
        seed_everything(0, draw)
        expected = array(op(image)).astype(int)
        op.aug_fn = opencv.OPERATIONS[name]
        seed_everything(0, draw)
        actual = op(array(image)).astype(int)
        assert actual.shape == expected.shape
        differences.append(np.abs(actual - expected))
    allowed = 1.5 if name[:5] in ('Rotat', 'Shear', 'Trans') else 1. if name[:5] in ('Color', 'Sharp') else 0.
    assert np.mean(differences) <= allowed


@pytest.mark.parametrize('size', [32, 96])
def test_whole_transform_makes_the_same_images_by_the_same_seeds(size):
    pillow = train_transform((3, size, size), **RECIPE)
    arrays = opencv.to_opencv(train_transform((3, size, size), **RECIPE))
    differences, spread = [], []
    for index, image in enumerate(pictures(200)):
        seed_everything(1, index)
        expected = pillow(image).float()
        state = random.getstate(), torch.get_rng_state()
        seed_everything(1, index)
        actual = arrays(image)
        assert actual.dtype == torch.uint8 and actual.shape == (3, size, size)
        assert random.getstate() == state[0] and torch.equal(torch.get_rng_state(), state[1]), 'as many draws'
        differences.append((actual.float() - expected).abs().mean().item())
        spread.append(expected.std().item())
    assert np.mean(differences) < .5 < 20 < np.mean(spread)
    assert np.quantile(differences, .95) < 2.


def test_statistics_of_many_images_are_the_same():
    size = 48
    stacks = []
    for make in (lambda t: t, opencv.to_opencv):
        transform = make(train_transform((3, size, size), **RECIPE))
        seed_everything(3 + len(stacks))  # other draws: it is the distribution that is compared
        stacks.append(torch.stack([transform(image).float() for image in pictures(50) for _ in range(12)]))
    a, b = (torch.stack([
        x.mean(dim=(1, 2, 3)), x.std(dim=(1, 2, 3)), (x == 0).float().mean(dim=(1, 2, 3)),
        x.diff(dim=-1).abs().mean(dim=(1, 2, 3))]) for x in stacks)
    error = (a.var(dim=1) / a.shape[1] + b.var(dim=1) / b.shape[1]).sqrt()
    assert ((a.mean(dim=1) - b.mean(dim=1)).abs() / error).max() < 4


@pytest.mark.parametrize('settings, message', [
    (dict(color_jitter=.4), 'does not know ColorJitter: .*Leave it out'),
    (dict(auto_augment='3a'), 'does not know AutoAugment: '),
    (dict(train_crop_mode='pad'), 'does not know Resize: '),
    (dict(auto_augment='rand-m9-t3a'), 'does not know the operation Desaturate: '),
    (dict(interpolation='lanczos'), 'give one of them as --train-interpolation'),
])
def test_what_is_not_known_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        opencv.to_opencv(train_transform((3, 32, 32), **{'color_jitter': None, **settings}))


def test_missing_package_is_one_error(monkeypatch):
    monkeypatch.setitem(sys.modules, 'cv2', None)
    monkeypatch.delitem(sys.modules, 'timm_deitlt.data.opencv')
    with pytest.raises(ValueError, match='pip install opencv-python-headless'):
        build_train_transform(parse_args(['--augment-backend', 'opencv']), {
            'input_size': (3, 32, 32), 'interpolation': 'bicubic', 'mean': (.5,) * 3})
