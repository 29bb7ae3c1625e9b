"""The page of a run: whole, self-contained, legible, and true to the files that it is written from."""
import argparse
import ast
import builtins
import csv
import json
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import yaml
from jinja2 import UndefinedError

from timm_deitlt import report
from timm_deitlt.evaluation import GROUPS, Shots
from timm_deitlt.evaluation.confusion import describe_confusion
from timm_deitlt.report import look, run_analysis, run_plots, write_report
from timm_deitlt.report.look import DARK, LIGHT, plain
from timm_deitlt.report.run import Run
from timm_deitlt.run.settings import drw_start, drw_targets

DPI = look._DPI
COUNTS = (38, 140, 18, 83, 108, 14, 64, 30, 50, 23)
VOID = {'meta', 'link', 'br', 'img', 'hr', 'input'}
ALL = {
    'accuracy_by_class', 'accuracy_by_shot', 'accuracy_by_epoch', 'losses', 'learning_rate', 'expert_divergence',
    'divergence_by_block', 'attention_distance', 'feature_rank', 'attention_rollout', 'attention_last_block',
    'teacher_agreement', 'confusion_matrix', 'tail_images'}
ANALYSED = {'divergence_by_block', 'attention_distance', 'feature_rank'}
MAPS = {'attention_rollout', 'attention_last_block'}
MISTAKES = {'confusion_matrix', 'tail_images'}


