"""The wheel holds everything: an editable install hides what is missing from it."""
import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser

import pytest
from conftest import ROOT, last_json
from PIL import Image
from warm import torch_process

from timm_deitlt.settings.layers import recipe_names
from timm_deitlt.version import __version__

SOURCES = ('setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE', 'timm_deitlt_command.py')


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """A wheel built from a copy of the sources, by the build backend of pyproject.toml and without a network."""
    source, output = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('wheel')
    for name in SOURCES:
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / 'timm_deitlt', source / 'timm_deitlt', ignore=shutil.ignore_patterns('__pycache__'))
    code = f'from setuptools import build_meta; build_meta.build_wheel({str(output)!r})'
    env = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    subprocess.run([sys.executable, '-c', code], cwd=source, env=env, check=True, capture_output=True)
    path, = output.glob('*.whl')
    return path


@pytest.fixture(scope='module')
def unpacked(wheel, tmp_path_factory):
    path = tmp_path_factory.mktemp('unpacked')
    with zipfile.ZipFile(wheel) as file:
        file.extractall(path)
    return path


def test_wheel_holds_every_file_of_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as file:
        held = {name for name in file.namelist() if '.dist-info/' not in name}
    ours = {path.relative_to(ROOT).as_posix() for path in (ROOT / 'timm_deitlt').rglob('*') if path.is_file()}
    assert held == {name for name in ours if '__pycache__' not in name} | {'timm_deitlt_command.py'}
    assert 'timm_deitlt/py.typed' in held and 'timm_deitlt/run/build/model.py' in held
    assert {f'timm_deitlt/recipes/{name}.yaml' for name in recipe_names()} <= held


def test_metadata_of_the_wheel_name_version_license_and_dependencies(wheel):
    assert wheel.name == f'timm_deitlt-{__version__}-py3-none-any.whl'
    with zipfile.ZipFile(wheel) as file:
        metadata = file.read(f'timm_deitlt-{__version__}.dist-info/METADATA').decode()
        assert any(name.endswith('LICENSE') for name in file.namelist())
    for line in (
            r'License(-Expression)?: Apache-2\.0', r'Requires-Dist: timm>=1\.0\.31', r'Requires-Dist: torch>=2\.6',
            'Provides-Extra: test', 'Provides-Extra: report',
            'Provides-Extra: export', 'Provides-Extra: parquet'):
        assert re.search(f'^{line}$', metadata, re.M), line


def test_wheel_alone_resolves_every_recipe_and_registers_its_names(unpacked, tmp_path):
    code = '''
import timm, timm.optim
import timm_deitlt
from timm_deitlt.settings.layers import load_recipe, recipe_names
print(timm_deitlt.__file__)
print(timm.is_model('deit_lt_tiny'), 'samsgd' in timm.optim.list_optimizers())
print(*(name for name in recipe_names() if load_recipe(name).is_recipe))
'''
    (tmp_path / 'child.py').write_text(code)
    done = torch_process().run(tmp_path / 'child.py', cwd=tmp_path, env={'PYTHONPATH': str(unpacked)})
    assert done.returncode == 0, done.stderr[-3000:]
    file, model, optimizer, *recipes = done.stdout.split()
    assert file == str(unpacked / 'timm_deitlt' / '__init__.py')
    assert (model, optimizer) == ('True', 'True')
    assert recipes == recipe_names() and 'digits/student' in recipes


@pytest.mark.slow
def test_wheel_alone_trains_predicts_and_exports_by_its_command(unpacked, tmp_path):
    entries, = unpacked.glob('*.dist-info/entry_points.txt')
    module, function = re.search(r'^timm-deitlt = (\w+):(\w+)$', entries.read_text(), re.M).groups()
    # as pip writes it
    (tmp_path / 'timm-deitlt').write_text(
        f'import sys\nfrom {module} import {function}\nif __name__ == "__main__":\n    sys.exit({function}())\n')
    Image.new('L', (8, 8), 200).save(tmp_path / 'new.png')

    def command(*args):
        done = torch_process().run(tmp_path / 'timm-deitlt', *args, cwd=tmp_path, env={'PYTHONPATH': str(unpacked)})
        assert done.returncode == 0, done.stderr[-3000:]
        return done

    done = command(
        'train', '--model', 'deit_lt_tiny', '--teacher', 'test_resnet_sam', '--teacher-epochs', '1', '--epochs', '2',
        '--stop-epoch', '2', '--experiment', 'quick', '--teacher-cache', 'cache', '--no-report')
    assert str(ROOT) not in done.stderr and last_json(done)['epochs_trained'] == 2
    assert len(last_json(command('predict', 'output/train/quick', 'new.png', '--experts', '-o', 'out.csv'))) > 3
    assert (tmp_path / 'out.csv').read_text().splitlines()[1].startswith('new.png,')
    exported = last_json(command('export', 'output/train/quick', 'exported'))
    assert exported['timm_architecture'] == 'deit_tiny_distilled_patch16_224'
    assert last_json(command('predict', 'exported', 'new.png'))['images'] == 1
    assert command('recipes').stdout.split() == recipe_names()


def test_every_package_that_is_imported_is_a_dependency():
    config = ConfigParser()
    config.read(ROOT / 'setup.cfg')
    required = set(re.findall(r'^[\w-]+', config['options']['install_requires'], re.M))
    distributions = {  # torchvision needs Pillow itself
        'yaml': 'pyyaml', 'sklearn': 'scikit-learn', 'PIL': 'torchvision', 'huggingface_hub': 'huggingface-hub'}
    # asked for by a flag, which names the package to install
    optional = {
        'wandb', 'trackio', 'cv2', 'onnxruntime', 'pyarrow', 'tifffile', 'datasets', 'webdataset', 'argcomplete'}
    for extra, names in (
            ('export', ('onnx', 'onnxruntime', 'onnxscript')), ('parquet', ('pyarrow',)),
            ('completion', ('argcomplete',))):
        assert all(re.search(f'^{name}\\b', config['options.extras_require'][extra], re.M) for name in names)
    assert 'opencv-python-headless' in config['options.extras_require']['opencv']
    imported = set()
    for path in (ROOT / 'timm_deitlt').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition('.')[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(node.module.partition('.')[0])
    third_party = imported - set(sys.stdlib_module_names) - optional
    assert {'timm', 'torch'} <= third_party
    assert {distributions.get(name, name) for name in third_party} <= required
