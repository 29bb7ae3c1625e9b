"""What the student sees and what the teacher sees of the same image."""
import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import Mixup
from timm.data.auto_augment import rand_augment_transform
from torchvision import transforms

from timm_deitlt.data.augment import BatchAugment, posterize, train_transform, weak_transform

GREYS = torch.linspace(0.1, 0.8, 8)


def constant_images(size=8):
    """Images of one grey each `[8, 3, size, size]`."""
    return GREYS.view(8, 1, 1, 1).expand(8, 3, size, size).clone()


def photo(size=48):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))


@pytest.mark.parametrize('policy', ['rand-m9-mstd0.5-inc1', 'rand-m10-inc1', 'v0r', '3a', 'original'])
def test_every_policy_survives_every_magnitude(policy):
    random.seed(0)
    np.random.seed(0)
    transform = train_transform((3, 32, 32), auto_augment=policy, scale=(.5, 1.), color_jitter=None)
    for _ in range(300):
        out = transform(photo(32))
        assert out.shape == (3, 32, 32)
        assert out.dtype == torch.uint8


@pytest.mark.parametrize('magnitude', range(11))
def test_posterize_of_every_magnitude_keeps_the_bits_that_timm_asks_for(magnitude):
    bits = 4 - int(magnitude / 10 * 4)
    ops = rand_augment_transform(f'rand-m{magnitude}-n1-p1.0-inc1', {}).ops
    op = next(op for op in ops if op.name == 'PosterizeIncreasing')
    assert op.level_fn(magnitude, op.hparams) == (bits,), 'timm changed its posterize levels'
    image = photo(16)
    expected = np.asarray(image) & ((0xff << (8 - bits)) & 0xff)
    assert np.array_equal(np.asarray(posterize(image, bits)), expected)


def test_mended_posterize_is_the_one_in_the_transform_and_timm_is_untouched():
    from timm.data import auto_augment
    transform = train_transform((3, 32, 32), auto_augment='rand-m9-inc1', color_jitter=None)
    augment = next(t for t in transform.transforms if type(t).__name__ == 'RandAugment')
    assert [op.aug_fn for op in augment.ops if op.name.startswith('Posterize')] == [posterize]
    assert auto_augment.NAME_TO_OP['PosterizeIncreasing'] is not posterize


def test_padded_crop_is_cifars_weak_augmentation():
    transform = train_transform((3, 32, 32), 'pad', hflip=.5, color_jitter=None)
    crop = next(t for t in transform.transforms if isinstance(t, transforms.RandomCrop))
    assert tuple(crop.size) == (32, 32)
    assert tuple(crop.padding) == (4, 4)
    shifts = set()
    dot = np.zeros((32, 32, 3), dtype=np.uint8)
    dot[16, 16] = 255
    for _ in range(300):
        y, x = (transform(Image.fromarray(dot))[0] == 255).nonzero()[0].tolist()
        shifts.add(y - 16)
    assert shifts == set(range(-4, 5))


def test_weak_view_is_never_augmented_strongly():
    torch.manual_seed(0)
    grey = Image.new('RGB', (20, 20), (100, 100, 100))
    for _ in range(50):
        values = set(weak_transform((3, 32, 32))(grey).unique().tolist())
        assert values <= {0, 100}, 'crop padding and the image itself are all there is'


def test_unknown_crop_mode_names_the_allowed_ones():
    with pytest.raises(ValueError, match='rrc, rkrc, rkrr, pad'):
        train_transform((3, 32, 32), 'centre')


@pytest.mark.parametrize('mode', ['batch', 'pair', 'elem'])
@pytest.mark.parametrize('kind', ['mixup', 'cutmix'])
def test_both_views_are_mixed_with_the_same_lambda_box_and_partner(mode, kind):
    np.random.seed(0)
    mixup = Mixup(
        mixup_alpha=.8 if kind == 'mixup' else 0., cutmix_alpha=1. if kind == 'cutmix' else 0., mode=mode,
        label_smoothing=0., num_classes=8)
    student = constant_images()
    weak = student + 10  # a view of its own: the same greys, moved by 10
    views = BatchAugment(mixup)(torch.cat([student, weak]), torch.arange(8).repeat(2), num_views=2)
    assert torch.allclose(views.weak - views.student, torch.full_like(student, 10.), atol=1e-5)
    # the share of the partner's grey is its weight in the target
    for i in range(8):
        expected = (views.target[i] * GREYS).sum()
        assert torch.isclose(views.student[i].mean(), expected, atol=1e-4)


def test_no_weak_pixel_is_erased_and_mixing_comes_after_erasing():
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    student = constant_images(16)
    weak = student + 10
    augment = BatchAugment(re_prob=1., re_mode='const')
    views = augment(torch.cat([student, weak]), torch.arange(8).repeat(2), num_views=2)
    assert all((views.student[i] == 0).any() for i in range(8)), 'every student image loses a box'
    assert torch.equal(views.weak, constant_images(16) + 10)
    assert torch.equal(views.target, torch.arange(8))

    mixed = BatchAugment(Mixup(num_classes=8), re_prob=1., re_mode='const')(
        torch.cat([constant_images(16), weak]), torch.arange(8).repeat(2), num_views=2)
    for i in range(8):
        expected = (10 + (mixed.target[i] - .1 / 8) / .9 @ GREYS)
        assert torch.isclose(mixed.weak[i].mean(), expected, atol=1e-4)


def test_mixing_can_be_switched_off_and_labels_are_then_hard():
    augment = BatchAugment(Mixup(num_classes=8))
    augment.mixup_enabled = False
    images = constant_images()
    views = augment(images.clone(), torch.arange(8))
    assert torch.equal(views.student, images)
    assert torch.equal(views.target, torch.arange(8))
    assert views.weak is None