def make_run(
        folder, counts=COUNTS, two_experts=True, teacher='resnet32_sam', evaluated=True, analysed=True, names=None,
        epochs=12, model='deit_lt_small', fusion=None, **settings,
):
    """A folder as train.py and analyze.py leave it, with plausible figures."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    experts = ('mean', 'cls', 'dist') if two_experts else ('mean', 'cls')
    args = {**dict(
        model=model, dataset='lt/digits', teacher=teacher, epochs=epochs, drw_start_epoch=None, drw_on=None, loss='ce',
        lr=.003, opt='muon', data_dir='/home/somebody/my images', model_kwargs={'depth': 12}, mean=[.3, .3, .3],
        warmup_epochs=2, seed=42, img_size=None, amp=False, workers=0, output='/home/somebody/runs'), **settings}
    (folder / 'args.yaml').write_text(yaml.safe_dump(args))
    shots = Shots.from_counts(counts)
    metrics = metrics_of(shots, experts, teacher if teacher != 'none' else None, evaluated, names, model, epochs, rng)
    if fusion:
        metrics |= {'answer': fusion, 'fusion': {fusion: metrics['dist']}}
        experts = (fusion, *experts)
    (folder / 'metrics.json').write_text(json.dumps(metrics))
    versions = {'timm_deitlt': '0.1.0', 'git': '6cabbb72840e', 'torch': '2.14.1', 'machine': 'x86_64, 2 cores'}
    (folder / 'versions.json').write_text(json.dumps(versions))
    with open(folder / 'summary.csv', 'w', newline='') as file:
        rows = [epoch_row(epoch, epochs, experts, teacher != 'none' and two_experts, evaluated)
                for epoch in range(epochs)]
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    if analysed:
        add_analysis(folder, two_experts, teacher != 'none', rng)
        add_attention(folder, two_experts, shots, rng)
        add_tail_images(folder, shots, rng)
        (folder / 'signatures.json').write_text(json.dumps([
            {'name': 'experts_alike', 'message': 'CLS and DIST are still alike.', 'suggestion': 'Train longer.'}]))
    (folder / 'last.pth.tar').write_bytes(b'weights')
    return folder


def metrics_of(shots, experts, teacher, evaluated, names, model, epochs, rng):
    counts, classes = shots.class_counts, len(shots.class_counts)
    tests = [20 if evaluated else 0] * classes

    def measured(slope):
        where = np.empty(classes)
        where[list(shots.order)] = np.linspace(0, 1, classes)
        per_class = (5 * rng.binomial(20, np.clip(.97 - slope * where, .02, 1))).astype(float).tolist()
        groups = {  # of two classes the mid group is empty
            group: sum(per_class[i] for i in labels) / len(labels) if labels else None
            for group, labels in shots.groups.items()}
        overall = float(np.mean(per_class))
        return {'loss': .4, 'top1': overall, **({'top5': 99.0} if classes > 5 else {}), 'balanced': overall, **groups,
                'per_class': per_class}

    slopes = {'mean': .3, 'cls': .5, 'dist': .25}
    return {
        **{name: measured(slopes[name]) if evaluated and name in experts else None for name in slopes},
        'teacher': teacher and {
            'name': teacher, 'source': 'trained', 'path': '/home/somebody/cache/model.safetensors',
            **(measured(.1) if evaluated else {})},
        'shots': shots.describe(tests),
        'confusion': confusion_of(shots, tests, names) if evaluated else None,
        'data': {
            'name': 'lt/digits', 'imbalance_factor': counts[0] / counts[-1], 'train_counts': list(counts),
            'test_counts': tests, 'class_names': names or [str(label) for label in range(classes)],
            'evaluated_on': 'the test images' if evaluated else None, 'split_seed': 0, 'fingerprint': '23aad8200c07',
            'bad_images': 0},
        'model': model, 'epochs': epochs, 'epochs_trained': epochs, 'seed': 42, 'seconds': 389.6,
        'train_images_per_second': 41.3, 'weights_sha256': '851c83c0', 'versions': {'git': '6cabbb72840e'},
    }


def confusion_of(shots, tests, names):
    """Of each class most images are right, the others are taken for the next two."""
    classes = len(tests)
    if classes > 1000:
        return None
    matrix = [[0] * classes for _ in tests]
    for label, count in enumerate(tests):
        wrong = label % (count // 2)
        for said, part in ((label, count - wrong), (label + 1, wrong - wrong // 3), (label + 2, wrong // 3)):
            matrix[label][said % classes] += part
    return describe_confusion(matrix, names or [str(label) for label in range(classes)])


def epoch_row(epoch, epochs, experts, distilled, evaluated):
    done = (epoch + 1) / epochs
    row = {'epoch': epoch, 'train_loss': 2 - done, 'train_lr': 1e-3 * (1.01 - done), 'train_seconds': 7.5}
    if distilled:
        row |= {'train_task_loss': 2.1 - done, 'train_distill_loss': 1.9 - done, 'train_agreement': .3 + .4 * done,
                'train_cosine': 1 - .2 * done, 'train_teacher_correct': .8}
    for place, expert in enumerate(experts if evaluated else ()):
        row |= {f'eval_{expert}_{key}': max(0.0, value - 3 * place) for key, value in {
            'top1': 90 * done, 'head': 99 * done, 'mid': 90 * done, 'tail': 80 * done ** 2}.items()}
        row[f'eval_{expert}_loss'] = 2.3 - done
        if epoch == 1:  # an epoch that was not evaluated
            row |= {name: '' for name in row if name.startswith('eval_')}
    return row


def add_analysis(folder, two_experts, teacher, rng, depth=12, heads=6):
    ood = {
        'teacher_top1_clean': 99.6, 'teacher_top1_train_view': 78.9, 'teacher_entropy_train_view': 1.62,
        'teacher_entropy_clean': .91, 'teacher_tail_share': 14.2, 'true_tail_share': 9.7, 'dist_agreement': 77.1,
        'num_views': 568}
    analysis = {
        'model': 'deit_lt_small', 'num_images': 340, 'images': 'the test images', 'grid': [4, 4],
        'attention_distance_px': rng.uniform(8, 24, (depth, heads)).tolist(), 'uniform_attention_distance_px': 25.1,
        'rank_cls': [40 + 5 * block for block in range(depth)], 'rank_dist': [38 + 4 * block for block in range(depth)],
        'effective_rank_cls': [12.5 + block for block in range(depth)],
        'effective_rank_dist': [11.5 + block for block in range(depth)], 'rank_energy': .99,
        'cos': [1 - .007 * block for block in range(depth)], 'divergence': [.007 * block for block in range(depth)],
        'cos_norm': .926, 'divergence_over_training': [], 'ood': ood if teacher else None, 'seconds': 4.2}
    if not two_experts:
        analysis |= {'divergence': None, 'cos': None, 'cos_norm': None}
    (folder / 'analysis.json').write_text(json.dumps(analysis))


def add_attention(folder, two_experts, shots, rng, size=64, patches=4):
    labels = [*shots.groups['head'][:3], *shots.groups['tail'][-3:]]
    images = rng.integers(0, 255, (len(labels), size // 8, size // 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    maps = {}
    for name in (f'{token}_{kind}' for token in ('cls', 'dist')[:1 + two_experts] for kind in ('rollout', 'last')):
        weights = rng.random((len(labels), patches, patches)).astype(np.float32)
        maps[name] = weights / weights.sum((1, 2), keepdims=True)
    groups = ['head' if label in shots.groups['head'] else 'tail' for label in labels]
    np.savez(folder / 'attention.npz', images=images, labels=np.array(labels), groups=np.array(groups), **maps)


def add_tail_images(folder, shots, rng, count=7, size=32):
    labels = [shots.groups['tail'][i % len(shots.groups['tail'])] for i in range(count)]
    np.savez(
        folder / 'tail_images.npz', images=rng.integers(0, 255, (count, size, size, 3), dtype=np.uint8),
        labels=np.array(labels), predicted=np.array([shots.order[0]] * count),
        confidence=np.linspace(.9, .5, count, dtype=np.float32),
        probability=np.linspace(.001, .2, count, dtype=np.float32))


class Page(HTMLParser):
    """What a browser would find in a page; refuses tags that do not nest."""

    def __init__(self, path):
        super().__init__(convert_charrefs=True)
        self.source = path.read_text('utf-8')
        self.tags, self.open, self.words = [], [], []
        self.figures, self.rows = {}, []
        self.feed(self.source)
        self.close()
        assert not self.open, self.open
        self.text = ' '.join(' '.join(self.words).split())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag not in VOID:
            self.open.append(tag)
        if tag == 'figure':
            self.figures[attributes['id']] = {'svg': 0, 'caption': '', 'words': []}
            self.figure = self.figures[attributes['id']]
        if tag == 'svg':
            self.figure['svg'] += 1
            self.figure['alt'] = attributes.get('aria-label')
            assert attributes['role'] == 'img'
        if tag == 'tr':
            self.rows.append([])
        if tag in ('td', 'th'):
            self.rows[-1].append('')

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f'</{tag}> closes nothing'

    def handle_data(self, data):
        if 'style' in self.open:
            return
        self.words.append(data)
        if self.open and self.open[-1] in ('td', 'th'):
            self.rows[-1][-1] += data
        if 'figcaption' in self.open:
            self.figure['caption'] += data
        elif 'svg' in self.open:
            self.figure['words'].append(data)

    def row(self, name, index=0):
        return [row for row in self.rows if row and row[0].lstrip('◆●■▲') == name][index][1:]


@pytest.fixture(autouse=True, scope='module')
def coarse_pngs():
    """PNGs of few pixels, which are quicker to make; one test has the fine ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(look, '_DPI', 40)
        yield


