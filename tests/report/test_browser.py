"""The pages of runs and studies in Chromium: nothing leaves them, nothing overflows, and all on them can be read.

Needs playwright, and Chromium: playwright's own (`playwright install chromium`) or that of the system
(`apt-get install chromium`), or the one that CHROMIUM names.
"""
import os
import shutil
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from test_run_page import ALL, ANALYSED, MAPS, MISTAKES, inaturalist_counts, make_run
from test_study_page import FIGURES as OF_A_STUDY
from test_study_page import make_study

from timm_deitlt.report import look, write_report, write_study_report

pytestmark = pytest.mark.browser

CLOTHES = ['T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat', 'Sandal', 'Shirt', 'Sneaker', 'Bag', 'Ankle boot']
RUNS = {
    'student': dict(epochs=22),
    'fused': dict(fusion='mean_adjusted', counts=(1000,) * 4 + (10,) * 6),
    'clothes': dict(names=CLOTHES, counts=(1000, 599, 359, 215, 129, 77, 46, 27, 16, 10), drw_on='both', epochs=150),
    'hundred': dict(counts=tuple(np.geomspace(500, 5, 100).astype(int).tolist()), epochs=1200),
    'inaturalist': dict(counts=inaturalist_counts(8142), epochs=1000),
    'vit': dict(two_experts=False, teacher='none'),
    'cnn': dict(two_experts=False, teacher='none', model='resnet32_cifar', analysed=False, epochs=2),
    'two_classes': dict(counts=(50, 5), epochs=1),
    'not_evaluated': dict(evaluated=False, analysed=False),
    'wide': dict(names=['x' * 300, *map(str, range(1, 10))], model='m' * 200),
}
FIGURES = {
    'vit': ALL - {'expert_divergence', 'divergence_by_block', 'teacher_agreement'},
    'cnn': ALL - ANALYSED - MAPS - {'expert_divergence', 'teacher_agreement', 'tail_images'},
    'inaturalist': ALL - {'confusion_matrix'},
    'not_evaluated': ALL - ANALYSED - MAPS - MISTAKES - {
        'accuracy_by_class', 'accuracy_by_shot', 'accuracy_by_epoch'},
}
VIEWS = [('none', 'weak_view', 97.0), ('crop and flip', 'soft', 95.5), ('light', 'lt', 74.0), ('strong', 'sam', 49.0)]
STUDIES = {
    'study': dict(),
    # core arms on a second subset, arms that are not run, and names too long for a line
    'study_unfinished': dict(subsets=(0, 1), leave_out=('deit_bal', 'deit_bal_drw', 'sam_balanced')),
    'study_one_seed': dict(seeds=(1,), analysed=False),
    'study_not_begun': dict(seeds=()),
}
FIGURES |= {
    'study': OF_A_STUDY,
    'study_unfinished': OF_A_STUDY,
    'study_one_seed': OF_A_STUDY - {
        'claims_measures', 'distance_by_arm', 'rank_by_arm', 'divergence_by_arm', 'sweep'},
    'study_not_begun': set(),
}
SCREENS = {'desktop': (1280, 900), 'phone': (390, 844)}

# Of each figure: its box and, of each text in it, the words, the box, the size of the letters on the screen, the colour
_MEASURE = '''() => [...document.querySelectorAll('figure')].map(figure => {
  const svg = figure.querySelector('svg'), box = svg.getBoundingClientRect()
  const edges = r => [r.left, r.top, r.right, r.bottom]
  return {name: figure.id, box: edges(box), caption: figure.querySelector('figcaption').getBoundingClientRect().height,
    texts: [...svg.querySelectorAll('text')].map(text => ({
      words: text.textContent, box: edges(text.getBoundingClientRect()),
      slanted: /rotate\\(-?40/.test(text.getAttribute('transform') || ''),
      size: parseFloat(getComputedStyle(text).fontSize) * box.width / svg.viewBox.baseVal.width,
      color: getComputedStyle(text).fill})),
    images: [...svg.querySelectorAll('image')].map(image => edges(image.getBoundingClientRect())),
    lines: svg.querySelectorAll('path').length}
})'''


@pytest.fixture(scope='module')
def browser():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        found = os.environ.get('CHROMIUM') or (own if Path(own).exists() else None) or next(
            filter(None, map(shutil.which, ('chromium', 'chromium-headless-shell', 'google-chrome'))), None)
        assert found, 'there is no Chromium: `playwright install chromium`, or `apt-get install chromium`'
        browser = playwright.chromium.launch(executable_path=found)
        yield browser
        browser.close()


