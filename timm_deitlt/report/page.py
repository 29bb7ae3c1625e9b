"""The skeleton of a page: HTML that needs no network and no JavaScript, and one small style sheet."""
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

# Colours by role in light and dark; plots are drawn in the light ones, which are replaced by these variables. Those of
# CLS, DIST and the teacher are of Okabe and Ito's palette, which the colour-blind can tell apart.
# Source: https://jfly.uni-koeln.de/color/
LIGHT = {
    'bg': '#ffffff', 'box': '#f5f5f3', 'fg': '#1c1c1e', 'muted': '#5b5b60', 'grid': '#dfdfdb', 'count': '#ebebe8',
    'count-edge': '#b4b4ae', 'mean': '#101012', 'cls': '#0072b2', 'dist': '#d55e00', 'teacher': '#009e73',
    'first': '#b65a8e', 'second': '#a87500', 'warn': '#fff4d6', 'warn-edge': '#e69f00',
}
DARK = {
    'bg': '#16181b', 'box': '#202327', 'fg': '#ececea', 'muted': '#a9a9ae', 'grid': '#34373c', 'count': '#2a2d31',
    'count-edge': '#5a5e65', 'mean': '#f6f6f4', 'cls': '#56b4e9', 'dist': '#ee7f2b', 'teacher': '#1fb98d',
    'first': '#cc79a7', 'second': '#e69f00', 'warn': '#332b16', 'warn-edge': '#e69f00',
}


def _variables(colours: dict[str, str]) -> str:
    return ''.join(f'--{name}:{colour};' for name, colour in colours.items())


