"""Folders of a user's own, from the real files through the real train: few images, rare classes, many bands."""
import json
import logging
import math

import numpy as np
import pytest
import torch
import yaml
from conftest import TINIEST_TEACHER, TINY_VIT
from helpers import settings_of
from PIL import Image
from timm.layers import resample_abs_pos_embed

from timm_deitlt.hub.export import export
from timm_deitlt.run.advice import named_counts, too_few_updates
from timm_deitlt.run.build.data import build_data
from timm_deitlt.run.mechanisms import analyze
from timm_deitlt.run.train import train
from timm_deitlt.run.validate import validate
from timm_deitlt.settings.layers import parse_args


@pytest.fixture(autouse=True)
def logged(caplog):
    caplog.set_level(logging.INFO)


def pictures(root, **counts):
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.effect_noise((20, 16), 20 + i).convert('RGB').save(root / name / f'{i}.png')
    return root


def run(*argv):
    return train(parse_args(list(map(str, argv))))


def planned(*argv):
    return run('--dry-run', *argv)


def test_images_of_a_folder_stay_in_memory_as_far_as_the_cache_goes(tmp_path, caplog):
    pictures(tmp_path / 'images', cat=12, dog=8)
    short = [*TINY_VIT, '--data-dir', tmp_path / 'images', '--teacher', 'none', '--epochs', 1, '--output', tmp_path]
    run(*short, '--experiment', 'default')
    assert '18 decoded training images are in memory, 0.0173 MB' in caplog.text, 'within 1 GiB without --cache-images'
    assert '2 decoded evaluation images are in memory' in caplog.text and 'do not fit' not in caplog.text
    caplog.clear()
    run(*short, '--experiment', 'part', '--cache-images', '.000017')
    assert '18 decoded training images are in memory' in caplog.text
    assert 'The evaluation images are not kept in memory: they do not fit' in caplog.text
    caplog.clear()
    run(*short, '--experiment', 'off', '--cache-images', 0)
    assert 'in memory' not in caplog.text


# too few updates

def test_own_data_of_250_images_says_that_it_is_too_little_and_what_to_type(tmp_path, caplog):
    pictures(tmp_path / 'images', cat=150, dog=70, wren=30)
    plan = planned('-c', 'own_data', '--data-dir', tmp_path / 'images', '--teacher', 'none')
    assert plan['updates_per_epoch'] == 1 and plan['train_images'] == 225
    words = (
        '224 images in updates of 512 make 1 update an epoch, 300 in all: too few to learn from scratch. Give '
        '--global-batch-size 16 --batch-size 16: 14 updates an epoch, 4,200 in all.')
    assert plan['warning'] == words and words in caplog.messages
    assert 'classes: cat 135, dog 63, wren 27' in caplog.text
    again = planned(
        '-c', 'own_data', '--data-dir', tmp_path / 'images', '--teacher', 'none', '--global-batch-size', 16,
        '--batch-size', 16)
    assert again['warning'] is None and again['updates_per_epoch'] == 14


@pytest.mark.parametrize('images, update, epochs, advice', [
    (30, 512, 300, '--batch-size 8: 4 updates an epoch, 1,200 in all. Also give --epochs 900 or more'),
    (30, 8, 300, '--epochs 900 or more'),
    (5000, 512, 300, '--global-batch-size 256 --batch-size 256: 20 updates an epoch'),
    (42, 8, 2, '42 images make 6 updates an epoch, 12 in all: too few to learn from scratch. Give --epochs 600'),
    (6144, 512, 300, None), (10 ** 6, 512, 90, None), (30, 8, 900, None),
])
def test_a_run_has_a_dozen_updates_an_epoch_or_as_many_in_all(images, update, epochs, advice):
    said = too_few_updates('', images, update, epochs)
    assert said is None if advice is None else advice in said
    assert math.ceil(images / update) >= min(12, 3600 / epochs) or said
    assert too_few_updates('lt/digits', images, update, epochs) is None


