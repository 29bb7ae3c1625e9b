"""Batches that are augmented on the device: of sets in memory, and of sets that the host reads."""
import random

import numpy as np
import pytest
import torch
from helpers import CLASSES, HALF, Pictures
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from timm_deitlt.data import batch_ops, device_loader, erasing, on_device
from timm_deitlt.data.augment import BatchAugment, train_transform, weak_transform
from timm_deitlt.data.device_loader import DeviceLoader
from timm_deitlt.data.factory import create_dataset
from timm_deitlt.data.held import pixel_table
from timm_deitlt.data.loader import TrainLoader
from timm_deitlt.data.multi_scale import SizeSchedule
from timm_deitlt.data.on_device import to_device
from timm_deitlt.data.ramp import AugmentationRamp


class InMemory(Pictures):
    """Noise that says that it is in memory."""

    @property
    def data(self):
        return self.pixels


def view(size=16, **settings):
    settings = {'auto_augment': 'rand-m9-mstd0.5-inc1', 'color_jitter': None, **settings}
    return to_device(train_transform((3, size, size), **settings))


def loader(kind=InMemory, views=1, seed=0, sizes=None, **options):
    options = dict(batch_size=4, grad_accum_steps=2) | options
    transforms = [[view(size), to_device(weak_transform((3, size, size)))][:views] for size in (
        sizes.sizes if sizes else [16])]
    return DeviceLoader(kind(22), transforms, (.1, .5, .7), (.3, .5, .9), seed=seed, sizes=sizes, **options)


def batches(made, epoch=1):
    return [batch for group in made.epoch(epoch) for batch in group]


def equal(a, b):
    return len(a) == len(b) and all(
        x[0] == y[0] and torch.equal(x[1], y[1]) and torch.equal(x[2], y[2]) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize('kind', [InMemory, Pictures])
def test_batches_depend_on_seed_and_epoch_alone(kind):
    reference = batches(loader(kind))
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)
    assert equal(reference, batches(loader(kind)))
    assert equal(reference, batches(loader(kind, workers=2)))
    assert not equal(reference, batches(loader(kind), epoch=2))
    assert not equal(reference, batches(loader(kind, seed=1)))
    again = loader(kind)
    batches(again, epoch=0)
    assert equal(reference, batches(again)), 'as in a run that was not resumed'


@pytest.mark.parametrize('kind', [InMemory, Pictures])
def test_rank_computes_its_share_of_the_same_batches(kind):
    whole = {plan.number: images for plan, images, _ in batches(loader(kind))}
    seen = set()
    for rank in range(2):
        for plan, images, _ in batches(loader(kind, grad_accum_steps=1, world_size=2, rank=rank)):
            assert torch.equal(images, whole[plan.number])
            seen.add(plan.number)
    assert seen == set(whole)


@pytest.mark.parametrize('kind', [InMemory, Pictures])
def test_images_are_normalised_and_have_their_labels(kind):
    mean, std = torch.tensor([.1, .5, .7]), torch.tensor([.3, .5, .9])
    for plan, images, target in batches(loader(kind, views=2, dtype=torch.bfloat16)):
        assert images.dtype == torch.bfloat16 and len(images) == 2 * len(plan.indices)
        assert target.tolist() == [index % CLASSES for index in plan.indices] * 2
    for _, images, _ in batches(loader(kind)):
        pixels = 255 * (images * std[:, None, None] + mean[:, None, None])
        assert torch.allclose(pixels, pixels.round(), atol=1e-3) and pixels.min() > -.1 and pixels.max() < 255.1


def test_images_without_augmentation_are_those_of_the_set():
    still = dict(scale=(1., 1.), ratio=(1., 1.), hflip=0., auto_augment=None)
    made = DeviceLoader(InMemory(9), [[view(**still)]], HALF, HALF, batch_size=4)
    for plan, images, target in batches(made):
        expected = made.dataset.batch(plan.indices)
        assert torch.allclose(images, expected[0], atol=1e-6) and torch.equal(target, expected[1])


