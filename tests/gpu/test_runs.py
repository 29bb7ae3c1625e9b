"""Whole runs on a GPU, by what the command calls; on the CPU the same in a tiny size."""
import csv
import signal
import subprocess
import sys
import time
from functools import cache

import pytest
import torch
from conftest import ROOT, TINIEST_TEACHER, TINY, devices
from PIL import Image

import timm_deitlt
from timm_deitlt.hub.export import export
from timm_deitlt.run.mechanisms import analyze
from timm_deitlt.run.train import train
from timm_deitlt.run.validate import validate
from timm_deitlt.settings.layers import parse_args

# the quick start as it is, and on the CPU its tiny form
QUICK = {
    'cuda': ['--model', 'deit_lt_small', '--no-report'],
    'cpu': [flag for flag in TINY if flag != '--no-amp']}
TEACHER = {'cuda': 'resnet32', 'cpu': 'test_resnet'}
EPOCHS = ['--epochs', '2', '--drw-start-epoch', '1', '--teacher-epochs', '1']
# in full precision, and nothing is drawn on the device
PLAIN = [*TINY, *EPOCHS, '--reprob', '0', '--auto-speed', 'off']
# and without what belongs to the micro-batch: augmentation, mixing and class weights
WHOLE_BATCHES = [
    *PLAIN, *TINIEST_TEACHER, '--kd-token-distill-type', 'soft', '--no-aug', '--mixup', '0', '--cutmix', '0',
    '--drw-on', 'none']
slow_devices = devices(pytest.mark.slow)


def run(tmp_path, device, *args, name='run'):
    places = ['--device', device, '--output', tmp_path, '--experiment', name, '--teacher-cache', tmp_path / 'cache']
    return train(parse_args(list(map(str, [*args, *places]))))


def rows(tmp_path, name='run'):
    with open(tmp_path / name / 'summary.csv') as file:
        return list(csv.DictReader(file))


def losses(tmp_path, name='run'):
    return [float(row['train_loss']) for row in rows(tmp_path, name)]


def checkpoint(tmp_path, name='run'):
    return torch.load(tmp_path / name / 'last.pth.tar', weights_only=False, map_location='cpu')


@slow_devices
@pytest.mark.parametrize(('kind', 'dtype'), [('_sam', 'bfloat16'), ('', 'float16')])
def test_quick_start_trains_teacher_and_student_for_two_epochs(tmp_path, device, kind, dtype):
    teacher = TEACHER[device] + kind
    result = run(tmp_path, device, *QUICK[device], *EPOCHS, '--teacher', teacher, '--amp', '--amp-dtype', dtype)
    first, second = losses(tmp_path)
    assert 0 < second < first
    assert result['teacher']['top1'] > 0 and result['mean']['top1'] > 0
    assert ('amp_scaler' in checkpoint(tmp_path)) == (dtype == 'float16')


@slow_devices
def test_float16_is_refused_where_the_teacher_is_trained_with_sam(tmp_path, device):
    with pytest.raises(ValueError, match='samsgd cannot scale float16 gradients over its two passes; use --amp-dtype'):
        run(tmp_path, device, *QUICK[device], *EPOCHS, '--teacher', f'{TEACHER[device]}_sam', '--amp-dtype', 'float16')
    assert not (tmp_path / 'run').exists()


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
    """Folder of a run without options on a device, which is trained once, and of its teacher."""
    @cache
    def trained(device):
        folder = tmp_path_factory.mktemp('plain')
        run(folder, device, *WHOLE_BATCHES)
        return folder

    return trained


@slow_devices
@pytest.mark.parametrize('flags', [
    ['--channels-last'],
    ['--grad-checkpointing'],
    ['--batch-size', '8', '--grad-accum-steps', '2'],
    ['--torchcompile'],
], ids=lambda flags: ' '.join(flags[:2]))
def test_options_change_the_losses_by_rounding_only(tmp_path, device, flags, plain, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    if flags == ['--torchcompile'] and device == 'cpu':
        flags = [*flags, 'eager']  # the compiler takes minutes
    name = flags[0].strip('-')
    run(plain(device), device, *WHOLE_BATCHES, *flags, name=name)  # beside the cache of the same teacher
    assert losses(plain(device), name) == pytest.approx(losses(plain(device)), rel=1e-3)


@slow_devices
def test_ema_and_repeated_augmentation_train(tmp_path, device):
    run(tmp_path, device, *PLAIN, *TINIEST_TEACHER, '--model-ema', '--model-ema-decay', '.9', '--aug-repeats', '3')
    state = checkpoint(tmp_path)
    assert state['state_dict'].keys() == state['state_dict_ema'].keys()
    assert float(rows(tmp_path)[-1]['ema_mean_top1']) > 0


EXACT = '''
import os
os.environ['CUBLAS_WORKSPACE_CONFIG'] = ':4096:8'  # which cuBLAS needs to repeat its sums
import torch
torch.use_deterministic_algorithms(True)
torch.set_num_threads(1)
from timm_deitlt.cli.commands import train_main
train_main()
'''


@slow_devices
def test_killed_and_resumed_run_is_bit_identical_to_one_that_was_not(tmp_path, device):
    command = [
        sys.executable, '-c', EXACT, *QUICK[device], *EPOCHS, *TINIEST_TEACHER, '--epochs', '4', '--drop-path', '.1',
        '--reprob', '.5', '--mixup-prob', '1', '--amp', '--workers', '2', '--device', device, '--output', tmp_path,
        '--teacher-cache', tmp_path / 'cache', '--experiment']
    command = list(map(str, command))
    subprocess.run([*command, 'whole'], cwd=ROOT, check=True)
    with subprocess.Popen([*command, 'killed'], cwd=ROOT) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / 'killed' / 'last.pth.tar').exists() and time.monotonic() < deadline:
            time.sleep(.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL and checkpoint(tmp_path, 'killed')['epoch'] < 3
    subprocess.run([*command, 'killed', '--resume', 'auto'], cwd=ROOT, check=True)
    whole, resumed = (checkpoint(tmp_path, name) for name in ('whole', 'killed'))
    for key in ('state_dict', 'optimizer'):
        torch.testing.assert_close(whole[key], resumed[key], rtol=0, atol=0)


@slow_devices
def test_a_run_is_validated_analyzed_exported_and_predicts(tmp_path, device):
    trained = run(tmp_path, device, *PLAIN, *TINIEST_TEACHER)
    again = validate(str(tmp_path / 'run'), {'device': device})
    assert again['mean']['top1'] == pytest.approx(trained['mean']['top1'], abs=.5)
    assert analyze(str(tmp_path / 'run'), {'device': device}, 64)['attention_distance_px']

    export(tmp_path / 'run', tmp_path / 'exported')
    images = [Image.effect_noise((20, 20), 60 + 30 * number).convert('RGB') for number in range(4)]
    models = [timm_deitlt.load_model(tmp_path / name, device=device) for name in ('run', 'exported')]
    on_cpu = timm_deitlt.load_model(tmp_path / 'run', device='cpu')
    assert all(next(model.model.parameters()).device.type == device for model in models)
    for model in models:
        for row, other in zip(model.predict(images), on_cpu.predict(images), strict=True):
            assert row['probabilities'] == pytest.approx(other['probabilities'], rel=1e-2)
