"""Pages of the docs that are made from the code when the docs are built: flags, recipes, contributing, plots."""
import argparse
import re
from pathlib import Path

import griffe
from mkdocs.structure.files import File

from timm_deitlt.settings.flags import FLAGS, REFUSED
from timm_deitlt.settings.flags.own import OWN_FLAGS
from timm_deitlt.settings.layers import build_parser, recipe_names, recipe_text

ROOT = Path(__file__).parents[1]
FIGURES = '<!-- quick start figures -->'
GENERATED = 'Generated when these pages are built.'
FOLDERS = {
    '': 'To copy',
    'digits': 'The quick start: scikit-learn digits',
    'fashion_mnist': 'Fashion-MNIST',
    'cifar10_if100': 'Rows of the paper: CIFAR-10, imbalance factor 100',
    'cifar10_if50': 'Rows of the paper: CIFAR-10, imbalance factor 50',
    'cifar100_if100': 'Rows of the paper: CIFAR-100, imbalance factor 100',
    'cifar100_if50': 'Rows of the paper: CIFAR-100, imbalance factor 50',
    'imagenet_lt': 'Rows of the paper: ImageNet-LT',
    'inat18': 'Rows of the paper: iNaturalist 2018',
    'cifar10': 'CIFAR-10: small data, and what is below the rows',
    'cifar100': 'CIFAR-100: small data, and what is below the rows',
    'teachers': 'What a name of --teacher adds',
    'default': 'Below all others',
}
IN_FULL = ('own_data', 'default/student', 'default/teacher')


class Examples(griffe.Extension):
    """Show the example of a docstring as code: griffe knows the section by its plural."""

    def on_object(self, *, obj, **kwargs):
        if obj.docstring:
            obj.docstring.value = re.sub(r'^Example:$', 'Examples:', obj.docstring.value, flags=re.M)


def on_files(files, config):
    """Add the generated pages, and the committed plots of the studies."""
    pages = {'flags.md': flags_page(), 'recipes.md': recipes_page(), 'contributing.md': contributing_page()}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    for plot in sorted((ROOT / 'results').glob('*/plots/*.png')):
        name = f'assets/{plot.parent.parent.name}_{plot.name}'
        files.append(File.generated(config, name, abs_src_path=str(plot)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Put in the README's figures of the quick start; let tables that ablate.py wrote be read as Markdown."""
    if page.file.src_uri == 'index.md':
        markdown = markdown.replace(FIGURES, quick_start_figures())
    markdown = re.sub(r'^<!-- (?:study|end) \w+ -->$', '', markdown, flags=re.M)
    return markdown.replace('<details>', '<details markdown="1">')


def quick_start_figures() -> str:
    """What the README says between its two marks."""
    _, found, rest = (ROOT / 'README.md').read_text(encoding='utf-8').partition(FIGURES)
    text, closed, _ = rest.partition(FIGURES.replace('quick', 'end quick'))
    if not found or not closed:
        raise ValueError(f'README.md needs the figures of the quick start between {FIGURES} and its end mark.')
    return text


def flags_page() -> str:
    """The page of flags: ours, timm's, and those of timm that are refused."""
    shown = {group.title: group._group_actions for group in build_parser()._action_groups}
    lines = [
        '# Flags', '',
        'Which flag does what? `train.py` takes the flags of timm\'s own training script, and ours. Every flag is also '
        'a key of a [recipe](recipes.md) or config file, with `_` in place of `-`. The command line wins over the '
        'config file, and the config file wins over the recipes. `python train.py --help` prints this list too.', '',
        'Defaults stand in brackets. A recipe may set another value; the log says at the start which file set what. '
        f'{GENERATED}', '']
    for title in [*OWN_FLAGS, *(title for title in FLAGS if title not in OWN_FLAGS)]:
        lines += [f'## {title[:1].upper()}{title[1:]}', '']
        lines += _table(('flag', 'meaning'), [(_names(action), _text(action.help)) for action in shown[title]])
    reasons = {}
    for flag, reason in REFUSED.items():
        reasons.setdefault(reason, []).append(f'`{flag}`')
    lines += [
        '## Refused', '',
        'These flags of timm are not supported. `train.py` stops and prints the reason.', '']
    lines += _table(('flag', 'reason, and what to use'), [
        (' '.join(flags), _text(reason)) for reason, flags in reasons.items()])
    return '\n'.join(lines)


def recipes_page() -> str:
    """The page of recipes: what each is, by folder, from the comment at its top."""
    by_folder = {}
    for name in recipe_names():
        by_folder.setdefault(name.rpartition('/')[0], []).append(name)
    if unknown := set(by_folder) - set(FOLDERS):
        raise ValueError(f'FOLDERS in docs/hooks.py lacks a title for the recipes in {", ".join(sorted(unknown))}.')
    lines = [
        '# Recipes', '',
        'Which settings come ready made? A recipe is a YAML file of [flags](flags.md). Start one by name, and change '
        'what you like on the command line:', '',
        '```bash', 'python train.py -c cifar100_if100/deit_lt_base --data-dir DIR --epochs 600', '```', '',
        'Settings come in layers, and a later layer wins: `default/student` or `default/teacher`, then the recipe of '
        'that name in the folder of the data set, then what `-c` names, then the command line. Without `-c` the data '
        'set and the model choose the layers. If you change the number of epochs, epochs that a recipe plans (such as '
        'the start of DRW) are scaled with it. `--dry-run` shows the result and trains nothing.', '',
        f'The files lie in `timm_deitlt/recipes/`; each names its source. {GENERATED}', '']
    for folder, title in FOLDERS.items():
        lines += [f'## {title}', '']
        lines += _table(('recipe', 'what it is'), [(f'`{name}`', _purpose(name)) for name in by_folder[folder]])
    for name in IN_FULL:
        lines += [f'## {name} in full', '', '```yaml', recipe_text(name).strip(), '```', '']
    return '\n'.join(lines)


def contributing_page() -> str:
    """CONTRIBUTING.md, whose links start at the root of the project."""
    text = (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8')
    return re.sub(r'\]\(docs/', '](', text)


def _purpose(name: str) -> str:
    comment = re.match(r'(?:#.*\n)+', recipe_text(name)).group()
    text = ' '.join(line.lstrip('# ') for line in comment.splitlines())
    purpose, *rest = re.split(r' (?=Launch: |Expected: |Source: )', text)
    return _text(' '.join([purpose, *(part for part in rest if part.startswith('Expected: '))]))


def _names(action: argparse.Action) -> str:
    names = ' / '.join(f'`{name}`' for name in action.option_strings)
    return names + (f' `{{{", ".join(map(str, action.choices))}}}`' if action.choices else '')


def _text(text: str) -> str:
    text = re.sub(r'(?<![\w`/-])(--?[a-z][\w-]*)', r'`\1`', text)
    return text.replace('|', '\\|').replace('*', '\\*').replace('<', '&lt;')


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    return [f'| {" | ".join(row)} |' for row in (head, ['---'] * len(head), *rows)] + ['']