def test_what_the_host_reads_has_the_crops_and_flips_of_other_backends():
    plain = train_transform((3, 8, 8), color_jitter=None, vflip=.5)
    ours = DeviceLoader(Pictures(22), [[to_device(plain)]], HALF, HALF, batch_size=4)
    theirs = TrainLoader(Pictures(22), [[plain]], HALF, HALF, batch_size=4)
    for (_, images, _), (_, expected, _) in zip(batches(ours), batches(theirs), strict=True):
        assert torch.allclose(images, expected, atol=1e-6)


@pytest.mark.parametrize('kind', [InMemory, Pictures])
def test_each_update_has_its_image_size(kind):
    sizes = SizeSchedule((8, 16), seed=0)
    made = loader(kind, views=2, sizes=sizes)
    sides = [{images.shape[-1] for _, images, _ in group} for group in made.epoch(1)]
    assert sides == [{sizes.sizes[sizes.choice(1, update)]} for update in range(made.updates_per_epoch)]
    assert set.union(*sides) == {8, 16}


@pytest.mark.parametrize('kind', [InMemory, Pictures])
def test_augmentation_rises_too(kind):
    made, weak = loader(kind), loader(kind)
    augment = BatchAugment(re_prob=.5, batched=True)
    ramp = AugmentationRamp(4, made.transforms[0], augment)
    ramp.set_epoch(1)
    assert augment.erase.probability == .5 / 4
    assert {op.magnitude for op in made.transforms[0][0].transforms[1].ops} == {9 / 4}
    ramp.set_epoch(0)
    for op in weak.transforms[0][0].transforms[1].ops:
        op.prob = 0.
    assert equal(batches(made), batches(weak)) and not equal(batches(made), batches(loader(kind)))


def test_only_sets_in_memory_with_one_size_lie_on_the_device(tmp_path):
    digits = create_dataset('lt/digits')
    pixels, labels = pixel_table(digits)
    assert pixels.shape == (568, 3, 8, 8) and labels.tolist() == digits.targets.tolist()
    assert np.array_equal(pixels[7].permute(1, 2, 0).numpy(), np.asarray(digits[7][0]))
    assert pixel_table(create_dataset('lt/digits', in_chans=1))[0].shape == (568, 1, 8, 8)
    for number, size in enumerate([(6, 4), (6, 4), (6, 4), (6, 5)]):
        folder = tmp_path / 'ab'[number % 2]
        folder.mkdir(exist_ok=True)
        Image.new('RGB', size).save(folder / f'{number}.png')
    folders = create_dataset('', tmp_path)
    assert pixel_table(folders) is None, 'not held'
    assert folders.hold(1e6) and pixel_table(folders) is None, 'of two sizes'
    assert pixel_table(folders.subset([0, 1]))[0].shape == (2, 3, 4, 6)


class Crossings(TorchDispatchMode):
    """Counts copies between host and device."""
    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        kinds = [[leaf.device.type for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)] for tree in (
            (args, kwargs), result)]
        self.count += 'meta' in kinds[1] and 'cpu' in kinds[0]
        return result


def test_nothing_goes_to_the_device_but_what_is_sent_without_waiting(monkeypatch):
    sent = []
    for module in (batch_ops, device_loader, erasing, on_device):
        monkeypatch.setattr(module, 'send', lambda tensor, device: sent.append(tensor) or tensor.to(device))
    made, erase = loader(views=2, device='meta'), erasing.BatchErasing(.9, mode='pixel')  # asking it for a value raises
    with Crossings() as crossings:
        for _, images, _ in batches(made):
            erase(images)
    assert crossings.count == len(sent) > 6 * len(batches(made))


@pytest.mark.parametrize('kind, workers', [(InMemory, 0), (Pictures, 2)])
def test_loader_processes_start_where_images_are_read(kind, workers):
    made = loader(kind, workers=2)
    assert made.workers == workers and made.in_memory == (kind is InMemory)
    assert 0 < made.seconds_per_image() < 1
