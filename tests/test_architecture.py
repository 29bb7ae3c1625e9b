"""Imports go down only, and importing the package costs little."""
import ast
from pathlib import Path

from warm import torch_process

PACKAGE = Path(__file__).parents[1] / 'timm_deitlt'
FLOORS = [
    ['version', 'benchmarks', 'hub', 'flags', 'config', 'checks'],
    ['models', 'data', 'optim', 'loss', 'evaluation', 'checkpoint', 'analysis', 'fusion',
     'signatures'],
    ['task', 'paco'],
    ['meter', 'engine', 'progress', 'folder', 'fit'],
    ['teachers', 'teacher_file', 'report'],
    ['build', 'results', 'dry_run', 'finish', 'run', 'validation', 'mechanisms'],
    ['publishing', 'ablation'],
    ['cli'],
]
# modules of one floor that may import each other, downward in this order
PARTS = {
    'config': {'flags', 'benchmarks'},
    'checks': {'config'},
    'paco': {'task'},
    'progress': {'meter'},
    'engine': {'meter', 'progress'},
    'fit': {'engine', 'folder', 'progress'},
    'results': {'build'},
    'teacher_file': {'teachers'},
    'dry_run': {'build'},
    'finish': {'mechanisms'},
    'run': {'build', 'dry_run', 'finish', 'results'},
    'validation': {'build', 'results'},
    'mechanisms': {'build', 'results', 'validation'},
}
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
        if id(node) in skipped or not isinstance(node, ast.ImportFrom):
            continue
        if node.level == depth:
            yield from [node.module.split('.')[0]] if node.module else [name.name for name in node.names]
        elif node.level == 0 and (node.module or '').startswith('timm_deitlt'):
            raise AssertionError(f'{path} imports the package by its absolute name')


def test_every_module_has_a_floor():
    rooms = {room(path) for path in PACKAGE.rglob('*.py')} - {'__init__'}
    assert rooms == set(FLOOR)


def test_imports_go_down_only():
    for path in PACKAGE.rglob('*.py'):
        here = room(path)
        if here == '__init__':
            continue
        for there in imported_rooms(path):
            down = FLOOR[there] < FLOOR[here] or there in PARTS.get(here, ())
            assert down or there == here, f'{path.name} ({here}) may not import {there}'


def test_floor_one_never_imports_its_neighbours():
    for path in PACKAGE.rglob('*.py'):
        if FLOOR.get(room(path)) == 1:
            neighbours = {there for there in imported_rooms(path) if FLOOR[there] == 1} - {room(path)}
            assert not neighbours, f'{path} imports {neighbours}'


LIGHT = '''
import sys, timm, timm.task, torchvision
heavy = {'sklearn', 'scipy', 'matplotlib', 'pandas', 'tensorboard', 'wandb'}
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
