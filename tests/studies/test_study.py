"""Studies: what is run, in which order, what the table says, and how claims are judged."""
import json
import math
import statistics

import pytest
from conftest import ROOT
from helpers import unpadded

from timm_deitlt.data.augment import weak_transform
from timm_deitlt.run.build.loaders import build_train_transform
from timm_deitlt.run.settings import resolve_settings
from timm_deitlt.run.teacher_settings import teacher_args, teacher_settings
from timm_deitlt.settings.checks import validate_args
from timm_deitlt.settings.layers import parse_args
from timm_deitlt.studies.cells import Cell, cell_args, cell_path, cell_settings, plan, read_results, resolved_settings
from timm_deitlt.studies.command import add_verdicts, with_table
from timm_deitlt.studies.study import load_study, study_names
from timm_deitlt.studies.table import FAILS, FEW, HOLDS, OPEN, format_study, value, verdicts

CONFIG = {'input_size': (1, 28, 28), 'interpolation': 'bicubic', 'mean': (.5,)}
STUDY = '''
settings: {dataset: lt/digits, model: deit_lt_tiny, epochs: 2, drw_start_epoch: 1}
arms:
  plain: {label: Plain, settings: {teacher: none, drw_on: none}}
  weighted: {label: Weighted, from: plain, settings: {teacher: none, drw_on: cls}}
  other: {label: Other, settings: {teacher: labels}}
claims:
  - {claim: weights help the tail, a: weighted mean tail, b: plain mean tail}
  - {claim: weights lower the rank, a: weighted cls rank, b: plain cls rank, less: true}
'''


@pytest.fixture
def study(tmp_path):
    (tmp_path / 'small.yaml').write_text(STUDY)
    return load_study(str(tmp_path / 'small.yaml'))


def put(root, study, arm, seed, tail, rank=3, subset=0):
    cell = Cell(subset, seed, arm)
    path = cell_path(root, study, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({
        'study': study.name, 'arm': arm, 'subset': subset, 'seed': seed, 'settings': cell_settings(study, cell),
        'resolved': resolved_settings(cell_args(study, cell)), 'fusion': {}, 'curve': [], 'versions': {},
        'metrics': {'mean': {'top1': 50. + tail, 'head': 90., 'mid': 60., 'tail': tail}, 'cls': None, 'dist': None},
        'analysis': {'rank_cls': [rank, rank + 2], 'attention_distance_px': [[10, 20], [30, 40], [90, 90]],
                     'cos_norm': .75}}))


def test_a_study_may_build_on_a_recipe(tmp_path):
    (tmp_path / 'mine.yaml').write_text('base: [default/student, default/small_data]\nepochs: 7\nlr: 0.5')
    (tmp_path / 'small.yaml').write_text(f'recipe: {tmp_path / "mine.yaml"}\n' + STUDY)
    study = load_study(str(tmp_path / 'small.yaml'))
    args = cell_args(study, Cell(0, 1, 'plain'))
    assert (args.epochs, args.model, args.lr, args.guidance) == (2, 'deit_lt_tiny', .5, 2.5), 'its own settings win'
    args = cell_args(study, Cell(0, 1, 'plain'), {'model': 'resnet32_cifar'})
    assert args.guidance == 0 and args.opt != 'muon'


def test_the_recipe_for_small_data_is_the_arm_that_the_search_has_chosen():
    chosen = cell_args(load_study('small_data'), Cell(0, 1, 'guide_init_muon'))
    measured = cell_args(load_study('small_data_recipe'), Cell(0, 1, 'recipe'))
    used = parse_args(['-c', 'fashion_mnist/small_data', '--seed', '1'])
    differ = {'val_split', 'fusion', 'sources', 'global_batch_size'}  # the search ran on one device
    for args in (measured, used):
        assert {name for name in vars(args) if vars(args)[name] != vars(chosen)[name]} == differ


