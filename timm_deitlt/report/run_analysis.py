"""Figures of a run from a closer look: mechanisms, attention maps, and mistakes."""
import numpy as np
from matplotlib import colormaps

from ..evaluation.shots import GROUPS
from .look import LIGHT, LOOKS, Plot, finish, from_zero, legend, line, new_figure, shortened, whole_numbers
from .run import Run, numbers

_TILE = 72  # pixels of an image in the figure of attention maps; larger images are shrunk
_MOST_ROWS = 4
_NAMED = 20  # up to so many classes have their names on the axes of the confusion matrix
_COLUMNS = 3


def divergence_by_block(run: Run) -> Plot | None:
    """1 - cos(CLS, DIST) after each block and after the final norm."""
    values = numbers(run.analysis.get('divergence'))
    if not np.isfinite(values).any():
        return None
    final = run.analysis.get('cos_norm')
    names = [str(block + 1) for block in range(len(values))] + ([] if final is None else ['norm'])
    values = values if final is None else np.append(values, 1 - final)
    figure, ((axes,),) = new_figure(2.8)
    line(axes, np.arange(1, len(values) + 1), values, LOOKS['mean'], markevery=1)
    from_zero(axes)
    axes.set_ylabel('1 - cos(CLS, DIST)')
    axes.set_xlabel('after block')
    axes.set_xticks(range(1, len(names) + 1), names)
    told = ', '.join(f'{name} {value:.3f}' for name, value in zip(names, values, strict=True))
    return finish(
        figure, 'divergence_by_block', 'Where CLS and DIST part',
        'CLS and DIST begin to look for different things at the block from which the curve rises.',
        f'1 - cos(CLS, DIST) on {_images(run)} after each block: {told}.')


def attention_distance(run: Run) -> Plot | None:
    """Mean attention distance of each head of the first two blocks and of the last one."""
    blocks = [numbers(block) for block in run.analysis.get('attention_distance_px') or ()]
    if not blocks or not all(len(block) for block in blocks):
        return None
    shown = {'first': 0, 'second': 1, 'last': len(blocks) - 1}
    shown = {name: index for name, index in shown.items() if index < len(blocks) and (name != 'last' or index > 1)}
    figure, ((axes,),) = new_figure(3.1)
    for name, index in shown.items():
        heads = np.sort(blocks[index])
        line(axes, np.arange(1, len(heads) + 1), heads, LOOKS[name], f'block {index + 1}', markevery=1)
    uniform = run.analysis.get('uniform_attention_distance_px')
    if uniform is not None:
        axes.axhline(uniform, color=LIGHT['fg'], linestyle=':', label='uniform attention')
    from_zero(axes)
    axes.set_xlim(.5, max(map(len, blocks)) + .5)
    axes.set_ylabel('mean distance, pixels')
    axes.set_xlabel('head, from near to far')
    whole_numbers(axes.xaxis)
    legend(figure, axes)
    values = '; '.join(
        f'block {index + 1} from {blocks[index].min():.1f} to {blocks[index].max():.1f}, mean '
        f'{blocks[index].mean():.1f}' for index in shown.values())
    limit = '' if uniform is None else f' Uniform attention would give {uniform:.1f}.'
    return finish(
        figure, 'attention_distance', 'How far the heads look',
        'Heads of the first blocks that lie far below the dotted line look at their neighbourhood, as a CNN does.',
        f'Mean attention distance in pixels on {_images(run)}: {values}.{limit}')


def feature_rank(run: Run) -> Plot | None:
    """Rank of the CLS and DIST features after each block."""
    energy = f'{100 * run.analysis.get("rank_energy", .99):g} %'
    kinds = {'rank': f'rank, {energy} energy', 'effective_rank': 'effective rank'}
    series: dict[str, dict[str, np.ndarray]] = {}
    for kind in kinds:
        for name in _tokens(run):
            values = numbers(run.analysis.get(f'{kind}_{name}'))
            if np.isfinite(values).any():
                series.setdefault(kind, {})[name] = values
    if not series:
        return None
    figure, panels = new_figure(4.4 if len(series) > 1 else 2.8, len(series))
    for axes, (kind, of) in zip(panels[:, 0], series.items(), strict=True):
        for name, values in of.items():
            line(axes, np.arange(1, len(values) + 1), values, LOOKS[name], LOOKS[name].label, markevery=1)
        from_zero(axes)
        axes.set_ylabel(kinds[kind])
    axes.set_xlabel('after block')
    whole_numbers(axes.xaxis)
    legend(figure, panels[0, 0])
    told = '; '.join(
        f'{kinds[kind]}: ' + ', '.join(f'{LOOKS[name].label} {values[0]:.4g} after block 1 and {values[-1]:.4g} at the '
                                       'end' for name, values in of.items()) for kind, of in series.items())
    return finish(
        figure, 'feature_rank', 'Rank of the features',
        'Compare DIST with CLS in the last blocks: the paper finds lower ranks with teachers trained by SAM.'
        if any('dist' in of for of in series.values()) else
        'The lower the curve, the fewer directions describe the features.',
        f'Number of singular values that hold {energy} of the squared energy, and effective rank, on {_images(run)}. '
        f'{told}.')


