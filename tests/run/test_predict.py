"""Predictions for new images: right, for every image, in a file that is whole or not there."""
import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import ROOT, TINY, ends_it_after, last_json, run_script
from PIL import Image

import timm_deitlt
from timm_deitlt.cli.commands import validate_main
from timm_deitlt.cli.predict import predict_main
from timm_deitlt.evaluation.fusion import FUSIONS
from timm_deitlt.hub.export import export
from timm_deitlt.hub.source import read_model
from timm_deitlt.run import predict, predict_files
from timm_deitlt.run.mechanisms import analyze
from timm_deitlt.run.validate import validate

SUBSET = TINY.index('--n-max')
MODEL = [*TINY[:SUBSET], *TINY[SUBSET + 4:]]
COUNTS = {'cat': 8, 'dog': 5, 'emu': 3}
COMMAND = 'timm_deitlt_command.py'


def save_image(path, seed, size=(20, 24)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A folder with a run on images of three classes, and new images."""
    folder = tmp_path_factory.mktemp('predict')
    for label, (name, count) in enumerate(COUNTS.items()):
        for i in range(count):
            save_image(folder / 'train' / 'train' / name / f'{i}.png', 10 * label + i)
            save_image(folder / 'train' / 'val' / name / f'{i}.png', 100 + 10 * label + i)
    run_script(
        *MODEL, '--data-dir', folder / 'train', '--teacher', 'test_resnet_sam', '--teacher-epochs', '1', '--epochs',
        '2', '--drw-start-epoch', '1', '--lr', '5e-3', '--output', folder, '--experiment', 'run', '--teacher-cache',
        folder / 'cache')
    for i in range(10):
        save_image(folder / 'new' / f'{i}.png', 1000 + i, (18 + i, 30 - i))
    return folder


@pytest.fixture(scope='module')
def trained(place):
    return timm_deitlt.load_model(place / 'run')


@pytest.fixture(scope='module')
def images(place):
    return sorted(str(path) for path in (place / 'new').iterdir())


def logits_by_hand(trained, path):
    """Logits of CLS and DIST of one image, by timm's transform and the heads alone."""
    model, config = trained.model, trained.model.pretrained_cfg
    transform = timm.data.create_transform(
        **{name: config[name] for name in ('input_size', 'interpolation', 'mean', 'std', 'crop_pct')})
    with Image.open(path) as image, torch.no_grad():
        features = model.forward_features(transform(image.convert('RGB'))[None])
        return model.head(features[:, 0])[0], model.head_dist(features[:, 1])[0]


def test_answer_is_the_softmax_of_the_mean_of_both_experts_the_likeliest_class_first(trained, images):
    rows = trained.predict(images, topk=2, experts=True, batch_size=4)
    assert [row['path'] for row in rows] == images
    for row in rows:
        cls, dist = logits_by_hand(trained, row['path'])
        for answer, logits in ((row, (cls + dist) / 2), (row['cls'], cls), (row['dist'], dist)):
            chances = logits.softmax(-1).tolist()
            order = sorted(range(3), key=lambda label: -chances[label])[:2]
            assert answer['labels'] == [list(COUNTS)[label] for label in order]
            assert answer['probabilities'] == pytest.approx([chances[label] for label in order], abs=1e-6)


@pytest.mark.parametrize('fusion', FUSIONS)
def test_fusion_is_that_of_the_evaluation(trained, images, fusion):
    row, = trained.predict(images[0], fusion=fusion)
    cls, dist = logits_by_hand(trained, images[0])
    chances = FUSIONS[fusion](cls[None], dist[None], torch.tensor(list(COUNTS.values())).float())[0].exp()
    found = dict(zip(row['labels'], row['probabilities'], strict=True))
    assert [found[name] for name in COUNTS] == pytest.approx(chances.tolist(), abs=1e-5)


def test_paths_files_and_pil_images_give_the_same_whatever_the_batch_and_the_workers(trained, images):
    expected = trained.predict(images)
    with open(images[1], 'rb') as file:
        mixed = trained.predict([images[0], file, Image.open(images[2])], batch_size=2)
    for rows in (mixed, trained.predict(images, batch_size=3, workers=1), trained.predict(iter(images))):
        for row, wanted in zip(rows, expected, strict=False):
            assert row['labels'] == wanted['labels']
            assert row['probabilities'] == pytest.approx(wanted['probabilities'], abs=1e-6)


@pytest.mark.parametrize('kind', ['checkpoint', 'milestone', 'exported', 'hub'])
def test_a_model_is_loaded_from_wherever_it_is(place, trained, images, kind, tmp_path, monkeypatch):
    path = {'checkpoint': place / 'run' / 'last.pth.tar', 'milestone': place / 'run' / 'milestone-1.pth.tar',
            'exported': tmp_path / 'exported', 'hub': 'hf-hub:me/mine'}[kind]
    if kind in ('exported', 'hub'):
        export(place / 'run', tmp_path / 'exported')
        monkeypatch.setattr(predict, 'model_folder', lambda name: tmp_path / 'exported')
    found = timm_deitlt.load_model(path)
    same = found.predict(images, experts=True) == trained.predict(images, experts=True)
    assert same is (kind != 'milestone')
    assert (found.label_names, found.experts) == (tuple(COUNTS), ('mean', 'cls', 'dist'))
    assert found.class_counts == tuple(COUNTS.values())
    assert found.transform(Image.open(images[0]).convert('RGB')).shape == (3, 16, 16)
    assert len(found.model.forward_experts(torch.zeros(1, 3, 16, 16))) == 2


def test_a_cached_teacher_predicts_too(place, images):
    teacher, = (place / 'cache' / 'teachers').glob('test_resnet*')
    found = timm_deitlt.load_model(teacher)
    row, = found.predict(images[0], experts=True)
    assert found.experts == ('mean', 'cls') and row['cls'] == {name: row[name] for name in ('labels', 'probabilities')}


def test_probabilities_of_a_cosine_classifier_have_the_scale_of_its_loss(place, images):
    teacher, = (place / 'cache' / 'teachers').glob('test_resnet*')
    found = timm_deitlt.load_model(teacher)
    with Image.open(images[0]) as image, torch.no_grad():
        cosines = found.model(found.transform(image.convert('RGB'))[None])[0]
    assert cosines.abs().max() <= 1 and found.logit_scale == read_model(teacher).config['logit_scale'] == 30
    wanted = (30 * cosines).softmax(-1).sort(descending=True).values
    assert found.predict(images[0])[0]['probabilities'] == pytest.approx(wanted.tolist(), abs=1e-4)


def test_a_run_is_loaded_where_its_data_is_gone(place, images, tmp_path):
    for name in ('last.pth.tar', 'metrics.json'):
        (tmp_path / name).write_bytes((place / 'run' / name).read_bytes())
    (place / 'train').rename(place / 'moved')
    try:
        assert timm_deitlt.load_model(tmp_path).predict(images)
    finally:
        (place / 'moved').rename(place / 'train')


@pytest.mark.parametrize(('options', 'words'), [
    ({'topk': 0}, 'topk must be at least 1, got 0'), ({'batch_size': 0}, 'batch_size must be at least 1'),
    ({'fusion': 'all'}, 'give one fusion, not all'), ({'fusion': 'best'}, "Unknown fusion 'best'")])
def test_options_that_are_not_usable_are_refused_at_once(trained, images, options, words):
    with pytest.raises(ValueError, match=words):
        trained.predict_batches(images, **options)


def test_what_is_no_model_is_refused_with_what_is_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'neither last.pth.tar, as a run .*config.json, as an exported'):
        timm_deitlt.load_model(tmp_path)
    with pytest.raises(FileNotFoundError, match='no checkpoint'):
        timm_deitlt.load_model(tmp_path / 'nowhere')


