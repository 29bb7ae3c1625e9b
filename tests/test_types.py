"""The package says that it is typed (py.typed): what users write with its public names passes mypy."""
import re
import subprocess
import sys

import pytest
from conftest import ROOT

PUBLIC = re.findall(r' as (\w+)$', (ROOT / 'timm_deitlt/__init__.py').read_text(), re.M)
# timm says of its models only that they are modules of torch
NARROWED = 'assert isinstance(student, timm_deitlt.models.DeiTLT)\n'
REST = '''
shots = timm_deitlt.Shots.from_counts([500, 50, 5])
label_task = timm_deitlt.ClassifierTask(teacher, torch.nn.CrossEntropyLoss(), shots=shots).train()
label_task.set_epoch(0)
evaluator: timm_deitlt.ShotEvaluator = label_task.create_evaluator()
optimizer = timm_deitlt.SAM(teacher.parameters(), torch.optim.SGD, rho=.05, lr=.1)
'''


@pytest.mark.slow
def test_python_of_the_readme_passes_mypy_with_every_public_name_imported(tmp_path):
    program, = re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.S)
    *lines, last = program.splitlines(keepends=True)
    (tmp_path / 'program.py').write_text(''.join([
        '# mypy: disallow-untyped-calls, warn-unused-ignores\n', 'import timm_deitlt\n',
        f'from timm_deitlt import {", ".join(PUBLIC)}\n', *lines, NARROWED, last, REST]))
    done = subprocess.run(
        [sys.executable, '-m', 'mypy', str(tmp_path / 'program.py')], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
