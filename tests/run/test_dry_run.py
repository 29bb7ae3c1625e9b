"""The dry run: what it says of a run is what the run does, and it touches no image and no device."""
import json

import pytest
import torch
from conftest import TINY, last_json, run_script
from helpers import settings_of
from PIL import Image

from timm_deitlt.data.loader import MicroBatchSampler
from timm_deitlt.loss import class_weights
from timm_deitlt.run import settings as settings_module
from timm_deitlt.run import train as run
from timm_deitlt.run.build.data import build_data
from timm_deitlt.run.build.trainer import build_trainer
from timm_deitlt.run.dry_run import dry_run
from timm_deitlt.run.settings import update_size
from timm_deitlt.settings.layers import parse_args

PROMISED = {
    'recipe', 'train_images', 'class_counts', 'global_batch_size', 'updates_per_epoch', 'peak_lr', 'final_lr', 'epochs',
    'warmup_epochs', 'drw_start_epoch', 'drw_start_update', 'class_weight_first', 'class_weight_last', 'parameters',
}


def image_folder(path, counts):
    for label, count in enumerate(counts):
        (path / f'class{label}').mkdir(parents=True)
        for i in range(count):
            Image.new('RGB', (8, 8), (40 * label, i, 0)).save(path / f'class{label}' / f'{i}.png')
    return path


def test_last_line_is_one_json_object_and_nothing_is_written(tmp_path):
    done = run_script('--dry-run', '--world-size', '2', '--grad-accum-steps', '3', cwd=tmp_path)
    result = last_json(done)
    assert set(result) >= PROMISED and len(done.stdout.splitlines()) == 1
    assert result['global_batch_size'] == 2 * 3 * result['batch_size'] and result['recipe'] == 'digits/student'
    assert 'learning rate up to' in done.stderr and 'memory of a device' in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('flags', [
    [], ['--aug-repeats', '3'], ['--val-fraction', '.2'], ['--imbalance-profile', 'step'],
    ['--imbalance-profile', 'exp_reversed'],
    ['--mixup', '0', '--cutmix', '0'],
])
def test_what_it_says_of_the_digits_is_what_training_does(flags):
    command = [*TINY, '--epochs', '6', '--global-batch-size', '48', *flags]
    said = dry_run(parse_args(command))
    settings = settings_of(*command)
    data = build_data(settings)
    trainer = build_trainer(settings, data, None, torch.device('cpu'))
    assert said['class_counts'] == data.train.class_counts and said['train_images'] == len(data.train)
    assert said['updates_per_epoch'] == trainer.loader.updates_per_epoch == len(list(trainer.loader.epoch(0)))
    assert said['images_per_epoch'] == trainer.loader.images_per_epoch
    assert bool(said['left_out']) == (said['images_per_epoch'] < said['train_images'])
    assert 'Mixup' not in (said['left_out'] or '') or not {'--mixup', '--aug-repeats'} & set(flags)
    assert said['drw_start_epoch'] == trainer.drw_start_epoch
    assert said['parameters'] == sum(p.numel() for p in trainer.task.trainable_module.parameters())
    weights = class_weights(data.train.class_counts)
    assert said['class_weight_first'] == weights.min() and said['class_weight_last'] == weights.max()


def test_last_learning_rate_is_that_of_the_last_update():
    command = [*TINY, '--epochs', '3', '--sched-on-updates', '--sched', 'cosine', '--warmup-epochs', '1']
    said = dry_run(parse_args(command))
    settings = settings_of(*command)
    trainer = build_trainer(settings, build_data(settings), None, torch.device('cpu'))
    used, update = [], 0
    for epoch in range(3):
        for _ in range(trainer.loader.updates_per_epoch):
            used.append(trainer.optimizer.param_groups[0]['lr'])
            update += 1
            trainer.scheduler.step_update(update)
        trainer.scheduler.step(epoch + 1)
    assert said['final_lr'] == pytest.approx(used[-1], rel=1e-9)
    lr = settings.optimizer.peak_lr
    assert said['peak_lr'] == lr and max(used) == pytest.approx(lr, rel=.1)