def test_each_part_of_the_recipe_is_left_out_by_itself_and_its_rivals_see_as_many_images():
    study = load_study('small_data_reversed')
    settings = {arm: resolved_settings(cell_args(study, Cell(0, 1, arm))) for arm in study.arms}
    whole, cnn = settings['recipe'], settings.pop('cnn')
    left_out = {arm: {name: ours[name] for name in ours if ours[name] != whole[name]} for arm, ours in settings.items()}
    long = {'teacher': 'none', 'guidance': 0, 'epochs': 260, 'drw_start_epoch': 234}
    muon, init = {'opt': 'adamw', 'muon_hidden_only': False}, {'init': None}
    assert left_out == {
        'recipe': {}, 'vit': {**long, 'drw_on': 'cls'}, 'vit_plain': {**long, 'drw_on': 'none'},
        'no_guidance': {'guidance': 0}, 'guided_only': {**muon, **init}, 'no_muon': muon, 'no_init': init,
        'drw_dist': {'drw_on': 'dist'},
        'augmented': {
            'train_crop_mode': 'rrc', 'aa': 'rand-m9-mstd0.5-inc1', 'reprob': .25, 'mixup': .8, 'cutmix': 1},
    }
    args = cell_args(study, Cell(0, 1, 'recipe'))
    assert (args.epochs, args.teacher_epochs, args.amp) == (200, 60, False)
    args.teacher_epochs = 260
    assert cnn == resolved_settings(teacher_args(args, num_images=2478))


@pytest.mark.parametrize('name', study_names())
def test_every_arm_of_a_packaged_study_is_a_training_that_resolves(name):
    study = load_study(name)
    assert study.arms and (study.claims or study.sweep)
    for arm, body in study.arms.items():
        if body.origin:
            assert body.origin[1] in load_study(body.origin[0]).arms
            continue
        args = cell_args(study, Cell(0, 1, arm))
        validate_args(args)
        settings = resolve_settings(args, planned=True)
        build_train_transform(settings.augment, CONFIG)
        assert settings.seed == 1 and settings.stage_two.start_epoch < settings.schedule.epochs
        if settings.teacher.is_network:
            teacher_settings(settings, 2478, planned=True)


def test_the_sweeps_of_a_study_are_on_its_data_and_share_its_settings():
    base = load_study('fashion_mnist').settings
    varied = {'epochs', 'drw_start_epoch', 'val_interval', 'teacher', 'drw_on'}
    sweeps = [study for study in map(load_study, study_names()) if study.sweep]
    assert len(sweeps) == 3
    for study in sweeps:
        assert {k: v for k, v in study.settings.items() if k not in varied} == {
            k: v for k, v in base.items() if k not in varied}
        assert {arm for level in study.sweep['levels'] for arm in level['arms'].values()} == set(study.arms)
        assert study.seeds == (1,)


def test_an_arm_of_another_study_is_read_there_and_never_trained(tmp_path):
    main, sweep = load_study('fashion_mnist'), load_study('fashion_mnist_rho')
    for seed, subset in ((1, 0), (2, 0), (1, 1)):  # the sweep is of seed 1
        put(tmp_path, main, 'sam_drw', seed, 5., subset=subset)
    found = read_results(tmp_path, sweep)
    assert set(found) == {Cell(0, 1, 'rho_01')} and found[Cell(0, 1, 'rho_01')]['metrics']['mean']['tail'] == 5.
    assert [cell.arm for cell in plan(sweep, tmp_path, list(sweep.arms), [1], [0])] == [
        'rho_005', 'rho_02', 'rho_04', 'rho_08']
    assert cell_path('results', sweep, Cell(0, 1, 'rho_0')).as_posix() == (
        'results/fashion_mnist/lt_drw-subset0-seed1.json')


