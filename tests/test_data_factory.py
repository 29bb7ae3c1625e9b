import gzip
import hashlib
import json
import pickle
import random
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image
from timm.data.dataset import ImageDataset, IterableImageDataset
from torch.utils.data import Dataset
from torchvision.datasets import CIFAR10, CIFAR100, FashionMNIST

from timm_deitlt.benchmarks import BENCHMARKS
from timm_deitlt.data import check_same_classes, create_dataset, has_split, long_tailed_indices


def image_folder(root, counts, unreadable=False):
    """`counts` images of each class; the colour tells the class by its position."""
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            path = root / name / f'{i}.png'
            if unreadable:
                path.write_bytes(b'no image')
            else:
                Image.new('RGB', (2, 2), (number, i, 0)).save(path)
    return root


def cifar_files(root, monkeypatch, cifar, per_class):
    """Small files in the format of CIFAR; returns training pixels `[N, 32, 32, 3]` and targets."""
    classes, labels_key = (10, 'labels') if cifar is CIFAR10 else (100, 'fine_labels')
    rng = np.random.RandomState(11)
    folder = root / cifar.base_folder
    folder.mkdir()

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    pixels, targets = [], []
    lists = {'train_list': [], 'test_list': []}
    for part, count in (('train_list', per_class), ('test_list', 2)):
        files = [file for file, _ in getattr(cifar, part)]
        labels = rng.permutation(np.repeat(np.arange(classes), count))
        data = rng.randint(0, 256, (len(labels), 3 * 32 * 32)).astype(np.uint8)
        if part == 'train_list':
            pixels, targets = data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels
        for file, some, of in zip(
                files, np.array_split(data, len(files)), np.array_split(labels, len(files)), strict=True):
            lists[part].append([file, write(file, {'data': some, labels_key: of.tolist()})])
    names = BENCHMARKS['lt/cifar10'].class_names if classes == 10 else [f'fine {i}' for i in range(100)]
    md5 = write(cifar.meta['filename'], {cifar.meta['key']: list(names)})
    for attribute, value in (*lists.items(), ('meta', {**cifar.meta, 'md5': md5})):
        monkeypatch.setattr(cifar, attribute, value)
    monkeypatch.setattr(CIFAR10, 'download', lambda self: None)
    return pixels, targets


