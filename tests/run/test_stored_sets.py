"""Training and evaluation on data as others store it: Hugging Face sets and WebDataset shards."""
import pytest
from conftest import TINIEST_TEACHER, TINY_VIT
from stored import parquet, shard

from timm_deitlt.run.train import train
from timm_deitlt.run.validate import validate
from timm_deitlt.settings.layers import parse_args


def trained(folder, *flags):
    """A run, and its figures evaluated again."""
    metrics = train(parse_args([
        *TINY_VIT, *TINIEST_TEACHER, '--epochs', '2', '--output', str(folder), '--experiment', 'run', *flags]))
    again = validate(str(folder / 'run'), {})
    for expert in ('mean', 'cls', 'dist'):
        assert again[expert]['per_class'] == metrics[expert]['per_class']
    return metrics


def test_a_hugging_face_set_trains_teacher_and_student(tmp_path, monkeypatch):
    datasets = pytest.importorskip('datasets')
    pytest.importorskip('pyarrow.parquet')
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path / 'cache' / 'datasets')
    kinds = ['zebra'] * 12 + ['ant'] * 6 + ['emu'] * 3
    name = parquet(tmp_path / 'set', species=(kinds, datasets.Value('string')))
    metrics = trained(tmp_path, '--dataset', name, '--val-split', 'test')
    assert metrics['data']['class_names'] == ['ant', 'emu', 'zebra']
    assert metrics['data']['train_counts'] == metrics['data']['test_counts'] == [6, 3, 12]
    assert metrics['teacher']['source'] == 'trained'


def test_shards_train_teacher_and_student(tmp_path):
    pytest.importorskip('webdataset')
    shards = tmp_path / 'shards'
    shards.mkdir()
    shard(shards / 'train-0000.tar', [0] * 12 + [1] * 6)
    shard(shards / 'train-0001.tar', [2] * 3 + [0] * 4, start=18)
    shard(shards / 'val-0000.tar', [0, 1, 1, 2])
    metrics = trained(
        tmp_path, '--dataset', 'wds/x', '--data-dir', str(shards), '--train-split', 'train-{0000..0001}.tar',
        '--val-split', 'val-0000.tar')
    assert metrics['data']['train_counts'] == [16, 6, 3] and metrics['data']['test_counts'] == [1, 2, 1]
    assert metrics['teacher']['source'] == 'trained'
