"""The page of a study: its figures are those of the results, and what is not known is said."""
import csv
import json
import math
import re
import statistics

import numpy as np
import pytest
from test_run_page import Page

from timm_deitlt.report import look, study_curves, study_plots, write_study_report
from timm_deitlt.report.study import Study
from timm_deitlt.studies.cells import Cell
from timm_deitlt.studies.study import load_study
from timm_deitlt.studies.table import verdicts

# of each teacher: accuracy of the student's CLS and DIST (overall, head, mid, tail), and the teacher's own
TEACHERS = {
    'none': ((53.8, 93.1, 37.2, 36.7), None, None),
    'resnet32_strong': ((55.0, 93.4, 41.0, 35.3), (58.1, 93.0, 44.0, 42.0), (69.1, 96.0, 61.7, 52.1)),
    'resnet32_strong_drw': ((54.6, 93.4, 40.1, 35.2), (66.0, 84.0, 50.0, 69.3), (77.0, 82.8, 66.4, 85.5)),
    'resnet32_weak_drw': ((54.6, 93.4, 40.1, 35.2), (67.0, 84.0, 51.0, 70.3), (80.0, 86.8, 69.4, 87.5)),
    'resnet32': ((53.3, 93.7, 42.1, 27.8), (68.3, 87.1, 57.0, 64.7), (84.7, 92.2, 74.4, 90.8)),
    'resnet32_sam': ((51.0, 93.5, 40.6, 22.0), (69.0, 86.0, 56.2, 69.0), (83.4, 93.1, 70.0, 91.6)),
}
# points that DRW adds to CLS and DIST on head, mid and tail
DRW = {'none': (0, 0, 0), 'other': (-.3, 1, 9), 'own': (-10, 6, 18)}
FUSIONS = {'mean_probs': -.3, 'cls_adjusted': -4, 'mean_adjusted': 1.2, 'count_mix': .4}
BLOCKS, HEADS = 6, 3


def make_result(study, cell, epochs=None, analysed=True):
    """The content of a file of results, as ablate.py writes it, with plausible figures."""
    arm = study.arms[cell.arm]
    settings = {**study.settings, **arm.settings, 'seed': cell.seed, 'split_seed': cell.subset}
    settings['epochs'] = epochs or settings['epochs']
    # runs that share a first stage are alike
    shared = np.random.default_rng([cell.subset, cell.seed, *(arm.parent or arm.name).encode()])
    rng = np.random.default_rng([cell.subset, cell.seed, *arm.name.encode()])
    teacher = settings['teacher']
    cls, dist, own = TEACHERS[teacher]
    stage_two = 'none' if settings.get('keep_mixup_drw') else 'other' if settings['drw_on'] == 'none' else 'own'
    luck = np.array([0, *shared.normal(0, (.4, 1.2, 3))])

    def shifted(of, drw):
        head, mid, tail = (value + gain for value, gain in zip(of[1:], DRW[drw], strict=True))
        return figures(np.array([0, head, mid, tail]) + luck + [0, *rng.normal(0, (.2, .5, 1))])

    experts = {'cls': shifted(cls, stage_two if settings['drw_on'] in ('cls', 'both') else min(stage_two, 'other'))}
    experts['dist'] = dist and shifted(dist, stage_two if settings['drw_on'] in ('dist', 'both') else 'other')
    experts['mean'] = experts['cls'] if dist is None else figures(
        [0, *((experts['cls'][group] + experts['dist'][group]) / 2 + 2 for group in ('head', 'mid', 'tail'))])
    experts['teacher'] = own and {'name': teacher, 'source': 'cache', **figures(np.array(own) + [0, *shared.normal(
        0, .4, 3)])}
    fusion = {name: figures([0, *(experts['mean'][group] + shift + rng.normal(0, .5)
                                  for group in ('head', 'mid', 'tail'))])
              for name, shift in FUSIONS.items() if dist or name == 'cls_adjusted'}
    versions = {'timm_deitlt': '0.1.0', 'git': '737d7fb4fd11', 'torch': '2.14.1+cpu', 'machine': 'x86_64, 2 cores'}
    return {
        'study': study.name, 'arm': arm.name, 'label': arm.label, 'subset': cell.subset, 'seed': cell.seed,
        'settings': settings, 'metrics': {**experts, 'seconds': 1800.0, 'epochs': settings['epochs']},
        'fusion': fusion, 'analysis': make_analysis(rng, settings) if analysed else None,
        'curve': make_curve(experts, settings, arm.parent is not None), 'threads': 1, 'versions': versions}


def figures(of):
    """Accuracies of head, mid and tail, and over 3, 4 and 3 classes of them."""
    head, mid, tail = (float(np.clip(value, 0, 100)) for value in of[1:])
    overall = (3 * head + 4 * mid + 3 * tail) / 10
    return {'loss': 1.0, 'top1': overall, 'balanced': overall, 'head': head, 'mid': mid, 'tail': tail}


def make_analysis(rng, settings):
    two = settings['teacher'] != 'none'
    near = 4.5 if two else 0
    rising = np.linspace(0, 1, BLOCKS)
    rank = 30 - 4 * ('sam' in settings['teacher'])
    ranks = {kind: (np.array([low]) + scale * np.sin(2 * rising) + rng.normal(0, .6, BLOCKS)).tolist()
             for kind, low, scale in (('rank_cls', 24, 8), ('rank_dist', rank, 10), ('effective_rank_cls', 8, 3),
                                      ('effective_rank_dist', rank / 3, 3))}
    divergence = (.35 * rising ** 2 + rng.uniform(0, .05, BLOCKS)).tolist() if two else None
    return {
        'num_images': 1000, 'images': 'the test images', 'grid': [7, 7], 'uniform_attention_distance_px': 14.4,
        'attention_distance_px': (
            13.5 - near * (1 - rising[:, None]) + rng.normal(0, .5, (BLOCKS, HEADS))).tolist(),
        **{name: None if 'dist' in name and not two else values for name, values in ranks.items()},
        'rank_energy': .99, 'cos': divergence and [1 - value for value in divergence], 'divergence': divergence,
        'cos_norm': 1 - divergence[-1] if two else None,
        'ood': {
            'teacher_top1_clean': 84.0, 'teacher_top1_train_view': 50 + float(rng.normal(0, 2)),
            'teacher_entropy_clean': .5, 'teacher_entropy_train_view': 1.4, 'teacher_tail_share': 12.0,
            'true_tail_share': 2.1, 'dist_agreement': 60.0, 'num_views': 2478} if two else None}


