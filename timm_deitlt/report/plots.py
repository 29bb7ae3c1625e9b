"""Drawing for pages and papers: one look, as SVG that follows the page's colours and as PNG."""
import io
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import style as mpl_style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from ..utils.files import atomic_write
from .page import LIGHT, Plot, text

WIDTH = 4.8  # inches: its 10 pt text is legible on a phone and where a page of paper holds two beside each other
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
    """How a series is drawn, by colour, marker, line and hatch, each of which tells it from the others."""
    color: str
    marker: str
    linestyle: Any
    hatch: str = ''


LOOKS = {
    'mean': Look(LIGHT['mean'], 'D', '-'),
    'cls': Look(LIGHT['cls'], 'o', '-', '////'),
    'dist': Look(LIGHT['dist'], 's', '--', '....'),
    'teacher': Look(LIGHT['teacher'], '^', '-.', 'xxxx'),
    'first': Look(LIGHT['first'], 'o', '-'),
    'second': Look(LIGHT['second'], 's', '--'),
    'last': Look(LIGHT['muted'], '^', '-.'),
}


@contextmanager
def drawing() -> Iterator[None]:
    """Matplotlib's own defaults and our style, whatever the user's are, which hold again afterwards."""
    with mpl_style.context(['default', _STYLE]), warnings.catch_warnings():
        # names in a script that the font of the PNGs does not have; in the page the browser's fonts show them
        warnings.filterwarnings('ignore', message='.*[Gg]lyph.*missing.*')
        yield


def new_figure(height: float, rows: int = 1, columns: int = 1, **options) -> tuple[Figure, np.ndarray]:
    """A figure `WIDTH` wide, `height` inches high, with panels `[rows, columns]` that share the x axis.

    Args:
        height: In inches.
        rows: Panels one below the other.
        columns: Panels side by side.
        options: Of matplotlib's `Figure.subplots`.
    """
    figure = Figure(figsize=(WIDTH, height), layout='constrained')
    return figure, figure.subplots(rows, columns, **{'sharex': 'col', **options}, squeeze=False)


def line(axes: Axes, x: np.ndarray, y: np.ndarray, look: Look, label: str | None = None, **options) -> None:
    """A line with about a dozen markers, however many points it has."""
    options = {'markevery': max(1, len(x) // 12), **options}
    axes.plot(x, y, color=look.color, marker=look.marker, linestyle=look.linestyle, label=label, **options)


def legend(figure: Figure, axes: Axes) -> None:
    """The legend of a panel above the figure, where it covers nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc='outside upper left', ncols=min(4, len(handles)))


def mark(axes: Axes, x: float, words: str = '', at: float = .5) -> None:
    """A vertical line, named above the panel; `at` is where it stands between left (0) and right (1)."""
    axes.axvline(x, color=LIGHT['muted'], linestyle=(0, (2, 2)), linewidth=1)
    if words:
        axes.annotate(
            words, (x, 1), (0, 3), xycoords=('data', 'axes fraction'), textcoords='offset points', fontsize=9,
            color=LIGHT['muted'], va='bottom', ha='right' if at > .6 else 'left' if at < .4 else 'center',
            annotation_clip=False)


def percent(axes: Axes, bottom: float = -3, words: str = 'accuracy, %') -> None:
    """A y axis of percentages, with room for markers at 0 or, from `bottom` 0, for numbers on bars."""
    axes.set_ylim(bottom, 104 if bottom else 109)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel(words)


def from_zero(axes: Axes) -> None:
    """A y axis that begins at zero, so that heights can be compared."""
    axes.set_ylim(0, 1.07 * max(axes.dataLim.ymax, 1e-6))


def whole_numbers(axis: Any) -> None:
    """Ticks at whole numbers, few of them."""
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
    """A name that fits into a figure."""
    return name if len(name) <= length else f'{name[:length - 1]}…'


def finish(figure: Figure, name: str, title: str, caption: str, alt: str) -> Plot:
    """Render a figure; to be called inside `drawing`."""
    for label in figure.findobj(matplotlib.text.Text):
        label.set_parse_math(False)  # a class may be named $x$
    # laid out once and drawn twice; `savefig` would do each twice over, and a quick start has no seconds to spare
    figure.get_layout_engine().execute(figure)
    figure.set_layout_engine('none')
    svg, png = io.StringIO(), io.BytesIO()
    FigureCanvasSVG(figure).print_svg(svg)
    figure.set_facecolor('white')
    figure.dpi = _DPI
    FigureCanvasAgg(figure).print_png(png)
    return Plot(name, title, caption, alt, inline_svg(svg.getvalue(), name, alt), png.getvalue())


def write_plots(folder: Path, plots: Mapping[str, Plot], known: Iterable[str]) -> None:
    """Write the PNGs of plots, and remove those of `known` names that an earlier page had and this one has not."""
    folder.mkdir(exist_ok=True)
    for name in known:
        path = folder / f'{name}.png'
        if name in plots:
            atomic_write(path, lambda file, png=plots[name].png: file.write_bytes(png))
        else:
            path.unlink(missing_ok=True)


def inline_svg(svg: str, name: str, alt: str) -> str:
    """Matplotlib's SVG as a part of an HTML page.

    Ids are made unique in the page, or dropped where nothing refers to them; colours become variables of the page, and
    fonts its own.
    """
    svg = svg[svg.index('<svg'):]
    view_box = re.search(r'viewBox="([^"]*)"', svg)[1]
    body = svg[svg.index('>') + 1:svg.rindex('</svg>')]
    body = re.sub(r'<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>', '', body, flags=re.S)
    used = dict.fromkeys(re.findall(r'(?:href="|url\()#([^")]+)', body))
    ids = {old: f'{name}-{number}' for number, old in enumerate(used)}
    variables = {colour: f'var(--{role})' for role, colour in LIGHT.items()}

    def tidy(tag: re.Match) -> str:
        # text stands between tags, so a class that is named like a colour keeps its name
        tag = re.sub(r'\s+', ' ', tag[0])
        tag = re.sub(r' id="([^"]*)"', lambda match: f' id="{ids[match[1]]}"' if match[1] in ids else '', tag)
        tag = re.sub(r'(xlink:)?href="#([^"]+)"', lambda match: f'href="#{ids[match[2]]}"', tag)
        tag = re.sub(r'url\(#([^)]+)\)', lambda match: f'url(#{ids[match[1]]})', tag)
        if 'base64' in tag:
            return tag.replace('xlink:href', 'href')
        tag = re.sub(r'font-family:[^;"]*;? ?', '', tag)
        tag = re.sub(r"font: ([\d.]+px) [^;\"]*", r'font-size: \1', tag)
        tag = re.sub(r'#[0-9a-f]{6}\b', lambda match: variables.get(match[0], match[0]), tag)
        tag = re.sub(r' transform="rotate\(-?0 [^)]*\)"', '', tag)
        return re.sub(r'\d+\.\d{3,}', lambda match: f'{float(match[0]):.2f}'.rstrip('0').rstrip('.'), tag)

    body = re.sub(r'>\s+<', '><', re.sub(r'<[^>]*>', tidy, body)).strip()
    return f'<svg viewBox="{view_box}" role="img" aria-label="{text(alt)}">{body}</svg>'
