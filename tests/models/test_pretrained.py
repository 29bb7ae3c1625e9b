"""Weights of the catalogue by timm: what is listed, what is loaded, and what is said where there are none."""
import errno
import json
import os
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from conftest import ROOT, last_json
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
from safetensors.torch import save_file
from timm.models import resolve_model_input_args, resolve_pretrained_cfg, save_for_hf
from torch import nn
from warm import torch_process

import timm_deitlt.benchmarks
from timm_deitlt.benchmarks import BENCHMARKS, CATALOGUE, PUBLISHED, RELEASED, TAGS, hub_id, tag_of
from timm_deitlt.cli.parsers import convert_parser
from timm_deitlt.models import CosineLinear
from timm_deitlt.models._hub import explain
from timm_deitlt.settings.layers import parse_args

# PaCo's ResNet-50 is timm's own model, which has no tags of ours
NAMES = [name for name, entry in CATALOGUE.items() if entry.architecture != 'resnet50']
TEACHER = 'resnet32_cifar.cifar100_if100_sam'
PACO = 'resnet32_cifar.cifar100_if100_paco_sam'
STUDENT = 'deit_lt_tiny.cifar100_if100'
SMALL = {'img_size': 32, 'patch_size': 8, 'depth': 2}
NOWHERE = {'hf_hub_id': None, 'hf_hub_filename': None}

every_name = pytest.mark.parametrize('name', NAMES)


def on_hub(name, revision=''):
    """Part of a cfg as that of a published tag."""
    return {'hf_hub_id': hub_id(name) + revision, 'hf_hub_filename': 'model.safetensors'}


def create(name, **kwargs):
    torch.manual_seed(0)
    model = timm.create_model(name, **{**(SMALL if name.startswith('deit') else {}), **kwargs})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(.02 * torch.randn(parameter.shape))
    return model.eval()


def images(size=32, channels=3):
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))


