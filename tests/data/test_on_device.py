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
from torchvision.transforms import functional as TF

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
    mean, largest = difference(name, pictures(40, (72, 48), mode))
    if name in MOVES:  # torch's bicubic kernel is another one
        assert mean < .3 and largest <= 4
        mean, largest = difference(name, pictures(40, (72, 48), mode), resample=Image.Resampling.BILINEAR)
    assert mean < .02 and largest <= 1


@pytest.mark.parametrize('name', [*PIXEL_OPERATIONS, *MOVES])
def test_strong_operations_on_small_grainy_images_are_pillows_too(name):
    mean, largest = difference(
        name, pictures(40, (24, 20), grain=24), level=28., resample=Image.Resampling.BILINEAR)
    assert mean < .05 and largest <= (5 if name.startswith('Color') else 1)  # colours amplify a rounding of the grey


def sample(transform, images, seed, batched):
    """Final images of all `images`, uint8 `[B, C, H, W]`."""
    seed_everything(seed)
    return transform(batch(images)) if batched else torch.stack([transform(image) for image in images])


def distances(a, b):
    """Distances of the means of some statistics of two samples of images, in standard errors."""
    def statistics(x):
        x = x.float()
        return torch.stack([
            x.mean(dim=(1, 2, 3)), x.std(dim=(1, 2, 3)), (x == 0).float().mean(dim=(1, 2, 3)), x[:, 0].mean(dim=(1, 2)),
            x.diff(dim=-1).abs().mean(dim=(1, 2, 3)), x.diff(dim=-2).abs().mean(dim=(1, 2, 3)),
            x[..., :x.shape[-1] // 2].mean(dim=(1, 2, 3)) - x[..., x.shape[-1] // 2:].mean(dim=(1, 2, 3))])
    a, b = statistics(a), statistics(b)
    error = (a.var(dim=1) / a.shape[1] + b.var(dim=1) / b.shape[1]).sqrt()
    return (a.mean(dim=1) - b.mean(dim=1)).abs() / error.clamp_min(1e-9)


@pytest.mark.parametrize('settings', [
    {}, dict(auto_augment='rand-m5-n3-p1-mstd101', interpolation='random', vflip=.3),
    dict(auto_augment='rand-m9-mstd0.5-tweights', hflip=0.), dict(auto_augment='rand-m9-inc1', force_color_jitter=True,
                                                                  color_jitter=.4),
    dict(auto_augment=None, color_jitter=(.3, 0., .8)), dict(auto_augment=None, train_crop_mode='pad')])
def test_statistics_of_many_images_are_timms(settings):
    pillow = train_transform((3, 24, 24), **{**RECIPE, **settings})
    images = [image for image in pictures(30, (28, 28)) for _ in range(30)]
    found = distances(sample(pillow, images, 1, False), sample(to_device(pillow), images, 2, True))
    assert found.max() < 4
    assert settings or distances(
        sample(pillow, images, 3, False), sample(weak_transform((3, 24, 24)), images, 4, False)).max() > 8


@pytest.mark.parametrize('shape, scale', [((32, 32), (.08, 1.)), ((20, 60), (.5, 1.)), ((60, 20), (.9, 1.))])
def test_boxes_are_timms(shape, scale):
    step = train_transform((3, 24, 24), scale=scale).transforms[0]
    image = Image.new('RGB', shape[::-1])
    seed_everything(0)
    timms = torch.tensor([step.get_params(image, step.scale, step.ratio) for _ in range(4000)]).T.float()
    rows, columns = to_device(train_transform((3, 24, 24), scale=scale)).transforms[0].place(4000, shape)
    ours = torch.stack([rows[0], columns[0], rows[3] - rows[2], columns[3] - columns[2]])
    error = ((timms.var(dim=1) + ours.var(dim=1)) / 4000).sqrt().clamp_min(1e-9)
    assert ((timms.mean(dim=1) - ours.mean(dim=1)).abs() / error).max() < 4
    assert torch.equal(timms.amax(dim=1), ours.amax(dim=1)) or scale[0] == .08
    assert (timms.std(dim=1) - ours.std(dim=1)).abs().max() < .6


@pytest.mark.parametrize('mode', ['bilinear', 'bicubic'])
@pytest.mark.parametrize('size', [24, 80])  # shrunk, with a filter that widens, and enlarged
def test_crops_are_pillows(mode, size):
    step = train_transform((3, size, size), hflip=0., interpolation=mode).transforms[0]
    crop = to_device(train_transform((3, size, size), hflip=0., interpolation=mode)).transforms[0]
    images = pictures(20, (72, 48))
    places = crop.place(len(images), (48, 72))
    crop.place = lambda *_: places
    boxes = torch.stack([places[0][0], places[1][0], places[0][3] - places[0][2], places[1][3] - places[1][2]], dim=1)
    pillow = batch([TF.resized_crop(image, *map(int, box), [size, size], step.interpolation) for image, box in zip(
        images, boxes, strict=True)])
    found = (crop(batch(images)).int() - pillow.int()).abs()
    assert found.max() <= 2 and found.float().mean() < .3


def test_padded_crop_and_flips_are_pillows():
    images = pictures(300, (32, 20))
    crop = to_device(train_transform((3, 16, 16), 'pad', interpolation='bicubic', color_jitter=None)).transforms[0]
    places = crop.place(len(images), (20, 32))
    crop.place = lambda *_: places
    made = crop(batch(images))
    resize, padded = crop.parts[:2]
    flipped = 0
    for image, ours, top, left in zip(images, made, places[0][0], places[1][0], strict=True):
        whole = TF.pad(resize(image), padded.padding)
        corner = round(float(top) * 16 / 20) + 2, round(float(left) * 16 / 20) + 2
        expected = TF.pil_to_tensor(TF.crop(whole, *corner, 16, 16)).int()
        straight, mirrored = ((ours.int() - x).abs().max() <= 2 for x in (expected, expected.flip(-1)))
        assert straight or mirrored
        flipped += not straight
    assert 110 < flipped < 190


def test_an_empty_crop_is_black():
    view = to_device(train_transform((3, 24, 24), scale=(1e-6, 1e-5), color_jitter=None))
    assert not view(batch(pictures(4))).any()


def test_draws_are_the_same_on_every_device_and_nothing_waits_for_it():
    view = to_device(train_transform((3, 16, 16), vflip=.5, force_color_jitter=True, **{**RECIPE, 'color_jitter': .4}))
    for kind in ('cpu', 'meta'):  # the second has no values that could be asked for
        seed_everything(5)
        assert view(batch(pictures(64)).to(kind)).device.type == kind
        after = random.random(), torch.rand(()), np.random.random()
        if kind == 'cpu':
            before = after
    assert before == after


def boxes_of(erase, images):
    """Share of erased images, and mean and std of the erased share, of height and of width where there is a box."""
    holes = erase(images) == 0
    holes = holes[:, 0]
    some = holes[holes.flatten(1).any(dim=1)].float()
    sides = torch.stack([some.mean(dim=(1, 2)), some.amax(dim=2).mean(dim=1), some.amax(dim=1).mean(dim=1)])
    return torch.cat([torch.tensor([len(some) / len(images)]), sides.mean(dim=1), sides.std(dim=1)])


@pytest.mark.parametrize('count', [1, 3])
def test_erased_boxes_are_timms(count):
    seed_everything(0)
    options = dict(probability=.4, max_count=count, mode='const', device='cpu')
    timms = boxes_of(RandomErasing(**options), torch.ones(6000, 1, 20, 28))
    ours = boxes_of(erasing.BatchErasing(**options), torch.ones(6000, 1, 20, 28))
    assert (timms - ours).abs().max() < .025


@pytest.mark.parametrize('mode', ['pixel', 'rand'])
def test_erased_boxes_are_filled_as_in_timm(mode):
    erased = erasing.BatchErasing(1., mode=mode)(torch.full((200, 3, 16, 16), 9.))
    filled = erased[erased != 9]
    assert filled.mean().abs() < .1 and (filled.std() - 1).abs() < .1
    inside = erased[0][:, (erased[0, 0] != 9)]
    assert len(inside[0].unique()) == (1 if mode == 'rand' else inside.shape[1]) and len(inside[:, 0].unique()) == 3


def test_of_several_boxes_the_first_that_fits_is_taken():
    height, width, fits = first_box(
        torch.tensor([[100., 12.], [8., 99.]]), torch.tensor([[1., 3.], [2., 1.]]), height=4, width=6)
    assert (height.tolist(), width.tolist(), fits.tolist()) == ([2, 2], [4, 6], [True, True])
    assert not first_box(torch.tensor([[100.]]), torch.tensor([[1.]]), 4, 6)[2]


@pytest.mark.parametrize('settings, message', [
    (dict(color_jitter=(.4, .4, .4, .1)), r'not ColorJitter \(a hue in --color-jitter'),
    (dict(auto_augment='3a'), r'not AutoAugment \(--aa\): leave out the flag'),
    (dict(auto_augment='original-mstd0.5'), r'not AutoAugment \(--aa\)'),
    (dict(auto_augment='augmix-m5-w4-d2'), r'not AugMixAugment \(--aa\)'),
    (dict(auto_augment='cifar10'), r'not AutoAugment \(--aa\)'),
    (dict(auto_augment='rand-m9-t3a'), 'does not have the operation Desaturate: '),
    (dict(train_crop_mode='rkrc'), r'not ResizeKeepRatio \(--train-crop-mode\)'),
    (dict(no_aug=True), r'not CenterCrop \(--no-aug\)'),
    (dict(cutout=4), r'not Cutout \(--cutout\)'),
    (dict(gaussian_blur_prob=.5), r'not RandomApply \(--color-jitter-prob, --gaussian-blur-prob\)'),
    (dict(interpolation='lanczos'), 'give one of them as --train-interpolation'),
])
def test_what_is_not_known_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        to_device(train_transform((3, 32, 32), **{'color_jitter': None, **settings}))


@pytest.mark.parametrize('module', [on_device, erasing])
def test_examples_in_the_documentation_run(module):
    result = doctest.testmod(module, extraglobs={'torch': torch})
    assert result.attempted and not result.failed
