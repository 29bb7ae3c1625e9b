"""Batches as functions of seed, epoch and position."""
import collections
import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.distributed_sampler import RepeatAugSampler
from torch.utils.data import Dataset, IterableDataset

from timm_deitlt.data.augment import train_transform
from timm_deitlt.data.loader import MicroBatchSampler, TrainLoader, create_eval_loader
from timm_deitlt.data.multi_scale import SizeSchedule
from timm_deitlt.data.seeds import derive_seed


class Numbers(Dataset):
    """Image i is grey i, its class i % 3."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return Image.new('RGB', (8, 8), (index, index, index)), index % 3


class Stream(IterableDataset):
    def __init__(self, length):
        self.length, self.transform = length, None

    def __len__(self):
        return self.length

    def __iter__(self):
        for i in range(self.length):
            yield self.transform(Image.new('RGB', (8, 8), (i, i, i))), i % 3


def plans(num_images, batch_size, world_size, accum, epoch=0, **kwargs):
    """All ranks' micro-batches by update: [{number: (indices, weight)}]."""
    updates = []
    for rank in range(world_size):
        sampler = MicroBatchSampler(num_images, batch_size, accum, world_size, rank, **kwargs)
        sampler.set_epoch(epoch)
        update = 0
        for batch in sampler.plan():
            if update == len(updates):
                updates.append({})
            if batch.weight:
                assert batch.number not in updates[update], 'two ranks do the same work'
                updates[update][batch.number] = (batch.indices, batch.weight)
            update += batch.last
        assert update == sampler.updates_per_epoch
    return updates


@pytest.mark.parametrize('num_images', [96, 100, 101, 97, 33])
@pytest.mark.parametrize('repeats', [0, 3])
def test_any_number_of_ranks_makes_the_same_updates(num_images, repeats):
    one = plans(num_images, 8, 1, 4, repeats=repeats, seed=3)
    assert one == plans(num_images, 8, 2, 2, repeats=repeats, seed=3)
    assert one == plans(num_images, 8, 4, 1, repeats=repeats, seed=3)


def test_every_image_comes_once_and_weights_of_an_update_sum_to_one():
    updates = plans(101, 8, 2, 2)
    images = [index for update in updates for indices, _ in update.values() for index in indices]
    assert sorted(images) == list(range(101))
    for update in updates:
        total = sum(len(indices) for indices, _ in update.values())
        for indices, weight in update.values():
            assert weight == pytest.approx(len(indices) / total)
    assert [len(indices) for indices, _ in updates[-1].values()] == [5]


def test_odd_last_micro_batch_loses_one_image_for_mixup_only():
    assert MicroBatchSampler(101, 8, even=True).images_per_epoch == 100
    assert MicroBatchSampler(101, 8, even=False).images_per_epoch == 101
    assert MicroBatchSampler(97, 8, even=True).images_per_epoch == 96
    assert MicroBatchSampler(97, 8, even=True).updates_per_epoch == 12
    with pytest.raises(ValueError, match='leave no batch'):
        MicroBatchSampler(1, 8, even=True)


PUBLISHED = [(12406, 1024, 12), (13996, 1024, 14), (10847, 1024, 11), (12608, 1024, 13), (115846, 2048, 57), (
    437513, 2048, 214)]


