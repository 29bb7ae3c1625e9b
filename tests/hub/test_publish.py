"""hfhub/publish.py with the real client against a local server: whole versions only, whatever goes wrong."""
import json
import os
import re
import shutil
import signal

import pytest
import torch
from conftest import ROOT, TINY, TINY_TEACHER, run_script
from hub_server import HubServer
from warm import WarmProcess

from timm_deitlt.engine.checkpoint import load_checkpoint
from timm_deitlt.evaluation import Shots
from timm_deitlt.hub.figures import _recomputed
from timm_deitlt.hub.repository import Exit
from timm_deitlt.models.weights import weights_sha256

TOKEN, READ_TOKEN = 'hf_writeTokenOfTheTests', 'hf_readTokenOfTheTests'
OURS = {'README.md', 'args.yaml', 'config.json', 'metrics.json', 'model.safetensors'}
COMMIT, LARGE_FILE = '/commit/', '^/objects/'


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """Two seeds of a tiny student, and their teacher."""
    root = tmp_path_factory.mktemp('runs')
    for name, flags in (('a', ['--seed', '1']), ('b', ['--seed', '2'])):
        run_script(
            *TINY, *TINY_TEACHER, '--epochs', '2', '--drw-start-epoch', '1', *flags, '--experiment', name, '--output',
            root, '--teacher-cache', root / 'cache')
    (root / 'teacher').symlink_to(next((root / 'cache' / 'teachers').iterdir()))
    return root


@pytest.fixture(scope='module')
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp('hub')
    with HubServer() as hub:
        hub.add_user(TOKEN, 'maker', orgs=('timm-deitlt',))
        hub.add_user(READ_TOKEN, 'reader', role='read')
        with WarmProcess(hub.env(home=folder / 'home'), folder) as process:
            yield hub, process


class Bench:
    """A test's own repository on the server, and publish.py."""

    def __init__(self, hub, process, tmp_path, name):
        self.hub, self.process, self.id = hub, process, f'maker/{name}'
        self.sleeps = tmp_path / 'sleeps'
        self.since = len(hub.requests)

    def publish(self, run, *flags, token=TOKEN, repo=None, started=lambda pid: None, **env):
        done = self.process.run(
            ROOT / 'hfhub' / 'publish.py', run, repo or self.id, *flags, '--sample', '40', started=started,
            env={'HF_TOKEN': token, 'FAST_SLEEP_LOG': str(self.sleeps), **env})
        for secret in (TOKEN, READ_TOKEN):
            assert secret not in done.stdout + done.stderr
        return done

    @property
    def repo(self):
        return self.hub.repo(self.id)

    @property
    def files(self):
        return dict(self.repo.files) if self.repo else {}

    def asked(self, method, word):
        return [r for r in self.hub.requests[self.since:] if r.method == method and word in r.path]


@pytest.fixture
def bench(served, tmp_path, request):
    hub, process = served
    hub.lfs.clear()  # so that each test uploads
    name = re.sub(r'\W+', '-', request.node.originalname.removeprefix('test_')[:50]).strip('-_')
    yield Bench(hub, process, tmp_path, f'{name}-{len(hub.requests)}')
    hub.forgive()


def succeeded(done):
    assert done.returncode == Exit.DONE, done.stderr
    return done


def failed(done, code, *words):
    assert done.returncode == code, done.stderr
    assert 'Traceback' not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
    return done


# What is published

def test_a_run_is_published_in_one_commit_and_then_there_is_nothing_to_do(bench, runs):
    report = json.loads(succeeded(bench.publish(runs / 'a', '--json')).stdout.splitlines()[-1])
    assert report['verified'] and report['oid'] == bench.repo.head
    assert set(bench.files) >= OURS and not any(name.endswith('.bin') for name in bench.files)
    commits = len(bench.repo.commits)
    assert len(bench.asked('POST', '/commit/')) == 1
    again = succeeded(bench.publish(runs / 'a'))
    assert 'Nothing to do' in again.stderr and len(bench.repo.commits) == commits
    card = bench.files['README.md'].decode()
    assert 'library_name: timm' in card and 'hf-hub:' + bench.id in card


