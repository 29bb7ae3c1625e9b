"""What is chosen for speed: measured, remembered, and without a trace in the results."""
import copy
import logging
import math
import platform
from dataclasses import replace

import pytest
import torch
from conftest import TINY, run_script
from helpers import SILENT, same, state

from timm_deitlt.data.loader import MicroBatch
from timm_deitlt.engine import speed
from timm_deitlt.engine.fit import checkpoint_state, restore
from timm_deitlt.engine.speed import Speed, choose_speed, speed_before
from timm_deitlt.engine.step_graph import RecordingError, StepGraph
from timm_deitlt.run.build.data import build_data
from timm_deitlt.run.build.trainer import _on_device, build_trainer
from timm_deitlt.run.settings import resolve_settings
from timm_deitlt.settings.layers import parse_args

CNN = ['--model', 'resnet20_cifar', '--model-kwargs', 'num_blocks=1', '--opt', 'samsgd', '--loss', 'ce', '--lr', '.001']
PACO = [*CNN, '--loss', 'paco', '--mixup', '0', '--cutmix', '0', '--smoothing', '0', '--drw-on', 'none']
MATMUL = {'fused_attention': False, 'channels_last': False, 'compile': '', 'on_device': False, 'graph': False}


def made(*argv):
    args = parse_args([*TINY, '--device', 'cpu', *map(str, argv)])
    args.channels_last = '--channels-last' in argv  # which the recipe has on
    settings = resolve_settings(args)
    return build_trainer(settings, build_data(settings), None, torch.device('cpu')), settings


@pytest.fixture
def measured(monkeypatch):
    """Let `choose_speed` read off seconds a step from a table, by what differs from the usual."""
    asked = []

    def measure(table):
        def seconds(trainer, machine, candidate, *_):
            changed = tuple(name for name, value in MATMUL.items() if getattr(candidate, name) != value)
            asked.append(changed)
            return table[changed]
        monkeypatch.setattr(speed, '_seconds', seconds)
        return asked
    return measure


@pytest.mark.parametrize('model, epochs, table, chosen', [
    ([], 100, {(): 1., ('fused_attention',): .95, ('compile',): 2.}, MATMUL),
    ([], 100, {(): 4., ('fused_attention',): 2., ('fused_attention', 'compile'): math.inf},
     {**MATMUL, 'fused_attention': True}),
    (CNN, 100, {(): 1., ('channels_last',): .8, ('channels_last', 'compile'): .6},
     {**MATMUL, 'channels_last': True, 'compile': 'inductor'}),
    (CNN, 100, {(): .1, ('channels_last',): .08}, {**MATMUL, 'channels_last': True}),  # too short to compile for
    (CNN, 1, {}, MATMUL),  # too short to look
    ([*CNN, '--channels-last', '--torchcompile', 'eager'], 100, {('channels_last', 'compile'): 1.},
     {**MATMUL, 'channels_last': True, 'compile': 'eager'}),
    ([*CNN, '--auto-speed', 'off'], 100, {}, {**MATMUL, 'fused_attention': True}),
])
def test_each_choice_is_the_faster_one_by_enough(model, epochs, table, chosen, measured):
    asked = measured(table)
    trainer, settings = made(*model, '--epochs', epochs)
    assert {group['fused'] for group in trainer.optimizer.param_groups} == {settings.machine.auto_speed == 'on' or None}
    assert choose_speed(trainer, settings) == chosen
    assert set(asked) == set(table)
    assert trainer.channels_last == chosen['channels_last']
    assert hasattr(trainer.task.trainable_module, '_orig_mod') == bool(chosen['compile'])


@pytest.mark.parametrize('workers, host, faster', [
    (0, .1, True), (8, .1, False), (8, 1., True), (0, .011, False),
    (8, .5, True)])  # as fast as the steps, but for the first batch of an epoch of 14
def test_device_augments_where_that_is_faster(workers, host, faster, measured, monkeypatch):
    measured({(): 1., ('fused_attention',): 1., ('compile',): 2.})
    trainer, settings = made('--epochs', '100')
    there, _ = made('--augment-backend', 'device')
    trainer.loader.workers = workers
    for loader, seconds in ((trainer.loader, host), (there.loader, .01)):  # of an image; 16 are trained in 1 s
        monkeypatch.setattr(loader, 'seconds_per_image', lambda seconds=seconds: seconds)
    trainer.on_device = lambda: dict(loader=there.loader, augment=there.augment, ramp=None)
    assert choose_speed(trainer, settings) == {**MATMUL, 'on_device': faster}
    assert (trainer.loader is there.loader) == (trainer.augment is there.augment) == faster


