"""What the student sees and what the teacher sees of the same image."""
import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import Mixup
from timm.data.auto_augment import rand_augment_transform
from torchvision import transforms
from torchvision.transforms import functional as vision

from timm_deitlt.data.augment import (
    BatchAugment,
    Cutout,
    GaussianBlur,
    key_transform,
    posterize,
    train_transform,
    weak_transform,
)
from timm_deitlt.data.seeds import seed_everything

GREYS = torch.linspace(0.1, 0.8, 8)


def constant_images(size=8):
    """Images of one grey each `[8, 3, size, size]`."""
    return GREYS.view(8, 1, 1, 1).expand(8, 3, size, size).clone()


def photo(size=48):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    'policy', ['rand-m9-mstd0.5-inc1', 'rand-m10-inc1', 'v0r', '3a', 'original', 'augmix-m10-mstd3'])
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


def steps(transform):
    return [type(step).__name__ for step in transform.transforms]


def test_cifar10_policy_stands_in_the_place_of_timms_and_all_else_is_unchanged():
    for kwargs in (dict(), dict(train_crop_mode='pad', grayscale_prob=.1)):
        timms = steps(train_transform((3, 32, 32), auto_augment='v0', **kwargs))
        ours = train_transform((3, 32, 32), auto_augment='cifar10', **kwargs)
        # timm jitters no colours under a policy
        assert steps(ours) == timms
        policy = next(step for step in ours.transforms if type(step) is transforms.AutoAugment)
        assert policy.policy == transforms.AutoAugmentPolicy.CIFAR10


def test_cifar10_policy_changes_most_images_and_fills_in_grey():
    seed_everything(0)
    transform = train_transform((3, 32, 32), scale=(1., 1.), ratio=(1., 1.), hflip=0., auto_augment='cifar10')
    image = photo(32)
    seen = [transform(image) for _ in range(200)]
    assert all(x.shape == (3, 32, 32) and x.dtype == torch.uint8 for x in seen)
    assert sum(not torch.equal(x, vision.pil_to_tensor(image)) for x in seen) > 120
    # moved far to a side, a black image shows what it is filled with: 3 of the 25 pairs do nothing but move it
    black = [transform(Image.new('RGB', (32, 32))) for _ in range(500)]
    moved = [x for x in black if set(x.unique().tolist()) == {0, 128}]
    assert len(moved) > 20
    assert max((x == 128).float().mean().item() for x in moved) > .4


def test_colours_are_jittered_under_a_policy_where_forced_and_once_only():
    for policy in ('cifar10', 'rand-m9-n2', '3a'):
        names = steps(train_transform((3, 32, 32), auto_augment=policy, force_color_jitter=True))
        augment = next(i for i, name in enumerate(names) if name.endswith('Augment'))
        assert names[augment - 1] == 'ColorJitter' and names.count('ColorJitter') == 1
    drawn = train_transform((3, 32, 32), auto_augment='cifar10', force_color_jitter=True, color_jitter_prob=.8)
    assert 'RandomApply' in steps(drawn) and 'ColorJitter' not in steps(drawn)
    for policy, jitter in (('cifar10', 0), ('rand-m9-n2', 0), (None, 1)):
        assert steps(train_transform((3, 32, 32), auto_augment=policy)).count('ColorJitter') == jitter
    assert steps(train_transform((3, 32, 32), force_color_jitter=True)).count('ColorJitter') == 1