@pytest.fixture(scope='module')
def student(tmp_path_factory):
    """A student with a teacher and everything that can be in its folder."""
    return make_run(tmp_path_factory.mktemp('runs') / 'student')


@pytest.fixture(scope='module')
def page(student):
    return Page(write_report(student))


def written(tmp_path, **options):
    return Page(write_report(make_run(tmp_path / 'run', **options)))


def test_page_lies_in_the_folder_and_holds_every_figure(page, student):
    assert (student / 'report.html').is_file()
    assert set(page.figures) == ALL


def test_every_figure_has_a_headline_a_caption_and_numbers_for_those_who_do_not_see_it(page):
    for name, figure in page.figures.items():
        assert figure['svg'] == 1, name
        assert re.fullmatch(r'[A-Z].{30,}\.', figure['caption']), name
        assert len(figure['alt']) > 60 and re.search(r'\d', figure['alt']), name


def test_figures_are_in_the_plots_folder_too_for_papers_and_cards(page, student):
    pngs = {path.stem: path.read_bytes() for path in (student / 'plots').iterdir()}
    assert set(pngs) == ALL
    for name, png in pngs.items():
        assert png.startswith(b'\x89PNG'), name
        assert int.from_bytes(png[16:20], 'big') == look.WIDTH * 40, name


def test_page_needs_nothing_but_itself(page):
    for tag, attributes in page.tags:
        assert tag not in ('script', 'iframe', 'object', 'embed', 'base', 'img'), tag
        assert not [name for name in attributes if name.startswith('on')], tag
        for name in ('src', 'href', 'xlink:href', 'srcset', 'action', 'data', 'poster'):
            if name in attributes:
                assert attributes[name].startswith(('#', 'data:')), attributes[name]
        assert not re.search(r'url\((?!#)', attributes.get('style', ''))
    style = re.search(r'<style>(.*?)</style>', page.source, re.S)[1]
    assert '@import' not in style and 'url(' not in style
    policy, = (a['content'] for _, a in page.tags if a.get('http-equiv') == 'Content-Security-Policy')
    assert "default-src 'none'" in policy and 'http' not in policy


def test_ids_are_unique_and_everything_that_is_referred_to_is_there(page):
    ids = [attributes['id'] for _, attributes in page.tags if 'id' in attributes]
    assert len(ids) == len(set(ids))
    wanted = set(re.findall(r'url\(#([^)]+)\)', page.source))
    for _, attributes in page.tags:
        wanted |= {attributes[name].lstrip('#') for name in ('href', 'aria-labelledby')
                   if attributes.get(name, '').startswith('#') or name == 'aria-labelledby' and name in attributes}
    assert wanted <= set(ids) and len(wanted) > 20


def test_figures_have_no_colour_or_font_of_their_own_so_that_they_follow_the_page_into_the_dark(page):
    for svg in re.findall(r'<svg.*?</svg>', page.source, re.S):
        tags = ' '.join(tag for tag in re.findall(r'<[^>]*>', svg) if 'base64' not in tag)
        assert not re.findall(r'#[0-9a-fA-F]{3,8}\b(?!-)', re.sub(r'(url\(|href=")#[\w-]+', '', tags))
        assert 'DejaVu' not in tags and 'font-family' not in tags
        assert 'var(--fg)' in tags


def test_an_expert_has_the_same_colour_and_marker_everywhere(page):
    marks = {'mean': '◆', 'cls': '●', 'dist': '■', 'teacher': '▲'}
    for name in ('accuracy_by_class', 'accuracy_by_shot', 'accuracy_by_epoch', 'losses', 'feature_rank'):
        svg = re.search(rf'id="{name}".*?</svg>', page.source, re.S)[0]
        for label, role in (('CLS', 'cls'), ('DIST', 'dist')):
            assert label in page.figures[name]['words'] and f'var(--{role})' in svg
    for role, mark in marks.items():
        assert f'class="key of-{role}" aria-hidden="true">{mark}<' in page.source


def luminance(colour):
    channels = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= .04045 else ((c + .055) / 1.055) ** 2.4 for c in channels]
    return .2126 * linear[0] + .7152 * linear[1] + .0722 * linear[2]


def contrast(first, second):
    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + .05) / (dark + .05)


@pytest.mark.parametrize('colours', [LIGHT, DARK], ids=['light', 'dark'])
def test_contrast_is_that_of_wcag_aa(colours):
    assert contrast('#ffffff', '#000000') == pytest.approx(21)
    for text in ('fg', 'muted'):
        for ground in ('bg', 'box', 'warn'):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for series in ('mean', 'cls', 'dist', 'teacher', 'first', 'second', 'muted'):
        assert contrast(colours[series], colours['bg']) >= 3, series
    for series in ('mean', 'cls', 'dist', 'teacher'):  # drawn over the grey bars as well
        assert contrast(colours[series], colours['count']) >= 2.8, series


