"""The real train.py on real digits: through the DRW switch, killed, resumed, branched, on two processes."""
import csv
import json
import re
import signal
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import timm
import torch
import yaml
from conftest import TINIEST_TEACHER, TINY, ends_it_after, last_json, run_script
from helpers import summary

from timm_deitlt.run.start import claim
from timm_deitlt.run.train import train
from timm_deitlt.settings.layers import parse_args

EPOCHS = ['--epochs', '3', '--drw-start-epoch', '2']


def weights(folder):
    return torch.load(folder / 'last.pth.tar', weights_only=False)


def assert_same_state(a, b):
    """Weights, optimizer and EMA are bit-identical."""
    for key in ('state_dict', 'state_dict_ema'):
        assert (key in a) == (key in b)
        for name, value in a.get(key, {}).items():
            assert torch.equal(value, b[key][name]), f'{key} {name}'
    for index, state in a['optimizer']['state'].items():
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(b['optimizer']['state'][index][name]))
    assert a['epoch'] == b['epoch']


@pytest.fixture(scope='module')
def reference(tmp_path_factory):
    """One run through the switch with workers, mixing, drop path and an EMA, never interrupted."""
    output = tmp_path_factory.mktemp('runs')
    command = [
        *TINY, *TINIEST_TEACHER, *EPOCHS, '--teacher-cache', output / 'teachers', '--drop-path', '.1', '--workers', '2',
        '--mixup-prob', '1', '--model-ema', '--model-ema-decay', '.9', '--output', output]
    done = run_script(*command, '--experiment', 'whole')
    return command, output, done


def test_run_ends_in_one_json_line_that_metrics_json_repeats(reference):
    _, output, done = reference
    result = last_json(done)
    assert result == json.loads((output / 'whole' / 'metrics.json').read_text())
    for expert in ('mean', 'cls', 'dist'):
        assert {'top1', 'head', 'mid', 'tail', 'balanced', 'top5'} <= set(result[expert])
    assert result['teacher']['source'] == 'trained' and 'top1' in result['teacher']
    assert result['data']['train_counts'] == [40, 34, 29, 25, 21, 18, 15, 13, 11, 10]
    assert result['data']['test_counts'] == [34] * 10
    assert result['epochs'] == 3 and result['seed'] == 42
    assert result['train_images_per_second'] > 0
    assert {'torch', 'timm', 'timm_deitlt', 'git'} <= set(result['versions'])
    assert result['shots']['tail']['test_images'] == 102


def test_folder_of_a_run_holds_what_is_promised(reference):
    _, output, _ = reference
    folder = output / 'whole'
    with open(folder / 'summary.csv') as file:
        rows = list(csv.DictReader(file))
    assert [int(row['epoch']) for row in rows] == [0, 1, 2]
    for column in (
            'train_loss', 'train_seconds', 'train_images_per_second', 'train_teacher_correct', 'train_agreement',
            'train_cosine', 'lr', 'eval_mean_top1', 'eval_cls_tail', 'eval_dist_tail', 'ema_mean_top1'):
        assert any(column in name for name in rows[0]), column
    assert 0 <= float(rows[0]['train_teacher_correct']) <= 1
    assert yaml.safe_load((folder / 'args.yaml').read_text())['model'] == 'deit_lt_tiny'
    assert (folder / 'milestone-2.pth.tar').is_file()
    assert not list(folder.glob('*.tmp'))
    checkpoint = weights(folder)
    assert {'state_dict', 'optimizer', 'epoch', 'arch', 'args', 'version', 'state_dict_ema'} <= set(checkpoint)