@pytest.fixture(scope='module')
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(look, '_DPI', 40)  # of the PNG files, which the pages do not show
        runs = {name: write_report(make_run(folder / name, **options)) for name, options in RUNS.items()}
        return {**runs, **{name: write_study_report(folder / name, **study_of(name)) for name in STUDIES}}


def study_of(name):
    values = make_study(**STUDIES[name])
    seen = {arm: accuracy for _, arm, accuracy in VIEWS}
    for result in values['results']:
        if result['arm'] in seen and result['analysis']:
            result['analysis']['ood']['teacher_top1_train_view'] = seen[result['arm']]
    levels = [{'label': label, 'x': None, 'arms': {'DeiT-LT': arm, 'ViT + DRW': 'vit_drw'}} for label, arm, _ in VIEWS]
    if name == 'study_unfinished':
        values['results'] = [run for run in values['results'] if run['subset'] == 0 or run['arm'] in ('vit', 'sam_drw')]
        for place, named in enumerate([*values['arms'], *values['verdicts']]):
            if place % 4 == 0:
                named |= {key: f'{named[key]} and {"very " * 30} long' for key in ('label', 'claim') if key in named}
        levels = [{**level, 'x': x} for level, x in zip(levels, (30, 60, 150, 1200), strict=True)]
    return {**values, 'sweep': {'x': 'epochs' if levels[0]['x'] else 'teacher_view', 'levels': levels}}


@pytest.fixture(scope='module')
def shots(tmp_path_factory):
    return tmp_path_factory.mktemp('screenshots')


@pytest.fixture
def opened(browser):
    """Open a page by its file:// address until the test ends, and list the requests that it makes."""
    with ExitStack() as contexts:
        yield partial(_open, browser, contexts)


def _open(browser, contexts, path, screen='desktop', scheme='light', **options):
    width, height = SCREENS[screen]
    context = contexts.enter_context(closing(
        browser.new_context(viewport={'width': width, 'height': height}, color_scheme=scheme, **options)))
    page, requests = context.new_page(), []
    page.on('request', lambda request: requests.append(request.url))
    page.on('console', lambda message: requests.append(f'console: {message.text}'))
    page.on('pageerror', lambda error: requests.append(f'error: {error}'))
    page.goto(path.as_uri(), wait_until='networkidle')
    return page, requests


@pytest.mark.parametrize('screen', SCREENS)
@pytest.mark.parametrize('run', [*RUNS, *STUDIES])
def test_page_is_whole_and_legible(opened, pages, shots, run, screen):
    page, requests = opened(pages[run], screen)
    for scheme in ('light', 'dark'):
        page.emulate_media(color_scheme=scheme)
        page.screenshot(path=shots / f'{run}_{screen}_{scheme}.png', full_page=True)
        assert requests == [pages[run].as_uri()], 'only the file itself is asked for'
        check_page(page, run, SCREENS[screen][0])


def check_page(page, run, width):
    assert page.evaluate('document.documentElement.scrollWidth') <= width, 'the page scrolls sideways'
    figures = page.evaluate(_MEASURE)
    assert {figure['name'] for figure in figures} == FIGURES.get(run, ALL)
    for figure in figures:
        left, top, right, bottom = figure['box']
        name = figure['name']
        assert right - left > 300 and bottom - top > 80 and figure['caption'] > 10, name
        assert left >= 0 and right <= width, name
        assert figure['lines'] > 5 or figure['images'], name
        for box in figure['images']:
            sides = sorted((box[2] - box[0], box[3] - box[1]))
            assert sides[0] > 12 and sides[1] > 50, name  # the narrowest is the scale of the colours
        check_texts(figure, run)


def check_texts(figure, run):
    left, top, right, bottom = figure['box']
    texts = figure['texts']
    for text in texts:
        box = text['box']
        where = f'{run}, {figure["name"]}: {text["words"]!r}'
        assert text['size'] >= 7.5, f'{where} is too small: {text["size"]:.1f} px'
        inside = left - 1 <= box[0] and box[2] <= right + 1 and top - 1 <= box[1] and box[3] <= bottom + 1
        assert inside, f'{where} is cut'
    for index, one in enumerate(texts):
        for two in texts[index + 1:]:
            if one['slanted'] and two['slanted']:  # their boxes overlap, their letters do not
                continue
            width = min(one['box'][2], two['box'][2]) - max(one['box'][0], two['box'][0])
            height = min(one['box'][3], two['box'][3]) - max(one['box'][1], two['box'][1])
            assert width <= 1 or height <= 3, f'{run}, {figure["name"]}: {one["words"]!r} lies on {two["words"]!r}'