def make_curve(experts, settings, second_stage):
    """Lines of summary.csv; of a run that goes on from another one the epochs of stage two alone."""
    last, start = settings['epochs'], settings['drw_start_epoch']
    every = settings.get('val_interval', 1)
    names = [name for name in ('mean', 'cls', 'dist') if experts[name]]
    lines = ['epoch,train_loss,' + ','.join(f'eval_{name}_{key}' for name in names for key in ('top1', 'tail'))]
    for epoch in range(start if second_stage else 0, last):
        shown = (epoch + 1) % every == 0 or epoch + 1 == last
        grown = 1 - math.exp(-4 * (epoch + 1) / last) + math.exp(-4)
        values = [str(experts[name][key] * grown) if shown else '' for name in names for key in ('top1', 'tail')]
        lines.append(','.join([str(epoch), '1.5', *values]))
    return lines


def make_study(source='fashion_mnist', seeds=(1, 2, 3), subsets=(0,), leave_out=(), **options):
    """Keywords of `write_study_report` for a study of which all but the arms in `leave_out` were run."""
    study = load_study(str(source))
    cells = [Cell(subset, seed, arm) for subset in subsets for seed in seeds for arm in study.arms
             if arm not in leave_out]
    results = {cell: make_result(study, cell, **options) for cell in cells}
    # what is read from files, where there are no tuples and no floats of numpy
    return json.loads(json.dumps({
        'name': study.name,
        'arms': [{'name': arm.name, 'label': arm.label, 'parent': arm.parent} for arm in study.arms.values()],
        'results': list(results.values()), 'verdicts': verdicts(study, results), 'settings': dict(study.settings)}))


SMALL = '''
settings: {dataset: lt/fashion_mnist, model: deit_lt_tiny, epochs: 20, drw_start_epoch: 10, val_interval: 5}
arms:
  vit: {label: ViT, settings: {teacher: none, drw_on: none, keep_mixup_drw: true}}
  lt: {label: 'DeiT-LT, SGD teacher', settings: {teacher: resnet32, drw_on: none, keep_mixup_drw: true}}
  lt_drw: {label: + DRW on DIST, from: lt, settings: {teacher: resnet32, drw_on: dist}}
  sam: {label: 'DeiT-LT, SAM teacher', settings: {teacher: resnet32_sam, drw_on: none, keep_mixup_drw: true}}
  sam_drw: {label: + DRW on DIST, from: sam, settings: {teacher: resnet32_sam, drw_on: dist}}
claims:
  - {claim: DIST is the expert of the tail, a: sam_drw dist tail, b: sam_drw cls tail}
  - {claim: DeiT-LT is better than ViT, a: sam_drw mean overall, b: vit mean overall}
  - {claim: The student passes its teacher, a: sam_drw mean overall, b: sam_drw teacher overall}
  - {claim: A SAM teacher lowers the rank of DIST, a: sam_drw dist rank, b: lt_drw dist rank, less: true}
  - {claim: Early blocks grow local, a: sam_drw early distance, b: vit early distance, less: true}
  - {claim: Tokens are driven apart, a: sam_drw tokens divergence, b: lt tokens divergence}
'''
SWEEP = {'x': 'teacher_view', 'levels': [
    {'label': 'none', 'x': None, 'arms': {'DeiT-LT': 'lt', 'ViT + DRW': 'vit'}},
    {'label': 'weak', 'x': None, 'arms': {'DeiT-LT': 'sam', 'ViT + DRW': 'vit'}},
    {'label': 'strong', 'x': None, 'arms': {'DeiT-LT': 'sam_drw', 'ViT + DRW': 'vit'}}]}
VIEWS = {'lt': 99.0, 'lt_drw': 99.0, 'sam': 72.0, 'sam_drw': 51.0}
FIGURES = {
    'claims_overall', 'claims_groups', 'claims_measures', 'overall_by_arm', 'tail_by_arm', 'head_by_arm',
    'student_and_teacher', 'sweep', 'fusions', 'distance_by_arm', 'rank_by_arm', 'divergence_by_arm'}


@pytest.fixture(autouse=True, scope='module')
def coarse_pngs():
    """PNGs of few pixels, which are quicker to make."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(look, '_DPI', 40)
        yield


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp('studies') / 'small.yaml'
    path.write_text(SMALL)
    return path


def small(source, **options):
    values = {**make_study(source, **options), 'sweep': SWEEP}
    for result in values['results']:
        if result['arm'] in VIEWS and result['analysis']:
            result['analysis']['ood']['teacher_top1_train_view'] = VIEWS[result['arm']]
    return values


@pytest.fixture(scope='module')
def study(source):
    return small(source)


@pytest.fixture(scope='module')
def folder(study, tmp_path_factory):
    folder = tmp_path_factory.mktemp('results') / 'small'
    assert write_study_report(folder, **study) == folder / 'report.html'
    return folder


@pytest.fixture(scope='module')
def page(folder):
    return Page(folder / 'report.html')


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Write a page with few of its figures, as they take the time, and read it."""
    def write(values, *names):
        with monkeypatch.context() as patch:
            for module in (study_plots, study_curves):
                patch.setattr(module, 'FIGURES', [draw for draw in module.FIGURES if draw.__name__ in names])
            return Page(write_study_report(tmp_path, **values))

    return write