def test_killed_and_resumed_run_is_bit_identical_to_one_that_was_not(reference, tmp_path):
    command, output, _ = reference
    command, folder = [*command, '--output', tmp_path, '--experiment', 'killed'], tmp_path / 'killed'
    in_the_second_epoch = ends_it_after(signal.SIGKILL, folder, 'last.pth.tar')
    assert run_script(*command, check=False, started=in_the_second_epoch).returncode == -signal.SIGKILL
    killed_after = weights(folder)['epoch']
    done = run_script(*command, '--resume', 'auto')
    assert killed_after < 2, 'the run had not ended when it was killed'
    assert f'Going on with epoch {killed_after + 1}' in done.stderr
    assert_same_state(weights(output / 'whole'), weights(folder))
    with open(folder / 'summary.csv') as file:
        assert [int(row['epoch']) for row in csv.DictReader(file)] == [0, 1, 2]
    whole, resumed = json.loads((output / 'whole/metrics.json').read_text()), last_json(done)
    assert {e: whole[e] for e in ('mean', 'cls', 'dist')} == {e: resumed[e] for e in ('mean', 'cls', 'dist')}
    assert resumed['teacher']['source'] == 'cache'


def test_number_of_workers_does_not_change_the_run(reference, tmp_path):
    command, output, _ = reference
    run_script(*command, '--workers', '0', '--output', tmp_path, '--experiment', 'other')
    assert_same_state(weights(output / 'whole'), weights(tmp_path / 'other'))


def test_branch_goes_on_from_the_milestone_into_a_folder_of_its_own(reference, tmp_path):
    command, output, _ = reference
    milestone = output / 'whole' / 'milestone-2.pth.tar'
    same = run_script(*command, '--branch-from', milestone, '--output', tmp_path, '--experiment', 'same')
    assert_same_state(weights(output / 'whole'), weights(tmp_path / 'same'))
    other = run_script(
        *command, '--drw-on', 'dist', '--branch-from', milestone, '--output', tmp_path, '--experiment', 'both')
    assert 'drw_on both -> dist' in other.stderr
    assert last_json(other)['epochs_trained'] == 3
    a, b = weights(tmp_path / 'same'), weights(tmp_path / 'both')
    assert any(not torch.equal(value, b['state_dict'][name]) for name, value in a['state_dict'].items())
    assert 'branch' in same.stderr.lower()


def test_validate_repeats_the_numbers_of_the_run(reference):
    _, output, done = reference
    again = run_script(output / 'whole', script='validate.py')
    assert re.search(r'^[\d.]+ images/s$', again.stderr, re.M)
    result, trained = last_json(again), last_json(done)
    for expert in ('mean', 'cls', 'dist'):
        assert result[expert]['top1'] == trained[expert]['top1']
        assert result[expert]['per_class'] == trained[expert]['per_class']


def test_timm_reads_the_checkpoint(reference):
    _, output, _ = reference
    model = timm.create_model(
        'deit_lt_tiny', embed_dim=48, depth=2, num_heads=3, patch_size=8, img_size=16, num_classes=10,
        checkpoint_path=str(output / 'whole' / 'last.pth.tar'))
    state = weights(output / 'whole')['state_dict_ema']  # timm prefers it
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_run_is_never_overwritten(reference):
    command, output, _ = reference
    done = run_script(*command, '--experiment', 'whole', check=False)
    assert done.returncode == 2
    assert 'holds a run already' in done.stderr and '--resume auto' in done.stderr


def run_here(tmp_path, *args):
    """A run in this process; returns its metrics and its checkpoint."""
    argv = [*TINY, '--output', str(tmp_path), '--experiment', 'run', *map(str, args)]
    return train(parse_args(argv)), weights(tmp_path / 'run')


def test_plain_vit_has_one_expert(tmp_path):
    result, checkpoint = run_here(tmp_path, '--epochs', '1', '--teacher', 'none')
    assert result['dist'] is None and result['mean'] == result['cls'] and result['teacher'] is None
    assert checkpoint['experts'] == ['mean', 'cls']
    again = last_json(run_script(tmp_path / 'run', script='validate.py'))
    assert again['dist'] is None and again['cls']['top1'] == result['cls']['top1']


def test_labels_train_both_tokens_without_a_teacher(tmp_path):
    result, checkpoint = run_here(tmp_path, '--epochs', '1', '--teacher', 'labels')
    assert result['dist'] is not None and result['teacher'] is None
    assert checkpoint['state_dict']['head_dist.weight'].any()