def test_the_sweep_of_augmentation_begins_with_the_teachers_own_view():
    study = load_study('fashion_mnist_augmentation')
    steps = {}
    for arm in ('lt_none', 'lt_crop', 'lt_half', 'lt_beyond'):
        transform = build_train_transform(resolve_settings(cell_args(study, Cell(0, 1, arm))).augment, CONFIG)
        steps[arm] = [type(step).__name__ for step in transform.transforms]
    weak = weak_transform(CONFIG['input_size'], CONFIG['interpolation'])
    assert steps['lt_none'] == [type(step).__name__ for step in weak.transforms]
    assert steps['lt_crop'] == ['RandomResizedCropAndInterpolation', 'RandomHorizontalFlip', 'MaybePILToTensor']
    assert 'RandAugment' in steps['lt_half'] and 'RandAugment' in steps['lt_beyond']


@pytest.mark.parametrize('name', study_names())
def test_arms_that_share_a_first_stage_differ_from_it_in_stage_two_alone(name):
    study = load_study(name)
    of_stage_two = {'drw_on', 'keep_mixup_drw', 'cls_loss'}
    for arm in study.arms.values():
        if arm.parent:
            ours, theirs = dict(arm.settings), dict(study.arms[arm.parent].settings)
            assert {k: v for k, v in ours.items() if k not in of_stage_two} == {
                k: v for k, v in theirs.items() if k not in of_stage_two}
            assert ours != theirs


def test_what_has_a_file_is_not_planned_again_and_seeds_come_one_after_the_other(study, tmp_path):
    put(tmp_path, study, 'plain', 1, 5.)
    cells = plan(study, tmp_path, list(study.arms), [1, 2], [0])
    assert [(cell.seed, cell.arm) for cell in cells] == [
        (1, 'weighted'), (1, 'other'), (2, 'plain'), (2, 'weighted'), (2, 'other')]
    assert plan(study, tmp_path, ['plain'], [1], [0]) == []
    with pytest.raises(ValueError, match='no arm nothing: the study has plain, weighted, other'):
        plan(study, tmp_path, ['nothing'], [1], [0])


def test_results_of_other_settings_and_damaged_files_are_refused(study, tmp_path):
    put(tmp_path, study, 'plain', 1, 5.)
    path = cell_path(tmp_path, study, Cell(0, 1, 'plain'))
    result = json.loads(path.read_text())
    path.write_text(json.dumps({**result, 'settings': {**result['settings'], 'epochs': 9}}))
    with pytest.raises(ValueError, match=r'other settings than the study has \(epochs\)'):
        read_results(tmp_path, study)
    without = {name: value for name, value in result.items() if name != 'metrics'}
    for damaged in ('{', '[]', json.dumps(without), json.dumps({**result, 'seed': 2})):
        path.write_text(damaged)
        with pytest.raises(ValueError, match='is damaged'):
            read_results(tmp_path, study)


@pytest.mark.parametrize('change, words', [
    (('from: plain', 'from: nowhere'), 'continues from nowhere'), (('mean tail}', 'mean tale}'), 'is no figure'),
    (('settings: {dataset', 'setings: {dataset'), 'unknown keys: setings'),
    (('claims:', 'sweep: {x: y, levels: [{label: z, arms: {A: plane}}]}\nclaims:'), 'unknown arms: plane'),
    (('weighted mean', 'wheighted mean'), 'no figure')])
def test_a_study_with_a_slip_is_refused_naming_it(tmp_path, change, words):
    assert change[0] in STUDY
    (tmp_path / 'slip.yaml').write_text(STUDY.replace(*change, 1))
    with pytest.raises(ValueError, match=words):
        load_study(str(tmp_path / 'slip.yaml'))
    with pytest.raises(FileNotFoundError, match='fashion_mnist'):
        load_study(str(tmp_path / 'missing.yaml'))


@pytest.mark.parametrize('differences, verdict', [
    ([4., 5., 6.], HOLDS), ([-4., -5., -6.], FAILS), ([4., -5., 6.], OPEN), ([4., 5.], FEW), ([], FEW),
    ([1., 1., 1.], HOLDS), ([0., 0., 0.], OPEN), ([.5, 1.5, 2.5], OPEN), ([.5, 1.5, 2.5] * 2, HOLDS)])
