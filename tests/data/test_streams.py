import json

import pytest
import timm.data
from PIL import Image
from timm.data.dataset import IterableImageDataset

from timm_deitlt.data import create_dataset, factory


class Reader:
    """What a timm reader of a stream looks like."""

    def __init__(self, targets, class_to_idx=None):
        self.column = targets
        self.class_to_idx = class_to_idx or {}

    def __iter__(self):
        for target in self.column:
            yield Image.new('RGB', (1, 1)), target


@pytest.fixture
def opened(monkeypatch):
    """Lets timm 'open' a given data set."""
    def provide(dataset):
        monkeypatch.setattr(timm.data, 'create_dataset', lambda *args, **kwargs: dataset)
        monkeypatch.setattr(factory, 'count_shards', lambda *args, **kwargs: ({}, None))
        return dataset
    return provide


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
    with pytest.raises(ValueError, match='has 2 counts, but wds/x has 3 classes'):
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
    with pytest.raises(ValueError, match='does not name its classes'):
        create_dataset('wds/x', tmp_path, 'validation')
    (tmp_path / 'counts').write_text('[3, 5, 1]')
    with pytest.raises(ValueError, match='cannot be indexed'):
        create_dataset('wds/x', tmp_path, imbalance_factor=10, class_counts_file=tmp_path / 'counts')
    with pytest.raises(FileNotFoundError, match='file of class counts .* does not exist'):
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
