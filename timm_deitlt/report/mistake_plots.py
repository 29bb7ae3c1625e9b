"""Figures of mistakes: which classes are taken for which others, and images of the tail."""
import numpy as np
from matplotlib import colormaps

from .page import Plot
from .plots import finish, new_figure, shortened, whole_numbers
from .run_files import Run

# Up to so many classes have their names on the axes
_NAMED = 20
_COLUMNS = 3


def confusion_matrix(run: Run) -> Plot | None:
    """Share of the images of each class that is given to each class."""
    confusion = run.metrics.get('confusion') or {}
    matrix = np.array(confusion.get('matrix') or [], dtype=float)
    if not run.counts or matrix.shape != (len(run.counts),) * 2 or not matrix.any():
        return None
    order = run.order
    counts = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, counts, out=np.full_like(matrix, np.nan), where=counts > 0)[np.ix_(order, order)]
    figure, ((axes, scale),) = new_figure(4.6, 1, 2, sharex=False, width_ratios=(20, 1.3))
    axes.imshow(_colours(shares), interpolation='none', aspect='equal')
    axes.grid(False)
    names = [shortened(run.class_name(label), 12) for label in order]
    if len(names) <= _NAMED:
        places = range(len(names))
        axes.set_xticks(places, names, **(
            {} if max(map(len, names)) * len(names) <= 40 else dict(rotation=40, ha='right', rotation_mode='anchor')))
        axes.set_yticks(places, names)
    else:
        for axis in (axes.xaxis, axes.yaxis):
            whole_numbers(axis)
    by_rank = '' if len(names) <= _NAMED else ', by rank of training images'
    axes.set_xlabel(f'answer{by_rank}')
    axes.set_ylabel(f'class{by_rank}')
    scale.imshow(_colours(np.linspace(1, 0, 64)[:, None] ** 2), interpolation='none', aspect='auto')
    scale.grid(False)
    scale.set_xticks([])
    scale.set_yticks([63 * (1 - (share / 100) ** .5) for share in (0, 5, 25, 50, 100)], ['0 %', '5', '25', '50', '100'])
    scale.yaxis.tick_right()
    pairs = ', '.join(
        f'{pair["true"]} for {pair["predicted"]} ({pair["images"]})' for pair in (confusion.get('pairs') or [])[:3])
    return finish(
        figure, 'confusion_matrix', 'What is taken for what',
        'A bright cell off the diagonal is a class taken for another; colour is the share of the images of the class. '
        'Classes run from most to least training images, so below the diagonal a rare class is taken for a more '
        'frequent one.',
        f'Share of the images of each of {len(names)} classes that is given to each class. '
        f'{100 * np.trace(matrix) / matrix.sum():.1f} % of the images lie on the diagonal. '
        f'Most often confused: {pairs or "none"}.')


def _colours(shares: np.ndarray) -> np.ndarray:
    """Colours of shares in 0..1, uint8 `[H, W, 4]`: by their square root, so that a few per cent are seen too."""
    colours = colormaps['viridis'](np.sqrt(np.nan_to_num(shares)), bytes=True)
    colours[~np.isfinite(shares)] = 0  # a class without images
    return colours


def tail_images(run: Run) -> Plot | None:
    """Images of tail classes that were answered wrong, those first whose true class got the least probability."""
    arrays = run.tail_images
    if not len(arrays.get('images', ())):
        return None
    count = len(arrays['images'])
    rows = -(-count // _COLUMNS)
    height, width = arrays['images'].shape[1:3]
    figure, grid = new_figure(rows * (.5 + 1.35 * min(1.5, height / width)), rows, _COLUMNS, sharex=False)
    words = []
    for index, axes in enumerate(grid.ravel()):
        axes.set_axis_off()
        if index >= count:
            continue
        true, predicted = (run.class_name(int(arrays[name][index])) for name in ('labels', 'predicted'))
        chances = [100 * float(arrays[name][index]) for name in ('probability', 'confidence')]
        axes.imshow(arrays['images'][index], interpolation='none', aspect='equal')
        axes.set_title(
            f'{shortened(true, 13)}: {_percent(chances[0])}\n→ {shortened(predicted, 11)}: {_percent(chances[1])}',
            fontsize=8.5, loc='left', pad=3)
        words.append(f'{true} at {_percent(chances[0])} taken for {predicted} at {_percent(chances[1])}')
    return finish(
        figure, 'tail_images', 'Tail images predicted worst',
        'Look what they share: an odd view, a wrong label, or a class that looks alike. Above each image its class and '
        'the probability that it got, below that the answer.',
        f'The {count} images of tail classes whose class got the least probability: {"; ".join(words)}.')


def _percent(chance: float) -> str:
    return f'{chance:.1f} %' if chance < 9.95 else f'{chance:.0f} %'
