"""The settings for small data in the real train.py: off they change nothing, on they go on bit for bit."""
import csv

import pytest
import timm
import torch
from conftest import TINIEST_TEACHER, TINY
from PIL import Image
from safetensors.torch import load_file

from timm_deitlt.evaluation.fusion import FUSIONS
from timm_deitlt.hub.export import write_model
from timm_deitlt.hub.source import read_model
from timm_deitlt.run.mechanisms.analyze import analyze
from timm_deitlt.run.predict import load_model
from timm_deitlt.run.train import train
from timm_deitlt.run.validate import validate
from timm_deitlt.settings.layers import parse_args

GUIDED = ['--guidance', '2.5', '--guidance-end', '.67', '--dense-distill', '1']


def run_here(tmp_path, *args):
    """A run of three epochs across the DRW switch in this process; its metrics and its checkpoint."""
    argv = [
        *TINY, *TINIEST_TEACHER, '--epochs', '3', '--drw-start-epoch', '2', '--drop-path', '.1', '--output', tmp_path,
        '--experiment', 'run', *args]
    return train(parse_args(list(map(str, argv)))), torch.load(
        tmp_path / 'run' / 'last.pth.tar', weights_only=False)


def assert_same(a, b, where=''):
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for name, value in a.items():
            assert_same(value, b[name], f'{where} {name}')
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where


def test_guided_run_with_an_ema_goes_on_bit_for_bit_and_leaves_a_plain_student(tmp_path, shared_teachers):
    flags = [
        *GUIDED, '--model-ema', '--model-ema-decay', '.9', '--clip-grad', '1', '--grad-accum-steps', '2',
        '--teacher-cache', shared_teachers]
    _, whole = run_here(tmp_path / 'whole', *flags)
    run_here(tmp_path / 'parts', *flags, '--stop-epoch', '1')
    _, parts = run_here(tmp_path / 'parts', *flags, '--resume', 'auto')
    for key in ('state_dict', 'state_dict_ema', 'task_state', 'task_state_ema'):
        assert_same(whole[key], parts[key], key)
    assert_same(whole['optimizer']['state'], parts['optimizer']['state'])

    with open(tmp_path / 'whole' / 'run' / 'summary.csv') as file:
        losses = [(float(row['train_guidance_loss']), float(row['train_dense_loss'])) for row in csv.DictReader(file)]
    assert losses[0][0] > 0 and losses[1][0] > 0 == losses[2][0], 'off after two epochs of three'
    assert all(dense > 0 for _, dense in losses)

    names = set(timm.create_model('deit_lt_tiny', embed_dim=48, depth=2, num_heads=3).state_dict())
    assert set(whole['state_dict']) == set(whole['state_dict_ema']) == names
    write_model(read_model(tmp_path / 'whole' / 'run'), tmp_path / 'out', 'apache-2.0')
    assert set(load_file(tmp_path / 'out' / 'model.safetensors')) == names


def test_guided_student_is_trained_with_sam(tmp_path, shared_teachers):
    result, checkpoint = run_here(
        tmp_path, *GUIDED, '--opt', 'samadamw', '--teacher-cache', shared_teachers, '--stop-epoch', '1')
    assert result['dist'] is not None and checkpoint['task_state']['projections']
    # its teacher returns maps too; what the teacher predicts is measured as without guidance
    assert 0 <= analyze(str(tmp_path / 'run'), num_images=20)['ood']['teacher_top1_clean'] <= 100


def test_the_other_settings_go_on_bit_for_bit_whatever_the_number_of_workers(tmp_path, shared_teachers):
    flags = [
        '--aug-ramp', '2', '--aa', 'rand-m9-mstd0.5-inc1', '--init', 'mimetic', '--opt', 'muon', '--muon-hidden-only',
        '--logit-standardize', '--kd-token-distill-type', 'soft', '--kd-temperature', '3', '--guidance', '1',
        '--teacher-cache', shared_teachers]
    _, whole = run_here(tmp_path / 'whole', *flags)
    run_here(tmp_path / 'parts', *flags, '--stop-epoch', '1', '--workers', '2')
    _, parts = run_here(tmp_path / 'parts', *flags, '--resume', 'auto')
    for key in ('state_dict', 'task_state'):
        assert_same(whole[key], parts[key], key)
    assert_same(whole['optimizer']['state'], parts['optimizer']['state'])


def test_settings_can_be_chosen_on_images_that_neither_training_nor_test_has(tmp_path, shared_teachers):
    flags = ['--teacher-cache', shared_teachers, '--stop-epoch', '1']
    usual, _ = run_here(tmp_path / 'usual', *flags)
    result, _ = run_here(tmp_path / 'unused', *flags, '--val-split', 'unused')
    data = result['data']
    assert data['evaluated_on'] == 'training images that the subset leaves out'
    assert len(set(data['test_counts'])) == 1 and sum(data['train_counts']) == 216
    assert result['teacher']['source'] == 'cache', 'the teacher is the same one'
    assert result['teacher']['loss'] != usual['teacher']['loss'], 'measured on other images'


