"""Arrays instead of Pillow's images: the same draws, nearly the same pixels."""
import random
import sys

import cv2
import numpy as np
import pytest
import torch
from helpers import settings_of
from PIL import Image
from timm.data.auto_augment import AugmentOp

from timm_deitlt.data import opencv
from timm_deitlt.data.augment import posterize, train_transform
from timm_deitlt.data.seeds import seed_everything
from timm_deitlt.run.build.loaders import build_train_transform

RECIPE = dict(auto_augment='rand-m9-mstd0.5-inc1', color_jitter=None, interpolation='bicubic')


def pictures(count, size=(32, 32), mode='RGB', grain=6):
    """Photographs of a kind: noise, blurred by being enlarged from `grain` pixels a side."""
    rng = np.random.default_rng(0)
    shape = (grain, grain) if mode == 'L' else (grain, grain, 3)
    return [
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
        for _ in range(count)]


def array(image):
    return np.array(image).reshape(*image.size[::-1], -1)


def difference(name, image, level=9., draws=40):
    """Mean difference from Pillow's image, in levels, and the largest."""
    found = []
    for draw in range(draws):
        op = AugmentOp(name, prob=1., magnitude=level, hparams={
            'magnitude_std': level / 3, 'magnitude_max': 30 if level > 10 else None, 'translate_const': 30,
            'img_mean': (128,) if image.mode == 'L' else (120, 130, 140),
            'interpolation': (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)})
        if image.mode == 'L':
            op.kwargs['fillcolor'] = 128
        if name.startswith('Posterize'):
            op.aug_fn = posterize
        seed_everything(0, draw)
        expected = array(op(image)).astype(int)
        state = random.getstate()
        op.aug_fn = opencv.OPERATIONS[name]
        seed_everything(0, draw)
        actual = op(array(image)).astype(int)
        assert random.getstate() == state, 'as many draws'
        assert actual.shape == expected.shape
        found.append(np.abs(actual - expected))
    return np.mean(found), np.max(found)


@pytest.mark.parametrize('mode', ['RGB', 'L'])
@pytest.mark.parametrize('name', opencv.OPERATIONS)
def test_each_operation_makes_pillows_image(name, mode):
    mean, largest = difference(name, *pictures(1, (72, 48), mode))
    if name == 'Rotate':
        assert mean < 1.5
    elif name[:5] in ('Shear', 'Trans', 'Color', 'Sharp'):  # a rounding, in Color of the grey image too
        assert mean < .6 and largest <= 1 + name.startswith('Color')
    else:
        assert largest == 0


@pytest.mark.parametrize('name', ['ShearX', 'ShearY', 'TranslateX', 'TranslateY', 'TranslateXRel', 'TranslateYRel'])
def test_what_is_moved_out_of_the_picture_is_filled(name):
    mean, largest = difference(name, *pictures(1, (20, 28)), level=28.)
    assert mean < .6 and largest <= 1


def test_sharpness_leaves_the_border_of_a_grainy_picture():
    mean, largest = difference('Sharpness', *pictures(1, (24, 24), grain=24))
    assert mean < .6 and largest <= 1


@pytest.mark.parametrize('size, settings', [
    ((32, 32), {}), ((96, 80), {}), ((32, 32), dict(auto_augment='rand-m25-mmax30-inc1', interpolation='random')),
    ((32, 32), dict(scale=(.001, .01))), ((32, 32), dict(vflip=.5, cutout=9))])
def test_whole_transform_makes_the_same_images_by_the_same_seeds(size, settings):
    pillow = train_transform((3, *size), **{**RECIPE, **settings})
    arrays = opencv.to_opencv(pillow)
    differences, spread = [], []
    for index, image in enumerate(pictures(200)):
        seed_everything(1, index)
        expected = pillow(image).float()
        state = random.getstate(), torch.get_rng_state()
        seed_everything(1, index)
        actual = arrays(image)
        assert actual.dtype == torch.uint8 and actual.shape == (3, *size)
        assert random.getstate() == state[0] and torch.equal(torch.get_rng_state(), state[1]), 'as many draws'
        differences.append((actual.float() - expected).abs().mean().item())
        spread.append(expected.std().item())
    assert np.mean(differences) < 1. and np.quantile(differences, .95) < 3.
    assert np.mean(spread) > 20 or 'scale' in settings


def test_a_process_has_one_thread():
    assert cv2.getNumThreads() == 1


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
    (dict(color_jitter=.4), r'not ColorJitter \(--color-jitter\): leave out the flag'),
    (dict(auto_augment='3a'), r'not AutoAugment \(--aa\)'),
    (dict(train_crop_mode='pad'), r'not Resize \(--train-crop-mode, --no-aug\)'),
    (dict(auto_augment='rand-m9-t3a'), 'does not have the operation Desaturate: '),
    (dict(interpolation='lanczos'), 'give one of them as --train-interpolation'),
])
def test_what_is_not_known_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        opencv.to_opencv(train_transform((3, 32, 32), **{'color_jitter': None, **settings}))


def test_missing_package_is_one_error(monkeypatch):
    monkeypatch.setitem(sys.modules, 'cv2', None)
    monkeypatch.delitem(sys.modules, 'timm_deitlt.data.opencv')
    with pytest.raises(ValueError, match='pip install opencv-python-headless'):
        build_train_transform(settings_of('--augment-backend', 'opencv').augment, {
            'input_size': (3, 32, 32), 'interpolation': 'bicubic', 'mean': (.5,) * 3})
