"""Augmentation that rises: weak at first, the recipe's own from its last epoch on, the same wherever it is done."""
import doctest

import pytest
import torch
from helpers import HALF, SIZE, Pictures
from timm.data import Mixup

from timm_deitlt.data import ramp as ramp_module
from timm_deitlt.data.augment import BatchAugment, train_transform
from timm_deitlt.data.loader import TrainLoader
from timm_deitlt.data.ramp import AugmentationRamp
from timm_deitlt.data.seeds import seed_everything


def transform(policy='rand-m9-mstd0.5-inc1'):
    return train_transform((3, SIZE, SIZE), auto_augment=policy, color_jitter=None, mean=HALF)


def batch_augment():
    return BatchAugment(Mixup(num_classes=5), re_prob=.5, re_mode='pixel')


def epoch_of_images(epoch, length=None, policy='rand-m9-mstd0.5-inc1', workers=0):
    """Images and targets of an epoch, as the task sees them."""
    view, augment = transform(policy), batch_augment()
    loader = TrainLoader(Pictures(12), [(view,)], HALF, HALF, batch_size=4, seed=7, workers=workers)
    if length:
        AugmentationRamp(length, [view], augment).set_epoch(epoch)
    batches = []
    for group in loader.epoch(epoch):
        for plan, images, target in group:
            seed_everything(7, epoch, plan.number)
            student, _, mixed = augment(images, target) if policy else (images, None, target)
            batches.append((student, mixed))
    return batches


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_strength_rises_linearly_from_nothing_to_all():
    view, augment = transform(), batch_augment()
    operations = view.transforms[2].ops
    ramp = AugmentationRamp(4, [view], augment)
    for epoch, share in ((0, 0), (1, .25), (3, .75), (4, 1), (9, 1), (2, .5)):
        ramp.set_epoch(epoch)
        assert ramp.strength(epoch) == share
        assert {op.magnitude for op in operations} == {9 * share} and {op.prob for op in operations} == {.5 * share}
        assert augment.erase.probability == .5 * share and augment.mixup.mix_prob == share


def test_first_epoch_has_crops_and_flips_alone():
    weak = [images for images, _ in epoch_of_images(0, policy=None)]
    first = epoch_of_images(0, length=3)
    assert same(weak, [images for images, _ in first])
    assert not same(weak, [images for images, _ in epoch_of_images(0)])


@pytest.mark.parametrize('epoch', [3, 5])
def test_full_strength_is_the_recipes_own_bit_for_bit(epoch):
    for risen, plain in zip(epoch_of_images(epoch, length=3), epoch_of_images(epoch), strict=True):
        assert same(risen, plain)


def test_loader_processes_have_the_strength_of_their_epoch():
    for here, there in zip(epoch_of_images(1, length=3), epoch_of_images(1, length=3, workers=2), strict=True):
        assert same(here, there)


def test_augmentation_by_opencv_rises_too():
    opencv = pytest.importorskip('timm_deitlt.data.opencv')
    view = opencv.to_opencv(transform())
    AugmentationRamp(4, [view], BatchAugment()).set_epoch(1)
    operations = [op for step in view.transforms if hasattr(step, 'ops') for op in step.ops]
    assert operations and {op.magnitude for op in operations} == {9 / 4}


def test_examples_in_the_documentation_run():
    result = doctest.testmod(ramp_module, extraglobs={'BatchAugment': BatchAugment, 'Mixup': Mixup})
    assert result.attempted and not result.failed
