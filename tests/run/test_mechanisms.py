"""analyze.py on real runs: what it writes, where its figures come from, and what it refuses."""
import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import TINY, TINY_TEACHER, last_json, run_script
from helpers import settings_of
from safetensors.torch import load_file
from timm.models import save_for_hf
from torch.distributions import Categorical

from timm_deitlt.analysis import (
    attention_maps,
    attention_rollout,
    divergence,
    effective_rank,
    energy_rank,
    mean_attention_distance,
    prefix_attention,
    token_features,
)
from timm_deitlt.data.seeds import seed_everything
from timm_deitlt.engine.checkpoint import load_checkpoint
from timm_deitlt.run.build.data import build_data
from timm_deitlt.run.build.loaders import build_eval_loader
from timm_deitlt.run.build.trainer import build_trainer
from timm_deitlt.run.mechanisms import analyze
from timm_deitlt.run.mechanisms.subject import choose
from timm_deitlt.run.train import train
from timm_deitlt.run.validate import run_settings
from timm_deitlt.settings.layers import parse_args

SHAPE = dict(embed_dim=48, depth=2, num_heads=3, patch_size=8, img_size=16, num_classes=10)
KEYS = {
    'model', 'num_images', 'images', 'grid', 'patch_px', 'prefix_tokens', 'attention_distance_px',
    'uniform_attention_distance_px', 'rank_cls', 'rank_dist', 'effective_rank_cls', 'effective_rank_dist',
    'rank_energy', 'cos', 'divergence', 'cos_norm', 'divergence_over_training', 'tail_gap', 'ood', 'seconds',
    'versions'}
OF_DIST = ('rank_dist', 'effective_rank_dist', 'cos', 'divergence', 'cos_norm')


@pytest.fixture(scope='module')
def analyzed(tmp_path_factory, shared_teachers):
    """A run with a teacher across the DRW switch, and analyze.py on it: folder, finished process."""
    output = tmp_path_factory.mktemp('runs')
    run_script(
        *TINY, *TINY_TEACHER, '--epochs', '3', '--drw-start-epoch', '2', '--mixup-prob', '1', '--drop-path', '.1',
        '--teacher-cache', shared_teachers, '--output', output, '--experiment', 'run')
    return output / 'run', run_script(output / 'run', script='analyze.py')


@pytest.fixture
def copy(analyzed, tmp_path):
    """A copy of that run, to be changed."""
    return shutil.copytree(analyzed[0], tmp_path / 'copy')


def summary(folder):
    with open(folder / 'summary.csv', newline='') as file:
        return list(csv.DictReader(file))


def network(folder):
    """The trained student, made by timm alone."""
    state = torch.load(folder / 'last.pth.tar', weights_only=False)['state_dict']
    model = timm.create_model('deit_lt_tiny', **SHAPE)
    model.load_state_dict(state)
    return model.eval()


def test_images(model):
    """All test images and labels in one batch, as the model expects them."""
    settings = settings_of(*TINY, '--validation-batch-size', '340')
    loader = build_eval_loader(
        settings, build_data(settings).evaluation,
        {**model.pretrained_cfg, 'input_size': (3, 16, 16), 'interpolation': 'bicubic', 'crop_pct': 1.,
         'mean': settings.model.mean, 'std': settings.model.std}, torch.device('cpu'))
    (images, labels), = loader
    return images, labels


test_images.__test__ = False


def test_last_line_is_what_analysis_json_holds(analyzed):
    folder, done = analyzed
    result = last_json(done)
    assert result == json.loads((folder / 'analysis.json').read_text())
    assert set(result) == KEYS
    assert (result['model'], result['images'], result['num_images']) == ('deit_lt_tiny', 'the test images', 340)
    assert (result['grid'], result['patch_px'], result['prefix_tokens']) == ([2, 2], [8, 8], 2)
    assert result['uniform_attention_distance_px'] == pytest.approx((8 + 8 + 8 * 2 ** .5) / 4)
    assert result['rank_energy'] == .99 and result['seconds'] > 0 and 'torch' in result['versions']
    assert not list(folder.glob('.*.tmp'))
    assert 'rank DIST' in done.stderr and 'training views' in done.stderr