def test_cnn_trains_alone_with_sam(tmp_path):
    args = parse_args([
        '--model', 'resnet20_cifar', '--model-kwargs', 'num_blocks=1', '--opt', 'samsgd', '--epochs', '1', '--n-max',
        '40', '--imbalance-factor', '4',
        '--output', str(tmp_path), '--experiment', 'run', '--no-amp', '--img-size', '16'])
    result = train(args)
    checkpoint = torch.load(tmp_path / 'run' / 'last.pth.tar', weights_only=False)
    assert checkpoint['optimizer']['param_groups'][0]['rho'] == .05 and result['dist'] is None
    assert checkpoint['state_dict']['fc.weight'].isfinite().all() and result['epochs_trained'] == 1


def test_accumulation_equals_one_large_batch_without_batch_norm(tmp_path):
    # augmentation is seeded by micro-batch, so there is none here
    common = [
        '--epochs', '1', '--teacher', 'none', '--mixup', '0', '--cutmix', '0', '--no-aug', '--drop-path', '0', '--lr',
        '1e-2', '--opt', 'momentum']
    _, one = run_here(tmp_path / 'one', *common, '-b', '32')
    _, four = run_here(tmp_path / 'four', *common, '-b', '8', '--grad-accum-steps', '4')
    for name, value in one['state_dict'].items():
        assert torch.allclose(value, four['state_dict'][name], atol=1e-6), name


def test_val_fraction_never_trains_on_what_it_evaluates(tmp_path):
    result, _ = run_here(tmp_path, '--epochs', '1', '--teacher', 'none', '--val-fraction', '.2')
    assert sum(result['data']['train_counts']) + sum(result['data']['test_counts']) == 216
    assert 'held out' in result['data']['evaluated_on']


def test_weak_teacher_view_runs(tmp_path, shared_teachers):
    result, _ = run_here(
        tmp_path, '--epochs', '1', *TINIEST_TEACHER, '--teacher-cache', shared_teachers, '--teacher-view', 'weak')
    assert result['dist'] is not None


def test_several_image_sizes_go_on_bit_for_bit_and_leave_a_plain_model(tmp_path, shared_teachers):
    sizes = [
        '--epochs', '3', *TINIEST_TEACHER, '--teacher-cache', shared_teachers, '--teacher-view', 'weak',
        '--train-img-sizes', '8', '16', '--train-size-schedule', 'progressive', '--aug-repeats', '2']
    result, whole = run_here(tmp_path / 'whole', *sizes)
    run_here(tmp_path / 'cut', *sizes, '--stop-epoch', '1')
    again, _ = run_here(tmp_path / 'cut', *sizes, '--resume', 'auto')
    assert_same_state(whole, weights(tmp_path / 'cut' / 'run'))
    assert again['mean']['top1'] == result['mean']['top1']
    with open(tmp_path / 'cut' / 'run' / 'summary.csv') as file:
        sides = [float(row['train_image_size']) for row in csv.DictReader(file)]
    assert 8 <= sides[0] < sides[-1] <= 16
    plain = timm.create_model(
        'deit_lt_tiny', embed_dim=48, depth=2, num_heads=3, patch_size=8, img_size=16, num_classes=10)
    plain.load_state_dict(whole['state_dict'])
    validated = last_json(run_script(tmp_path / 'whole' / 'run', script='validate.py'))
    assert validated['mean']['top1'] == again['mean']['top1']