def runs(study, arm):
    return [result for result in study['results'] if result['arm'] == arm]


def mean_std(values, digits=1):
    """'mean ± std' by the formulas, not by the package."""
    mean = sum(values) / len(values)
    std = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return f'{mean:.{digits}f} ± {std:.{digits}f}'


def half_interval(values):
    """Of the 95 % confidence interval of the mean of three: the quantile of Student's t of 2 degrees in closed form."""
    assert len(values) == 3
    return .95 * math.sqrt(2 / (1 - .95 ** 2)) * statistics.stdev(values) / math.sqrt(3)


def row(page, name, head):
    """Row `name` of the table whose first columns are headed `head`."""
    start = next(index for index, cells in enumerate(page.rows) if cells[:len(head)] == head)
    return next(cells[1:] for cells in page.rows[start:] if cells[0] == name)


def test_page_lies_beside_the_results_with_every_figure_and_its_png(page, folder):
    assert set(page.figures) == FIGURES
    assert {path.stem for path in (folder / 'plots').iterdir()} == FIGURES
    for name, figure in page.figures.items():
        assert figure['svg'] == 1, name
        assert re.fullmatch(r'[A-Z].{30,}\.', figure['caption']), name
        assert len(figure['alt']) > 60 and re.search(r'\d', figure['alt']), name
        png = (folder / 'plots' / f'{name}.png').read_bytes()
        assert png.startswith(b'\x89PNG') and int.from_bytes(png[16:20], 'big') == look.WIDTH * 40, name


def test_page_needs_nothing_but_itself_and_takes_its_colours_from_the_scheme(page):
    for tag, attributes in page.tags:
        assert tag not in ('script', 'iframe', 'object', 'embed', 'base', 'img'), tag
        for name in ('src', 'href', 'xlink:href'):
            assert attributes.get(name, '#').startswith(('#', 'data:')), attributes
    ids = [attributes['id'] for _, attributes in page.tags if 'id' in attributes]
    assert len(ids) == len(set(ids))
    for svg in re.findall(r'<svg.*?</svg>', page.source, re.S):
        tags = re.sub(r'(url\(|href=")#[\w-]+', '', ' '.join(re.findall(r'<[^>]*>', svg)))
        assert not re.findall(r'#[0-9a-fA-F]{3,8}\b', tags)


def test_sentence_on_top_counts_the_verdicts(page, study):
    found = [claim['verdict'] for claim in study['verdicts']]
    lede = page.source.split('class="lede">')[1].split('</p>')[0]
    assert lede.startswith('Of 6 claims, ')
    for verdict, one, more in (
            ('holds', 'holds', 'hold'), ('does not hold', 'does not hold', 'do not hold'),
            ('not shown at this scale', 'is not shown at this scale', 'are not shown at this scale')):
        count = found.count(verdict)
        assert (f'{count} {one if count == 1 else more}' in lede) == (count > 0), verdict
    assert 'too few runs' not in lede


def test_every_kind_of_verdict_has_its_words_on_top(study, written):
    kinds = ['holds', 'holds', 'does not hold', 'not shown at this scale', 'not shown at this scale', 'too few runs']
    claims = [{**claim, 'verdict': verdict} for claim, verdict in zip(study['verdicts'], kinds, strict=True)]
    page = written({**study, 'verdicts': claims})
    assert 'Of 6 claims, 2 hold, 1 does not hold, 2 are not shown at this scale and 1 has too few runs.' in page.text


def test_table_of_arms_holds_mean_std_and_n_of_every_expert_and_of_the_teacher(page, study):
    columns = [('mean', 'top1'), ('mean', 'head'), ('mean', 'mid'), ('mean', 'tail'), ('cls', 'top1'), ('cls', 'tail'),
               ('dist', 'top1'), ('dist', 'tail'), ('teacher', 'top1'), ('teacher', 'tail')]
    names = {'ViT': 'vit', 'DeiT-LT, SGD teacher': 'lt', 'DeiT-LT, SAM teacher': 'sam'}
    for label, arm in names.items():
        expected = [mean_std([run['metrics'][of][key] for run in runs(study, arm)])
                    if runs(study, arm)[0]['metrics'][of] else '–' for of, key in columns]
        assert row(page, label, ['arm', 'n', 'mean overall']) == ['3', *expected]
    assert row(page, 'ViT', ['arm', 'n', 'mean overall'])[-4:] == ['–'] * 4


def test_arms_that_go_on_from_others_are_set_off_below_them(page):
    start = next(index for index, cells in enumerate(page.rows) if cells[:2] == ['arm', 'n'])
    assert [cells[0] for cells in page.rows[start + 1:start + 6]] == [
        'ViT', 'DeiT-LT, SGD teacher', '+ DRW on DIST', 'DeiT-LT, SAM teacher', '+ DRW on DIST']
    table = page.source[page.source.index('>mean overall<'):].split('</table>')[0]
    marked = re.findall(r'<th scope="row">(<span class="key of-sub" aria-hidden="true">↳</span>)?', table)
    assert [bool(mark) for mark in marked] == [False, False, True, False, True]