@pytest.mark.parametrize('error', [ValueError('no hue'), torch.OutOfMemoryError('no room')])
def test_device_that_cannot_augment_is_not_chosen(error, measured):
    measured({(): 1., ('fused_attention',): 1., ('compile',): 2.})
    trainer, settings = made('--epochs', '100')

    def fail():
        raise error

    trainer.on_device = fail
    assert choose_speed(trainer, settings) == MATMUL


@pytest.mark.parametrize('free, copied', [(400_000, False), (500_000, True)])  # bytes; the digits take 41,472
def test_images_are_copied_to_a_gpu_only_where_they_need_little_of_its_memory(free, copied, monkeypatch):
    trainer, _ = made()
    trainer.task.device = torch.device('cuda')
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda device: (free, free))
    assert speed._fits_on_device(trainer) == copied


@pytest.mark.parametrize('seconds, chosen', [((1e-2, 8e-3), True), ((1e-2, 9.5e-3), False), ((.06, None), False)])
def test_graph_is_used_where_short_steps_gain_from_it(seconds, chosen, measured, monkeypatch):
    without, recorded = seconds
    asked = measured({(): without, ('fused_attention',): without, ('graph',): recorded})
    monkeypatch.setattr(speed, 'recordable', lambda *_: True)
    trainer, settings = made('--epochs', '100', '--auto-speed', 'graph')
    assert choose_speed(trainer, settings) == {**MATMUL, 'graph': chosen}
    assert (('graph',) in asked) == (recorded is not None) and (trainer.graph is not None) == chosen
    assert choose_speed(trainer, settings, before={**MATMUL, 'graph': True})['graph'] and trainer.graph is not None
    monkeypatch.undo()
    assert choose_speed(trainer, settings, before={**MATMUL, 'graph': True}) == MATMUL and trainer.graph is None


def test_graph_is_not_tried_unless_it_is_asked_for(measured, monkeypatch):
    asked = measured({(): 1e-2, ('fused_attention',): 1e-2})
    monkeypatch.setattr(speed, 'recordable', lambda *_: True)
    choose_speed(*made('--epochs', '100'))
    assert ('graph',) not in asked


def test_device_augments_again_when_a_run_goes_on_unless_the_flags_say_otherwise():
    trainer, settings = made('--epochs', '100')
    before = {**MATMUL, 'on_device': True}
    assert choose_speed(trainer, settings, before=before) == MATMUL
    loader, there = trainer.loader, made('--augment-backend', 'device')[0]
    trainer.on_device = lambda: dict(loader=there.loader)
    assert choose_speed(trainer, settings, before=before) == before and trainer.loader is not loader


def test_only_a_gpu_may_be_chosen_to_augment_and_only_where_no_flag_decides():
    trainer, settings = made()
    assert trainer.on_device is None
    data = build_data(settings)
    feed = _on_device(settings, data, lambda settings: settings.augment.augment_backend)
    assert feed() == 'device'
    for flags in (['--augment-backend', 'pillow'], PACO):
        assert _on_device(made(*flags)[1], data, feed) is None


def test_run_that_goes_on_keeps_its_choices(measured):
    asked = measured({('fused_attention', 'compile'): 1.})
    trainer, settings = made('--epochs', '100')
    before = {**MATMUL, 'fused_attention': True, 'compile': 'eager'}
    assert choose_speed(trainer, settings, start_epoch=50, before=before) == before and len(asked) == 1, 'tried once'
    assert trainer.task.trainable_module.blocks[0].attn.fused_attn
    assert choose_speed(trainer, settings, before=MATMUL) == MATMUL and len(asked) == 1
    assert not any(hasattr(module, '_orig_mod') for module in trainer.task.modules())
    assert not trainer.task.trainable_module.blocks[0].attn.fused_attn