def test_clipping_and_rho_reach_a_student_that_is_trained_with_sam(tmp_path, shared_teachers):
    found = []
    for clip, rho in (('1', '.05'), ('.01', '.05'), ('1', '.5')):
        _, checkpoint = run_here(
            tmp_path / clip / rho, '--epochs', '1', *TINIEST_TEACHER, '--teacher-cache', shared_teachers, '--opt',
            'samadamw', '--rho', rho, '--clip-grad', clip, '--grad-accum-steps', '2')
        assert checkpoint['optimizer']['param_groups'][0]['rho'] == float(rho)
        found.append(checkpoint['state_dict']['head.weight'])
    assert not torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_save_images_and_tensorboard_leave_files(tmp_path):
    run_here(tmp_path, '--epochs', '1', '--teacher', 'none', '--save-images', '--log-tensorboard')
    assert list((tmp_path / 'run').glob('train-batch-0-*.jpg'))
    assert list((tmp_path / 'run').glob('events.out.tfevents.*'))
    for channels in (2, 4):
        mean = ['.5'] * channels
        run_here(
            tmp_path / f'{channels}', '--epochs', '1', '--teacher', 'none', '--save-images', '--in-chans', channels,
            '--input-img-mode', {2: 'LA', 4: 'RGBA'}[channels], '--mean', *mean, '--std', *mean)
        assert list((tmp_path / f'{channels}' / 'run').glob('train-batch-0-*.jpg'))


def test_trackio_gets_the_rows_of_the_summary(tmp_path, monkeypatch):
    begun, logged = [], []
    module = ModuleType('trackio')
    module.__spec__ = ModuleSpec('trackio', None)
    module.init = lambda **kwargs: begun.append(kwargs)
    module.log = lambda row, step: logged.append((step, row))
    module.finish = lambda: begun.append('finished')
    monkeypatch.setitem(sys.modules, 'trackio', module)
    run_here(tmp_path, '--epochs', '2', '--teacher', 'none', '--log-trackio')
    assert begun[0]['name'] == 'run' and begun[0]['config']['epochs'] == 2 and begun[1:] == ['finished']
    rows = summary(tmp_path / 'run')
    assert [step for step, _ in logged] == [0, 1]
    assert [row['train_loss'] for _, row in logged] == [pytest.approx(float(row['train_loss'])) for row in rows]


def test_nan_loss_stops_names_the_update_and_keeps_the_last_checkpoint(tmp_path):
    command = [*TINY, '--teacher', 'none', '--epochs', '3', '--output', tmp_path, '--experiment', 'nan']
    run_script(*command, '--stop-epoch', '1')
    before = (tmp_path / 'nan' / 'last.pth.tar').read_bytes()
    done = run_script(*command, '--resume', 'auto', '--no-resume-opt', '--lr', '1e30', check=False)
    assert done.returncode == 2
    assert 'not finite in epoch 1, update' in done.stderr and 'Traceback' not in done.stderr
    assert (tmp_path / 'nan' / 'last.pth.tar').read_bytes() == before


def test_interrupt_leaves_the_last_checkpoint_and_says_how_to_go_on(tmp_path):
    command = [
        *TINY, '--teacher', 'none', '--epochs', '500', '--auto-speed', 'off', '--output', tmp_path, '--experiment',
        'run']
    done = run_script(*command, check=False, started=ends_it_after(signal.SIGINT, tmp_path / 'run', 'last.pth.tar'))
    assert done.returncode == 130
    assert '--resume auto' in done.stderr and 'Traceback' not in done.stderr
    assert weights(tmp_path / 'run')['epoch'] >= 0


def test_run_without_evaluation_keeps_its_results(tmp_path):
    result, _ = run_here(tmp_path, '--epochs', '1', '--teacher', 'none', '--val-split', '')
    assert result['mean'] is None and result['data']['test_counts'] == [0] * 10
    assert json.loads((tmp_path / 'run' / 'metrics.json').read_text()) == result


def test_dated_runs_of_the_same_second_have_folders_of_their_own(tmp_path):
    first, second = claim(tmp_path / 'now'), claim(tmp_path / 'now')
    assert (first, second) == (tmp_path / 'now', tmp_path / 'now-2')


def test_validation_evaluates_the_ema_and_leaves_the_runs_metrics_alone(reference):
    _, output, done = reference
    before = (output / 'whole' / 'metrics.json').read_bytes()
    result = last_json(run_script(output / 'whole', script='validate.py'))
    assert result['ema']['mean']['top1'] == last_json(done)['ema']['mean']['top1']
    assert result['teacher'] == last_json(done)['teacher'] and result['epochs'] == 3
    assert (output / 'whole' / 'metrics.json').read_bytes() == before
    assert json.loads((output / 'whole' / 'validation.json').read_text()) == result


