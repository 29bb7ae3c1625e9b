import gzip
import hashlib
import pickle
import shutil
import struct

import numpy as np
import pytest
from torchvision.datasets import CIFAR10, CIFAR100, FashionMNIST

from timm_deitlt.benchmarks import BENCHMARKS
from timm_deitlt.data import create_dataset, long_tailed_indices, sources


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
    reversed_order = create_dataset('lt/digits', profile='exp_reversed')
    assert reversed_order.class_counts == create_dataset('lt/digits').class_counts[::-1]
    assert create_dataset('lt/digits', imbalance_factor=140).class_counts[-1] == 1
    with pytest.raises(ValueError, match='the largest allowed is 140'):
        create_dataset('lt/digits', imbalance_factor=141)
    with pytest.raises(ValueError, match="class '0' .* needs 145 images but has 144: .* is 144"):
        create_dataset('lt/digits', n_max=145)


@pytest.mark.parametrize('split', ['train', 'training'])
def test_training_splits_have_timms_names(split):
    assert len(create_dataset('lt/digits', split=split)) == 568


@pytest.mark.parametrize('split', ['test', 'val', 'valid', 'validation', 'eval', 'evaluation'])
def test_evaluation_splits_have_timms_names(split):
    assert len(create_dataset('lt/digits', split=split)) == 340


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
    assert test.class_names == train.class_names
    other = create_dataset(name, tmp_path, n_max=n_max, imbalance_factor=3, split_seed=1)
    assert other.class_counts == counts and other.fingerprint != train.fingerprint


@pytest.mark.parametrize('profile', ['exp', 'step'])
@pytest.mark.parametrize('name, factor, images', [
    ('lt/cifar10', 100, 12406), ('lt/cifar10', 50, 13996), ('lt/cifar10', 10, None),
    ('lt/cifar100', 100, 10847), ('lt/cifar100', 50, 12608), ('lt/cifar100', 10, None),
])
def test_cifar_has_exactly_the_published_counts_and_images(tmp_path, monkeypatch, name, factor, images, profile):
    classes = BENCHMARKS[name].num_classes
    targets = np.random.RandomState(7).permutation(np.repeat(np.arange(classes), 50000 // classes))

    class Cifar:  # as torchvision reads it, but for the pixels
        def __init__(self, root, train, download):
            self.data, self.targets = np.arange(50000).reshape(-1, 1, 1, 1), targets.tolist()
            self.classes = [f'fine {label}' for label in range(classes)]

        def __len__(self):
            return 50000

    monkeypatch.setattr(sources, 'CIFAR10', Cifar)
    monkeypatch.setattr(sources, 'CIFAR100', Cifar)
    # Cao et al. know the factor as n_min / n_max
    share = {100: 0.01, 50: 0.02, 10: 0.1}[factor]
    if profile == 'exp':
        counts = [int(50000 / classes * share ** (label / (classes - 1.0))) for label in range(classes)]
    else:
        counts = [int(50000 / classes * (1 if label < classes // 2 else share)) for label in range(classes)]
    members = [[] for _ in range(classes)]
    for i, target in enumerate(targets.tolist()):
        members[target].append(i)
    state = np.random.get_state()
    try:
        np.random.seed(0)
        chosen = []
        for some, count in zip(members, counts, strict=True):
            np.random.shuffle(some)
            chosen += some[:count]
    finally:
        np.random.set_state(state)
    train = create_dataset(name, tmp_path, imbalance_factor=factor, profile=profile)
    assert train.class_counts == counts and train.indices.tolist() == chosen
    assert train.targets.tolist() == [label for label, count in enumerate(counts) for _ in range(count)]
    if images and profile == 'exp':
        assert len(train) == images
    if factor == 100:
        assert create_dataset(name, tmp_path, profile=profile).fingerprint == train.fingerprint


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
    (tmp_path / 'FashionMNIST/raw/train-images-idx3-ubyte').unlink()
    monkeypatch.setattr(FashionMNIST, '__init__', None)
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


def test_torchvision_sets_are_wrapped(tmp_path, monkeypatch):
    _, targets = cifar_files(tmp_path, monkeypatch, CIFAR10, 12)
    train = create_dataset('torch/cifar10', tmp_path)
    assert train.targets.tolist() == targets.tolist() and train.class_names[2] == 'bird'
    assert create_dataset('torch/cifar10', tmp_path, imbalance_factor=4).class_counts[::9] == [12, 3]
    idx_files(tmp_path / 'FashionMNIST/raw', packed=False)
    assert create_dataset('torch/fashion_mnist', tmp_path, 'validation').class_counts == [2] * 10
