"""Each sign of failure on figures just beyond its border and just before it."""
import pytest

from timm_deitlt.evaluation.signatures import CHECKS, failure_signatures


def healthy():
    """metrics.json, summary.csv and analysis.json of a run without a complaint; the figures of a real quick start."""
    group = lambda head, tail, balanced: dict(head=head, tail=tail, balanced=balanced)  # noqa: E731
    metrics = {
        'mean': group(100., 86.3, 95.3), 'cls': group(100., 78.4, 92.9), 'dist': group(98., 85.3, 93.5),
        'teacher': group(100., 95.1, 97.9), 'data': {'train_counts': [100, 50, 20, 10]}}
    rows = [{'epoch': '0', 'train_cosine': '.8'}, {'epoch': '1', 'train_cosine': '.9'}]
    analysis = {
        'cos_norm': .93, 'ood': {'teacher_top1_train_view': 75.5, 'teacher_top1_clean': 97.6},
        'tail_gap': {'epochs': [90, 100], 'train': [60., 70.], 'test': [55., 60.]}}
    return metrics, rows, analysis


def names(*run):
    return [found['name'] for found in failure_signatures(*run)]


def test_a_healthy_run_has_no_signs():
    assert names(*healthy()) == []


def test_what_was_not_measured_is_not_judged():
    assert failure_signatures({'mean': None, 'cls': None, 'dist': None, 'teacher': None}) == []
    plain = {'mean': {'head': 90., 'tail': 1., 'balanced': 30.}, 'cls': {'head': 90., 'tail': 1., 'balanced': 30.}}
    assert failure_signatures({**plain, 'dist': None, 'teacher': None}) == []


@pytest.mark.parametrize('teacher, advice', [(20., 'train a better one first'), (95., 'something to learn')])
def test_dist_no_better_than_cls_on_the_tail_is_a_sign(teacher, advice):
    metrics, rows, analysis = healthy()
    metrics['teacher']['tail'] = teacher
    for dist, expected in ((78.5, []), (78.4, ['dist_not_above_cls_on_the_tail'])):
        metrics['dist']['tail'] = dist
        found = failure_signatures(metrics, rows, analysis)
        assert [sign['name'] for sign in found] == expected
    assert found[0]['message'] == 'DIST reaches 78.4 % on the tail, which is not more than CLS (78.4 %).'
    assert advice in found[0]['suggestion']


def test_where_cls_is_always_right_on_the_tail_dist_need_not_be_better():
    metrics, rows, analysis = healthy()
    for who in ('mean', 'cls', 'dist', 'teacher'):
        metrics[who]['tail'] = 100.
    assert names(metrics, rows, analysis) == []


def test_a_head_far_below_teacher_or_cls_is_a_sign():
    metrics, rows, analysis = healthy()
    metrics['mean']['head'] = 90.
    assert names(metrics, rows, analysis) == []
    metrics['mean']['head'] = 89.9
    (found,) = failure_signatures(metrics, rows, analysis)
    assert found['message'] == (
        'The mean of both experts reaches 89.9 % on the head, against 100.0 % of its teacher and 100.0 % of CLS.')
    assert '--drw-start-epoch' in found['suggestion']
    metrics['mean']['tail'], metrics['dist']['head'] = 2., 0.
    (found,) = failure_signatures(metrics, rows, analysis)
    assert found['suggestion'] == 'The tail has not gained from this: train longer.'
    metrics['mean']['tail'] = None  # no image of these classes was held out
    (found,) = failure_signatures(metrics, rows, analysis)
    assert 'The tail has not gained' not in found['suggestion']


def test_a_growing_gap_between_training_and_test_images_of_the_tail_is_a_sign():
    metrics, rows, analysis = healthy()
    analysis['tail_gap']['train'] = [60., 75.]  # the gap goes from 5 to 15
    assert names(metrics, rows, analysis) == []
    analysis['tail_gap']['train'] = [60., 75.1]
    (found,) = failure_signatures(metrics, rows, analysis)
    assert found['name'] == 'tail_gap_grows' and '60.0 to 75.1 %' in found['message']
    analysis['tail_gap'] = {'epochs': [100], 'train': [99.], 'test': [1.]}
    assert names(metrics, rows, analysis) == [], 'nothing can be said of one measurement'


@pytest.mark.parametrize('measured', [True, False])
def test_experts_that_are_alike_are_a_sign(measured):
    metrics, rows, analysis = healthy()
    for cosine, expected in ((.97, []), (.971, ['experts_alike'])):
        if measured:
            analysis['cos_norm'] = cosine
        else:
            analysis['cos_norm'], rows[-1]['train_cosine'] = None, str(cosine)
        assert names(metrics, rows, analysis) == expected
    metrics['teacher'] = None
    assert names(metrics, rows, analysis) == [], 'without a teacher network both learn the same labels'


@pytest.mark.parametrize('right, clean, expected', [
    (90.1, 97., 'only repeats the labels'), (90., 97., None), (32.3, 97., None),
    (32.1, 97., "student's, which is hardly more"), (32.3, 98., "student's, which is hardly more"),
    (25., 32.4, 'of clean images, which is hardly more'), (32.4, 32.6, None)])
def test_a_teacher_that_repeats_the_labels_or_guesses_is_a_sign(right, clean, expected):
    metrics, rows, analysis = healthy()  # of 4 classes
    analysis['ood'] = {'teacher_top1_train_view': right, 'teacher_top1_clean': clean}
    found = failure_signatures(metrics, rows, analysis)
    assert [sign['name'] for sign in found] == (['teacher_too_good_or_useless'] if expected else [])
    assert not expected or expected in found[0]['message']


def test_a_mean_that_cls_drags_down_is_a_sign():
    metrics, rows, analysis = healthy()
    metrics['dist']['balanced'] = 98.2
    assert names(metrics, rows, analysis) == []
    metrics['dist']['balanced'] = 98.3
    assert names(metrics, rows, analysis) == ['prediction_below_dist']


def test_the_prediction_of_a_run_with_a_fusion_is_judged_and_not_the_mean():
    metrics, rows, analysis = healthy()
    metrics['mean'] = dict(metrics['mean'], balanced=1.)
    fused = {**metrics, 'answer': 'mean_adjusted', 'fusion': {'mean_adjusted': dict(head=99., tail=90., balanced=96.)}}
    assert names(metrics, rows, analysis) == ['prediction_below_dist'] and names(fused, rows, analysis) == []
    fused['fusion']['mean_adjusted'].update(head=89.9, balanced=90.)
    head, below = failure_signatures(fused, rows, analysis)
    assert head['message'].startswith('The prediction (mean_adjusted) reaches 89.9 % on the head, against 100.0 %')
    assert 'The mean of the logits keeps the head' in head['suggestion']
    assert below['message'] == (
        'The prediction (mean_adjusted) has a balanced accuracy of 90.0 %, DIST alone has 93.5 %.')


def test_every_check_can_be_named_in_a_page():
    assert len({check.__name__ for check in CHECKS}) == len(CHECKS)
    assert all(check.__doc__ for check in CHECKS)
