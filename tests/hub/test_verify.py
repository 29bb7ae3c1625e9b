"""What publishing compares, by hand: logits after the download, what a plan changes, runs of other seeds."""
import argparse
from types import SimpleNamespace

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models._hub import save_config_for_hf

from timm_deitlt.hub import figures, publish
from timm_deitlt.hub.figures import better_figures
from timm_deitlt.hub.repository import Exit, Plan, Published, PublishError, Remote, Repository, local_files
from timm_deitlt.hub.source import other_figures


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model('resnet20_cifar', num_classes=3)
    save_file(model.state_dict(), tmp_path / 'model.safetensors')
    save_config_for_hf(model, tmp_path / 'config.json')
    return tmp_path


def test_the_prediction_is_compared_whatever_its_fusion_and_fusions_that_were_only_measured_are_not():
    row = {'top1': 80., 'head': 90., 'mid': 80., 'tail': 70.}
    old = {'mean': row, 'answer': 'mean_adjusted', 'fusion': {'mean_adjusted': {**row, 'tail': 75.}, 'count_mix': row}}
    new = {'mean': row, 'answer': 'count_mix', 'fusion': {'count_mix': {**row, 'tail': 74.}}}
    assert better_figures(old, new) == ['answer tail 75.0 %, here 74.0 %']
    assert better_figures(old, {'mean': {**row, 'tail': 75.}}) == [], 'its mean is its prediction'
    for damaged in ({'fusion': [], 'answer': 'x'}, {'fusion': {}, 'answer': []}, {'answer': 'x'}, [], None):
        assert better_figures(damaged, new) == []


def test_figures_of_a_fusion_must_follow_from_its_classes_too():
    row = dict(top1=75., balanced=75., head=100., mid=None, tail=50., per_class=[100., 50.])
    metrics = {
        'mean': row, 'cls': row, 'dist': row, 'teacher': None, 'fusion': {'mean_adjusted': row},
        'shots': {'boundaries': [1, 1]}, 'data': {'train_counts': [9, 1], 'test_counts': [2, 2]}}
    metrics = {**dict.fromkeys(figures._NEEDED), **metrics}
    metrics['data'] = {**dict.fromkeys(figures._DATA_NEEDED), **metrics['data']}
    figures.check_figures(metrics, 'metrics.json')
    metrics['fusion'] = {'mean_adjusted': {**row, 'tail': 60.}}
    with pytest.raises(ValueError, match='mean_adjusted.tail is 60.0, but its accuracies per class give 50.0'):
        figures.check_figures(metrics, 'metrics.json')


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
            loaded.fc.bias[0] += 1e-3
    monkeypatch.setattr(publish.timm, 'create_model', lambda *_, create=timm.create_model, **given: (
        loaded if 'cache_dir' in given else create(*_, **given)))
    published = Published('0' * 40, '0' * 40, 'page')
    if same:
        publish.verify(repository, published, local)
    else:
        with pytest.raises(PublishError, match='gives other logits') as caught:
            publish.verify(repository, published, local)
        assert caught.value.code == Exit.UNVERIFIED


def test_a_plan_replaces_what_differs_deletes_weights_and_our_own_and_keeps_the_rest(folder):
    local = local_files(folder)
    same = local['config.json']
    files = {
        'config.json': same.blob, 'model.safetensors': 'other', 'args.yaml': 'x', 'plots/a.png': 'x', 'note.md': 'x',
        'sub/model.bin': 'x', **{f'old.{kind}': 'x' for kind in ('bin', 'pt', 'pth', 'pth.tar', 'ckpt', 'pkl', 'h5')}}
    plan = Plan.between(Remote(True, files=files), local)
    assert plan.add == ['model.safetensors'] and plan.keep == ['note.md', 'sub/model.bin']
    assert plan.delete == sorted(set(files) - set(plan.keep) - set(local))


def run_of(seed, lr=.1, data=(), **metrics):
    data = {'fingerprint': '23aa', 'evaluated_on': 'the test images', 'test_counts': [3, 3], **dict(data)}
    settings = argparse.Namespace(seed=seed, lr=lr, workers=seed, output=f'runs/{seed}')
    return SimpleNamespace(settings=settings, metrics={'mean': {'top1': 50.}, 'data': data, **metrics})


@pytest.mark.parametrize('other, words', [
    (run_of(0), 'seeds 0, 7, 0'), (run_of(1, lr=.2), r'other settings \(lr\)'),
    (run_of(1, data={'fingerprint': '0'}), 'fingerprint'), (run_of(1, data={'test_counts': [3, 4]}), 'test_counts'),
    (run_of(1, data={'evaluated_on': 'the validation images'}), 'evaluated_on'), (run_of(1, mean=None), 'figures'),
    (SimpleNamespace(settings=None, metrics={'mean': {}}), 'runs of train.py')])
def test_runs_that_differ_in_more_than_the_seed_are_refused(other, words):
    with pytest.raises(ValueError, match=words):
        other_figures(run_of(0), [run_of(7), other])


def test_runs_that_differ_in_the_seed_and_the_machine_give_their_figures():
    assert other_figures(run_of(0), [run_of(1), run_of(2)]) == [run_of(1).metrics, run_of(2).metrics]
    assert other_figures(SimpleNamespace(settings=None, metrics=None), []) == []
