"""Cells of a study really trained: what their files hold, what goes on from where, and what is refused."""
import json
import shutil

import pytest
import torch
import yaml
from conftest import last_json, run_script
from filelock import FileLock
from helpers import unpadded

from timm_deitlt.studies.cells import Cell, cell_path, plan, read_results
from timm_deitlt.studies.study import load_study
from timm_deitlt.studies.table import format_study
from timm_deitlt.studies.train_cells import check_cells, train_cell

CONTENT = {
    'settings': {
        'dataset': 'lt/digits', 'n_max': 40, 'imbalance_factor': 4., 'model': 'deit_lt_tiny', 'img_size': 16,
        'model_kwargs': {'embed_dim': 48, 'depth': 2, 'num_heads': 3, 'patch_size': 8}, 'batch_size': 16,
        'validation_batch_size': 170, 'workers': 0, 'amp': False, 'opt': 'adamw', 'lr': 5e-4, 'reprob': .1,
        'epochs': 2, 'drw_start_epoch': 1, 'teacher': 'none'},
    'arms': {
        'plain': {'label': 'Plain', 'settings': {'drw_on': 'none', 'keep_mixup_drw': True}},
        'weighted': {'label': 'Weighted', 'from': 'plain', 'settings': {'drw_on': 'cls'}}},
    'claims': [{'claim': 'weights help', 'a': 'weighted mean tail', 'b': 'plain mean tail'}],
}


def study(folder, **settings):
    """The study, with other settings, as a file in the folder."""
    path = folder / 'mine.yaml'
    path.write_text(yaml.safe_dump({**CONTENT, 'settings': {**CONTENT['settings'], **settings}}, sort_keys=False))
    return load_study(str(path))


