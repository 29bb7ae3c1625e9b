"""Words, numbers and blocks of Markdown for model cards."""
import re
from collections.abc import Sequence


def compare(own: float, other: float, less: str, equal: str, more: str) -> str:
    """One of three words, by how a number compares with another; rounding does not decide."""
    own, other = round(own, 6), round(other, 6)
    return less if own < other else more if own > other else equal


def short(number: float) -> str:
    """A number in few digits."""
    return f'{number:.1f}' if number >= 1 else f'{number:.2g}'


def numbers(values: Sequence[float]) -> str:
    """Numbers in a row."""
    return ' '.join(f'{value:.4g}' for value in values)


def escape(text: str) -> str:
    """The text in one line of Markdown, or in a cell of a table, as it is."""
    text = re.sub(r'([\\`*\[\]<>|~&$])', r'\\\1', ' '.join(text.split()))
    return re.sub(r'(?<![^\W_])_|_(?![^\W_])', r'\\_', text)  # inside a word it is harmless


def ticks(text: str, least: int) -> str:
    """A fence of backticks, longer than any in the text."""
    return '`' * max(least, 1 + max(map(len, re.findall('`+', text)), default=0))


def code(text: str) -> str:
    """The text as code in a line."""
    text = ' '.join(text.split())
    fence = ticks(text, 1)
    return f'{fence} {text} {fence}' if len(fence) > 1 else f'`{text}`'


def block(language: str, text: str) -> str:
    """The text as a block of code."""
    fence = ticks(text, 3)
    return f'{fence}{language}\n{text}\n{fence}'


def bullets(lines: Sequence[str]) -> str:
    """The lines that are not empty as a list."""
    return '\n'.join(f'- {line}' for line in lines if line)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a table, the first of them its head."""
    first, *others = (f'| {" | ".join(row)} |' for row in rows)
    return '\n'.join([first, '|---|' + '---:|' * (len(rows[0]) - 1), *others])
