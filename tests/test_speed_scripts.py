"""The scripts of speed/ run; what they measure is not looked at."""
import math
import subprocess
import sys

import pytest
from conftest import ROOT, run_script

SMALL = ['--img-size', '32', '--batch-size', '4', '--rounds', '1', '--device', 'cpu']
STUDENTS = ["timm's task, fp32, teacher at its own size", 'ours, --auto-speed off']
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
    done = run('start.py', '--rounds', '1')
    assert done.returncode == 0, done.stderr
    assert '| quick start, to the end of its first update |' in done.stdout
