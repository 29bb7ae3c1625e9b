"""The command `timm-deitlt`: its verbs, its help at once, its recipes."""
import os
import subprocess
import sys
from configparser import ConfigParser

import pytest
import yaml
from conftest import ROOT, run_script

from timm_deitlt.cli import parsers, verbs
from timm_deitlt.evaluation.fusion import FUSIONS
from timm_deitlt.settings.layers import load_recipe, recipe_names
from timm_deitlt.studies.study import study_names
from timm_deitlt.version import __version__

COMMAND = ROOT / 'timm_deitlt_command.py'
IMPORTED = (
    f'import runpy, sys\nsys.argv = ["timm-deitlt", *sys.argv[1:]]\nsys.path.insert(0, {str(ROOT)!r})\ntry:\n'
    f'    runpy.run_path({str(COMMAND)!r}, run_name="__main__")\nfinally:\n'
    '    print(sorted({"torch", "timm", "numpy"} & set(sys.modules)))\n')


def command(*args, **options):
    return run_script(*args, script=COMMAND.name, **options)


def test_help_names_every_verb():
    done = subprocess.run([sys.executable, COMMAND, '--help'], capture_output=True, text=True, check=True)
    assert done.stdout.startswith('usage: timm-deitlt VERB')
    assert all(f'\n  {verb}' in done.stdout for verb in verbs.VERBS)


@pytest.mark.parametrize(
    'args', [['--help'], ['recipes'], ['--version'], [], *([verb, '--help'] for verb in verbs.VERBS)], ids=str)
def test_what_needs_no_model_imports_neither_torch_nor_timm(args):
    done = subprocess.run([sys.executable, '-c', IMPORTED, *args], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == '[]', done.stderr


def test_parsers_offer_what_the_rooms_below_have():
    assert set(parsers.PARSERS) == set(verbs.VERBS)
    assert tuple(FUSIONS) == parsers.FUSIONS
    assert f'{", ".join(study_names())}, or a YAML file' in ' '.join(parsers.ablate_parser().format_help().split())


@pytest.mark.parametrize(('line', 'words'), [
    ('timm-deitlt pre', ['predict']), ('timm-deitlt predict run --fusion mean_', ['mean_probs', 'mean_adjusted']),
    ('timm-deitlt train --drw-o', ['--drw-on'])])
def test_the_shell_completes_verbs_flags_and_values(line, words, tmp_path):
    pytest.importorskip('argcomplete')
    answer = tmp_path / 'answer'
    subprocess.run([sys.executable, COMMAND], check=True, env={
        **os.environ, '_ARGCOMPLETE': '1', '_ARGCOMPLETE_IFS': '\n', '_ARGCOMPLETE_STDOUT_FILENAME': str(answer),
        'COMP_LINE': line, 'COMP_POINT': str(len(line))})
    assert answer.read_text().replace(' ', '').split('\n') == words


@pytest.mark.parametrize('verb', verbs.VERBS)
def test_every_verb_says_what_it_takes_under_its_own_name(verb):
    done = command(verb, '--help')
    assert done.stdout.startswith(f'usage: timm-deitlt {verb} ')


def test_python_m_does_the_same(tmp_path):
    (tmp_path / 'm.py').write_text('import runpy\nrunpy.run_module("timm_deitlt", run_name="__main__")\n')
    for args in (['--version'], ['--help'], ['recipes'], ['export', '--help']):
        assert run_script(*args, script=tmp_path / 'm.py').stdout == command(*args).stdout
    assert command('--version').stdout == f'timm-deitlt {__version__}\n'


@pytest.mark.parametrize(('verb', 'hint'), [
    ('predikt', 'did you mean predict?'), ('serve', 'use one of train, validate')])
def test_unknown_verb_is_one_line_with_what_is_meant(verb, hint):
    done = command(verb, 'x', check=False)
    assert done.returncode == 2 and done.stderr == done.stderr.splitlines()[0] + '\n'
    assert f"timm-deitlt: error: unknown verb '{verb}'; {hint}" in done.stderr


def test_errors_and_exit_codes_are_those_of_the_scripts(tmp_path):
    done = command('train', '--epochs', '0', check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, 'timm-deitlt train: error: --epochs must be at least 1, got 0\n')
    done = command('convert', 'nowhere.pth', tmp_path / 'out', check=False)
    assert done.returncode == 2 and done.stderr.startswith("timm-deitlt convert: error: There is no file 'nowhere.pth'")
    done = command('publish', tmp_path / 'nowhere', 'me/mine', check=False)
    assert done.returncode == 2 and done.stderr.startswith('timm-deitlt publish: error: There is no folder')


def test_wheel_has_the_command():
    config = ConfigParser()
    config.read(ROOT / 'setup.cfg')
    assert config['options.entry_points']['console_scripts'].strip() == 'timm-deitlt = timm_deitlt_command:main'
    assert config['options']['py_modules'] == 'timm_deitlt_command'


# Recipes

def test_recipes_are_listed_printed_and_copied(tmp_path):
    assert command('recipes').stdout.split() == recipe_names()
    text = command('recipes', 'own_data').stdout
    assert text == (ROOT / 'timm_deitlt' / 'recipes' / 'own_data.yaml').read_text()
    copy = tmp_path / 'mine.yaml'
    done = command('recipes', 'own_data', '-o', copy)
    assert f'-c {copy}' in done.stdout and copy.read_text() == text
    assert yaml.safe_load(text) and load_recipe(copy).values == load_recipe('own_data').values
    again = command('recipes', 'own_data', '-o', copy, check=False)
    assert again.returncode == 2 and 'exists: give a new file' in again.stderr


@pytest.mark.parametrize('args', [['--help'], ['recipes'], ['recipes', 'own_data']], ids=str)
def test_a_reader_that_leaves_ends_the_command_in_silence(args):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, COMMAND, *args], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (verbs.NO_READER, '')


def test_another_broken_pipe_is_an_error(monkeypatch):
    def breaks(argv):
        raise BrokenPipeError
    monkeypatch.setattr(verbs, '_call', breaks)
    with pytest.raises(BrokenPipeError):
        verbs.main([])


def test_a_recipe_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / 'file').touch()
    for path in (tmp_path / 'nowhere' / 'x.yaml', tmp_path / 'file' / 'x.yaml'):
        done = command('recipes', 'own_data', '-o', path, check=False)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
        assert f'{path} cannot be written (' in done.stderr


@pytest.mark.parametrize(('args', 'words'), [
    (['own_dta'], 'own_dta: no such file or recipe; did you mean own_data'), (['-o', 'x'], 'give its NAME'),
    ([str(COMMAND)], 'not valid YAML|expected a mapping')])
def test_what_is_no_recipe_is_refused(args, words, tmp_path):
    done = command('recipes', *args, check=False, cwd=tmp_path)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert any(word in done.stderr for word in words.split('|'))