def test_table_of_claims_holds_both_sides_and_their_paired_difference(page, study):
    def rank(run):
        return sum(run['analysis']['rank_dist']) / BLOCKS

    tail = [(run['metrics']['dist']['tail'], run['metrics']['cls']['tail']) for run in runs(study, 'sam_drw')]
    ranks = [(rank(one), rank(two)) for one, two in zip(runs(study, 'sam_drw'), runs(study, 'lt_drw'), strict=True)]
    for name, pairs, sign, compared in (
            ('DIST is the expert of the tail', tail, 1, 'sam_drw dist tail > sam_drw cls tail'),
            ('A SAM teacher lowers the rank of DIST', ranks, -1, 'sam_drw dist rank < lt_drw dist rank')):
        found = row(page, name, ['claim'])
        assert found[1] == '3' and found[5] == compared
        gaps = [sign * (a - b) for a, b in pairs]
        # rounded in the verdicts, then here
        assert [float(part) for part in found[2].split(' ± ')] == pytest.approx(
            [sum(gaps) / 3, half_interval(gaps)], abs=.0056)
        assert found[3:5] == [f'{sum(side) / 3:.1f}' for side in zip(*pairs, strict=True)]
        assert found[0] == 'holds'


def test_forest_gives_the_difference_with_its_confidence_interval(page, study):
    gaps = [one['metrics']['mean']['top1'] - two['metrics']['mean']['top1']
            for one, two in zip(runs(study, 'sam_drw'), runs(study, 'vit'), strict=True)]
    alt = page.figures['claims_overall']['alt']
    number = re.search(r'DeiT-LT is better than ViT: holds, n = 3, (\+[\d.]+ ± [\d.]+)\.', alt)[1]
    assert [float(part) for part in number.split(' ± ')] == pytest.approx(
        [sum(gaps) / 3, half_interval(gaps)], abs=.0056)
    assert {number, 'holds', 'DeiT-LT is better than ViT'} <= set(page.figures['claims_overall']['words'])


@pytest.fixture
def drawn(study, monkeypatch):
    """Draw a figure, and give its matplotlib axes."""
    def draw(name, **changes):
        module = study_plots if hasattr(study_plots, name) else study_curves
        found, values = [], {**study, **changes}
        with look.drawing(), monkeypatch.context() as patch:
            patch.setattr(module, 'finish', lambda figure, *_: found.append(figure))
            getattr(module, name)(Study(*(values[key] for key in (
                'name', 'arms', 'results', 'verdicts', 'settings', 'sweep'))))
        return found[0].axes

    return draw


def points(axes):
    """Places of all marks without a line between them, by x."""
    return sorted(x for line in axes.lines if line.get_linestyle() == 'None' for x in line.get_xdata())


def test_every_run_is_a_dot_and_every_mean_a_bar(drawn, study):
    for name, key in (('overall_by_arm', 'top1'), ('tail_by_arm', 'tail'), ('head_by_arm', 'head')):
        axes, = drawn(name)
        expected = []
        for arm in ('vit', 'lt', 'lt_drw', 'sam', 'sam_drw'):
            for of in ('mean', 'cls', 'dist') if arm != 'vit' else ('mean',):
                values = [run['metrics'][of][key] for run in runs(study, arm)]
                expected += [*values, sum(values) / 3]
        assert points(axes) == pytest.approx(sorted(expected))
        tail = [run['metrics']['mean'][key] for run in runs(study, 'vit')]
        std = math.sqrt(sum((value - sum(tail) / 3) ** 2 for value in tail) / 2)
        assert spans(axes)[0] == pytest.approx((sum(tail) / 3 - std, sum(tail) / 3 + std))


def spans(axes):
    """Ends of the level lines, from top to bottom."""
    return [tuple(line.get_xdata()) for line in axes.lines
            if line.get_linestyle() == '-' and len(line.get_xdata()) == 2 and len(set(line.get_ydata())) == 1]


def test_claims_are_drawn_run_by_run_and_measures_on_scales_of_their_own(drawn, study):
    panels = drawn('claims_measures')
    assert len(panels) == 3
    for axes, claim in zip(panels, study['verdicts'][3:], strict=True):
        figures = claim['figures']
        assert points(axes) == pytest.approx(sorted([*figures['differences'], figures['difference']]))
        error = half_interval(figures['differences'])
        assert spans(axes)[0] == pytest.approx(
            (figures['difference'] - error, figures['difference'] + error), abs=.01)
    assert [axes.get_xlabel().split(', ')[1] for axes in panels] == ['rank', 'pixels', '1 - cos']


def test_a_claim_of_two_pairs_shows_them_without_an_interval(study, written, drawn):
    two = {**study['verdicts'][1], 'n': 2, 'verdict': 'too few runs'}
    two['figures'] = {**two['figures'], 'differences': [1.0, 3.0], 'difference': 2.0, 'half_interval': None}
    none = {**study['verdicts'][2], 'n': 0, 'verdict': 'too few runs'}
    none['figures'] = {**none['figures'], 'differences': [], **dict.fromkeys(
        ('difference', 'half_interval', 'mean_a', 'mean_b'))}
    axes, = drawn('claims_overall', verdicts=[two, none])
    assert points(axes) == [1.0, 3.0]
    page = written({**study, 'verdicts': [two, none]}, 'claims_overall', 'claims_groups', 'claims_measures')
    alt = page.figures['claims_overall']['alt']
    assert 'DeiT-LT is better than ViT: too few runs, n = 2, +2.00.' in alt
    assert 'The student passes its teacher: too few runs, n = 0.' in alt
    assert 'no runs' in page.figures['claims_overall']['words']
    assert row(page, 'The student passes its teacher', ['claim'])[:5] == ['too few runs', '0', '–', '–', '–']
    assert not {'claims_groups', 'claims_measures'} & set(page.figures)


