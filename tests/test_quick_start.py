"""The README's first command at its real size."""
import os

import pytest
from conftest import last_json, run_script

COMMAND = ('--model', 'deit_lt_small', '--teacher', 'resnet32_sam')


@pytest.mark.slow
def test_quick_start_trains_a_teacher_and_a_student_that_know_the_digits(tmp_path):
    threads = {'OMP_NUM_THREADS': str(os.cpu_count())}
    done = run_script(*COMMAND, cwd=tmp_path, env=threads)
    result = last_json(done)
    assert result['data']['train_counts'] == [140, 108, 83, 64, 50, 38, 30, 23, 18, 14]
    assert sum(result['data']['test_counts']) == 340
    assert result['teacher']['source'] == 'trained'
    assert result['mean']['top1'] >= 80
    assert result['mean']['tail'] >= 80 or result['dist']['tail'] >= result['cls']['tail'] + 10

    folder = next((tmp_path / 'output' / 'train').iterdir())
    assert {'report.html', 'analysis.json', 'signatures.json'} <= {path.name for path in folder.iterdir()}
    assert len(list((folder / 'plots').glob('*.png'))) == 12
    assert f'Report: {folder.relative_to(tmp_path)}/report.html' in done.stderr

    again = run_script(*COMMAND, '--stop-epoch', '1', cwd=tmp_path, env=threads)
    assert last_json(again)['teacher']['source'] == 'cache'
