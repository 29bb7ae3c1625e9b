"""Which cores a command uses."""
import logging
from pathlib import Path

import pytest
import torch

from timm_deitlt.engine import device

IDLE_CORES = device.idle_cores


@pytest.fixture
def threads(monkeypatch):
    """Four threads on four cores, and nothing that divides them; returns how to say how many are idle."""
    for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'WORLD_SIZE', 'SLURM_PROCID'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(device, 'cores', lambda: 4)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(device.time, 'sleep', lambda seconds: None)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield lambda idle: monkeypatch.setattr(device, 'idle_cores', lambda: idle)
    torch.set_num_threads(before)


@pytest.mark.parametrize('idle, expected', [(4., 4), (3.75, 4), (3.6, 3), (2.9, 3), (1.2, 1), (.6, 1), (0., 1)])
def test_busy_cores_are_left_to_other_programs(threads, idle, expected, caplog):
    threads(idle)
    with caplog.at_level(logging.INFO):
        device.use_free_cores()
    assert torch.get_num_threads() == expected
    assert (f'computes with {expected} threads' in caplog.text) == (expected < 4)


@pytest.mark.parametrize('name', ['OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'WORLD_SIZE', 'SLURM_PROCID'])
def test_what_the_user_or_a_launcher_chose_stays(threads, monkeypatch, name):
    threads(0.)
    monkeypatch.setenv(name, '4')
    device.use_free_cores()
    assert torch.get_num_threads() == 4


def test_a_container_limits_the_threads(threads, monkeypatch):
    threads(4.)
    monkeypatch.setattr(device, 'cores', lambda: 2)
    device.use_free_cores()
    assert torch.get_num_threads() == 2


def test_a_moment_of_work_elsewhere_costs_no_thread(threads, monkeypatch):
    found = iter([1., 4.])
    monkeypatch.setattr(device, 'idle_cores', lambda: next(found))
    device.use_free_cores()
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize('idle, expected', [(.5, 1.), (1.5, 3.), (9., 4.)])
def test_idle_cores_are_idle_time_by_time(threads, monkeypatch, idle, expected):
    seconds, clock = iter([100., 100. + idle]), iter([7., 7.5])
    monkeypatch.setattr(device, '_idle_seconds', lambda: next(seconds))
    monkeypatch.setattr(device.time, 'perf_counter', lambda: next(clock))
    assert IDLE_CORES() == expected, 'at most the cores that it may use'


@pytest.mark.skipif(not Path('/proc/stat').is_file(), reason='needs /proc/stat')
def test_the_system_says_how_long_cores_were_idle():
    before = device._idle_seconds()
    assert 0 < before <= device._idle_seconds()


def test_all_cores_count_as_idle_where_the_system_does_not_say(monkeypatch):
    def no_such_file():
        raise FileNotFoundError

    monkeypatch.setattr(device, '_idle_seconds', no_such_file)
    assert device.idle_cores() == device.cores()
