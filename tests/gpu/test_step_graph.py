"""A recorded step makes the updates that it would make without a graph; on the CPU it runs on the same tensors."""
import math
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import test_updates
import torch
from conftest import TINY, devices
from helpers import SILENT, same, state
from test_updates import HARD, waits_of

from timm_deitlt.engine import step_graph
from timm_deitlt.engine.meter import Meter
from timm_deitlt.engine.speed import Speed, _apply, choose_speed
from timm_deitlt.engine.step_graph import RecordingError, StepGraph, recordable
from timm_deitlt.run.settings import resolve_settings
from timm_deitlt.settings.layers import parse_args

# few updates of small networks, whose images the teacher still sees at another size
FEW = ['--n-max', '16', '--imbalance-factor', '4']
STUDENT = [*test_updates.STUDENT, *FEW]
CNN, PACO = ([*flags, *FEW, '--model-kwargs', 'num_blocks=1'] for flags in (test_updates.CNN, test_updates.PACO))
made = partial(test_updates.made, num_blocks=1, pretrained_cfg_overlay={'input_size': (3, 24, 24)})
GUIDED = [*STUDENT, '--guidance', '2.5', '--guidance-end', '.5']


def trained(trainer, epochs):
    """State of a trainer after some epochs, and what it measured in each."""
    rows = [trainer.train_one_epoch(epoch, SILENT) for epoch in epochs]
    return state(trainer), [{name: value for name, value in row.items() if 'second' not in name} for row in rows]


@devices()
@pytest.mark.parametrize('flags', [
    pytest.param([*STUDENT, '--drop-path', '.3', '--drw-start-epoch', '2'], id='student'),
    pytest.param([*STUDENT, '--grad-accum-steps', '2', '--amp', '--amp-dtype', 'bfloat16'], id='accumulated, bf16'),
    pytest.param([*GUIDED, '--epochs', '4', '--opt', 'muon', '--muon-hidden-only'], id='guided, muon'),
    pytest.param([*STUDENT, '--augment-backend', 'device', '--reprob', '0'], id='augmented on the device'),
    pytest.param([*CNN, *HARD, '--grad-accum-steps', '2', '--drw-start-epoch', '2'], id='sam'),
])
def test_recorded_updates_are_those_without_a_graph(flags, device, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, 'deterministic', True)
    plain, recorded = made(device, *flags), made(device, *flags)
    recorded.graph = StepGraph(recorded)
    (expected, rows), (found, recorded_rows) = trained(plain, range(4)), trained(recorded, range(4))
    assert all(recorded.graph.recordings.values()) and recorded.graph.recordings
    if device == 'cpu':
        assert rows == recorded_rows and same(expected, found)
    for row, recorded_row in zip(rows, recorded_rows, strict=True):
        # not the weights: AdamW makes whole steps of what is rounding alone, such as the gradient of the keys' biases
        assert recorded_row['loss'] == pytest.approx(row['loss'], rel=1e-3)


@devices()
def test_update_with_a_graph_does_not_wait_for_the_device(device):
    trainer = made(device, *STUDENT)
    trainer.graph = StepGraph(trainer)
    meter, groups = Meter(trainer.task.device), trainer.loader.epoch(0)
    trainer.update(0, 0, next(groups), meter)  # records
    group = next(groups) if device == 'cpu' else None
    with waits_of(trainer) as found:
        trainer.update(0, 1, group or next(groups), meter)
    assert not found and len(trainer.graph.recordings) == 1


@devices(pytest.mark.slow)
def test_compiled_step_is_recorded(device):
    flags = [*STUDENT, '--kd-token-distill-type', 'soft']  # rounding would change hard labels of an untrained teacher
    plain, recorded = made(device, *flags), made(device, *flags)
    backend = 'eager' if device == 'cpu' else 'inductor'
    _apply(recorded, SimpleNamespace(torchcompile_mode=None), Speed(True, False, backend, graph=True))
    (_, rows), (_, recorded_rows) = trained(plain, range(2)), trained(recorded, range(2))
    assert all(recorded.graph.recordings.values()) and recorded.graph.recordings
    for row, recorded_row in zip(rows, recorded_rows, strict=True):
        assert recorded_row['loss'] == pytest.approx(row['loss'], rel=1e-2)


@devices()
def test_speed_is_chosen_without_a_trace_and_trains(device):
    flags = ['--device', device, *STUDENT, '--epochs', '100', '--auto-speed', 'graph']  # long enough to try
    trainer, settings = made(device, *flags), resolve_settings(parse_args([*TINY, *flags]))
    before = state(trainer)
    choose_speed(trainer, settings)
    assert same(before, state(trainer)) and all(parameter.grad is None for parameter in trainer.task.parameters())
    assert 0 < trainer.train_one_epoch(0, SILENT)['loss'] < math.inf


@pytest.mark.parametrize('flags', [
    [*STUDENT, '--drw-start-epoch', '3'],
    [*STUDENT, '--drw-start-epoch', '3', '--drw-on', 'cls'],  # the loss of DIST has no stages
    [*CNN, *HARD, '--drw-start-epoch', '3'],
])
def test_stage_decides_how_long_a_recording_is_used(flags):
    trainer = made('cpu', *flags)
    trainer.graph = StepGraph(trainer)
    trained(trainer, [0])
    first = list(trainer.graph.recordings.values())
    trained(trainer, [1])
    assert list(trainer.graph.recordings.values())[:len(first)] == first
    trained(trainer, [3])
    assert not set(trainer.graph.recordings.values()) & set(first)


