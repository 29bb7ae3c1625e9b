"""The scripts of speed/ run; what they measure is not looked at."""
import json
import math
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace
from unittest.mock import create_autospec

import pytest
import torch
from conftest import ROOT, run_script

sys.path.append(str(ROOT / 'speed'))
import gpu  # noqa: E402
import gpu_measure  # noqa: E402
import gpu_parts  # noqa: E402

SMALL = ['--img-size', '32', '--batch-size', '4', '--rounds', '1', '--device', 'cpu']
STUDENTS = ["timm's task, fp32, teacher at its own size", 'ours, --auto-speed off', 'small data']
TEACHERS = ['plain PyTorch, SGD, fp32', 'ours, SAM, --auto-speed off']


def run(script, *args):
    command = [sys.executable, ROOT / 'speed' / script, *args]
    return subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize('command, rows', [
    (['train_step.py', '--model', 'deit_lt_tiny', *SMALL, '--variants', *STUDENTS], STUDENTS),
    (['teacher.py', '--model', 'resnet20_cifar', *SMALL, '--variants', *TEACHERS], TEACHERS),
    (['data.py', *SMALL], ["timm's loader", 'ours', *(f'ours, --augment-backend {name}' for name in (
        'opencv', 'device'))]),
])
def test_each_variant_has_its_row(command, rows):
    done = run(*command)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(' | ')[0].removeprefix('| ') for line in lines[2:2 + len(rows)]] == rows
    for line in lines[2:2 + len(rows)]:
        rate, *others = map(float, line.strip(' |').split(' | ')[1:])
        assert rate > 0 and len(others) == 3 and all(map(math.isfinite, others))


def test_a_variant_that_dies_is_said_in_one_error():
    done = run_script(
        *SMALL, '--variants', 'ours', '--teacher', 'no_such_teacher', script='speed/train_step.py', check=False)
    assert done.returncode == 1 and 'ended with code 1' in done.stderr and 'no_such_teacher' in done.stderr


@pytest.mark.slow
def test_loss_curves_are_drawn_and_start_up_is_timed(tmp_path):
    picture = tmp_path / 'curves.png'
    done = run(
        'loss_curves.py', picture, '--model', 'deit_lt_tiny', *SMALL[:4], '--updates', '2', '--variants',
        'plain, fp32')
    assert done.returncode == 0, done.stderr
    assert '| plain, fp32 |' in done.stdout and picture.stat().st_size
    done = run('start.py', '--rounds', '0')
    assert done.returncode == 0, done.stderr
    assert '| quick start, to the end of its first update |' in done.stdout


def lines_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.slow
def test_every_part_of_the_gpu_script_runs_on_the_cpu_in_small(tmp_path):
    done = run('gpu.py', '--smoke', '--minutes', '30', '--output', tmp_path / 'new' / 'gpu.jsonl')
    assert done.returncode == 0, done.stderr
    lines = lines_of(tmp_path / 'new' / 'gpu.jsonl')
    assert lines[0]['part'] == 'machine' and {'git', 'torch', 'timm'} <= set(lines[0])
    assert {line['part']: line['ended'] for line in lines if 'ended' in line} == dict.fromkeys(gpu.PARTS, 'done')
    assert {line['outcome'] for line in lines if 'outcome' in line} == {'passed'}
    measured = [line['images_per_second'] for line in lines if 'images_per_second' in line]
    assert len(measured) >= 8 and all(value > 0 for value in measured)
    assert {word for line in lines for word in line if word.startswith('ours / ')} == {
        f'ours / {name}' for name in gpu_parts.STEPS if name != 'ours'}


def test_the_gpu_script_ends_parts_whose_time_is_over_and_keeps_what_is_there(tmp_path):
    file = tmp_path / 'gpu.jsonl'
    file.write_text('{"part": "earlier"}\n')
    for parts, code in ((['rates', 'epochs'], 0), (['rates', 'test_runs'], 1)):  # tests that did not run are no success
        done = run('gpu.py', '--smoke', '--minutes', '.0001', '--output', file, '--commit', 'abc', '--parts', *parts)
        assert done.returncode == code, done.stderr
        *_, machine, one, other = lines_of(file)
        assert (machine['part'], machine['git']) == ('machine', 'abc')
        assert [(line['part'], line['ended']) for line in (one, other)] == [(x, 'its time was over') for x in parts]
    assert lines_of(file)[0] == {'part': 'earlier'}


def test_the_gpu_script_goes_on_where_nothing_can_be_compiled():
    told = []
    for backend, left in (('', ''), ('eager', 'eager'), ('no such backend', '')):
        assert gpu_parts.usable(backend, torch.device('cpu'), lambda **line: told.append(line)) == left
    line, = told
    assert line['name'] == 'nothing is compiled: no such backend fails' and 'Invalid backend' in line['error']


def test_the_gpu_script_trains_the_arms_of_small_data_as_the_study_takes_them(tmp_path, monkeypatch):
    ablate = create_autospec(gpu_parts.ablate, side_effect=[{'cells': ['a']}, ValueError('no room')])
    monkeypatch.setattr(gpu_parts, 'ablate', ablate)
    monkeypatch.setattr(gpu_parts, 'ARMS', ('base', 'cnn'))
    monkeypatch.setattr(gpu_parts, 'fed_and_bare', lambda *_: None)
    told = []
    asked = SimpleNamespace(smoke=False, fashion_mnist=tmp_path, output=tmp_path / 'gpu.jsonl')
    gpu_parts.small_data(asked, lambda **line: told.append(line))
    assert ablate.call_args.kwargs['results'] == tmp_path / 'gpu' and not ablate.call_args.kwargs['table']
    assert [(line['name'], line.get('cells'), line.get('error')) for line in told] == [
        ('run of base', ['a'], None), ('run of cnn', None, 'ValueError: no room')]


def test_the_gpu_script_names_what_is_missing_and_how_to_install_it(monkeypatch, tmp_path):
    known = {'timm': '1.0.9', 'torch': '2.11.0+cu130'}

    def version(name):
        if name == 'tqdm':
            raise PackageNotFoundError(name)
        return known.get(name, '99')

    monkeypatch.setattr(gpu, 'version', version)
    monkeypatch.setattr(sys, 'argv', ['gpu.py', '--wheels', str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        gpu.main()
    assert str(stopped.value).splitlines()[0].startswith('timm>=1.0.31, tqdm missing here')
    assert str(stopped.value).endswith(f"--no-index --find-links {tmp_path} 'timm>=1.0.31' 'tqdm'")


def test_flops_are_those_of_the_products_by_hand():
    case = SimpleNamespace(model='deit_lt_tiny', teacher='resnet20_cifar', img_size=32)
    width, depth, patches, classes = 192, 12, 4, 10
    tokens = patches + 2
    embed = 2 * patches * 3 * 16 * 16 * width
    block = 2 * tokens * width * width * (3 + 1 + 4 + 4) + 2 * 2 * tokens * tokens * width
    forward = embed + depth * block + 2 * 2 * width * classes
    # backward twice as much, but for the gradient of the image, which nothing asks for
    assert gpu_measure.flops_of_an_image(case)['flop_student'] == 3 * forward - embed
    case.img_size = 64
    own, whole = (gpu_measure.flops_of_an_image(case, resize)['flop_teacher'] for resize in (True, False))
    assert 3.9 < whole / own < 4