@pytest.mark.parametrize('model', [[], CNN, PACO], ids=['vit', 'cnn', 'paco'])
def test_timing_leaves_no_trace(model, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(speed, 'LEAST_GAIN', 1.)  # nothing is chosen, everything is timed
    monkeypatch.setattr(speed, 'SECONDS_TO_COMPILE_A_LAYER', 0.)
    monkeypatch.setattr(speed, '_alternatives', lambda *_: [
        ('fused_attention', True), ('channels_last', True), ('compile', 'eager'), ('compile', 'no such backend'),
        ('graph', True)])
    plain, settings = made(*model, '--epochs', '100')
    timed, _ = made(*model, '--epochs', '100')
    for trainer in (plain, timed):  # with moments and filled queues
        choose_speed(trainer, settings, before=MATMUL)
        trainer.train_one_epoch(0, SILENT)
    before = state(timed)
    assert choose_speed(timed, settings, start_epoch=1) == MATMUL
    assert same(before, state(timed)) and all(p.grad is None for p in timed.task.parameters())
    assert 'compiled by no such backend, which fails: Invalid backend' in caplog.text
    assert not any(module._compiled_call_impl for module in timed.task.modules())
    rows = [trainer.train_one_epoch(1, SILENT) for trainer in (plain, timed)]
    assert rows[0]['loss'] == rows[1]['loss'] and same(state(plain), state(timed))


CHOICES = [{'fused_attention': True, 'channels_last': True, 'compile': ''},
           {'fused_attention': True, 'channels_last': True, 'compile': 'eager'}]


def first_step(model, choice, *flags, dtype=torch.float32):
    """Loss and gradients of the first step under a choice."""
    trainer, settings = made(*model, *flags)
    choose_speed(trainer, settings, before=choice)
    trainer.task.train().to(dtype)
    images, target = speed.noise(trainer, trainer.loader.batch_size)
    images = images.to(dtype)
    batch = MicroBatch(number=0, indices=(), weight=1., last=True)
    loss = trainer.forward_backward(0, batch, images, target)[1].item()
    return loss, torch.cat([p.grad.flatten() for p in trainer.task.parameters() if p.grad is not None])


@pytest.mark.parametrize('choice', CHOICES)
@pytest.mark.parametrize('model', [[], CNN])
def test_choices_change_loss_and_gradients_by_rounding_only(model, choice):
    exact, exact_gradient = first_step(model, MATMUL, dtype=torch.float64)
    chosen, gradient = first_step(model, choice, dtype=torch.float64)
    assert chosen == pytest.approx(exact, rel=1e-12)
    assert (gradient - exact_gradient).norm() < 1e-12 * exact_gradient.norm()
    rounded, rounded_gradient = first_step(model, MATMUL, '--amp')
    chosen, gradient = first_step(model, choice, '--amp')
    assert rounded != exact
    assert chosen == pytest.approx(rounded, rel=2 ** -8)  # numbers of bf16 are that far apart at most
    assert (gradient - rounded_gradient).norm() < 2 * (rounded_gradient - exact_gradient).norm()


@pytest.mark.parametrize('channels_last', [True, False])
@pytest.mark.parametrize('choose_first', [True, False])
def test_run_goes_on_from_one_of_the_other_memory_format(channels_last, choose_first):
    # torch's fused SGD takes memory as it comes, whatever the strides
    command = [*CNN, '--opt', 'momentum', '--epochs', '2']
    whole, settings = made(*command)
    choose_speed(whole, settings, before={**MATMUL, 'channels_last': not channels_last})
    whole.train_one_epoch(0, SILENT)
    whole.end_epoch(0)
    checkpoint = copy.deepcopy(checkpoint_state(whole, 0, settings, {}))
    again, _ = made(*command)
    before = {**MATMUL, 'channels_last': channels_last}
    if choose_first:
        choose_speed(again, settings, before=before)
    restore(again, checkpoint, 'last')
    choose_speed(again, settings, before=before)
    expected, loss = (trainer.train_one_epoch(1, SILENT)['loss'] for trainer in (whole, again))
    assert loss == pytest.approx(expected, rel=1e-4)  # 7e-4 away with the momentum of other weights


@pytest.mark.parametrize('optimizer', ['adamw', 'momentum', 'samsgd'])
@pytest.mark.parametrize('then, now', [('on', 'off'), ('off', 'on')])
def test_run_that_goes_on_has_the_optimizer_that_it_asks_for(optimizer, then, now):
    checkpoints = {}
    for choice in (then, now):
        whole, settings = made('--opt', optimizer, '--auto-speed', choice)
        whole.train_one_epoch(0, SILENT)
        checkpoints[choice] = copy.deepcopy(checkpoint_state(whole, 0, settings, {}))
    again, _ = made('--opt', optimizer, '--auto-speed', now)
    restore(again, checkpoints[then], 'last')
    assert all(group['fused'] == (now == 'on' or None) for group in again.optimizer.param_groups)
    loss = again.train_one_epoch(1, SILENT)['loss']
    same_choice, _ = made('--opt', optimizer, '--auto-speed', now)
    restore(same_choice, checkpoints[now], 'last')
    assert loss == pytest.approx(same_choice.train_one_epoch(1, SILENT)['loss'], rel=1e-4)


@pytest.mark.parametrize('option', ['foreach', 'differentiable'])
def test_option_that_excludes_the_fused_optimizer_is_taken_instead(option):
    trainer, _ = made('--opt', 'adamw', '--opt-kwargs', f'{option}=True')
    assert all(group[option] and not group['fused'] for group in trainer.optimizer.param_groups)


RESIDENT = """
import resource
from pathlib import Path
from timm_deitlt.engine.device import keep_freed_memory, return_freed_memory

def resident():
    return int(Path('/proc/self/statm').read_text().split()[1]) * resource.getpagesize() >> 20

kept = keep_freed_memory()
before = resident()
blocks = [b'1' * 2 ** 24 for _ in range(20)]
del blocks
freed = resident()
return_freed_memory()
print(kept, freed - before, resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='of glibc')
def test_freed_memory_is_kept_until_it_is_given_back(tmp_path):
    (tmp_path / 'resident.py').write_text(RESIDENT)
    done = run_script(script=tmp_path / 'resident.py')
    kept, freed, returned = done.stdout.split()
    assert kept == 'True' and int(freed) > 200 and int(returned) < 100  # MiB, of 320


def test_choices_are_kept_only_by_a_run_that_asks_for_the_same_on_the_same_device():
    _, settings = made()
    machine, checkpoint = settings.machine, {'args': settings.namespace(), 'speed': MATMUL}
    assert speed_before(checkpoint, machine) == MATMUL
    assert speed_before(None, machine) is None and speed_before({'args': settings.namespace()}, machine) is None
    for name, value in (
            ('channels_last', True), ('torchcompile', 'inductor'), ('auto_speed', 'off'), ('device', 'cuda:1')):
        assert speed_before(checkpoint, replace(machine, **{name: value})) is None, name


def test_compilation_that_this_machine_cannot_do_is_left_out_when_a_run_goes_on(caplog):
    caplog.set_level(logging.INFO)
    trainer, settings = made('--epochs', '100')
    assert choose_speed(trainer, settings, before={**MATMUL, 'compile': 'no such backend'}) == MATMUL
    assert 'Speed: attention by matrix products, as before' in caplog.text


def test_error_without_a_word_is_named_by_its_type(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    trainer, settings = made('--epochs', '100')

    def fail(*_):
        raise NotImplementedError

    monkeypatch.setattr(trainer, 'forward_backward', fail)
    assert choose_speed(trainer, settings) == MATMUL
    assert 'which fails: NotImplementedError' in caplog.text and 'inf' not in caplog.text


def test_recording_that_breaks_off_ends_the_trial(monkeypatch):
    trainer, settings = made('--epochs', '100', '--auto-speed', 'graph')

    def fail(*_):
        raise RecordingError('give --auto-speed on')

    monkeypatch.setattr(StepGraph, '_recorded', fail)
    monkeypatch.setattr(speed, 'recordable', lambda *_: True)
    with pytest.raises(RecordingError):
        choose_speed(trainer, settings)


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='of glibc')
def test_train_script_says_what_it_chose_and_keeps_it(tmp_path):
    command = [*TINY, '--epochs', '2', '--output', tmp_path, '--experiment', 'run']
    first = run_script(*command, '--stop-epoch', '1', '--resume', 'auto')
    assert 'Speed: attention by matrix products, fused optimizer, freed memory kept\n' in first.stderr
    assert torch.load(tmp_path / 'run' / 'last.pth.tar', weights_only=False)['speed'] == MATMUL
    again = run_script(*command, '--resume', 'auto')
    assert 'Speed: attention by matrix products, as before, fused optimizer, freed memory kept\n' in again.stderr


def test_speed_in_words():
    assert Speed(True, True, 'inductor').words(attention=True) == 'fused attention, channels last, compiled by inductor'
    assert Speed(True, False, '').words(attention=False) == 'plain'
    assert Speed(True, False, '', graph=True).words(attention=False) == 'as a CUDA graph'
    assert Speed(True, False, '', True).words(attention=False) == 'augmentation on the device'