def fail(*_):
    raise RuntimeError('no graph here\nand a trace')


@pytest.mark.parametrize('part', ['_warmed_up', '_check'])
def test_step_that_cannot_be_recorded_runs_without_a_graph(part, monkeypatch, caplog):
    plain, recorded = made('cpu', *STUDENT), made('cpu', *STUDENT)
    recorded.graph = StepGraph(recorded)
    monkeypatch.setattr(step_graph, part, fail)
    (expected, _), (found, _) = trained(plain, [0, 1]), trained(recorded, [0, 1])
    assert set(recorded.graph.recordings.values()) == {None}
    assert 'This step runs without a CUDA graph: no graph here' in caplog.text and 'trace' not in caplog.text
    assert same(expected, found)


def test_recording_that_breaks_off_ends_the_run(monkeypatch):
    trainer = made('cpu', *STUDENT)
    trainer.graph = StepGraph(trainer)
    monkeypatch.setattr(StepGraph, '_recorded', fail)
    with pytest.raises(RecordingError, match=r'\(no graph here\), and .* give --auto-speed on'):
        trained(trainer, [0])


def test_graphs_share_memory_until_none_of_them_is_left(monkeypatch):
    graph, handles, pools = StepGraph(made('cpu', *STUDENT)), iter(range(9)), []

    def record(_, pool, stream, **__):
        assert stream is graph.stream, 'the one of the warm-up'
        pools.append(pool)
        return nullcontext()

    monkeypatch.setattr(torch.cuda, 'CUDAGraph', object)
    monkeypatch.setattr(torch.cuda, 'graph_pool_handle', lambda: next(handles))
    monkeypatch.setattr(torch.cuda, 'graph', record)
    graph.stream = object()
    # none is there; one is there; the only one was refused; those of the stage before are gone
    for graph.recordings in ({}, {1: object()}, {1: None, 2: object()}, {1: None}, {1: object()}, {}):
        graph._recorded(lambda: None)
    assert pools == [0, 0, 0, 1, 1, 2]


def test_step_leaves_no_graph_of_autograd():
    trainer = made('cpu', *STUDENT)
    (batch, images, target), = next(trainer.loader.epoch(0))
    result, loss = trainer.forward_backward(0, batch, images, target)
    assert not any(value.requires_grad for value in (loss, *result.values()))


@pytest.mark.gpu
def test_step_that_waits_for_the_gpu_runs_without_a_graph(monkeypatch, caplog):
    trainer = made('cuda', *STUDENT)
    trainer.graph = StepGraph(trainer)
    compute = trainer.compute

    def waiting(*args):
        result, loss = compute(*args)
        loss.item()
        return result, loss
    monkeypatch.setattr(trainer, 'compute', waiting)
    trained(trainer, [0])
    assert set(trainer.graph.recordings.values()) == {None} and 'runs without a CUDA graph' in caplog.text
    assert not torch.cuda.get_sync_debug_mode()


def test_recording_that_does_not_repeat_the_step_is_not_used(monkeypatch, caplog):
    trainer = made('cpu', *STUDENT, '--drop-path', '.9')
    trainer.graph = StepGraph(trainer)
    monkeypatch.setattr(step_graph, '_same_draws', lambda device: nullcontext())  # a replay drops other paths
    trained(trainer, [0])
    assert None in trainer.graph.recordings.values()
    assert 'the recording does not repeat the loss and the gradients' in caplog.text


@pytest.mark.parametrize('found, expected, fits', [
    ([1., 2.01], [1., 2.], True), ([1., 2.1], [1., 2.], False), ([1., math.nan], [1., 2.], False),
    ([math.nan, 2.], [math.nan, 2.], True), ([0., 0.], [0., 0.], True)])
def test_recording_may_differ_by_rounding_only(found, expected, fits):
    with nullcontext() if fits else pytest.raises(RuntimeError, match='does not repeat'):
        step_graph._check(*([torch.tensor(x) for x in values] for values in (found, expected)))


def test_gradients_of_steps_with_and_without_a_graph_add_up():
    plain, recorded = made('cpu', *STUDENT), made('cpu', *STUDENT)
    (batch, images, target), = next(plain.loader.epoch(0))
    graph = StepGraph(recorded)
    for trainer, runs in ((plain, [None] * 4), (recorded, [None, graph, graph, None])):
        for trainer.graph in runs:
            trainer.forward_backward(0, batch, images.clone(), target)
    for a, b in zip(plain.task.parameters(), recorded.task.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None) and (a.grad is None or torch.equal(a.grad, b.grad))


def test_only_steps_on_one_gpu_that_the_host_decides_alone_are_recorded():
    trainer = made('cpu', *STUDENT)
    assert not recordable(trainer)
    trainer.task.device = torch.device('cuda')
    assert recordable(trainer) and recordable(trainer, 'max-autotune-no-cudagraphs')
    assert not recordable(trainer, 'reduce-overhead') and not recordable(trainer, 'max-autotune')
    trainer.world_size = 2
    assert not recordable(trainer)
    trainer.world_size, trainer.scaler = 1, object()
    assert not recordable(trainer)
    trainer.scaler = None
    trainer.task.trainable_module.set_grad_checkpointing()
    assert not recordable(trainer)
    # the queues of PaCo change between updates, the labels of dense distillation from epoch to epoch
    for flags, fits in ((PACO, False), ([*GUIDED, '--dense-distill', '1'], False), (GUIDED, True)):
        trainer = made('cpu', *flags)
        trainer.task.device = torch.device('cuda')
        assert recordable(trainer) == fits, flags
