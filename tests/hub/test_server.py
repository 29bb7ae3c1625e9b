"""The stand-in for the Hub answers the real clients as the Hub does, in what publishing relies on."""
import hashlib
import time
from pathlib import Path

import pytest
from hub_server import HubServer
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    EvalResult,
    HfApi,
    ModelCardData,
    constants,
    errors,
)
from huggingface_hub.utils import close_session
from warm import torch_process

NAME = 'ann/tiny'
WEIGHTS = b'weights' * 1000
README = b'---\nlicense: mit\ntags: [timm]\n---\n# Tiny\n'


@pytest.fixture
def waits(monkeypatch):
    """The waits the client asks for, none of which is made."""
    waits = []
    monkeypatch.setattr(time, 'sleep', waits.append)
    return waits


@pytest.fixture
def hub(monkeypatch, waits):
    monkeypatch.setattr(constants, 'HF_HUB_DISABLE_XET', True)
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    close_session()
    with HubServer() as hub:
        hub.add_user('hf_ann', 'ann', orgs=('lab',))
        hub.add_user('hf_look', 'ann', role='read', orgs=('lab',))
        hub.add_user('hf_bob', 'bob')
        yield hub
    close_session()


@pytest.fixture
def api(hub, tmp_path):
    """Clients by token; downloads go to the test's own folder."""
    return lambda token='hf_ann': HfApi(endpoint=hub.url, token=token)


def add(**files):
    """Operations that add files; '__' in a name is a dot."""
    return [CommitOperationAdd(name.replace('__', '.'), data) for name, data in files.items()]


def push(client, **files):
    return client.create_commit(NAME, add(**files), commit_message='Push')


def seen(hub, *wanted):
    """Methods and statuses of the requests whose path has one of these parts."""
    return [(r.method, r.status) for r in hub.requests if any(part in r.path for part in wanted)]


def run_child(code, folder, **env):
    """Run code in a process of its own, given the repository's name."""
    (folder / 'child.py').write_text(code)
    done = torch_process().run(folder / 'child.py', NAME, env={'NO_PROXY': None, **env})
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_user_is_known_by_the_token(api):
    me = api('hf_look').whoami()
    assert me['name'] == 'ann' and [org['name'] for org in me['orgs']] == ['lab']
    assert me['auth']['accessToken']['role'] == 'read'


def test_a_repository_is_created_once_with_the_visibility_asked_for(hub, api):
    url = api().create_repo(NAME, private=True)
    assert url.repo_id == NAME and url == f'{hub.url}/{NAME}'
    assert api().create_repo('bare').repo_id == 'ann/bare'
    assert api().create_repo('lab/model', private=False).repo_id == 'lab/model'
    assert [hub.repo(name).private for name in (NAME, 'ann/bare', 'lab/model')] == [True, False, False]
    assert [commit.message for commit in hub.repo(NAME).commits] == ['initial commit']
    assert hub.repo('ann/none') is None
    with pytest.raises(errors.HfHubHTTPError, match='409'):
        api().create_repo(NAME)
    assert api().create_repo(NAME, exist_ok=True).repo_id == NAME


def test_a_commit_brings_regular_and_lfs_files_and_keeps_the_others(hub, api):
    first = hub.commit(NAME, {'old.txt': b'old', 'sub/a.txt': b'a'})
    info = push(api(), config__json=b'{}', model__safetensors=WEIGHTS, empty__bin=b'', raw=b'\0\1')
    repo = hub.repo(NAME)
    assert repo.head == info.oid == repo.commits[-1].oid and repo.commits[-1].parent == first
    assert {name: data for name, data in repo.files.items() if name != '.gitattributes'} == {
        'old.txt': b'old', 'sub/a.txt': b'a', 'config.json': b'{}', 'model.safetensors': WEIGHTS, 'empty.bin': b'',
        'raw': b'\0\1'}
    assert 'config.json' not in repo.commits[-2].files
    assert repo.commits[-1].lfs == {'model.safetensors', 'raw'}
    assert hub.lfs[hashlib.sha256(WEIGHTS).hexdigest()] == WEIGHTS and len(hub.lfs) == 2
    push(api(), raw=b'text')
    assert repo.commits[-1].lfs == {'model.safetensors'} and repo.files['raw'] == b'text'
    uploads = [r for r in hub.requests if r.method == 'PUT']
    assert {r.origin for r in uploads} == {'storage'} and not any('authorization' in r.headers for r in uploads)
    assert seen(hub, 'objects/verify') == [('POST', 200)] * 2


