"""Figures of the mechanisms, from analysis.json and attention.npz as analyze.py writes them."""
import numpy as np
from matplotlib import colormaps

from .page import LIGHT, Plot
from .plots import LOOKS, finish, from_zero, legend, line, new_figure, shortened, whole_numbers
from .run_files import GROUPS, Run, numbers

_TILE = 72  # pixels of an image in the figure of attention maps; larger ones are shrunk
_MOST_ROWS = 4


def divergence_by_block(run: Run) -> Plot | None:
    """1 - cos(CLS, DIST) after each block and after the final norm."""
    values = numbers(run.analysis.get('divergence'))
    if not np.isfinite(values).any():
        return None
    final = run.analysis.get('cos_norm')
    names = [str(block + 1) for block in range(len(values))] + ([] if final is None else ['norm'])
    values = values if final is None else np.append(values, 1 - final)
    figure, ((axes,),) = new_figure(2.7)
    line(axes, np.arange(1, len(values) + 1), values, LOOKS['mean'], markevery=1)
    from_zero(axes)
    axes.set_ylabel('1 - cos(CLS, DIST)')
    axes.set_xlabel('after block')
    axes.set_xticks(range(1, len(names) + 1), names)
    return finish(
        figure, 'divergence_by_block', 'Where in the network they part',
        'The block from which the curve rises is where CLS and DIST begin to look for different things.',
        f'1 - cos(CLS, DIST) on {_images(run)} after each block: '
        f'{_listed(names, values)}.')


def attention_distance(run: Run) -> Plot | None:
    """Mean attention distance of each head of the first two blocks and the last one."""
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
    limit = '' if uniform is None else f'; {uniform:.1f} would be uniform attention'
    return finish(
        figure, 'attention_distance', 'How far the heads look',
        'Heads of the first blocks far below the dotted line look at their neighbourhood, as a CNN does.',
        f'Mean attention distance in pixels on {_images(run)}: {values}{limit}.')


def feature_rank(run: Run) -> Plot | None:
    """Rank of the CLS and DIST features after each block."""
    kinds = {'rank': f'rank, {_energy(run)} energy', 'effective_rank': 'effective rank'}
    series = {
        kind: {name: numbers(run.analysis.get(f'{kind}_{name}')) for name in _tokens(run)} for kind in kinds}
    series = {
        kind: {name: values for name, values in of.items() if np.isfinite(values).any()}
        for kind, of in series.items()}
    series = {kind: of for kind, of in series.items() if of}
    if not series:
        return None
    figure, panels = new_figure(4.4 if len(series) > 1 else 2.8, len(series))
    panels = panels[:, 0]
    for axes, (kind, of) in zip(panels, series.items(), strict=True):
        for name, values in of.items():
            line(axes, np.arange(1, len(values) + 1), values, LOOKS[name], name.upper(), markevery=1)
        from_zero(axes)
        axes.set_ylabel(kinds[kind])
    panels[-1].set_xlabel('after block')
    whole_numbers(panels[-1].xaxis)
    legend(figure, panels[0])
    last = '; '.join(
        f'{kinds[kind]}: ' + ', '.join(f'{name.upper()} {values[0]:.4g} after block 1 and {values[-1]:.4g} at the end'
                                       for name, values in of.items()) for kind, of in series.items())
    return finish(
        figure, 'feature_rank', 'Rank of the features',
        'Look how far DIST lies below CLS in the last blocks: the paper finds lower ranks with teachers trained by SAM.'
        if 'dist' in series[next(iter(series))] else 'The lower the curve, the fewer directions describe the features.',
        f'Singular values that hold {_energy(run)} of the squared energy, and effective rank, on '
        f'{_images(run)}. {last}.')


def attention_rollout(run: Run) -> Plot | None:
    """Images of head and tail classes beside the rollout of attention through all blocks to CLS and DIST."""
    return _attention_maps(run, 'rollout', 'attention_rollout', 'Attention rollout, all blocks')


def attention_last_block(run: Run) -> Plot | None:
    """The same with the attention of the last block, mean of its heads."""
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
    for column, (group, rows) in enumerate(groups.items()):
        for row, axes in enumerate(grid[:, column]):
            axes.set_axis_off()
            if row >= len(rows):
                continue
            index = rows[row]
            axes.imshow(_tiles(arrays, index, kind, tokens), interpolation='none', aspect='equal')
            class_name = run.class_name(int(arrays['labels'][index]))
            axes.set_title(f'{group}: {shortened(class_name, 20)}', fontsize=9, loc='left', pad=2)
            if row == len(rows) - 1:
                for place, words in enumerate(['image', *map(str.upper, tokens)]):
                    axes.annotate(
                        words, ((place + .5) / (1 + len(tokens)), 0), (0, -2), xycoords='axes fraction',
                        textcoords='offset points', ha='center', va='top', fontsize=9)
    return finish(
        figure, name, title,
        'Bright patches are attended most, each map on its own scale: look whether DIST rests on the object where CLS '
        'spreads, and whether that differs for the tail.' if 'dist' in tokens else
        'Bright patches are attended most, each map on its own scale: look whether they lie on the object.',
        _maps_in_words(run, groups, kind, tokens))


def _tiles(arrays: dict[str, np.ndarray], index: int, kind: str, tokens: list[str]) -> np.ndarray:
    """Image and the maps of the tokens side by side, uint8 `[H, W + ..., 4]`."""
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
    """Each patch as large as it is in the image, so that no smoothness is shown that was not measured."""
    rows = np.arange(size[0]) * weights.shape[0] // size[0]
    columns = np.arange(size[1]) * weights.shape[1] // size[1]
    return weights[np.ix_(rows, columns)]


def _maps_in_words(run: Run, groups: dict[str, list[int]], kind: str, tokens: list[str]) -> str:
    words = []
    for group, rows in groups.items():
        names = ', '.join(run.class_name(int(run.attention['labels'][index])) for index in rows)
        shares = ' and '.join(
            f'{token.upper()} {100 * np.mean([_top_quarter(run.attention[f"{token}_{kind}"][i]) for i in rows]):.0f} %'
            for token in tokens)
        words.append(f'{len(rows)} images of {group} classes ({names}): the quarter of the patches that is attended '
                     f'most gets of {shares} of the attention.')
    return ' '.join(words)


def _top_quarter(weights: np.ndarray) -> float:
    ordered = np.sort(weights, axis=None)[::-1].astype(float)
    return ordered[:max(1, len(ordered) // 4)].sum() / max(ordered.sum(), 1e-12)


def _tokens(run: Run) -> tuple[str, ...]:
    # a plain ViT has a DIST token that learned nothing
    return ('cls', 'dist') if run.two_experts else ('cls',)


def _energy(run: Run) -> str:
    return f'{100 * run.analysis.get("rank_energy", .99):g} %'


def _images(run: Run) -> str:
    return f'{run.analysis.get("num_images", "some")} of {run.analysis.get("images") or "the images"}'


def _listed(names: list[str], values: np.ndarray) -> str:
    shown = list(zip(names, values, strict=True))
    shown = shown if len(shown) <= 14 else [*shown[:3], *shown[-3:]]
    return ', '.join(f'{name} {value:.3f}' for name, value in shown)