def test_of_many_classes_both_ends_are_named():
    assert named_counts(['a', 'b', 'c'], [1, 1200, 3]) == 'b 1,200, c 3, a 1'
    assert named_counts([f'c{i}' for i in range(20)], list(range(20, 0, -1))) == (
        'c0 20, c1 19, c2 18, c3 17, c4 16, ..., c15 5, c16 4, c17 3, c18 2, c19 1')


# names

def test_classes_that_are_not_evaluated_are_named(tmp_path, caplog):
    pictures(tmp_path / 'images', cat=12, dog=12, eel=3, wren=1)
    result = run(
        *TINY_VIT, '--data-dir', tmp_path / 'images', '--output', tmp_path / 'runs', '--epochs', 1,
        '--drw-start-epoch', 1)
    assert '2 class(es) are too small to hold out an image and are not evaluated: eel, wren. With --folds 5' in (
        caplog.text)
    assert 'no test images of class eel, wren; every mean leaves them out' in ' '.join(caplog.text.split())
    assert '26 training images of 4 classes (cat 11, dog 11, eel 3, wren 1;' in caplog.text
    assert '3 updates' not in caplog.text and 'too few to learn from scratch' in caplog.text
    assert result['shots']['missing_classes'] == [2, 3]


def test_classes_without_evaluation_images_are_named_in_the_plan(tmp_path, caplog):
    pictures(tmp_path / 'images' / 'train', cat=6, dog=5, wren=3)
    pictures(tmp_path / 'images' / 'val', cat=2)
    planned(*TINY_VIT, '--data-dir', tmp_path / 'images')
    words = "2 class(es) have no image in split 'validation' and are not evaluated: dog, wren."
    assert f'{words} Every mean leaves them out.' in caplog.messages


def test_only_names_of_splits_are_proposed_for_evaluation(tmp_path, caplog):
    for name in ('bus', 'car', 'train'):
        pictures(tmp_path / 'images' / name, cat=3, dog=3)
    settings_of(*TINY_VIT, '--data-dir', str(tmp_path / 'images'))
    assert 'also holds bus, car, which is not used. If these are classes beside' in caplog.text
    assert '--val-split' not in caplog.text


# few cores

def test_more_workers_than_cores_are_one_line_and_no_other_numbers(tmp_path, caplog, monkeypatch, recwarn):
    pictures(tmp_path / 'images', cat=12, dog=6)
    short = ['--epochs', 1, '--drw-start-epoch', 1, '--data-dir', tmp_path / 'images', '--output', tmp_path]
    alone = run(*TINY_VIT, *short, '--experiment', 'alone')
    assert 'for each core' not in caplog.text
    monkeypatch.setattr('timm_deitlt.run.settings.cores', lambda: 1)
    result = run(*TINY_VIT, *short, '--workers', 9, '--experiment', 'many')
    assert caplog.text.count('1 loader processes, one for each core, instead of 9.') == 1
    assert not [warning for warning in recwarn if 'This DataLoader' in str(warning.message)]
    assert result['weights_sha256'] == alone['weights_sha256']


# classes of one size