_STYLE = f'''
:root{{color-scheme:light dark;{_variables(LIGHT)}}}
@media screen and (prefers-color-scheme:dark){{:root{{{_variables(DARK)}}}}}
''' + '''
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--fg);font:1rem/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;
overflow-wrap:break-word}
header,main,footer{max-width:72rem;margin:0 auto;padding:0 1rem}
h1{font-size:1.7rem;line-height:1.25;margin:1.5rem 0 .25rem}
h2{font-size:1.3rem;line-height:1.3;margin:2.5rem 0 .75rem;padding-top:.75rem;border-top:1px solid var(--grid)}
h3{font-size:1.05rem;line-height:1.3;margin:0 0 .25rem}
p,ul{max-width:46rem;margin:.5rem 0}
a{color:inherit}
nav a{margin-right:1rem;white-space:nowrap}
.about,.missing,figcaption,.small{color:var(--muted)}
.about span{white-space:nowrap}
.lede{font-size:1.2rem;line-height:1.45}
.small,figcaption{font-size:.9rem}
.note{max-width:46rem;background:var(--warn);border-left:.3rem solid var(--warn-edge);padding:.5rem .75rem;
margin:.75rem 0}
.note p{margin:.15rem 0}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,27rem),1fr));gap:2rem 2.5rem;
margin:1.5rem 0}
.packed{display:block;columns:27rem 2;column-gap:2.5rem}
.packed figure{break-inside:avoid;padding-bottom:2rem}
figure{margin:0;min-width:0}
figcaption{margin-top:.35rem}
figure svg{display:block;width:100%;height:auto;font-family:inherit}
figure svg *{stroke-linejoin:round;stroke-linecap:butt}
.scroll{overflow-x:auto;max-width:100%;margin:.75rem 0}
table{border-collapse:separate;border-spacing:0;font-variant-numeric:tabular-nums}
.above{margin:1.25rem 0 -.5rem}
th,td{padding:.3rem .6rem;text-align:right;white-space:nowrap;border-bottom:1px solid var(--grid)}
th{font-weight:600}
th:first-child,td:first-child{text-align:left;padding-left:0;position:sticky;left:0;background:var(--bg)}
tbody th{font-weight:400}
.wide{font-size:.9rem}
.wide th,.wide td{padding:.3rem .4rem}
.wide thead th{white-space:normal;vertical-align:bottom}
.words tbody th,.words td:last-child{white-space:normal}
.wide th:first-child{padding-left:0}
.words tbody th{min-width:15rem}
.words td:last-child,.words th:last-child{text-align:left;min-width:15rem}
.words td:nth-child(2),.words th:nth-child(2){text-align:left}
.pairs td:nth-child(2),.pairs th:nth-child(2){text-align:left}
.pairs tbody th,.pairs td:nth-child(2){white-space:normal}
.key{display:inline-block;width:1.3em}
.of-sub{color:var(--muted)}.of-mean{color:var(--mean)}
.of-cls{color:var(--cls)}.of-dist{color:var(--dist)}.of-teacher{color:var(--teacher)}
code{font:.9em ui-monospace,SFMono-Regular,Consolas,monospace;background:var(--box);padding:.1em .3em}
details{margin:.75rem 0}
summary{cursor:pointer;font-weight:600}
dl{margin:.75rem 0;columns:19rem;column-gap:2rem;font-size:.9rem}
dl div{display:flex;justify-content:space-between;gap:1rem;break-inside:avoid;border-bottom:1px solid var(--grid)}
dt{color:var(--muted);white-space:nowrap}
dd{margin:0;text-align:right;min-width:0;overflow-wrap:anywhere}
footer{margin-top:2.5rem;padding-bottom:2rem}
@media (max-width:30rem){
h1{font-size:1.4rem}
.lede{font-size:1.1rem}
table{font-size:.875rem}
th,td{padding:.3rem .4rem}
th{white-space:normal}
thead th{vertical-align:bottom}
tbody th,.words tbody th{min-width:7.5rem}
.words td:nth-child(2){white-space:normal}
}
@media print{
:root{color-scheme:light}
html{font-size:10pt}
header,main,footer{max-width:none;padding:0}
nav{display:none}
.figures{grid-template-columns:1fr 1fr;gap:1rem 1.2rem}
figure,tr,.note{break-inside:avoid}
figure svg{max-height:52vh}
h2,h3,.above{break-after:avoid}
.scroll{overflow:visible}
th:first-child,td:first-child{position:static;background:none}
table{font-size:.8rem;line-height:1.25}
th,td{padding:.1rem .4rem}
details::details-content{content-visibility:visible;block-size:auto}
.of-cls,.of-dist,.of-teacher,.note,code,svg{print-color-adjust:exact;-webkit-print-color-adjust:exact}
}
'''
# beside the words, so that a row of a table is found in the figures without its colour too; and below its parent
_KEYS = {'mean': '◆', 'cls': '●', 'dist': '■', 'teacher': '▲', 'sub': '↳'}


@dataclass(frozen=True)
class Plot:
    """A figure of a page.

    Attributes:
        name: File name without suffix.
        title: Headline above it.
        caption: What to look for, in one sentence.
        alt: What it shows, with the numbers that matter, for those who do not see it.
        svg: For the page.
        png: For papers and model cards.
    """
    name: str
    title: str
    caption: str
    alt: str
    svg: str
    png: bytes


# control characters, those that turn the direction of writing, and what is no character
_UNSHOWN = r'\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff'


def plain(value: Any) -> str:
    """A text of one line that can be shown as it is read: other characters, such as bidi controls, are replaced."""
    return re.sub(f'[{_UNSHOWN}]', '�', ' '.join(str(value).split()))


def text(value: Any) -> str:
    """A value escaped for HTML."""
    return escape(plain(value))


def _anchor(words: str) -> str:
    return re.sub(r'\W+', '-', words.lower()).strip('-')


