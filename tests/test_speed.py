"""What is chosen for speed: measured, remembered, and without a trace in the results."""
import copy
import logging
import math

import pytest
import torch
from conftest import TINY, run_script

from timm_deitlt.build import speed
from timm_deitlt.build.data import build_data
from timm_deitlt.build.speed import Speed, choose_speed
from timm_deitlt.build.trainer import build_trainer
from timm_deitlt.config import parse_args
from timm_deitlt.fit import checkpoint_state, restore
from timm_deitlt.progress import Progress

CNN = ['--model', 'resnet20_cifar', '--model-kwargs', '--opt', 'samsgd', '--loss', 'ce', '--lr', '.001']
SILENT = Progress('', 1, 0, 1, 1., enabled=False)
MATMUL = {'fused_attention': False, 'channels_last': False, 'compile': ''}


def made(*argv):
    args = parse_args([*TINY, *map(str, argv)])
    args.device = 'cpu'
    args.channels_last = '--channels-last' in argv  # which the recipe has on
    return build_trainer(args, build_data(args), None, torch.device('cpu')), args


def state(trainer):
    return copy.deepcopy([trainer.task.state_dict(), trainer.optimizer.state_dict()['state']])


def same(a, b):
    return all(torch.equal(value, b[0][name]) for name, value in a[0].items()) and str(a[1]) == str(b[1])


@pytest.fixture
def measured(monkeypatch):
    """Let `choose_speed` read off seconds a step from a table, by what differs from the usual."""
    asked = []

    def measure(table):
        def seconds(trainer, args, candidate, *_):
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
    trainer, args = made(*model, '--epochs', epochs)
    assert choose_speed(trainer, args) == chosen
    assert set(asked) == set(table)
    assert trainer.channels_last == chosen['channels_last']
    assert hasattr(trainer.task.trainable_module, '_orig_mod') == bool(chosen['compile'])


def test_run_that_goes_on_keeps_its_choices(measured):
    asked = measured({})
    trainer, args = made('--epochs', '100')
    before = {'fused_attention': True, 'channels_last': False, 'compile': 'eager'}
    assert choose_speed(trainer, args, start_epoch=50, before=before) == before and not asked
    assert trainer.task.trainable_module.blocks[0].attn.fused_attn
    assert choose_speed(trainer, args, before=MATMUL) == MATMUL
    assert not hasattr(trainer.task.trainable_module, '_orig_mod') and not hasattr(trainer.task.eval_model, '_orig_mod')
    assert not trainer.task.trainable_module.blocks[0].attn.fused_attn


@pytest.mark.parametrize('model', [[], CNN])
def test_timing_leaves_no_trace(model, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(speed, 'LEAST_GAIN', 1.)  # nothing is chosen, everything is timed
    monkeypatch.setattr(speed, 'LEAST_SECONDS_TO_COMPILE', 0.)
    monkeypatch.setattr(speed, '_alternatives', lambda *_: [
        ('fused_attention', True), ('channels_last', True), ('compile', 'eager'), ('compile', 'no such backend')])
    plain, args = made(*model, '--epochs', '100')
    choose_speed(plain, args, before=MATMUL)
    timed, _ = made(*model, '--epochs', '100')
    before = state(timed)
    assert choose_speed(timed, args) == MATMUL
    assert same(before, state(timed)) and all(p.grad is None for p in timed.task.parameters())
    assert 'compiled by no such backend, which fails: Invalid backend' in caplog.text
    rows = [trainer.train_one_epoch(0, SILENT) for trainer in (plain, timed)]
    assert rows[0]['loss'] == rows[1]['loss'] and same(state(plain), state(timed))


def test_choices_change_results_by_rounding_only():
    runs = []
    for choice in (MATMUL, {'fused_attention': True, 'channels_last': True, 'compile': 'eager'}):
        for model in ([], CNN):
            trainer, args = made(*model, '--epochs', '2')
            choose_speed(trainer, args, before=choice)
            runs.append(trainer.train_one_epoch(0, SILENT)['loss'])
    assert runs[:2] == pytest.approx(runs[2:], rel=1e-4)


@pytest.mark.parametrize('channels_last', [True, False])
def test_run_goes_on_from_one_of_the_other_memory_format(channels_last):
    # torch's fused SGD takes memory as it comes, whatever the strides
    command = [*CNN, '--opt', 'momentum', '--epochs', '2']
    whole, args = made(*command)
    choose_speed(whole, args, before={**MATMUL, 'channels_last': not channels_last})
    whole.train_one_epoch(0, SILENT)
    whole.end_epoch(0)
    again, _ = made(*command)
    choose_speed(again, args, before={**MATMUL, 'channels_last': channels_last})
    restore(again, copy.deepcopy(checkpoint_state(whole, 0, args, {})), 'last')
    expected, loss = (trainer.train_one_epoch(1, SILENT)['loss'] for trainer in (whole, again))
    assert loss == pytest.approx(expected, rel=1e-4)  # 7e-4 away with the momentum of other weights


def test_train_script_says_what_it_chose_and_keeps_it(tmp_path):
    command = [*TINY, '--epochs', '2', '--output', tmp_path, '--experiment', 'run']
    first = run_script(*command, '--stop-epoch', '1')
    assert 'Speed: attention by matrix products\n' in first.stderr
    assert torch.load(tmp_path / 'run' / 'last.pth.tar', weights_only=False)['speed'] == MATMUL
    again = run_script(*command, '--resume', 'auto')
    assert 'Speed: attention by matrix products, as before\n' in again.stderr


def test_speed_in_words():
    assert Speed(True, True, 'inductor').words(attention=True) == 'fused attention, channels last, compiled by inductor'
    assert Speed(True, False, '').words(attention=False) == 'plain'