def test_a_balanced_set_has_no_head_and_no_tail(tmp_path, caplog):
    pictures(tmp_path / 'images', cat=22, dog=20)
    flags = [flag for flag in TINY_VIT if flag != '--no-report']
    result = run(
        *flags, *TINIEST_TEACHER, '--teacher-cache', tmp_path, '--data-dir', tmp_path / 'images', '--val-fraction', .2,
        '--output', tmp_path, '--experiment', 'run')
    words = 'no head and no tail, because all classes have about as many training images; mid is all of them'
    assert ' '.join(caplog.text.split()).count(words) == 3, 'before the run and under the tables of teacher and student'
    assert [result['shots'][group]['classes'] for group in ('head', 'mid', 'tail')] == [0, 2, 0]
    for row in ('mean', 'cls', 'dist', 'teacher'):
        assert result[row]['head'] is result[row]['tail'] is None and result[row]['mid'] == result[row]['balanced']
    assert 'tail' not in ''.join(sign['name'] for sign in json.loads((tmp_path / 'run/signatures.json').read_text()))
    page = (tmp_path / 'run' / 'report.html').read_text()
    assert words in page and 'accuracy_by_class' in page and 'accuracy_by_shot' not in page
    assert set(np.load(tmp_path / 'run' / 'attention.npz')['groups']) == {'mid'}
    assert json.loads((tmp_path / 'run' / 'analysis.json').read_text())['tail_gap'] is None
    again = validate(str(tmp_path / 'run'), {'device': 'cpu'})
    assert again['mean'] == result['mean']
    exported = export(tmp_path / 'run', tmp_path / 'out')
    assert 'metrics.json' in exported['files']


# mean and std

@pytest.fixture(scope='module')
def bands(tmp_path_factory):
    """13 bands of very different ranges, in files as satellites give them."""
    root = tmp_path_factory.mktemp('bands')
    random = np.random.RandomState(0)
    for name, count in (('sea', 14), ('land', 10), ('ice', 6)):
        (root / name / 'deep').mkdir(parents=True)
        for i in range(count):
            scene = random.normal(np.arange(13) * 300 + 500, 50 + np.arange(13), (18, 20, 13))
            np.save(root / name / 'deep' / f'{i}.npy', scene.clip(0, 65535).astype(np.uint16))
    return root


def test_13_bands_are_trained_validated_and_analysed_with_measured_mean_and_std(bands, tmp_path, caplog):
    command = [
        *TINY_VIT, *TINIEST_TEACHER, '--teacher-cache', tmp_path, '--data-dir', bands, '--in-chans', 13, '--mean',
        'auto', '--std', 'auto', '--aa', 'rand-m9-mstd0.5-inc1', '--reprob', .2, '--mixup', .8, '--output', tmp_path,
        '--experiment', 'run']
    result = run(*command)
    stored = yaml.safe_load((tmp_path / 'run' / 'args.yaml').read_text())
    files = list(bands.rglob('*.npy'))
    assert len(stored['mean']) == len(stored['std']) == 13
    assert np.allclose(stored['mean'], (np.arange(13) * 300 + 500) / 65535, rtol=.02) and len(files) == 30
    assert np.allclose(stored['std'], (50 + np.arange(13)) / 65535, rtol=.1)
    assert torch.load(tmp_path / 'run' / 'last.pth.tar', weights_only=False)['args'].mean == stored['mean']
    assert 'measured on 27 training images' in caplog.text and 'arrays of 13 channels' in caplog.text
    record = json.loads(next(tmp_path.glob('teachers/*/teacher.json')).read_text())
    assert record['images']['mean'] == stored['mean'] and record['images']['input_size'][0] == 13
    again = validate(str(tmp_path / 'run'), {'device': 'cpu'})
    assert again['mean'] == result['mean']
    assert analyze(str(tmp_path / 'run'), {'device': 'cpu'})['num_images'] == 3
    resumed = run(*command, '--resume', 'auto')
    assert resumed['weights_sha256'] == result['weights_sha256']


def test_tiffs_of_many_bands_without_in_chans_end_before_any_work(tmp_path):
    tifffile = pytest.importorskip('tifffile')
    for name in ('sea', 'land'):
        (tmp_path / 'scenes' / name).mkdir(parents=True)
        for i in range(12):
            tifffile.imwrite(tmp_path / 'scenes' / name / f'{i}.tif', np.zeros((13, 8, 8), np.uint16))
    command = [*TINY_VIT, *TINIEST_TEACHER, '--data-dir', tmp_path / 'scenes', '--output', tmp_path / 'runs']
    for more in ((), ('--dry-run',), ('--skip-bad-images',)):
        with pytest.raises(ValueError, match=r'scenes/land/\d+.tif.*its 13 bands cannot.*--in-chans 13 --mean.*own\.$'):
            run(*command, *more)
    assert not (tmp_path / 'runs').exists()
    assert planned(*command, '--in-chans', 13, '--mean', 'auto', '--std', 'auto')['train_images'] == 22


