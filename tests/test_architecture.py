"""Imports go down only, and importing the package costs little."""
import ast
from pathlib import Path

from warm import torch_process

PACKAGE = Path(__file__).parents[1] / 'timm_deitlt'
FLOORS = [
    ['version', 'benchmarks'],
    ['utils', 'settings'],
    ['models', 'data', 'loss', 'optim', 'evaluation', 'analysis'],
    ['task', 'report'],
    ['engine'],
    ['run'],
    ['hub', 'studies'],
    ['cli'],
]
DOORS = {'__init__', '__main__'}
ENTRIES = {'__init__.py', '__main__.py', 'benchmarks.py', 'version.py', 'py.typed', 'recipes'}
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def imported_rooms(path):
    """Rooms of the package that a module imports, type-checking imports left out."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(node) for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and getattr(branch.test, 'id', '') == 'TYPE_CHECKING'
        for node in ast.walk(branch)
    }
    depth = len(path.relative_to(PACKAGE).parts)
    for node in ast.walk(tree):
        if id(node) in skipped or not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        names = [name.name for name in node.names]
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            yield from [node.module.split('.')[0]] if node.module else names
            continue
        if isinstance(node, ast.ImportFrom):
            names = [] if node.level else [node.module]
        absolute = [name for name in names if name.startswith('timm_deitlt')]
        assert not absolute, f'{path} imports the package by its absolute name'


def test_every_module_has_a_floor():
    rooms = {room(path) for path in PACKAGE.rglob('*.py')} - DOORS
    assert rooms == set(FLOOR)


def test_imports_go_down_only():
    for path in PACKAGE.rglob('*.py'):
        here = room(path)
        if here in DOORS:
            continue
        for there in imported_rooms(path):
            assert FLOOR[there] < FLOOR[here] or there == here, f'{path.name} ({here}) may not import {there}'


def test_nothing_else_stands_at_the_root():
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {'__pycache__', 'recipes'}
    assert rooms == set(FLOOR) - {'version', 'benchmarks'}
    assert {path.name for path in PACKAGE.iterdir()} - {'__pycache__'} == rooms | ENTRIES


def test_every_room_says_what_lives_there():
    for name in set(FLOOR) - {'version', 'benchmarks'}:
        text = ast.get_docstring(ast.parse((PACKAGE / name / '__init__.py').read_text()))
        assert text and len(text.splitlines()) <= 9, name


LIGHT = '''
import sys, timm, timm.task, torchvision
heavy = {'sklearn', 'scipy', 'matplotlib', 'jinja2', 'pandas', 'tensorboard', 'wandb'}
for name in [name for name in sys.modules if name.partition('.')[0] in heavy]:
    del sys.modules[name]

class Refuse:
    def find_spec(name, path=None, target=None):
        assert name not in heavy, name

sys.meta_path.insert(0, Refuse)
import timm_deitlt, timm_deitlt.data
'''


def test_importing_the_package_loads_nothing_heavy_beyond_timm(tmp_path):
    (tmp_path / 'light.py').write_text(LIGHT)
    done = torch_process().run(tmp_path / 'light.py')
    assert done.returncode == 0, done.stderr
