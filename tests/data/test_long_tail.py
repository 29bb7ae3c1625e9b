import pickle
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import ImageDataset
from torch.utils.data import DataLoader

from timm_deitlt.data import (
    ClassificationSet,
    UnreadableImageError,
    class_counts,
    holdout,
    long_tailed_subset,
)
from timm_deitlt.data.sampling import largest_imbalance_factor


class Memory(torch.utils.data.Dataset):
    """Image i is one pixel of value i."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        return Image.new('L', (1, 1), i), -1


def memory_set(targets, names='abcdefghij', **kwargs):
    return ClassificationSet(Memory(len(targets)), targets, names[:max(targets) + 1], 'memory', **kwargs)


def image_folder(root, images, bad=()):
    """`images` are 'class/file' names with a colour of their own; those of `bad` hold no image."""
    for number, name in enumerate(images):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name in bad:
            path.write_bytes(b'not an image')
        else:
            Image.new('RGB', (2, 2), (number, 0, 0)).save(path)
    return ImageDataset(str(root))


def folder_set(base, **kwargs):
    targets = [target for _, target in base.reader.samples]
    keys = base.filenames()
    return ClassificationSet(base, targets, sorted(base.reader.class_to_idx), 'folder', keys=keys, **kwargs)


def red(item):
    image, _ = item
    return image.getpixel((0, 0))[0]


def as_number(image):
    return torch.tensor(image.getpixel((0, 0))[0])


def test_classes_fall_from_the_one_with_most_images_unless_told_otherwise():
    dataset = memory_set([0] * 6 + [1] * 20 + [2] * 12)
    assert long_tailed_subset(dataset, 4).class_counts == [5, 20, 10]
    with pytest.raises(ValueError, match="class 'a'.*largest allowed n_max is 6"):
        long_tailed_subset(dataset, 4, n_max=7, by_frequency=False)
    assert long_tailed_subset(dataset, 4, by_frequency=False).class_counts == [6, 3, 1]


def test_equally_frequent_classes_fall_with_their_label():
    assert long_tailed_subset(memory_set([0, 1, 2] * 8), 4).class_counts == [8, 4, 2]


def test_a_set_that_has_the_profile_is_not_cut_further():
    counts = class_counts(10, 60, 12)
    dataset = memory_set(np.repeat(np.arange(10), counts).tolist())
    assert long_tailed_subset(dataset, 12).class_counts == counts


def test_impossible_subsets_name_what_is_possible():
    dataset = memory_set([0] * 30 + [1] * 9 + [2] * 2)
    largest = largest_imbalance_factor([30, 9, 2])
    with pytest.raises(ValueError, match=f'the largest allowed is {largest}'):
        long_tailed_subset(dataset, 1000)
    assert min(long_tailed_subset(dataset, largest).class_counts) >= 1
    with pytest.raises(ValueError, match='the largest allowed is 5'):
        long_tailed_subset(dataset, 6, n_max=5)
    with pytest.raises(ValueError, match='at least 2 classes, got 1'):
        long_tailed_subset(memory_set([0] * 5, names='a'), 2)


@pytest.mark.parametrize('fraction', [0, 1, -0.1, 1.5, float('nan')])
def test_a_fraction_outside_of_zero_and_one_is_refused(fraction):
    with pytest.raises(ValueError, match='greater than 0 and less than 1'):
        holdout(memory_set([0, 0, 1, 1]), fraction)


def test_the_held_out_part_is_never_in_the_training_part():
    dataset = memory_set([0] * 20 + [1] * 10 + [2]).subset(range(5, 31))
    train, held, small = holdout(dataset, 0.2, seed=1)
    assert sorted([*train.indices, *held.indices]) == list(range(5, 31))
    assert (held.class_counts, train.class_counts, small) == ([3, 2, 0], [12, 8, 1], [2])
    assert held.class_names == train.class_names == ('a', 'b', 'c')


def test_what_cannot_be_held_out_is_refused():
    with pytest.raises(ValueError, match='takes no image'):
        holdout(memory_set([0, 0, 1, 1]), 0.1)
    stream = type('Stream', (), {'name': 'wds/x'})()
    with pytest.raises(ValueError, match='wds/x is read as a stream'):
        holdout(stream, 0.1)


def test_images_targets_and_subsets_belong_together():
    dataset = memory_set([0, 1, 0, 1, 2, 2]).subset([5, 0, 3])
    part = dataset.subset(np.array([2, 0]))
    assert [(red(item), item[1]) for item in dataset] == [(5, 2), (0, 0), (3, 1)]
    assert [(red(item), item[1]) for item in part] == [(3, 1), (5, 2)]
    assert (part.name, len(part), part.num_classes) == ('memory', 2, 3)
    assert part.targets.dtype == np.int64 and part.class_counts == [0, 1, 1]


def test_images_are_converted_and_transformed():
    dataset = memory_set([0, 1])
    assert dataset[0][0].mode == 'RGB'
    assert memory_set([0, 1], input_img_mode='L')[0][0].mode == 'L'
    dataset.transform = as_number
    assert [item[0].item() for item in dataset.subset([1, 0])] == [1, 0]


def test_labels_outside_of_the_classes_are_refused():
    for targets in ([0, 2], [-1, 1]):
        with pytest.raises(ValueError, match='2 classes allow 0 to 1'):
            ClassificationSet(Memory(2), targets, 'ab', 'memory')


def test_a_set_survives_pickling():
    dataset = memory_set([0, 1, 1], skip_bad_images=True)
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.fingerprint == dataset.fingerprint and red(copy[2]) == 2


def test_the_fingerprint_tells_sets_apart_but_not_folders(tmp_path):
    images = ['a/0.png', 'a/1.png', 'b/0.png', 'b/1.png']
    one, two = (folder_set(image_folder(tmp_path / place, images)) for place in ('x', 'y'))
    assert one.fingerprint == two.fingerprint == one.subset(range(4)).fingerprint
    renamed = folder_set(image_folder(tmp_path / 'z', ['a/0.png', 'a/2.png', 'b/0.png', 'b/1.png']))
    others = [
        renamed, one.subset([0, 1, 2]), one.subset([0, 1, 2, 2]), one.subset([0, 0, 1, 2]),
        ClassificationSet(one.base, [0, 0, 1, 1], 'ab', 'other', keys=one.keys),
        ClassificationSet(one.base, [0, 1, 1, 1], 'ab', 'folder', keys=one.keys),
        ClassificationSet(one.base, [0, 0, 1, 1], 'ba', 'folder', keys=one.keys),
        ClassificationSet(one.base, [0, 0, 1, 1], 'ab', 'folder'),
    ]
    assert len({one.fingerprint, *(other.fingerprint for other in others)}) == 1 + len(others)
    nameless = memory_set([0, 0, 1])
    assert nameless.subset([0, 2]).fingerprint != nameless.subset([1, 2]).fingerprint


@pytest.mark.parametrize('keys', [None, ['z', 'b', 'k', 'a']])
def test_the_fingerprint_knows_neither_class_order_nor_image_order(keys):
    dataset = memory_set([0, 1, 0, 2], keys=keys)
    others = [dataset.subset([3, 1, 0, 2]), dataset.with_classes('cab'), dataset.with_classes('bxca')]
    assert {other.fingerprint for other in others} == {dataset.fingerprint}
    assert others[1].class_names == ('c', 'a', 'b'), 'which is why the order is to be compared by itself'


def test_classes_of_one_name_and_images_of_one_key_do_not_collapse():
    fingerprints = [
        ClassificationSet(Memory(3), targets, names, 'memory', keys=keys).fingerprint
        for targets, names, keys in (
            ([0, 1, 2], ['crane', 'ship', 'crane'], 'xyz'),
            ([2, 1, 0], ['crane', 'ship', 'crane'], 'xyz'),
            ([0, 1, 0], ['crane', 'ship', 'crane'], 'xyz'),
            ([0, 1, 2], ['crane 0', 'ship 0', 'crane 1'], 'xyz'),
            ([0, 1, 0], ['crane', 'ship', 'crane'], 'xyx'),
            ([0, 1, 1], ['crane', 'ship', 'crane'], 'xyy'),
        )
    ]
    assert len(set(fingerprints)) == len(fingerprints)


def test_labels_follow_their_names_into_another_order():
    dataset = memory_set([0, 1, 2]).with_classes(['c', 'x', 'a', 'b'])
    assert dataset.targets.tolist() == [2, 3, 0]
    assert dataset.class_names == ('c', 'x', 'a', 'b') and dataset.class_counts == [1, 0, 1, 1]
    with pytest.raises(ValueError, match="training set does not have, such as 'b'"):
        memory_set([0, 1]).with_classes(['a', 'c'])


def test_an_accent_may_be_one_character_or_two():
    dataset = memory_set([0, 1], names=['b', 'cafe\u0301']).with_classes(['caf\xe9', 'b'])
    assert dataset.targets.tolist() == [1, 0] and dataset.class_names == ('caf\xe9', 'b')


def test_repeated_names_are_only_matched_where_they_stand():
    repeated = memory_set([0, 1, 2], names=['crane', 'ship', 'crane'])
    assert repeated.with_classes(['crane', 'ship', 'crane']).targets.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match='cannot be matched'):
        repeated.with_classes(['ship', 'crane', 'crane'])


IMAGES = ['a/0.png', 'a/1.png', 'a/2.png', 'b/0.png', 'b/1.png', 'b/2.png']


@pytest.mark.parametrize('content', ['text', 'truncated', 'gone', 'broken'])
def test_an_unreadable_image_is_named(tmp_path, content):
    dataset = folder_set(image_folder(tmp_path, IMAGES))
    path = tmp_path / 'b' / '1.png'
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (64, 64, 3), np.uint8)).save(path)
    whole = path.read_bytes()
    {
        'text': lambda: path.write_bytes(b'not an image'),
        'truncated': lambda: path.write_bytes(whole[:500]),
        'gone': path.unlink,
        'broken': lambda: path.write_bytes(whole[:40] + bytes(20) + whole[60:]),
    }[content]()
    with pytest.raises(UnreadableImageError, match=r"b.1\.png of class 'b'.*--skip-bad-images"):
        dataset[4]
    assert red(dataset[3]) == 3


def test_an_image_too_large_to_be_honest_is_unreadable(tmp_path, monkeypatch):
    dataset = folder_set(image_folder(tmp_path, IMAGES))
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1)
    with pytest.raises(UnreadableImageError, match='decompression bomb'):
        dataset[0]


@pytest.mark.parametrize('error', [OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error])
def test_an_unreadable_image_is_named_by_any_set(error):
    class Broken(Memory):
        def __getitem__(self, i):
            raise error('lost')

    with pytest.raises(UnreadableImageError, match="number 1 of x of class 'b': lost"):
        ClassificationSet(Broken(2), [0, 1], 'ab', 'x')[1]


def test_an_unreadable_image_is_named_across_loader_workers(tmp_path):
    dataset = folder_set(image_folder(tmp_path, IMAGES, bad=['b/1.png']))
    dataset.transform = as_number
    with pytest.raises(UnreadableImageError, match=r'b.1\.png'):
        list(DataLoader(dataset, batch_size=2, num_workers=1))


@pytest.mark.parametrize('workers', [0, 2])
def test_a_bad_image_is_replaced_by_the_next_of_its_class_and_counted_once(tmp_path, workers):
    bad = ['a/2.png', 'b/0.png', 'b/1.png']
    dataset = folder_set(image_folder(tmp_path, IMAGES, bad), skip_bad_images=True)
    dataset.transform = as_number
    part = dataset.subset([5, 4, 2, 0])
    for _ in range(2):
        batches = list(DataLoader(part, batch_size=2, num_workers=workers))
        assert torch.cat([values for values, _ in batches]).tolist() == [5, 5, 0, 0]
        assert torch.cat([labels for _, labels in batches]).tolist() == [1, 1, 0, 0]
        assert part.bad_images == dataset.bad_images == 2
    assert [red_value.item() for red_value, _ in dataset] == [0, 1, 0, 5, 5, 5]
    assert dataset.bad_images == 3 and part.bad_images == 2


def test_a_class_without_any_readable_image_is_an_error(tmp_path):
    bad = ['b/0.png', 'b/1.png', 'b/2.png']
    dataset = folder_set(image_folder(tmp_path, IMAGES, bad), skip_bad_images=True)
    with pytest.raises(UnreadableImageError, match=r"None of the 3 images of class 'b'.*b.1\.png"):
        dataset[4]
    assert dataset.bad_images == 3


def test_without_skipping_no_image_is_counted_bad(tmp_path):
    dataset = folder_set(image_folder(tmp_path, IMAGES))
    assert [red(item) for item in dataset] == list(range(6)) and dataset.bad_images == 0


def test_held_images_are_those_of_the_files_which_are_not_read_again(tmp_path):
    dataset = folder_set(image_folder(tmp_path, IMAGES), input_img_mode='RGB')
    before = [np.array(image) for image, _ in dataset]
    part = dataset.subset([4, 1])
    assert part.hold(2 * 12) and not dataset.held, '2 x 2 pixels of 3 bytes'
    assert dataset.hold(6 * 12) and dataset.hold(0) and dataset.held.nbytes == 72
    for path in tmp_path.glob('*/*.png'):
        path.unlink()
    for images in (dataset, dataset.subset(range(6)), dataset.with_classes('cab')):
        assert all(np.array_equal(image, array) for (image, _), array in zip(images, before, strict=True))
    assert [red(item) for item in part] == [4, 1]
    dataset.transform = as_number
    assert torch.cat([values for values, _ in DataLoader(dataset, batch_size=4, num_workers=2)]).tolist() == [*range(6)]


@pytest.mark.parametrize('mode, size', [('L', 4), ('RGBA', 16)])
def test_images_are_held_in_the_mode_of_the_set(tmp_path, mode, size):
    dataset = folder_set(image_folder(tmp_path, IMAGES), input_img_mode=mode)
    before = [image for image, _ in dataset]
    assert dataset.hold(1000) and dataset.held.nbytes == 6 * size
    assert [image for image, _ in dataset] == before and before[0].mode == mode


def test_what_does_not_fit_or_is_in_memory_is_not_held(tmp_path):
    dataset = folder_set(image_folder(tmp_path, IMAGES))
    assert not dataset.hold(71) and dataset.held is None and red(dataset[3]) == 3
    # the fifth of 41 images is none of those that the estimate is made of
    Image.new('RGB', (40, 40)).save(tmp_path / 'a' / '0.png')
    large = folder_set(ImageDataset(str(tmp_path))).subset([1] * 4 + [0] + [1] * 36)
    assert not large.hold(41 * 12 + 100) and large.held is None
    assert not memory_set([0, 1]).hold(1e9)
    assert not folder_set(image_folder(tmp_path / 'p', IMAGES), input_img_mode='P').hold(1e9)


def test_a_bad_image_is_an_error_when_images_are_held_or_left_to_its_access(tmp_path):
    base = image_folder(tmp_path, IMAGES, bad=['b/1.png'])
    with pytest.raises(UnreadableImageError, match=r'b.1\.png'):
        folder_set(base).hold(1000)
    dataset = folder_set(base, skip_bad_images=True)
    assert dataset.hold(1000) and len(dataset.held) == 5 and dataset.bad_images == 0
    assert [red(item) for item in dataset] == [0, 1, 2, 3, 5, 5] and dataset.bad_images == 1