def refusal(name, **kwargs):
    with pytest.raises(FileNotFoundError) as caught:
        timm.create_model(name, pretrained=True, **kwargs)
    return str(caught.value)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Stands in for the client under timm: `put` says what it answers, `requests` what was asked."""
    answers, requests = {}, []

    def download(repo_id, filename, revision=None, cache_dir=None, **_):
        requests.append((repo_id, filename, revision, cache_dir))
        answer = answers.get((repo_id, filename), LocalEntryNotFoundError('nothing there'))
        if isinstance(answer, BaseException):
            raise answer
        return str(answer)

    def put(name, answer, file='model.safetensors', publish=True):
        if isinstance(answer, nn.Module):
            path = tmp_path / f'{name}.safetensors'
            save_file(answer.state_dict(), path)
            answer = path
        answers[hub_id(name), file] = answer
        if publish:
            monkeypatch.setattr(timm_deitlt.benchmarks, 'PUBLISHED', timm_deitlt.benchmarks.PUBLISHED | {name})

    monkeypatch.setattr('timm.models._hub.hf_hub_download', download)
    return SimpleNamespace(put=put, requests=requests)


# --- what is said without weights -------------------------------------------------------------------------------------
def test_timm_lists_the_catalogue_and_says_of_each_tag_what_is_published():
    listed = timm.list_models(module=('deit_lt', 'resnet_cifar', 'resnet_cosine'), include_tags=True)
    assert set(listed) == set(NAMES)
    published = {name for name in NAMES if timm.get_pretrained_cfg(name).hf_hub_id}
    assert published == PUBLISHED & set(NAMES) == set(timm.list_pretrained()) & set(NAMES)


@pytest.mark.parametrize('asked, message', [('deit_lt_tiny.cifar100_if10', 'Invalid pretrained tag'), (
    'resnet32_cifar.imagenet_lt_sam', 'Invalid pretrained tag')])
def test_unknown_tag_is_timms_error(asked, message):
    with pytest.raises(RuntimeError, match=message):
        timm.create_model(asked, pretrained=True)


@every_name
def test_a_tag_without_weights_is_one_error_before_any_request_with_commands_that_hold(name, hub):
    entry = CATALOGUE[name]
    message = refusal(name, pretrained_cfg_overlay=NOWHERE)
    assert not hub.requests
    assert f'its id would be {hub_id(name)}.' in message and "timm.create_model('local-dir:" in message

    words = shlex.split(re.search('`python train.py (.*?)`', message)[1])
    args = parse_args(words)
    assert tag_of(args.dataset, args.imbalance_factor) == entry.benchmark
    assert args.data_dir == (None if args.dataset == 'lt/digits' else 'DIR')
    assert args.model == entry.architecture.removesuffix('_cosine')
    assert (args.loss, args.opt, args.classifier) == {
        'student': ('ce', 'muon' if args.dataset == 'lt/digits' else 'adamw', 'linear'),
        'sam': ('ldam', 'samsgd', 'cosine'), 'paco_sam': ('paco', 'samsgd', 'linear')}[entry.kind]
    assert (args.teacher == 'none') == (entry.kind != 'student')

    conversion = re.search('`python hfhub/convert.py (.*?)`', message)
    assert bool(conversion) == (name in RELEASED)
    if conversion:
        args = convert_parser().parse_args(shlex.split(conversion[1]))
        files = BENCHMARKS[TAGS[entry.benchmark].dataset].files.get('train', ())
        assert args.benchmark == entry.benchmark
        assert args.list_file.name in files if files else args.list_file is None


def test_a_cfg_of_ones_own_without_weights_is_an_error_that_makes_up_no_id(hub):
    message = refusal('resnet20_cifar', pretrained_cfg={'num_classes': 7, 'classifier': 'fc'})
    assert message.startswith('No published weights of resnet20_cifar are known')
    assert 'id would be' not in message and 'train.py' not in message and 'local-dir:' in message
    assert not hub.requests


def caused(cause):
    try:
        raise LocalEntryNotFoundError('An error happened') from cause
    except LocalEntryNotFoundError as error:
        return error


def answered(kind, status, **headers):
    url = SimpleNamespace(path='/owner/name/resolve/main/model.safetensors')
    response = SimpleNamespace(status_code=status, headers=headers, request=None, url=url)
    return kind(f'{status}', response=response)


ERRORS = {
    'offline': caused(OfflineModeIsEnabled('offline')),
    'network': caused(ConnectionError('refused')),
    'dropped': TimeoutError('timed out'),
    'no repository': answered(RepositoryNotFoundError, 404),
    'no revision': caused(answered(RevisionNotFoundError, 404)),
    'no file': answered(RemoteEntryNotFoundError, 404),
    'gated': answered(GatedRepoError, 403),
    'no access': caused(answered(HfHubHTTPError, 403)),
    'bad token': answered(HfHubHTTPError, 401, **{'X-Error-Message': 'Invalid credentials'}),
    'server': caused(answered(HfHubHTTPError, 503)),
    'no answer of a hub': caused(OSError('Distant resource does not seem to be on huggingface.co.')),
    'unknown': EntryNotFoundError('something new'),
}


@pytest.mark.parametrize('name, error', [
    *((TEACHER, error) for error in ERRORS), (STUDENT, 'gated'), ('resnet50_cosine.inat18_sam', 'gated')])
def test_a_failed_request_is_one_error_that_says_what_was_asked_why_it_failed_and_what_else_works(hub, name, error):
    hub.put(name, ERRORS[error])
    message = refusal(name, pretrained_cfg_overlay=on_hub(name))
    asked, reason = f'{hub_id(name)} on the Hub', explain(ERRORS[error]).words
    assert message.startswith(f'The weights of {name} could not be read from {asked}: {reason}. Train it by `')
    assert 'local-dir:' in message
    assert hub.requests == [(hub_id(name), 'model.safetensors', None, None)]  # no pickle is asked for


def test_the_message_names_the_revision_that_was_asked(hub):
    hub.put(TEACHER, ERRORS['no revision'])
    message = refusal(TEACHER, pretrained_cfg_overlay=on_hub(TEACHER, '@v1.0'))
    assert f'from {hub_id(TEACHER)}, revision v1.0, on the Hub' in message
    assert hub.requests == [(hub_id(TEACHER), 'model.safetensors', 'v1.0', None)]


def test_weights_of_somebody_else_fail_with_the_same_words_but_without_our_recipes(hub):
    cfg = {'hf_hub_id': 'somebody/model', 'num_classes': 7, 'classifier': 'fc'}
    message = refusal('resnet20_cifar', pretrained_cfg=cfg)
    assert message.startswith('The weights of resnet20_cifar could not be read from somebody/model on the Hub: ')
    assert 'train.py' not in message and 'local-dir:' in message


@pytest.mark.parametrize('kind, error', [
    ('shapes', RuntimeError), ('bytes', SafetensorError), ('disk', OSError), ('bug', ZeroDivisionError)])
def test_errors_that_are_not_the_hubs_come_through_as_they_are(hub, tmp_path, kind, error):
    (tmp_path / 'damaged').write_bytes(b'not the weights')
    hub.put(TEACHER, {
        'shapes': create('resnet20_cifar.cifar100_if100_sam'), 'bytes': tmp_path / 'damaged',
        'disk': OSError(errno.ENOSPC, 'No space left on device'), 'bug': ZeroDivisionError()}[kind])
    with pytest.raises(error) as caught:
        timm.create_model(TEACHER, pretrained=True, pretrained_cfg_overlay=on_hub(TEACHER))
    assert type(caught.value) is error and 'on the Hub' not in str(caught.value)


@pytest.mark.parametrize('overlay', [{}, on_hub(TEACHER)], ids=['unpublished', 'published'])
def test_a_file_that_is_missing_is_no_failure_of_the_hub(hub, overlay):
    assert 'Hub' not in refusal(TEACHER, pretrained_cfg_overlay={**overlay, 'file': 'no_such_file.pth'})
    assert not hub.requests


# --- what is loaded ---------------------------------------------------------------------------------------------------
@torch.no_grad()
@pytest.mark.parametrize('name', [STUDENT, TEACHER, PACO])
def test_published_weights_load_by_name_in_one_request(hub, tmp_path, name):
    model = create(name)
    hub.put(name, model)
    small = SMALL if name == STUDENT else {}
    loaded = timm.create_model(
        name, pretrained=True, cache_dir=tmp_path / 'own', pretrained_cfg_overlay=on_hub(name), **small).eval()
    assert torch.equal(loaded(images()), model(images()))
    assert hub.requests == [(hub_id(name), 'model.safetensors', None, tmp_path / 'own')]


@torch.no_grad()
@pytest.mark.parametrize('options, size, same', [
    ({'num_classes': 7}, 32, 'blocks.1.mlp.fc2.weight'),
    ({'num_classes': 0}, 32, 'blocks.1.mlp.fc2.weight'),
    ({'img_size': 48}, 48, 'blocks.0.attn.qkv.weight'),
    ({'in_chans': 1}, 32, 'pos_embed'),
], ids=['classes', 'no classifier', 'size', 'channels'])
def test_published_weights_are_adapted_as_timm_adapts_its_own(hub, options, size, same):
    model = create(STUDENT)
    hub.put(STUDENT, model)
    overlay = {**on_hub(STUDENT), 'input_size': (3, 32, 32)}
    torch.manual_seed(1)
    other = timm.create_model(STUDENT, pretrained=True, pretrained_cfg_overlay=overlay, **{**SMALL, **options}).eval()
    assert torch.equal(other.state_dict()[same], model.state_dict()[same])
    experts = other.forward_experts(images(size, options.get('in_chans', 3)))
    assert [logits.shape for logits in experts] == [(2, options.get('num_classes', 100) or 192)] * 2
    heads = [key for key in model.state_dict() if key.startswith('head') and key in other.state_dict()]
    assert len(heads) == (0 if options.get('num_classes') == 0 else 4)
    for key in heads:
        assert torch.equal(other.state_dict()[key], model.state_dict()[key]) == ('num_classes' not in options)


@torch.no_grad()
@pytest.mark.parametrize('name', [STUDENT, TEACHER])
def test_features_of_published_weights_are_those_of_the_model(hub, name):
    model = create(name)
    hub.put(name, model)
    options = {**(SMALL if name == STUDENT else {}), 'features_only': True, 'out_indices': (0, 1)}
    features = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=on_hub(name), **options).eval()
    expected = model.forward_intermediates(images(), [0, 1], intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(features(images()), expected, strict=True))


@torch.no_grad()
def test_weights_of_a_file_load_in_place_of_the_published_ones(hub, tmp_path):
    model = create(PACO)
    torch.save(model.state_dict(), tmp_path / 'weights.pth')
    for overlay in ({}, on_hub(PACO)):
        overlay = {**overlay, 'file': str(tmp_path / 'weights.pth')}
        assert torch.equal(timm.create_model(PACO, pretrained=True, pretrained_cfg_overlay=overlay).eval()(images()),
                           model(images()))
    state = {'state_dict': model.state_dict()}
    assert torch.equal(timm.create_model(PACO, pretrained=True, pretrained_cfg_overlay=state).eval()(images()),
                       model(images()))
    assert not hub.requests


# --- the classifier that a teacher's weights need ---------------------------------------------------------------------
def classifier(name, **kwargs):
    return type(timm.create_model(name, **kwargs).get_classifier())


def test_a_tag_brings_its_classifier_where_it_is_asked_for_and_the_user_wins(hub):
    assert classifier('resnet32_cifar') is nn.Linear
    assert classifier(TEACHER) is classifier('resnet32_cifar', pretrained_cfg=TEACHER.split('.')[1]) is CosineLinear
    assert classifier(PACO) is nn.Linear
    assert classifier(TEACHER, cosine=False) is nn.Linear
    assert classifier(PACO, cosine=True) is CosineLinear
    # whole cfgs tell nothing: timm passes those of hf-hub: and local-dir:, where config.json decides
    cfg = timm.get_pretrained_cfg(TEACHER)
    assert classifier('resnet32_cifar', pretrained_cfg=cfg) is nn.Linear
    assert classifier('resnet32_cifar', pretrained_cfg=cfg.to_dict()) is nn.Linear


@torch.no_grad()
def test_published_weights_bring_their_classifier_however_timm_is_told_of_them(hub):
    model = create(TEACHER)
    hub.put(TEACHER, model)
    overlay = on_hub(TEACHER)
    tag = TEACHER.split('.')[1]
    cfg = resolve_pretrained_cfg('resnet32_cifar', tag, overlay)
    for options in (
            {'pretrained_cfg': tag, 'pretrained_cfg_overlay': overlay},
            {'pretrained_cfg': cfg},
            {'pretrained_cfg': cfg.to_dict()},
            {'pretrained_cfg': cfg, 'pretrained_cfg_overlay': on_hub(TEACHER, '@main')},
    ):
        loaded = timm.create_model('resnet32_cifar', pretrained=True, **options).eval()
        assert torch.equal(loaded(images()), model(images()))
    # as timm's own train.py and validate.py ask
    asked = resolve_model_input_args(TEACHER, {}, pretrained_cfg_overlay=overlay)
    assert asked['model_name'] == 'resnet32_cifar' and isinstance(asked['pretrained_cfg'], dict)
    assert torch.equal(timm.create_model(**asked, pretrained=True).eval()(images()), model(images()))


@pytest.mark.parametrize('source', ['file', 'other id', 'hf-hub', 'unpublished'])
def test_other_weights_than_the_published_ones_bring_no_classifier(hub, monkeypatch, tmp_path, source):
    model = create('resnet32_cifar', num_classes=100)
    hub.put(TEACHER, model, publish=source != 'unpublished')
    torch.save(model.state_dict(), tmp_path / 'weights.pth')
    cfg = resolve_pretrained_cfg('resnet32_cifar', TEACHER.split('.')[1], on_hub(TEACHER)).to_dict()
    if source == 'file':
        cfg['file'] = str(tmp_path / 'weights.pth')
    elif source == 'other id':
        cfg['hf_hub_id'] = 'somebody/else'
        monkeypatch.setattr(
            'timm.models._hub.hf_hub_download', lambda **_: str(tmp_path / f'{TEACHER}.safetensors'))
    elif source == 'hf-hub':
        cfg['source'] = 'hf-hub'
    assert classifier('resnet32_cifar', pretrained=True, pretrained_cfg=cfg) is nn.Linear


@torch.no_grad()
@pytest.mark.parametrize('name', [TEACHER, PACO])
def test_a_model_made_by_its_tag_is_exported_with_what_the_tag_brought(tmp_path, name):
    model = create(name)
    save_for_hf(model, tmp_path / 'out', safe_serialization=True)
    args = json.loads((tmp_path / 'out' / 'config.json').read_text()).get('model_args', {})
    assert args.get('cosine', False) == (name == TEACHER)
    back = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True).eval()
    assert back.pretrained_cfg['source'] == 'local-dir'
    assert torch.equal(back(images()), model(images()))


def test_the_users_classifier_is_what_is_exported(tmp_path):
    save_for_hf(create(TEACHER, cosine=False), tmp_path / 'out', safe_serialization=True)
    back = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True)
    assert type(back.get_classifier()) is nn.Linear


# --- what is published, in processes of their own ---------------------------------------------------------------------
PRELUDE = '''
import importlib, json, sys, types
package = sys.modules['timm_deitlt'] = types.ModuleType('timm_deitlt')  # so that PUBLISHED is set before all else
package.__path__ = [{package!r}]
benchmarks = importlib.import_module('timm_deitlt.benchmarks')
benchmarks.PUBLISHED = frozenset({published!r})
import timm, torch
import timm_deitlt.models

def refusal(name):
    try:
        timm.create_model(name, pretrained=True)
    except FileNotFoundError as error:
        return str(error)

def default(architecture):
    return timm.get_pretrained_cfg(architecture).tag
'''


def child(code, tmp_path, published=(), **env):
    prelude = PRELUDE.format(package=str(ROOT / 'timm_deitlt'), published=tuple(published))
    (tmp_path / 'child.py').write_text(prelude + code)
    done = torch_process().run(
        tmp_path / 'child.py', cwd=tmp_path, env={'HF_HOME': str(tmp_path / 'hf'), 'HF_HUB_DISABLE_XET': '1', **env})
    assert done.returncode == 0, done.stderr[-3000:]
    return last_json(done)


REGISTRY = '''
import socket
def refuse(*args): raise AssertionError('a request')
socket.socket.connect = socket.getaddrinfo = refuse
small = timm.create_model('deit_lt_small', depth=1, device='meta')
print(json.dumps({
    'pretrained': timm.list_pretrained(['deit_lt*', 'resnet*_cifar', 'resnet50_cosine']),
    'filtered': timm.list_pretrained('deit_lt*'),
    'models': [name for name in timm.list_models(pretrained=True, include_tags=False) if 'lt_' in name],
    'is': [timm.is_model_pretrained(name) for name in
           ('deit_lt_small', 'deit_lt_small.digits_if10', 'deit_lt_small.imagenet_lt', 'deit_lt_base')],
    'defaults': [default(name) for name in
                 ('deit_lt_small', 'deit_lt_base', 'resnet20_cifar', 'resnet32_cifar', 'resnet50_cosine')],
    'small': [small.num_classes, list(small.pretrained_cfg['input_size'])],
    'ids': [timm.get_pretrained_cfg(name).hf_hub_id for name in ('deit_lt_small', 'deit_lt_base', 'resnet20_cifar')],
    'files': [timm.get_pretrained_cfg(name).hf_hub_filename for name in ('deit_lt_small', 'deit_lt_base')],
    'errors': [refusal('deit_lt_base'), refusal('deit_lt_small.imagenet_lt')],
}))
'''


def test_with_nothing_published_timm_lists_nothing_and_the_first_tags_are_default(tmp_path):
    found = child(REGISTRY, tmp_path, TIMM_DEITLT_HUB_OWNER=' ')
    assert found['pretrained'] == found['filtered'] == found['models'] == []
    assert found['is'] == [False] * 4 and found['ids'] == [None] * 3 and found['files'] == [None] * 2
    assert found['defaults'] == [
        'imagenet_lt', 'imagenet_lt', 'cifar100_if100_sam', 'cifar100_if100_sam', 'imagenet_lt_sam']
    assert found['small'] == [1000, [3, 224, 224]]
    assert 'its id would be timm-deitlt/deit_lt_base.imagenet_lt.' in found['errors'][0]


def test_what_is_listed_as_published_has_its_id_and_the_first_of_it_is_default(tmp_path):
    published = ['deit_lt_small.digits_if10', 'resnet20_cifar.cifar10_if50_paco_sam', 'resnet50.inat18_paco_sam']
    found = child(REGISTRY, tmp_path, published)
    assert found['pretrained'] == published[:2] and found['filtered'] == published[:1]
    assert found['models'] == ['deit_lt_small']
    assert found['is'] == [True, True, False, False]
    assert found['defaults'] == [
        'digits_if10', 'imagenet_lt', 'cifar10_if50_paco_sam', 'cifar100_if100_sam', 'imagenet_lt_sam']
    assert found['small'] == [10, [3, 32, 32]]
    assert found['ids'] == ['timm-deitlt/deit_lt_small.digits_if10', None,
                            'timm-deitlt/resnet20_cifar.cifar10_if50_paco_sam']
    assert found['files'] == ['model.safetensors', None]
    assert 'timm-deitlt/deit_lt_base.imagenet_lt' in found['errors'][0]
    assert 'timm-deitlt/deit_lt_small.imagenet_lt' in found['errors'][1]


def cached(home, repo_id, model):
    """Lay weights down as the client keeps what it has downloaded."""
    commit = 'c0ffee' + 34 * '0'
    folder = Path(home, 'hub', 'models--' + repo_id.replace('/', '--'))
    for part in ('blobs', 'refs', f'snapshots/{commit}'):
        (folder / part).mkdir(parents=True)
    save_file(model.state_dict(), folder / 'blobs' / 'a1')
    (folder / 'refs' / 'main').write_text(commit)
    (folder / 'snapshots' / commit / 'model.safetensors').symlink_to('../../blobs/a1')


OFFLINE = '''
x = torch.load('images.pth')
print(json.dumps({
    'pretrained': timm.list_pretrained(['deit_lt*', 'resnet*_cifar', 'resnet50_cosine']),
    'ids': {name: timm.get_pretrained_cfg(name).hf_hub_id for name in benchmarks.CATALOGUE if 'resnet50.' not in name},
    'defaults': [default(name) for name in ('deit_lt_tiny', 'deit_lt_base', 'resnet32_cifar', 'resnet50_cosine')],
    'resnet32_cifar': timm.create_model('resnet32_cifar', pretrained=True).eval()(x).tolist(),
    'deit_lt_tiny': timm.create_model('deit_lt_tiny.digits_if10', pretrained=True).eval()(x).tolist(),
    'error': refusal('resnet20_cifar.digits_if10_paco_sam'),
    'timm': timm.get_pretrained_cfg('resnet50').hf_hub_id,
}))
'''


@torch.no_grad()
def test_another_owner_has_all_tags_and_their_weights_load_offline_from_the_cache(tmp_path):
    teacher, student = create(TEACHER), create('deit_lt_tiny.digits_if10', img_size=32, patch_size=16, depth=12)
    cached(tmp_path / 'hf', f'someone/{TEACHER}', teacher)
    cached(tmp_path / 'hf', 'someone/deit_lt_tiny.digits_if10', student)
    x = images(32)
    torch.save(x, tmp_path / 'images.pth')
    found = child(OFFLINE, tmp_path, TIMM_DEITLT_HUB_OWNER='someone', HF_HUB_OFFLINE='1')
    assert set(found['pretrained']) == set(NAMES)
    assert found['ids'] == {name: f'someone/{name}' for name in NAMES}
    assert found['defaults'] == ['imagenet_lt', 'imagenet_lt', 'cifar100_if100_sam', 'imagenet_lt_sam']
    torch.testing.assert_close(torch.tensor(found['resnet32_cifar']), teacher(x), rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.tensor(found['deit_lt_tiny']), student(x), rtol=0, atol=1e-6)
    name = 'resnet20_cifar.digits_if10_paco_sam'
    assert f'{name} could not be read from someone/{name} on the Hub: HF_HUB_OFFLINE is set' in found['error']
    assert found['timm'].startswith('timm/')


def test_without_a_network_the_error_says_so(tmp_path):
    (tmp_path / 'site').mkdir()
    (tmp_path / 'site' / 'sitecustomize.py').write_text('import time\ntime.sleep = lambda seconds: None\n')
    code = "print(json.dumps([refusal('deit_lt_tiny.cifar10_if50'), refusal('resnet20_cifar')]))"
    messages = child(
        code, tmp_path, TIMM_DEITLT_HUB_OWNER='someone', HF_ENDPOINT='http://127.0.0.1:9', NO_PROXY='*',
        PYTHONPATH=os.pathsep.join(filter(None, (str(tmp_path / 'site'), os.environ.get('PYTHONPATH')))))
    for message, name in zip(messages, (
            'deit_lt_tiny.cifar10_if50', 'resnet20_cifar.cifar100_if100_sam'), strict=True):
        assert f'{name} could not be read from someone/{name} on the Hub: http://127.0.0.1:9 cannot be rea' in message
        assert 'Train it by `python train.py -c cifar' in message and 'local-dir:' in message