def test_table_holds_the_figures_of_the_run_by_expert_and_group(page, student):
    metrics = json.loads((student / 'metrics.json').read_text())
    order = sorted(range(10), key=lambda label: (-COUNTS[label], label))
    groups = dict(zip(GROUPS, (order[:2], order[2:8], order[8:]), strict=True))
    assert page.row('classes')[:4] == ['10', '2', '6', '2']
    assert page.row('train images')[:4] == [f'{n:,}' for n in (568, 248, 288, 32)]
    assert page.row('test images')[:4] == ['200', '40', '120', '40']
    for key, name in (('mean', 'mean of both'), ('cls', 'CLS'), ('dist', 'DIST'), ('teacher', 'teacher')):
        right = metrics[key]['per_class']
        means = [sum(right) / 10, *(sum(right[i] for i in labels) / len(labels) for labels in groups.values())]
        assert page.row(name)[:4] == [f'{value:.1f}' for value in means]
    assert page.row('7') == ['30', '20', *(f'{metrics[key]["per_class"][7]:.1f}' for key in (
        'mean', 'cls', 'dist', 'teacher'))]


def test_the_prediction_of_a_fusion_comes_first_in_tables_and_figures(tmp_path):
    run = make_run(tmp_path / 'run', analysed=False, fusion='mean_adjusted')
    metrics = json.loads((run / 'metrics.json').read_text())
    row = {**metrics['mean'], 'top1': 98.7, 'per_class': [91., 92., 93., 94., 95., 96., 97., 98., 99., 100.]}
    (run / 'metrics.json').write_text(json.dumps({**metrics, 'fusion': {'mean_adjusted': row}}))
    page = Page(write_report(run))
    assert page.row('prediction: mean of DIST and adjusted CLS')[0] == '98.7'
    assert ('span', {'class': 'key of-answer', 'aria-hidden': 'true'}) in page.tags and '✚' in page.words
    assert page.row('7') == ['30', '20', '98.0', *(f'{metrics[key]["per_class"][7]:.1f}' for key in (
        'mean', 'cls', 'dist', 'teacher'))]
    for figure in ('accuracy_by_class', 'accuracy_by_shot', 'accuracy_by_epoch'):
        assert 'prediction' in page.figures[figure]['words'], figure


def test_sentence_on_top_says_the_result_and_the_teacher_beside(page, student):
    metrics = json.loads((student / 'metrics.json').read_text())
    mean, teacher = metrics['mean'], metrics['teacher']
    lede = page.source.split('class="lede">')[1].split('</p>')[0]
    student, teachers = lede.split('teacher')
    assert 'After 12 epochs' in student and 'the test images' in student and 'resnet32_sam' in teachers
    for part, row in ((student, mean), (teachers, teacher)):
        assert re.findall(r'([\d.]+) %', part) == [f'{row[key]:.1f}' for key in ('top1', 'head', 'mid', 'tail')]
        assert all(f'{group} {row[group]:.1f} %' in part for group in GROUPS)


def test_sections_come_in_the_order_of_a_reader_with_two_minutes(page):
    places = [page.source.index(text) for text in (
        '<h1>deit_lt_small on lt/digits</h1>', 'class="lede"', 'experts alike', 'mean of both</th>',
        *(f'<figure id="{name}"' for name in (
            'accuracy_by_class', 'accuracy_by_shot', 'accuracy_by_epoch', 'losses', 'learning_rate',
            'expert_divergence', 'divergence_by_block', 'attention_distance', 'feature_rank', 'attention_rollout')),
        'teacher is right, %', '6cabbb72840e', 'Settings (', 'last.pth.tar')]
    assert places == sorted(places)


def test_failure_signatures_stand_on_top_with_what_to_do(page):
    note = page.source.split('class="note"')[1].split('</div>')[0]
    assert 'CLS and DIST are still alike.' in note and 'Train longer.' in note


def test_no_date_is_made_up(page):
    assert not re.search(r'\b20\d\d-\d\d', page.text)


def test_alternative_text_of_classes_lists_them_from_most_to_least_frequent(tmp_path):
    run = make_run(tmp_path / 'run', counts=(5, 50, 500, 50), names=['rare', 'first', 'most', 'second'], analysed=False)
    metrics = json.loads((run / 'metrics.json').read_text())
    alt = Page(write_report(run)).figures['accuracy_by_class']['alt']
    assert 'from 500 to 5 training images' in alt and 'most, first, second, rare.' in alt
    expected = ', '.join(f'{metrics["cls"]["per_class"][label]:.0f}' for label in (2, 1, 3, 0))
    assert f'CLS: {expected} %.' in alt


def test_order_of_classes_is_that_of_the_groups(student):
    run = Run(student)
    assert run.order == list(Shots.from_counts(COUNTS).order)
    assert run.boundaries == Shots.from_counts(COUNTS).boundaries


@pytest.mark.parametrize('epochs', [2, 3, 12, 22, 40, 1200])
@pytest.mark.parametrize('options', [
    {}, {'drw_on': 'cls'}, {'drw_on': 'both'}, {'drw_on': 'none'}, {'teacher': 'none'}, {'teacher': 'labels'},
    {'teacher': 'none', 'loss': 'ldam'}, {'drw_start_epoch': 1}, {'drw_on': 'none', 'keep_mixup_drw': True},
    {'drw_on': 'none', 'keep_mixup_drw': True, 'cls_loss': 'balanced_softmax'}], ids=str)
