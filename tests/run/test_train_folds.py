"""--folds: each image evaluated once by a run that has not seen it, and one table."""
import json
import logging
import shutil
import statistics

import numpy as np
import pytest
from conftest import TINIEST_TEACHER, TINY_VIT
from PIL import Image

from timm_deitlt.run.folds import folds_table, summarize_folds, train_folds
from timm_deitlt.settings.layers import parse_args


@pytest.fixture
def images(tmp_path):
    """Classes told by their brightness; of one there are 3 images, of one a single one."""
    for label, (name, count) in enumerate({'cat': 9, 'dog': 6, 'eel': 3, 'wren': 1}.items()):
        (tmp_path / 'images' / name).mkdir(parents=True)
        for i in range(count):
            Image.new('RGB', (16, 16), (60 * label + i,) * 3).save(tmp_path / 'images' / name / f'{i}.png')
    return tmp_path / 'images'


def asked(tmp_path, *argv):
    return parse_args([*TINY_VIT, *TINIEST_TEACHER, *map(str, [
        '--teacher-cache', tmp_path, '--data-dir', tmp_path / 'images', '--output', tmp_path, '--experiment', 'run',
        '--folds', 3, *argv])])


def test_folds_are_trained_once_and_end_in_one_table(images, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    first = train_folds(asked(tmp_path, '--fold', 1))
    assert first['data']['evaluated_on'] == 'fold 1 (from 0) of 3' and 'Folds not finished yet: 0, 2' in caplog.text
    written = (tmp_path / 'run' / 'fold-1' / 'last.pth.tar').stat().st_mtime_ns
    # stopped in the middle of fold 0
    stopped = asked(tmp_path, '--fold', 0, '--stop-epoch', 1)
    train_folds(stopped)
    summary = train_folds(asked(tmp_path))
    assert (tmp_path / 'run' / 'fold-1' / 'last.pth.tar').stat().st_mtime_ns == written
    assert json.loads((tmp_path / 'run' / 'folds.json').read_text()) == summary
    assert summary['images'] == 18 and summary['not_evaluated'] == ['wren'] and summary['folds'] == 3
    runs = [json.loads((tmp_path / 'run' / f'fold-{k}' / 'metrics.json').read_text()) for k in range(3)]
    assert [result['epochs_trained'] for result in runs] == [2, 2, 2]
    tests = np.array([result['data']['test_counts'] for result in runs])
    assert tests.sum(0).tolist() == [9, 6, 3, 0] and tests.sum(1).tolist() == [6, 6, 6]
    # a teacher for each fold, trained on what the fold trains on
    teachers = {json.loads(file.read_text())['data'] for file in tmp_path.glob('teachers/*/teacher.json')}
    assert teachers == {result['data']['fingerprint'] for result in runs} and len(teachers) == 3
    top1 = [result['mean']['top1'] for result in runs]
    assert summary['experts']['mean']['top1'] == pytest.approx({
        'mean': statistics.fmean(top1), 'std': statistics.stdev(top1), 'n': 3, 'pooled': statistics.fmean(top1)})
    assert 'over 3 folds; in the rows "all images", accuracy over all 18 images together' in caplog.text
    assert '1 class(es) have only one image, which is never evaluated: wren' in caplog.text
    assert train_folds(asked(tmp_path, '--dataset-download', '--workers', 1)) == summary, 'which trains nothing'
    with pytest.raises(ValueError, match=r'fold-0 was trained with other settings \(lr\)'):
        train_folds(asked(tmp_path, '--lr', '1e-3'))
    Image.new('RGB', (16, 16)).save(images / 'cat' / 'new.png')
    (tmp_path / 'run' / 'fold-2' / 'metrics.json').unlink()
    with pytest.raises(ValueError, match='trained on other images'):
        train_folds(asked(tmp_path))


def test_the_plan_of_a_fold_needs_no_training(images, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    plan = train_folds(asked(tmp_path, '--dry-run'))
    assert plan['fold'] == '0 of 3' and plan['train_images'] == 13 and not (tmp_path / 'run').exists()
    assert '13 training images of fold 0 of 3' in caplog.text and 'classes: cat 6, dog 4, eel 2, wren 1' in caplog.text
    digits = train_folds(parse_args(['--dataset', 'lt/digits', '--folds', '5', '--dry-run']))
    assert digits['train_images'] == 568 - 114


def test_images_of_other_splits_that_folds_do_not_deal_are_named(images, tmp_path, caplog):
    train_folds(asked(tmp_path, '--dry-run'))
    assert 'are not used' not in caplog.text
    for split in ('train', 'val', 'test'):
        shutil.copytree(images, tmp_path / 'split' / split)
    train_folds(asked(tmp_path, '--dry-run', '--data-dir', tmp_path / 'split'))
    words = "--folds deals the images of the 'train' split; those in test, val of "
    assert caplog.text.count(words) == 1 and 'put them into one folder for each class' in caplog.text


@pytest.mark.parametrize('argv, words', [
    (['--fold', 3], '--fold 3 must be from 0 to K - 1 with --folds K, got --folds 3'),
    (['--fold', 1, '--experiment', ''], '--fold needs --experiment'),
    (['--val-fraction', .2], 'leave --val-fraction out'),
    (['--teacher-checkpoint', 'hf-hub:x/y'], 'another one has seen'),
    (['--teacher-source', 'hub'], 'another one has seen'),
    (['--branch-from', 'x'], 'leave --resume and --branch-from out'),
    (['--folds', 1], 'at least 2'), (['--folds', 0], 'at least 2'), (['--folds', 100], 'at most the number of images'),
])
def test_what_does_not_go_with_folds_is_refused(images, tmp_path, argv, words):
    with pytest.raises(ValueError, match=words):
        train_folds(asked(tmp_path, *argv))


def test_several_devices_train_one_fold_a_command(images, tmp_path, monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(ValueError, match='--fold 0, then 1, ... to 2 with the same --experiment'):
        train_folds(asked(tmp_path))


def fold(train, test, per_class):
    return {
        'data': {'class_names': ['a', 'b', 'c'], 'train_counts': train, 'test_counts': test},
        'mean': {'per_class': per_class}, 'cls': {'per_class': per_class}, 'dist': None}


def test_the_summary_is_that_of_a_slow_count():
    results = [
        fold([200, 40, 2], [100, 20, 1], [90., 50., 100.]), fold([200, 40, 2], [100, 20, 1], [80., 25., 0.]),
        fold([200, 40, 2], [100, 20, 1], [70., 75., 0.])]
    results[2]['data'].update(train_counts=[200, 40, 3], test_counts=[100, 20, 0])
    results[2]['mean']['per_class'] = [70., 75., None]
    summary = summarize_folds(results)
    assert set(summary['experts']) == {'mean', 'cls'}
    columns = summary['experts']['mean']
    top1 = [100 * right / total for right, total in ((90 + 10 + 1, 121), (80 + 5, 121), (70 + 15, 120))]
    assert columns['top1']['mean'] == pytest.approx(statistics.fmean(top1))
    assert columns['top1']['pooled'] == pytest.approx(100 * (101 + 85 + 85) / 362)
    assert columns['head'] == pytest.approx({'mean': 80, 'std': 10, 'n': 3, 'pooled': 80})
    assert columns['tail'] == pytest.approx({'mean': 50, 'std': 50 * 2 ** .5, 'n': 2, 'pooled': 50})
    assert columns['balanced']['pooled'] == pytest.approx((80 + 50 + 50) / 3)
    assert summary['per_class']['mean'] == pytest.approx({'a': 80, 'b': 50, 'c': 50})
    table = folds_table(summary)
    assert '80.0 ± 10.0' in table and '50.0 ± 70.7' in table
    assert 'never evaluated' not in table and 'prediction' not in table
    for result in results:
        result.update(answer='mean_adjusted', fusion={'mean_adjusted': result['mean']})
    table = folds_table(summarize_folds(results))
    assert table.splitlines()[1].split()[0] == 'mean_adjusted' and table.endswith('prediction: mean_adjusted')
    results[1]['data']['train_counts'] = [201, 40, 2]
    with pytest.raises(ValueError, match='images changed between the folds'):
        summarize_folds(results)
