import doctest
import math

import pytest
import torch
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.task import TokenDistillationTask
from torch import nn

from timm_deitlt.loss import (
    DISTILLATION_LOSS_TYPES,
    DistillationLoss,
    DRWDistillationLoss,
    LabelLoss,
    LDAMLoss,
    class_weights,
    create_distillation_loss,
    distillation,
    label,
    weighted_cross_entropy,
)

COUNTS = [500, 120, 40, 9, 2]
START = 6


def random_logits(seed, batch=8, num_classes=5, dtype=torch.float32):
    return 3 * torch.randn(batch, num_classes, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_labels(seed, batch=8, num_classes=5):
    return torch.randint(num_classes, (batch,), generator=torch.Generator().manual_seed(seed))


def slow_softmax(row, temperature=1.):
    top = max(row)
    powers = [math.exp((x - top) / temperature) for x in row]
    return [power / sum(powers) for power in powers]


def slow_weights(counts, beta=0.9999):
    weights = [(1 - beta) / (1 - beta ** n) for n in counts]
    return [w * len(counts) / sum(weights) for w in weights]


def slow_cross_entropy(logits, distributions, weights=None):
    """The weighted mean over images and classes; the mean over images without weights."""
    weights = weights or [1.] * len(logits[0])
    loss = mass = 0.
    for row, distribution in zip(logits, distributions, strict=True):
        for p, y, w in zip(slow_softmax(row), distribution, weights, strict=True):
            loss -= w * y * math.log(p)
            mass += w * y
    return loss / mass


def one_hot(labels, num_classes=5):
    return F.one_hot(labels, num_classes).tolist()


def smoothed(labels, smoothing, num_classes=5):
    return [[(1 - smoothing) * y + smoothing / num_classes for y in row] for row in one_hot(labels, num_classes)]


class Logits(nn.Module):
    """A network that ignores its input; as a student it gives CLS and DIST logits."""

    num_classes, in_chans = 5, 3
    pretrained_cfg = {'mean': (.5, .5, .5), 'std': (.5, .5, .5)}

    def __init__(self, *logits):
        super().__init__()
        self.logits = nn.ParameterList(x.clone() for x in logits)

    def set_distilled_training(self, enable=True):
        pass

    def forward(self, x):
        return tuple(self.logits) if len(self.logits) > 1 else self.logits[0]


@pytest.mark.parametrize('num_classes, n_max, imbalance_factor, first, last', [
    (10, 5000, 100, .0506, 3.993),
    (10, 5000, 50, .0890, 3.521),
    (100, 500, 100, .0449, 4.378),
    (100, 500, 50, .0789, 3.849),
])
def test_class_weights_of_the_cifar_benchmarks(num_classes, n_max, imbalance_factor, first, last):
    counts = [int(n_max * (1 / imbalance_factor) ** (i / (num_classes - 1))) for i in range(num_classes)]
    weights = class_weights(counts)
    assert weights.dtype == torch.float32
    assert weights[0].item() == pytest.approx(first, abs=5e-5)
    assert weights[-1].item() == pytest.approx(last, abs=5e-4)
    assert weights.mean().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize('beta', [.5, .99, .9999])
def test_class_weights_equal_a_slow_recomputation(beta):
    assert class_weights(COUNTS, beta).tolist() == pytest.approx(slow_weights(COUNTS, beta), rel=1e-6)


def test_class_weights_of_a_balanced_set_are_one():
    assert class_weights([250] * 10).tolist() == [1.] * 10


@pytest.mark.parametrize('count', [0, -3, float('nan')])
def test_class_without_images_is_named(count):
    with pytest.raises(ValueError, match='Class 2 has'):
        class_weights([10, 5, count, 1])
    with pytest.raises(ValueError, match='Class 2 has'):
        LDAMLoss([10, 5, count, 1])


def test_class_counts_that_are_no_list_of_classes_are_refused():
    with pytest.raises(ValueError, match='each class'):
        class_weights([])
    with pytest.raises(ValueError, match='each class'):
        class_weights([[3, 2], [2, 1]])


@pytest.mark.parametrize('beta', [0., 1., -1., 2.])
def test_beta_out_of_range_is_refused(beta):
    with pytest.raises(ValueError, match='beta'):
        class_weights(COUNTS, beta)


@pytest.mark.parametrize('distill_type, temperature', [('hard', 1.), ('soft', 1.), ('soft', 3.)])
@pytest.mark.parametrize('drw', [False, True])
def test_distillation_is_timms_own_to_the_last_bit_before_drw(distill_type, temperature, drw):
    student, teacher = Logits(random_logits(0), random_logits(1)), Logits(random_logits(2))
    task = TokenDistillationTask(
        student, teacher, nn.CrossEntropyLoss(), distill_type=distill_type, temperature=temperature, verbose=False)
    timm_loss = task(torch.zeros(8, 3, 4, 4), torch.zeros(8, dtype=torch.long))['distill_loss']
    timm_loss.backward()

    dist_logits = random_logits(1).requires_grad_()
    loss = create_distillation_loss(('drw_' if drw else '') + distill_type, COUNTS, START, temperature=temperature)
    loss.set_epoch(START - 1)
    ours = loss(dist_logits, random_logits(2))
    ours.backward()
    assert torch.equal(ours, timm_loss)
    assert torch.equal(dist_logits.grad, student.logits[1].grad)


def test_drw_hard_weighs_by_the_class_the_teacher_predicts():
    student, teacher = random_logits(0), random_logits(1)
    predicted = teacher.argmax(dim=-1)
    assert len(predicted.unique()) > 2
    loss = DRWDistillationLoss(COUNTS, START)
    loss.set_epoch(START)
    slow = slow_cross_entropy(student.tolist(), one_hot(predicted), slow_weights(COUNTS))
    assert loss(student, teacher).item() == pytest.approx(slow, rel=1e-5)


@pytest.mark.parametrize('temperature', [1., 2.5])
def test_drw_soft_equals_a_slow_recomputation(temperature):
    student, teacher = random_logits(0), random_logits(1)
    loss = DRWDistillationLoss(COUNTS, START, distill_type='soft', temperature=temperature)
    loss.set_epoch(START)
    weights, slow = slow_weights(COUNTS), 0.
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p = [w * x for w, x in zip(weights, slow_softmax(t, temperature), strict=True)]
        q = [x / sum(p) for x in p]
        slow += sum(a * math.log(a / b) for a, b in zip(q, slow_softmax(s, temperature), strict=True))
    assert loss(student, teacher).item() == pytest.approx(temperature ** 2 * slow / len(student), rel=1e-5)


@pytest.mark.parametrize('distill_type', ['hard', 'soft'])
def test_drw_on_a_balanced_set_changes_nothing(distill_type):
    student, teacher = random_logits(0), random_logits(1)
    loss = DRWDistillationLoss([70] * 5, START, distill_type=distill_type, temperature=2.)
    loss.set_epoch(START)
    assert loss.in_drw_stage
    torch.testing.assert_close(loss(student, teacher), DistillationLoss(distill_type, 2.)(student, teacher))


@pytest.mark.parametrize('loss_type', DISTILLATION_LOSS_TYPES)
def test_distillation_gradient_agrees_with_finite_differences(loss_type):
    student, teacher = random_logits(0, dtype=torch.float64), random_logits(1, dtype=torch.float64)
    loss = create_distillation_loss(loss_type, COUNTS, START, temperature=2.)
    loss.set_epoch(START)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), student.requires_grad_())