def test_switch_to_stage_two_is_marked_where_training_makes_it(tmp_path, epochs, options):
    args = {
        'epochs': epochs, 'drw_start_epoch': None, 'drw_on': None, 'teacher': 'resnet32_sam', 'loss': 'ce', **options}
    tmp_path.joinpath('args.yaml').write_text(yaml.safe_dump(args))
    tmp_path.joinpath('summary.csv').write_text(f'epoch,train_distill_loss\n{epochs - 1},1\n')
    found = Run(tmp_path).stage_two
    names = argparse.Namespace(**args)
    start, target = drw_start(names), drw_targets(names)
    if start >= epochs or 'keep_mixup_drw' in options and 'cls_loss' not in options:  # then nothing changes
        assert found is None
        return
    assert found[0] == start
    assert found[1] == {
        'dist': 'DRW on DIST', 'cls': 'DRW on CLS', 'both': 'DRW on CLS and DIST', 'none': 'stage two without DRW',
    }[target]


@pytest.fixture
def drawn(student, monkeypatch):
    """Draw a figure of the student, and give its matplotlib axes and the files."""
    def draw(name):
        module = next(x for x in (run_plots, run_analysis) if hasattr(x, name))
        figures = []
        monkeypatch.setattr(module, 'finish', lambda figure, *_: figures.append(figure))
        with look.drawing():
            getattr(module, name)(Run(student))
        return figures[0].axes

    with open(student / 'summary.csv') as file:
        rows = list(csv.DictReader(file))
    return SimpleNamespace(
        axes=draw, rows=rows, **{name: json.loads((student / f'{name}.json').read_text())
                                 for name in ('metrics', 'analysis')})


def lines(axes):
    return {line.get_label(): (line.get_xdata(), line.get_ydata()) for line in axes.lines}


def test_classes_are_drawn_from_the_most_frequent_on_with_their_counts_and_the_borders_of_the_groups(drawn):
    axes, behind = drawn.axes('accuracy_by_class')
    order = sorted(range(10), key=lambda label: (-COUNTS[label], label))
    for name, label in (('mean', 'mean of both'), ('cls', 'CLS'), ('dist', 'DIST'), ('teacher', 'teacher')):
        places, accuracy = lines(axes)[label]
        assert list(accuracy) == [drawn.metrics[name]['per_class'][i] for i in order]
        assert [round(place) for place in places] == list(range(1, 11))
    tops = [bar.get_y() + bar.get_height() for bar in behind.patches]
    assert tops == pytest.approx([COUNTS[label] for label in order])
    assert behind.get_yscale() == 'log'
    borders = [line.get_xdata()[0] for line in axes.lines if len(set(line.get_xdata())) == 1]
    assert borders == [2.5, 8.5]


def test_bars_are_as_high_as_the_accuracy_of_the_group(drawn):
    axes, = drawn.axes('accuracy_by_shot')
    for bars, name in zip(axes.containers, ('mean', 'cls', 'dist', 'teacher'), strict=True):
        expected = [drawn.metrics[name][key] for key in ('top1', 'head', 'mid', 'tail')]
        assert [bar.get_height() for bar in bars] == pytest.approx(expected)


def test_curves_show_each_evaluated_epoch_and_the_switch_after_the_last_one_of_stage_one(drawn):
    for axes, key in zip(drawn.axes('accuracy_by_epoch'), ('top1', 'tail'), strict=True):
        for name, label in (('mean', 'mean of both'), ('cls', 'CLS'), ('dist', 'DIST')):
            pairs = [(int(row['epoch']) + 1, float(row[f'eval_{name}_{key}'])) for row in drawn.rows
                     if row[f'eval_{name}_{key}']]
            assert len(pairs) == 11, 'one epoch was not evaluated'
            assert list(zip(*lines(axes)[label], strict=True)) == pairs
        assert set(lines(axes)['teacher'][1]) == {drawn.metrics['teacher'][key]}
        assert [line.get_xdata()[0] for line in axes.lines if len(set(line.get_xdata())) == 1] == [11]
    training, evaluation = drawn.axes('losses')
    assert list(lines(training)['DIST'][1]) == [float(row['train_distill_loss']) for row in drawn.rows]
    assert lines(evaluation)['CLS'][1][0] == float(drawn.rows[0]['eval_cls_loss'])
    rate, = drawn.axes('learning_rate')
    assert list(rate.lines[0].get_ydata()) == [float(row['train_lr']) for row in drawn.rows]


def test_mechanisms_are_drawn_as_they_were_measured(drawn):
    analysis = drawn.analysis
    during, = drawn.axes('expert_divergence')
    assert list(during.lines[0].get_ydata()) == [1 - float(row['train_cosine']) for row in drawn.rows]
    divergence, = drawn.axes('divergence_by_block')
    assert list(divergence.lines[0].get_ydata()) == pytest.approx([*analysis['divergence'], 1 - analysis['cos_norm']])
    distance, = drawn.axes('attention_distance')
    for block in (1, 2, 12):
        measured = lines(distance)[f'block {block}'][1]
        assert list(measured) == sorted(analysis['attention_distance_px'][block - 1])
    assert set(lines(distance)['uniform attention'][1]) == {25.1}
    for axes, kind in zip(drawn.axes('feature_rank'), ('rank', 'effective_rank'), strict=True):
        for token in ('cls', 'dist'):
            assert list(lines(axes)[token.upper()][1]) == analysis[f'{kind}_{token}']


def test_switch_is_named_in_the_curves(page):
    for name in ('accuracy_by_epoch', 'losses', 'learning_rate', 'expert_divergence', 'teacher_agreement'):
        assert 'DRW on DIST, from epoch 12' in page.figures[name]['words'], name