def test_a_dry_run_shows_what_would_change_and_changes_nothing(bench, runs):
    done = succeeded(bench.publish(runs / 'a', '--dry-run'))
    assert 'add model.safetensors' in done.stderr and bench.repo is None
    writing = [r for r in bench.hub.requests[bench.since:] if r.method != 'GET' and r.method != 'HEAD']
    assert {r.path for r in writing} == {'/api/validate-yaml'}


def test_other_weights_are_refused_until_replace_is_given(bench, runs):
    succeeded(bench.publish(runs / 'a'))
    before = bench.files
    failed(bench.publish(runs / 'b'), Exit.DIFFERENT, 'holds another model', '--replace')
    assert bench.files == before
    succeeded(bench.publish(runs / 'b', '--replace'))
    assert bench.files['model.safetensors'] != before['model.safetensors']


def test_better_published_figures_are_refused_until_replace_is_given(bench, runs):
    succeeded(bench.publish(runs / 'a'))
    metrics = json.loads(bench.files['metrics.json'])
    metrics['mean']['top1'] = 99.5
    bench.hub.commit(bench.id, {'metrics.json': json.dumps(metrics).encode()})
    failed(bench.publish(runs / 'a'), Exit.DIFFERENT, 'better figures', '99.5')
    succeeded(bench.publish(runs / 'a', '--replace'))


def test_stale_weights_and_pickles_go_in_the_same_commit_and_other_files_stay(bench, runs):
    succeeded(bench.publish(runs / 'a'))
    bench.hub.commit(bench.id, {
        'pytorch_model.bin': b'pickle', 'plots/old.png': b'png', 'demo.txt': b'mine', 'ema.safetensors': b'old'})
    done = succeeded(bench.publish(runs / 'a'))
    assert 'delete pytorch_model.bin' in done.stderr and 'keep demo.txt' in done.stderr
    assert set(bench.files) - {'.gitattributes'} == OURS | {'demo.txt'}
    assert bench.repo.commits[-2].files.keys() >= {'pytorch_model.bin'}


def test_a_branch_is_made_and_a_tag_set_once_verified_and_never_moved(bench, runs):
    succeeded(bench.publish(runs / 'a', '--tag', 'v1'))
    first = bench.repo.head
    assert bench.repo.tags == {'v1': first}
    succeeded(bench.publish(runs / 'b', '--revision', 'next', '--replace'))
    assert bench.repo.branches['next'] != first and bench.repo.head == first
    failed(bench.publish(runs / 'b', '--replace', '--tag', 'v1', '--revision', 'next'), Exit.BAD_INPUT, 'never moved')
    assert bench.repo.tags == {'v1': first}
    succeeded(bench.publish(runs / 'a', '--tag', 'v1'))


def test_the_same_model_is_published_to_a_new_branch_too(bench, runs):
    succeeded(bench.publish(runs / 'a'))
    done = succeeded(bench.publish(runs / 'a', '--revision', 'next'))
    assert 'Nothing to do' in done.stderr and bench.repo.branches['next'] == bench.repo.head


def test_a_pull_request_leaves_the_branch_alone_and_is_opened_once(bench, runs):
    succeeded(bench.publish(runs / 'a'))
    before = bench.files
    for _ in range(2):
        succeeded(bench.publish(runs / 'b', '--create-pr', '--replace'))
    assert bench.files == before and len(bench.repo.pulls) == 1
    bench.repo.closed.add('refs/pr/1')
    succeeded(bench.publish(runs / 'b', '--create-pr', '--replace'))
    assert bench.files == before and len(bench.repo.pulls) == 2


