"""The README's first command, published and used by others: its real models, which one epoch has trained."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import last_json, run_script
from hub_server import HubServer

TOKEN = 'hf_tokenOfTheTests'
STUDENT, TEACHER = 'timm-deitlt/deit_lt_small.digits_if10', 'timm-deitlt/resnet32_cifar.digits_if10_sam'
COMMAND = ('--model', 'deit_lt_small', '--epochs', '1', '--teacher', 'resnet32_sam', '--teacher-epochs', '1')
LOGITS = '''
import sys, timm, torch, timm_deitlt
model = timm.create_model(sys.argv[1], pretrained=True).eval()
with torch.no_grad():
    torch.save(model(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))), sys.argv[2])
'''


@pytest.mark.slow
def test_quick_start_is_published_loaded_by_name_and_its_teacher_found(tmp_path):
    threads = {'OMP_NUM_THREADS': str(os.cpu_count())}
    with HubServer() as hub:
        hub.add_user(TOKEN, 'maker', orgs=('timm-deitlt',))

        def run(script, *args, home, **env):
            done = run_script(
                *args, script=script, cwd=tmp_path, check=False,
                env={**hub.env(home=tmp_path / home), **threads, 'FAST_SLEEP_LOG': str(tmp_path / 'sleeps'), **env})
            assert TOKEN not in done.stdout + done.stderr
            return done

        trained = last_json(run('train.py', *COMMAND, '--experiment', 'qs', '--teacher-cache', 'cache', home='a'))
        assert trained['teacher']['source'] == 'trained'
        assert not hub.requests  # nothing is listed as published, so the network is not asked
        teacher = Path(trained['teacher']['path']).parent
        for folder, name in (('output/train/qs', STUDENT), (teacher, TEACHER)):
            done = run('hfhub/publish.py', folder, name, '--tag', 'v1', '--json', home='a', HF_TOKEN=TOKEN)
            assert done.returncode == 0 and last_json(done)['verified'], done.stderr
        again = run('hfhub/publish.py', 'output/train/qs', STUDENT, home='a', HF_TOKEN=TOKEN)
        assert 'Nothing to do' in again.stderr and len(hub.repo(STUDENT).commits) == 2
        other = run(
            'train.py', *COMMAND, '--seed', '1', '--experiment', 'other', '--teacher-cache', 'cache',
            '--teacher-checkpoint', teacher, home='a')
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
                env={**os.environ, **hub.env(home=tmp_path / home), **threads, **env})
            logits.append(torch.load(file))
        assert torch.equal(logits[0], logits[1]) and torch.equal(logits[0], logits[2])

        found = last_json(run(
            'train.py', *COMMAND, '--teacher-cache', 'empty', home='d', **listed))
        assert found['teacher']['source'] == 'hub'
        assert found['teacher']['per_class'] == trained['teacher']['per_class']
        for path in [*tmp_path.rglob('*')]:
            if path.is_file() and not path.is_symlink():
                assert TOKEN.encode() not in path.read_bytes(), path
        card = hub.repo(STUDENT).files['README.md'].decode()
        assert f"{trained['mean']['tail']:.1f}" in card
        assert 'plots/accuracy_by_class.png' in card and 'plots/accuracy_by_class.png' in hub.repo(STUDENT).files
        assert json.loads(hub.repo(STUDENT).files['metrics.json'])['weights_sha256'] == trained['weights_sha256']