def test_subsets_are_shown_by_their_means_and_a_claim_on_which_they_differ_is_hollow(source, drawn):
    values = small(source, subsets=(0, 1))
    claim = next(claim for claim in values['verdicts'] if claim['claim'] == 'Early blocks grow local')
    claim = {**claim, 'verdict': 'not shown at this scale'}
    panel, = drawn('claims_measures', verdicts=[claim])
    assert claim['n'] == 6 and len(claim['figures']['by_subset']) == 2
    bars = [x for line in panel.lines if line.get_marker() == '|' for x in line.get_xdata()]
    assert bars == pytest.approx(list(claim['figures']['by_subset'].values()))
    mark, = (line for line in panel.lines if line.get_marker() == 'D')
    assert mark.get_markerfacecolor() == study_plots.LIGHT['bg'] != mark.get_color()


def curve_of(result):
    rows = csv.DictReader(result['curve'])
    return {int(row['epoch']) + 1: row for row in rows if row['eval_mean_top1']}


def test_curve_of_an_arm_begins_with_that_of_the_run_it_goes_on_from(drawn, study):
    overall, tail = drawn('student_and_teacher')
    for axes, key in ((overall, 'top1'), (tail, 'tail')):
        lines = {line.get_label(): line for line in axes.lines}
        for of, label in (('mean', 'mean of both'), ('cls', 'CLS'), ('dist', 'DIST')):
            means = []
            for epoch in (5, 10, 15, 20):
                which = 'sam' if epoch <= 10 else 'sam_drw'
                means.append(sum(float(curve_of(run)[epoch][f'eval_{of}_{key}']) for run in runs(study, which)) / 3)
            assert list(lines[label].get_xdata()) == [5, 10, 15, 20]
            assert list(lines[label].get_ydata()) == pytest.approx(means)
        teacher = sum(run['metrics']['teacher'][key] for run in runs(study, 'sam_drw')) / 3
        assert lines['teacher'].get_ydata()[0] == pytest.approx(teacher)
        marked = [line.get_xdata()[0] for line in axes.lines if len(set(line.get_xdata())) == 1]
        assert marked == [10]


def test_the_longest_run_is_the_one_that_is_set_against_its_teacher(source, study, written):
    long = [result for result in small(source, seeds=(1,), epochs=100)['results'] if result['arm'] == 'lt']
    long = [{**result, 'metrics': {**result['metrics'], 'mean': {**result['metrics']['mean'], 'top1': 90.0}}}
            for result in long]
    results = [result for result in study['results'] if result['arm'] != 'lt'] + long
    figure = written({**study, 'results': results}, 'student_and_teacher').figures['student_and_teacher']
    gap = 90 - long[0]['metrics']['teacher']['top1']
    assert 'longest: DeiT-LT, SGD teacher, 100 epochs (one run). ' in figure['caption'] and gap > 0
    assert f'mean of both {gap:.1f} above' in figure['caption']
    assert not [words for words in figure['words'] if 'stage two' in words], 'this arm has none'


def test_of_runs_as_long_the_one_whose_beginning_is_known_is_set_against_its_teacher(study, written):
    # as in a sweep, which has an arm of another study without the arm that this went on from
    arms = [{**arm, 'parent': None} for arm in study['arms'] if arm['name'] in ('lt', 'sam_drw')][::-1]
    figure = written({**study, 'arms': arms, 'verdicts': []}, 'student_and_teacher').figures['student_and_teacher']
    assert 'longest: DeiT-LT, SGD teacher, 20 epochs' in figure['caption']


def test_sweep_stands_over_the_accuracy_of_the_teacher_on_the_students_images(drawn, study):
    for axes, key in zip(drawn('sweep'), ('top1', 'tail'), strict=True):
        lines = {line.get_label(): line for line in axes.lines}
        for label, of in (('mean of both', 'mean'), ('CLS', 'cls'), ('DIST', 'dist'),
                          ('teacher, clean images', 'teacher')):
            means = [sum(run['metrics'][of][key] for run in runs(study, arm)) / 3 for arm in ('sam_drw', 'sam', 'lt')]
            assert list(lines[label].get_xdata()) == [51, 72, 99]
            assert list(lines[label].get_ydata()) == pytest.approx(means)
        vit = sum(run['metrics']['mean'][key] for run in runs(study, 'vit')) / 3
        assert list(lines['ViT + DRW'].get_ydata()) == pytest.approx([vit] * 3)


def test_levels_are_named_at_their_points_and_their_figures_told(page, study):
    figure = page.figures['sweep']
    assert {'none', 'weak', 'strong'} <= set(figure['words'])
    value = mean_std([run['metrics']['dist']['top1'] for run in runs(study, 'sam')])
    assert 'weak (72): ' in figure['alt'] and f'DIST {value}' in figure['alt']


def with_gains(study, gains):
    """The study with students that are so much above ViT + DRW, which is right on half of the images."""
    wanted = {'vit': 50.0, **{arm: 50 + gain for arm, gain in zip(('lt', 'sam', 'sam_drw'), gains, strict=True)}}
    results = json.loads(json.dumps(study['results']))
    for result in results:
        if result['arm'] in wanted:
            result['metrics']['mean']['top1'] = wanted[result['arm']]
    return {**study, 'results': results}


def test_the_prediction_of_runs_with_a_fusion_leads(written):
    values = make_study(analysed=False)
    for run in values['results']:
        if run['metrics']['dist']:
            run['metrics']['answer'] = 'mean_adjusted'
            run['fusion']['mean_adjusted'] = {**run['metrics']['mean'], 'top1': 88.8}
    page = written(values, 'overall_by_arm')
    heads = next(row for row in page.rows if row[:2] == ['arm', 'n'])
    assert heads[2:7] == [*(f'prediction {group}' for group in ('overall', 'head', 'mid', 'tail')), 'mean overall']
    assert 'prediction 88.8' in page.figures['overall_by_arm']['alt']



