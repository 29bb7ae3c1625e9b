"""From arguments to parts: a flag that did not arrive would be ignored without a word."""
import math
import multiprocessing
from dataclasses import replace

import pytest
import timm
import torch
from conftest import TINIEST_TEACHER, TINY
from helpers import settings_of
from PIL import Image

from timm_deitlt.data.augment import Cutout
from timm_deitlt.data.device_loader import DeviceLoader
from timm_deitlt.data.erasing import BatchErasing
from timm_deitlt.engine.speed import noise
from timm_deitlt.run.build import loaders
from timm_deitlt.run.build.data import build_data
from timm_deitlt.run.build.model import build_model, check_student
from timm_deitlt.run.build.trainer import build_trainer
from timm_deitlt.task.paco import PaCoTask

PACO = [
    '--model', 'resnet20_cifar', '--img-size', '16', '--workers', '0', '--no-amp', '--loss', 'paco', '--classifier',
    'linear', '--drw-on', 'none', '--paco-alpha', '.3', '--paco-beta', '.9', '--paco-gamma', '.7',
    '--paco-temperature', '.11', '--paco-queue', '77', '--paco-dim', '13', '--paco-momentum', '.83',
    '--key-scale', '.31', '.87',
    '--key-color-jitter', '.1', '.2', '.3', '.05', '--key-color-jitter-prob', '.6', '--hflip', '.2', '--vflip', '.1',
    '--mixup', '0', '--cutmix', '0', '--smoothing', '0', '--cutout', '5', '--aa', 'cifar10',
]


def made(*flags):
    settings = settings_of(*flags)
    return build_trainer(settings, build_data(settings), None, torch.device('cpu'))


def test_flags_of_paco_reach_its_task(monkeypatch):
    seen = {}

    def key_transform(size, original=loaders.key_transform, **kwargs):
        seen.update(kwargs)
        return original(size, **kwargs)

    monkeypatch.setattr(loaders, 'key_transform', key_transform)
    trainer = made(*PACO)
    task = trainer.task
    assert isinstance(task, PaCoTask)
    criterion = task.criterion
    assert (criterion.alpha, criterion.beta, criterion.temperature) == (.3, .9, .11)
    assert criterion.log_gamma == pytest.approx(math.log(.7))
    assert tuple(task.queue.keys.shape) == (77, 13) and task.momentum == .83
    assert seen == {
        'scale': (.31, .87), 'color_jitter': (.1, .2, .3, .05), 'color_jitter_prob': .6, 'hflip': .2, 'vflip': .1,
        'arrays': False}
    assert trainer.loader.num_views == 2
    trained = {id(p) for group in trainer.optimizer.param_groups for p in group['params']}
    assert trained == {id(p) for p in task.trainable_module.parameters()}, 'the projection too'


@pytest.mark.parametrize('flags, views, normalize, antialias', [
    ([], 1, 'own', True), (['--teacher-view', 'weak'], 2, 'own', True),
    (['--teacher-normalize', 'student', '--no-teacher-antialias'], 1, 'student', False)])
def test_flags_of_the_teacher_reach_loader_and_task(flags, views, normalize, antialias):
    settings = settings_of(*TINY, *TINIEST_TEACHER, *flags)
    teacher = timm.create_model('test_resnet', num_classes=10).eval()
    trainer = build_trainer(settings, build_data(settings), teacher, torch.device('cpu'))
    assert trainer.loader.num_views == views
    assert (trainer.task.teacher_normalize, trainer.task.teacher_antialias) == (normalize, antialias)


@pytest.mark.parametrize('flags, holds', [
    (['--cutout', '5'], lambda steps: any(isinstance(step, Cutout) and step.side == 5 for step in steps)),
    (['--cutout', '0'], lambda steps: not any(isinstance(step, Cutout) for step in steps)),
    (['--aa', 'rand-m5-mstd0.5', '--color-jitter', '.4'], lambda steps: 'ColorJitter' not in str(steps)),
    (['--aa', 'rand-m5-mstd0.5', '--color-jitter', '.4', '--force-color-jitter'], lambda s: 'ColorJitter' in str(s)),
    (['--aa', 'cifar10'], lambda steps: 'AutoAugmentPolicy.CIFAR10' in str(steps)),
    (['--aa', 'rand-m5-mstd0.5'], lambda steps: 'opencv' not in str(type(steps[0]))),
    (['--aa', 'rand-m5-mstd0.5', '--augment-backend', 'opencv'], lambda steps: 'opencv' in str(type(steps[0]))),
])
def test_flags_of_augmentation_reach_the_training_transform(flags, holds):
    trainer = made(*TINY, *flags)
    transform, = trainer.loader.loader.views.transforms[0].transforms
    assert holds(transform.transforms)


def test_augmentation_on_the_device_reaches_loader_and_erasing():
    trainer = made(*TINY, '--augment-backend', 'device')
    assert isinstance(trainer.loader, DeviceLoader) and isinstance(trainer.augment.erase, BatchErasing)
    assert not isinstance(made(*TINY).augment.erase, BatchErasing)


