"""What publishing compares, by hand: logits after the download, and what a plan changes."""
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models._hub import save_config_for_hf

from timm_deitlt.hub import publish
from timm_deitlt.hub.repository import Plan, Published, Remote, Repository, local_files


@pytest.fixture
def folder(tmp_path):
    model = timm.create_model('resnet20_cifar', num_classes=3)
    save_file(model.state_dict(), tmp_path / 'model.safetensors')
    save_config_for_hf(model, tmp_path / 'config.json')
    return tmp_path


@pytest.mark.parametrize('same', [True, False])
def test_a_model_that_answers_otherwise_after_the_download_is_not_verified(folder, monkeypatch, same):
    local = local_files(folder)
    repository = Repository('me/model')
    there = Remote(True, head='0' * 40, files={name: file.sha256 for name, file in local.items()})
    monkeypatch.setattr(repository, 'read', lambda revision: there)
    monkeypatch.setattr(repository, 'download', lambda name, *_: folder / name)
    loaded = timm.create_model(f'local-dir:{folder}', pretrained=True)
    if not same:
        with torch.no_grad():
            loaded.fc.bias[0] += 1e-6
    monkeypatch.setattr(publish.timm, 'create_model', lambda *_, create=timm.create_model, **given: (
        loaded if 'cache_dir' in given else create(*_, **given)))
    difference = publish.verify(repository, Published('0' * 40, '0' * 40, 'page'), local)
    assert difference is None if same else 'gives other logits' in difference


def test_a_plan_replaces_what_differs_deletes_weights_and_our_own_and_keeps_the_rest(folder):
    local = local_files(folder)
    same = local['config.json']
    files = {
        'config.json': same.blob, 'model.safetensors': 'other', 'args.yaml': 'x', 'plots/a.png': 'x', 'note.md': 'x',
        'sub/model.bin': 'x', **{f'old.{kind}': 'x' for kind in ('bin', 'pt', 'pth', 'pth.tar', 'ckpt', 'pkl', 'h5')}}
    plan = Plan.between(Remote(True, files=files), local)
    assert plan.add == ['model.safetensors'] and plan.keep == ['note.md', 'sub/model.bin']
    assert plan.delete == sorted(set(files) - set(plan.keep) - set(local))
