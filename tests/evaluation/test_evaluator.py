import doctest
import json
import math

import pytest
import torch
import torch.distributed as dist
from helpers import on_two_ranks, same
from timm.data.distributed_sampler import OrderedDistributedSampler
from timm.task.evaluator import ClassificationEvaluator

from timm_deitlt.evaluation import ShotEvaluator, Shots, format_table
from timm_deitlt.evaluation import evaluator as evaluator_module

# by class index; sorted: 2, 5, 0, 3, 6, 1, 4 (3 before 6: equally frequent)
COUNTS = [150, 19, 900, 60, 2, 300, 60]
ORDER = (2, 5, 0, 3, 6, 1, 4)
EXPERTS = ('mean', 'cls', 'dist')
NUM_IMAGES = 53


def example(num_images=NUM_IMAGES, num_classes=7, without=()):
    """Logits of three experts that are right more often than not, and labels."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(num_classes, (num_images,), generator=generator)
    for label in without:
        target[target == label] = (label + 1) % num_classes
    logits = {
        name: 2 * torch.nn.functional.one_hot(target, num_classes)
        + 1.5 * torch.randn(num_images, num_classes, generator=generator)
        for name in EXPERTS
    }
    return logits, target


def evaluate(logits, target, shots=None, batch_size=16, experts=EXPERTS, **kwargs):
    evaluator = ShotEvaluator(shots or Shots.from_counts(COUNTS), experts, **kwargs)
    for start in range(0, len(target), batch_size):
        batch = slice(start, start + batch_size)
        evaluator.update({name: x[batch] for name, x in logits.items()}, target[batch])
    return evaluator


def counts(evaluator):
    return {name: getattr(evaluator, name).clone() for name in ('images', 'right', 'top5', 'confused')}


def slow_metrics(logits, target, groups):
    """All figures of one expert, image by image in plain Python."""
    num_classes, top1, top5, loss = len(logits[0]), [], [], 0.
    for row, label in zip(logits.tolist(), target.tolist(), strict=True):
        ranked = sorted(range(num_classes), key=lambda c: -row[c])
        top1.append(ranked[0] == label)
        top5.append(label in ranked[:5])
        loss += math.log(sum(math.exp(x) for x in row)) - row[label]
    of_class = {c: [hit for hit, label in zip(top1, target.tolist(), strict=True) if label == c]
                for c in range(num_classes)}
    per_class = [100 * sum(hits) / len(hits) if hits else None for hits in of_class.values()]

    def mean(labels):
        known = [per_class[c] for c in labels if per_class[c] is not None]
        return sum(known) / len(known) if known else None

    return {
        'loss': loss / len(target),
        'top1': 100 * sum(top1) / len(target),
        'top5': 100 * sum(top5) / len(target),
        'balanced': mean(range(num_classes)),
        **{group: mean(labels) for group, labels in groups.items()},
        'per_class': per_class,
    }


def test_classes_are_grouped_by_frequency_whatever_their_order():
    shots = Shots.from_counts(COUNTS, boundaries=(2, 6))
    assert shots.order == ORDER
    assert shots.groups == {'head': [2, 5], 'mid': [0, 3, 6, 1], 'tail': [4]}
    assert shots.class_counts == tuple(COUNTS)
    assert shots.rule == 'given cuts: head is the 2 most frequent classes, tail the 1 rarest'


def test_without_cuts_classes_are_grouped_at_100_and_20_images():
    shots = Shots.from_counts([101, 100, 20, 19])
    assert shots.groups == {'head': [0], 'mid': [1, 2], 'tail': [3]}
    assert 'more than 100' in shots.rule and 'fewer than 20' in shots.rule


@pytest.mark.parametrize('counts', [[1000, 500, 50, 20], [1000, 500, 15, 2], [100, 50, 10, 5]])
def test_thirds_are_used_where_a_group_would_be_empty(counts):
    shots = Shots.from_counts(counts)
    assert shots.groups == {'head': [0], 'mid': [1, 2], 'tail': [3]}
    assert shots.rule.startswith('thirds')


@pytest.mark.parametrize('num_classes', range(3, 40))
def test_thirds_are_as_equal_as_possible(num_classes):
    sizes = [len(labels) for labels in Shots.from_counts(range(num_classes, 0, -1)).groups.values()]
    assert sum(sizes) == num_classes and min(sizes) >= 1 and max(sizes) - min(sizes) <= 1


def test_two_classes_have_no_mid():
    for counts in ([7, 7], [600, 500, 550], [5] * 9):
        balanced = Shots.from_counts(counts)
        assert sorted(balanced.groups['mid']) == list(range(len(counts))) and 'no' in balanced.rule
        assert Shots.from_counts(counts, balanced.boundaries) == balanced
    assert Shots.from_counts([601, 500, 550]).boundaries == (1, 2)
    assert Shots.from_counts([3, 8]).groups == {'head': [1], 'mid': [], 'tail': [0]}
    assert Shots.from_counts([3, 8], (1, 1)).groups == {'head': [1], 'mid': [], 'tail': [0]}


@pytest.mark.parametrize('boundaries', [(0, 3), (3, 3), (4, 3), (3, 7), (3, 8), (-1, 2)])
def test_cuts_that_leave_a_group_empty_are_refused(boundaries):
    with pytest.raises(ValueError, match='do not cut 7 classes'):
        Shots.from_counts(COUNTS, boundaries)


def test_three_classes_leave_no_group_empty():
    with pytest.raises(ValueError, match='do not cut 3 classes'):
        Shots.from_counts([5, 4, 3], (1, 1))


def test_one_class_is_refused():
    with pytest.raises(ValueError, match='at least 2 classes, got 1'):
        Shots.from_counts([10])


def test_description_counts_classes_and_images_and_is_json():
    test_counts = [10, 0, 10, 10, 0, 10, 5]
    description = Shots.from_counts(COUNTS, (2, 6)).describe(test_counts)
    assert json.loads(json.dumps(description)) == description
    assert description['boundaries'] == [2, 6]
    assert description['head'] == {'classes': 2, 'train_images': 1200, 'test_images': 20}
    assert description['mid'] == {'classes': 4, 'train_images': 289, 'test_images': 25}
    assert description['tail'] == {'classes': 1, 'train_images': 2, 'test_images': 0}
    assert description['missing_classes'] == [1, 4]


@pytest.mark.parametrize('without', [(), (0, 4)])
def test_metrics_equal_a_slow_recomputation(without):
    logits, target = example(without=without)
    shots = Shots.from_counts(COUNTS)
    evaluator = evaluate(logits, target, shots)
    metrics = evaluator.compute()
    assert list(metrics) == list(EXPERTS)
    for name in EXPERTS:
        slow = slow_metrics(logits[name], target, shots.groups)
        assert metrics[name].pop('loss') == pytest.approx(slow.pop('loss'), rel=1e-5)
        assert metrics[name] == slow
    assert evaluator.test_counts == [(target == c).sum().item() for c in range(7)]


def test_overall_metrics_are_those_of_timms_evaluator():
    logits, target = example()
    timms = ClassificationEvaluator()
    timms.update(logits['cls'], target)
    ours = evaluate(logits, target).compute()['cls']
    assert {key: ours[key] for key in ('loss', 'top1', 'top5')} == pytest.approx(timms.compute(), rel=1e-6)


def test_outputs_that_ldam_scales_are_scaled_for_the_loss_alone():
    logits, target = 2 * torch.rand(40, 10) - 1, torch.arange(40) % 10
    plain, scaled = (
        ShotEvaluator(Shots.from_counts(range(100, 0, -10)), ('cls',), logit_scale=scale) for scale in (1., 30.))
    for evaluator in (plain, scaled):
        evaluator.update({'cls': logits}, target)
    ours, before = scaled.compute()['cls'], plain.compute()['cls']
    assert ours.pop('loss') == pytest.approx(torch.nn.functional.cross_entropy(30 * logits, target).item(), rel=1e-6)
    assert ours == {name: value for name, value in before.items() if name != 'loss'}


def test_batching_does_not_move_the_counts():
    logits, target = example()
    reference = evaluate(logits, target, batch_size=NUM_IMAGES)
    for batch_size in (1, 7):
        assert same(counts(evaluate(logits, target, batch_size=batch_size)), counts(reference))


def test_top5_is_left_out_of_five_classes_or_fewer():
    for num_classes, expected in ((5, False), (6, True)):
        logits, target = example(num_classes=num_classes)
        metrics = evaluate(logits, target, Shots.from_counts(range(num_classes, 0, -1))).compute()
        assert ('top5' in metrics['cls']) is expected


def test_group_without_test_images_has_no_accuracy():
    logits, target = example(without=(1, 4))
    shots = Shots.from_counts(COUNTS, (3, 5))
    assert shots.groups['tail'] == [1, 4]
    evaluator = evaluate(logits, target, shots)
    metrics = evaluator.compute()['mean']
    assert metrics['tail'] is None and metrics['per_class'][1] is None and metrics['per_class'][4] is None
    assert metrics['balanced'] == pytest.approx(sum(x for x in metrics['per_class'] if x is not None) / 5)
    assert shots.describe(evaluator.test_counts)['missing_classes'] == [1, 4]


def test_nan_logits_are_wrong_and_no_vote_for_a_class():
    shots = Shots.from_counts([900, 500, 60, 50, 5, 2])
    rows = torch.eye(6)
    rows[0] = float('nan')
    rows[1, 1] = float('nan')
    metrics = evaluate({'cls': rows}, torch.arange(6), shots, experts=('cls',)).compute()['cls']
    assert metrics['per_class'] == [0., 0., 100., 100., 100., 100.]
    assert metrics['top5'] == pytest.approx(100 * 4 / 6)
    assert math.isnan(metrics['loss'])


def test_half_precision_logits_are_counted_in_float32():
    logits, target = example()
    halves = {name: x.bfloat16() for name, x in logits.items()}
    assert evaluate(halves, target).compute() == evaluate({k: x.float() for k, x in halves.items()}, target).compute()


@pytest.mark.parametrize('label', [-1, -100, 7, 10 ** 6])
def test_label_of_no_known_class_is_an_error(label):
    logits, target = example()
    target[3] = target[40] = label
    evaluator = evaluate(logits, target)
    with pytest.raises(ValueError, match='2 of 53 test images have a label outside 0 to 6'):
        evaluator.compute()


def test_evaluating_nothing_is_an_error():
    with pytest.raises(ValueError, match='no test image'):
        ShotEvaluator(Shots.from_counts(COUNTS)).compute()


def test_missing_expert_is_named():
    logits, target = example()
    del logits['dist']
    with pytest.raises(ValueError, match="'dist', only of .*'mean', 'cls'"):
        evaluate(logits, target)


def test_wrong_shapes_are_refused():
    logits, target = example()
    evaluator = ShotEvaluator(Shots.from_counts(COUNTS[:6]))
    with pytest.raises(ValueError, match=r'logits \[B, 6\], got \(53,\) and, of \'mean\', \(53, 7\)'):
        evaluator.update(logits, target)
    with pytest.raises(ValueError, match='class indices'):
        ShotEvaluator(Shots.from_counts(COUNTS)).update(logits, torch.nn.functional.one_hot(target, 7))


def test_images_beyond_max_samples_are_ignored():
    logits, target = example()
    limited = evaluate(logits, target, max_samples=40)
    cut = evaluate({name: x[:40] for name, x in logits.items()}, target[:40])
    assert same(counts(limited), counts(cut)) and torch.equal(limited.loss_sum, cut.loss_sum)


def test_reset_forgets_all_images():
    logits, target = example()
    evaluator = evaluate(logits, target, max_samples=NUM_IMAGES)
    before = counts(evaluator)
    evaluator.reset()
    evaluator.update(logits, target)
    assert same(counts(evaluator), before) and before['images'].sum() == NUM_IMAGES


def test_update_reads_nothing_back_from_the_device():
    # tensors on the meta device have no values: whatever needs one on the host fails
    logits, target = example()
    evaluator = ShotEvaluator(Shots.from_counts(COUNTS), device='meta')
    evaluator.update({name: x.to('meta') for name, x in logits.items()}, target.to('meta'))
    with pytest.raises((RuntimeError, NotImplementedError)):
        evaluator.compute()


def evaluate_rank(rank, folder):
    dist.init_process_group('gloo')
    logits, target = example()
    sampler = OrderedDistributedSampler(range(NUM_IMAGES), 2, rank)
    mine = torch.tensor(list(sampler))
    evaluator = evaluate(
        {name: x[mine] for name, x in logits.items()}, target[mine], max_samples=sampler.num_valid_samples)
    result = {
        'padding': len(mine) - sampler.num_valid_samples,
        'seen': evaluator.num_samples,
        'metrics': evaluator.compute(distributed=True),
        'test_counts': evaluator.test_counts,
    }
    (folder / f'{rank}.json').write_text(json.dumps(result))
    dist.destroy_process_group()


def test_two_processes_with_padding_agree_with_one(tmp_path):
    on_two_ranks(evaluate_rank, tmp_path)
    ranks = [json.loads((tmp_path / f'{rank}.json').read_text()) for rank in range(2)]
    assert [rank['padding'] for rank in ranks] == [0, 1]
    assert [rank['seen'] for rank in ranks] == [27, 26]
    one = evaluate(*example())
    metrics = one.compute()
    for rank in ranks:
        assert rank['test_counts'] == one.test_counts
        for name in EXPERTS:
            assert rank['metrics'][name].pop('loss') == pytest.approx(metrics[name]['loss'], rel=1e-12)
            assert rank['metrics'][name] == {key: x for key, x in metrics[name].items() if key != 'loss'}


ROW = {'top1': 61.25, 'head': 90., 'mid': 55.04, 'tail': 8., 'balanced': 50.2}


def test_table_shows_experts_groups_and_what_to_beware_of():
    shots = Shots.from_counts([5000, 1200, 300, 80, 50], (2, 4))
    table = format_table({'mean': {**ROW, 'tail': 100.}, 'dist': None, 'teacher': ROW}, shots, [40, 40, 40, 0, 7])
    assert table == '\n'.join([
        '              overall   head   mid   tail  balanced',
        'classes             5      2     2      1',
        'train images    6,630  6,200   380     50',
        'test images       127     80    40      7',
        'mean             61.2   90.0  55.0  100.0      50.2',
        'dist                -      -     -      -         -',
        'teacher          61.2   90.0  55.0    8.0      50.2',
        'groups: given cuts: head is the 2 most frequent classes, tail the 1 rarest',
        'warning: tail has fewer than 30 test images (7): its accuracy is coarse',
        'warning: no test images of class 3; every mean leaves them out',
    ])


def test_table_without_header_is_rows_alone():
    shots = Shots.from_counts(COUNTS)
    assert format_table({'cls': {**ROW, 'tail': None, 'top5': 99.95}}, shots, [1] * 7, header=False) == '\n'.join([
        '     overall  head   mid  tail  balanced  top-5',
        'cls     61.2  90.0  55.0     -      50.2  100.0',
    ])


def test_no_warning_about_groups_of_30_images_or_without_classes():
    assert 'warning' not in format_table({}, Shots.from_counts([5, 2]), [30, 30])
    assert 'warning: tail' in format_table({}, Shots.from_counts([5, 2]), [30, 29])


def test_table_without_test_images_says_so_once():
    table = format_table({}, Shots.from_counts([9, 5, 2], (1, 2)), [0, 0, 0])
    assert table.count('warning') == 1 and 'nothing was evaluated' in table


def test_table_fits_80_columns():
    counts = [1280 - i for i in range(1000)]
    shots = Shots.from_counts(counts, (390, 835))
    table = format_table({'mean (ema)': {**ROW, 'top5': 100.}}, shots, [9] * 10 + [0] * 990)
    assert max(map(len, table.splitlines())) <= 80
    assert 'and 980 more' in ' '.join(table.split())


def test_examples_in_the_documentation_run():
    result = doctest.testmod(evaluator_module)
    assert result.attempted and not result.failed
