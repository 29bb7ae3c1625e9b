"""The end of train.py: what it adds to the folder of a run, and that nothing it meets can cost the run."""
import csv
import json
import shutil
import sys
from types import SimpleNamespace

import pytest
from conftest import TINY, TINY_TEACHER, last_json, run_script
from helpers import summary

from timm_deitlt.run import finish
from timm_deitlt.run.train import train
from timm_deitlt.settings.layers import parse_args

ADDED = {'analysis.json', 'attention.npz', 'signatures.json', 'report.html', 'plots'}


def names(folder):
    return {path.name for path in folder.iterdir()}


@pytest.fixture(scope='module')
def finished(tmp_path_factory, shared_teachers):
    """A run with the report on: folder, finished process."""
    output = tmp_path_factory.mktemp('runs')
    done = run_script(
        *TINY, *TINY_TEACHER, '--report', '--epochs', '2', '--teacher-cache', shared_teachers,
        '--output', output, '--experiment', 'run')
    return output / 'run', done


def test_a_run_ends_with_measures_signs_and_a_page(finished):
    folder, done = finished
    assert names(folder) >= ADDED
    assert list((folder / 'plots').glob('*.png'))
    assert f'Report: {folder}/report.html' in done.stderr
    assert last_json(done) == json.loads((folder / 'metrics.json').read_text())
    signs = json.loads((folder / 'signatures.json').read_text())
    page = (folder / 'report.html').read_text()
    assert signs, 'two epochs are not enough for anything'
    for sign in signs:
        assert sign['suggestion'] in done.stderr and sign['name'].replace('_', ' ') in page


def test_seconds_are_those_of_all_sessions_and_trackers_end_with_the_run(tmp_path, monkeypatch):
    calls = []
    service = SimpleNamespace(
        login=lambda: calls.append('login'), init=lambda **options: calls.append('init'),
        log=lambda row, step: calls.append(step), finish=lambda: calls.append('finish'), Error=RuntimeError)
    monkeypatch.setitem(sys.modules, 'wandb', service)
    settings = [*TINY, '--teacher', 'none', '--epochs', '2', '--output', str(tmp_path), '--experiment', 'run',
                '--log-wandb']
    train(parse_args([*settings, '--stop-epoch', '1']))
    (row,) = summary(tmp_path / 'run')
    with open(tmp_path / 'run' / 'summary.csv', 'w', newline='') as file:
        writer = csv.DictWriter(file, row)
        writer.writeheader()
        writer.writerow({**row, 'train_seconds': '5000'})
    assert train(parse_args([*settings, '--resume', 'auto']))['seconds'] > 5000
    assert calls == ['login', 'init', 0, 'finish', 'login', 'init', 1, 'finish']


def test_without_a_report_known_failures_are_looked_for_all_the_same(tmp_path):
    settings = [*TINY, '--teacher', 'none', '--epochs', '1', '--output', tmp_path, '--experiment', 'run']
    run_script(*settings)
    assert names(tmp_path / 'run') & ADDED == {'signatures.json'}


def test_a_run_that_goes_on_loses_what_was_found_of_its_earlier_weights(tmp_path):
    settings = [*TINY, '--teacher', 'none', '--epochs', '2', '--output', tmp_path, '--experiment', 'run']
    run_script(*settings, '--stop-epoch', '1')
    (tmp_path / 'run' / 'plots').mkdir()
    for name in ADDED - {'signatures.json', 'plots'}:
        (tmp_path / 'run' / name).touch()
    run_script(*settings, '--resume', 'auto')
    assert names(tmp_path / 'run') & ADDED == {'signatures.json'}


@pytest.mark.parametrize('broken, kept', [
    ('analyze', {'signatures.json', 'report.html', 'plots'}),
    ('write_report', {'analysis.json', 'attention.npz', 'signatures.json'}),
    ('failure_signatures', ADDED - {'signatures.json'})])
def test_a_failure_at_the_end_is_a_warning(tmp_path, monkeypatch, caplog, broken, kept):
    def fail(*args):
        raise RuntimeError('disk\nfull')

    monkeypatch.setattr(finish, broken, fail)
    output = ['--output', str(tmp_path), '--experiment', 'run']
    result = train(parse_args([*TINY, '--report', '--teacher', 'none', '--epochs', '1', *output]))
    assert result == json.loads((tmp_path / 'run' / 'metrics.json').read_text())
    assert names(tmp_path / 'run') & ADDED == kept
    assert '(RuntimeError: disk full): analyze.py RUN tries it again' in caplog.text


@pytest.mark.parametrize('kind', ['cnn', 'not evaluated'])
def test_a_cnn_and_a_run_without_evaluation_have_a_page_without_mechanisms(finished, tmp_path, kind):
    folder = tmp_path / 'run'
    expected = {'signatures.json', 'report.html', 'plots'}
    if kind == 'cnn':
        settings = [option for option in TINY if option not in TINY[2:7]] + ['--model', 'resnet20_cifar']
        run_script(*settings, '--report', '--epochs', '1', '--output', tmp_path, '--experiment', 'run')
        assert names(folder) & ADDED == expected
    else:  # as of a stream without a split to evaluate on
        shutil.copytree(finished[0], folder)
        metrics = json.loads((folder / 'metrics.json').read_text())
        (folder / 'metrics.json').write_text(json.dumps({**metrics, 'mean': None, 'cls': None, 'dist': None}))
    finish.discard_findings(folder)
    assert not names(folder) & ADDED
    done = run_script(folder, script='analyze.py')
    assert last_json(done) == {} and names(folder) & ADDED == expected


def test_measures_are_printed_though_the_page_cannot_be_written(finished, tmp_path):
    copy = shutil.copytree(finished[0], tmp_path / 'copy')
    shutil.rmtree(copy / 'plots')
    (copy / 'plots').write_text('in the way')
    done = run_script(copy / 'last.pth.tar', '--num-images', '20', script='analyze.py')
    assert last_json(done)['num_images'] == 20 and 'The report was not written' in done.stderr


def test_analyze_writes_the_page_again(finished):
    folder, _ = finished
    before = (folder / 'report.html').read_bytes()
    (folder / 'report.html').unlink()
    done = run_script(folder, '--num-images', '20', script='analyze.py')
    assert f'Report: {folder}/report.html' in done.stderr
    assert (folder / 'report.html').read_bytes() != before, 'of 20 images now'