def test_an_object_already_there_is_not_sent_again(hub, api):
    api().create_repo(NAME)
    push(api(), model__safetensors=WEIGHTS)
    oid = push(api(), model__safetensors=WEIGHTS, copy__bin=WEIGHTS).oid
    assert seen(hub, '/objects/' + hashlib.sha256(WEIGHTS).hexdigest()) == [('PUT', 200)]
    assert hub.repo(NAME).head == oid and hub.repo(NAME).files['copy.bin'] == WEIGHTS
    assert push(api(), model__safetensors=WEIGHTS).oid == oid, 'nothing has changed, so nothing is committed'


def test_files_are_deleted_in_the_commit_that_adds_others(hub, api):
    hub.commit(NAME, {'a.txt': b'a', 'plots/x.txt': b'x'})
    api().create_commit(NAME, [CommitOperationDelete('a.txt'), *add(b=b'b')], commit_message='Swap')
    assert set(hub.repo(NAME).files) == {'.gitattributes', 'plots/x.txt', 'b'}
    with pytest.raises(errors.EntryNotFoundError):
        api().create_commit(NAME, [CommitOperationDelete('none'), *add(c=b'c')], commit_message='Nothing there')
    assert 'c' not in hub.repo(NAME).files


def test_what_is_told_about_files_is_true(hub, api):
    made = hub.commit(NAME, {'README.md': README, 'sub/model.bin': WEIGHTS}, message='First')
    changed = hub.commit(NAME, {'x.txt': b'x'}, message='Second\n\nWith words')
    info = api().model_info(NAME, files_metadata=True)
    assert (info.sha, info.private, info.card_data.license, info.tags) == (changed, False, 'mit', ['timm'])
    files = {file.rfilename: file for file in info.siblings}
    sha256 = hashlib.sha256(WEIGHTS).hexdigest()
    assert files['sub/model.bin'].lfs.sha256 == sha256 and files['sub/model.bin'].size == len(WEIGHTS)
    git = hashlib.sha1(b'blob 1\0x').hexdigest()
    assert files['x.txt'].lfs is None and (files['x.txt'].size, files['x.txt'].blob_id) == (1, git)
    assert api().model_info(NAME, revision=made).sha == made

    with pytest.raises(errors.RevisionNotFoundError):
        api().model_info(NAME, revision='none')
    with pytest.raises(errors.RepositoryNotFoundError):
        api().model_info('ann/none')


def test_tags_and_branches_are_made_once_from_what_exists(hub, api):
    first = hub.commit(NAME, {'a': b'a'})
    api().create_tag(NAME, tag='v1.0', revision=first)
    api().create_branch(NAME, branch='next/step')
    head = api().create_commit(NAME, add(b=b'b'), commit_message='On', revision='next/step').oid
    repo = hub.repo(NAME)
    assert (repo.tags, repo.branches) == ({'v1.0': first}, {'main': first, 'next/step': head})
    for again in (lambda: api().create_tag(NAME, tag='v1.0'), lambda: api().create_branch(NAME, branch='next/step')):
        with pytest.raises(errors.HfHubHTTPError, match='409'):
            again()
    api().create_tag(NAME, tag='v1.0', revision='next/step', exist_ok=True)
    assert repo.tags == {'v1.0': first}, 'a tag is never moved'
    for missing in (
        lambda: api().create_tag(NAME, tag='v2.0', revision='none'),
        lambda: api().create_branch(NAME, branch='other', revision='none'),
        lambda: api().create_commit(NAME, add(c=b'c'), commit_message='Nowhere', revision='none'),
        lambda: api().create_commit(NAME, add(c=b'c'), commit_message='Not a branch', revision='v1.0'),
    ):
        with pytest.raises(errors.RevisionNotFoundError):
            missing()
    refs = api().list_repo_refs(NAME, include_pull_requests=True)
    assert {ref.ref: ref.target_commit for ref in [*refs.branches, *refs.tags]} == {
        'refs/heads/main': first, 'refs/heads/next/step': head, 'refs/tags/v1.0': first}
    assert refs.pull_requests == []