def _tokens(run: Run) -> tuple[str, ...]:
    # a plain ViT has a DIST token that learned nothing
    return ('cls', 'dist') if run.two_experts else ('cls',)


def _images(run: Run) -> str:
    return f'{run.analysis.get("num_images", "some")} of {run.analysis.get("images") or "the images"}'


def attention_rollout(run: Run) -> Plot | None:
    """Images of head and tail classes beside the rollout of attention through all blocks to CLS and DIST."""
    return _attention_maps(run, 'rollout', 'attention_rollout', 'Attention rollout, all blocks')


def attention_last_block(run: Run) -> Plot | None:
    """The same images beside the attention of the last block, averaged over its heads."""
    return _attention_maps(run, 'last', 'attention_last_block', 'Attention of the last block')


def _attention_maps(run: Run, kind: str, name: str, title: str) -> Plot | None:
    arrays = run.attention
    tokens = [token for token in _tokens(run) if f'{token}_{kind}' in arrays]
    if not tokens:
        return None
    groups = {
        group: [index for index, found in enumerate(arrays['groups']) if str(found) == group][:_MOST_ROWS]
        for group in GROUPS}
    groups = {group: rows for group, rows in groups.items() if rows}
    if not groups:
        return None
    height = max(map(len, groups.values()))
    figure, grid = new_figure(.35 + .85 * height, height, len(groups))
    for axes in grid.ravel():
        axes.set_axis_off()
    for column, (group, rows) in enumerate(groups.items()):
        for axes, index in zip(grid[:, column], rows, strict=False):
            axes.imshow(_tiles(arrays, index, kind, tokens), interpolation='none', aspect='equal')
            class_name = run.class_name(int(arrays['labels'][index]))
            axes.set_title(f'{group}: {shortened(class_name, 20)}', fontsize=9, loc='left', pad=2)
        for place, words in enumerate(['image', *(LOOKS[token].label for token in tokens)]):
            grid[len(rows) - 1, column].annotate(
                words, ((place + .5) / (1 + len(tokens)), 0), (0, -2), xycoords='axes fraction',
                textcoords='offset points', ha='center', va='top', fontsize=9)
    return finish(
        figure, name, title,
        'Bright patches get most attention; each map has its own scale. '
        + ('Look whether DIST stays on the object where CLS spreads, and whether that differs for the tail.'
           if 'dist' in tokens else 'Look whether they lie on the object.'),
        _maps_in_words(run, groups, kind, tokens))