def test_an_image_on_its_side_is_seen_upright(trained, images, tmp_path):
    image = Image.open(images[0])
    exif = image.getexif()
    exif[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / 'x.png', exif=exif)
    expected, found = trained.predict([images[0], tmp_path / 'x.png'])
    assert found['probabilities'] == pytest.approx(expected['probabilities'], abs=1e-6)


# Files

@pytest.fixture(scope='module')
def odd(place, images):
    """The images with some that cannot be read among them, and why."""
    empty, cut, text = (place / name for name in ('empty.png', 'cut.jpg', 'text.png'))
    empty.write_bytes(b'')
    Image.open(images[0]).resize((300, 300)).save(cut)
    cut.write_bytes(cut.read_bytes()[:2000])
    text.write_text('no image')
    bad = {str(empty): 'the file is empty', str(cut): 'truncated', str(text): 'cannot identify'}
    bad['gone.png'] = 'No such file'
    return [images[0], *bad, *images[1:]], bad


@pytest.mark.parametrize('form', ['csv', 'jsonl'])
def test_every_image_has_a_row_and_the_unreadable_ones_their_reason(trained, odd, tmp_path, form, caplog):
    paths, bad = odd
    output = tmp_path / f'out.{form}'
    with caplog.at_level('INFO'):
        result = predict_files.predict_files(trained, paths, output, topk=2, experts=True, batch_size=4)
    assert (result['images'], result['unreadable'], result['output']) == (14, 4, str(output))
    assert '4 of 14 images could not be read' in caplog.text and 'Not read: gone.png: ' in caplog.text
    if form == 'csv':
        with open(output, newline='') as file:
            rows = list(csv.DictReader(file))
        assert list(rows[0]) == [
            'path', *(f'{prefix}{name}_{place}' for prefix in ('', 'cls_', 'dist_') for place in (1, 2)
                      for name in ('label', 'probability')), 'error']
    else:
        rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row['path'] for row in rows] == paths
    readable = iter(trained.predict([path for path in paths if path not in bad], topk=2, experts=True))
    for row in rows:
        if row['path'] in bad:
            assert bad[row['path']] in row['error'] and not row.get('label_1') and not row.get('labels')
            continue
        expected = next(readable)
        if form == 'jsonl':
            assert row['labels'] == expected['labels'] and row['dist']['labels'] == expected['dist']['labels']
        else:
            assert (row['label_1'], row['cls_label_2']) == (expected['labels'][0], expected['cls']['labels'][1])
            assert float(row['probability_2']) == pytest.approx(expected['probabilities'][1], abs=1e-6)
            assert row['error'] == ''