def document(title: str, about: str, lede: str, sections: dict[str, str], top: str = '', foot: str = '') -> str:
    """A page.

    Args:
        title: Plain text.
        about: HTML of the line below the title.
        lede: Plain text of the sentence with the result.
        sections: HTML by plain headline; what is empty is left out.
        top: HTML before the first section.
        foot: HTML after the last.
    """
    sections = {headline: html for headline, html in sections.items() if html}
    anchors = {headline: _anchor(headline) for headline in sections}
    links = '\n'.join(f'<a href="#{anchors[headline]}">{text(headline)}</a>' for headline in sections)
    body = '\n'.join(
        f'<section>\n<h2 id="{anchors[headline]}">{text(headline)}</h2>\n{html}\n</section>'
        for headline, html in sections.items())
    return f'''<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{text(title)}</title>
<link rel="icon" href="data:,">
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>{text(title)}</h1>
<p class="about">{about}</p>
<p class="lede">{text(lede)}</p>
<nav class="small" aria-label="Sections">
{links}
</nav>
</header>
<main>
{top}
{body}
</main>
<footer class="small">{foot}</footer>
</body>
</html>
'''


def figures(plots: Iterable[Plot | None], packed: bool = False) -> str:
    """Figures side by side where there is room; those that are None are left out.

    Args:
        plots: In the order of reading.
        packed: Whether they fill columns, as is better where they differ much in height.
    """
    shown = [
        f'<figure id="{plot.name}">\n<h3>{text(plot.title)}</h3>\n{plot.svg}\n'
        f'<figcaption>{text(plot.caption)}</figcaption>\n</figure>'
        for plot in plots if plot is not None]
    return f'<div class="figures{" packed" if packed else ""}">\n' + '\n'.join(shown) + '\n</div>' if shown else ''


def table(
        caption: str,
        head: Sequence[Any],
        rows: Iterable[Sequence[Any]],
        keys: Sequence[str | None] = (),
        kind: str = '',
) -> str:
    """A table that scrolls inside its box where the page is narrow.

    Args:
        caption: Plain text.
        head: Of the columns; the first one names the rows.
        rows: Plain cells.
        keys: 'mean', 'cls', 'dist' or 'teacher' of the rows that are shown in the figures; 'sub' of one that belongs to
            the row above.
        kind: 'wide' for one of many columns, 'wide words' for one whose first and last columns are sentences.
    """
    lines = []
    for index, (name, *cells) in enumerate(rows):
        key = keys[index] if index < len(keys) else None
        mark = f'<span class="key of-{key}" aria-hidden="true">{_KEYS[key]}</span>' if key else ''
        lines.append(
            f'<tr><th scope="row">{mark}{text(name)}</th>' + ''.join(f'<td>{text(cell)}</td>' for cell in cells)
            + '</tr>')
    columns = ''.join(f'<th scope="col">{text(cell)}</th>' if cell else '<td></td>' for cell in head)
    anchor, named = f'table-{_anchor(caption)}', f' class="{kind}"' if kind else ''
    return (
        f'<p class="small above" id="{anchor}">{text(caption)}</p>\n'
        f'<div class="scroll" role="region" aria-labelledby="{anchor}" tabindex="0">\n'
        f'<table{named} aria-labelledby="{anchor}">\n<thead><tr>{columns}</tr></thead>\n'
        '<tbody>\n' + '\n'.join(lines) + '\n</tbody>\n</table>\n</div>')


def facts(pairs: Iterable[tuple[Any, Any]]) -> str:
    """Names and values in as many columns as there is room for."""
    return '<dl>\n' + '\n'.join(
        f'<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>' for name, value in pairs) + '\n</dl>'


def details(summary: str, html: str) -> str:
    """Something that is opened on demand."""
    return f'<details>\n<summary>{text(summary)}</summary>\n{html}\n</details>'


def paragraph(words: str, kind: str = '') -> str:
    """Plain text, in which what stands between backticks is code."""
    html = re.sub(r'`([^`]*)`', r'<code>\1</code>', text(words))
    return f'<p class="{kind}">{html}</p>' if kind else f'<p>{html}</p>'


def missing(words: str) -> str:
    """The line in the place of what could not be shown: what it is, and how to get it."""
    return paragraph(words, 'missing')