def _tiles(arrays: dict[str, np.ndarray], index: int, kind: str, tokens: list[str]) -> np.ndarray:
    """An image and the maps of the tokens side by side, uint8 `[H, W + ..., 4]`."""
    image = arrays['images'][index]
    step = max(1, round(max(image.shape[:2]) / _TILE))
    image = image[::step, ::step].astype(float) / 255
    gray = image.mean(axis=2, keepdims=True)
    gap = np.full((image.shape[0], max(1, image.shape[1] // 24), 3), np.nan)
    tiles = [image]
    for token in tokens:
        weights = arrays[f'{token}_{kind}'][index].astype(float)
        heat = colormaps['viridis'](_enlarged(weights / max(weights.max(), 1e-12), image.shape[:2]))[..., :3]
        tiles += [gap, .75 * heat + .25 * gray]
    pixels = np.concatenate(tiles, axis=1)
    opaque = np.isfinite(pixels[..., :1])
    return (255 * np.concatenate([np.nan_to_num(pixels), opaque], axis=2)).round().astype(np.uint8)


def _enlarged(weights: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Each patch as large as in the image. Nothing is interpolated: a smooth map was not measured."""
    rows = np.arange(size[0]) * weights.shape[0] // size[0]
    columns = np.arange(size[1]) * weights.shape[1] // size[1]
    return weights[np.ix_(rows, columns)]


def _maps_in_words(run: Run, groups: dict[str, list[int]], kind: str, tokens: list[str]) -> str:
    words = []
    for group, rows in groups.items():
        names = ', '.join(run.class_name(int(run.attention['labels'][index])) for index in rows)
        shares = ' and '.join(
            f'{100 * np.mean([_top_quarter(run.attention[f"{token}_{kind}"][index]) for index in rows]):.0f} % of the '
            f'attention of {LOOKS[token].label}' for token in tokens)
        words.append(f'{len(rows)} images of {group} classes ({names}): the most attended quarter of the patches gets '
                     f'{shares}.')
    return ' '.join(words)


def _top_quarter(weights: np.ndarray) -> float:
    ordered = np.sort(weights, axis=None)[::-1].astype(float)
    return ordered[:max(1, len(ordered) // 4)].sum() / max(ordered.sum(), 1e-12)


def confusion_matrix(run: Run) -> Plot | None:
    """Share of the images of each class that is predicted as each class."""
    confusion = run.metrics.get('confusion') or {}
    matrix = np.array(confusion.get('matrix') or [], dtype=float)
    if not run.counts or matrix.shape != (len(run.counts),) * 2 or not matrix.any():
        return None
    counts = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, counts, out=np.full_like(matrix, np.nan), where=counts > 0)
    figure, ((axes, scale),) = new_figure(4.6, 1, 2, sharex=False, width_ratios=(20, 1.3))
    axes.imshow(_colours(shares[np.ix_(run.order, run.order)]), interpolation='none', aspect='equal')
    axes.grid(False)
    names = [shortened(run.class_name(label), 12) for label in run.order]
    by_rank = '' if len(names) <= _NAMED else ', by rank of training images'
    if by_rank:
        for axis in (axes.xaxis, axes.yaxis):
            whole_numbers(axis)
    else:
        places, upright = range(len(names)), max(map(len, names)) * len(names) <= 40
        axes.set_xticks(places, names, **({} if upright else dict(rotation=40, ha='right', rotation_mode='anchor')))
        axes.set_yticks(places, names)
    axes.set_xlabel(f'predicted class{by_rank}')
    axes.set_ylabel(f'true class{by_rank}')
    scale.imshow(_colours(np.linspace(1, 0, 64)[:, None] ** 2), interpolation='none', aspect='auto')
    scale.grid(False)
    scale.set_xticks([])
    scale.set_yticks([63 * (1 - (share / 100) ** .5) for share in (0, 5, 25, 50, 100)], ['0 %', '5', '25', '50', '100'])
    scale.yaxis.tick_right()
    pairs = ', '.join(f'{pair["true"]} as {pair["predicted"]} ({pair["images"]})' for pair in run.confused[:3])
    return finish(
        figure, 'confusion_matrix', 'Which classes are confused',
        'A bright cell off the diagonal is a class that is often predicted as another one. Colour is the share of the '
        'images of the true class. Classes run from most to least training images, so cells below the diagonal are '
        'rare classes that are predicted as more frequent ones.',
        f'Share of the images of each of {len(names)} classes that is predicted as each class '
        f'({run.label(run.confused_by)}). '
        f'{100 * np.trace(matrix) / matrix.sum():.1f} % of the images lie on the diagonal. '
        f'Most often confused: {pairs or "none"}.')


def _colours(shares: np.ndarray) -> np.ndarray:
    """Colours of shares in 0..1, uint8 `[H, W, 4]`, by their square root, so that a few per cent can be seen."""
    colours = colormaps['viridis'](np.sqrt(np.nan_to_num(shares)), bytes=True)
    colours[~np.isfinite(shares)] = 0  # a class without images
    return colours


def tail_images(run: Run) -> Plot | None:
    """Wrongly classified images of tail classes, those with the least probability for their true class first."""
    arrays = run.tail_images
    if not len(arrays.get('images', ())):
        return None
    count = len(arrays['images'])
    rows = -(-count // _COLUMNS)
    height, width = arrays['images'].shape[1:3]
    figure, grid = new_figure(rows * (.5 + 1.35 * min(1.5, height / width)), rows, _COLUMNS, sharex=False)
    words = []
    for axes in grid.ravel():
        axes.set_axis_off()
    for index, axes in enumerate(grid.ravel()[:count]):
        true, predicted = (run.class_name(int(arrays[name][index])) for name in ('labels', 'predicted'))
        chances = [_percent(100 * float(arrays[name][index])) for name in ('probability', 'confidence')]
        axes.imshow(arrays['images'][index], interpolation='none', aspect='equal')
        axes.set_title(
            f'{shortened(true, 13)}: {chances[0]}\n→ {shortened(predicted, 11)}: {chances[1]}',
            fontsize=8.5, loc='left', pad=3)
        words.append(f'{true} at {chances[0]} predicted as {predicted} at {chances[1]}')
    return finish(
        figure, 'tail_images', 'Worst predictions on the tail',
        'Above each image stand its class and the probability that the model gave it, and below them the predicted '
        'class. Look what the images share: an odd view, a wrong label, or a class that looks alike.',
        f'The {count} images of tail classes whose class got the least probability: {"; ".join(words)}.')


def _percent(chance: float) -> str:
    return f'{chance:.1f} %' if chance < 9.95 else f'{chance:.0f} %'


FIGURES = (
    divergence_by_block, attention_distance, feature_rank, attention_rollout, attention_last_block, confusion_matrix,
    tail_images)