def test_a_claim_is_judged_by_its_paired_differences(study, tmp_path, differences, verdict):
    for seed, difference in enumerate(differences, 1):
        put(tmp_path, study, 'plain', seed, 10. * seed)
        put(tmp_path, study, 'weighted', seed, 10. * seed + difference)
    put(tmp_path, study, 'weighted', 99, 0.)  # without a partner
    found = verdicts(study, read_results(tmp_path, study), 'results')[0]
    assert (found['verdict'], found['n'], found['figures']['differences']) == (verdict, len(differences), differences)
    if len(differences) > 1:
        assert found['figures']['std'] == pytest.approx(statistics.stdev(differences), abs=1e-3)
    if len(differences) > 2:
        error = statistics.stdev(differences) / math.sqrt(len(differences))
        limit = {3: 4.302653, 6: 2.570582}[len(differences)] * error  # the quantiles of a printed table
        assert found['figures']['half_interval'] == pytest.approx(limit, abs=1e-3)
        assert (verdict in (HOLDS, FAILS)) == (abs(statistics.fmean(differences)) > limit)
    assert len(found['files']) == 2 * len(differences)
    assert all(name.startswith('results/small/') for name in found['files'])


def test_a_claim_that_other_images_contradict_is_not_shown(study, tmp_path):
    for subset, differences in ((0, [9., 9.5, 10.] * 3), (1, [-.1, 0., -.1])):
        for seed, difference in enumerate(differences, 1):
            put(tmp_path, study, 'plain', seed, 10., subset=subset)
            put(tmp_path, study, 'weighted', seed, 10. + difference, subset=subset)
    results = read_results(tmp_path, study)
    found = verdicts(study, results)[0]
    assert (found['n'], found['verdict']) == (12, OPEN)
    assert found['figures']['difference'] > found['figures']['half_interval']
    assert found['figures']['by_subset'] == {'0': 9.5, '1': -.067}
    first = {cell: result for cell, result in results.items() if not cell.subset}
    assert verdicts(study, first)[0]['verdict'] == HOLDS
    text = unpadded(format_study(study, results))
    assert 'Other images of the same classes and counts (`--subsets 1`)' in text
    assert text.count('| Plain | 9 |') == text.count('| Plain | 3 |') == 1


def test_a_claim_of_less_counts_downward_and_measures_are_averages(study, tmp_path):
    for seed in (1, 2, 3):
        put(tmp_path, study, 'plain', seed, 1., rank=9)
        put(tmp_path, study, 'weighted', seed, 1., rank=4)
    results = read_results(tmp_path, study)
    found = verdicts(study, results)[1]
    assert found['verdict'] == HOLDS and found['figures']['difference'] == 5
    row = '| weights lower the rank | 3 | rank 5.0 | rank 10.0 | +5.00 ± 0.00 | *holds* |'
    assert row in unpadded(format_study(study, results)).splitlines()
    some = results[Cell(0, 1, 'plain')]
    assert value(some, 'cls', 'rank') == 10 and value(some, 'early', 'distance') == 25
    assert value(some, 'tokens', 'divergence') == .25 and value(some, 'dist', 'rank') is None
    assert value(some, 'dist', 'overall') is None and value({**some, 'analysis': None}, 'cls', 'rank') is None


def test_the_table_has_mean_std_and_n_of_every_arm_that_ran_and_names_the_others(study, tmp_path):
    for seed, tail in ((1, 10.), (2, 14.)):
        put(tmp_path, study, 'plain', seed, tail)
    text = unpadded(format_study(study, read_results(tmp_path, study)))
    assert f'| Plain | 2 | 62.0 ± {statistics.stdev([60, 64]):.1f} |' in text
    assert '| Other |' not in text
    assert 'Not run yet: `plain` (seed 3); `weighted`, `other` (seed 1, 2, 3).' in text
    assert 'Not measured yet: weights help the tail; weights lower the rank.' in text
    put(tmp_path, study, 'weighted', 1, 20.)
    text = unpadded(format_study(study, read_results(tmp_path, study)))
    assert f'| weights help the tail | 1 | 20.0 | 10.0 | +10.00 | *{FEW}* |' in text