def test_a_run_that_stopped_before_the_switch_shows_none(tmp_path):
    run = make_run(tmp_path / 'run')
    lines = (run / 'summary.csv').read_text().splitlines()
    (run / 'summary.csv').write_text('\n'.join(lines[:5]) + '\n')
    (run / 'metrics.json').unlink()
    page = Page(write_report(run))
    assert 'from epoch' not in ' '.join(page.figures['losses']['words'])
    assert '4 of 12 epochs: unfinished' in page.text and '--resume auto' in page.text


def test_divergence_is_one_minus_the_cosine_of_the_log(page, student):
    with open(student / 'summary.csv') as file:
        cosines = [float(row['train_cosine']) for row in csv.DictReader(file)]
    alt = page.figures['expert_divergence']['alt']
    assert f'{1 - cosines[0]:.3g} after epoch 1, {1 - cosines[-1]:.3g} after epoch 12' in alt


def test_attention_is_summed_up_by_the_share_of_the_patches_attended_most(page, student):
    with np.load(student / 'attention.npz') as arrays:
        def share(token, group):
            maps = [weights.ravel().tolist() for weights in arrays[f'{token}_rollout'][arrays['groups'] == group]]
            return 100 * sum(sum(sorted(weights)[-4:]) / sum(weights) for weights in maps) / len(maps)

        alt = page.figures['attention_rollout']['alt']
        for group in ('head', 'tail'):
            words = alt[alt.index(f'images of {group} classes'):]
            assert re.findall(r'(\d+) % of the attention of (\w+)', words)[:2] == [
                (f'{share(token, group):.0f}', token.upper()) for token in ('cls', 'dist')]


def test_confused_classes_are_drawn_from_the_most_frequent_on_and_listed_by_name(drawn, page, student):
    axes, _ = drawn.axes('confusion_matrix')
    order = sorted(range(10), key=lambda label: (-COUNTS[label], label))
    assert [label.get_text() for label in axes.get_yticklabels()] == list(map(str, order))
    matrix, (image,) = np.array(drawn.metrics['confusion']['matrix']), axes.images
    colours = np.asarray(image.get_array())
    for row, true in enumerate(order):
        for column, said in enumerate(order):
            share = matrix[true, said] / matrix[true].sum()
            expected = matplotlib.colormaps['viridis'](share ** .5, bytes=True)
            assert tuple(colours[row, column]) == tuple(expected)
    for pair in drawn.metrics['confusion']['pairs'][:10]:
        rows = [row[2:] for row in page.rows if row[:2] == [pair['true'], pair['predicted']]]
        assert [str(pair['images']), f'{pair["percent"]:.1f}'] in rows


def test_worst_tail_images_are_shown_with_their_class_and_the_answer(drawn, page, student):
    axes = drawn.axes('tail_images')
    with np.load(student / 'tail_images.npz') as arrays:
        for place, panel in enumerate(axes[:7]):
            assert np.array_equal(np.asarray(panel.images[0].get_array()), arrays['images'][place])
        words = ' '.join(page.figures['tail_images']['words'])
        assert f'{arrays["labels"][0]}: 0.1 %' in words and f'→ {arrays["predicted"][0]}: 90 %' in words
    assert len(axes) == 9 and not axes[7].images


def test_teacher_table_shows_both_views(page):
    assert page.row('teacher is right, %') == ['99.6', '78.9']
    assert page.row("entropy of the teacher's prediction, nats") == ['0.91', '1.62']
    assert page.row('teacher predicts a tail class, %') == ['–', '14.2']


def test_settings_show_no_folder_of_this_machine(page):
    assert '/home/somebody' not in page.source
    assert '…/my images' in page.text and 'depth=12' in page.text
    assert '<dt>workers</dt><dd>0</dd>' in page.source, 'zero is a setting'
    off = page.text[page.text.index('Off or not given:'):]
    assert re.match(r'Off or not given: amp, drw_on, drw_start_epoch, img_size\.', off)


def test_same_files_give_the_same_bytes_wherever_they_lie(student, page, tmp_path):
    other = make_run(tmp_path / 'elsewhere' / 'student')
    settings = dict(matplotlib.rcParams)
    with matplotlib.rc_context({'font.size': 23, 'lines.linewidth': 9, 'svg.fonttype': 'path', 'xtick.major.size': 20}):
        changed = dict(matplotlib.rcParams)
        write_report(other)
        assert dict(matplotlib.rcParams) == changed, "the user's settings were touched"
    assert dict(matplotlib.rcParams) == settings
    files = [other / 'report.html', *(other / 'plots').iterdir()]
    again = {path.relative_to(other): path.read_bytes() for path in files}
    assert again == {path: (student / path).read_bytes() for path in again}
    write_report(other)  # a second time, with page and plots there already
    assert {path: (other / path).read_bytes() for path in again} == again