def test_a_held_out_run_can_be_validated_on_the_test_images(tmp_path):
    run_here(tmp_path, '--epochs', '1', '--teacher', 'none', '--val-fraction', '.2')
    held_out = last_json(run_script(tmp_path / 'run', script='validate.py'))
    tested = last_json(run_script(tmp_path / 'run', '--val-split', 'test', script='validate.py'))
    assert sum(held_out['data']['test_counts']) < sum(tested['data']['test_counts']) == 340


def test_changed_settings_of_a_resumed_run_are_said(tmp_path, caplog):
    run_here(tmp_path, '--epochs', '2', '--teacher', 'none', '--stop-epoch', '1')
    with caplog.at_level('WARNING'):
        run_here(
            tmp_path, '--epochs', '2', '--teacher', 'none', '--resume', 'auto', '--weight-decay', '.5',
            '--dataset-download')
    assert 'changed: weight_decay 0.05 -> 0.5\n' in caplog.text


def test_augmentation_on_the_device_goes_on_bit_for_bit(tmp_path, shared_teachers):
    flags = [
        '--augment-backend', 'device', '--epochs', '2', *TINIEST_TEACHER, '--teacher-cache', shared_teachers,
        '--teacher-view', 'weak', '--aug-ramp', '2', '--reprob', '.5', '--aug-repeats', '2', '--workers', '2']
    _, whole = run_here(tmp_path / 'whole', *flags)
    run_here(tmp_path / 'cut', *flags, '--stop-epoch', '1')
    run_here(tmp_path / 'cut', *flags, '--resume', 'auto', '--workers', '0')
    assert_same_state(whole, weights(tmp_path / 'cut' / 'run'))
    flags[1] = 'pillow'
    _, pillow = run_here(tmp_path / 'pillow', *flags)
    assert any(not torch.equal(value, pillow['state_dict'][name]) for name, value in whole['state_dict'].items())


def test_paco_with_sam_goes_on_bit_for_bit_and_leaves_a_plain_classifier(tmp_path):
    config = tmp_path / 'teacher.yaml'
    config.write_text(
        'base: [default/teacher, digits/teacher, teachers/paco, digits/paco, teachers/paco_sam]\n'
        'model: resnet20_cifar\nmodel_kwargs: {num_blocks: 1}\nimg_size: 16\nn_max: 20\nimbalance_factor: 4\n'
        'epochs: 2\npaco_queue: 50\namp: false\n'
        'batch_size: 16\nglobal_batch_size: 32\n')
    command = ['-c', str(config), '--output', str(tmp_path), '--experiment']
    train(parse_args([*command, 'whole']))
    train(parse_args([*command, 'parts', '--stop-epoch', '1']))
    train(parse_args([*command, 'parts', '--resume', 'auto']))
    whole, parts = weights(tmp_path / 'whole'), weights(tmp_path / 'parts')
    assert_same_state(whole, parts)
    for part, state in whole['task_state'].items():
        for name, value in state.items():
            assert torch.equal(value, parts['task_state'][part][name]), f'{part} {name}'
    assert (whole['task_state']['queue']['labels'] >= 0).all(), 'the images of an epoch have filled the queue of 50'
    plain = timm.create_model('resnet20_cifar', num_blocks=1, num_classes=10)
    plain.load_state_dict(whole['state_dict'])


def test_resume_on_another_update_says_so(tmp_path, caplog):
    command = [*TINY, '--teacher', 'none', '--epochs', '2', '--output', str(tmp_path), '--experiment', 'run']
    train(parse_args([*command, '--stop-epoch', '1']))
    caplog.set_level('INFO')
    train(parse_args([*command, '--resume', 'auto', '--grad-accum-steps', '2']))
    assert 'images in an update 16 -> 32' in caplog.text
