"""What the README and the docs say is what the code does."""
import re
import shlex
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from timm_deitlt.cli import parsers
from timm_deitlt.settings.checks import validate_args
from timm_deitlt.settings.layers import parse_args, recipe_names
from timm_deitlt.version import __version__

README = (ROOT / 'README.md').read_text()
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]


def test_readme_is_read_in_ten_minutes():
    assert 1200 <= len(README.split()) <= 2000 and '<details>' not in README


@pytest.mark.parametrize('page', ['README.md', 'docs/api.md'])
def test_python_example_runs(page):
    code = re.search(r'```python\n(.*?)```', (ROOT / page).read_text(), re.S).group(1)
    assert len(code.strip().splitlines()) <= 11
    exec(compile(code, page, 'exec'), {})


def commands(text):
    """Our commands in the bash blocks of a page: name and arguments."""
    for block in re.findall(r'```bash\n(.*?)```', text, re.S):
        for line in block.replace('\\\n', ' ').splitlines():
            if '$@' in line:  # a script that takes the rest
                continue
            words = shlex.split(re.sub(r'\$\w+', '1', line).replace(';', ' ; '), comments=True)
            for start, word in enumerate(words):
                verb = words[start + 1] if word == 'timm-deitlt' else ''
                if verb or word.removeprefix('hfhub/') in (
                        'train.py', 'validate.py', 'analyze.py', 'ablate.py', 'convert.py', 'publish.py'):
                    given = words[start + (2 if verb else 1):]
                    yield verb or Path(word).stem, given[:given.index(';')] if ';' in given else given


def test_commands_of_the_docs_are_taken_by_their_parsers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written, = re.findall(r'```yaml\n(.*?)```', (ROOT / 'docs' / 'teachers.md').read_text(), re.S)
    (tmp_path / 'teacher.yaml').write_text(written)
    found = [(page.name, *command) for page in PAGES for command in commands(page.read_text())]
    assert len(found) > 50 and {verb for _, verb, _ in found} == {
        'train', 'validate', 'analyze', 'ablate', 'convert', 'publish', 'predict', 'export'}
    for page, verb, given in found:
        try:
            if verb == 'train':
                validate_args(parse_args(given))
            else:
                getattr(parsers, f'{verb}_parser')().parse_args(given)
        except FileNotFoundError:  # of a reader
            continue
        except (SystemExit, ValueError) as error:
            raise AssertionError(f'{page}: {verb} {" ".join(given)}: {error}') from error


def test_every_teacher_recipe_is_in_the_table():
    teachers = (ROOT / 'docs' / 'teachers.md').read_text()
    for name in recipe_names():
        folder, _, kind = name.rpartition('/')
        if folder == 'teachers':
            assert f'`resnet32{"" if kind == "plain" else "_" + kind}`' in teachers


@pytest.mark.parametrize('page', ['README.md', 'CONTRIBUTING.md'])
def test_files_that_are_named_or_linked_exist(page):
    text = (ROOT / page).read_text()
    links = {link for link in re.findall(r'\]\(([^)#]+)\)', text) if '://' not in link}
    links |= set(re.findall(r'`((?:timm_deitlt|docs|tests|hfhub)/[a-z0-9_/]+\.\w+)`', text))
    assert page == 'CONTRIBUTING.md' or 'docs/method.md' in links
    assert [link for link in sorted(links) if not (ROOT / link).exists()] == []


def test_contributing_names_every_room():
    rooms = set(re.findall(r'^\| \d \| `(\w+)` \|', (ROOT / 'CONTRIBUTING.md').read_text(), re.M))
    package = ROOT / 'timm_deitlt'
    assert rooms == {path.parent.name for path in package.glob('*/__init__.py')} | {'benchmarks'}


def test_citation_has_the_version():
    assert yaml.safe_load((ROOT / 'CITATION.cff').read_text())['version'] == __version__