def test_folder_is_counted_without_decoding_an_image(tmp_path):
    folder = image_folder(tmp_path / 'images', [30, 12, 4])
    for file in folder.rglob('*.png'):
        file.write_bytes(b'no image at all')
    result = dry_run(parse_args([
        '-c', 'own_data', '--data-dir', str(folder), '--val-fraction', '.25', '--global-batch-size', '128']))
    assert result['class_counts'] == [22, 9, 3] and result['recipe'] == 'own_data'
    assert result['shots']['tail'] == {'classes': 1, 'images': 3, 'largest': 3, 'smallest': 3}
    assert result['teacher']['model'] == 'resnet32_cifar' and result['teacher']['epochs'] == 200


def test_dry_run_never_asks_for_a_device(monkeypatch):
    def never(*args):
        raise AssertionError('a device was asked for')
    monkeypatch.setattr(settings_module, 'choose_device', never)
    monkeypatch.setattr(settings_module, 'local_device', never)
    monkeypatch.setattr(run, 'init_distributed_device_so', never)
    assert run.train(parse_args([*TINY, '--dry-run']))['world_size'] == 1


@pytest.mark.parametrize('name', ['lt/imagenet', 'lt/inat18'])
def test_counts_of_listed_sets_come_from_the_list_alone(tmp_path, name):
    if name == 'lt/imagenet':
        classes = 1000
        counts = [1 + (label % 7) for label in range(classes)]
        lines = [f'train/n{label:08d}/{i}.JPEG {label}' for label in range(classes) for i in range(counts[label])]
        (tmp_path / 'ImageNet_LT_train.txt').write_text('\n'.join(lines))
    else:
        classes = 8142
        counts = [1 + (label % 3) for label in range(classes)]
        labels = [label for label in range(classes) for _ in range(counts[label])]
        (tmp_path / 'train2018.json').write_text(json.dumps({
            'images': [{'id': i, 'file_name': f'train_val2018/A/{label}/{i}.jpg'} for i, label in enumerate(labels)],
            'annotations': [{'image_id': i, 'category_id': label} for i, label in enumerate(labels)]}))
    result = dry_run(parse_args(['--dataset', name, '--model', 'deit_lt_tiny', '--list-dir', str(tmp_path)]))
    assert result['class_counts'] == counts and result['train_images'] == sum(counts) and result['needs'] is None


def test_memory_grows_with_the_micro_batch_and_not_with_the_update():
    small, large, longer = (dry_run(parse_args([*TINY, *flags.split()]))['memory_gib'] for flags in (
        '--batch-size 512', '--batch-size 1024', '--batch-size 512 --grad-accum-steps 4'))
    assert small < large and small == longer
    result = dry_run(parse_args([*TINY, '--batch-size', '512', '--train-img-sizes', '8', '48']))
    assert result['memory_gib'] > small and result['train_img_sizes'] == [8, 48]


def test_memory_counts_what_each_optimizer_keeps():
    sgd, adamw, samadamw, muon, madgrad = (
        dry_run(parse_args([
            *TINY, '--model-kwargs', 'embed_dim=1024', 'depth=6', 'num_heads=2', 'patch_size=4', '--opt', opt]))
        for opt in ('sgd', 'adamw', 'samadamw', 'muon', 'madgrad'))
    weights = 4 * sgd['parameters'] / 2 ** 30
    more = [result['memory_gib'] - sgd['memory_gib'] for result in (adamw, samadamw, muon, madgrad)]
    assert more == pytest.approx([weights, 2 * weights, 0, 2 * weights], abs=.02)


@pytest.mark.parametrize('batch, size, world, steps', [
    (1024, 128, 1, 8), (1024, 128, 8, 1), (1024, 128, 3, 3), (128, 128, 2, 1), (96, 32, 3, 1)])
def test_accumulation_follows_from_the_global_batch(batch, size, world, steps):
    args = parse_args(['--global-batch-size', str(batch), '--batch-size', str(size)])
    assert update_size(args, world) == (steps, batch)