def test_measures_are_those_of_all_test_images_at_once(analyzed):
    folder, done = analyzed
    result, model = last_json(done), network(folder)
    images, _ = test_images(model)
    tokens = token_features(model, images)
    for block, attention in enumerate(attention_maps(model, images)):
        assert result['attention_distance_px'][block] == pytest.approx(
            mean_attention_distance(attention, (2, 2), 8, 2).tolist(), rel=1e-5)
    for name, features in (('cls', tokens.cls), ('dist', tokens.dist)):
        assert result[f'rank_{name}'] == energy_rank(features).tolist()
        assert result[f'effective_rank_{name}'] == pytest.approx(effective_rank(features).tolist(), rel=1e-5)
    apart = divergence(tokens.cls, tokens.dist).tolist()
    assert result['divergence'] == pytest.approx(apart, abs=1e-6)
    assert result['cos'] == pytest.approx([1 - value for value in apart], abs=1e-6)
    assert result['cos_norm'] == pytest.approx(1 - divergence(tokens.cls_norm, tokens.dist_norm).item(), abs=1e-6)


def test_divergence_over_training_is_read_from_the_summary(analyzed):
    folder, done = analyzed
    expected = [[epoch, 1 - float(row['train_cosine'])] for epoch, row in enumerate(summary(folder))]
    assert len(expected) == 3
    assert last_json(done)['divergence_over_training'] == expected


def test_the_tail_is_measured_at_the_start_of_stage_two_and_at_the_end(copy):
    tail = build_data(settings_of(*TINY)).shots.groups['tail']
    for name, label in (('milestone-2.pth.tar', tail[0]), ('last.pth.tar', 0)):  # that says one class of all images
        checkpoint = torch.load(copy / name, weights_only=False)
        for head in ('head', 'head_dist'):
            checkpoint['state_dict'][f'{head}.bias'][label] += 1000.
        torch.save(checkpoint, copy / name)
    for num_images in (1000, 10):
        gap = analyze(str(copy), {}, num_images)['tail_gap']
        assert gap['epochs'] == [2, 3]
        assert gap['train'] == gap['test'] == [pytest.approx(100 / len(tail)), 0.]


def test_the_tail_at_the_end_is_that_of_the_run_and_of_its_training_images(analyzed):
    folder, done = analyzed
    gap, settings = last_json(done)['tail_gap'], settings_of(*TINY)
    assert gap['test'][-1] == json.loads((folder / 'metrics.json').read_text())['mean']['tail']
    assert gap['test'][0] == pytest.approx(float(summary(folder)[1]['eval_mean_tail']))
    data, model = build_data(settings), network(folder)
    config = {
        **model.pretrained_cfg, 'input_size': (3, 16, 16), 'interpolation': 'bicubic', 'crop_pct': 1.,
        'mean': settings.model.mean, 'std': settings.model.std}
    right = {label: [] for label in data.shots.groups['tail']}
    for images, target in build_eval_loader(settings, data.train, config, torch.device('cpu')):
        with torch.no_grad():
            said = model(images).argmax(dim=-1)
        for label, answer in zip(target.tolist(), said.tolist(), strict=True):
            if label in right:
                right[label].append(label == answer)
    assert gap['train'][-1] == pytest.approx(100 * np.mean([np.mean(answers) for answers in right.values()]))


def test_the_teacher_sees_the_very_views_of_the_first_epoch(analyzed):
    folder, done = analyzed
    ood, first = last_json(done)['ood'], summary(folder)[0]
    assert ood['teacher_top1_train_view'] == pytest.approx(100 * float(first['train_teacher_correct']), abs=1e-9)
    assert ood['num_views'] == 216


def test_the_teacher_sees_the_first_epoch_of_an_augmentation_that_rises(tmp_path, shared_teachers):
    run_script(
        *TINY, *TINY_TEACHER, '--epochs', '1', '--aug-ramp', '1', '--aa', 'rand-m9-mstd0.5-inc1', '--mixup-prob', '1',
        '--teacher-cache', shared_teachers, '--output', tmp_path, '--experiment', 'run')
    ood = last_json(run_script(tmp_path / 'run', script='analyze.py'))['ood']
    seen = float(summary(tmp_path / 'run')[0]['train_teacher_correct'])
    assert ood['teacher_top1_train_view'] == pytest.approx(100 * seen, abs=1e-9)