@pytest.mark.parametrize('side', [1, 7, 16])
def test_every_image_loses_one_square_whose_centre_is_uniform(side):
    seed_everything(0)
    transform = train_transform((3, 20, 24), 'pad', hflip=0., color_jitter=None, cutout=side)
    white = Image.new('RGB', (24, 20), (255, 255, 255))
    transform.transforms = [step for step in transform.transforms if not isinstance(step, transforms.RandomCrop)]
    tops, lefts = [], []
    for _ in range(600):
        image = transform(white)
        assert image.dtype == torch.uint8 and set(image.unique().tolist()) == {0, 255}
        rows, columns = (image[0] == 0).nonzero().unbind(1)
        height, width = (len(x.unique()) for x in (rows, columns))
        assert len(rows) == height * width and (image == 0).sum() == 3 * len(rows), 'a rectangle, in all channels'
        top, left, bottom, right = rows.min().item(), columns.min().item(), rows.max().item(), columns.max().item()
        # a side is shorter only where the border cuts it off, and half of it always remains
        for length, start, end, size in ((height, top, bottom, 20), (width, left, right, 24)):
            assert length == side or start == 0 or end == size - 1
            assert side // 2 <= length <= side or side == length == 1
        tops.append(bottom + 1 - side if top == 0 else top)
        lefts.append(right + 1 - side if left == 0 else left)
    for starts, size in ((tops, 20), (lefts, 24)):
        centres = torch.tensor(starts) + side // 2
        counts = torch.bincount(centres, minlength=size)
        assert len(counts) == size, 'every pixel of the image can be the centre, and no other'
        assert counts.min() > 0 and counts.max() < 3 * 600 / size


def test_hole_is_the_last_step_and_leaves_the_image_it_is_given_alone():
    names = steps(train_transform((3, 32, 32), 'pad', auto_augment='cifar10', cutout=16))
    assert names == [
        'Resize', 'RandomCrop', 'RandomHorizontalFlip', 'AutoAugment', 'MaybePILToTensor', 'Cutout']
    image = torch.ones(3, 8, 8)
    assert (Cutout(4)(image) == 0).any() and image.all()
    for kwargs in (dict(), dict(cutout=16, no_aug=True)):
        assert 'Cutout' not in steps(train_transform((3, 32, 32), **kwargs))
    with pytest.raises(ValueError, match='--cutout -1 is out of range'):
        train_transform((3, 32, 32), cutout=-1)


def test_a_place_in_the_run_decides_policy_hole_and_key_view():
    strong = train_transform((3, 32, 32), 'pad', auto_augment='cifar10', cutout=16)
    for transform in (strong, key_transform((3, 32, 32))):
        views = []
        for place in (1, 2, 1):
            seed_everything(place)
            views.append(torch.stack([transform(photo()) for _ in range(5)]))
        assert torch.equal(views[0], views[2]) and not torch.equal(views[0], views[1])


@pytest.mark.parametrize('size', [8, 28, 32, 224])
def test_key_view_has_the_asked_size_and_varies(size):
    seed_everything(0)
    seen = [key_transform((3, size, size))(photo()) for _ in range(12)]
    assert all(x.shape == (3, size, size) and x.dtype == torch.uint8 for x in seen)
    assert len({x.sum().item() for x in seen}) == 12


def test_key_view_is_that_of_the_released_training():
    names = steps(key_transform((3, 32, 32)))
    assert names == [
        'RandomResizedCropAndInterpolation', 'RandomHorizontalFlip', 'RandomApply', 'RandomGrayscale', 'RandomApply',
        'MaybePILToTensor']
    crop, _, jitter, grey, blur, _ = key_transform((3, 32, 32)).transforms
    assert crop.scale == (.2, 1.) and grey.p == .2
    assert jitter.p == .8 and jitter.transforms[0].hue == (-.1, .1) and jitter.transforms[0].saturation == (.6, 1.4)
    assert blur.p == .5 and isinstance(blur.transforms[0], GaussianBlur)
    inat = key_transform((3, 224, 224), scale=(.08, 1.), color_jitter=(.4, .4, .4), color_jitter_prob=None)
    assert inat.transforms[0].scale == (.08, 1.) and inat.transforms[2].hue is None