def test_private_is_for_new_repositories(bench, runs):
    succeeded(bench.publish(runs / 'a', '--private'))
    assert bench.repo.private
    bench.hub.commit('maker/public-one', {'a.txt': b''})
    failed(bench.publish(runs / 'a', '--private', repo='maker/public-one'), Exit.BAD_INPUT, 'is public')


def test_a_cached_teacher_and_the_runs_of_other_seeds_are_published(bench, runs):
    succeeded(bench.publish(runs / 'teacher', repo=bench.id + '-teacher'))
    config = json.loads(bench.hub.repo(bench.id + '-teacher').files['config.json'])
    assert config['model_args']['cosine'] and config['timm_deitlt']['kind'] == 'teacher'
    succeeded(bench.publish(runs / 'a', '--other-seeds', runs / 'b'))
    assert 'n = 2' in bench.files['README.md'].decode()


def test_no_file_holds_a_place_of_the_machine_or_a_token(bench, runs):
    succeeded(bench.publish(runs / 'a'))
    for name, content in bench.files.items():
        assert str(runs).encode() not in content and TOKEN.encode() not in content, name


def test_settings_that_hold_the_token_are_not_published(bench, runs, tmp_path):
    def careless(state):
        state['args'].wandb_project = f'mine {TOKEN}'

    run = rewrite(copy(runs / 'a', tmp_path / 'run'), careless)
    failed(bench.publish(run), Exit.BAD_INPUT, 'args.yaml would hold your token')
    assert bench.repo is None


# Faults: the version there is the old one or the new one, whole

@pytest.fixture(scope='module')
def another_model(served, runs, tmp_path_factory):
    """Files of a published model."""
    bench = Bench(*served, tmp_path_factory.mktemp('another'), 'another-model')
    succeeded(bench.publish(runs / 'b'))
    return bench.files


@pytest.fixture(params=['new', 'existing'])
def old(request, another_model, bench):
    """What the repository holds before: nothing, or another model."""
    if request.param == 'existing':
        bench.hub.commit(bench.id, another_model, message='Publish another model')
    return bench.files


def is_whole(bench, old):
    """Whether the files are the old ones, else the new ones are."""
    files = {name: content for name, content in bench.files.items() if name != '.gitattributes'}
    if files == {name: content for name, content in old.items() if name != '.gitattributes'}:
        return True
    assert set(files) == OURS
    return False


def test_a_lost_answer_to_the_commit_is_looked_up_not_repeated(bench, runs, old):
    bench.hub.fail('POST', COMMIT, drop='after')
    done = succeeded(bench.publish(runs / 'a', '--replace'))
    assert 'only its answer was lost' in done.stderr and not is_whole(bench, old)
    messages = [commit.message for commit in bench.repo.commits]
    assert sum('Publish' in message for message in messages) == 1 + bool(old)


def test_a_lost_answer_to_a_pull_request_is_looked_up_not_repeated(bench, runs):
    succeeded(bench.publish(runs / 'b'))
    bench.hub.fail('POST', COMMIT, drop='after')
    succeeded(bench.publish(runs / 'a', '--create-pr', '--replace'))
    assert len(bench.repo.pulls) == 1


@pytest.mark.parametrize('where', ['PUT', 'POST'])
def test_a_server_that_fails_now_and_then_is_asked_again(bench, runs, where, old):
    bench.hub.fail(where, COMMIT if where == 'POST' else '', times=2, status=503)
    succeeded(bench.publish(runs / 'a', '--replace'))
    assert not is_whole(bench, old)
    assert len(bench.sleeps.read_text().splitlines()) >= 2


@pytest.mark.parametrize('where', ['PUT', 'POST'])
def test_a_server_that_keeps_failing_leaves_what_was_there(bench, runs, where, old):
    bench.hub.fail(where, COMMIT if where == 'POST' else '', times=99, status=503)
    failed(bench.publish(runs / 'a', '--replace'), Exit.SERVER, '503')
    assert is_whole(bench, old)


