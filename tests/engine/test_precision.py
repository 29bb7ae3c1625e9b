"""bfloat16 only where the hardware has it: elsewhere a CPU emulates it, dozens of times slower than float32.
And float64 only where the device has it."""
import logging
from collections import Counter

import pytest
import timm
import torch
from conftest import TINY, run_script
from helpers import SILENT, distiller, eval_loader, settings_of
from helpers import trainer as small_trainer
from timm.optim import create_optimizer_v2, muon
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from timm_deitlt.engine import meter as meter_module
from timm_deitlt.engine.device import has_bfloat16
from timm_deitlt.engine.meter import Meter
from timm_deitlt.evaluation import evaluator
from timm_deitlt.optim import SAMSGD, sam
from timm_deitlt.optim.muon import orthogonalize_in_float32
from timm_deitlt.run import settings as settings_module
from timm_deitlt.run.build import model, trainer
from timm_deitlt.run.build.data import build_data
from timm_deitlt.settings.layers import parse_args
from timm_deitlt.utils.precision import widest_float

CPU = torch.device('cpu')
PRODUCTS = {
    f'aten.{name}' for name in (
        'mm', 'addmm', 'bmm', 'baddbmm', 'convolution', 'convolution_backward', 'mkldnn_convolution',
        '_scaled_dot_product_flash_attention_for_cpu', '_scaled_dot_product_flash_attention_for_cpu_backward',
        # what inference mode does not take apart
        'linear', 'matmul', 'conv2d', 'scaled_dot_product_attention')}
STUDENT = ['--teacher', 'resnet20', '--opt', 'muon']
TEACHER = ['--model', 'resnet20_cifar', '--model-kwargs', '--teacher', 'none', '--opt', 'samsgd', '--loss', 'ce']
PACO = [*TEACHER, '--loss', 'paco', '--mixup', '0', '--cutmix', '0', '--smoothing', '0', '--drw-on', 'none']


class CountProducts(TorchDispatchMode):
    """Counts matrix products by the type of their operands."""

    def __init__(self):
        super().__init__()
        self.dtypes = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if str(func.overloadpacket) in PRODUCTS:
            self.dtypes[args[0].dtype] += 1
        return func(*args, **(kwargs or {}))


def products_of_an_update_and_an_evaluation(flags, monkeypatch, fast):
    for module in (model, trainer, settings_module):
        monkeypatch.setattr(module, 'has_bfloat16', lambda device: fast)
    settings = settings_of(*[flag for flag in TINY if flag != '--no-amp'], '--val-fraction', '.2', *flags)
    teacher = timm.create_model('resnet20_cifar', num_classes=10) if settings.teacher.is_network else None
    made = trainer.build_trainer(settings, build_data(settings), teacher, CPU)
    made.task.train()
    group = next(made.loader.epoch(0))
    with CountProducts() as updated:
        made.update(0, 0, group, Meter(CPU))
    with CountProducts() as evaluated:
        made.evaluate()
    return updated.dtypes, evaluated.dtypes


@pytest.mark.parametrize('flags', [STUDENT, TEACHER, PACO], ids=['student with muon', 'teacher with sam', 'paco'])
def test_no_product_is_of_bfloat16_where_the_cpu_has_no_instructions_for_it(flags, monkeypatch):
    for dtypes in products_of_an_update_and_an_evaluation(flags, monkeypatch, fast=False):
        assert dtypes[torch.float32] > 5 and not dtypes[torch.bfloat16], dtypes
    for dtypes in products_of_an_update_and_an_evaluation(flags, monkeypatch, fast=True):
        assert dtypes[torch.bfloat16] > 5, 'the count sees them where they are wanted'
    for dtypes in products_of_an_update_and_an_evaluation([*flags, '--no-amp'], monkeypatch, fast=True):
        assert dtypes[torch.float32] > 5 and not dtypes[torch.bfloat16], dtypes


def test_asking_for_bfloat16_is_obeyed_with_one_warning_that_names_the_price(monkeypatch, caplog):
    monkeypatch.setattr(trainer, 'has_bfloat16', lambda device: False)
    monkeypatch.setattr(trainer, 'price_of_bfloat16', lambda: 87.4)
    monkeypatch.setattr(settings_module, 'has_bfloat16', lambda device: False)
    wanted, chosen = (settings_of(*flags).machine.precision for flags in (['--amp-dtype', 'bfloat16'], []))
    assert chosen.mixed is None and 'bfloat16' in wanted.words
    with caplog.at_level(logging.WARNING):
        for precision in (chosen, wanted, wanted):
            autocast = trainer.autocast_of(precision, CPU)
    assert autocast().fast_dtype == torch.bfloat16
    assert len(caplog.messages) == 1 and ' 87 times as long' in caplog.messages[0]


