"""What the README says is what the code does."""
import re

from conftest import ROOT

from timm_deitlt.settings.layers import build_parser, recipe_names

README = (ROOT / 'README.md').read_text()


def test_python_example_runs():
    code = re.search(r'## Python\n```python\n(.*?)```', README, re.S).group(1)
    assert len(code.strip().splitlines()) <= 13
    exec(compile(code, 'README.md', 'exec'), {})


def test_table_of_flags_is_our_group_of_the_parser():
    group = next(group for group in build_parser()._action_groups if group.title == 'DeiT-LT')
    section = README.split('## Flags')[1].split('## ')[0]
    rows = dict(re.findall(r'^\| (`--.*?) \| (.*?) \|$', section, re.M))
    expected = {}
    for action in group._group_actions:
        names = ' / '.join(f'`{name}`' for name in action.option_strings)
        choices = f' `{{{", ".join(action.choices)}}}`' if action.choices else ''
        expected[names + choices] = action.help
    assert rows == expected


def test_every_teacher_recipe_is_in_the_table():
    for name in recipe_names():
        folder, _, kind = name.rpartition('/')
        if folder == 'teachers':
            assert f'`resnet32{"" if kind == "plain" else "_" + kind}`' in README


def test_files_it_links_to_exist():
    links = [link for link in re.findall(r'\]\(([^)#]+)\)', README) if '://' not in link]
    assert links
    assert all((ROOT / link).exists() for link in links)
