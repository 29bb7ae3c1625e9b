"""How pages and plots look: colours, experts, figures as SVG and PNG, and the templates that put them on a page."""
import io
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib import style as mpl_style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from ..utils.files import atomic_write

# Colours by role. Plots are drawn in the light ones; on the page they become CSS variables that follow the reader's
# colour scheme. CLS, DIST and the teacher have colours that colour-blind readers can tell apart.
# Source: the palette of Okabe and Ito (https://jfly.uni-koeln.de/color/)
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
WIDTH = 4.8  # inches: text of 10 pt is legible on a phone, and on paper where two figures stand side by side
_DPI = 200
_STYLE = {
    'font.family': 'sans-serif', 'font.sans-serif': ['DejaVu Sans'], 'font.size': 10, 'axes.labelsize': 10,
    'xtick.labelsize': 9, 'ytick.labelsize': 9, 'legend.fontsize': 9.5, 'hatch.linewidth': .8,
    'text.color': LIGHT['fg'], 'axes.labelcolor': LIGHT['fg'], 'axes.edgecolor': LIGHT['muted'],
    'xtick.color': LIGHT['muted'], 'ytick.color': LIGHT['muted'], 'grid.color': LIGHT['grid'],
    'axes.grid': True, 'axes.grid.axis': 'y', 'axes.axisbelow': True, 'axes.spines.top': False,
    'axes.spines.right': False, 'axes.linewidth': .8, 'lines.linewidth': 1.6, 'lines.markersize': 5,
    'legend.frameon': False, 'legend.handlelength': 2.2, 'legend.columnspacing': 1, 'legend.handletextpad': .5,
    'legend.borderpad': 0, 'figure.facecolor': 'none', 'axes.facecolor': 'none',
    'svg.fonttype': 'none', 'svg.hashsalt': 'timm_deitlt', 'text.usetex': False,
}


@dataclass(frozen=True)
class Look:
    """The look of one series. Colour, marker, line and hatch each tell it from the others.

    Attributes:
        label: Its name for readers.
        sign: Stands beside its name in tables, so that a row can be found in the figures without colour.
    """
    color: str
    marker: str
    linestyle: Any = '-'
    hatch: str = ''
    label: str = ''
    sign: str = ''


FUSIONS = {
    'mean_probs': 'mean of the probabilities', 'cls_adjusted': 'CLS alone, adjusted by the class prior',
    'mean_adjusted': 'mean of DIST and adjusted CLS', 'count_mix': 'mix by training count'}
_PREDICTION = Look(LIGHT['first'], 'P', (0, (4, 1)), 'oo', 'prediction', '✚')
LOOKS = {
    # a fusion is drawn where it gives the prediction of a run
    'answer': _PREDICTION, **dict.fromkeys(FUSIONS, _PREDICTION),
    'mean': Look(LIGHT['mean'], 'D', label='mean of both', sign='◆'),
    'cls': Look(LIGHT['cls'], 'o', '-', '////', 'CLS', '●'),
    'dist': Look(LIGHT['dist'], 's', '--', '....', 'DIST', '■'),
    'teacher': Look(LIGHT['teacher'], '^', '-.', 'xxxx', 'teacher', '▲'),
    'first': Look(LIGHT['first'], 'o'),
    'second': Look(LIGHT['second'], 's', '--'),
    'last': Look(LIGHT['muted'], '^', '-.'),
}
EXPERTS = {name: LOOKS[name].label for name in ('mean', 'cls', 'dist')}
_SIGNS = {**{name: look.sign for name, look in LOOKS.items()}, 'sub': '↳'}
# control characters, characters that change the direction of writing, and code points that are no characters
_UNSHOWN = re.compile(r'[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]')


@dataclass(frozen=True)
class Plot:
    """A figure.

    Attributes:
        title: Headline above it.
        caption: What to look for.
        alt: What it shows, with the numbers that matter, for readers who cannot see it.
        svg: The drawing without its outer tag, for the page.
        view_box: Value of the SVG's attribute `viewBox`.
        png: For papers and model cards.
    """
    title: str
    caption: str
    alt: str
    svg: str
    view_box: str
    png: bytes