def test_naming_the_type_of_mixed_precision_turns_it_on_unless_something_else_is_asked_for(tmp_path):
    assert parse_args(['--amp-dtype', 'bfloat16']).amp is True
    assert parse_args(['--amp-dtype', 'bfloat16', '--no-amp']).amp is False
    assert parse_args(['--amp-dtype', 'bfloat16', '--model-dtype', 'bfloat16']).amp is None
    config = tmp_path / 'config.yaml'
    config.write_text('amp: false')
    assert parse_args(['-c', str(config), '--amp-dtype', 'bfloat16']).amp is False


def test_cpu_told_to_use_avx2_alone_has_no_bfloat16(tmp_path):
    script = tmp_path / 'ask.py'
    script.write_text(
        'import torch\nfrom timm_deitlt.engine.device import has_bfloat16, price_of_bfloat16\n'
        'print(has_bfloat16(torch.device("cpu")), price_of_bfloat16() > 0)\n')
    weak = {'ONEDNN_MAX_CPU_ISA': 'AVX2', 'ATEN_CPU_CAPABILITY': 'avx2', 'PYTHONPATH': '.'}
    assert run_script(script=script, env=weak).stdout.split() == ['False', 'True']


def test_device_without_mkldnn_has_no_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, 'is_available', lambda: False)
    assert not has_bfloat16(CPU)


@pytest.mark.parametrize('name', ['muon', 'adamuon', 'nadamuon', 'nmuon'])
def test_muon_of_timm_computes_in_float32_once_told_to_and_only_while_it_steps(name):
    """Contract: timm's optimizers call `timm.optim.muon.zeropower_via_newtonschulz`, which takes a `dtype`."""
    original = muon.zeropower_via_newtonschulz
    updates = {}
    for how in ('timm', 'float32'):
        torch.manual_seed(0)
        weights = [torch.nn.Parameter(torch.randn(8, 16)), torch.nn.Parameter(torch.randn(8))]
        before = weights[0].detach().clone()
        optimizer = create_optimizer_v2([{'params': weights}], opt=name, lr=.1)
        if how == 'float32':
            orthogonalize_in_float32(optimizer)
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        with CountProducts() as counted:
            optimizer.step()
        assert set(counted.dtypes) == {torch.bfloat16 if how == 'timm' else torch.float32}
        updates[how] = weights[0].detach() - before
    assert muon.zeropower_via_newtonschulz is original
    largest = updates['timm'].abs().max().item()
    torch.testing.assert_close(updates['timm'], updates['float32'], rtol=0, atol=.05 * largest)


@pytest.mark.parametrize(('opt', 'dtype', 'fused'), [
    ('momentum', 'float16', False), ('momentum', 'bfloat16', True), ('adamw', 'float16', True)])
def test_sgd_is_not_fused_where_a_scaler_may_leave_out_its_first_step(opt, dtype, fused):
    """Contract: torch's fused SGD then keeps a momentum that was never written."""
    flags = [flag for flag in TINY if flag != '--no-amp']
    settings = settings_of(*flags, '--teacher', 'none', '--opt', opt, '--amp', '--amp-dtype', dtype)
    made = trainer.build_trainer(settings, build_data(settings), None, CPU)
    assert {bool(group.get('fused')) for group in made.optimizer.param_groups} == {fused}


class NoFloat64(TorchDispatchMode):
    """Refuses float64 as MPS does."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if any(isinstance(x, torch.Tensor) and x.dtype == torch.float64 for x in tree_leaves(result)):
            raise TypeError(f'{func} made a float64 tensor.')
        return result


def test_a_device_without_float64_trains_and_evaluates(monkeypatch):
    assert widest_float(torch.device('mps')) is torch.float32
    assert widest_float(CPU) is widest_float(torch.device('cuda')) is torch.float64
    task = distiller()
    ours = small_trainer(task, SAMSGD(task.trainable_module.parameters(), rho=.5, lr=.1), eval_loader=eval_loader(4))
    with NoFloat64(), pytest.raises(TypeError, match='float64'):
        ours.train_one_epoch(0, SILENT)
    for module in (meter_module, sam, evaluator):
        monkeypatch.setattr(module, 'widest_float', lambda device: torch.float32)
    with NoFloat64():
        ours.train_one_epoch(0, SILENT)
        narrow = ours.evaluate()
    monkeypatch.undo()
    assert narrow['mean']['loss'] == pytest.approx(ours.evaluate()['mean']['loss'], rel=1e-6)