@pytest.mark.parametrize('run', ['student', 'study'])
def test_text_and_ground_change_with_the_colour_scheme_in_figures_too(opened, pages, run):
    seen = {}
    for scheme in ('light', 'dark'):
        page, _ = opened(pages[run], scheme=scheme)
        ground = page.evaluate('getComputedStyle(document.body).backgroundColor')
        letters = {text['color'] for figure in page.evaluate(_MEASURE) for text in figure['texts']}
        seen[scheme] = ground, letters
    assert seen['light'][0] == 'rgb(255, 255, 255)' and seen['dark'][0] == 'rgb(22, 24, 27)'
    assert not seen['light'][1] & seen['dark'][1]


@pytest.mark.parametrize(('run', 'sections', 'head'), [('student', 8, 'class'), ('study', 8, 'in files')])
def test_links_lead_to_sections_and_details_open_without_a_script(opened, pages, run, sections, head):
    page, _ = opened(pages[run], java_script_enabled=False)
    targets = [link.get_attribute('href') for link in page.locator('nav a').all()]
    assert len(targets) == sections
    for target in targets:
        assert page.locator(target).count() == 1
    row = page.locator('details th', has_text=head).first
    assert not row.is_visible()
    page.locator('summary').first.click()
    assert row.is_visible()


def test_wide_tables_scroll_inside_their_box_by_keyboard_too(opened, pages):
    page, _ = opened(pages['inaturalist'], 'phone')
    box = page.locator('.scroll').first
    assert box.evaluate('box => box.scrollWidth > box.clientWidth')
    box.focus()
    page.keyboard.press('ArrowRight')
    for _ in range(50):  # it scrolls smoothly
        if box.evaluate('box => box.scrollLeft > 0'):
            break
        page.wait_for_timeout(100)
    assert box.evaluate('box => box.scrollLeft > 0')
    assert page.evaluate('window.scrollX') == 0


@pytest.mark.parametrize(('run', 'columns'), [
    ('student', ('tail', "student's view")), ('study', ('verdict', 'difference', 'mean overall'))])
def test_phone_shows_the_figures_that_matter_without_scrolling_a_table(opened, pages, run, columns):
    page, _ = opened(pages[run], 'phone')
    for column in columns:
        box = page.get_by_role('columnheader', name=column, exact=True).first.bounding_box()
        assert box['x'] + box['width'] <= 390 - 16 + 1, column


@pytest.mark.parametrize('run', ['student', 'study'])
def test_paper_shows_what_is_folded_and_breaks_no_figure(opened, pages, shots, run):
    page, _ = opened(pages[run], scheme='dark')
    page.emulate_media(media='print', color_scheme='dark')
    assert page.evaluate('getComputedStyle(document.body).backgroundColor') == 'rgb(255, 255, 255)'
    assert page.locator('details dl').last.evaluate('dl => dl.getBoundingClientRect().height') > 50
    for figure in page.locator('figure').all():
        assert figure.evaluate('figure => getComputedStyle(figure).breakInside') == 'avoid'
        assert figure.locator('svg').first.evaluate('svg => svg.getBoundingClientRect().height < .8 * innerHeight')
    pdf = page.pdf(path=shots / f'{run}.pdf', format='A4')
    assert 3 <= pdf.count(b'/Type /Page\n') <= 12


def test_check_of_texts_finds_what_is_cut_small_or_on_top_of_another():
    def text(*box, size=10, words='x'):
        return {'words': words, 'box': box, 'size': size, 'slanted': False}

    good = {'name': 'figure', 'box': (0, 0, 100, 100), 'texts': [text(0, 0, 20, 10), text(30, 0, 50, 10)]}
    check_texts(good, 'run')
    wrong = {
        'is cut': text(90, 0, 110, 10), 'too small': text(60, 0, 80, 10, size=6), 'lies on': text(10, 2, 28, 12)}
    for words, bad in wrong.items():
        with pytest.raises(AssertionError, match=words):
            check_texts({**good, 'texts': [*good['texts'], bad]}, 'run')