def test_a_pull_request_leaves_the_branch_alone(hub, api):
    first = hub.commit(NAME, {'a': b'a'})
    made = api().create_commit(NAME, add(b=b'b'), commit_message='Please', create_pr=True, parent_commit=first)
    repo = hub.repo(NAME)
    assert repo.head == first and repo.pulls == {'refs/pr/1': made.oid} and made.pr_revision == 'refs/pr/1'
    more = api().create_commit(NAME, add(c=b'c'), commit_message='More', revision='refs/pr/1')
    assert repo.pulls == {'refs/pr/1': more.oid} and api().model_info(NAME, revision='refs/pr/1').sha == more.oid
    head = hub.commit(NAME, {'a': b'moved on'})
    old = api().create_commit(NAME, add(x=b'x'), commit_message='Based on', create_pr=True, parent_commit=first)
    assert repo.head == head and repo.find(old.oid).parent == first and repo.find(old.oid).files['a'] == b'a'
    foreign = api('hf_bob').create_commit(NAME, add(d=b'd'), commit_message='From outside', create_pr=True)
    assert foreign.pr_num == 3 and repo.find('refs/pr/3').files.keys() == {'.gitattributes', 'a', 'd'}


@pytest.mark.parametrize('revision', ['main', 'v1.0', 'refs/pr/1', 'oid'])
def test_files_of_both_kinds_are_downloaded_from_any_revision(hub, api, tmp_path, revision):
    oid = hub.commit(NAME, {'sub/config 1.json': b'{}', 'model.safetensors': WEIGHTS})
    api().create_tag(NAME, tag='v1.0')
    hub.repo(NAME).pulls['refs/pr/1'] = oid
    start = len(hub.requests)
    for name, data in {'sub/config 1.json': b'{}', 'model.safetensors': WEIGHTS}.items():
        path = api().hf_hub_download(NAME, name, revision=oid if revision == 'oid' else revision, cache_dir=tmp_path)
        assert Path(path).read_bytes() == data and f'snapshots/{oid}/' in path
    tokens = [(r.method, r.origin, 'authorization' in r.headers) for r in hub.requests[start:]]
    assert tokens == [
        ('HEAD', 'hub', True), ('GET', 'hub', True), ('HEAD', 'hub', True), ('GET', 'storage', False)]
    with pytest.raises(errors.EntryNotFoundError):
        api().hf_hub_download(NAME, 'none', cache_dir=tmp_path)
    assert (tmp_path / 'models--ann--tiny' / '.no_exist' / oid / 'none').exists(), 'the 404 names the commit'


@pytest.mark.parametrize('token', ['hf_wrong', False])
def test_who_has_no_valid_token_is_turned_away(hub, api, token):
    hub.commit(NAME, {'a': b'a'})
    with pytest.raises(errors.HfHubHTTPError, match='401') as refused:
        push(api(token), b=b'b')
    assert not isinstance(refused.value, errors.RepositoryNotFoundError)
    with pytest.raises(errors.HfHubHTTPError, match='401'):
        api(token).create_repo('ann/new')
    assert set(hub.repos) == {NAME} and 'b' not in hub.repo(NAME).files
    if token:
        with pytest.raises(errors.HfHubHTTPError, match='Invalid credentials in Authorization header'):
            api(token).model_info(NAME)
        with pytest.raises(errors.HfHubHTTPError, match='Invalid user token'):
            api(token).whoami()
    else:
        assert api(token).model_info(NAME).id == NAME


