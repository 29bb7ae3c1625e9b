"""Settings travel once: what was asked for ends at the door, below it nothing changes a setting."""
from dataclasses import FrozenInstanceError, fields, is_dataclass
from pathlib import Path

import pytest
from conftest import TINY
from helpers import settings_of

import timm_deitlt
from timm_deitlt.run.settings import drw_start
from timm_deitlt.settings.layers import _settings, args_to_yaml, parse_args

# Flags of which a field of another name holds what was worked out, and those that end at the door
WORKED_OUT = {
    'model', 'in_chans', 'input_img_mode', 'val_fraction', 'validation_batch_size', 'grad_accum_steps',
    'global_batch_size', 'loss', 'bce_loss', 'logit_adjust_tau', 'lr_base_scale', 'drw_on', 'drw_start_epoch',
    'drw_beta', 'keep_mixup_drw', 'teacher', 'amp', 'amp_dtype', 'model_dtype', 'workers'}
AT_THE_DOOR = {'device_modules', 'dry_run', 'dry_run_world_size'}


def parts(settings):
    return {field.name: getattr(settings, field.name) for field in fields(settings)
            if is_dataclass(getattr(settings, field.name))}


def test_every_flag_is_a_field_of_one_part_or_worked_out():
    named = {'seed'}
    for name, part in parts(settings_of(*TINY)).items():
        named |= {('teacher_' if name == 'teacher' else '') + field.name for field in fields(part)}
    assert set(_settings()) - named == WORKED_OUT | AT_THE_DOOR


def test_nothing_changes_a_setting():
    settings = settings_of(*TINY)
    for part in (settings, *parts(settings).values()):
        with pytest.raises(FrozenInstanceError):
            setattr(part, fields(part)[0].name, None)
    with pytest.raises(TypeError):
        settings.flags['epochs'] = 1
    assert not any(isinstance(getattr(part, field.name), list)
                   for part in parts(settings).values() for field in fields(part))


def test_flags_ask_for_the_same_again():
    settings = settings_of(*TINY, '--val-fraction', '.2')
    again = parse_args([])
    vars(again).update(settings.flags)
    assert args_to_yaml(settings.namespace()) == args_to_yaml(again)


def test_there_are_no_more_loader_processes_than_cores_but_for_streams_which_they_cut_up(monkeypatch):
    monkeypatch.setattr('timm_deitlt.run.settings.cores', lambda: 2)
    assert [settings_of('--workers', n).loader.processes for n in (0, 1, 2, 9)] == [0, 1, 2, 2]
    assert settings_of('--workers', 9).flags['workers'] == 9
    assert settings_of('--dataset', 'wds/x', '--workers', 9).loader.processes == 9


def test_what_was_asked_for_is_not_seen_below_the_door():
    package = Path(timm_deitlt.__file__).parent
    below = [package / room for room in ('analysis', 'data', 'engine', 'evaluation', 'loss', 'models', 'optim', 'task')]
    files = [file for folder in (*below, package / 'run/build', package / 'run/mechanisms')
             for file in folder.rglob('*.py')]
    assert len(files) > 40
    reads_files = package / 'engine/checkpoint.py'  # in which timm keeps what was asked for
    assert not [str(file) for file in files if 'argparse' in file.read_text() and file != reads_files]


@pytest.mark.parametrize('epochs, start', [(600, 550), (24, 22), (300, 275), (18, 16)])
def test_stage_two_is_the_last_twelfth_unless_it_is_given(epochs, start):
    args = parse_args(['--epochs', str(epochs)])
    args.drw_start_epoch = None  # the recipe of the digits gives one
    assert drw_start(args) == start
    args.drw_start_epoch = 7
    assert drw_start(args) == 7
