"""What the README and the docs say is what the code does."""
import json
import re
import shlex
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev

import pytest
import yaml
from conftest import ROOT
from scipy.stats import t

from timm_deitlt.cli import parsers
from timm_deitlt.settings.checks import validate_args
from timm_deitlt.settings.layers import parse_args, recipe_names
from timm_deitlt.studies.study import study_names
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
        for file in (Path(value) for flag, value in pairwise(given) if flag == '--teacher-checkpoint'):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        try:
            if verb == 'train':
                validate_args(parse_args(given))
            else:
                args = getattr(parsers, f'{verb}_parser')().parse_args(given)
                assert verb != 'ablate' or args.study in study_names()
        except (FileNotFoundError, SystemExit, ValueError) as error:
            raise AssertionError(f'{page}: {verb} {" ".join(given)}: {error}') from error


def measured(arm, of, group='top1', subsets='*'):
    """A figure of an expert, a fusion or the teacher in each committed run of STUDY/ARM."""
    found = []
    for path in sorted((ROOT / 'results').glob(f'{arm}-subset{subsets}-seed*.json')):
        result = json.loads(path.read_text())
        found.append({**result['metrics'], **result['fusion']}[of][group])
    assert len(found) >= 3, arm
    return found


def spread(values):
    return f'{fmean(values):.1f} ± {stdev(values):.1f}'


def paired(first, second, sign=''):
    """Mean of paired differences ± half of its 95 % interval by Student's t."""
    differences = [a - b for a, b in zip(first, second, strict=True)]
    half = t.ppf(.975, len(differences) - 1) * stdev(differences) / len(differences) ** .5
    return f'{fmean(differences):{sign}.1f} ± {half:.1f}'


def test_figures_of_the_readme_are_those_of_the_committed_results():
    def both(arm, *group):
        return measured(arm, 'mean_adjusted', *group), measured(arm, 'teacher', *group)

    recipe, reversed_order = 'small_data_recipe/recipe', 'small_data_reversed/recipe'
    said = [
        f'**The recipe for small data trains a student that is {paired(*both(recipe))} points above its CNN teacher**']
    for name, which in (('teacher, ResNet-32, 60 epochs', 1), ('**student, ViT of 0.68 M parameters**', 0)):
        overall, *groups = (spread(both(recipe, group)[which]) for group in ('top1', 'head', 'mid', 'tail'))
        said.append(f'| {name} | {overall if which else f"**{overall}**"} | {" | ".join(groups)} |')
    student, teacher = ([classes[6] for classes in runs] for runs in both(recipe, 'per_class'))
    others = [[fmean(classes[:6] + classes[7:]) for classes in runs] for runs in both(recipe, 'per_class')]
    said += [
        f'{(fmean(student) - fmean(teacher)) / 10:.1f} of the {paired(*both(recipe)).split()[0]} points are one class, '
        f'shirts, of which the teacher recognises {fmean(teacher):.1f} % and the student {fmean(student):.1f} %. Over '
        f'the other nine classes we could not show a gain ({paired(*others)})',
        f'the student is {paired(*both(reversed_order))} points above its teacher (n = 3)',
        f'{paired(*both("small_data_digits/factor10"), "+")} points at imbalance factor 10, '
        f'{paired(*both("small_data_digits/factor20"), "+")} at 20 (n = 3 each)',
        '({} against {}, n = 3)'.format(*map(spread, both('small_data_digits/factor10', 'tail'))),
    ]
    quick = [spread(measured('digits/sam_both', of, group)) for of in ('mean', 'teacher') for group in ('top1', 'tail')]
    said.append('the student has {} overall and {} on the tail, its teacher {} and {}'.format(*quick))
    plain = [
        spread(measured(f'fashion_mnist/{arm}', 'mean', subsets=0)) for arm in ('sam_drw', 'vit', 'deit', 'vit_drw')]
    said.append('DeiT-LT reaches {}, a ViT {}, DeiT {} and ViT + DRW {} (n = 3)'.format(*plain))
    assert [words for words in said if words not in README] == []


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