def test_a_fourth_band_that_is_tagged_as_transparency_gets_a_hint(tmp_path, caplog):
    random = np.random.RandomState(0)
    for name in ('sea', 'land'):
        (tmp_path / name).mkdir()
        for i in range(6):
            scene = random.randint(0, 255, (8, 8, 4), dtype=np.uint8)
            scene[:2, :, 3] = 255 if name == 'sea' else 40
            Image.fromarray(scene).save(tmp_path / name / f'{i}.tif')
    command = [*TINY_VIT, '--data-dir', tmp_path]
    planned(*command)
    hint = 'Hardly a pixel is opaque in 5 of 10 images of ' f'{tmp_path} that were looked at'
    assert hint in caplog.text and 'give --in-chans 4' in caplog.text
    caplog.clear()
    planned(*command, '--in-chans', 4, '--mean', 'auto', '--std', 'auto')
    assert 'opaque' not in caplog.text


@pytest.mark.parametrize('largest', [4095, 65535])
def test_dark_images_of_16_bits_get_one_hint(tmp_path, caplog, largest):
    random = np.random.RandomState(0)
    for name in ('cell', 'void'):
        (tmp_path / name).mkdir()
        for i in range(6):
            values = random.randint(0, largest + 1, (8, 8)).astype(np.uint16)
            values[0, 0] = largest
            Image.fromarray(values).save(tmp_path / name / f'{i}.{"tif" if i % 2 else "png"}')
    command = [*TINY_VIT, '--data-dir', tmp_path]
    planned(*command)
    hint = f'grey images of 16 bits, in {tmp_path}, were looked at. Their largest number is 4,095 of 65,535'
    assert caplog.text.count(hint) == (largest == 4095)
    caplog.clear()
    planned(*command, '--input-img-mode', 'array', '--in-chans', 1, '--mean', 'auto', '--std', 'auto')
    assert 'of 16 bits' not in caplog.text


def test_bands_need_a_mean_and_a_filter_that_fits(bands, tmp_path):
    command = [*TINY_VIT, '--data-dir', bands, '--in-chans', 13, '--output', tmp_path]
    with pytest.raises(ValueError, match='--mean has 3 values.*13 channels.*or auto'):
        run(*command)
    with pytest.raises(ValueError, match='Arrays cannot be resized by lanczos'):
        run(*command, '--mean', 'auto', '--std', 'auto', '--train-interpolation', 'lanczos')
    with pytest.raises(ValueError, match='--augment-backend opencv augments grey or RGB'):
        run(*command, '--mean', .1, '--std', .1, '--augment-backend', 'opencv')
    with pytest.raises(ValueError, match='only the word auto'):
        run(*command, '--mean', 'auto', '.5')


def test_mean_and_std_of_pictures_are_measured_on_what_is_trained_on(tmp_path, caplog):
    pictures(tmp_path / 'images', cat=12, dog=8)
    command = [
        *TINY_VIT, *TINIEST_TEACHER, '--teacher-cache', tmp_path, '--data-dir', tmp_path / 'images', '--mean', 'auto',
        '--std', 'auto', '--epochs', 1, '--drw-start-epoch', 1, '--output', tmp_path, '--experiment', 'run']
    plan = planned(*command)
    assert plan['measured'] and 'mean and std are measured' in caplog.text and 'measured on' not in caplog.text
    result = run(*command)
    images = np.stack([np.asarray(image) for image, _ in build_data(settings_of(*command)).train]) / 255.
    stored = yaml.safe_load((tmp_path / 'run' / 'args.yaml').read_text())
    assert np.allclose(stored['mean'], images.mean((0, 1, 2)), atol=1e-5)
    assert np.allclose(stored['std'], images.std((0, 1, 2)), atol=1e-5)
    assert result['data']['train_counts'] == [11, 7]
    record = json.loads(next(tmp_path.glob('teachers/*/teacher.json')).read_text())
    assert record['images']['std'] == stored['std']


