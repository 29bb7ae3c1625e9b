"""WebDataset shards without a description."""
import errno
import logging
import os

import pytest
from stored import shard

from timm_deitlt.data import create_dataset

pytest.importorskip('webdataset')


@pytest.fixture
def two(tmp_path):
    folder = tmp_path / 'wds'
    folder.mkdir()
    shard(folder / 'train-0000.tar', [0, 0, 2])
    shard(folder / 'train-0001.tar', [1, 2, 0, 1], start=3)
    return folder


def test_images_and_classes_are_counted_once_and_the_count_is_kept(two, caplog):
    caplog.set_level(logging.INFO)
    for times in (1, 1):
        train = create_dataset('wds/x', two, 'train-{0000..0001}.tar', is_training=True)
        assert train.class_counts == [3, 2, 2] and train.class_names == ('0', '1', '2')
        assert train.reader.num_samples == 7
        assert sum('counting the images of 2 shard(s) once' in line for line in caplog.messages) == times
    assert sorted(label for _, label in train)[:3] == [0, 0, 0]
    evaluation = create_dataset('wds/x', two, 'train-0001.tar', class_names=train.class_names, is_training=False)
    assert len(evaluation) == 4
    shard(two / 'train-0001.tar', [1])  # another file of that name is counted anew
    assert create_dataset('wds/x', two, 'train-{0000..0001}.tar', is_training=True).class_counts == [2, 1, 1]


def test_a_full_disk_only_means_that_the_count_is_not_kept(two, caplog, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, 'replace', full)
    train = create_dataset('wds/x', two, 'train-{0000..0001}.tar', is_training=True)
    assert train.class_counts == [3, 2, 2]
    message, = (line for line in caplog.messages if 'cannot be kept' in line)
    assert 'No space left' in message and 'start again' not in message


def test_a_count_that_is_given_is_believed(two, tmp_path):
    (tmp_path / 'counts').write_text('4\n1\n1')
    options = dict(class_counts_file=tmp_path / 'counts', is_training=True)
    assert create_dataset('wds/x', two, 'train-{0000..0001}.tar|6', **options).reader.num_samples == 6
    assert create_dataset('wds/x', two, 'train-{0000..0001}.tar', num_samples=5, **options).reader.num_samples == 5
    assert create_dataset('wds/x', two, 'train-{0000..0001}.tar', **options).class_counts == [4, 1, 1]


def test_shards_are_to_be_named(two):
    with pytest.raises(ValueError, match=r"split 'train' \(train-0000.tar to train-0001.tar\).*'train-\{0000..0003\}"):
        create_dataset('wds/x', two)
    with pytest.raises(FileNotFoundError, match='1 of 3 shards.*train-0002.tar'):
        create_dataset('wds/x', two, 'train-{0000..0002}.tar')
    with pytest.raises(ValueError, match=r"not on this machine.*'https://x/\{0..1\}.tar\|N'"):
        create_dataset('wds/x', two, 'https://x/{0..1}.tar')


def test_labels_in_json_need_their_counts(two):
    shard(two / 'json-0.tar', [0, 1], 'json')
    with pytest.raises(ValueError, match='no image with a label'):
        create_dataset('wds/x', two, 'json-0.tar')
    with pytest.raises(ValueError, match='--class-counts FILE'):
        create_dataset('wds/x', two, 'json-0.tar', target_key='y', is_training=True)


def test_a_damaged_shard_is_named(two):
    (two / 'train-0001.tar').write_bytes(b'no archive')
    with pytest.raises(ValueError, match='train-0001.tar cannot be read'):
        create_dataset('wds/x', two, 'train-{0000..0001}.tar')