def test_too_many_requests_wait_as_long_as_told(bench, runs):
    bench.hub.fail('POST', COMMIT, status=429, message='slow down', headers={'Retry-After': '37'})
    done = succeeded(bench.publish(runs / 'a'))
    assert '37' in {line.split('.')[0] for line in bench.sleeps.read_text().split()} and 'again in 37 s' in done.stderr
    bench.hub.fail('POST', COMMIT, times=99, status=429, message='slow down')
    before = bench.files
    failed(bench.publish(runs / 'b', '--replace'), Exit.RATE, 'slow down')
    assert bench.files == before


def test_a_change_by_somebody_else_is_read_and_judged_anew(bench, runs):
    succeeded(bench.publish(runs / 'a'))
    bench.hub.fail('POST', COMMIT, before=lambda: bench.hub.commit(bench.id, {'note.txt': b'theirs'}))
    succeeded(bench.publish(runs / 'b', '--replace'))
    assert set(bench.files) - {'.gitattributes'} == OURS | {'note.txt'}

    theirs = bench.repo.commits[-1].files['model.safetensors'][:-4] + b'\0\0\0\0'
    bench.hub.commit(bench.id, {'model.safetensors': bench.files['model.safetensors'], 'note.txt': None})
    config = json.loads(bench.files['config.json'])
    bench.hub.commit(bench.id, {'config.json': json.dumps({**config, 'note': 1}).encode()})
    bench.hub.fail('POST', COMMIT, before=lambda: bench.hub.commit(bench.id, {'model.safetensors': theirs}))
    failed(bench.publish(runs / 'b'), Exit.DIFFERENT, 'holds another model')
    assert bench.files['model.safetensors'] == theirs


def test_wrong_bytes_of_the_right_size_are_noticed_and_not_tagged(bench, runs):
    bench.hub.fail('GET', LARGE_FILE, times=99, corrupt=True)
    failed(bench.publish(runs / 'a', '--tag', 'v1'), Exit.UNVERIFIED, 'sha256', 'is published, but not verified')
    assert not bench.repo.tags
    bench.hub.forgive()
    succeeded(bench.publish(runs / 'a', '--tag', 'v1'))
    assert bench.repo.tags == {'v1': bench.repo.head}


def test_what_could_not_be_verified_is_verified_by_the_next_call(bench, runs):
    bench.hub.fail('GET', LARGE_FILE, times=2, corrupt=True)
    for _ in range(2):
        failed(bench.publish(runs / 'a'), Exit.UNVERIFIED, 'sha256')
    done = succeeded(bench.publish(runs / 'a'))
    assert 'Nothing to do' in done.stderr and 'bit for bit' in done.stderr


def test_a_commit_that_only_deletes_is_not_taken_for_done(bench, runs):
    succeeded(bench.publish(runs / 'a'))
    bench.hub.commit(bench.id, {'pytorch_model.bin': b'pickle'})
    bench.hub.fail('POST', COMMIT, status=503)
    succeeded(bench.publish(runs / 'a'))
    assert 'pytorch_model.bin' not in bench.files


@pytest.mark.parametrize('fault', [dict(status=503, times=99), dict(status=403)])
def test_a_tag_that_cannot_be_set_says_that_the_model_is_there(bench, runs, fault):
    bench.hub.fail('POST', '/tag/', **fault)
    failed(bench.publish(runs / 'a', '--tag', 'v1'), Exit.NOT_TAGGED, 'is published and verified', 'not tagged')
    bench.hub.forgive()
    succeeded(bench.publish(runs / 'a', '--tag', 'v1'))
    assert bench.repo.tags == {'v1': bench.repo.head}


def test_a_tag_that_is_taken_is_refused_before_the_commit(bench, runs):
    succeeded(bench.publish(runs / 'a', '--tag', 'v1'))
    head = bench.repo.head
    failed(bench.publish(runs / 'b', '--replace', '--tag', 'v1'), Exit.BAD_INPUT, 'never moved')
    failed(bench.publish(runs / 'a', '--revision', 'v1'), Exit.BAD_INPUT, 'is a tag')
    assert bench.repo.head == head


