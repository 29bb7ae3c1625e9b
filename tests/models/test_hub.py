"""Published models come back: by name, as teachers, for validate.py; with the real client and a local server."""
import hashlib
import json

import pytest
import torch
from conftest import ROOT, last_json, run_script
from hub_server import HubServer
from safetensors.torch import load_file
from test_conversion import teacher_file, teacher_of
from warm import WarmProcess

from timm_deitlt.engine.checkpoint import load_checkpoint

TOKEN = 'hf_tokenOfTheTests'
TEACHER, STUDENT = 'me/resnet20_cifar.digits_if10_sam', 'me/deit_lt_tiny.digits_if10'
# Where a teacher comes from is the question, not what it learns: an epoch ends after its first update
ONE_UPDATE = '''
from itertools import islice
from timm_deitlt.data.loader import TrainLoader
TrainLoader.epoch = lambda self, epoch, whole=TrainLoader.epoch: islice(whole(self, epoch), 1)
'''
TRAIN = ONE_UPDATE + f'''
import runpy
runpy.run_path({str(ROOT / "train.py")!r}, run_name='__main__')
'''
STUDENT_FLAGS = ['--model', 'deit_lt_tiny', '--workers', '0', '--no-amp', '--no-report']
TEACHER_FLAGS = [*STUDENT_FLAGS, '--teacher', 'resnet20_sam', '--teacher-epochs', '1']
# Prints where the teacher of the flags comes from, and a number of its weights
RESOLVE = ONE_UPDATE + '''
import json, logging, sys
logging.basicConfig(level=logging.INFO)
from timm_deitlt.run.build.data import build_data
from timm_deitlt.run.settings import resolve_settings
from timm_deitlt.run.train_teacher import resolve_teacher
from timm_deitlt.settings.layers import parse_args
settings = resolve_settings(parse_args(sys.argv[1:]))
teacher = resolve_teacher(settings, build_data(settings))
print(json.dumps([teacher.source, str(teacher.path), float(sum(p.double().sum() for p in teacher.model.parameters()))]))
'''
CREATE = '''
import json, sys, timm, torch, timm_deitlt
torch.set_num_threads(1)
model = timm.create_model(sys.argv[1], pretrained=True).eval()
images = torch.randn(2, *model.pretrained_cfg['input_size'], generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    print(json.dumps(model(images).tolist()))
'''


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A server, a process whose catalogue takes everything as published by 'me', scripts, a run and a teacher."""
    folder = tmp_path_factory.mktemp('place')
    for name, script in (('train', TRAIN), ('resolve', RESOLVE), ('create', CREATE)):
        (folder / f'{name}.py').write_text(script)
    with HubServer() as hub:
        hub.add_user(TOKEN, 'me')
        env = {**hub.env(token=TOKEN, home=folder / 'home'), 'TIMM_DEITLT_HUB_OWNER': 'me'}
        with WarmProcess(env, folder) as process:
            yield hub, process, folder, env


@pytest.fixture
def published(place, teacher):
    """The teacher on the Hub, as it was after the test too."""
    files = dict(place[0].repo(TEACHER).files)
    yield
    place[0].commit(TEACHER, files)


@pytest.fixture
def hub(place):
    yield place[0]
    place[0].forgive()


@pytest.fixture
def resolve(place):
    """Resolve the teacher of some flags in a process of its own; gives the outcome and the requests it made."""
    hub, process, folder, _ = place

    def ask(*flags, code=0):
        before = len(hub.requests)
        done = process.run(folder / 'resolve.py', *TEACHER_FLAGS, *flags)
        assert done.returncode == code, done.stderr
        done.requests = [f'{r.method} {r.path}' for r in hub.requests[before:]]
        if not code:
            done.source, done.path, done.weights = last_json(done)
        return done

    return ask


@pytest.fixture(scope='module')
def teacher(place, tmp_path_factory):
    """The folder of a teacher that was trained because the Hub had none, and its weights; then published."""
    hub, process, folder, _ = place
    cache, before = folder / 'cache', len(hub.requests)
    done = process.run(folder / 'resolve.py', *TEACHER_FLAGS, '--teacher-cache', cache)
    assert done.returncode == 0, done.stderr
    source, _, weights = last_json(done)
    assert source == 'trained' and 'no such repository' in done.stderr and 'trained now' in done.stderr
    # once, then it is trained
    assert [f'{r.method} {r.path}' for r in hub.requests[before:]] == [f'GET /{TEACHER}/resolve/main/config.json']
    trained = next((cache / 'teachers').iterdir())
    done = process.run(ROOT / 'hfhub' / 'publish.py', trained, TEACHER, '--sample', '20')
    assert done.returncode == 0, done.stderr
    return trained, weights


def test_published_teacher_is_taken_if_it_is_the_one_that_would_be_trained(resolve, teacher, tmp_path):
    first = resolve('--teacher-cache', tmp_path)
    assert (first.source, first.weights) == ('hub', teacher[1])
    again = resolve('--teacher-cache', tmp_path)
    assert (again.source, again.weights, again.requests) == ('cache', teacher[1], [])


def test_teacher_published_from_its_own_run_is_found_by_name(resolve, published, place, tmp_path):
    hub, process, folder, _ = place
    for script, *args in (
            (folder / 'train.py', '-c', 'digits/teacher_ldam_sam', '--model', 'resnet20_cifar', '--epochs', '1',
             '--seed', '3', '--workers', '0', '--no-amp', '--output', tmp_path, '--experiment', 'run'),
            (ROOT / 'hfhub' / 'publish.py', tmp_path / 'run', TEACHER, '--sample', '20', '--replace')):
        done = process.run(script, *args)
        assert done.returncode == 0, done.stderr
    found = resolve('--teacher-cache', tmp_path, '--seed', '3')
    assert found.source == 'hub' and found.path == f'hf-hub:{TEACHER}'


def test_published_teacher_with_other_weights_than_its_config_is_not_taken(resolve, teacher, place, tmp_path):
    hub, process, *_ = place
    publish = (ROOT / 'hfhub' / 'publish.py', teacher[0], TEACHER, '--sample', '20', '--replace')
    assert process.run(*publish).returncode == 0
    weights = bytearray(hub.repo(TEACHER).files['model.safetensors'])
    weights[-1] ^= 1
    hub.commit(TEACHER, {'model.safetensors': bytes(weights)})
    done = resolve('--teacher-cache', tmp_path)
    assert (done.source, done.weights) == ('trained', teacher[1]) and 'do not have the checksum' in done.stderr
    hub.commit(TEACHER, {'config.json': b'[1, 2]'})
    assert resolve('--teacher-cache', tmp_path / 'other').source == 'trained'
    assert process.run(*publish).returncode == 0


def test_published_teacher_of_another_seed_is_taken_only_if_asked_for(resolve, teacher, tmp_path):
    other = resolve('--teacher-cache', tmp_path, '--seed', '7')
    assert other.source == 'trained' and other.weights != teacher[1] and '--teacher-source hub' in other.stderr
    asked = resolve('--teacher-cache', tmp_path, '--seed', '7', '--teacher-source', 'hub')
    assert (asked.source, asked.path, asked.weights) == ('hub', f'hf-hub:{TEACHER}', teacher[1])


def test_teacher_checkpoint_takes_an_id_of_the_hub(resolve, teacher):
    done = resolve('--teacher-checkpoint', f'hf-hub:{TEACHER}')
    assert (done.source, done.weights) == ('hub', teacher[1])
    missing = resolve('--teacher-checkpoint', 'hf-hub:me/nothing', code=1)
    assert 'hf-hub:me/nothing could not be downloaded: there is no such repository' in missing.stderr


def test_other_images_are_not_asked_for_and_refuse_the_published_teacher(resolve, teacher, tmp_path):
    other = resolve('--teacher-cache', tmp_path, '--n-max', '40')
    assert other.source == 'trained' and not other.requests
    refused = resolve('--teacher-checkpoint', f'hf-hub:{TEACHER}', '--split-seed', '1', code=1)
    assert 'was trained on other images' in refused.stderr
    unnamed = resolve('--n-max', '40', '--teacher-source', 'hub', code=1)
    assert '--teacher-checkpoint hf-hub:OWNER/NAME' in unnamed.stderr


def test_server_that_fails_is_asked_once_and_the_teacher_trained(resolve, teacher, tmp_path, hub):
    hub.fail('GET', '/resolve/', times=99, status=503)
    done = resolve('--teacher-cache', tmp_path, '--seed', '8')
    assert done.source == 'trained' and len(done.requests) == 1


def test_teacher_asked_for_comes_from_the_cache_of_the_client_when_the_server_fails(resolve, teacher, hub):
    resolve('--teacher-source', 'hub')
    hub.fail('GET', '/resolve/', times=99, drop='before')
    done = resolve('--teacher-source', 'hub')
    assert (done.source, done.weights) == ('hub', teacher[1]) and len(done.requests) == 1


def test_damaged_cache_of_the_client_is_noticed(resolve, teacher, place):
    resolve('--teacher-source', 'hub')
    blobs = place[2] / 'home' / 'hub' / f'models--{TEACHER.replace("/", "--")}' / 'blobs'
    weights = blobs / hashlib.sha256(place[0].repo(TEACHER).files['model.safetensors']).hexdigest()
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    done = resolve('--teacher-source', 'hub', code=1)
    assert f'delete {weights}' in done.stderr
    weights.unlink()
    assert resolve('--teacher-source', 'hub').weights == teacher[1]


@pytest.fixture(scope='module')
def student(place, teacher):
    """The run of a student of the catalogue, published."""
    hub, process, folder, _ = place
    done = process.run(
        folder / 'train.py', *TEACHER_FLAGS, '--epochs', '1', '--opt', 'adamw', '--output', folder, '--experiment',
        'student', '--teacher-checkpoint', teacher[0])
    assert done.returncode == 0, done.stderr
    done = process.run(
        ROOT / 'hfhub' / 'publish.py', folder / 'student', STUDENT, '--sample', '20', '--folder', folder / 'files')
    assert done.returncode == 0, done.stderr
    assert 'list it in PUBLISHED' in done.stderr
    return folder / 'student'


def test_model_by_its_name_has_the_published_logits(place, student):
    _, process, folder, _ = place
    ours = [process.run(folder / 'create.py', name) for name in (
        'deit_lt_tiny.digits_if10', f'hf-hub:{STUDENT}', f'local-dir:{folder / "files"}')]
    logits = [torch.tensor(last_json(done)) for done in ours]
    assert torch.equal(logits[0], logits[1]) and torch.equal(logits[0], logits[2])
    weights = load_file(folder / 'files' / 'model.safetensors')
    trained = load_checkpoint(student / 'last.pth.tar')['state_dict']
    assert weights.keys() == trained.keys() and all(torch.equal(weights[name], trained[name]) for name in trained)


def test_model_that_is_not_there_is_one_error_that_says_what_else_works(place):
    hub, process, folder, _ = place
    done = process.run(folder / 'create.py', 'deit_lt_tiny.cifar10_if50')
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith('FileNotFoundError') and 'me/deit_lt_tiny.cifar10_if50' in last
    assert 'python train.py -c cifar10_if50/deit_lt_tiny' in last


def test_published_model_is_validated_to_its_own_figures(place, student):
    _, process, folder, _ = place
    done = process.run(ROOT / 'validate.py', f'hf-hub:{STUDENT}', '--no-amp')
    assert done.returncode == 0, done.stderr
    metrics = json.loads((student / 'metrics.json').read_text())
    result = last_json(done)
    assert result['weights_sha256'] == metrics['weights_sha256']
    assert result['mean']['per_class'] == metrics['mean']['per_class']


def test_published_model_is_there_without_a_network(place, student):
    folder, env = place[2:]
    done = run_script(
        'deit_lt_tiny.digits_if10', script=folder / 'create.py', check=False, env={**env, 'HF_HUB_OFFLINE': '1'})
    assert done.returncode == 0, done.stderr


def test_converted_model_is_published_by_the_same_command(place, tmp_path):
    hub, process, *_ = place
    torch.manual_seed(0)
    torch.save(teacher_file(teacher_of('cosine', num_classes=10)), tmp_path / 'teacher.pth.tar')
    out = tmp_path / 'out'
    for args in (
            [ROOT / 'hfhub' / 'convert.py', tmp_path / 'teacher.pth.tar', out, '--benchmark', 'cifar10_if50'],
            [ROOT / 'hfhub' / 'publish.py', out, 'me/released', '--license', 'mit']):
        done = process.run(*args)
        assert done.returncode == 0, done.stderr
    files = hub.repo('me/released').files
    assert set(files) - {'.gitattributes'} == {'README.md', 'config.json', 'model.safetensors'}
    assert b'Nobody has measured these weights' in files['README.md']
    about = json.loads(files['config.json'])['timm_deitlt']
    assert about['source_file'] == 'teacher.pth.tar' and about['benchmark'] == 'cifar10_if50'