@pytest.mark.parametrize('loss_type', DISTILLATION_LOSS_TYPES)
def test_no_gradient_reaches_the_teacher(loss_type):
    student, teacher = random_logits(0).requires_grad_(), random_logits(1).requires_grad_()
    loss = create_distillation_loss(loss_type, COUNTS, START)
    loss.set_epoch(START)
    loss(student, teacher).backward()
    assert teacher.grad is None and student.grad.any()


@pytest.mark.parametrize('loss_type', DISTILLATION_LOSS_TYPES)
def test_distillation_is_finite_for_extreme_logits(loss_type):
    student, teacher = 1e4 * random_logits(0), 1e4 * random_logits(1)
    student.requires_grad_()
    loss = create_distillation_loss(loss_type, COUNTS, START)
    loss.set_epoch(START)
    value = loss(student, teacher)
    value.backward()
    assert value.isfinite() and student.grad.isfinite().all()


def test_stage_is_a_function_of_the_epoch_alone():
    student, teacher = random_logits(0), random_logits(1)
    loss = DRWDistillationLoss(COUNTS, START)
    fresh = loss(student, teacher)
    values = {}
    for epoch in (START, 0, START + 3, START - 1):
        loss.set_epoch(epoch)
        values[epoch] = loss(student, teacher)
    assert torch.equal(values[0], fresh) and torch.equal(values[START - 1], fresh)
    assert torch.equal(values[START], values[START + 3]) and not torch.equal(values[START], fresh)
    assert not loss.state_dict()