@pytest.mark.parametrize('token', ['hf_look', 'hf_bob'])
def test_who_may_only_read_is_told_so(hub, api, token):
    head = hub.commit(NAME, {'a': b'a'})
    assert api(token).model_info(NAME).sha == head
    for attempt in (
        lambda: push(api(token), b=b'b'), lambda: api(token).create_repo('lab/new'),
        lambda: api(token).create_tag(NAME, tag='v1'), lambda: api(token).create_branch(NAME, branch='b'),
    ):
        with pytest.raises(errors.HfHubHTTPError, match='403 Forbidden: Forbidden: (this token|you have no rights)'):
            attempt()
    assert hub.repo(NAME).branches == {'main': head} and not hub.repo(NAME).tags and set(hub.repos) == {NAME}


def test_a_private_repository_is_there_for_its_members_only(hub, api, tmp_path):
    api().create_repo('lab/secret', private=True)
    assert api('hf_look').model_info('lab/secret').private
    for token in ('hf_bob', False):
        with pytest.raises(errors.RepositoryNotFoundError):
            api(token).model_info('lab/secret')
        with pytest.raises(errors.RepositoryNotFoundError):
            api(token).hf_hub_download('lab/secret', '.gitattributes', cache_dir=tmp_path)


def test_a_commit_on_a_stale_parent_is_refused(hub, api):
    head = hub.commit(NAME, {'a': b'a'})
    hub.fail('POST', '/commit/main', before=lambda: hub.commit(NAME, {'a': b'theirs'}))
    with pytest.raises(errors.HfHubHTTPError, match='412.*\n\nA commit has happened since'):
        api().create_commit(NAME, add(a=b'mine'), commit_message='Late', parent_commit=head)
    assert hub.repo(NAME).files['a'] == b'theirs'
    api().create_commit(NAME, add(a=b'mine'), commit_message='In time', parent_commit=hub.repo(NAME).head)
    assert hub.repo(NAME).files['a'] == b'mine'


def test_a_commit_cannot_name_an_object_that_was_not_sent(hub, api):
    head = hub.commit(NAME, {'a': b'a'})
    hub.fail('POST', '/commit/main', before=hub.lfs.clear)
    with pytest.raises(errors.BadRequestError, match=r'LFS pointer .* does not exist: model\.bin'):
        push(api(), model__bin=WEIGHTS, other=b'o')
    assert hub.repo(NAME).head == head


@pytest.mark.parametrize('card, complaint', [
    ("base_model: ''", '"base_model" is not allowed to be empty'),
    ('license: [mit, 3]', '"license" must be a string'),
    ('tags: [timm, 3]', '"tags" must be a string'),
    ('license: [', 'YAML Metadata Error'),
    ('- license', 'must be an object'),
    ('model-index: {name: m}', '"model-index" has the wrong form'),
    ('model-index: [{name: m, results: [{task: {}, dataset: {type: t, name: n}, metrics: [{type: a, value: 0}]}]}]',
     '"results.task.type" is required'),
    ('model-index: [{name: m, results: [{task: {type: t}, dataset: {type: t}, metrics: [{type: a, value: 0}]}]}]',
     '"results.dataset.name" is required'),
    ('model-index: [{name: m, results: [{task: {type: t}, dataset: {type: t, name: n}, metrics: [{type: a}]}]}]',
     '"results.metrics.value" is required'),
])
def test_a_card_the_hub_would_refuse_stops_the_commit(hub, api, card, complaint):
    head, readme = hub.commit(NAME, {'a': b'a'}), f'---\n{card}\n---\n'.encode()
    with pytest.raises(ValueError, match=f'(?s)Invalid metadata in README.md.*{complaint}'):
        push(api(), README__md=readme)
    assert not seen(hub, '/preupload/')
    hub.fail('POST', '/validate-yaml', status=200)
    with pytest.raises(errors.BadRequestError, match=complaint):
        push(api(), README__md=readme)
    assert hub.repo(NAME).head == head


def test_a_right_card_passes_and_an_empty_one_draws_a_warning(hub, api):
    api().create_repo(NAME)
    result = EvalResult('image-classification', 'lt/digits', 'Digits', 'accuracy', 0.0, metric_name='Top-1 tail (%)')
    card = ModelCardData(license='mit', model_name='tiny', eval_results=[result], datasets=['a/b'], tags=['timm'])
    push(api(), README__md=f'---\n{card.to_yaml()}\n---\n'.encode())
    assert api().model_info(NAME).card_data.eval_results[0].metric_name == 'Top-1 tail (%)'
    with pytest.warns(UserWarning, match='empty or missing yaml metadata'):
        push(api(), README__md=b'# No metadata')
    hub.commit(NAME, {'README.md': b"---\nbase_model: ''\n---\n"})
    assert push(api(), a=b'a').oid == hub.repo(NAME).head, 'only a card that is committed is checked'


