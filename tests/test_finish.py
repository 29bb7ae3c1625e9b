"""The end of train.py: what it adds to the folder of a run, and that nothing it meets can cost the run."""
import json

import pytest
from conftest import TINY, TINY_TEACHER, last_json, run_script

from timm_deitlt import finish
from timm_deitlt.config import parse_args
from timm_deitlt.run import train

ADDED = {'analysis.json', 'attention.npz', 'signatures.json', 'report.html', 'plots'}


def names(folder):
    return {path.name for path in folder.iterdir()}


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A run with the report on: folder, finished process."""
    output = tmp_path_factory.mktemp('runs')
    done = run_script(
        *TINY, *TINY_TEACHER, '--report', '--epochs', '2', '--teacher-cache', output / 'teachers',
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


def test_no_report_leaves_the_run_alone(tmp_path):
    run_script(*TINY, '--teacher', 'none', '--epochs', '1', '--output', tmp_path, '--experiment', 'run')
    assert not ADDED & names(tmp_path / 'run')


@pytest.mark.parametrize('broken, kept', [('analyze', {'signatures.json', 'report.html', 'plots'}), ('write_report', {
    'analysis.json', 'attention.npz', 'signatures.json'})])
def test_a_failure_at_the_end_is_a_warning(tmp_path, monkeypatch, caplog, broken, kept):
    def fail(*args):
        raise RuntimeError('disk\nfull')

    monkeypatch.setattr(finish, broken, fail)
    output = ['--output', str(tmp_path), '--experiment', 'run']
    result = train(parse_args([*TINY, '--report', '--teacher', 'none', '--epochs', '1', *output]))
    assert result == json.loads((tmp_path / 'run' / 'metrics.json').read_text())
    assert names(tmp_path / 'run') & ADDED == kept
    assert '(RuntimeError: disk full): analyze.py RUN' in caplog.text


def test_a_cnn_and_a_run_without_evaluation_have_a_page_without_mechanisms(tmp_path):
    common = [*TINY, '--report', '--epochs', '1', '--output', str(tmp_path)]
    cnn = [option for option in common if option not in TINY[2:7]]
    run_script(*cnn, '--model', 'resnet20_cifar', '--experiment', 'cnn')
    assert names(tmp_path / 'cnn') & ADDED == {'signatures.json', 'report.html', 'plots'}


def test_analyze_writes_the_page_again(finished):
    folder, _ = finished
    before = (folder / 'report.html').read_bytes()
    (folder / 'report.html').unlink()
    done = run_script(folder, '--num-images', '20', script='analyze.py')
    assert f'Report: {folder}/report.html' in done.stderr
    assert (folder / 'report.html').read_bytes() != before, 'of 20 images now'