def test_the_fusion_of_a_run_is_its_answer_wherever_it_is_asked(tmp_path, shared_teachers, caplog):
    caplog.set_level('INFO')
    result, _ = run_here(
        tmp_path, '--fusion', 'mean_adjusted', '--no-amp', '--report', '--model-ema', '--model-ema-decay', '.9',
        '--teacher-cache', shared_teachers)
    assert result['answer'] == 'mean_adjusted' and set(result['fusion']) == {'mean_adjusted'}
    assert 'mean_adjusted' in result['ema']
    table = next(message for message in reversed(caplog.messages) if 'test images' in message)
    assert table.endswith('prediction: mean_adjusted')
    rows = [line.split()[0] for line in table.splitlines() if line]
    assert rows.index('mean_adjusted') < rows.index('mean') < rows.index('cls')
    with open(tmp_path / 'run' / 'summary.csv') as file:
        assert float(list(csv.DictReader(file))[-1]['eval_mean_adjusted_top1']) == pytest.approx(
            result['fusion']['mean_adjusted']['top1'])

    page = (tmp_path / 'run' / 'report.html').read_text()
    assert 'the mean of DIST and adjusted CLS correctly classifies' in page and 'EMA, prediction: mean of DIST' in page
    write_model(read_model(tmp_path / 'run'), tmp_path / 'out', 'apache-2.0')
    for place in (tmp_path / 'run', tmp_path / 'out'):
        again = validate(str(place), {'amp': False}, 'all')
        assert again['answer'] == 'mean_adjusted' and set(again['fusion']) == set(FUSIONS)
        assert again['fusion']['mean_adjusted'] == result['fusion']['mean_adjusted']
        assert again['confusion'] == result['confusion'] and result['confusion']['expert'] == 'mean_adjusted'
        trained = load_model(place)
        image = Image.fromarray((torch.rand(8, 8) * 255).byte().numpy())
        default, adjusted, mean = (trained.predict([image], **options)[0]['probabilities'] for options in (
            {}, {'fusion': 'mean_adjusted'}, {'fusion': 'mean'}))
        assert default == adjusted != mean

    again, checkpoint = run_here(
        tmp_path, '--fusion', 'mean', '--no-amp', '--resume', 'auto', '--teacher-cache', shared_teachers)
    assert 'answer' not in again and checkpoint['args'].fusion == 'mean', 'a finished run may change its answer'
    assert again['mean'] == result['mean'] and again['weights_sha256'] == result['weights_sha256']
    assert 'answer' not in validate(str(tmp_path / 'run'), {'amp': False})


@pytest.mark.parametrize(('flags', 'message'), [
    (['--fusion', 'count_mix', '--teacher', 'none'], 'without a teacher there is no DIST'),
    (['--fusion', 'mean_adjusted', '--loss', 'ldam', '--mixup', '0', '--cutmix', '0', '--smoothing', '0'],
     'scale them later'),
    (['--fusion', 'mean_adjusted', '--bce-loss', '--cls-loss', 'ce', '--drw-on', 'dist'], 'each class by itself'),
    (['--logit-standardize'], '--kd-token-distill-type soft'),
    (['--logit-standardize', '--kd-token-distill-type', 'soft', '--teacher', 'none'], '--logit-standardize needs'),
    (['--init', 'mimetic', '--pretrained'], 'read from a file'),
    (['--muon-hidden-only'], 'belongs to the muon optimizers'),
    (['--aug-ramp', '2', '--aa', 'augmix-m5'], 'RandAugment'),
    (['--aug-ramp', '2', '--aa', 'rand-m9-mstd0.5'], 'strongest at magnitude 0; use an increasing policy'),
    (['--bce-loss', '--drw-on', 'both', '--fusion', 'mean'], '--bce-loss cannot weight classes'),
    (['--aug-ramp', '2', '--aa', '', '--reprob', '0', '--mixup', '0', '--cutmix', '0'], 'all of them are off'),
    (['--init', 'mimetic', '--model-kwargs', 'embed_dim=42'], 'multiple of 4'),
    (['--guidance', '1', '--teacher', 'none'], "--guidance needs a teacher's feature maps, got --teacher none"),
    (['--dense-distill', '1', '--teacher', 'labels'], '--dense-distill needs .* got --teacher labels'),
    (['--guidance', '1', '--teacher-view', 'weak'], 'leave --teacher-view out'),
    (['--guidance', '1', '--layer-decay', '.7'], '--layer-decay'),
    (['--guidance-blocks', '0'], 'belong to --guidance'),
    (['--guidance', '1', '--guidance-blocks', '0', '1', '--guidance-stages', '1'], 'a block for each'),
    (['--guidance', '1', '--guidance-blocks', '0', '1', '1'], 'do not fit 4 stage'),
    (['--guidance', '1', '--guidance-stages', '9'], 'from 0 to 4'),
])
def test_what_does_not_go_together_is_an_error_before_the_teacher_is_trained(tmp_path, flags, message):
    cache = tmp_path / 'teachers'
    with pytest.raises(ValueError, match=message):
        run_here(tmp_path, '--teacher-cache', cache, *flags)
    assert not cache.exists() and not (tmp_path / 'run').exists()