def test_a_repository_that_turns_public_is_not_sent_a_private_model(bench, runs):
    bench.hub.fail('POST', '/api/repos/create', before=lambda: bench.hub.commit(bench.id, {'a.txt': b'theirs'}))
    failed(bench.publish(runs / 'a', '--private'), Exit.CHANGED, 'is public')
    assert set(bench.files) == {'.gitattributes', 'a.txt'}


def test_weights_of_others_are_not_deleted_unasked(bench, runs):
    bench.hub.commit(bench.id, {'tf_model.h5': b'theirs', 'seed2/model.safetensors': b'theirs'})
    failed(bench.publish(runs / 'a'), Exit.DIFFERENT, 'weights in tf_model.h5')
    succeeded(bench.publish(runs / 'a', '--replace'))
    assert 'tf_model.h5' not in bench.files and 'seed2/model.safetensors' in bench.files
    bench.hub.commit('maker/handwritten', {'README.md': b'By hand.'})
    failed(bench.publish(runs / 'a', repo='maker/handwritten'), Exit.DIFFERENT, 'README.md that was not written')


def test_a_commit_whose_answer_is_interrupted_is_found(bench, runs):
    pids = []
    bench.hub.fail('POST', COMMIT, after=lambda: os.kill(pids[0], signal.SIGINT), drop='after')
    failed(bench.publish(runs / 'a', started=pids.append), Exit.INTERRUPTED, 'is published, but not verified')
    assert set(bench.files) - {'.gitattributes'} == OURS


def test_a_download_that_is_cut_goes_on(bench, runs, tmp_path):
    run = large_run(runs / 'a', tmp_path / 'large')
    bench.hub.fail('GET', LARGE_FILE, cut=11 * 2 ** 20)
    succeeded(bench.publish(run))
    ranges = [r.headers['range'] for r in bench.hub.requests[bench.since:] if 'range' in r.headers]
    assert ranges == ['bytes=10485760-']


@pytest.mark.parametrize('token, code, words', [
    (None, Exit.NO_TOKEN, 'No token was found'), ('hf_da maged\x7f', Exit.BAD_TOKEN, 'token is damaged'),
    ('hf_wrongWrongWrong', Exit.BAD_TOKEN, 'not valid'),
    (READ_TOKEN, Exit.FORBIDDEN, 'may only read')])
def test_a_token_that_will_not_do_is_said_before_anything_is_sent(bench, runs, token, code, words):
    done = failed(bench.publish(runs / 'a', token=token), code, words)
    assert not token or token not in done.stderr and bench.repo is None


def test_the_name_of_somebody_else_is_refused(bench, runs):
    failed(bench.publish(runs / 'a', repo='stranger/model'), Exit.FORBIDDEN, 'maker', 'stranger')


@pytest.mark.parametrize('status, message', [
    (403, 'Private repository storage limit reached'), (413, 'Payload too large'), (402, 'Payment required')])
def test_no_room_passes_the_words_of_the_hub_on(bench, runs, status, message, old):
    bench.hub.fail('POST', COMMIT, status=status, message=message)
    failed(bench.publish(runs / 'a', '--replace'), Exit.QUOTA, message)
    assert is_whole(bench, old)


def test_a_write_that_is_forbidden_leaves_what_was_there(bench, runs, old):
    bench.hub.fail('POST', COMMIT, status=403, message='You need write access')
    failed(bench.publish(runs / 'a', '--replace'), Exit.FORBIDDEN, 'You need write access')
    assert is_whole(bench, old)


def test_a_card_that_the_hub_refuses_is_not_sent(bench, runs):
    bench.hub.fail('POST', 'validate-yaml', status=400, message='"license" must be one of')
    failed(bench.publish(runs / 'a'), Exit.REFUSED, 'model card')
    assert bench.repo is None


