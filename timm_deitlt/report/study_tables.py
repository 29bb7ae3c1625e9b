"""Tables of a study: the claims, the arms, and what was measured inside them."""
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .page import details, missing, paragraph, table
from .run_files import EXPERTS, GROUPS
from .study_mechanism_plots import BY_BLOCK, FUSIONS
from .study_plots import LEAST, MEASURES
from .study_values import Study, analysis, by_block, distances, known, side, spread

_COLUMNS = (
    *(('mean', group) for group in ('overall', *GROUPS)),
    *((of, group) for of in ('cls', 'dist', 'teacher') for group in ('overall', 'tail')))
_VIEWS = {
    'teacher_top1_clean': 'right on clean images, %', 'teacher_top1_train_view': "right on the student's, %",
    'teacher_entropy_clean': 'entropy on clean, nats', 'teacher_entropy_train_view': "on the student's, nats",
    'teacher_tail_share': 'its answers in the tail, %', 'true_tail_share': 'labels in the tail, %',
    'dist_agreement': 'DIST agrees, %'}
_OF_CELLS = ('seed', 'split_seed')


def claims(study: Study) -> str:
    """Claims with their verdicts and figures, and how they are judged."""
    if not study.verdicts:
        return ''
    rows = []
    for claim in study.verdicts:
        found, measure = claim['figures'], side(claim, 'a')[2]
        digits = MEASURES.get(measure, ('', 2))[1]
        means = [_number(found[f'mean_{which}'], 3 if measure == 'divergence' else 1) for which in 'ab']
        difference = _number(found['difference'], digits, '+')
        if found.get('half_interval') is not None:
            difference += f' ± {found["half_interval"]:.{digits}f}'
        sign = '<' if '<' in found['claimed'] else '>'
        rows.append([
            claim['claim'], claim['verdict'], claim['n'], difference, *means, f'{found["a"]} {sign} {found["b"]}'])
    head = ['claim', 'verdict', 'n', 'difference', 'first', 'second', 'what is compared']
    caption = 'Claims, with the mean of the paired differences ± half its 95 % confidence interval'
    return table(caption, head, rows, kind='wide words') + _how_judged(study)


def _how_judged(study: Study) -> str:
    words = [
        'Accuracies are in percent, their differences in points. A difference is between the two sides of runs with '
        'the same images and seed, in the claimed direction, and n counts these pairs. What the names of the arms mean '
        'stands under Arms.',
        f"With {LEAST} pairs or more, a claim holds if the 95 % confidence interval of their mean (Student's t) lies "
        'above zero and each subset of the images has its mean there, does not hold if both lie below, and is else not '
        f'shown at this scale. Where there is no difference, one such interval in 20 misses zero by chance; there are '
        f'{len(study.verdicts)} claims here.']
    if len(study.subsets) == 1:
        words.append(
            f'All runs are of one subset of the images ({study.subsets[0]}): what another would change is not in these '
            'intervals.')
    elif study.subsets:
        words.append(
            f'The pairs are of {len(study.subsets)} subsets of the images; those of one subset share its images, so '
            'they are worth less than as many subsets.')
    return paragraph(' '.join(words), 'small')


def _number(value: float | None, digits: int, sign: str = '') -> str:
    return '–' if value is None else f'{value:{sign}.{digits}f}'


def _keys(study: Study, arms: Iterable[str]) -> list[str | None]:
    return ['sub' if study.parent(arm) else None for arm in arms]


def arms(study: Study) -> str:
    """Accuracies of every arm, and what it sets."""
    rows = []
    for arm in study.arms:
        runs = len(study.runs(arm))
        cells = [spread(study.values(arm, *column)) if runs else '' for column in _COLUMNS]
        rows.append([study.label(arm), runs or 'not run', *cells])
    words = {**EXPERTS, 'mean': 'mean', 'teacher': 'teacher'}
    head = ['arm', 'n', *(f'{words[of]} {group}' for of, group in _COLUMNS)]
    notes = [
        'n counts the runs; mean is that of the logits of both experts. An arm with an arrow goes on from another at '
        'the start of stage two. A dash: there is no such expert, or no teacher. All figures are of the last epoch; '
        'none was chosen on test images.']
    cells = {tuple((run['subset'], run['seed']) for run in study.runs(arm)) for arm in study.arms if study.runs(arm)}
    if len(cells) > 1:
        notes.append(
            'Not all arms have the same subsets and seeds, so rows may be of unlike runs; the claims compare pairs.')
    caption = 'Accuracy in percent, mean ± standard deviation of the runs'
    return table(caption, head, rows, _keys(study, study.arms), 'wide') + paragraph(
        ' '.join(notes), 'small') + _changes(study)