@pytest.mark.parametrize('world', [2, 3, 5, 8])
def test_devices_that_do_not_divide_the_global_batch_idle_and_the_updates_stay(world):
    alone = MicroBatchSampler(100, 8, 4, seed=3, global_batch_size=32)
    steps, size = update_size(parse_args(['--global-batch-size', '32', '--batch-size', '8']), world)
    ranks = [MicroBatchSampler(100, 8, steps, world, rank, seed=3, global_batch_size=size) for rank in range(world)]
    assert {rank.updates_per_epoch for rank in ranks} == {alone.updates_per_epoch}
    work = sorted((p for rank in ranks for p in rank.plan() if p.weight), key=lambda p: p.number)
    assert [(p.number, p.indices, p.weight) for p in work] == [(p.number, p.indices, p.weight) for p in alone.plan()]
    assert len({len(rank.plan()) for rank in ranks}) == 1, 'all ranks take part in every reduction'


@pytest.mark.parametrize('flags, world, words', [
    ('--global-batch-size 1000 --batch-size 128', 1, 'is not a multiple of --batch-size 128'),
    ('--global-batch-size 64 --batch-size 128', 1, 'is not a multiple of --batch-size 128'),
    ('--global-batch-size 512 --batch-size 128 --grad-accum-steps 3', 1, 'leave one of them out'),
])
def test_global_batch_that_does_not_fit_is_one_clear_error(flags, world, words):
    with pytest.raises(ValueError, match=words):
        update_size(parse_args(flags.split()), world)


def test_global_batch_on_the_command_line_voids_the_accumulation_of_a_file(tmp_path):
    (tmp_path / 'config.yaml').write_text('grad_accum_steps: 3\nbatch_size: 32')
    args = parse_args(['-c', str(tmp_path / 'config.yaml'), '--global-batch-size', '128'])
    assert args.grad_accum_steps == 1 and update_size(args, 2) == (2, 128)


@pytest.mark.parametrize('flags, words', [
    ('--opt foo', "Unknown optimizer 'foo'"), ('--aa nonsense', 'cannot make the training transform'),
    ('--model resnet32_cifar --teacher resnet32_sam', 'trains a DIST token, which resnet32_cifar does not have')])
def test_what_training_refuses_the_dry_run_refuses(flags, words):
    with pytest.raises(ValueError, match=words):
        dry_run(parse_args([*flags.split(), '--dry-run']))


def test_accumulation_on_the_command_line_voids_the_global_batch_of_a_recipe():
    args = parse_args(['-c', 'cifar100_if100/deit_lt_base', '--grad-accum-steps', '2'])
    assert args.global_batch_size is None and update_size(args, 4) == (2, 1024)


@pytest.mark.parametrize('flags', [
    '--list-dir nowhere', '--val-fraction .1', '--imbalance-factor 100 --n-max 500'])
def test_without_the_list_no_answer_is_made_up(flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match='needs ImageNet_LT_train.txt'):
        dry_run(parse_args(['--dataset', 'lt/imagenet', '--model', 'deit_lt_tiny', *flags.split()]))


def test_more_images_of_a_class_than_there_are_is_an_error():
    with pytest.raises(ValueError, match='lt/cifar10 has 5000 images of a class, but --n-max asks for 9000'):
        dry_run(parse_args(['--dataset', 'lt/cifar10', '--model', 'deit_lt_tiny', '--n-max', '9000']))


def test_report_says_what_a_recipe_stands_for(caplog):
    caplog.set_level('INFO')
    for name, words in {
            'cifar10_if50/vit_base': 'one stage', 'digits/teacher_paco_sam': 'loss paco, samsgd, rho 0.05; one stage',
            'cifar10_if50/deit_lt_tiny': 'DRW on dist, no mixing', 'inat18/deit_lt_tiny': 'DRW on dist, mixing goes on',
            'cifar10_if50/deit_lt_base_balanced': 'DRW on dist, balanced_softmax on CLS, no mixing',
            'imagenet_lt/teacher_ldam_sam': 'rho 0.05, 0.1 from epoch 5, 0.5 from epoch 60; stage two from epoch 60',
    }.items():
        caplog.clear()
        dry_run(parse_args(['-c', name, *([] if 'teacher' in name else ['--model-kwargs', 'depth=1'])]))
        assert words in caplog.text, name
