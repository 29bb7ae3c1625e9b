"""Someone who waits sees that a run is alive."""
import logging
import time
from types import SimpleNamespace

import pytest

from timm_deitlt.engine import progress
from timm_deitlt.engine.progress import Progress, doing, duration, heartbeat

METER = SimpleNamespace(pending_on_host=True, loss=lambda: 1.25)


def wait_for_a_message(caplog):
    before = len(caplog.messages)
    for _ in range(500):
        if len(caplog.messages) > before:
            return caplog.messages[-1]
        time.sleep(.01)
    raise AssertionError('nothing was logged')


@pytest.fixture
def info(caplog):
    caplog.set_level(logging.INFO)
    return caplog


def test_silence_ends_with_what_is_being_done(info):
    with heartbeat(silence=.02):
        assert wait_for_a_message(info) == '... still at work'
        with doing('timing a step'):
            info.clear()
            assert '... timing a step' in (wait_for_a_message(info), wait_for_a_message(info))
        with Progress('train', 3, 0, 10, 32., log_interval=50) as bar:
            info.clear()
            assert 'the first update is still running' in (wait_for_a_message(info) and wait_for_a_message(info))
            bar.begin(1)
            bar.update(0, METER, 1e-3)
            wait_for_a_message(info)
            assert wait_for_a_message(info).startswith('train epoch 2/3 [1/10] loss 1.250 lr 1.00e-03')


def test_whoever_talks_is_not_interrupted(info):
    with heartbeat(silence=30.):
        for _ in range(3):
            logging.getLogger('timm_deitlt').info('a line')
            time.sleep(.02)
    assert info.messages == ['a line'] * 3


def test_a_bar_is_not_interrupted_and_what_comes_after_it_is_not_silent(info, monkeypatch):
    monkeypatch.setattr(progress.sys.stderr, 'isatty', lambda: True, raising=False)
    with Progress('train', 1, 0, 10, 32.):
        assert progress._doing == [None]
        with doing('evaluating'):
            assert progress._doing[-1] == 'evaluating'
    assert progress._doing == []


def test_lines_come_at_the_interval_with_what_is_left(info):
    with Progress('train', 2, 0, 4, 32., log_interval=2) as lines:
        for index in range(4):
            lines.update(index, METER, 1e-3)
    assert [line.split(' lr')[0] for line in info.messages] == [
        'train epoch 1/2 [2/4] loss 1.250', 'train epoch 1/2 [4/4] loss 1.250']
    assert all(line.endswith(' left') for line in info.messages)


def test_a_loss_that_was_not_read_yet_is_not_shown_as_none():
    far = SimpleNamespace(pending_on_host=False)
    with Progress('train', 1, 0, 10, 32.) as progress:
        progress.update(0, far, 1e-3)
        assert 'nan' not in progress.words() and 'loss' not in progress.words()


def test_other_ranks_are_silent(info):
    with Progress('train', 1, 0, 1, 1., log_interval=1, enabled=False) as silent:
        silent.update(0, METER, 1.)
        silent.line('a line')
    assert not info.messages


def test_duration_is_read_as_on_a_clock():
    assert [duration(seconds) for seconds in (4.6, 65, 3725)] == ['0:05', '1:05', '1:02:05']
