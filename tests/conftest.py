"""What every test needs: no network, no caller's settings, no file outside the test's own folder."""
import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# read when huggingface_hub is imported, so cleared before anything imports it
for name in [name for name in os.environ if name.startswith(('HF_', 'HUGGING_FACE_', 'TIMM_'))]:
    del os.environ[name]
os.environ.setdefault('OMP_NUM_THREADS', '1')

import pytest  # noqa: E402
from warm import LATE, WITH_TIMM, WITH_TORCH, WarmProcess, torch_process  # noqa: E402

ROOT = Path(__file__).parents[1]

# Files that take longest, to be begun first so that two workers end together
LONGEST = (
    'test_quick_start', 'test_speed_scripts', 'test_browser', 'test_runs', 'test_run', 'test_publish',
    'test_distributed', 'test_teachers', 'test_step_graph', 'test_hub', 'test_benchmark_runs', 'test_speed',
    'test_run_page', 'test_study_page', 'test_study_runs', 'test_finish')

# A student and a teacher that train in seconds, by the real train.py on the real digits
TINY = [
    '--model', 'deit_lt_tiny', '--model-kwargs', 'embed_dim=48', 'depth=2', 'num_heads=3', 'patch_size=8',
    '--img-size', '16', '--n-max', '40', '--imbalance-factor', '4', '--batch-size', '16',
    '--validation-batch-size', '170', '--workers', '0', '--no-amp', '--opt', 'adamw', '--lr', '5e-4', '--reprob', '.1',
    '--mixup-prob', '.3', '--val-interval', '1', '--no-report',
]
# The same small student for folders of any images
TINY_VIT = [
    '--model', 'deit_lt_tiny', '--model-kwargs', 'embed_dim=48', 'depth=2', 'num_heads=3', 'patch_size=8',
    '--img-size', '16', '--batch-size', '8', '--workers', '0', '--no-amp', '--lr', '5e-4', '--mixup', '0', '--cutmix',
    '0', '--epochs', '2', '--drw-start-epoch', '1', '--warmup-epochs', '0', '--no-report', '--auto-speed', 'off',
    '--device', 'cpu']
TINY_TEACHER = ['--teacher', 'resnet20_sam', '--teacher-epochs', '1']
TINIEST_TEACHER = ['--teacher', 'test_resnet_sam', '--teacher-epochs', '1']


def pytest_configure(config):
    # on a GPU results differ by rounding, so only the tests that ask for one see it
    if 'gpu' not in config.option.markexpr.replace('not gpu', ''):
        os.environ['CUDA_VISIBLE_DEVICES'] = ''


def pytest_collection_modifyitems(items):
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def pytest_runtest_setup(item):
    if item.get_closest_marker('gpu'):
        import torch

        if not torch.cuda.is_available():
            pytest.skip('needs CUDA, and -m gpu')


def devices(*marks):
    """Run a test on the CPU, there with these marks, and on a GPU."""
    return pytest.mark.parametrize(
        'device', [pytest.param('cpu', marks=marks), pytest.param('cuda', marks=pytest.mark.gpu)])


@pytest.fixture(scope='session', autouse=True)
def one_thread():
    import torch  # here, as the process that only distributes the tests needs none

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def attention_of_a_fresh_process():
    """train() and validate() choose timm's attention kernel for the whole process."""
    from timm.layers import set_fused_attn

    set_fused_attn(True)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Caches in the test's own folder."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setenv('HOME', str(tmp_path))


@pytest.fixture(scope='session')
def shared_teachers(tmp_path_factory):
    """A cache of teachers that the tests of all workers share, so that each is trained once."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if os.environ.get('PYTEST_XDIST_WORKER') else base) / 'teachers'  # its lock is the cache's own


@functools.cache
def warm_process():
    """One process of this worker that has imported everything."""
    folder = tempfile.TemporaryDirectory()
    process = WarmProcess({}, Path(folder.name))
    atexit.register(folder.cleanup)
    atexit.register(process.close)
    return process


def run_script(*args, script='train.py', check=True, env=None, cwd=None, started=lambda pid: None):
    """Run train.py or another script in a process of its own, forked from a warm one where that makes no difference.

    `started` gets its process id, to be able to end it.
    """
    env = env or {}
    early = [name for name in env if name not in LATE]
    if any(name.startswith(WITH_TORCH) for name in early):
        done = subprocess.run(
            [sys.executable, str(ROOT / script), *map(str, args)], capture_output=True, text=True, cwd=cwd,
            env={**os.environ, **env})
    else:
        process = torch_process() if any(name.startswith(WITH_TIMM) for name in early) else warm_process()
        done = process.run(ROOT / script, *args, cwd=cwd or os.getcwd(), env=env, started=started)
    if check:
        assert done.returncode == 0, done.stderr[-3000:]
    return done


def ends_it_after(signal, folder, pattern):
    """For `started` of `run_script`: send a signal once there is such a file in the folder."""
    def end(pid):
        deadline = time.time() + 120
        while not any(folder.glob(pattern)) and time.time() < deadline:
            time.sleep(.01)
        os.kill(pid, signal)
    return end


def last_json(done):
    """The JSON object on the last line of a script's output."""
    return json.loads(done.stdout.strip().splitlines()[-1])