def test_drw_can_begin_with_the_first_epoch():
    assert DRWDistillationLoss(COUNTS, 0).in_drw_stage
    assert LabelLoss(5, drw_start_epoch=0).in_drw_stage


@pytest.mark.parametrize('loss_type', DISTILLATION_LOSS_TYPES)
def test_distillation_is_computed_in_float32_under_autocast(loss_type):
    student, teacher = random_logits(0).bfloat16(), random_logits(1).bfloat16()
    loss = create_distillation_loss(loss_type, COUNTS, START, temperature=3.)
    loss.set_epoch(START)
    with torch.autocast('cpu', torch.bfloat16):
        value = loss(student, teacher)
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(student.float(), teacher.float()))


def test_distillation_losses_are_made_by_name():
    assert {name: type(create_distillation_loss(name, COUNTS, START)) for name in DISTILLATION_LOSS_TYPES} == {
        'hard': DistillationLoss,
        'soft': DistillationLoss,
        'drw_hard': DRWDistillationLoss,
        'drw_soft': DRWDistillationLoss,
    }
    loss = create_distillation_loss('drw_soft', COUNTS, START, beta=.9, temperature=4.)
    assert (loss.distill_type, loss.temperature, loss.drw_start_epoch) == ('soft', 4., START)
    assert torch.equal(loss.class_weight, class_weights(COUNTS, .9))


def test_unknown_distillation_loss_lists_the_known_ones():
    with pytest.raises(ValueError, match='drw_medium.*hard.*soft.*drw_hard.*drw_soft'):
        create_distillation_loss('drw_medium', COUNTS, START)
    with pytest.raises(ValueError, match="'hard' or 'soft'"):
        DistillationLoss('medium')


def test_drw_without_counts_or_start_is_refused():
    with pytest.raises(ValueError, match='drw_start_epoch'):
        create_distillation_loss('drw_hard', class_counts=COUNTS)
    with pytest.raises(ValueError, match='class_counts'):
        create_distillation_loss('drw_soft', drw_start_epoch=START)


@pytest.mark.parametrize('temperature', [0., -1., float('nan')])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match='temperature'):
        DistillationLoss('soft', temperature)


@pytest.mark.parametrize('loss_type', DISTILLATION_LOSS_TYPES)
def test_teacher_with_other_classes_is_refused(loss_type):
    with pytest.raises(ValueError, match='same classes'):
        create_distillation_loss(loss_type, COUNTS, START)(random_logits(0), random_logits(1, num_classes=4))


@pytest.mark.parametrize('epoch', [0, START])
@pytest.mark.parametrize('counts', [COUNTS[:4], COUNTS[:1], [*COUNTS, 1]], ids=len)
@pytest.mark.parametrize('loss_type', ['drw_hard', 'drw_soft'])
def test_drw_with_counts_of_other_classes_is_refused_in_every_epoch(loss_type, counts, epoch):
    loss = create_distillation_loss(loss_type, counts, START)
    loss.set_epoch(epoch)
    with pytest.raises(ValueError, match=rf'class_counts is for {len(counts)} classes, but the logits .* are of 5: '):
        loss(random_logits(0), random_logits(1))