@pytest.mark.parametrize(('names', 'gone', 'hint'), [
    (['analysis.json'], ANALYSED, 'python analyze.py RUN'),
    (['attention.npz', 'tail_images.npz', 'signatures.json', 'versions.json'], MAPS | {'tail_images'},
     'python analyze.py RUN'),
    (['summary.csv'], {'accuracy_by_epoch', 'losses', 'learning_rate', 'expert_divergence', 'teacher_agreement'},
     'no summary.csv'),
    (['metrics.json'], {'accuracy_by_class', 'accuracy_by_shot', 'confusion_matrix'}, 'train.py --resume auto'),
    (['args.yaml'], set(), 'no args.yaml'),
], ids=lambda value: value[0] if isinstance(value, list) else '')
def test_what_is_missing_is_left_out_with_a_line_that_says_how_to_get_it(tmp_path, names, gone, hint):
    run = make_run(tmp_path / 'run')
    (run / 'plots').mkdir()
    for name in [*ALL, 'mine']:  # of an earlier page, and the user's
        (run / 'plots' / f'{name}.png').write_bytes(b'old')
    for name in names:
        (run / name).unlink()
    page = Page(write_report(run))
    assert set(page.figures) == ALL - gone
    assert hint in page.text
    assert {path.stem for path in (run / 'plots').iterdir()} == ALL - gone | {'mine'}
    assert '6cabbb72840e' in page.text, 'versions.json and metrics.json both know the commit'


def test_everything_is_there_and_no_line_says_that_something_is_missing(page):
    assert 'class="missing"' not in page.source


def test_plain_vit_has_one_expert_and_no_dist_anywhere(tmp_path):
    page = written(tmp_path, two_experts=False, teacher='none')
    assert set(page.figures) == ALL - {'expert_divergence', 'divergence_by_block', 'teacher_agreement'}
    assert 'DIST' not in page.source.split('id="result"')[1]
    assert page.row('this model') and not [row for row in page.rows if 'CLS' in row[0]]
    assert 'the model correctly classifies' in page.text and 'No teacher' in page.text


def test_both_tokens_may_learn_the_labels_without_a_network(tmp_path):
    run = make_run(tmp_path / 'run', teacher='labels', analysed=False)
    metrics = json.loads((run / 'metrics.json').read_text())
    (run / 'metrics.json').write_text(json.dumps({**metrics, 'teacher': None}))
    page = Page(write_report(run))
    assert 'both tokens learned the labels' in page.text and page.row('DIST')
    assert not [row for row in page.rows if row and 'teacher' in row[0]]


def test_run_of_a_cnn_is_not_sent_to_analyze_attention(tmp_path):
    page = written(tmp_path, two_experts=False, teacher='none', model='resnet32_cifar', analysed=False)
    assert set(page.figures) == {
        'accuracy_by_class', 'accuracy_by_shot', 'accuracy_by_epoch', 'losses', 'learning_rate', 'confusion_matrix'}
    assert 'analyze.py' not in page.text


def test_run_without_evaluation_images_says_so_and_how_to_get_figures(tmp_path):
    page = written(tmp_path, evaluated=False, analysed=False)
    assert set(page.figures) == {'losses', 'learning_rate', 'expert_divergence', 'teacher_agreement'}
    assert 'was not evaluated' in page.text and 'python validate.py RUN --val-split NAME' in page.text
    assert page.row('train images')[:4] == ['568', '248', '288', '32']


def test_classes_without_test_images_are_dashes_not_zeros(tmp_path):
    run = make_run(tmp_path / 'run', analysed=False)
    metrics = json.loads((run / 'metrics.json').read_text())
    for name in ('mean', 'cls', 'dist', 'teacher'):
        metrics[name]['per_class'][9] = None
        metrics[name]['tail'] = None
    metrics['shots']['missing_classes'] = [9]
    (run / 'metrics.json').write_text(json.dumps(metrics))
    page = Page(write_report(run))
    assert page.row('9')[2:] == ['–'] * 4 and page.row('CLS')[3] == '–'
    assert 'No test images of class 9; every mean leaves them out' in page.text
    assert 'tail unknown' in page.figures['accuracy_by_shot']['alt']


def test_diverged_losses_are_gaps(tmp_path):
    run = make_run(tmp_path / 'run', analysed=False)
    text = (run / 'summary.csv').read_text()
    (run / 'summary.csv').write_text(text.replace('\n11,1.0,', '\n11,nan,').replace('\n5,1.5,', '\n5,inf,'))
    assert 'nan' in (run / 'summary.csv').read_text() and 'inf' in (run / 'summary.csv').read_text()
    alt = Page(write_report(run)).figures['losses']['alt']
    assert 'nan' not in alt and 'inf' not in alt


HOSTILE = ['<b>x</b>', 'a|b & "c"', "'><script>alert(1)</script>", 'cat 🐈', '$\\frac{x}$', 'new\nline\x00', '#0072b2',
           '龍', '\ud800', 'a very long name of a class that does not fit anywhere at all']


def test_names_from_files_are_shown_as_they_are_and_never_run(tmp_path):
    run = make_run(tmp_path / 'run', names=HOSTILE, model='<i>model</i>')
    metrics = json.loads((run / 'metrics.json').read_text())
    metrics['data']['name'] = '<u>data</u>'
    metrics['teacher']['name'] = '<img src=http://x.org/a.png>'
    (run / 'metrics.json').write_text(json.dumps(metrics))
    (run / 'versions.json').write_text(json.dumps({'<s>key</s>': '<s>value</s>'}))
    (run / 'signatures.json').write_text(json.dumps([
        {'name': '<a href=http://x.org>', 'message': '"<q>"', 'suggestion': '`<code>`'}, 'only <words>']))
    page = Page(write_report(run))
    assert not {'b', 'script', 'i', 'u', 'img', 's', 'q'} & {tag for tag, _ in page.tags}
    names = [row[0] for row in page.rows]
    assert {*HOSTILE[:5], 'new line�', *HOSTILE[6:8], '�', HOSTILE[9]} <= set(names)
    for shown in ('<i>model</i> on <u>data</u>', '<img src=http://x.org/a.png>', '<s>value</s>', '<a href=http://x.org>',
                  'only <words>'):
        assert shown in page.text
    drawn = page.figures['accuracy_by_class']['words']
    assert {'<b>x</b>', 'cat 🐈', '$\\frac{x}$', '#0072b2', '龍', 'a very long n…'} <= set(drawn)


