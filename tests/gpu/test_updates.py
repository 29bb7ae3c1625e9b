"""Updates on a GPU: they do not wait for it, make the losses that the CPU makes, and are the same by NCCL."""
import contextlib

import pytest
import timm
import torch
import torch.distributed as dist
from conftest import TINY, devices
from helpers import SILENT, assert_close
from timm.utils import unwrap_model
from torch.utils._python_dispatch import TorchDispatchMode

from timm_deitlt.engine.meter import Meter
from timm_deitlt.engine.trainer import evaluate
from timm_deitlt.run.build.data import build_data
from timm_deitlt.run.build.trainer import build_trainer
from timm_deitlt.run.settings import resolve_settings
from timm_deitlt.settings.layers import parse_args

MIXED = ['--mixup', '.8', '--cutmix', '1', '--mixup-prob', '1', '--reprob', '.5', '--clip-grad', '1']
STUDENT = ['--teacher', 'resnet20', *MIXED]
HARD = ['--mixup', '0', '--cutmix', '0', '--smoothing', '0']
CNN = ['--model', 'resnet20_cifar', '--model-kwargs', '--teacher', 'none', '--opt', 'samsgd', '--clip-grad', '1']
PACO = [*CNN, *HARD, '--loss', 'paco', '--drw-on', 'none']
# Operators whose result the host has to read, or that copy a list of the host to the device
WAITING = {
    f'aten.{name}' for name in (
        '_local_scalar_dense', 'equal', 'is_nonzero', 'lift_fresh', 'masked_select', 'nonzero', 'unique', '_unique2')}


class Waits(TorchDispatchMode):
    """Names of the operators that would wait for a GPU; the CPU runs them at once."""

    def __init__(self, on_host):
        super().__init__()
        self.on_host, self.found = {tensor.data_ptr() for tensor in on_host}, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func.overloadpacket)
        masked = name in ('aten.index', 'aten.index_put', 'aten.index_put_') and any(
            index is not None and index.dtype == torch.bool for index in args[1])
        # optimizers keep counts of steps on the host
        if masked or name in WAITING and args[0].data_ptr() not in self.on_host:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def waits_of(trainer):
    """List what an update waits for; on a GPU the first such thing is an error."""
    if trainer.task.device.type == 'cpu':
        counts = [state['step'] for state in trainer.optimizer.state.values() if 'step' in state]
        with Waits(counts) as waits:
            yield waits.found
        return
    torch.cuda.set_sync_debug_mode('error')
    try:
        yield []
    finally:
        torch.cuda.set_sync_debug_mode('default')


def made(device, *flags, **teacher_kwargs):
    args = parse_args([*TINY, '--device', device, *flags])
    settings = resolve_settings(args)
    torch.manual_seed(0)
    teacher = None
    if settings.teacher.is_network:
        teacher = timm.create_model('resnet20_cifar', num_classes=10, **teacher_kwargs)
    trainer = build_trainer(settings, build_data(settings), teacher, torch.device(device))
    trainer.task.train()
    trainer.task.set_epoch(0)
    return trainer


@devices()
@pytest.mark.parametrize('flags', [
    pytest.param(STUDENT, id='student'),
    pytest.param([*STUDENT, '--amp', '--amp-dtype', 'bfloat16'], id='bf16'),
    pytest.param([*STUDENT, '--amp', '--amp-dtype', 'float16'], id='fp16'),
    pytest.param([*STUDENT, '--model-ema', '--grad-accum-steps', '2', '--drw-start-epoch', '0'], id='ema'),
    pytest.param([*STUDENT, '--opt', 'muon', '--muon-hidden-only'], id='muon'),
    pytest.param([*STUDENT, '--guidance', '2.5', '--dense-distill', '1'], id='guided'),
    pytest.param([*STUDENT, '--kd-token-distill-type', 'soft', '--logit-standardize'], id='soft'),
    pytest.param([*STUDENT, '--clip-mode', 'agc'], id='agc'),
    pytest.param([*STUDENT, '--augment-backend', 'device', '--reprob', '0'], id='augmented on the device'),
    pytest.param([*CNN, *HARD, '--sam-adaptive'], id='sam'),
    pytest.param(PACO, id='paco'),
])
def test_no_update_waits_for_the_device(flags, device):
    trainer = made(device, *flags)
    meter, groups = Meter(trainer.task.device), trainer.loader.epoch(0)
    trainer.update(0, 0, next(groups), meter)  # sets up what is kept
    # to the CPU as the device, what the loader does on the host would look like waiting
    group = next(groups) if device == 'cpu' else None
    with waits_of(trainer) as found:
        trainer.update(0, 1, group or next(groups), meter)
        trainer.task.update_ema(step=2)
        trainer.scheduler.step_update(num_updates=2)
    assert not found
    assert torch.stack(meter.updates).isfinite().all()


