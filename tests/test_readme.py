"""What the README and the docs say is what the code does."""
import re

import pytest
import yaml
from conftest import ROOT

from timm_deitlt.settings.layers import recipe_names
from timm_deitlt.version import __version__

README = (ROOT / 'README.md').read_text()


def test_readme_is_read_in_ten_minutes():
    assert 1200 <= len(README.split()) <= 2000 and '<details>' not in README


@pytest.mark.parametrize('page', ['README.md', 'docs/api.md'])
def test_python_example_runs(page):
    code = re.search(r'```python\n(.*?)```', (ROOT / page).read_text(), re.S).group(1)
    assert len(code.strip().splitlines()) <= 11
    exec(compile(code, page, 'exec'), {})


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