class Table(NamedTuple):
    """A table of a page.

    Attributes:
        head: Headlines of the columns.
        rows: Cells by row; the first cell names the row.
        keys: What each row shows: a name in `LOOKS`, 'sub' for a row that belongs to the row above, or None.
    """
    head: Sequence[Any]
    rows: Sequence[Sequence[Any]]
    keys: Sequence[str | None] = ()


def plain(value: Any) -> str:
    """The value as text on one line, in which characters that could deceive a reader are replaced."""
    return _UNSHOWN.sub('�', ' '.join(str(value).split()))


def number(value: float | None, digits: int = 1, sign: str = '') -> str:
    """A number for a table; a dash for None."""
    return '–' if value is None else f'{value:{sign},.{digits}f}'


def write_page(
        folder: Path,
        template: str,
        figures: Iterable[Callable[[Any], Plot | None]],
        subject: Any,
        **values: Any,
) -> Path:
    """Draw the figures of a run or a study, and write report.html and plots/*.png.

    Args:
        folder: Where to write; it is made if it is missing.
        template: File name of the page's template.
        figures: Functions that draw one figure each, named like their figure. One that returns None has no data: the
            page leaves it out, and the PNG of an earlier page is removed.
        subject: The run or the study that is given to them.
        values: What the template shows besides.

    Returns:
        The page.
    """
    with drawing():
        drawn = {draw.__name__: draw(subject) for draw in figures}
    (folder / 'plots').mkdir(parents=True, exist_ok=True)
    for name, plot in drawn.items():
        path = folder / 'plots' / f'{name}.png'
        if plot is None:
            path.unlink(missing_ok=True)
        else:
            atomic_write(path, lambda file, png=plot.png: file.write_bytes(png))  # type: ignore[misc]
    plots = {name: plot for name, plot in drawn.items() if plot is not None}
    html = _templates().get_template(template).render(
        plots=plots, colours={'light': LIGHT, 'dark': DARK}, signs=_SIGNS, **values)
    atomic_write(folder / 'report.html', lambda file: file.write_text(html, encoding='utf-8'))
    return folder / 'report.html'