def test_what_the_teacher_says_equals_a_recomputation_by_parts_of_the_trainer(analyzed):
    folder, done = analyzed
    settings = run_settings(load_checkpoint(folder / 'last.pth.tar'), {'device': 'cpu'})
    file = Path(json.loads((folder / 'metrics.json').read_text())['teacher']['path'])
    record = json.loads((file.parent / 'teacher.json').read_text())
    teacher = timm.create_model('resnet20_cifar', num_classes=10, cosine=True)
    teacher.load_state_dict(load_file(file))
    teacher.eval()
    mean, std, own_mean, own_std = (
        torch.tensor(values).view(-1, 1, 1)
        for values in (settings.model.mean, settings.model.std, record['images']['mean'], record['images']['std']))

    def says(images):
        images = (images * std + mean - own_mean) / own_std
        return teacher(F.interpolate(images, record['images']['input_size'][1:], mode='bicubic', antialias=True))

    def entropy(logits):
        return Categorical(logits=record['settings']['ldam_scale'] * logits).entropy().mean().item()

    student = network(folder)
    trainer = build_trainer(settings, build_data(settings), None, torch.device('cpu'))
    found = []
    with torch.no_grad():
        for plan, images, target in (item for update in trainer.loader.epoch(0) for item in update):
            seed_everything(settings.seed, 0, plan.number)
            images, _, target = trainer.augment(images, target)
            found.append((says(images), student.forward_experts(images)[1].argmax(dim=1), target.argmax(dim=1)))
        clean_images, clean_labels = test_images(student)
        clean = says(clean_images)
    logits, dist, labels = map(torch.cat, zip(*found, strict=True))
    says_train = logits.argmax(dim=1)
    assert last_json(done)['ood'] == {
        'teacher_top1_clean': pytest.approx(100 * (clean.argmax(dim=1) == clean_labels).double().mean().item()),
        'teacher_top1_train_view': pytest.approx(100 * (says_train == labels).double().mean().item()),
        'teacher_entropy_train_view': pytest.approx(entropy(logits), rel=1e-4),
        'teacher_entropy_clean': pytest.approx(entropy(clean), rel=1e-4),
        'teacher_tail_share': pytest.approx(100 * (says_train >= 7).double().mean().item()),
        'true_tail_share': pytest.approx(100 * (labels >= 7).double().mean().item()),
        'dist_agreement': pytest.approx(100 * (says_train == dist).double().mean().item()),
        'num_views': 216,
    }


def test_maps_of_head_and_tail_classes_are_kept_with_their_images(analyzed):
    folder, _ = analyzed
    arrays, model = np.load(folder / 'attention.npz'), network(folder)
    assert arrays['groups'].tolist() == ['head'] * 4 + ['tail'] * 4
    assert arrays['labels'].tolist() == [0, 1, 2, 0, 7, 8, 9, 7], 'three classes each, so one has two'
    assert arrays['labels'].dtype == np.int64 and arrays['images'].dtype == np.uint8
    assert arrays['images'].shape == (8, 16, 16, 3)
    images, labels = test_images(model)
    args = parse_args(TINY)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (args.mean, args.std))
    positions = [labels.tolist().index(label) for label in (0, 1, 2, 7, 8, 9)]
    kept = torch.from_numpy(arrays['images']).permute(0, 3, 1, 2)[[0, 1, 2, 4, 5, 6]]
    assert torch.equal(kept, (255 * (images[positions] * std + mean)).round().byte())
    maps = attention_maps(model, images[positions])
    rollout, last = attention_rollout(maps, 2), prefix_attention(maps[-1], 2)
    for row, expert in enumerate(('cls', 'dist')):
        for kind, expected in (('rollout', rollout), ('last', last)):
            found = arrays[f'{expert}_{kind}']
            assert found.shape == (8, 2, 2) and found.dtype == np.float32
            assert np.allclose(found.sum(axis=(1, 2)), 1, atol=1e-6)
            assert np.allclose(
                found[[0, 1, 2, 4, 5, 6]], expected[:, row].reshape(-1, 2, 2).numpy(), atol=1e-6)