def test_killed_between_upload_and_commit_leaves_what_was_there_and_goes_on_without_another_upload(bench, runs, old):
    pids = []
    bench.hub.fail('POST', COMMIT, before=lambda: os.kill(pids[0], signal.SIGKILL), drop='before')
    done = bench.publish(runs / 'a', '--replace', started=pids.append)
    assert done.returncode == -signal.SIGKILL and is_whole(bench, old)
    uploads = len(bench.asked('PUT', ''))
    succeeded(bench.publish(runs / 'a', '--replace'))
    assert not is_whole(bench, old) and len(bench.asked('PUT', '')) == uploads


def test_interrupted_says_what_is_there(bench, runs, old):
    pids = []
    bench.hub.fail('PUT', '', before=lambda: os.kill(pids[0], signal.SIGINT), status=503)
    done = failed(bench.publish(runs / 'a', '--replace', started=pids.append), Exit.INTERRUPTED)
    assert 'no version of' in done.stderr and is_whole(bench, old)
    bench.hub.forgive()
    bench.hub.fail('GET', LARGE_FILE, before=lambda: os.kill(pids[1], signal.SIGINT), cut=10)
    done = failed(bench.publish(runs / 'a', '--replace', started=pids.append), Exit.INTERRUPTED)
    assert 'is published, but not verified' in done.stderr and not is_whole(bench, old)


@pytest.mark.parametrize('variables, words', [
    ({'HF_ENDPOINT': 'http://127.0.0.1:9'}, '127.0.0.1:9 cannot be reached'),
    ({'HF_HUB_OFFLINE': '1'}, 'HF_HUB_OFFLINE')])
def test_offline_and_without_a_network_it_stops_at_once(bench, runs, tmp_path, variables, words):
    done = run_script(
        runs / 'a', bench.id, '--sample', '40', script='hfhub/publish.py', check=False,
        env={**bench.hub.env(TOKEN, tmp_path / 'home'), **variables})
    failed(done, Exit.NETWORK, words)


# What is not published

def copy(run, folder):
    shutil.copytree(run, folder)
    return folder


def rewrite(run, change):
    """Change the checkpoint of a copied run, and let its metrics claim the new weights."""
    state = load_checkpoint(run / 'last.pth.tar')
    change(state)
    torch.save(state, run / 'last.pth.tar')
    metrics = json.loads((run / 'metrics.json').read_text())
    metrics['weights_sha256'] = weights_sha256(state['state_dict'])
    (run / 'metrics.json').write_text(json.dumps(metrics))
    return run


def large_run(run, folder):
    """The run with 14 MB of weights more, which add nothing."""
    def widen(state):
        state['args'].model_kwargs = {**state['args'].model_kwargs, 'mlp_ratio': 400}
        for name, value in list(state['state_dict'].items()):
            if '.mlp.fc1' in name:
                state['state_dict'][name] = torch.cat([value, torch.zeros(48 * 400 - len(value), *value.shape[1:])])
            elif name.endswith('mlp.fc2.weight'):
                state['state_dict'][name] = torch.cat([value, torch.zeros(len(value), 48 * 400 - value.shape[1])], 1)

    return rewrite(copy(run, folder), widen)


def set_nan(state):
    state['state_dict']['head.bias'][0] = float('nan')


def drop_a_class(state):
    state['data']['train_counts'] = state['data']['train_counts'][:-1]


def stop_early(state):
    state['epoch'] = 0


@pytest.mark.parametrize('change, words', [
    (set_nan, 'NaN or Inf, in head.bias'), (drop_a_class, 'numbers of classes'),
    (stop_early, 'is not finished: 1 of 2 epochs')])
def test_runs_that_are_not_whole_are_refused_before_the_hub_is_asked(bench, runs, tmp_path, change, words):
    run = rewrite(copy(runs / 'a', tmp_path / 'run'), change)
    failed(bench.publish(run), Exit.BAD_INPUT, words)
    assert len(bench.hub.requests) == bench.since