def test_sizes_of_training_leave_a_model_of_one_size_and_are_what_is_timed():
    flags = [*TINY, '--train-img-sizes', '24', '8', '--train-size-probs', '1', '2']
    trainer = made(*flags)
    schedule = trainer.loader.sizes
    assert schedule is trainer.loader.sampler.sizes and schedule.drawn == [24, 8]
    assert schedule.sizes == (24, 8) and schedule.probabilities(0).tolist() == [1 / 3, 2 / 3]
    assert trainer.task.get_eval_model().eval()(torch.zeros(2, 3, 8, 8)).shape == (2, 10)
    images, _ = noise(trainer, trainer.loader.batch_size)
    assert images.shape == (16, 3, 24, 24)
    with pytest.raises(AssertionError, match='Input height'):
        build_model(settings_of(*flags).model, 10)(torch.zeros(2, 3, 8, 8))


def test_patch_dropout_keeps_the_dist_token_of_timms_own_distilled_vits():
    trainer = made('--model', 'deit_tiny_distilled_patch16_224', '--model-kwargs', 'patch_drop_rate=.25', '--img-size',
                   '32', '--workers', '0')
    assert trainer.task.get_eval_model().patch_drop.num_prefix_tokens == 2


@pytest.mark.parametrize('flags', [['--cooldown-epochs', '3'], ['--warmup-epochs', '2', '--warmup-prefix']])
def test_stage_two_that_never_comes_does_not_come_in_epochs_that_timm_adds(flags):
    trainer = made(*TINY, '--epochs', '4', '--drw-start-epoch', '4', *flags)
    assert trainer.epochs > 4 and all(trainer.mixing(epoch) for epoch in range(trainer.epochs))
    trainer.task.set_epoch(trainer.epochs - 1)
    assert not trainer.task.criterion.in_drw_stage


def test_a_balanced_benchmark_has_no_head_and_no_tail():
    argv = ['--teacher', 'none', '--n-max', '20', '--imbalance-factor']
    groups = [build_data(settings_of(*argv, factor)).shots.groups for factor in (1, 4)]
    assert [len(labels) for labels in groups[0].values()] == [0, 10, 0]
    assert [len(labels) for labels in groups[1].values()] == [3, 4, 3]


def test_radius_schedule_reaches_the_trainer():
    trainer = made(*TINY, '--opt', 'samadamw', '--rho', '.1', '--rho-milestones', '2', '--rho-values', '.3')
    assert [trainer.rho(epoch, 5) for epoch in range(3)] == [.1, .3, .3]
    assert made(*TINY, '--opt', 'samadamw').rho is None
    every = made(*TINY, '--opt', 'samadamw', '--rho', '.1', '--sam-every', '3')
    assert [every.rho(1, update) for update in range(2, 8)] == [0, .1, 0, 0, .1, 0]


@pytest.mark.parametrize('flags, tau', [
    ([], None), (['--cls-loss', 'balanced_softmax', '--drw-on', 'none', '--logit-adjust-tau', '3'], 1.),
    (['--cls-loss', 'logit_adjust', '--drw-on', 'none', '--logit-adjust-tau', '3'], 3.)])
def test_class_prior_reaches_the_loss_of_cls(flags, tau):
    trainer = made(*TINY, *flags)
    counts = torch.tensor(trainer.task.shots.class_counts).double()
    prior = trainer.task.criterion.prior
    assert prior is None if tau is None else torch.allclose(prior.double(), tau * (counts / counts.sum()).log())


@pytest.mark.parametrize('method, workers, kept', [('fork', 2, True), ('spawn', 2, False), ('spawn', 0, True)])
def test_decoded_images_are_kept_where_workers_do_not_copy_them(monkeypatch, tmp_path, method, workers, kept):
    for name in ('a/0', 'a/1', 'b/0', 'b/1'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new('RGB', (4, 4)).save(tmp_path / f'{name}.png')
    data = build_data(settings_of('--data-dir', tmp_path, '--val-fraction', '.5'))
    monkeypatch.setattr(multiprocessing, 'get_start_method', lambda: method)
    data.hold(1., workers)
    assert [part.held is not None for part in (data.train, data.evaluation)] == [kept, kept]


def test_a_mode_of_compile_that_records_graphs_is_refused_where_gradients_add_up():
    settings = settings_of('--torchcompile', 'inductor', '--torchcompile-mode', 'reduce-overhead')
    settings = replace(settings, machine=replace(settings.machine, device='cuda'))
    check_student(settings, 10, [2] * 10)
    settings = replace(settings, loader=replace(settings.loader, micro_batches=4))
    message = 'reduce-overhead .* the 4 micro-batches .*give --torchcompile-mode max-autotune-no-cudagraphs'
    with pytest.raises(ValueError, match=message):
        check_student(settings, 10, [2] * 10)