def wrong_answers(chances, labels, tail):
    return sorted(
        (chances[i, label].item(), i) for i, label in enumerate(labels.tolist())
        if label in tail and chances[i].argmax() != label)


def test_worst_answers_to_tail_images_are_kept_with_both_probabilities(analyzed):
    folder, _ = analyzed
    arrays, model = np.load(folder / 'tail_images.npz'), network(folder)
    images, labels = test_images(model)
    tail = build_data(settings_of(*TINY)).shots.groups['tail']
    with torch.no_grad():
        chances = model(images).softmax(-1)
    wrong = wrong_answers(chances, labels, tail)
    assert len(wrong) > 12, 'a student of three epochs'
    worst = [i for _, i in wrong[:12]]
    assert arrays['labels'].tolist() == labels[worst].tolist()
    assert arrays['probability'] == pytest.approx([chance for chance, _ in wrong[:12]], abs=1e-6)
    assert arrays['confidence'] == pytest.approx(chances[worst].amax(-1).tolist(), abs=1e-6)
    assert arrays['predicted'].tolist() == chances[worst].argmax(-1).tolist()
    args = parse_args(TINY)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (args.mean, args.std))
    kept = torch.from_numpy(arrays['images']).permute(0, 3, 1, 2)
    assert torch.equal(kept, (255 * (images[worst] * std + mean)).round().byte())


def test_worst_answers_after_ldam_have_the_probabilities_of_its_scaled_logits(tmp_path):
    hard = ('--mixup', '0', '--cutmix', '0', '--smoothing', '0')
    args = [*TINY, *hard, '--teacher', 'none', '--loss', 'ldam', '--epochs', '1']
    train(parse_args([*args, '--output', str(tmp_path), '--experiment', 'run']))
    analyze(str(tmp_path / 'run'))
    model = network(tmp_path / 'run')
    images, labels = test_images(model)
    with torch.no_grad():
        chances = (30 * model.forward_experts(images)[0]).softmax(-1)
    wrong = wrong_answers(chances, labels, build_data(settings_of(*args)).shots.groups['tail'])
    found = np.load(tmp_path / 'run' / 'tail_images.npz')['probability']
    assert len(found) and found == pytest.approx([chance for chance, _ in wrong[:12]], abs=1e-6)


def test_figures_of_a_milestone_have_files_of_their_own(copy):
    before = (copy / 'analysis.json').read_bytes()
    result = analyze(str(copy / 'milestone-2.pth.tar'))
    assert (copy / 'analysis.json').read_bytes() == before
    assert json.loads((copy / 'analysis-milestone-2.json').read_text()) == result
    assert (copy / 'attention-milestone-2.npz').is_file()
    assert [epoch for epoch, _ in result['divergence_over_training']] == [0, 1]
    assert result['cos_norm'] != json.loads(before)['cos_norm']


def test_same_figures_at_every_call_and_others_from_fewer_images(analyzed, copy):
    first, again, few = last_json(analyzed[1]), analyze(str(copy)), analyze(str(copy), {}, num_images=20)
    assert {**again, 'seconds': 0} == {**first, 'seconds': 0}
    assert json.loads((copy / 'analysis.json').read_text()) == few, 'the last call counts'
    assert few['num_images'] == 20 and max(few['rank_dist']) <= 20 and few['cos'] != first['cos']
    assert few['ood']['num_views'] == 208, '10 views an image, in whole micro-batches of 16'


@pytest.mark.parametrize('loss', ['its file', 'the record'])
def test_lost_teacher_leaves_only_the_rest(copy, caplog, loss):
    metrics = json.loads((copy / 'metrics.json').read_text())
    metrics['teacher']['path'] = str(copy / 'gone' / 'model.safetensors')
    if loss == 'its file':
        (copy / 'metrics.json').write_text(json.dumps(metrics))
    else:
        (copy / 'metrics.json').unlink()
    with caplog.at_level('WARNING'):
        result = analyze(str(copy), {}, num_images=20)
    assert result['ood'] is None and result['rank_dist'] is not None
    assert ('gone/model.safetensors' if loss == 'its file' else 'not known') in caplog.text
    assert not (copy / 'gone').exists(), 'none is trained'