def test_key_view_is_grey_and_blurred_as_often_as_asked():
    seed_everything(0)
    options = dict(scale=(1., 1.), color_jitter=None)
    plain = dict(grayscale_prob=0., gaussian_blur_prob=0., hflip=0.)
    grey = key_transform((3, 32, 32), **{**options, **plain, 'grayscale_prob': .2})
    share = sum(bool((x[0] == x[2]).all()) for x in (grey(photo(32)) for _ in range(500))) / 500
    assert share == pytest.approx(.2, abs=.06)
    blur = key_transform((3, 32, 32), **{**options, **plain, 'gaussian_blur_prob': .5})
    sharpness = [vision.to_pil_image(blur(photo(32))).convert('L') for _ in range(200)]
    spread = np.array([np.asarray(image).std() for image in sharpness])
    full = np.asarray(photo(32).convert('L')).std()
    # a radius of 0.5 and more takes at least a quarter of the contrast of noise
    assert np.mean(spread < .75 * full) == pytest.approx(.5 * 1.5 / 1.9, abs=.12)


def test_blur_of_our_own_is_torchvisions_away_from_the_border(monkeypatch):
    monkeypatch.setattr(torch.Tensor, 'uniform_', lambda self, low, high: self.fill_(1.5))
    image = photo(64)
    ours = np.asarray(GaussianBlur()(image)).astype(float)
    theirs = np.asarray(vision.gaussian_blur(image, 23, [1.5, 1.5])).astype(float)
    assert abs(ours - theirs)[12:-12, 12:-12].mean() < 1.5
    assert abs(theirs - np.asarray(image)).mean() > 40


@pytest.mark.parametrize('transform', [
    lambda hflip: key_transform((3, 32, 32), hflip=hflip, color_jitter=None, gaussian_blur_prob=0., grayscale_prob=0.),
    lambda hflip: train_transform((3, 32, 32), 'pad', hflip=hflip, color_jitter=None, cutout=4),
])
def test_nothing_is_mirrored_without_hflip(transform):
    seed_everything(0)
    ramp = Image.fromarray(np.tile(np.arange(0, 256, 8, dtype=np.uint8)[None, :, None], (32, 1, 3)))

    def falls(image):
        return image[0, :, 16:28].float().mean() < image[0, :, 4:16].float().mean()

    assert not any(falls(transform(0.)(ramp)) for _ in range(100))
    assert 30 < sum(bool(falls(transform(.5)(ramp))) for _ in range(100)) < 70


@pytest.mark.parametrize(('mode', 'channels'), [('L', 1), ('RGB', 3), ('RGBA', 4)])
def test_key_view_takes_images_of_any_mode(mode, channels):
    seed_everything(0)
    transform = key_transform((channels, 28, 28), color_jitter_prob=None, gaussian_blur_prob=1.)
    for _ in range(50):
        assert transform(photo(28).convert(mode)).shape == (channels, 28, 28)
    jitter = next(step for step in transform.transforms if isinstance(step, transforms.ColorJitter))
    assert jitter.brightness == jitter.contrast == (.6, 1.4)
    assert (jitter.saturation is None) == (jitter.hue is None) == (mode != 'RGB')


def test_cifar10_policy_takes_grey_images_and_refuses_four_channels():
    seed_everything(0)
    transform = train_transform((1, 28, 28), 'pad', auto_augment='cifar10', cutout=14)
    for _ in range(200):
        assert transform(photo(28).convert('L')).shape == (1, 28, 28)
    with pytest.raises(ValueError, match='not images of 4 channels'):
        train_transform((4, 28, 28), auto_augment='cifar10')


def test_four_channels_are_augmented_without_what_pillow_has_for_colours_only():
    seed_everything(0)
    transform = train_transform(
        (4, 28, 28), auto_augment='rand-m9-mstd0.5-inc1', grayscale_prob=1., mean=(.5,) * 4)
    colour = torch.tensor([200., 30, 120, 77])[:, None, None]
    jittered = train_transform((4, 28, 28), color_jitter=(.4, .4, .4, .1))
    image = Image.new('RGBA', (28, 28), (200, 30, 120, 77))
    for _ in range(50):
        pixels = transform(image)
        assert pixels.shape == (4, 28, 28) and (pixels - colour).abs().max() <= 2, 'it has changed by rounding only'
        assert (jittered(image)[3] == 77).all(), 'alpha is no colour'


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