def run(place, arm, **settings):
    return train_cell(study(place, **settings), Cell(0, 1, arm), place / 'results', place / 'work', {})


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A folder with both cells, and their results."""
    place = tmp_path_factory.mktemp('study')
    return place, {arm: run(place, arm) for arm in ('plain', 'weighted')}


@pytest.fixture
def copy(trained, tmp_path):
    return shutil.copytree(trained[0], tmp_path / 'copy')


def folder_of(place, arm):
    return place / 'work' / 'mine' / f'{arm}-subset0-seed1'


def test_a_cell_is_a_file_with_every_setting_and_figure(trained):
    place, results = trained
    asked = study(place)
    found = read_results(place / 'results', asked)
    assert {cell.arm: result for cell, result in found.items()} == results
    assert plan(asked, place / 'results', list(asked.arms), [1], [0]) == []
    for arm, result in results.items():
        assert result['resolved']['lr'] == 5e-4 and result['resolved']['aa'] == 'rand-m3-mstd0.5-inc1', 'of the recipe'
        assert result['teacher_settings'] is None and set(result['fusion']) == {'cls_adjusted'}
        assert len(result['curve']) == (3 if arm == 'plain' else 2), 'a branch has its own epochs'
        assert result['metrics']['seconds'] > 0 and result['analysis']['rank_cls'] and result['versions']['git']


def test_a_branch_goes_on_from_the_milestone_of_its_parent(trained):
    place, _ = trained
    start = torch.load(folder_of(place, 'plain') / 'milestone-1.pth.tar', weights_only=False)
    assert start['epoch'] == 0 and start['args'].drw_on == 'none'
    branch = torch.load(folder_of(place, 'weighted') / 'last.pth.tar', weights_only=False)
    assert branch['epoch'] == 1 and branch['args'].drw_on == 'cls'
    assert branch['args'].branch_from == str(folder_of(place, 'plain') / 'milestone-1.pth.tar')


def test_a_branch_whose_parents_run_is_gone_trains_it_again_to_the_same_weights(trained, tmp_path):
    place, results = trained
    again = run(tmp_path, 'weighted')
    assert again['metrics']['weights_sha256'] == results['weighted']['metrics']['weights_sha256']
    whole = run(tmp_path, 'plain')
    assert whole['metrics']['weights_sha256'] == results['plain']['metrics']['weights_sha256']


@pytest.mark.parametrize('arm', ['plain', 'weighted'])
def test_a_run_of_other_settings_is_not_gone_on_with(copy, arm):
    cell_path(copy / 'results', study(copy), Cell(0, 1, arm)).unlink()
    with pytest.raises(ValueError, match=r'other settings than the study now has \(lr\): delete .*-subset0-seed1'):
        run(copy, arm, lr=5e-2)
    if arm == 'weighted':
        shutil.rmtree(folder_of(copy, 'weighted'))
        with pytest.raises(ValueError, match=r'milestone-1.pth.tar was trained with other settings'):
            run(copy, arm, lr=5e-2)
    assert not cell_path(copy / 'results', study(copy), Cell(0, 1, arm)).is_file()


def test_results_under_a_recipe_that_has_changed_are_refused(copy):
    path = cell_path(copy / 'results', study(copy), Cell(0, 1, 'plain'))
    result = json.loads(path.read_text())
    path.write_text(json.dumps({**result, 'resolved': {**result['resolved'], 'aa': 'rand-m9-mstd0.5-inc1'}}))
    with pytest.raises(ValueError, match=r'other settings than the study has \(aa\)'):
        read_results(copy / 'results', study(copy))


def test_a_cell_in_training_is_left_to_the_process_that_trains_it(copy):
    with FileLock(folder_of(copy, 'plain') / '.lock'), pytest.raises(ValueError, match='Another process is training'):
        run(copy, 'plain')


@pytest.mark.parametrize('settings, words', [
    ({'drw_on': 'nobody'}, 'nobody'), ({'learning': 1}, 'learning'), ({'epochs': 0}, '--epochs must be at least 1'),
    ({'teacher': 'resnet99_sam'}, 'resnet99'), ({'data_dir': '/nowhere', 'dataset': 'lt/cifar10'}, 'nowhere'),
    ({'model': 'deit_lt_tinny'}, 'deit_lt_tinny')])
def test_what_would_stop_a_cell_is_found_before_the_first_is_trained(tmp_path, settings, words):
    asked = study(tmp_path, **settings)
    cells = plan(asked, tmp_path, list(asked.arms), [1], [0])
    if 'drw_on' in settings:  # which the arms set themselves
        asked.arms['weighted'].settings.update(settings)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        check_cells(asked, cells, {})


def test_a_cell_of_a_cnn_has_no_mechanisms(tmp_path):
    cnn = dict(model='resnet20_cifar', model_kwargs={'num_blocks': 1}, opt='momentum', loss='ce')
    result = run(tmp_path, 'plain', **cnn)
    assert result['analysis'] is None and result['metrics']['mean']['top1'] >= 0
    asked = study(tmp_path, **cnn)
    assert '| Plain | 1 |' in unpadded(format_study(asked, read_results(tmp_path / 'results', asked)))


def test_the_script_trains_what_it_can_and_says_what_failed(tmp_path):
    content = {**CONTENT, 'arms': {**CONTENT['arms'], 'bad': {'label': 'Bad', 'settings': {'lr': 1e30}}}}
    (tmp_path / 'mine.yaml').write_text(yaml.safe_dump(content, sort_keys=False))
    done = run_script(
        tmp_path / 'mine.yaml', '--seeds', '1', '--results', tmp_path / 'results', '--work', tmp_path / 'work',
        '--jobs', '2', '--arms', 'plain', 'bad', script='ablate.py', check=False)
    assert done.returncode == 1, done.stderr
    result = last_json(done)
    assert result['cells'] == ['plain-subset0-seed1']
    assert list(result['failed']) == ['bad-subset0-seed1'] and 'NonFiniteLossError' in str(result['failed'])
    assert 'Failed: `bad-subset0-seed1` (NonFiniteLossError' in done.stderr and '| Plain | 1 |' in unpadded(done.stderr)
    assert (tmp_path / 'results' / 'mine' / 'report.html').is_file()