@pytest.mark.parametrize('model', [
    ['--model', 'vit_tiny_patch16_224', '--model-kwargs', 'embed_dim=48', 'depth=2', 'num_heads=3', 'patch_size=8'],
    []])
def test_student_without_a_teacher_has_no_figures_of_dist(tmp_path, model):
    train(parse_args([
        *TINY, *model, '--epochs', '1', '--teacher', 'none', '--output', str(tmp_path), '--experiment', 'run']))
    result = analyze(str(tmp_path / 'run'))
    assert set(result) == KEYS
    assert all(result[name] is None for name in (*OF_DIST, 'ood')) and result['divergence_over_training'] == []
    assert len(result['rank_cls']) == 2 and result['prefix_tokens'] == (1 if model else 2)
    assert set(np.load(tmp_path / 'run' / 'attention.npz')) == {'images', 'labels', 'groups', 'cls_rollout', 'cls_last'}


def test_exported_model_is_measured_without_its_training(analyzed, tmp_path):
    folder, done = analyzed
    model, args = network(folder), parse_args(TINY)
    model.pretrained_cfg = {
        **model.pretrained_cfg, 'input_size': (3, 16, 16), 'mean': args.mean, 'std': args.std, 'crop_pct': 1.}
    kwargs = {name: SHAPE[name] for name in ('embed_dim', 'depth', 'num_heads', 'patch_size')}
    save_for_hf(model, tmp_path / 'out', model_args=kwargs, safe_serialization=True)
    result = last_json(run_script(
        tmp_path / 'out', '--dataset', 'lt/digits', '--no-amp', '-b', '170', '-j', '0', script='analyze.py'))
    assert result['ood'] is None and result['divergence_over_training'] == []
    assert result['cos'] == pytest.approx(last_json(done)['cos'], abs=1e-6)
    assert json.loads((tmp_path / 'out' / 'analysis.json').read_text()) == result


def test_cnn_is_refused_in_one_line(tmp_path):
    train(parse_args([
        '--model', 'resnet20_cifar', '--model-kwargs', 'num_blocks=1', '--epochs', '1', '--n-max', '40',
        '--imbalance-factor', '4', '--output', str(tmp_path), '--experiment', 'run', '--no-amp', '--img-size', '16',
        '--workers', '0']))
    (tmp_path / 'run' / 'last.pth.tar').rename(tmp_path / 'run' / 'cnn.pth.tar')
    done = run_script(tmp_path / 'run' / 'cnn.pth.tar', script='analyze.py', check=False)
    assert done.returncode == 2 and not done.stdout
    assert 'analyze.py: error: ResNetCifar has no blocks with the attention of a plain ViT' in done.stderr
    assert 'Traceback' not in done.stderr and not (tmp_path / 'run' / 'analysis.json').exists()


@pytest.mark.parametrize('args, message', [
    (['nowhere'], "There is no checkpoint 'nowhere'"), (['nowhere', '--num-images', '0'], '--num-images 0')])
def test_bad_input_is_one_line(args, message):
    done = run_script(*args, script='analyze.py', check=False)
    assert done.returncode == 2 and message in done.stderr and 'Traceback' not in done.stderr


def test_images_are_chosen_class_by_class():
    labels = [0] * 5 + [1] * 2 + [2] + [3] * 2
    assert sorted(choose(labels, [0, 1, 2, 3], 4)) == [0, 5, 7, 8], 'the first of each class'
    assert sorted(choose(labels, [0, 1, 2, 3], 7)) == [0, 1, 5, 6, 7, 8, 9]
    assert sorted(choose(labels, [0, 1, 2, 3], 99)) == list(range(10))
    assert sorted(choose(labels, [0, 1, 2, 3], 2)) == [0, 7], 'classes spread from the most to the least frequent'
    assert choose(labels, [3, 0], 3) == [8, 0, 9]
    assert choose(labels, [7], 3) == []