def test_figures_of_other_weights_are_refused(bench, runs, tmp_path):
    run = copy(runs / 'a', tmp_path / 'run')
    shutil.copy(runs / 'b' / 'metrics.json', run)
    failed(bench.publish(run), Exit.BAD_INPUT, 'metrics.json is of other weights', 'python validate.py')
    (run / 'metrics.json').unlink()
    failed(bench.publish(run), Exit.BAD_INPUT, 'there is no metrics.json')
    run_script(run, script='validate.py')
    succeeded(bench.publish(run))


def with_figures(run, folder, change):
    """A copy of a run with other figures."""
    metrics = json.loads((copy(run, folder) / 'metrics.json').read_text())
    change(metrics)
    (folder / 'metrics.json').write_text(json.dumps(metrics))
    return folder


def test_figures_that_another_evaluation_does_not_find_are_refused(bench, runs, tmp_path):
    def turn(metrics):
        per_class = metrics['cls']['per_class'][::-1]  # as if head and tail were numbered the other way round
        shots = Shots.from_counts(metrics['data']['train_counts'], (3, 7))
        metrics['cls'].update(_recomputed(per_class, metrics['data']['test_counts'], shots), per_class=per_class)

    run = with_figures(runs / 'a', tmp_path / 'run', turn)
    failed(bench.publish(run, '--sample', '340'), Exit.BAD_INPUT, 'are not those of its weights', 'cls on head has')


@pytest.mark.parametrize('change, words', [
    (lambda m: m['mean'].update(tail=99.9), 'mean.tail is 99.9'),
    (lambda m: m['teacher'].update(top1=99.9), 'teacher.top1 is 99.9'),
    (lambda m: m['mean'].update(per_class=[float('nan')] * 10), 'is damaged'),
    (lambda m: m['mean'].update(top1=float('nan')), 'mean.top1 is nan'),
    (lambda m: m.pop('shots'), 'lacks shots'), (lambda m: m['data'].pop('fingerprint'), 'lacks data.fingerprint'),
    (lambda m: m.update(mean=None, cls=None, dist=None), 'was never evaluated')])
def test_figures_that_are_not_whole_are_refused(bench, runs, tmp_path, change, words):
    failed(bench.publish(with_figures(runs / 'a', tmp_path / 'run', change)), Exit.BAD_INPUT, words)


def test_data_that_was_pointed_at_must_be_that_of_the_figures(bench, runs, tmp_path):
    def elsewhere(metrics):
        metrics['data']['fingerprint'] = 'other'

    run = with_figures(runs / 'a', tmp_path / 'run', elsewhere)
    done = succeeded(bench.publish(run, '--dry-run'))
    assert 'the images here are not those of the figures' in done.stderr
    failed(bench.publish(run, '--data-dir', tmp_path), Exit.BAD_INPUT, 'are not those of the figures')
    failed(bench.publish(runs / 'a', '--device', 'nonsense'), Exit.BAD_INPUT, 'nonsense')


def test_a_run_that_was_measured_later_still_says_its_teacher_and_its_commit(bench, runs, tmp_path):
    run = copy(runs / 'a', tmp_path / 'run')
    (run / 'metrics.json').unlink()
    (run / 'versions.json').write_text(json.dumps({'git': 'commitofthetraining'}))
    run_script(run, script='validate.py')
    succeeded(bench.publish(run))
    card, config = bench.files['README.md'].decode(), json.loads(bench.files['config.json'])['timm_deitlt']
    assert 'knowledge-distillation' in card and 'teacher, `resnet20_sam`' in card
    assert config['teacher'] == {'name': 'resnet20_sam', 'source': None}
    assert config['training']['git'] == 'commitofthetraining'