def test_a_fault_lasts_as_many_requests_as_it_was_given(hub, api, waits):
    api().create_repo(NAME)
    fault = hub.fail('PUT', '/objects/', 2, status=503, message='slow down')
    hub.fail('POST', 'objects/verify', status=429, headers={'Retry-After': '7'})
    push(api(), model__bin=WEIGHTS)
    assert fault.times == 0 and hub.repo(NAME).files['model.bin'] == WEIGHTS
    assert seen(hub, '/objects/') == [
        ('POST', 200), ('PUT', 503), ('PUT', 503), ('PUT', 200), ('POST', 429), ('POST', 200)]
    assert waits == [1, 2, 8]
    hub.fail('POST', '/commit/', status=403, message='Private repository storage limit reached')
    with pytest.raises(errors.HfHubHTTPError, match='Private repository storage limit reached'):
        push(api(), a=b'a')
    hub.fail('POST', '/validate-yaml', status=400, message='"license" must be one of')
    with pytest.raises(ValueError, match='"license" must be one of'):
        push(api(), README__md=README)
    hub.fail('GET', '/api/models/', status=403, headers={'X-Error-Code': 'GatedRepo'})
    with pytest.raises(errors.GatedRepoError):
        api().model_info(NAME)


def test_a_dropped_connection_loses_the_request_or_only_its_answer(hub, api):
    head = hub.commit(NAME, {'a': b'a'})
    hub.fail('POST', '/commit/', drop='before')
    with pytest.raises(errors.HTTPError):
        push(api(), a=b'b')
    assert hub.repo(NAME).head == head
    hub.fail('POST', '/commit/', drop='after')
    with pytest.raises(errors.HTTPError):
        push(api(), a=b'b')
    assert hub.repo(NAME).files['a'] == b'b' and hub.repo(NAME).commits[-1].parent == head
    assert seen(hub, '/commit/') == [('POST', None)] * 2
    hub.fail('POST', '/preupload/', drop='before')
    push(api(), a=b'c')
    assert hub.repo(NAME).files['a'] == b'c', 'what the client repeats by itself works'


def test_what_is_not_imitated_or_goes_wrong_here_does_not_go_unseen(hub, api):
    with pytest.raises(errors.HfHubHTTPError, match='501.*\n\n.*is not imitated'):
        api().list_models(author='ann').__next__()
    with pytest.raises(ValueError, match="drop is 'never'"):
        hub.fail('GET', '', drop='never')
    with pytest.raises(ZeroDivisionError), HubServer() as broken:
        broken.fail('GET', 'whoami', before=lambda: 1 / 0)
        with pytest.raises(errors.HTTPError):
            HfApi(endpoint=broken.url, token='hf_ann').whoami()


def test_a_child_retries_without_waiting_even_behind_a_proxy(hub, tmp_path):
    hub.commit(NAME, {'a.txt': b'a'})
    hub.fail('POST', '/preupload/', 3, status=500)
    code = 'import sys; from huggingface_hub import upload_file; upload_file(' \
        'path_or_fileobj=b"b", path_in_repo="a.txt", repo_id=sys.argv[1])'
    log = tmp_path / 'sleep.txt'
    run_child(
        code, tmp_path, **hub.env('hf_ann', tmp_path / 'hf'), FAST_SLEEP_LOG=str(log),
        HTTP_PROXY='http://127.0.0.1:9', HTTPS_PROXY='http://127.0.0.1:9', ALL_PROXY='http://127.0.0.1:9')
    assert log.read_text().split() == ['1', '2', '4'] and hub.repo(NAME).files['a.txt'] == b'b'
    assert 'HF_TOKEN' not in hub.env(home=tmp_path) and hub.env()['HF_ENDPOINT'] == hub.url
