"""Local Hugging Face sets, whatever their columns are called."""
import pytest
from conftest import TINY_VIT
from helpers import settings_of
from stored import parquet

from timm_deitlt.data import create_dataset
from timm_deitlt.data import hf_columns as columns
from timm_deitlt.run.build.data import build_data

datasets = pytest.importorskip('datasets')
pyarrow = pytest.importorskip('pyarrow')
pytest.importorskip('pyarrow.parquet')


@pytest.fixture(autouse=True)
def own_datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path / 'cache' / 'datasets')


def test_columns_are_found_by_their_features(tmp_path):
    name = parquet(
        tmp_path, fine_label=([1, 0, 1], datasets.ClassLabel(names=['zebra', 'ant'])),
        source=(['x', 'y', 'z'], datasets.Value('string')))
    train = create_dataset(name)
    assert train.class_names == ('zebra', 'ant') and train.targets.tolist() == [1, 0, 1]
    assert [image.getpixel((0, 0))[0] for image, _ in train] == [0, 1, 2]
    assert create_dataset(name, split='test', class_names=('ant', 'zebra')).targets.tolist() == [0, 1, 0]


def test_names_become_classes_in_sorted_order(tmp_path):
    name = parquet(tmp_path, species=(['wren', 'auk', 'wren', 'emu'], datasets.Value('string')))
    train = create_dataset(name)
    assert train.class_names == ('auk', 'emu', 'wren') and train.targets.tolist() == [2, 0, 2, 1]
    assert [label for _, label in train] == [2, 0, 2, 1]
    mapped = create_dataset(name, class_map={'wren': 0, 'auk': 1, 'emu': 2})
    assert mapped.class_names == ('wren', 'auk', 'emu') and mapped.targets.tolist() == [0, 1, 0, 2]
    (tmp_path / 'map.txt').write_text('wren\nauk\n')
    with pytest.raises(ValueError, match=r"species.*1 name\(s\) that --class-map does not have, such as 'emu'"):
        create_dataset(name, class_map=str(tmp_path / 'map.txt'))


def test_columns_that_cannot_be_told_are_listed(tmp_path):
    kind = datasets.ClassLabel(names=['a', 'b'])
    name = parquet(tmp_path / 'two', coarse_label=([0, 1], kind), fine_label=([1, 0], kind))
    words = r'2 columns.*img \(Image\), coarse_label \(ClassLabel\), fine_label \(ClassLabel\).*--target-key'
    with pytest.raises(ValueError, match=words):
        create_dataset(name)
    assert create_dataset(name, target_key='fine_label').targets.tolist() == [1, 0]
    name = parquet(tmp_path / 'none', size=([2, 3], datasets.Value('int64')))
    with pytest.raises(ValueError, match=r'No column has the feature ClassLabel.*size \(int64\)'):
        create_dataset(name)


def test_whole_numbers_in_a_column_label_are_labels(tmp_path):
    name = parquet(tmp_path, images='image', label=([0, 2, 1], datasets.Value('int64')))
    assert create_dataset(name).targets.tolist() == [0, 2, 1]


def test_whole_numbers_beside_text_are_unclear(tmp_path, caplog):
    name = parquet(
        tmp_path, cls_id=([0, 2, 1], datasets.Value('int64')), split_name=(['a', 'b', 'a'], datasets.Value('string')))
    words = r'2 columns could be the label.*cls_id \(int64\), split_name \(string\).*--target-key'
    with pytest.raises(ValueError, match=words):
        create_dataset(name)
    with caplog.at_level('INFO'):
        assert create_dataset(name, target_key='cls_id').targets.tolist() == [0, 2, 1]
    assert any("images are column 'img', labels are column 'cls_id'" in line for line in caplog.messages)


@pytest.mark.parametrize('column', ['labels', 'Target', 'fine_label'])
def test_whole_numbers_of_a_telling_name_are_labels(tmp_path, column, caplog):
    name = parquet(
        tmp_path, **{column: ([0, 2, 1], datasets.Value('int64')), 'width': ([4, 4, 4], datasets.Value('int32')),
                     'note': (['a', 'b', 'a'], datasets.Value('string'))})
    with caplog.at_level('INFO'):
        assert create_dataset(name).targets.tolist() == [0, 2, 1]
    assert any(f'labels are column {column!r}' in line for line in caplog.messages)


def test_images_without_a_label_are_refused(tmp_path):
    name = parquet(tmp_path, species=(['wren', None, 'auk'], datasets.Value('string')))
    with pytest.raises(ValueError, match='without a label'):
        create_dataset(name)


def test_a_missing_set_and_a_missing_split_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='no data set hfds/'):
        create_dataset(f'hfds/{tmp_path / "nowhere"}')
    name = parquet(tmp_path, fine_label=([1, 0], datasets.ClassLabel(names=['a', 'b'])))
    with pytest.raises(ValueError, match='split .validation.'):
        create_dataset(name, split='validation')


def test_the_package_is_asked_for(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'datasets', None)
    with pytest.raises(ValueError, match='pip install datasets'):
        columns.find_columns('hfds/x', None, 'train')


def test_without_a_split_for_evaluation_the_message_says_how_to_evaluate(tmp_path):
    name = parquet(tmp_path / 'set', species=(['wren', 'auk'] * 6, datasets.Value('string')))
    (tmp_path / 'set' / 'data' / 'test-00000-of-00001.parquet').unlink()
    with pytest.raises(ValueError, match=r"split 'validation'.*\['train'\]\. .*--val-fraction 0\.1.*--folds 5"):
        build_data(settings_of(*TINY_VIT, '--dataset', name))
    for flags in (['--val-fraction', .25], ['--folds', 3, '--fold', 0]):
        data = build_data(settings_of(*TINY_VIT, '--dataset', name, *flags))
        assert len(data.evaluation) and len(data.train) + len(data.evaluation) == 12