@pytest.mark.parametrize(('gains', 'words', 'grey'), [
    ((4, 2, 3), 'above ViT + DRW at every level, by 2.0 points or more (weak).', []),
    ((-1, -2, 0), 'At no level is the student above ViT + DRW.', []),
    ((-1, 2, 3), 'above ViT + DRW at strong (+3.0), weak (+2.0), and not at none (-1.0)', [(72, 99)]),
    ((1, -2, 3), 'above ViT + DRW at strong (+3.0), none (+1.0), and not at weak (-2.0)', [(51, 72), (72, 99)]),
])
def test_point_at_which_distillation_stops_helping_is_where_the_student_crosses_the_vit(
        study, written, drawn, gains, words, grey):
    changed = with_gains(study, gains)
    assert words in written(changed, 'sweep').figures['sweep']['caption']
    overall, tail = drawn('sweep', results=changed['results'])
    assert [(area.get_x(), area.get_x() + area.get_width()) for area in overall.patches] == grey
    assert not tail.patches, 'where they cross overall'


@pytest.mark.parametrize(('places', 'scale'), [
    ((.05, .1, .2), 'linear'), ((60, 150, 600), 'log'), ((0, .1, 2), 'linear'), ((None, None, None), 'linear')])
def test_sweep_over_a_setting_stands_over_its_values_by_logarithm_where_they_span_a_decade(drawn, places, scale):
    levels = [{'label': f'level {index}', 'x': x, 'arms': {'DeiT-LT': arm}}
              for index, (x, arm) in enumerate(zip(places, ('lt', 'sam', 'sam_drw'), strict=True))]
    for axes in drawn('sweep', sweep={'x': 'rho', 'levels': levels}):
        assert axes.get_xscale() == scale
        assert list(axes.lines[0].get_xdata()) == [index if x is None else x for index, x in enumerate(places)]
    assert axes.get_xlabel() == 'rho'
    if places[0] is None:
        assert [label.get_text() for label in axes.get_xticklabels()] == ['level 0', 'level 1', 'level 2']


@pytest.mark.parametrize(('places', 'shifted'), [
    ((10, 50, 90), [False] * 3), ((10, 11, 90), [False, True, False]), ((10, 89, 90), [False, False, True]),
    ((10, 15, 1000), [False] * 3), ((5, 5, 5), [False, True, True])])
def test_names_of_levels_that_lie_close_together_are_moved_apart(drawn, places, shifted):
    levels = [{'label': f'level {index}', 'x': x, 'arms': {'DeiT-LT': arm}}
              for index, (x, arm) in enumerate(zip(places, ('lt', 'sam', 'sam_drw'), strict=True))]
    names = drawn('sweep', sweep={'x': 'rho', 'levels': levels})[0].texts
    assert [name.get_text() for name in names] == ['level 0', 'level 1', 'level 2']
    assert [name.xyann[0] > 0 for name in names] == shifted
    assert [name.xy[0] for name in names] == list(places)


def test_sweep_without_a_vit_or_with_levels_that_are_not_run_says_so(study, written):
    levels = [{'label': label, 'x': None, 'arms': {'DeiT-LT': arm}} for label, arm in (
        ('weak', 'sam'), ('strong', 'sam_drw'), ('stronger', 'soon'), ('no view', 'vit'))]
    page = written({**study, 'sweep': {'x': 'teacher_view', 'levels': levels}}, 'sweep')
    assert '2 of the 4 levels of the sweep have been run.' in page.text
    assert 'no baseline beside it' in page.figures['sweep']['caption']
    assert not {'stronger', 'no view', 'ViT + DRW'} & set(page.figures['sweep']['words'])


def test_mechanisms_are_means_over_heads_and_runs_of_the_arms_that_claims_compare(drawn, study):
    axes, = drawn('distance_by_arm')
    lines = {line.get_label(): line for line in axes.lines}
    for label, arm in (('+ DRW on DIST (sam_drw)', 'sam_drw'), ('ViT', 'vit')):
        expected = [sum(sum(run['analysis']['attention_distance_px'][block]) / HEADS for run in runs(study, arm)) / 3
                    for block in range(BLOCKS)]
        assert list(lines[label].get_ydata()) == pytest.approx(expected)
    assert set(lines['uniform attention'].get_ydata()) == {14.4} and 'the other 3 arms' in lines
    for axes, key in zip(drawn('rank_by_arm'), ('rank_dist', 'effective_rank_dist'), strict=True):
        lines = {line.get_label(): line for line in axes.lines}
        for arm, bars in zip(('sam_drw', 'lt_drw'), axes.collections, strict=True):
            each = [[run['analysis'][key][block] for run in runs(study, arm)] for block in range(BLOCKS)]
            assert list(lines[f'+ DRW on DIST ({arm})'].get_ydata()) == pytest.approx([
                sum(values) / 3 for values in each])
            for (low, high), values in zip(bars.get_segments(), each, strict=True):
                assert high[1] - low[1] == pytest.approx(2 * statistics.stdev(values))
                assert high[1] + low[1] == pytest.approx(2 * sum(values) / 3)


def test_tables_of_mechanisms_are_those_of_the_claims(page, study):
    early = [sum(sum(heads) for heads in run['analysis']['attention_distance_px'][:2]) / (2 * HEADS)
             for run in runs(study, 'lt')]
    found = row(page, 'DeiT-LT, SGD teacher', ['arm', 'distance, first two blocks, px'])
    assert found[0] == mean_std(early)
    apart = [1 - run['analysis']['cos_norm'] for run in runs(study, 'lt')]
    assert found[-1] == mean_std(apart, 3)
    assert row(page, 'DeiT-LT, SAM teacher', ['arm', 'right on clean images, %'])[:2] == ['84.0 ± 0.0', '72.0 ± 0.0']
    start = page.text.index('Effective rank of DIST, by block')
    last = sum(run['analysis']['effective_rank_dist'][-1] for run in runs(study, 'lt')) / 3
    assert f'{last:.1f}' in page.text[start:]