def test_the_table_leads_with_the_answers_of_runs_that_fuse(study, tmp_path):
    for arm in ('plain', 'other'):
        put(tmp_path, study, arm, 1, 10.)
    path = cell_path(tmp_path, study, Cell(0, 1, 'other'))
    result = json.loads(path.read_text())
    result['metrics']['answer'] = 'mean_adjusted'
    result['fusion'] = {'mean_adjusted': {'top1': 77., 'head': 91., 'mid': 71., 'tail': 61.}}
    path.write_text(json.dumps(result))
    text = unpadded(format_study(study, read_results(tmp_path, study)))
    head = '| arm | n | answer overall | answer head | answer mid | answer tail | mean overall | cls overall |'
    assert text.startswith(head)
    assert '| Other | 1 | 77.0 | 91.0 | 71.0 | 61.0 | 60.0 | |' in text
    assert '| Plain | 1 | 60.0 | 90.0 | 60.0 | 10.0 | 60.0 | |' in text, 'its answer is the mean'


def test_main_claims_come_first_and_the_rest_can_be_unfolded(tmp_path):
    (tmp_path / 'small.yaml').write_text(STUDY.replace('b: plain mean tail}', 'b: plain mean tail, main: true}'))
    study = load_study(str(tmp_path / 'small.yaml'))
    seen, folded = format_study(study, {}).split('<details>')
    assert seen.strip() == 'Not measured yet: weights help the tail.'
    assert 'Not measured yet: weights lower the rank.' in folded and 'Not run yet: `plain`' in folded
    for arm in study.arms:
        put(tmp_path, study, arm, 1, 10., rank=9)
    seen, folded = unpadded(format_study(study, read_results(tmp_path, study))).split('<details>')
    assert '| weights help the tail | 1 |' in seen and 'weights lower the rank' not in seen and 'Plain' not in seen
    assert '| weights lower the rank | 1 |' in folded and '| Plain | 1 |' in folded and 'help the tail' not in folded
    assert folded.startswith('<summary>All 3 arms, and the other claims</summary>\n\n|')  # a blank line: Markdown
    assert folded.endswith('\n\n</details>')
    (tmp_path / 'small.yaml').write_text('''
settings: {dataset: lt/digits, model: deit_lt_tiny}
arms: {plain: {label: Plain, settings: {}}}
claims: [{claim: it learns, a: plain mean tail, b: plain teacher tail, main: true}]
''')
    assert '<summary>The arm</summary>' in format_study(load_study(str(tmp_path / 'small.yaml')), {})


def test_the_table_is_put_between_its_marks_and_nowhere_else():
    readme = '# A\n<!-- study s -->\nold\n<!-- end s -->\nrest\n'
    once = with_table(readme, 's', '| new |')
    assert once == '# A\n<!-- study s -->\n| new |\n<!-- end s -->\nrest\n' and with_table(once, 's', '| new |') == once
    with pytest.raises(ValueError, match='no place for the table'):
        with_table(readme, 'other', '| new |')


def test_verdicts_of_one_study_leave_those_of_another(tmp_path):
    add_verdicts(tmp_path / 'verdicts.json', 'a', [{'claim': 'x'}])
    add_verdicts(tmp_path / 'verdicts.json', 'b', [])
    add_verdicts(tmp_path / 'verdicts.json', 'a', [{'claim': 'y'}])
    assert json.loads((tmp_path / 'verdicts.json').read_text()) == {'a': [{'claim': 'y'}], 'b': []}


@pytest.mark.parametrize('name', study_names())
def test_results_page_and_verdicts_say_what_the_committed_results_say(name):
    study = load_study(name)
    results = read_results(ROOT / 'results', study)
    table = format_study(study, results)
    page = (ROOT / 'docs' / 'results.md').read_text()
    assert with_table(page, name, table) == page, f'python ablate.py {name} --table --readme docs/results.md'
    known = json.loads((ROOT / 'results' / 'verdicts.json').read_text())
    assert known.get(name) == (verdicts(study, results) if results else None)
