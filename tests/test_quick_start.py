"""The README's first command at its real size, run once: what it prints and writes, and what others get of it."""
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import last_json, run_script
from hub_server import HubServer

TOKEN = 'hf_tokenOfTheTests'
STUDENT, TEACHER = 'timm-deitlt/deit_lt_small.digits_if10', 'timm-deitlt/resnet32_cifar.digits_if10_sam'
COMMAND = ('--model', 'deit_lt_small', '--teacher', 'resnet32_sam')
LOGITS = '''
import sys, timm, torch, timm_deitlt
model = timm.create_model(sys.argv[1], pretrained=True).eval()
with torch.no_grad():
    torch.save(model(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))), sys.argv[2])
'''


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A folder, a Hub, and `run`, which starts a script there."""
    folder = tmp_path_factory.mktemp('quick_start')
    with HubServer() as hub:
        hub.add_user(TOKEN, 'maker', orgs=('timm-deitlt',))

        def run(script, *args, home, **env):
            done = run_script(
                *args, script=script, cwd=folder, check=False,
                env={**hub.env(home=folder / home), 'FAST_SLEEP_LOG': str(folder / 'sleeps'), **env})
            assert TOKEN not in done.stdout + done.stderr
            return done

        yield SimpleNamespace(folder=folder, hub=hub, run=run)


@pytest.fixture(scope='module')
def quick_start(place):
    """The command, with its parent's output piped."""
    done = place.run('train.py', *COMMAND, '--experiment', 'qs', '--teacher-cache', 'cache', home='a')
    assert done.returncode == 0, done.stderr[-3000:]
    assert not place.hub.requests  # nothing is listed as published, so the network is not asked
    return done


@pytest.mark.slow
def test_quick_start_trains_a_teacher_and_a_student_that_know_the_digits(quick_start, place):
    result = last_json(quick_start)
    assert result['data']['train_counts'] == [140, 108, 83, 64, 50, 38, 30, 23, 18, 14]
    assert sum(result['data']['test_counts']) == 340
    assert result['teacher']['source'] == 'trained'
    # the last bits of a machine move a single run by some images of the 340
    assert result['mean']['top1'] >= 88 and result['mean']['tail'] >= 70

    folder = place.folder / 'output' / 'train' / 'qs'
    written = {path.name for path in folder.iterdir()}
    assert {'report.html', 'analysis.json', 'tail_images.npz', 'signatures.json'} <= written
    assert len(list((folder / 'plots').glob('*.png'))) == 14
    assert 'Report: output/train/qs/report.html' in quick_start.stderr


@pytest.mark.slow
def test_quick_start_says_first_what_it_will_take_and_then_what_each_epoch_was(quick_start):
    lines = quick_start.stderr.splitlines()
    first = next(place for place, line in enumerate(lines) if line.startswith('Training will take about'))
    assert lines[first + 1].startswith('Training the teacher')
    for title in ('teacher', 'train'):
        epochs = [line for line in lines if line.startswith(f'{title} epoch') and '  loss' in line]
        assert len(epochs) == int(epochs[0].split()[2].split('/')[1])


@pytest.mark.slow
def test_quick_start_finds_its_teacher_in_the_cache(quick_start, place):
    again = place.run(
        'train.py', *COMMAND, '--model', 'deit_lt_tiny', '--stop-epoch', '1', '--teacher-cache', 'cache', '--no-report',
        home='a')
    assert last_json(again)['teacher']['source'] == 'cache'


@pytest.mark.slow
def test_quick_start_is_published_loaded_by_name_and_its_teacher_found(quick_start, place):
    trained = last_json(quick_start)
    tmp_path, hub, run = place.folder, place.hub, place.run
    teacher = Path(trained['teacher']['path']).parent
    for folder, name in (('output/train/qs', STUDENT), (teacher, TEACHER)):
        done = run('hfhub/publish.py', folder, name, '--tag', 'v1', '--json', home='a', HF_TOKEN=TOKEN)
        assert done.returncode == 0 and last_json(done)['verified'], done.stderr
    again = run('hfhub/publish.py', 'output/train/qs', STUDENT, home='a', HF_TOKEN=TOKEN)
    assert 'Nothing to do' in again.stderr and len(hub.repo(STUDENT).commits) == 2
    other = run(
        'train.py', *COMMAND, '--seed', '1', '--epochs', '1', '--experiment', 'other', '--teacher-cache', 'cache',
        '--teacher-checkpoint', teacher, '--no-report', home='a')
    assert other.returncode == 0
    refused = run('hfhub/publish.py', 'output/train/other', STUDENT, home='a', HF_TOKEN=TOKEN)
    assert refused.returncode == 6 and 'holds another model' in refused.stderr

    # others: a clean process with an empty cache, no token
    listed = {'TIMM_DEITLT_HUB_OWNER': 'timm-deitlt'}
    logits = []
    for home, name, env in (
            ('b', 'deit_lt_small.digits_if10', listed), ('c', f'hf-hub:{STUDENT}@v1', {}),
            ('a', f'local-dir:{tmp_path / "kept"}', {})):
        if home == 'a':
            run('hfhub/publish.py', 'output/train/qs', STUDENT, '--dry-run', '--folder', tmp_path / 'kept',
                home='a', HF_TOKEN=TOKEN)
        file = tmp_path / f'{home}.pt'
        subprocess.run(
            [sys.executable, '-c', LOGITS, name, file], check=True, cwd=tmp_path,
            env={**os.environ, **hub.env(home=tmp_path / home), **env})
        logits.append(torch.load(file))
    assert torch.equal(logits[0], logits[1]) and torch.equal(logits[0], logits[2])

    found = last_json(run(
        'train.py', *COMMAND, '--model', 'deit_lt_tiny', '--stop-epoch', '1', '--teacher-cache', 'empty', '--no-report',
        home='d', **listed))
    assert found['teacher']['source'] == 'hub'
    assert found['teacher']['per_class'] == trained['teacher']['per_class']
    for path in [*tmp_path.rglob('*')]:
        if path.is_file() and not path.is_symlink():
            assert TOKEN.encode() not in path.read_bytes(), path
    card = hub.repo(STUDENT).files['README.md'].decode()
    assert f"{trained['mean']['tail']:.1f}" in card
    assert 'plots/accuracy_by_class.png' in card and 'plots/accuracy_by_class.png' in hub.repo(STUDENT).files
    assert json.loads(hub.repo(STUDENT).files['metrics.json'])['weights_sha256'] == trained['weights_sha256']
