import numpy as np
import pytest
import timm.data
import torch
from PIL import Image
from timm.data.dataset import ImageDataset
from torch.utils.data import Dataset

from timm_deitlt.data import create_dataset, factory


class Reader:
    """A reader, or a data set, whose images must not be touched."""

    def __init__(self, targets, class_to_idx=None):
        self.column = targets
        self.class_to_idx = class_to_idx or {}

    def __len__(self):
        return len(self.column)

    def __getitem__(self, i):
        raise AssertionError('an image was read')


class ColumnReader(Reader):
    """timm's reader of an indexed Hugging Face set."""

    def iter_targets(self):
        yield from self.column


@pytest.fixture
def opened(monkeypatch):
    """Lets timm 'open' a given data set."""
    def provide(dataset):
        monkeypatch.setattr(timm.data, 'create_dataset', lambda *args, **kwargs: dataset)
        monkeypatch.setattr(factory, 'find_columns', lambda *args, **kwargs: {})
        return dataset
    return provide


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
    opened(ImageDataset('', reader=ColumnReader([2, 0, 1, 2], {'x': 0, 'y': 1, 'z': 2})))
    dataset = create_dataset('hfds/x', imbalance_factor=2)
    assert dataset.class_names == ('x', 'y', 'z') and dataset.class_counts == [1, 1, 2]
    assert len(dataset.fingerprint) == 64


@pytest.mark.parametrize('targets', [['cat', 'dog'], [[0], [1, 2]], [0.5, 1.0], [0, -1], [None, 1]])
def test_targets_that_are_no_class_indices_are_refused(opened, targets):
    opened(ImageDataset('', reader=ColumnReader(targets)))
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


def test_target_columns_that_are_no_labels_are_passed_over(tmp_path, opened, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    base = opened(Secretive([1, 0]))
    base.targets = torch.tensor([[1, 7], [0, 7]])
    assert create_dataset('torch/qmnist', tmp_path).targets.tolist() == [1, 0]


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