def test_weighted_cross_entropy_equals_a_slow_recomputation():
    logits, labels = random_logits(0), random_labels(1)
    mixed = .7 * F.one_hot(labels, 5).float() + .3 * F.one_hot(labels.flip(0), 5).float()
    weights = slow_weights(COUNTS)
    for weight in (None, weights):
        tensor = None if weight is None else torch.tensor(weight)
        for target, distributions in ((labels, one_hot(labels)), (mixed, mixed.tolist())):
            slow = slow_cross_entropy(logits.tolist(), distributions, weight)
            assert weighted_cross_entropy(logits, target, tensor).item() == pytest.approx(slow, rel=1e-5)


def test_weighted_cross_entropy_is_the_same_for_labels_and_their_one_hot_rows():
    logits, labels, weight = random_logits(0), random_labels(1), class_weights(COUNTS)
    by_index = weighted_cross_entropy(logits, labels, weight)
    assert torch.equal(by_index, F.cross_entropy(logits, labels, weight))
    torch.testing.assert_close(weighted_cross_entropy(logits, F.one_hot(labels, 5), weight), by_index)


def test_ldam_equals_a_slow_recomputation():
    cosines, labels = torch.tanh(random_logits(0)), random_labels(1)
    margins = [n ** -.25 * .4 / min(COUNTS) ** -.25 for n in COUNTS]
    assert max(margins) == margins[-1] == pytest.approx(.4)
    shifted = [
        [20 * (x - (margins[c] if c == label else 0)) for c, x in enumerate(row)]
        for row, label in zip(cosines.tolist(), labels.tolist(), strict=True)
    ]
    loss = LDAMLoss(COUNTS, max_margin=.4, scale=20)
    for weights in (None, slow_weights(COUNTS)):
        weight = None if weights is None else torch.tensor(weights)
        slow = slow_cross_entropy(shifted, one_hot(labels), weights)
        assert loss(cosines, labels, weight).item() == pytest.approx(slow, rel=1e-5)
    assert not loss.state_dict()


def test_ldam_without_margin_is_scaled_cross_entropy():
    cosines, labels = torch.tanh(random_logits(0)), random_labels(1)
    assert torch.equal(LDAMLoss(COUNTS, max_margin=0.)(cosines, labels), F.cross_entropy(30 * cosines, labels))


def test_ldam_refuses_mixed_labels():
    with pytest.raises(ValueError, match='mixup'):
        LDAMLoss(COUNTS)(random_logits(0), torch.full((8, 5), .2))


def test_label_loss_before_drw_is_timms():
    logits, labels, mixed = random_logits(0), random_labels(1), torch.softmax(random_logits(2), dim=-1)
    loss = LabelLoss(5, smoothing=.1, class_counts=COUNTS, drw_start_epoch=START, weighted=True)
    loss.set_epoch(START - 1)
    torch.testing.assert_close(loss(logits, labels), LabelSmoothingCrossEntropy(.1)(logits, labels))
    assert torch.equal(loss(logits, mixed), SoftTargetCrossEntropy()(logits, mixed))
    assert torch.equal(LabelLoss(5)(logits, labels), nn.CrossEntropyLoss()(logits, labels))


def test_label_loss_without_a_start_stays_in_its_first_stage():
    logits, labels = random_logits(0), random_labels(1)
    loss = LabelLoss(5, smoothing=.1)
    first = loss(logits, labels)
    loss.set_epoch(10 ** 6)
    assert not loss.in_drw_stage and torch.equal(loss(logits, labels), first)


def test_label_smoothing_ends_at_the_drw_start_unless_mixup_is_kept():
    logits, labels = random_logits(0), random_labels(1)
    for keep_mixup, smoothing in ((False, 0.), (True, .1)):
        loss = LabelLoss(5, smoothing=.1, drw_start_epoch=START, keep_mixup=keep_mixup)
        loss.set_epoch(START)
        slow = slow_cross_entropy(logits.tolist(), smoothed(labels, smoothing))
        assert loss.in_drw_stage and loss(logits, labels).item() == pytest.approx(slow, rel=1e-5)