# weights of other classes

def test_a_start_of_10_classes_gives_all_but_the_heads_to_2_classes(tmp_path, caplog):
    pictures(tmp_path / 'ten', **{f'c{i}': 6 for i in range(10)})
    pictures(tmp_path / 'two', cat=6, dog=4)
    short = ['--epochs', '1', '--drw-start-epoch', '1', '--output', tmp_path, '--val-fraction', '.2']
    run(*TINY_VIT, *short, '--teacher', 'labels', '--data-dir', tmp_path / 'ten', '--experiment', 'ten')
    start = tmp_path / 'ten' / 'last.pth.tar'
    caplog.clear()
    run(*TINY_VIT, *short, '--teacher', 'labels', '--data-dir', tmp_path / 'two', '--experiment', 'two',
        '--initial-checkpoint', start, '--lr', 1e-9, '--opt', 'sgd')
    assert f'{start} has 10 classes, the data set 2: both heads (head, head_dist) start from new' in caplog.text
    before, after = (
        torch.load(file, weights_only=False)['state_dict'] for file in (start, tmp_path / 'two' / 'last.pth.tar'))
    same = {name for name in after if after[name].shape == before[name].shape and torch.allclose(
        after[name], before[name], atol=1e-4)}
    assert set(after) - same == {'head.weight', 'head.bias', 'head_dist.weight', 'head_dist.bias'}
    caplog.clear()
    run(*TINY_VIT, *short, '--data-dir', tmp_path / 'two', '--experiment', 'path', '--pretrained-path', start)
    assert f'The classes of {start} are not known: both heads (head, head_dist) start from new' in caplog.text
    caplog.clear()
    run(*TINY_VIT, *short, '--data-dir', tmp_path / 'ten', '--experiment', 'same', '--initial-checkpoint', start)
    assert 'start from new' not in caplog.text


def test_a_start_at_another_image_size_has_its_positions_resized(tmp_path):
    pictures(tmp_path / 'two', cat=6, dog=4)
    short = ['--epochs', '1', '--drw-start-epoch', '1', '--output', tmp_path, '--data-dir', tmp_path / 'two']
    run(*TINY_VIT, *short, '--experiment', 'small')
    start = tmp_path / 'small' / 'last.pth.tar'
    run(*TINY_VIT, *short, '--experiment', 'large', '--img-size', 32, '--initial-checkpoint', start, '--lr', 1e-9,
        '--opt', 'sgd')
    before, after = (
        torch.load(file, weights_only=False)['state_dict']['pos_embed']
        for file in (start, tmp_path / 'large' / 'last.pth.tar'))
    assert before.shape[1] == 2 + 4 and after.shape[1] == 2 + 16
    expected = resample_abs_pos_embed(before, new_size=[4, 4], num_prefix_tokens=2)
    assert torch.allclose(after, expected, atol=1e-4)


def test_a_split_of_another_name_is_not_passed_over_in_silence(tmp_path, caplog):
    for split in ('train', 'test'):
        pictures(tmp_path / 'images' / split, ant=8, bee=8)
    planned('-c', 'own_data', '--data-dir', tmp_path / 'images', '--teacher', 'none')
    assert 'also holds test, which is not used. Evaluate on it with --val-split test.' in caplog.text
    caplog.clear()
    planned('-c', 'own_data', '--data-dir', tmp_path / 'images', '--teacher', 'none', '--val-split', 'test')
    assert 'also holds' not in caplog.text