def _changes(study: Study) -> str:
    rows = []
    for arm in study.arms:
        runs = study.runs(arm)
        changed = {name: value for name, value in (runs[0]['settings'] if runs else {}).items()
                   if name not in _OF_CELLS and (name not in study.settings or study.settings[name] != value)}
        words = ', '.join(f'{name}={value}' for name, value in changed.items()) or 'nothing'
        rows.append([study.label(arm), arm, study.parent(arm) or '–', words if runs else 'not run'])
    return details('What each arm changes', table(
        'Settings of the arms that differ from those of the study', ['arm', 'in files', 'goes on from', 'settings'],
        rows, _keys(study, study.arms), 'wide words'))


def fusions_by_arm(study: Study) -> str:
    """Accuracies of every fusion."""
    names = {'mean': 'mean of the logits', **FUSIONS}
    measured = [arm for arm in study.arms if any(study.values(arm, fusion, 'overall') for fusion in FUSIONS)]
    if not measured:
        return missing('No run has measured fusions of its experts.') if study.results else ''
    columns = [(of, group) for of in names for group in ('overall', 'tail')]
    rows = [[study.label(arm), *(spread(study.values(arm, *column)) for column in columns)] for arm in measured]
    return details('Every arm in figures', table(
        'Accuracy in percent of each way to join the experts, mean ± standard deviation of the runs',
        ['arm', *(f'{names[of]}, {group}' for of, group in columns)], rows, _keys(study, measured), 'wide'))


def mechanisms(study: Study) -> str:
    """What analyze.py measured of every arm, and what its teacher makes of the student's images."""
    measured = [arm for arm in study.arms if any(analysis(run) for run in study.runs(arm))]
    if not measured:
        return missing('No run has measured its mechanisms.') if study.results else ''
    html = _summary(
        study, 'Mechanisms, mean ± standard deviation of the runs', measured, _SUMMARIES)
    seen = [arm for arm in measured if any(analysis(run).get('ood') for run in study.runs(arm))]
    if seen:
        views = {words: (lambda of, key=key: (of.get('ood') or {}).get(key), 2 if 'entropy' in key else 1)
                 for key, words in _VIEWS.items()}
        html += _summary(
            study, 'The teacher on clean test images, and on training images as the student sees them', seen, views)
    blocks = ''.join(_blocks(study, kind, of) for kind, of in BY_BLOCK.items())
    return html + (details('Every block in figures', blocks) if blocks else '')


def _summary(
        study: Study,
        caption: str,
        measured: Sequence[str],
        columns: Mapping[str, tuple[Callable[[Mapping[str, Any]], float | None], int]],
) -> str:
    rows = [
        [study.label(arm), *(spread(known(of(analysis(run)) for run in study.runs(arm)), digits)
                             for of, digits in columns.values())] for arm in measured]
    return table(caption, ['arm', *columns], rows, _keys(study, measured), 'wide')


def _mean_of(values: Sequence[float] | None) -> float | None:
    return statistics.fmean(values) if values else None


def _early(of: Mapping[str, Any]) -> float | None:
    return _mean_of([px for heads in (of.get('attention_distance_px') or [])[:2] for px in heads])


def _apart(of: Mapping[str, Any]) -> float | None:
    return None if of.get('cos_norm') is None else 1 - of['cos_norm']


_SUMMARIES: Mapping[str, tuple[Callable[[Mapping[str, Any]], float | None], int]] = {
    'distance, first two blocks, px': (_early, 1),
    'distance, all blocks, px': (lambda of: _mean_of(distances(of)), 1),
    'rank of CLS': (lambda of: _mean_of(of.get('rank_cls')), 1),
    'rank of DIST': (lambda of: _mean_of(of.get('rank_dist')), 1),
    'effective rank of DIST': (lambda of: _mean_of(of.get('effective_rank_dist')), 1),
    '1 - cos(CLS, DIST), final norm': (_apart, 3),
}


def _blocks(study: Study, kind: str, of: Callable[[Mapping[str, Any]], Any]) -> str:
    found = by_block(study, of)
    if not found:
        return ''
    digits, count = 3 if 'cos' in kind else 1, max(values.shape[1] for values in found.values())
    rows = []
    for arm, values in found.items():
        cells = [f'{value:.{digits}f}' for value in values.mean(axis=0)]
        rows.append([study.label(arm), *cells, *[''] * (count - len(cells))])
    return table(
        f'{kind[0].upper()}{kind[1:]}, by block, mean of the runs', ['arm', *range(1, count + 1)], rows,
        _keys(study, found), 'wide')