def test_fusions_are_shown_by_what_they_add_to_the_mean_of_logits_in_each_arm(drawn, page, study):
    arms = ('lt', 'lt_drw', 'sam', 'sam_drw')
    for axes, key in zip(drawn('fusions'), ('top1', 'tail'), strict=True):
        expected, above = [], []
        for name in FUSIONS:
            gains = {arm: sum(run['fusion'][name][key] - run['metrics']['mean'][key] for run in runs(study, arm)) / 3
                     for arm in arms}
            expected += [*gains.values(), gains['sam_drw']]
            above.append(f'{sum(gain > 0 for gain in gains.values())} of 4')
        assert points(axes) == pytest.approx(sorted(expected))
        assert [text.get_text() for text in axes.texts if ' of 4' in text.get_text()] == above
    tail = mean_std([run['fusion']['count_mix']['tail'] for run in runs(study, 'sam')])
    assert tail == row(page, 'DeiT-LT, SAM teacher', ['arm', 'mean of the logits, overall'])[-1]
    assert row(page, 'ViT', ['arm', 'mean of the logits, overall'])[-2:] == ['–', '–']


def test_of_a_single_arm_the_fusions_show_its_runs(drawn, study):
    arms = [arm for arm in study['arms'] if arm['name'] == 'sam']
    axes, _ = drawn('fusions', arms=arms, verdicts=[])
    gains = [[run['fusion'][name]['top1'] - run['metrics']['mean']['top1'] for run in runs(study, 'sam')]
             for name in FUSIONS]
    assert points(axes) == pytest.approx(sorted([value for of in gains for value in [*of, sum(of) / 3]]))


def test_runs_of_a_second_subset_are_hollow(source, drawn):
    axes, = drawn('overall_by_arm', results=small(source, subsets=(0, 1))['results'])
    dots = [line for line in axes.lines if line.get_marker() in 'Dos' and line.get_markersize() < 4]
    hollow = [dot for dot in dots if dot.get_markerfacecolor() == 'none']
    assert len(dots) == 2 * 3 * 13 and len(hollow) == 3 * 13
    second = [run['metrics']['mean']['top1'] for run in small(source, subsets=(1,))['results'] if run['arm'] == 'vit']
    assert [dot.get_xdata()[0] for dot in hollow[:3]] == pytest.approx(second)


def test_second_subset_is_told_from_the_first_and_unlike_rows_are_warned_of(source, written):
    values = small(source, subsets=(0, 1))
    values['results'] = [run for run in values['results'] if run['subset'] == 0 or run['arm'] in ('vit', 'sam_drw')]
    values['results'] = [run for run in values['results'] if (run['arm'], run['seed']) != ('lt_drw', 2)]
    page = written(values, 'overall_by_arm')
    note = page.source.split('class="note"')[1].split('</div>')[0]
    assert 'Subset 0, seeds 1, 2, 3: lt_drw (seed 2).' in note
    assert 'Subset 1, seeds 1, 2, 3: lt, lt_drw, sam.' in note
    assert 'n from 2 to 6' in page.figures['overall_by_arm']['caption']
    assert 'hollow: other subsets' in page.figures['overall_by_arm']['caption']
    assert 'rows may be of unlike runs' in page.text and 'one subset of the images' not in page.text
    assert 'subsets 0, 1' in page.text and 'The pairs are of 2 subsets of the images' in page.text


def test_a_complete_study_has_no_note_and_says_that_it_has_one_subset(page):
    assert 'class="note"' not in page.source and 'class="missing"' not in page.source
    assert 'All runs are of one subset of the images (0)' in page.text
    assert '1 in 20 such intervals misses zero by chance; there are 6 claims here.' in page.text
    assert 'rows may be of unlike runs' not in page.text and 'hollow: other' not in page.text


def test_arms_that_are_not_run_say_so_and_leave_everything_else(source, tmp_path):
    page = Page(write_study_report(tmp_path, **small(source, leave_out=('sam', 'vit'))))
    assert row(page, 'ViT', ['arm', 'n', 'mean overall']) == ['not run', *[''] * 10]
    assert row(page, 'ViT', ['arm', 'in files']) == ['vit', '–', 'not run']
    assert 'Subset 0, seeds 1, 2, 3: vit, sam.' in page.text
    assert 'ViT' not in page.figures['overall_by_arm']['words']
    assert 'no runs' in page.figures['claims_overall']['words']
    # its first stage was not run here, so the curve begins with stage two
    assert set(page.figures) == FIGURES


def test_a_study_that_was_not_begun_has_a_page_without_figures(source, tmp_path):
    names = [arm.name for arm in load_study(str(source)).arms.values()]
    page = Page(write_study_report(tmp_path / 'results' / 'small', **small(source, leave_out=names)))
    assert not page.figures and 'No arm has been run.' in page.text
    assert 'Of 6 claims, 6 have too few runs.' in page.text
    assert '0 of the 3 levels of the sweep' in page.text


@pytest.mark.parametrize(('part', 'gone'), [
    ('analysis', {'claims_measures', 'distance_by_arm', 'rank_by_arm', 'divergence_by_arm', 'sweep'}),
    ('curve', {'student_and_teacher'}), ('fusion', {'fusions'})])
