"""Tables of figures, for terminals and in Markdown."""
from collections.abc import Sequence

from tabulate import tabulate


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equal length as plain text: the first column to the left, the others to the right."""
    table = tabulate(
        rows, tablefmt='plain', disable_numparse=True, colalign=('left', *['right'] * (len(rows[0]) - 1)))
    return '\n'.join(line.rstrip() for line in table.splitlines())


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[int] = (0,)) -> str:
    """A table in Markdown. The columns with numbers in `words` are aligned to the left, the others to the right."""
    safe = [[cell.replace('|', r'\|') for cell in row] for row in rows]
    align = ['left' if column in words else 'right' for column in range(len(head))]
    return tabulate(safe, head, tablefmt='pipe', disable_numparse=True, colalign=align)