def test_label_loss_weighs_classes_in_the_second_stage_if_asked():
    logits, labels, mixed = random_logits(0), random_labels(1), torch.softmax(random_logits(2), dim=-1)
    weights = slow_weights(COUNTS, .99)
    for keep_mixup, smoothing in ((False, 0.), (True, .1)):
        loss = LabelLoss(
            5,
            smoothing=.1,
            class_counts=COUNTS,
            drw_start_epoch=START,
            weighted=True,
            keep_mixup=keep_mixup,
            beta=.99,
        )
        loss.set_epoch(START)
        for target, distributions in ((labels, smoothed(labels, smoothing)), (mixed, mixed.tolist())):
            slow = slow_cross_entropy(logits.tolist(), distributions, weights)
            assert loss(logits, target).item() == pytest.approx(slow, rel=1e-5)
        assert not loss.state_dict()


def test_ldam_label_loss_gets_its_weights_at_the_drw_start():
    cosines, labels = torch.tanh(random_logits(0)), random_labels(1)
    loss = LabelLoss(
        5, 'ldam', class_counts=COUNTS, drw_start_epoch=START, weighted=True, ldam_margin=.3, ldam_scale=10.)
    ldam = LDAMLoss(COUNTS, .3, 10.)
    assert torch.equal(loss(cosines, labels), ldam(cosines, labels))
    loss.set_epoch(START)
    assert torch.equal(loss(cosines, labels), ldam(cosines, labels, class_weights(COUNTS)))


@pytest.mark.parametrize('ours, timms', [
    ({}, {}),
    ({'bce_sum': True}, {'sum_classes': True}),
    ({'bce_target_thresh': .2}, {'target_threshold': .2}),
    ({'pos_weight': 3.}, {'pos_weight': 3.}),
])
def test_binary_label_loss_is_timms(ours, timms):
    logits, labels, mixed = random_logits(0), random_labels(1), torch.softmax(random_logits(2), dim=-1)
    loss = LabelLoss(5, 'bce', smoothing=.1, drw_start_epoch=START, bce_kwargs=ours)
    for epoch, smoothing in ((0, .1), (START, 0.)):
        loss.set_epoch(epoch)
        timm_loss = BinaryCrossEntropy(smoothing, **timms)
        assert torch.equal(loss(logits, labels), timm_loss(logits, labels))
        assert torch.equal(loss(logits, mixed), timm_loss(logits, mixed))


@pytest.mark.parametrize('name', ['ce', 'ldam', 'bce'])
def test_label_loss_is_computed_in_float32_under_autocast(name):
    logits, labels = random_logits(0).bfloat16(), random_labels(1)
    loss = LabelLoss(5, name, class_counts=COUNTS, drw_start_epoch=0, weighted=name != 'bce')
    with torch.autocast('cpu', torch.bfloat16):
        value = loss(logits, labels)
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(logits.float(), labels))


@pytest.mark.parametrize('kwargs, message', [
    ({'loss': 'focal'}, "'ce', 'ldam', 'bce'"),
    ({'smoothing': 1.}, 'smoothing'),
    ({'smoothing': -.1}, 'smoothing'),
    ({'loss': 'ldam', 'class_counts': COUNTS, 'smoothing': .1}, 'smoothing to 0'),
    ({'loss': 'bce', 'class_counts': COUNTS, 'weighted': True, 'drw_start_epoch': 1}, "use 'ce'"),
    ({'class_counts': COUNTS, 'weighted': True}, 'drw_start_epoch'),
    ({'weighted': True, 'drw_start_epoch': 1}, 'got none'),
    ({'loss': 'ldam'}, 'got none'),
    ({'loss': 'ldam', 'class_counts': COUNTS[:4]}, 'all 5 classes, got 4'),
])
def test_label_loss_refuses_what_it_cannot_do(kwargs, message):
    with pytest.raises(ValueError, match=message):
        LabelLoss(5, **kwargs)


@pytest.mark.parametrize('epoch', [0, START])
@pytest.mark.parametrize('kwargs', [
    {}, {'loss': 'ldam'}, {'loss': 'bce'}, {'weighted': True}, {'prior_tau': 1.}, {'smoothing': .1}])
def test_label_loss_of_other_classes_than_the_models_is_refused(kwargs, epoch):
    loss = LabelLoss(4, class_counts=COUNTS[:4], drw_start_epoch=START, **kwargs)
    loss.set_epoch(epoch)
    with pytest.raises(ValueError, match='num_classes is for 4 classes, but the logits .* are of 5: '):
        loss(random_logits(0), random_labels(1))