def test_rate_is_given_beside_the_models_own_where_there_are_batches_enough(trained, images):
    result = predict_files.predict_files(trained, images, show=lambda line: None, batch_size=2)
    assert result['share'] == pytest.approx(result['images_per_second'] / result['model_images_per_second'], rel=.05)
    few = predict_files.predict_files(trained, images, show=lambda line: None, batch_size=5)
    assert 'share' not in few and few['images_per_second'] > 0


@pytest.mark.parametrize(('name', 'words'), [
    ('out.txt', 'no known form: give a file name that ends in .csv, .jsonl or .parquet'),
    ('nowhere/out.csv', 'the folder .*nowhere does not exist: make it first'),
    ('folder.csv', 'cannot be written')])
def test_an_output_that_cannot_be_written_is_refused_before_any_work(trained, tmp_path, name, words):
    (tmp_path / 'folder.csv').mkdir()
    with pytest.raises(ValueError, match=words):
        predict_files.predict_files(trained, ['gone.png'], tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ['folder.csv']


def test_parquet_without_its_package_is_refused_with_what_to_install(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(predict_files, 'find_spec', lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'timm_deitlt\[parquet\]'"):
        predict_files.predict_files(trained, ['gone.png'], tmp_path / 'out.parquet')


@pytest.mark.slow
def test_parquet_has_the_columns_of_the_table(trained, odd, tmp_path, caplog):
    caplog.set_level('CRITICAL')  # a worker of pytest-xdist could not send a log with the name that is no UTF-8
    pq = pytest.importorskip('pyarrow.parquet')
    predict_files.predict_files(trained, [*odd[0], os.fsdecode(b'\xff.png')], tmp_path / 'out.parquet', topk=1)
    rows = pq.read_table(tmp_path / 'out.parquet').to_pylist()
    assert list(rows[0]) == ['path', 'label_1', 'probability_1', 'error'] and len(rows) == 15
    assert rows[0]['error'] is None and rows[1]['label_1'] is None and rows[-1]['path'].endswith('.png')


def test_a_path_that_is_no_utf8_is_written_as_it_is(trained, images, tmp_path):
    path = os.fsencode(tmp_path) + b'/\xff.png'
    with open(path, 'wb') as file, open(images[0], 'rb') as image:
        file.write(image.read())
    predict_files.predict_files(trained, [os.fsdecode(path)], tmp_path / 'out.csv', topk=1)
    assert path in (tmp_path / 'out.csv').read_bytes()


# The command

def command(*args, **options):
    return run_script(*args, script=COMMAND, **options)


def test_command_prints_a_line_for_each_image_and_a_summary(place, trained, images):
    done = command('predict', place / 'run', place / 'new', '--topk', '1')
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f'{images[0]}  {trained.predict(images[0])[0]["labels"][0]} ') and len(lines) == 11
    assert last_json(done)['images'] == 10 and 'images/s' in done.stderr


def test_command_writes_a_file_and_takes_a_list_from_standard_input(place, images, tmp_path):
    code = (
        'import io, runpy, sys\n'
        f'sys.stdin = io.StringIO({images[0]!r} + "\\n" + {images[3]!r} + "\\n")\n'
        f'sys.argv = ["x", "predict", {str(place / "run")!r}, "-", "-o", "out.csv", "--experts"]\n'
        'from timm_deitlt.cli.verbs import main\nmain()\n')
    (tmp_path / 'listed.py').write_text(code)
    done = run_script(script=tmp_path / 'listed.py', cwd=tmp_path)
    assert last_json(done)['output'] == 'out.csv'
    with open(tmp_path / 'out.csv', newline='') as file:
        assert [row['path'] for row in csv.DictReader(file)] == [images[0], images[3]]


@pytest.mark.parametrize(('args', 'words'), [
    (['nowhere', '{new}'], "There is no checkpoint 'nowhere'"),
    (['{run}', 'nowhere.png'], "no file or folder 'nowhere.png'"),
    (['{run}', '{run}'], 'There is no image in'), (['{run}', '{new}', '-o', 'x.txt'], 'no known form'),
    (['{run}', '{new}', '--topk', '0'], 'topk must be at least 1'),
    (['{run}', '{new}', '--device', 'cuda:99'], '--device cuda:99 cannot be used')])
def test_bad_input_is_one_line_and_exit_code_2(place, tmp_path, args, words):
    named = [arg.format(run=place / 'run', new=place / 'new') for arg in args]
    done = command('predict', *named, check=False, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ''
    assert len(done.stderr.strip().splitlines()) <= 2 and words in done.stderr and 'Traceback' not in done.stderr
    assert done.stderr.splitlines()[-1].startswith('timm-deitlt predict: error: ')


def test_killed_in_the_middle_nothing_is_left_that_looks_whole(place, images, tmp_path):
    old = tmp_path / 'out.csv'
    old.write_text('of before')
    listed = tmp_path / 'many'
    listed.mkdir()
    for i in range(4000):
        (listed / f'{i:04}.png').symlink_to(images[i % 10])
    done = command(
        'predict', place / 'run', listed, '-o', old, '-b', '8', '-j', '0', check=False,
        started=ends_it_after(signal.SIGKILL, tmp_path, '.out.csv.tmp'))
    assert done.returncode == -signal.SIGKILL
    assert old.read_text() == 'of before' and [path.name for path in tmp_path.glob('*.csv')] == ['out.csv']
    done = command('predict', place / 'run', place / 'new', '-o', old)
    assert len(old.read_text().splitlines()) == 11 and not list(tmp_path.glob('.*.tmp'))


@pytest.mark.parametrize('suffix', ['png', 'npy'])
def test_arrays_are_opened_as_in_training_from_a_run_and_from_its_export(tmp_path, suffix):
    """Two classes that are both black as pictures: numbers of 16 bits that are told apart by their size alone."""
    def write(file, low):
        file.parent.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(low).integers(low, low + 30, (16, 16), dtype=np.uint16)
        np.save(file, values) if suffix == 'npy' else Image.fromarray(values).save(file)

    for i in range(8):
        write(tmp_path / 'data' / 'dim' / f'{i}.{suffix}', 10)
        write(tmp_path / 'data' / 'bright' / f'{i}.{suffix}', 200)
    run_script(
        *MODEL, '--data-dir', tmp_path / 'data', '--val-fraction', '.25', '--teacher', 'none', '--drw-on', 'none',
        '--epochs', '6', '--lr', '1e-3', '--batch-size', '4', '--mixup', '0', '--cutmix', '0', '--input-img-mode',
        'array', '--in-chans', '1', '--mean', 'auto', '--std', 'auto', '--output', tmp_path, '--experiment', 'run')
    export(tmp_path / 'run', tmp_path / 'out')
    files = sorted(map(str, (tmp_path / 'data').rglob(f'*.{suffix}')))
    for model in ('run', 'out'):
        loaded = timm_deitlt.load_model(tmp_path / model)
        assert loaded.image_mode == 'array'
        answers = [row['labels'][0] for row in loaded.predict(files)]
        assert answers == [os.path.basename(os.path.dirname(file)) for file in files]
    done = command('predict', tmp_path / 'out', tmp_path / 'data', '-o', tmp_path / 'answers.csv')
    assert json.loads(done.stdout.splitlines()[-1])['images'] == 16


def test_arrays_for_a_model_of_pictures_are_named(place, trained, tmp_path):
    (tmp_path / 'scenes').mkdir()
    for i in range(3):
        np.save(tmp_path / 'scenes' / f'{i}.npy', np.zeros((8, 8, 13)))
    done = command('predict', place / 'run', tmp_path / 'scenes', check=False)
    assert done.returncode == 2 and 'skipped: 3 .npy' in done.stderr
    assert 'images of mode RGB, not .npy arrays' in done.stderr
    row, = trained.predict(tmp_path / 'scenes' / '0.npy')
    assert row['error'].startswith('it is an .npy array, not an image of mode RGB')
    save_image(tmp_path / 'scenes' / 'x.png', 1)
    done = command('predict', place / 'run', tmp_path / 'scenes')
    assert last_json(done)['images'] == 1 and f'Skipped in {tmp_path}/scenes: 3 .npy.' in done.stderr


def test_where_no_image_can_be_read_the_command_fails(place, tmp_path):
    (tmp_path / 'broken.png').write_bytes(b'no image at all')
    done = command('predict', place / 'run', tmp_path / 'broken.png', check=False)
    assert done.returncode == 2 and 'None of the 1 images could be read' in done.stderr


def test_what_is_no_image_is_an_error_of_the_program(trained, images):
    with pytest.raises(TypeError, match='not ndarray.*array one by PIL.Image.fromarray'):
        trained.predict([np.zeros((4, 4, 3), np.uint8)])
    with pytest.raises(TypeError, match='not bytes.*the bytes of a file by io.BytesIO'):
        trained.predict(Path(images[0]).read_bytes())


def test_a_single_open_file_is_an_image(trained, images):
    with open(images[0], 'rb') as file:
        row, = trained.predict(file)
    assert row['labels'] == trained.predict(images[0])[0]['labels']


def test_folds_are_named_where_one_model_is_asked_for(tmp_path):
    (tmp_path / 'fold-0').mkdir()
    for takes in (
            timm_deitlt.load_model, lambda path: validate(str(path), {}), lambda path: analyze(str(path), {}),
            lambda path: export(path, path / 'out')):
        with pytest.raises(ValueError, match='holds the folds of a run: give one of them, such as .*fold-0'):
            takes(tmp_path)


@pytest.mark.parametrize(('verb', 'flags', 'words'), [
    ('predict', ['-b', '0'], '--batch-size must be at least 1, got 0'),
    ('predict', ['-j', '-1'], '--workers must be at least 0, got -1'),
    ('validate', ['-b', '0'], '--batch-size must be at least 1, got 0'),
    ('validate', ['-j', '-1'], '--workers must be at least 0, got -1')])
def test_numbers_out_of_range_end_before_any_work(verb, flags, words, capsys):
    main = {'predict': predict_main, 'validate': validate_main}[verb]
    with pytest.raises(SystemExit) as error:
        main(['nowhere', *(['x.png'] if verb == 'predict' else []), *flags])
    assert error.value.code == 2 and capsys.readouterr().err.splitlines()[-1].endswith(f'error: {words}')


def test_a_reader_that_leaves_ends_a_prediction_in_silence(place):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, ROOT / COMMAND, 'predict', place / 'run', place / 'new'], stdout=writer,
        stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.returncode == 141 and 'Traceback' not in done.stderr and 'BrokenPipe' not in done.stderr


def test_the_form_of_the_output_is_told_in_upper_case_too(trained, images, tmp_path):
    for name in ('x.CSV', 'x.JSONL'):
        predict_files.predict_files(trained, list(map(str, images)), tmp_path / name)
    assert (tmp_path / 'x.CSV').read_text().startswith('path,label_1')
    assert len((tmp_path / 'x.JSONL').read_text().splitlines()) == len(images)