@pytest.mark.parametrize(('num_images', 'global_batch', 'updates'), PUBLISHED)
@pytest.mark.parametrize('world_size', [1, 2, 4, 8])
def test_published_update_counts_on_any_number_of_devices(num_images, global_batch, updates, world_size):
    for rank in {0, world_size - 1}:
        sampler = MicroBatchSampler(
            num_images, 128, global_batch // 128 // world_size, world_size, rank, repeats=3, even=True)
        assert sampler.updates_per_epoch == updates
        assert sampler.images_per_epoch == num_images // 256 * 256


@pytest.mark.parametrize(('num_images', 'length'), [
    (100, 100), (300, 300), (568, 568), (2559, 2559), (2560, 2560), (2815, 2560), (12406, 12288)])
@pytest.mark.parametrize('world_size', [1, 2, 4, 8])
def test_repeated_augmentation_has_the_right_length_on_any_set(num_images, length, world_size):
    updates = plans(num_images, 8, world_size, 8 // world_size, repeats=3)
    views = collections.Counter(index for update in updates for indices, _ in update.values() for index in indices)
    assert sum(views.values()) == length > .9 * num_images
    assert len(updates) == -(-length // 64)
    whole, rest = divmod(length, 3)
    assert sorted(views.values()) == ([rest] if rest else []) + [3] * whole


@pytest.mark.parametrize('num_images', [600, 2600])
def test_repeated_augmentation_draws_what_timms_sampler_draws_and_spreads_views(num_images):
    sampler = MicroBatchSampler(num_images, 32, 4, repeats=3, seed=5)
    sampler.set_epoch(2)
    reference = RepeatAugSampler(
        range(num_images), num_replicas=1, rank=0, num_repeats=3, selected_round=256 if num_images == 2600 else 0)
    reference.set_epoch(derive_seed(5, 2))
    drawn = [index for batch in sampler.plan() for index in batch.indices]
    assert sorted(drawn) == sorted(reference)
    assert len(drawn) == {600: 600, 2600: 2560}[num_images]
    first = sampler.plan()[0].indices
    assert len(set(first)) == len(first), 'views of one image lie in different micro-batches'


def test_places_of_different_depth_have_different_seeds():
    paths = [(), (0,), (1,), (1, 0), (1, 0, 0), (0, 1), (2, 1), (3, 1, 0, 0), (3, 1, 0), (3, 1)]
    assert len({derive_seed(*path) for path in paths}) == len(paths)
    assert derive_seed(3, 1) == derive_seed(3, 1) < 2 ** 32


@pytest.mark.parametrize('seed', [0, 42, 2 ** 32 - 1, 2 ** 32, 2 ** 70])
def test_seeds_of_any_size_are_those_that_runs_have_always_had(seed):
    assert derive_seed(seed, 7) == np.random.SeedSequence((2, seed, 7)).generate_state(1)


def batches(epoch=1, workers=0, seed=0, views=1, **kwargs):
    dataset = Numbers(22)
    transform = train_transform((3, 8, 8), auto_augment='rand-m9-mstd0.5-inc1', color_jitter=None)
    loader = TrainLoader(
        dataset, [(transform,) * views], (.1, .5, .7), (.3, .5, .9), batch_size=4, grad_accum_steps=2, seed=seed,
        workers=workers, **kwargs)
    return [(plan, images, target) for group in loader.epoch(epoch) for plan, images, target in group]


def equal(a, b):
    return len(a) == len(b) and all(
        torch.equal(x[1], y[1]) and torch.equal(x[2], y[2]) for x, y in zip(a, b, strict=True))


def test_batches_depend_on_seed_and_epoch_alone():
    reference = batches()
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)
    assert equal(reference, batches())
    assert equal(reference, batches(workers=2))  # by timm's loader
    assert equal(batches(views=2, dtype=torch.bfloat16), batches(views=2, dtype=torch.bfloat16, workers=1))
    assert not equal(reference, batches(epoch=2))
    assert not equal(reference, batches(seed=1))


def test_rank_computes_its_share_of_the_same_batches():
    whole = {plan.number: images for plan, images, _ in batches()}
    dataset = Numbers(22)
    transform = train_transform((3, 8, 8), auto_augment='rand-m9-mstd0.5-inc1', color_jitter=None)
    for rank in range(2):
        loader = TrainLoader(
            dataset, [(transform,)], (.1, .5, .7), (.3, .5, .9), batch_size=4, world_size=2, rank=rank, seed=0)
        for group in loader.epoch(1):
            for plan, images, _ in group:
                assert torch.equal(images, whole[plan.number])


def sized(epoch, sizes, **kwargs):
    views = [(train_transform((3, size, size), color_jitter=None),) for size in sizes.sizes]
    loader = TrainLoader(Numbers(62), views, (.5,) * 3, (.5,) * 3, batch_size=4, sizes=sizes, **kwargs)
    return loader, list(loader.epoch(epoch))


def test_an_update_has_one_image_size_on_all_ranks_and_in_each_view():
    sizes = SizeSchedule((8, 16), seed=0)
    loader, whole = sized(1, sizes, grad_accum_steps=2)
    seen = [{tuple(images.shape[-2:]) for _, images, _ in group} for group in whole]
    wanted = [sizes.sizes[sizes.choice(1, update)] for update in range(loader.updates_per_epoch)]
    assert seen == [{(size, size)} for size in wanted] and len(set(wanted)) == 2
    for rank in range(2):
        _, share = sized(1, sizes, world_size=2, rank=rank)
        assert [images.shape[-1] for (_, images, _), in share] == wanted
    twice = [pair * 2 for pair in ((train_transform((3, size, size), color_jitter=None),) for size in sizes.sizes)]
    loader = TrainLoader(Numbers(62), twice, (.5,) * 3, (.5,) * 3, batch_size=4, sizes=sizes)
    assert loader.num_views == 2
    assert {tuple(images.shape[:2]) for group in loader.epoch(0) for _, images, _ in group} <= {(8, 3), (4, 3)}


def test_two_views_come_view_after_view():
    dataset = Numbers(8)
    plain = train_transform((3, 8, 8), no_aug=True)
    loader = TrainLoader(dataset, [(plain, plain)], (0.,) * 3, (1 / 255,) * 3, batch_size=4)
    plan, images, target = next(loader.epoch(0))[0]
    assert images.shape == (8, 3, 8, 8)
    assert torch.equal(images[:4], images[4:])
    assert images[:4, 0, 0, 0].round().long().tolist() == list(plan.indices)
    assert target.tolist() == [index % 3 for index in plan.indices] * 2


def test_stream_is_grouped_into_updates():
    loader = TrainLoader(
        Stream(22), [(train_transform((3, 8, 8), no_aug=True),)], (0.,) * 3, (1.,) * 3, batch_size=4,
        grad_accum_steps=2)
    groups = list(loader.epoch(0))
    assert [len(group) for group in groups] == [2, 2, 1]
    assert loader.updates_per_epoch == 3
    assert groups[-1][0][0].weight == 1
    assert loader.images_per_epoch == 20


def test_evaluation_loader_covers_every_image_in_order():
    loader = create_eval_loader(Numbers(10), train_transform((3, 8, 8), no_aug=True), (0.,) * 3, (1 / 255,) * 3, 4)
    seen = torch.cat([images[:, 0, 0, 0] for images, _ in loader]).round().long()
    assert seen.tolist() == list(range(10))