def test_ldam_of_other_classes_than_the_models_is_refused():
    with pytest.raises(ValueError, match='class_counts is for 4 classes, but the logits .* are of 5: '):
        LDAMLoss(COUNTS[:4])(random_logits(0), random_labels(1))


# The class prior of CLS in stage two

PRIOR_COUNTS = [60, 30, 10]


def prior_loss(**kwargs):
    return LabelLoss(3, class_counts=PRIOR_COUNTS, drw_start_epoch=5, smoothing=.1, **kwargs)


@pytest.mark.parametrize('tau', [1., .5])
def test_logit_adjustment_adds_the_log_prior_in_stage_two_only(tau):
    loss, plain = prior_loss(prior_tau=tau), prior_loss()
    logits, target = torch.randn(7, 3), torch.randint(3, (7,))
    for epoch in (0, 4):
        loss.set_epoch(epoch)
        plain.set_epoch(epoch)
        assert loss(logits, target) == plain(logits, target)
    loss.set_epoch(5)
    expected = 0.
    for row, true in zip(logits.double().tolist(), target.tolist(), strict=True):
        adjusted = [z + tau * math.log(n / sum(PRIOR_COUNTS)) for z, n in zip(row, PRIOR_COUNTS, strict=True)]
        expected += math.log(sum(map(math.exp, adjusted))) - adjusted[true]
    assert loss(logits, target).item() == pytest.approx(expected / 7, rel=1e-5)


def test_with_tau_one_it_is_the_balanced_softmax():
    loss = prior_loss(prior_tau=1.)
    loss.set_epoch(5)
    logits = torch.randn(4, 3)
    weighed = logits.double().exp() * torch.tensor(PRIOR_COUNTS)
    expected = -(weighed / weighed.sum(dim=1, keepdim=True)).log()[:, 2].mean()
    assert loss(logits, torch.full((4,), 2)).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize('kwargs', [
    {'loss': 'ldam', 'smoothing': 0.}, {'loss': 'bce'}, {'weighted': True}, {'drw_start_epoch': None},
    {'class_counts': None}])
def test_class_prior_beside_another_balance_is_refused(kwargs):
    with pytest.raises(ValueError, match='prior'):
        LabelLoss(3, **{**dict(class_counts=PRIOR_COUNTS, drw_start_epoch=5, prior_tau=1.), **kwargs})


def test_examples_in_the_documentation_run():
    for module in (distillation, label):
        result = doctest.testmod(module, extraglobs={'torch': torch})
        assert result.attempted and not result.failed


def slow_standardized(row):
    mean = sum(row) / len(row)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in row) / (len(row) - 1))
    return [(x - mean) / (deviation + 1e-6) for x in row]


@pytest.mark.parametrize('temperature', [1., 3.])
def test_standardised_soft_distillation_equals_a_slow_recomputation(temperature):
    student, teacher = random_logits(1), random_logits(2)
    expected = 0.
    for ours, theirs in zip(student.tolist(), teacher.tolist(), strict=True):
        p = slow_softmax(slow_standardized(ours), temperature)
        q = slow_softmax(slow_standardized(theirs), temperature)
        expected += temperature ** 2 * sum(b * math.log(b / a) for a, b in zip(p, q, strict=True)) / len(student)
    loss = create_distillation_loss('soft', temperature=temperature, standardize=True)
    assert loss(student, teacher).item() == pytest.approx(expected, rel=1e-4)
    wider = loss(student, 7 * teacher + 5)
    assert torch.allclose(wider, loss(student, teacher), rtol=1e-4), 'their range is not taught'
    drw = create_distillation_loss('drw_soft', COUNTS, START, temperature=temperature, standardize=True)
    assert torch.equal(drw(student, teacher), loss(student, teacher))
    drw.set_epoch(START)
    assert drw(student, teacher) > loss(student, teacher)


def test_standardised_hard_distillation_is_refused():
    with pytest.raises(ValueError, match='same argmax'):
        create_distillation_loss('hard', standardize=True)