def test_what_waits_is_seen():
    trainer = made('cpu', *STUDENT, '--mixup-mode', 'elem')  # timm's copies a list to the device
    groups = trainer.loader.epoch(0)
    trainer.update(0, 0, next(groups), Meter(trainer.task.device))
    group = next(groups)
    with waits_of(trainer) as found:
        trainer.update(0, 1, group, Meter(trainer.task.device))
        bool((group[0][1] > 0).any())
    assert found == ['aten.lift_fresh', 'aten._local_scalar_dense']


@pytest.fixture
def exact(monkeypatch):
    """Convolutions of float32 in float32, whose sums have a fixed order."""
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    monkeypatch.setattr(torch.backends.cudnn, 'deterministic', True)


def curve(device, *flags):
    # nothing is drawn on the device, and labels are soft: rounding would change hard ones of an untrained teacher
    trainer = made(
        device, '--teacher', 'resnet20', '--mixup', '.8', '--mixup-prob', '1', '--reprob', '0', '--drop-path', '0',
        '--kd-token-distill-type', 'soft', '--warmup-epochs', '0', *flags)
    meter = Meter(trainer.task.device)
    for number in range(20):
        epoch, index = divmod(number, trainer.loader.updates_per_epoch)
        groups = trainer.loader.epoch(epoch) if not index else groups  # noqa: F821
        trainer.update(epoch, number, next(groups), meter)
    return torch.stack(meter.updates).cpu()


@devices()
def test_twenty_updates_have_the_losses_of_the_cpu_but_for_rounding(device, exact):
    ours, on_cpu = curve(device, '--auto-speed', 'off'), curve('cpu')
    # AdamW makes whole steps of gradients that are rounding alone
    torch.testing.assert_close(ours, on_cpu, rtol=1e-3 if device == 'cuda' else 1e-6, atol=0)
    assert on_cpu[10:].mean() < .95 * on_cpu[:10].mean(), 'it trains'


@devices()
def test_images_augmented_on_the_device_are_those_of_the_cpu_but_for_rounding(device):
    flags = [*STUDENT, '--augment-backend', 'device', '--aa', 'rand-m9-mstd0.5-inc1', '--color-jitter', '.4']
    loaders = [made(where, *flags).loader for where in (device, 'cpu')]
    far = []
    for there, here in zip(*(loader.epoch(0) for loader in loaders), strict=True):
        (_, images, target), (_, expected, expected_target) = there[0], here[0]
        assert images.device.type == device and target.tolist() == expected_target.tolist()
        far.append(((images.cpu() - expected) * loaders[1].loader.std).abs() > 2)  # of 255
    assert torch.cat(far).float().mean() < .01


@devices()
def test_one_rank_makes_the_updates_and_counts_of_none(device, tmp_path, exact):
    alone, ranked = made(device, *STUDENT), made(device, *STUDENT)
    dist.init_process_group(
        'nccl' if device == 'cuda' else 'gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        ranked.task.prepare_distributed(device_ids=[0] if device == 'cuda' else None)
        results = []
        for trainer in (alone, ranked):
            trained = trainer.train_one_epoch(0, SILENT)
            results.append((trained['loss'], evaluate(
                unwrap_model(trainer.task.get_eval_model()), trainer.eval_loader, trainer.task.create_evaluator(),
                distributed=trainer is ranked)['mean']['per_class']))
    finally:
        dist.destroy_process_group()
    if device == 'cuda':
        # AdamW makes whole steps of what is rounding alone, such as the gradient of the keys' biases
        assert results[0][0] == pytest.approx(results[1][0], rel=1e-3)
    else:
        assert results[0] == results[1]
        assert_close(
            *(unwrap_model(trainer.task.trainable_module).state_dict() for trainer in (alone, ranked)), atol=1e-4)
