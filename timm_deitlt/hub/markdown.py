"""Templates for Markdown: every value that a template shows is escaped, unless a filter says that it is Markdown."""
import re
from collections.abc import Sequence
from pathlib import Path

import jinja2
from tabulate import tabulate


class Markdown(str):
    """Text that is Markdown already."""


def escape(value: object) -> Markdown:
    """A value in one line of Markdown, or in a cell of a table, that looks as it is."""
    if isinstance(value, Markdown):
        return value
    text = re.sub(r'([\\`*\[\]<>|~&$])', r'\\\1', ' '.join(str(value).split()))
    return Markdown(re.sub(r'(?<![^\W_])_|_(?![^\W_])', r'\\_', text))  # inside a word it is harmless


def code(text: str) -> Markdown:
    """A text as code in a line."""
    text = ' '.join(text.split())
    fence = _fence(text, 1)
    return Markdown(f'{fence} {text} {fence}' if len(fence) > 1 else f'`{text}`')


def block(text: str, language: str) -> Markdown:
    """A text as a block of code."""
    fence = _fence(text, 3)
    return Markdown(f'{fence}{language}\n{text}\n{fence}')


def _fence(text: str, least: int) -> str:
    return '`' * max(least, 1 + max(map(len, re.findall('`+', text)), default=0))  # longer than any in the text


def table(rows: Sequence[Sequence[str]]) -> Markdown:
    """Rows as a table, the first of them its head."""
    head, *others = ([escape(cell) for cell in row] for row in rows)
    return Markdown(tabulate(
        others, head, tablefmt='pipe', disable_numparse=True, colalign=('left', *['right'] * (len(head) - 1))))


def environment(folder: Path) -> jinja2.Environment:
    """Templates of a folder, in which `{{ value }}` is escaped, and `{{ value | raw }}` is not."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), undefined=jinja2.StrictUndefined, finalize=escape, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True)
    templates.filters.update(code=code, block=block, table=table, raw=Markdown)
    return templates