def idx_files(folder, per_class=6, packed=True):
    """Small files in the format of Fashion-MNIST; returns training pixels `[N, 28, 28]` and targets."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.RandomState(12)
    for part, count in (('t10k', 2), ('train', per_class)):
        targets = rng.permutation(np.repeat(np.arange(10), count)).astype(np.uint8)
        pixels = rng.randint(0, 256, (len(targets), 28, 28)).astype(np.uint8)
        for kind, array in (('images', pixels), ('labels', targets)):
            content = struct.pack(f'>{1 + array.ndim}I', 0x800 + array.ndim, *array.shape) + array.tobytes()
            name = f'{part}-{kind}-idx{array.ndim}-ubyte'
            if packed:
                (folder / f'{name}.gz').write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)
    return pixels, targets


class Reader:
    """What a timm reader of an indexed Hugging Face set, or of a stream, looks like."""

    def __init__(self, targets, class_to_idx=None):
        self.targets_column = targets
        self.class_to_idx = class_to_idx or {}

    def __len__(self):
        return len(self.targets_column)

    def __getitem__(self, i):
        raise AssertionError('an image was read')

    def __iter__(self):
        for target in self.targets_column:
            yield Image.new('RGB', (1, 1)), target


class IndexedReader(Reader):
    def iter_targets(self):
        yield from self.targets_column


@pytest.fixture
def opened(monkeypatch):
    """Lets timm 'open' a given data set."""
    def provide(dataset):
        monkeypatch.setattr(timm.data, 'create_dataset', lambda *args, **kwargs: dataset)
        return dataset
    return provide


# lt/digits

def test_digits_have_the_documented_counts():
    train, test = create_dataset('lt/digits'), create_dataset('lt/digits', split='test')
    assert train.class_counts == [140, 108, 83, 64, 50, 38, 30, 23, 18, 14] and len(train) == 568
    assert test.class_counts == [34] * 10
    assert train.class_names == test.class_names == tuple('0123456789')
    assert not set(train.indices) & set(test.indices)


def test_digits_are_scikit_learns_in_three_channels():
    from sklearn.datasets import load_digits

    source, train = load_digits(), create_dataset('lt/digits')
    for i in (0, 200, 567):
        image, target = train[i]
        pixels = np.asarray(image)
        assert pixels.shape == (8, 8, 3) and target == source.target[train.indices[i]]
        for channel in range(3):
            exact = source.images[train.indices[i]] * 255 / 16
            assert np.abs(pixels[..., channel] - exact).max() <= 0.5


def test_the_split_seed_moves_test_part_and_subset():
    one, other = (create_dataset('lt/digits', split_seed=seed) for seed in (0, 1))
    assert one.fingerprint == create_dataset('lt/digits').fingerprint != other.fingerprint
    tests = [create_dataset('lt/digits', split='validation', split_seed=seed) for seed in (0, 1)]
    assert set(tests[0].indices) != set(tests[1].indices)
    assert not set(other.indices) & set(tests[1].indices)


def test_digits_take_other_counts():
    assert create_dataset('lt/digits', imbalance_factor=1, n_max=20).class_counts == [20] * 10
    assert create_dataset('lt/digits', imbalance_factor=2, profile='step').class_counts == [140] * 5 + [70] * 5
    assert create_dataset('lt/digits', imbalance_factor=140).class_counts[-1] == 1
    with pytest.raises(ValueError, match='the largest allowed is 140'):
        create_dataset('lt/digits', imbalance_factor=141)
    with pytest.raises(ValueError, match="class '0' .* needs 145 images and has 144; .* is 144"):
        create_dataset('lt/digits', n_max=145)


@pytest.mark.parametrize('split', ['train', 'training'])
def test_training_splits_have_timms_names(split):
    assert len(create_dataset('lt/digits', split=split)) == 568


@pytest.mark.parametrize('split', ['test', 'val', 'valid', 'validation', 'eval', 'evaluation'])
def test_evaluation_splits_have_timms_names(split):
    assert len(create_dataset('lt/digits', split=split)) == 340


def test_global_random_states_are_neither_read_nor_changed(tmp_path):
    image_folder(tmp_path, {'a': 6, 'b': 6})

    def make():
        return [
            create_dataset('lt/digits').fingerprint, create_dataset('', tmp_path, imbalance_factor=3).fingerprint]

    first = make()
    np.random.seed(5), random.seed(5), torch.manual_seed(5)
    before = (np.random.get_state()[1].tolist(), np.random.get_state()[2], random.getstate(), torch.get_rng_state())
    assert make() == first
    after = (np.random.get_state()[1].tolist(), np.random.get_state()[2], random.getstate(), torch.get_rng_state())
    assert before[:3] == after[:3] and torch.equal(before[3], after[3])


def test_importing_the_package_does_not_import_scikit_learn():
    code = 'import sys, timm_deitlt.data; sys.exit("sklearn" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0


# lt/cifar10, lt/cifar100

@pytest.mark.parametrize('name, cifar, per_class, n_max', [
    ('lt/cifar10', CIFAR10, 30, 20), ('lt/cifar100', CIFAR100, 4, 3)])
def test_cifar_images_are_those_of_the_published_choice(tmp_path, monkeypatch, name, cifar, per_class, n_max):
    pixels, targets = cifar_files(tmp_path, monkeypatch, cifar, per_class)
    train = create_dataset(name, tmp_path, n_max=n_max, imbalance_factor=3)
    counts = train.class_counts
    assert (counts[0], counts[-1]) == (n_max, n_max // 3)
    assert train.indices.tolist() == long_tailed_indices(targets, counts, seed=0).tolist()
    for i in (0, len(train) // 2, len(train) - 1):
        image, target = train[i]
        assert np.array_equal(np.asarray(image), pixels[train.indices[i]]) and target == targets[train.indices[i]]
    test = create_dataset(name, tmp_path, 'test', n_max=n_max)
    assert test.class_counts == [2] * BENCHMARKS[name].num_classes
    check_same_classes(train, test)
    other = create_dataset(name, tmp_path, n_max=n_max, imbalance_factor=3, split_seed=1)
    assert other.class_counts == counts and other.fingerprint != train.fingerprint


def test_too_few_images_name_the_largest_n_max(tmp_path, monkeypatch):
    cifar_files(tmp_path, monkeypatch, CIFAR10, 30)
    with pytest.raises(ValueError, match='the largest allowed n_max is 30'):
        create_dataset('lt/cifar10', tmp_path)


def test_missing_cifar_files_are_named(tmp_path, monkeypatch):
    cifar_files(tmp_path, monkeypatch, CIFAR10, 2)
    folder = tmp_path / 'cifar-10-batches-py'
    (folder / 'data_batch_3').unlink()
    with pytest.raises(FileNotFoundError, match='cifar-10-batches-py, without data_batch_3.*--dataset-download'):
        create_dataset('lt/cifar10', tmp_path)
    (folder / 'data_batch_3').write_bytes(b'cut')
    with pytest.raises(FileNotFoundError, match='not the published one'):
        create_dataset('lt/cifar10', tmp_path)
    with pytest.raises(FileNotFoundError, match='cifar-100-python, without train, test, meta'):
        create_dataset('lt/cifar100', tmp_path)
    with pytest.raises(ValueError, match='--data-dir'):
        create_dataset('lt/cifar10')


# lt/fashion_mnist

@pytest.mark.parametrize('packed', [True, False])
@pytest.mark.parametrize('layout', ['.', 'FashionMNIST/raw'])
def test_fashion_mnist_is_read_from_both_layouts(tmp_path, packed, layout):
    pixels, targets = idx_files(tmp_path / layout, packed=packed)
    train = create_dataset('lt/fashion_mnist', tmp_path, n_max=6, imbalance_factor=6)
    assert train.class_counts == [6, 4, 4, 3, 2, 2, 1, 1, 1, 1]
    assert train.indices.tolist() == long_tailed_indices(targets, train.class_counts, 0).tolist()
    image, target = train[7]
    assert np.array_equal(np.asarray(image)[..., 1], pixels[train.indices[7]]) and target == targets[train.indices[7]]
    assert create_dataset('lt/fashion_mnist', tmp_path, 'test').class_counts == [2] * 10


def test_other_pixels_make_another_fingerprint(tmp_path):
    idx_files(tmp_path / 'one')
    shutil.copytree(tmp_path / 'one', tmp_path / 'copy')
    pixels, _ = idx_files(tmp_path / 'other')
    pixels[:, 0, 0] ^= 1
    header = struct.pack('>4I', 0x803, *pixels.shape)
    (tmp_path / 'other' / 'train-images-idx3-ubyte.gz').write_bytes(gzip.compress(header + pixels.tobytes()))
    prints = [
        create_dataset('lt/fashion_mnist', tmp_path / place, n_max=6, imbalance_factor=2).fingerprint
        for place in ('one', 'copy', 'other')
    ]
    assert prints[0] == prints[1] != prints[2]


def test_fashion_mnist_is_downloaded_by_torchvision_only_when_asked(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match='t10k-images-idx3-ubyte.*FashionMNIST/raw.*--dataset-download'):
        create_dataset('lt/fashion_mnist', tmp_path, 'test')
    monkeypatch.setattr(FashionMNIST, 'download', lambda self: idx_files(tmp_path / 'FashionMNIST/raw', packed=False))
    assert len(create_dataset('lt/fashion_mnist', tmp_path, 'test', download=True)) == 20


def test_a_failed_download_says_why(tmp_path, monkeypatch):
    def fail(self):
        raise RuntimeError('no route to host')

    monkeypatch.setattr(FashionMNIST, 'download', fail)
    with pytest.raises(FileNotFoundError, match='no route to host'):
        create_dataset('lt/fashion_mnist', tmp_path, download=True)


@pytest.mark.parametrize('damage', [
    lambda content: content[:100],
    lambda content: b'',
    lambda content: gzip.compress(gzip.decompress(content)[:500]),
    lambda content: gzip.compress(b'\0\0\x09\x03' + gzip.decompress(content)[4:]),
    lambda content: gzip.compress(b'no idx file at all'),
])
def test_a_damaged_idx_file_is_named(tmp_path, damage):
    idx_files(tmp_path)
    path = tmp_path / 'train-images-idx3-ubyte.gz'
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r'train-images-idx3-ubyte\.gz is damaged'):
        create_dataset('lt/fashion_mnist', tmp_path)


def test_images_and_labels_must_be_as_many(tmp_path):
    idx_files(tmp_path)
    shutil.copy(tmp_path / 't10k-labels-idx1-ubyte.gz', tmp_path / 'train-labels-idx1-ubyte.gz')
    with pytest.raises(ValueError, match='holds 60 images and .* holds 20 labels'):
        create_dataset('lt/fashion_mnist', tmp_path)


# names

@pytest.mark.parametrize('name, near', [
    ('lt/digit', 'did you mean lt/digits'),
    ('lt/Digits', 'did you mean lt/digits'),
    ('lt/svhn', 'The benchmarks are lt/digits, lt/fashion_mnist'),
    ('digits', 'did you mean lt/digits'),
    ('cifar10', 'did you mean lt/cifar10 or torch/cifar10'),
    ('torhc/qmnist', 'did you mean torch/qmnist'),
    ('torch/cifar11', 'did you mean torch/cifar10'),
])
def test_an_unknown_name_brings_up_near_ones(tmp_path, name, near):
    with pytest.raises(ValueError, match=f'Unknown data set .*{near}'):
        create_dataset(name, tmp_path)


def test_benchmarks_take_timms_options_and_no_others():
    options = dict(batch_size=4, seed=1, is_training=True, class_map=None, target_key='y')
    assert len(create_dataset('lt/digits', **options)) == 568
    for option in ('imbalance', 'class_map'):
        with pytest.raises(ValueError, match=f'no option {option}'):
            create_dataset('lt/digits', **{option: 3})
    with pytest.raises(ValueError, match="no split 'dev'"):
        create_dataset('lt/digits', split='dev')
    with pytest.raises(ValueError, match='at least 1'):
        create_dataset('lt/digits', split='test', imbalance_factor=0.1)


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere'):
        create_dataset('', tmp_path / 'nowhere')
    with pytest.raises(FileNotFoundError, match='nowhere'):
        create_dataset('torch/cifar10', tmp_path / 'nowhere')
    with pytest.raises(FileNotFoundError, match='torch/cifar10 is not complete.*--dataset-download'):
        create_dataset('torch/cifar10', tmp_path)
    for name in ('', 'torch/cifar10', 'wds/x'):
        with pytest.raises(ValueError, match='--data-dir'):
            create_dataset(name)


# folders

def test_a_folder_is_read_by_timm_without_decoding_an_image(tmp_path):
    image_folder(tmp_path / 'train', {'n10': 2, 'n9': 5, 'n2': 3}, unreadable=True)
    train = create_dataset('', tmp_path)
    assert train.class_names == ('n2', 'n9', 'n10') and train.class_counts == [3, 5, 2]
    assert train.name == 'folder' and train.num_classes == 3


def test_a_folder_becomes_long_tailed_from_its_most_frequent_class(tmp_path):
    image_folder(tmp_path, {'a': 5, 'b': 16, 'c': 9})
    assert create_dataset('', tmp_path).class_counts == [5, 16, 9]
    train = create_dataset('', tmp_path, imbalance_factor=4)
    assert train.class_counts == [4, 16, 8]
    assert create_dataset('', tmp_path, imbalance_factor=4, n_max=8).class_counts == [2, 8, 4]
    assert create_dataset('', tmp_path, imbalance_factor=1).class_counts == [5, 5, 5]
    assert train.fingerprint != create_dataset('', tmp_path, imbalance_factor=4, split_seed=1).fingerprint
    for image, target in train:
        assert image.getpixel((0, 0))[0] == target


def test_impossible_long_tails_of_a_folder_are_refused(tmp_path):
    image_folder(tmp_path, {'a': 5, 'b': 16, 'c': 9})
    with pytest.raises(ValueError, match='the largest allowed is 16'):
        create_dataset('', tmp_path, imbalance_factor=17)
    with pytest.raises(ValueError, match='the largest allowed n_max is 16'):
        create_dataset('', tmp_path, imbalance_factor=4, n_max=17)
    with pytest.raises(ValueError, match='n_max needs an imbalance factor'):
        create_dataset('', tmp_path, n_max=4)


def test_validation_labels_follow_the_names_of_the_training_classes(tmp_path):
    image_folder(tmp_path / 'train', {'a': 3, 'b': 2, 'c': 2})
    image_folder(tmp_path / 'val', {'b': 4, 'c': 1})
    train = create_dataset('', tmp_path)
    alone = create_dataset('', tmp_path, 'validation', imbalance_factor=2)
    assert alone.class_names == ('b', 'c') and alone.targets.tolist() == [0, 0, 0, 0, 1]
    with pytest.raises(ValueError, match="Label 0 is 'a'"):
        check_same_classes(train, alone)
    validation = create_dataset('', tmp_path, 'validation', class_names=train.class_names)
    check_same_classes(train, validation)
    assert validation.targets.tolist() == [1, 1, 1, 1, 2] and validation.class_counts == [0, 4, 1]
    image_folder(tmp_path / 'val', {'d': 1})
    with pytest.raises(ValueError, match="does not have, such as 'd'"):
        create_dataset('', tmp_path, 'validation', class_names=train.class_names)


def test_a_class_map_orders_and_selects_classes(tmp_path):
    image_folder(tmp_path / 'images', {'a': 1, 'b': 2, 'c': 3})
    (tmp_path / 'map.txt').write_text('c\na\n')
    train = create_dataset('', tmp_path / 'images', class_map=str(tmp_path / 'map.txt'))
    assert train.class_names == ('c', 'a') and train.class_counts == [3, 1]
    merged = create_dataset('', tmp_path / 'images', class_map={'a': 0, 'b': 0, 'c': 1})
    assert merged.class_names == ('a / b', 'c') and merged.class_counts == [3, 3]
    with pytest.raises(ValueError, match="no training image: '1', 'x'"):
        create_dataset('', tmp_path / 'images', class_map={'a': 0, 'x': 2})


def test_empty_classes_of_the_training_split_are_named(tmp_path):
    image_folder(tmp_path / 'train', {'a': 1, 'b': 1, 'empty': 0})
    image_folder(tmp_path / 'val', {'a': 1, 'b': 1, 'empty': 0})
    (tmp_path / 'train' / '.cache').mkdir()
    with pytest.raises(ValueError, match="Class 'empty' has no image"):
        create_dataset('', tmp_path)
    assert create_dataset('', tmp_path, 'val').class_counts == [1, 1]
    (tmp_path / 'train' / 'empty' / 'notes.txt').write_text('to come')
    with pytest.raises(ValueError, match="Class 'empty' has no image"):
        create_dataset('', tmp_path)
    with pytest.raises(ValueError, match='no training image'):
        create_dataset('', tmp_path, class_map={'a': 0, 'b': 1, 'empty': 2})
    with pytest.raises(ValueError, match="no training image: 'c'"):
        create_dataset('', image_folder(tmp_path / 'other', {'a': 1, 'b': 1}), class_names=['a', 'c', 'b'])
    shutil.rmtree(tmp_path / 'train' / 'empty')
    assert create_dataset('', tmp_path).class_counts == [1, 1]


def test_folders_without_two_classes_are_refused(tmp_path):
    (tmp_path / 'none').mkdir()
    with pytest.raises(ValueError, match='Found 0 images'):
        create_dataset('', tmp_path / 'none')
    with pytest.raises(ValueError, match=r'1 class\(es\), at least 2'):
        create_dataset('', image_folder(tmp_path / 'one', {'a': 3}))
    Image.new('RGB', (1, 1)).save(image_folder(tmp_path / 'stray', {'a': 1, 'b': 1}) / 'cover.png')
    with pytest.raises(ValueError, match='Images lie directly in'):
        create_dataset('', tmp_path / 'stray')


@pytest.mark.parametrize('folders, split, own', [
    (['train', 'val'], 'train', 'train'),
    (['train', 'val'], 'validation', 'val'),
    (['training', 'validation'], 'train', 'training'),
    (['training', 'validation'], 'val', 'validation'),
    (['train', 'test'], 'test', 'test'),
    ([], 'train', None),
    ([], 'validation', None),
])
def test_has_split_agrees_with_what_timm_reads(tmp_path, folders, split, own):
    for number, folder in enumerate(folders or ['.']):
        image_folder(tmp_path / folder, {'a': number + 1, 'b': 1})
    assert has_split(tmp_path, split) == (own is not None)
    read = timm.data.create_dataset('', str(tmp_path), split).reader.root
    assert read == str(tmp_path / own if own else tmp_path)


def test_a_missing_split_is_not_replaced_by_all_images(tmp_path):
    image_folder(tmp_path / 'train', {'a': 2, 'b': 1})
    assert not has_split(tmp_path, 'validation') and not has_split(tmp_path, '')
    assert not has_split(tmp_path / 'nowhere', 'train')
    # timm's own answer: the training images
    assert len(timm.data.create_dataset('', str(tmp_path), 'validation')) == 3
    for name in ('', 'torch/image_folder'):
        with pytest.raises(FileNotFoundError, match="no folder for the split 'validation', only for train"):
            create_dataset(name, tmp_path, 'validation')


def test_classes_may_be_called_like_splits(tmp_path):
    image_folder(tmp_path, {'bus': 2, 'test': 1, 'train': 3})
    assert create_dataset('', tmp_path, 'validation').class_names == ('bus', 'test', 'train')
    with pytest.raises(ValueError, match='Images lie directly in'):
        create_dataset('', tmp_path, 'train')
    assert create_dataset('', tmp_path, 'train', search_split=False).class_counts == [2, 1, 3]


def test_tar_files_are_read(tmp_path):
    image_folder(tmp_path / 'images', {'a': 2, 'b': 3})
    shutil.make_archive(str(tmp_path / 'images'), 'tar', tmp_path / 'images')
    train = create_dataset('', tmp_path / 'images.tar')
    assert train.class_names == ('a', 'b') and train.class_counts == [2, 3]
    assert [image.getpixel((0, 0))[0] for image, _ in train] == train.targets.tolist()
    assert train.fingerprint == create_dataset('', tmp_path / 'images.tar').fingerprint


def test_the_fingerprint_of_a_folder_does_not_depend_on_its_place(tmp_path):
    image_folder(tmp_path / 'x', {'a': 2, 'b': 3})
    shutil.copytree(tmp_path / 'x', tmp_path / 'y' / 'z')
    one, other = create_dataset('', tmp_path / 'x'), create_dataset('', tmp_path / 'y' / 'z')
    assert one.fingerprint == other.fingerprint
    Image.effect_noise((9, 9), 50).save(tmp_path / 'x' / 'a' / '0.png')
    assert create_dataset('', tmp_path / 'x').fingerprint != one.fingerprint


def test_a_broken_link_is_reported_when_its_image_is_read(tmp_path):
    image_folder(tmp_path, {'a': 1, 'b': 1})
    (tmp_path / 'a' / 'gone.png').symlink_to(tmp_path / 'nowhere.png')
    dataset = create_dataset('', tmp_path)
    with pytest.raises(ValueError, match=r"gone\.png of class 'a'"):
        list(dataset)


def test_a_given_transform_is_applied(tmp_path):
    image_folder(tmp_path, {'a': 1, 'b': 1})
    assert create_dataset('', tmp_path, transform=lambda image: image.size)[0] == ((2, 2), 0)
    assert create_dataset('', tmp_path, input_img_mode='L')[0][0].mode == 'L'


# targets of other sets

def test_torchvision_sets_are_wrapped(tmp_path, monkeypatch):
    _, targets = cifar_files(tmp_path, monkeypatch, CIFAR10, 12)
    train = create_dataset('torch/cifar10', tmp_path)
    assert train.targets.tolist() == targets.tolist() and train.class_names[2] == 'bird'
    assert create_dataset('torch/cifar10', tmp_path, imbalance_factor=4).class_counts[::9] == [12, 3]
    idx_files(tmp_path / 'FashionMNIST/raw', packed=False)
    assert create_dataset('torch/fashion_mnist', tmp_path, 'validation').class_counts == [2] * 10


def test_a_target_transform_is_respected(tmp_path):
    image_folder(tmp_path, {'a': 1, 'b': 2, 'c': 3})
    for name in ('', 'torch/image_folder'):
        merged = create_dataset(name, tmp_path, target_transform=lambda target: target // 2)
        assert merged.class_counts == [3, 3] and merged.class_names == ('0', '1')
        assert [target for _, target in merged] == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize('attribute, value', [
    ('targets', [0, 1, 1]), ('targets', torch.tensor([0, 1, 1])), ('labels', np.array([0, 1, 1])),
    ('_labels', [0, 1, 1]), ('samples', [('x', 0), ('y', 1), ('z', 1)]),
])
def test_exposed_targets_are_taken_without_reading_an_image(tmp_path, opened, attribute, value):
    base = opened(Reader([0, 1, 1]))
    base.root = tmp_path
    setattr(base, attribute, value)
    dataset = create_dataset('hfds/x')
    assert dataset.targets.tolist() == [0, 1, 1] and dataset.class_names == ('0', '1')


def test_hugging_face_targets_come_from_their_column(opened):
    opened(ImageDataset('', reader=IndexedReader([2, 0, 1, 2], {'x': 0, 'y': 1, 'z': 2})))
    dataset = create_dataset('hfds/x', imbalance_factor=2)
    assert dataset.class_names == ('x', 'y', 'z') and dataset.class_counts == [1, 1, 2]
    assert len(dataset.fingerprint) == 64


@pytest.mark.parametrize('targets', [['cat', 'dog'], [[0], [1, 2]], [0.5, 1.0], [0, -1], [None, 1]])
def test_targets_that_are_no_class_indices_are_refused(opened, targets):
    opened(ImageDataset('', reader=IndexedReader(targets)))
    with pytest.raises(ValueError, match='hfds/x must have one class index'):
        create_dataset('hfds/x')


class Secretive(Dataset):
    """Tells a target only together with its image."""
    target_transform = None

    def __init__(self, targets):
        self._secret, self.read = targets, 0

    def __len__(self):
        return len(self._secret)

    def __getitem__(self, i):
        self.read += 1
        return Image.new('L', (1, 1)), self._secret[i]


def test_unexposed_targets_are_read_once_and_kept(tmp_path, opened, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    base = opened(Secretive([torch.tensor(1), np.int64(0), 1]))
    for _ in range(2):
        assert create_dataset('hfds/x').targets.tolist() == [1, 0, 1]
        assert base.read == 3
    cache, = (tmp_path / 'timm_deitlt' / 'targets').iterdir()
    create_dataset('hfds/x', split='train2'), create_dataset('hfds/y'), create_dataset('hfds/x', tmp_path)
    assert base.read == 12 and len(list(cache.parent.glob('*.npy'))) == len(list(cache.parent.iterdir())) == 4
    for content in (b'damaged', b''):
        cache.write_bytes(content)
        assert create_dataset('hfds/x').targets.tolist() == [1, 0, 1]
    assert base.read == 18 and np.load(cache).tolist() == [1, 0, 1]


def test_a_cache_that_cannot_be_written_does_not_stop_the_run(tmp_path, opened, monkeypatch):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    opened(Secretive([1, 0]))
    assert create_dataset('hfds/x').targets.tolist() == [1, 0]


def test_transformed_targets_are_not_kept(tmp_path, opened, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    base = opened(Secretive([1, 0]))
    base.target_transform = abs
    create_dataset('hfds/x'), create_dataset('hfds/x')
    assert base.read == 4 and not list(tmp_path.iterdir())


def test_class_counts_of_an_indexed_set_are_not_asked_for(tmp_path):
    with pytest.raises(ValueError, match='leave --class-counts out'):
        create_dataset('lt/digits', class_counts_file=tmp_path / 'counts.json')


# streams

def stream(opened, class_to_idx=None):
    return opened(IterableImageDataset('', reader=Reader([0, 1, 2, 1], class_to_idx)))


@pytest.mark.parametrize('text', ['[3, 5, 1]', '{"x": 3, "y": 5, "z": 1}', '3\n5\n1\n'])
def test_a_stream_takes_its_class_counts_from_a_file(tmp_path, opened, text):
    (tmp_path / 'counts').write_text(text)
    base = stream(opened)
    dataset = create_dataset('wds/x', tmp_path, class_counts_file=tmp_path / 'counts')
    assert dataset is base and dataset.class_counts == [3, 5, 1] and dataset.num_classes == 3
    assert dataset.class_names == (('x', 'y', 'z') if '{' in text else ('0', '1', '2'))
    assert dataset.name == 'wds/x' and len(dataset.fingerprint) == 64


def test_named_counts_of_a_stream_follow_its_own_class_order(tmp_path, opened):
    (tmp_path / 'counts').write_text(json.dumps({'x': 3, 'y': 5, 'z': 1}))
    stream(opened, {'z': 0, 'x': 1, 'y': 2})
    dataset = create_dataset('wds/x', tmp_path, class_counts_file=tmp_path / 'counts')
    assert dataset.class_names == ('z', 'x', 'y') and dataset.class_counts == [1, 3, 5]
    (tmp_path / 'counts').write_text(json.dumps({'x': 3, 'y': 5, 'w': 1}))
    with pytest.raises(ValueError, match="they differ in 'w'"):
        create_dataset('wds/x', tmp_path, class_counts_file=tmp_path / 'counts')
    (tmp_path / 'counts').write_text('3\n5')
    with pytest.raises(ValueError, match='has 2 counts, wds/x has 3 classes'):
        create_dataset('wds/x', tmp_path, class_counts_file=tmp_path / 'counts')


def test_labels_of_an_evaluation_stream_follow_their_names(tmp_path, opened):
    stream(opened, {'z': 0, 'x': 1, 'y': 2})
    dataset = create_dataset('wds/x', tmp_path, 'validation', class_names=('x', 'y', 'w', 'z'))
    assert [target for _, target in dataset] == [3, 0, 1, 0]
    assert dataset.class_names == ('x', 'y', 'w', 'z') and dataset.class_counts is None


def test_what_a_stream_cannot_do_is_refused(tmp_path, opened):
    stream(opened)
    with pytest.raises(ValueError, match='--class-counts FILE'):
        create_dataset('wds/x', tmp_path)
    with pytest.raises(ValueError, match='does not say what its classes are'):
        create_dataset('wds/x', tmp_path, 'validation')
    (tmp_path / 'counts').write_text('[3, 5, 1]')
    with pytest.raises(ValueError, match='cannot be indexed'):
        create_dataset('wds/x', tmp_path, imbalance_factor=10, class_counts_file=tmp_path / 'counts')
    with pytest.raises(FileNotFoundError, match='no file of class counts'):
        create_dataset('wds/x', tmp_path, class_counts_file=tmp_path / 'none')


@pytest.mark.parametrize('text', ['', '[]', '[1, 2.5]', '[1, true]', '[1, -1]', '{"a": "b"}', '1\ntwo', '[1, 2'])
def test_class_counts_that_are_no_counts_are_refused(tmp_path, opened, text):
    (tmp_path / 'counts').write_text(text)
    stream(opened)
    with pytest.raises(ValueError, match='counts must'):
        create_dataset('wds/x', tmp_path, class_counts_file=tmp_path / 'counts')


def test_a_stream_with_an_empty_class_is_refused(tmp_path, opened):
    (tmp_path / 'counts').write_text('{"x": 3, "y": 0, "z": 1}')
    stream(opened)
    with pytest.raises(ValueError, match="no training image: 'y'"):
        create_dataset('wds/x', tmp_path, class_counts_file=tmp_path / 'counts')