def test_runs_of_other_settings_are_no_other_seeds(bench, runs, tmp_path):
    def other_rate(state):
        state['args'].lr = .7

    run = rewrite(copy(runs / 'b', tmp_path / 'run'), other_rate)
    failed(bench.publish(runs / 'a', '--other-seeds', run), Exit.BAD_INPUT, 'other settings (lr)')

    def other_log(state):
        state['args'].report, state['args'].dataset_download = True, True

    succeeded(bench.publish(runs / 'a', '--other-seeds', rewrite(copy(runs / 'b', tmp_path / 'same'), other_log)))


def test_a_run_of_an_older_version_is_read_with_the_defaults_of_what_it_did_not_know(bench, runs, tmp_path):
    def older(state):
        del state['args'].teacher_source, state['args'].list_dir

    succeeded(bench.publish(rewrite(copy(runs / 'a', tmp_path / 'run'), older)))


def test_a_cached_teacher_of_other_weights_than_its_run_is_refused(bench, runs, tmp_path):
    folder = copy((runs / 'teacher').resolve(), tmp_path / 'teacher')
    weights = bytearray((folder / 'model.safetensors').read_bytes())
    weights[-1] ^= 1
    (folder / 'model.safetensors').write_bytes(weights)
    failed(bench.publish(folder), Exit.BAD_INPUT, 'holds other weights than the teacher beside it')


def test_a_name_of_the_catalogue_is_kept_for_its_model(bench, runs):
    failed(
        bench.publish(runs / 'a', repo='timm-deitlt/deit_lt_tiny.cifar10_if50'), Exit.BAD_INPUT,
        'promises deit_lt_tiny, a student of a teacher, trained on cifar10_if50')
    failed(
        bench.publish(runs / 'teacher', repo='timm-deitlt/resnet20_cifar.digits_if10_paco_sam'), Exit.BAD_INPUT,
        'a teacher by PaCo and SAM', 'this is resnet20_cifar, a teacher by LDAM and SAM, trained on other data')


@pytest.mark.parametrize('flags, words', [
    (['--license', 'other'], '--license-name and --license-link'),
    (['--license', 'other', '--license-name', 'mine'], '--license-link'), (['--license', ' '], 'licence'),
    (['--create-pr', '--tag', 'v1'], 'exclude each other'),
    (['--sample', '0'], '--sample must be'), (['--license', ''], 'licence'),
    (['--license-name', 'mine'], '--license other'),
    (['--tag', 'bad name'], 'is not a name for git'), (['--revision', 'refs/pr/1'], 'is not a name for git'),
    (['--datasets', 'a/b/c'], 'is not an id of the Hub')])
def test_flags_that_do_not_fit_are_refused_before_the_hub_is_asked(bench, runs, flags, words):
    done = bench.process.run(ROOT / 'hfhub' / 'publish.py', runs / 'a', bench.id, *flags, env={'HF_TOKEN': TOKEN})
    failed(done, Exit.BAD_INPUT, words)
    assert len(bench.hub.requests) == bench.since


def test_own_data_needs_a_name_and_a_licence(bench, runs, tmp_path):
    from PIL import Image
    for split, count in (('train', 4), ('val', 2)):
        for label in 'ab':
            folder = tmp_path / 'images' / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new('RGB', (16, 16), (100 * (label == 'a'), 20 * i, 0)).save(folder / f'{i}.png')
    run_script(
        '--data-dir', tmp_path / 'images', '--model', 'deit_lt_tiny', '--model-kwargs', 'embed_dim=48', 'depth=1',
        'num_heads=3', 'patch_size=8', '--img-size', '16', '--epochs', '1', '--batch-size', '4', '--workers', '0',
        '--output', tmp_path, '--experiment', 'own', '--no-amp')
    failed(bench.publish(tmp_path / 'own'), Exit.BAD_INPUT, 'licence')
    failed(bench.publish(tmp_path / 'own', '--license', 'mit'), Exit.BAD_INPUT, 'data set')
    succeeded(bench.publish(tmp_path / 'own', '--license', 'mit', '--dataset-name', 'two shades'))
    assert str(tmp_path).encode() not in b''.join(bench.files.values())
    assert 'two shades' in bench.files['README.md'].decode()