def _templates() -> Environment:
    def shown(value: Any) -> Any:
        return value if hasattr(value, '__html__') else plain(value)

    # every value on a page goes through `plain` and is then escaped; no template has to think of it
    environment = Environment(
        loader=PackageLoader('timm_deitlt', 'report'), autoescape=True, finalize=shown, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    environment.filters['anchor'] = lambda words: re.sub(r'\W+', '-', words.lower()).strip('-')
    return environment


@contextmanager
def drawing() -> Iterator[None]:
    """Draw in our style, whatever the user's settings of matplotlib are; these hold again afterwards."""
    with mpl_style.context(['default', _STYLE]), warnings.catch_warnings():
        # names in a script that the font of the PNGs does not have; on the page the browser's fonts show them
        warnings.filterwarnings('ignore', message='.*[Gg]lyph.*missing.*')
        yield


def new_figure(height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, np.ndarray]:
    """A figure `WIDTH` wide, with panels `[rows, columns]` that share the x axis.

    Args:
        height: In inches.
        rows: Panels one below the other.
        columns: Panels side by side.
        options: Of matplotlib's `Figure.subplots`.
    """
    figure = Figure(figsize=(WIDTH, height), layout='constrained')
    return figure, figure.subplots(rows, columns, **{'sharex': 'col', **options}, squeeze=False)


def line(axes: Axes, x: np.ndarray, y: np.ndarray, look: Look, label: str | None = None, **options: Any) -> None:
    """A line with about a dozen markers, however many points it has."""
    options = {'markevery': max(1, len(x) // 12), **options}
    axes.plot(x, y, color=look.color, marker=look.marker, linestyle=look.linestyle, label=label, **options)


def legend(figure: Figure, axes: Axes, columns: int = 4) -> None:
    """The legend of a panel, above the figure, where it covers nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc='outside upper left', ncols=min(columns, len(handles)))


def mark(axes: Axes, x: float, words: str = '', at: float = .5) -> None:
    """A vertical line with its name above the panel; `at` is its place between left (0) and right (1)."""
    axes.axvline(x, color=LIGHT['muted'], linestyle=(0, (2, 2)), linewidth=1)
    if words:
        above(axes, x, words, 'right' if at > .6 else 'left' if at < .4 else 'center')


def above(axes: Axes, x: float, words: str, ha: str = 'center') -> None:
    """Small words above a panel."""
    axes.annotate(
        words, (x, 1), (0, 3), xycoords=('data', 'axes fraction'), textcoords='offset points', fontsize=9,
        color=LIGHT['muted'], va='bottom', ha=ha, annotation_clip=False)


def percent(axes: Axes, bottom: float = -3, words: str = 'accuracy, %') -> None:
    """A y axis of percentages, with room for markers at 0; with `bottom` 0, with room for numbers on bars."""
    axes.set_ylim(bottom, 104 if bottom else 109)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel(words)


def from_zero(axes: Axes) -> None:
    """A y axis that begins at zero, so that heights can be compared."""
    axes.set_ylim(0, 1.07 * max(axes.dataLim.ymax, 1e-6))


def whole_numbers(axis: Any) -> None:
    """A few ticks, at whole numbers."""
    axis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:,.0f}'))
    axis.set_minor_locator(NullLocator())


def log_scale(axes: Axes, lowest: float, highest: float, form: str = '{:,.0f}') -> None:
    """A logarithmic y axis with plain numbers."""
    axes.set_yscale('log')
    axes.set_ylim(lowest, highest)
    axes.yaxis.set_major_locator(LogLocator(numticks=6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: form.format(value)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())


def shortened(name: str, length: int) -> str:
    """A name cut to fit into a figure."""
    return name if len(name) <= length else f'{name[:length - 1]}…'


def finish(figure: Figure, name: str, title: str, caption: str, alt: str) -> Plot:
    """Render a figure as SVG and PNG. Call it inside `drawing`."""
    for label in figure.findobj(matplotlib.text.Text):
        label.set_parse_math(False)  # a class may be named $x$
    # the layout is computed once for both; `savefig` would compute it for each, which a quick start would notice
    if (layout := figure.get_layout_engine()) is not None:
        layout.execute(figure)
    figure.set_layout_engine('none')
    svg, png = io.StringIO(), io.BytesIO()
    FigureCanvasSVG(figure).print_svg(svg)
    figure.set_facecolor('white')
    figure.dpi = _DPI
    FigureCanvasAgg(figure).print_png(png)
    return Plot(title, caption, alt, *_inline(svg.getvalue(), name), png.getvalue())


def _inline(svg: str, name: str) -> tuple[str, str]:
    """Matplotlib's SVG as a part of a page: what stands inside its outer tag, and its view box.

    Ids become unique on the page, or go where nothing refers to them. Colours become variables of the page. Fonts are
    those of the page.
    """
    svg = svg[svg.index('<svg'):]
    view_box = svg.partition('viewBox="')[2].partition('"')[0]
    body = svg[svg.index('>') + 1:svg.rindex('</svg>')]
    body = re.sub(r'<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>', '', body, flags=re.S)
    used = dict.fromkeys(re.findall(r'(?:href="|url\()#([^")]+)', body))
    ids = {old: f'{name}-{place}' for place, old in enumerate(used)}
    variables = {colour: f'var(--{role})' for role, colour in LIGHT.items()}

    def tidy(match: re.Match) -> str:
        # only tags are changed: a class that is named like a colour keeps its name
        tag = re.sub(r'\s+', ' ', match[0])
        tag = re.sub(r' id="([^"]*)"', lambda found: f' id="{ids[found[1]]}"' if found[1] in ids else '', tag)
        tag = re.sub(r'(xlink:)?href="#([^"]+)"', lambda found: f'href="#{ids[found[2]]}"', tag)
        tag = re.sub(r'url\(#([^)]+)\)', lambda found: f'url(#{ids[found[1]]})', tag)
        if 'base64' in tag:
            return tag.replace('xlink:href', 'href')
        tag = re.sub(r'font-family:[^;"]*;? ?', '', tag)
        tag = re.sub(r"font: ([\d.]+px) [^;\"]*", r'font-size: \1', tag)
        tag = re.sub(r'#[0-9a-f]{6}\b', lambda found: variables.get(found[0], found[0]), tag)
        tag = re.sub(r' transform="rotate\(-?0 [^)]*\)"', '', tag)
        return re.sub(r'\d+\.\d{3,}', lambda found: f'{float(found[0]):.2f}'.rstrip('0').rstrip('.'), tag)

    return re.sub(r'>\s+<', '><', re.sub(r'<[^>]*>', tidy, body)).strip(), view_box