def inaturalist_counts(classes):
    return tuple(np.geomspace(1000, 2, classes).astype(int).tolist())


def test_8142_classes_take_a_small_page(tmp_path):
    run = make_run(tmp_path / 'run', counts=inaturalist_counts(8142), epochs=1000)
    path = write_report(run)
    assert path.stat().st_size < 2e6
    page = Page(path)
    assert set(page.figures) == ALL - {'confusion_matrix'}, 'of so many classes nothing is counted in pairs'
    assert 'The accuracy of all 8,142 classes is in metrics.json' in page.text
    assert len(re.search(r'id="accuracy_by_class".*?</svg>', page.source, re.S)[0]) < 1e5


def test_many_classes_are_drawn_as_means_over_neighbours(tmp_path):
    accuracy = np.array([float(label % 7) for label in range(200)])
    accuracy[3] = math.nan
    ranks, means = run_plots._smoothed(accuracy)
    for block in range(40):
        labels = range(5 * block, 5 * block + 5)
        known = [accuracy[label] for label in labels if not math.isnan(accuracy[label])]
        assert means[block] == pytest.approx(sum(known) / len(known))
        assert ranks[block] == pytest.approx(sum(label + 1 for label in labels) / 5)
    figures = written(tmp_path, counts=inaturalist_counts(200), analysed=False).figures
    assert 'means of about 5 neighbours' in figures['accuracy_by_class']['caption']


def test_page_of_a_quick_start_is_small_and_its_plots_are_fine_enough_for_print(tmp_path, monkeypatch):
    monkeypatch.setattr(look, '_DPI', DPI)
    run = make_run(tmp_path / 'run', epochs=22)
    path = write_report(run)
    assert path.stat().st_size < 1e6
    for png in (run / 'plots').iterdir():
        assert int.from_bytes(png.read_bytes()[16:20], 'big') >= 900, png


def test_large_images_are_shrunk(tmp_path):
    run = make_run(tmp_path / 'run')
    add_attention(run, True, Shots.from_counts(COUNTS), np.random.default_rng(1), size=224, patches=14)
    assert write_report(run).stat().st_size < 2e6


def test_tile_is_bright_where_attention_is(student):
    weights = np.zeros((1, 4, 4), dtype=np.float32)
    weights[0, 1, 2] = 1
    arrays = {'images': np.full((1, 64, 64, 3), 128, np.uint8), 'cls_last': weights}
    tiles = run_analysis._tiles(arrays, 0, 'last', ['cls'])
    image, heat = tiles[:, :64, :3], tiles[:, -64:, :3]
    assert (image == 128).all()
    bright = heat.sum(-1) > heat.sum(-1).min()
    expected = np.zeros((64, 64), dtype=bool)
    expected[16:32, 32:48] = True
    assert (bright == expected).all()


def test_folder_that_is_no_run_is_an_error_that_names_it(tmp_path):
    for folder in (tmp_path, tmp_path / 'nowhere'):
        with pytest.raises(FileNotFoundError, match=f'{folder}.*not the folder of a run.*train.py'):
            write_report(folder)


@pytest.mark.parametrize(('name', 'content'), [
    ('metrics.json', '{"mean": '), ('metrics.json', '[]'), ('args.yaml', 'a: [b'), ('summary.csv', 'epoch,x\n1,what\n'),
    ('summary.csv', 'x\n1\n'), ('attention.npz', 'no zip'), ('analysis.json', '3')])
def test_file_that_cannot_be_read_is_an_error_that_names_it(tmp_path, name, content):
    run = make_run(tmp_path / 'run')
    (run / name).write_text(content)
    with pytest.raises(ValueError, match=f'{name}.*again'):
        write_report(run)
    assert not (run / 'report.html').exists()


def test_only_who_writes_a_page_imports_matplotlib_and_jinja():
    tree = ast.parse(Path(report.__file__).read_text())
    imported = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert {node.module.partition('.')[0] for node in imported} <= set(sys.stdlib_module_names)


def test_pages_and_plots_use_no_global_state_of_pyplot(student, monkeypatch):
    monkeypatch.delitem(sys.modules, 'matplotlib.pyplot', raising=False)
    real = builtins.__import__

    def no_pyplot(name, *args, **options):
        assert 'pyplot' not in name, 'pyplot picks a backend and keeps figures'
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, '__import__', no_pyplot)
    assert write_report(Path(student)).is_file()


def test_characters_that_would_deceive_a_reader_are_replaced():
    assert plain('a\u202eb\u2066c\x00d\ne') == 'a�b�c�d e'


def test_no_template_can_forget_to_escape_a_value_or_name_one_that_is_not_there():
    templates = look._templates()
    shown = templates.from_string('{{ value }}{{ values|join(", ") }}').render(value='<b>\u202e', values=['<i>', "'"])
    assert shown == '&lt;b&gt;�&lt;i&gt;, &#39;'
    with pytest.raises(UndefinedError):
        templates.from_string('{{ value }}').render()
