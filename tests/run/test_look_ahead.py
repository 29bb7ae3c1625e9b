"""What a run will take is said before anything is trained."""
import logging
import math
import time

import pytest
import torch
from conftest import TINY
from helpers import settings_of

from timm_deitlt.engine.progress import doing, heartbeat
from timm_deitlt.run import look_ahead
from timm_deitlt.run import train as run
from timm_deitlt.run.build.data import build_data
from timm_deitlt.run.build.trainer import build_trainer
from timm_deitlt.run.look_ahead import expected_seconds
from timm_deitlt.settings.layers import parse_args

CNN = ['--model', 'resnet20_cifar', '--model-kwargs', '--loss', 'ce', '--lr', '.001', '--img-size', '8']


def made(*argv):
    settings = settings_of(*TINY, '--teacher', 'none', *argv)
    return build_trainer(settings, build_data(settings), None, torch.device('cpu')), settings


@pytest.fixture
def clock(monkeypatch):
    """A micro-batch takes 3 s forward and back, a step of the optimizer 2 s, an image 0.1 s."""
    monkeypatch.setattr(look_ahead, '_batch_seconds', lambda trainer, epoch: 3.)
    monkeypatch.setattr(look_ahead, '_timed', lambda step, trainer: 2.)
    monkeypatch.setattr('timm_deitlt.data.loader.TrainLoader.seconds_per_image', lambda self: .1)


@pytest.mark.parametrize('flags, passes', [([], 1), ([*CNN, '--opt', 'samsgd'], 2),
                                           ([*CNN, '--opt', 'samsgd', '--sam-every', '2'], 1.5)])
def test_seconds_are_those_of_all_updates_and_evaluations(flags, passes, clock):
    trainer, settings = made('--epochs', '10', '--val-interval', '5', '--grad-accum-steps', '2', *flags)
    loader = trainer.loader
    update = 2 * 3 * passes + 2 + .1 * loader.images_per_epoch / loader.updates_per_epoch
    evaluation = 2 * 170 * (3 / 16 / 3 + .1)  # two batches of 170 images
    expected = 10 * loader.updates_per_epoch * update + 2 * evaluation
    assert expected_seconds(trainer, settings) == pytest.approx(expected)
    assert expected_seconds(trainer, settings, start_epoch=5) == pytest.approx(expected / 2)


def test_loader_processes_work_beside_the_step(clock):
    trainer, settings = made('--epochs', '1', '--val-interval', '1', '--workers', '1')
    load = .1 * trainer.loader.images_per_epoch
    compute = trainer.loader.updates_per_epoch * 5
    assert expected_seconds(trainer, settings) == pytest.approx(max(load, compute) + 2 * 170 * (3 / 16 / 3 + .1))


def test_step_that_takes_long_is_timed_on_a_smaller_batch(monkeypatch):
    trainer, _ = made('--batch-size', '64')
    sizes = []

    def timed(step, trainer):
        step()
        return sizes[-1] / 50

    def forward_backward(epoch, batch, images, target):
        sizes.append(len(images))

    monkeypatch.setattr(look_ahead, '_timed', timed)
    monkeypatch.setattr(trainer, 'forward_backward', forward_backward)
    assert look_ahead._batch_seconds(trainer, 0) == pytest.approx(64 / 50)
    assert sizes == [8, 32], '32 images take 0.64 s, which is long enough'


@pytest.mark.parametrize('flags', [[], [*CNN, '--opt', 'samsgd']], ids=['vit', 'cnn with sam'])
def test_a_real_step_is_timed(flags):
    seconds = expected_seconds(*made('--epochs', '2', *flags))
    assert seconds > 0 and math.isfinite(seconds)
    assert not expected_seconds(*made('--epochs', '2', '--stop-epoch', '1', *flags), start_epoch=1), 'nothing is left'


def test_what_is_timed_is_silent_but_the_heartbeat_is_not(caplog):
    caplog.set_level(logging.INFO)
    with heartbeat(silence=.02), doing('timing a step'), look_ahead.silenced():
        logging.getLogger('timm_deitlt.run.build.trainer').warning('built')
        for _ in range(500):
            if caplog.messages:
                break
            time.sleep(.01)
    assert set(caplog.messages) == {'... timing a step'}


def test_a_run_says_what_it_will_take_before_its_teacher_is_trained_and_does_not_change_by_it(
        tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    flags = [*TINY, '--epochs', '1', '--teacher', 'resnet20', '--teacher-epochs', '1', '--output', str(tmp_path)]
    asked = parse_args([*flags, '--teacher-cache', str(tmp_path / 'cache')])
    first = run.train(asked)
    found = [line for line in caplog.messages if line.startswith('Training will take about')]
    assert len(found) == 1 and ' for the teacher, ' in found[0] and ' for the student.' in found[0]
    trained = next(place for place, line in enumerate(caplog.messages) if line.startswith('Training the teacher'))
    assert caplog.messages.index(found[0]) < trained
    caplog.clear()
    monkeypatch.setattr(run, 'look_ahead', lambda *args: '')
    assert run.train(asked)['weights_sha256'] == first['weights_sha256']