def test_what_no_run_has_measured_is_left_out_with_its_old_plots(study, source, tmp_path, part, gone):
    (tmp_path / 'plots').mkdir()
    for name in [*FIGURES, 'mine']:
        (tmp_path / 'plots' / f'{name}.png').write_bytes(b'old')
    results = [{**run, part: None} for run in study['results']]
    checked = load_study(str(source))
    judged = verdicts(checked, {
        Cell(run['subset'], run['seed'], run['arm']): {**run, 'fusion': run['fusion'] or {}} for run in results})
    page = Page(write_study_report(tmp_path, **{**study, 'results': results, 'verdicts': judged}))
    assert set(page.figures) == FIGURES - gone
    assert {path.stem for path in (tmp_path / 'plots').iterdir()} == FIGURES - gone | {'mine'}
    assert 'class="missing"' in page.source


def test_study_without_claims_or_sweep_has_neither(study, tmp_path):
    values = {key: value for key, value in study.items() if key != 'sweep'}
    page = Page(write_study_report(tmp_path, **{**values, 'verdicts': []}))
    assert '15 runs of 5 arms, and no claims to judge.' in page.text
    assert set(page.figures) == FIGURES - {'claims_overall', 'claims_groups', 'claims_measures', 'sweep'}
    assert '>Claims<' not in page.source and '>The sweep<' not in page.source


def test_settings_versions_and_files_are_listed_with_how_many_runs_had_them(study, written):
    results = json.loads(json.dumps(study['results']))
    for result in results[:4]:
        result['versions'] |= {'git': 'f3d51fe8a0b1', 'machine': 'aarch64, 8 cores'}
    page = written({**study, 'results': results})
    assert 'f3d51fe8a0b1 (4 runs), 737d7fb4fd11 (11 runs)' in page.text
    assert 'aarch64, 8 cores (4 runs), x86_64, 2 cores (11 runs)' in page.text
    assert 'The runs differ in git and machine' in page.text and '2.14.1+cpu' in page.text
    assert '<dt>drw_start_epoch</dt><dd>10</dd>' in page.source
    assert row(page, '+ DRW on DIST', ['arm', 'in files']) == ['lt_drw', 'lt', 'teacher=resnet32, drw_on=dist']
    for run in results:
        assert f'{run["arm"]}-subset0-seed{run["seed"]}.json' in page.text


def test_settings_that_a_recipe_gave_are_those_of_the_page(study, written):
    bare = {name: value for name, value in study['settings'].items() if name not in ('epochs', 'drw_start_epoch')}
    results = json.loads(json.dumps(study['results']))
    for result in results:
        result['resolved'] = result['settings']
        result['settings'] = {name: value for name, value in result['settings'].items() if name in bare}
    page = written(
        {**study, 'results': results, 'settings': {'recipe': 'mine/small', **bare}}, 'student_and_teacher')
    assert '20 epochs' in page.text and '<dt>recipe</dt><dd>mine/small</dd>' in page.source
    assert [words for words in page.figures['student_and_teacher']['words'] if 'stage two, from epoch 11' in words]


def test_runs_of_another_study_are_named_by_that(study, written):
    results = [{**run, 'study': 'main'} if run['arm'] == 'vit' else run for run in study['results']]
    page = written({**study, 'results': results})
    assert '<dt>../main/*.json</dt><dd>3 runs of that study</dd>' in page.source
    assert 'vit-subset0-seed1.json' not in page.text and 'Every file of results (12)' in page.text


def test_results_of_other_arms_are_left_out(study, written):
    other = {**study['results'][0], 'arm': 'gone', 'seed': 77}
    names = ['overall_by_arm', 'distance_by_arm']
    again = written({**study, 'results': [other, *study['results']]}, *names)
    assert again.source == written(study, *names).source


def test_same_results_give_the_same_bytes_in_whatever_order_they_come(study, folder, tmp_path):
    write_study_report(tmp_path, **{**study, 'results': study['results'][::-1]})
    files = [tmp_path / 'report.html', *(tmp_path / 'plots').iterdir()]
    assert {path.relative_to(tmp_path): path.read_bytes() for path in files} == {
        path.relative_to(tmp_path): (folder / path.relative_to(tmp_path)).read_bytes() for path in files}


def test_words_of_others_are_shown_as_they_are_and_never_run(study, tmp_path):
    hostile = ['<b>x</b>', "'><script>alert(1)</script>", '$\\frac{x}$', 'new\nline\x00', '_hidden 龍 🐈 ' + 'x' * 300]
    arms = [{**arm, 'label': label} for arm, label in zip(study['arms'], hostile, strict=True)]
    claims = [{**claim, 'claim': f'<i>{label}'} for claim, label in zip(study['verdicts'], [*hostile, ''], strict=True)]
    levels = [{**level, 'label': label} for level, label in zip(SWEEP['levels'], hostile[:3], strict=True)]
    results = [{**run, 'versions': {'<s>git': '<u>1'}} for run in study['results']]
    page = Page(write_study_report(tmp_path, **{
        **study, 'name': '<q>', 'arms': arms, 'verdicts': claims, 'results': results,
        'sweep': {'x': '<em>x', 'levels': [{**level, 'x': float(i)} for i, level in enumerate(levels)]},
        'settings': {**study['settings'], '<a href="http://x.org">': '<img src=x>'}}))
    assert not {'b', 'script', 'i', 's', 'u', 'q', 'em', 'img'} & {tag for tag, _ in page.tags}
    for shown in ('Study <q>', *hostile[:3], 'new line', '<i><b>x</b>', '<u>1', '<img src=x>', '<em>x'):
        assert shown in page.text
    assert {'<b>x</b>', '$\\frac{x}$', 'new line�'} <= set(page.figures['overall_by_arm']['words'])


def test_the_packaged_study_has_a_page_of_reasonable_size(tmp_path):
    path = write_study_report(tmp_path, **make_study(seeds=(1, 2, 3)))
    assert set(Page(path).figures) >= FIGURES - {'sweep'}
    assert path.stat().st_size < 1e6
