"""PaCo against slow plain Python: its loss, what moves once per update and what SAM's second pass may not touch."""
import copy
import doctest
import math
from datetime import timedelta

import pytest
import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
from helpers import on_two_ranks
from timm.utils import unwrap_model
from torch import nn

from timm_deitlt import Shots
from timm_deitlt.data.loader import MicroBatch, MicroBatchSampler
from timm_deitlt.loss import paco as loss
from timm_deitlt.loss.paco import PaCoLoss
from timm_deitlt.optim import SAMSGD
from timm_deitlt.task import paco as task
from timm_deitlt.task import paco_network as network
from timm_deitlt.task.paco import PaCoTask
from timm_deitlt.task.paco_network import KeyQueue, PaCoNet

COUNTS = [40, 20, 8, 4, 2]
IMAGES = 26  # in micro-batches of 4, four to an update: the last update is short, and so is its last micro-batch
KEYS = ('keys', 'labels', 'pointer')


def plain_model(name='resnet20_cifar', **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **{'num_classes': 5, **kwargs})


def paco(model=None, **kwargs):
    options = {'alpha': .05, 'queue_size': 20, 'dim': 8, 'momentum': .9, **kwargs}
    return PaCoTask(model or plain_model(), COUNTS, verbose=False, **options).train()


def views(indices=range(6), size=8):
    """Query view, key view and label of each image."""
    pixels = torch.randn(IMAGES, 3, size, size, generator=torch.Generator().manual_seed(2))
    indices = list(indices)
    return pixels[indices], pixels[indices].flip(-1) + .1, torch.tensor(indices) % 5


def plan(number=0, size=6, weight=1., last=True):
    return MicroBatch(number, tuple(range(size)), weight, last)


def sgd(ours, lr=.05):
    return torch.optim.SGD(ours.trainable_module.parameters(), lr=lr, momentum=.9)


def update(ours, optimizer, plans, world=1):
    """One update from a rank's micro-batches, as the Trainer makes it; losses of each pass."""
    passes = []
    dtype = next(ours.trainable_module.parameters()).dtype

    def closure():
        optimizer.zero_grad()
        losses = []
        for micro_batch in plans:
            query, key, target = (x.to(dtype) if x.is_floating_point() else x for x in views(micro_batch.indices))
            second_pass = getattr(optimizer, 'perturbed', False)
            result = ours(query, target, weak=key, second_pass=second_pass)['loss']
            (result * micro_batch.weight * world).backward()
            losses.append(result.detach())
        passes.append(torch.stack(losses))
        return passes[-1].sum()

    if isinstance(optimizer, SAMSGD):
        optimizer.step(closure)
    else:
        closure()
        optimizer.step()
    ours.end_update(plans)
    return passes


def snapshot(ours):
    return copy.deepcopy(ours.state_dict())


def changed(before, after):
    assert before.keys() == after.keys()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def numbers(batch=5, contrasts=9, classes=4, width=3):
    """Logits, queries, target, contrast and its target, of double precision."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    target = torch.tensor([0, 2, 2, 1, 0][:batch])
    contrast_target = torch.tensor([0, 2, -1, 3, 2, -1, 1, 1, 0][:contrasts])
    return (
        draw(batch, classes), F.normalize(draw(batch, width)), target, F.normalize(draw(contrasts, width)),
        contrast_target)


def slow_loss(logits, queries, target, contrast, contrast_target, counts, alpha, beta, gamma, temperature):
    """The paper's loss, one image, one column at a time."""
    logits, queries, target, contrast, contrast_target = (
        x.tolist() for x in (logits, queries, target, contrast, contrast_target))
    everything = list(zip(queries + contrast, target + contrast_target, strict=True))
    total = 0.
    for i, label in enumerate(target):
        columns = [  # logit, weight in the denominator, weight as a positive
            (logits[i][c] + math.log(count / sum(counts) + 1e-9), 1., beta if c == label else 0.)
            for c, count in enumerate(counts)]
        for j, (vector, other) in enumerate(everything):
            if j != i and other >= 0:
                product = sum(a * b for a, b in zip(queries[i], vector, strict=True)) / temperature
                columns.append((product, gamma, alpha if other == label else 0.))
        denominator = sum(weight * math.exp(logit) for logit, weight, _ in columns)
        positives = sum(positive for *_, positive in columns)
        total -= sum(positive * (logit - math.log(denominator)) for logit, _, positive in columns) / positives
    return total / len(target)


SETTINGS = [
    dict(alpha=.05, beta=1., gamma=1., temperature=.2), dict(alpha=.5, beta=.7, gamma=.3, temperature=.05),
    dict(alpha=0., beta=1., gamma=2., temperature=.1), dict(alpha=.05, beta=1., gamma=0., temperature=.2),
]


@pytest.mark.parametrize('settings', SETTINGS)
def test_loss_equals_a_slow_plain_computation(settings):
    counts = [50, 20, 5, 1]
    inputs = numbers()
    expected = slow_loss(*inputs, counts, **settings)
    assert PaCoLoss(counts, **settings)(*inputs).item() == pytest.approx(expected, abs=1e-5)
    singles = [x.float() if x.is_floating_point() else x for x in inputs]
    assert PaCoLoss(counts, **settings)(*singles).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize('settings', SETTINGS)
def test_gradient_equals_differences_of_the_slow_computation(settings):
    counts = [50, 20, 5, 1]
    inputs = list(numbers())
    for position in (0, 1):
        leaf = inputs[position].clone().requires_grad_()
        PaCoLoss(counts, **settings)(*inputs[:position], leaf, *inputs[position + 1:]).backward()
        for index in [(0, 0), (1, 2), (3, 1)]:
            ends = []
            for step in (1e-6, -1e-6):
                moved = inputs[position].clone()
                moved[index] += step
                ends.append(slow_loss(*inputs[:position], moved, *inputs[position + 1:], counts, **settings))
            assert leaf.grad[index].item() == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-5)


def test_without_contrasts_the_loss_is_cross_entropy_with_the_class_prior():
    logits, queries, target, contrast, contrast_target = numbers()
    counts = torch.tensor([50., 20., 5., 1.])
    ours = PaCoLoss(counts, alpha=0., gamma=0.)(logits, queries, target, contrast, contrast_target)
    assert torch.isclose(ours, F.cross_entropy(logits + (counts / counts.sum()).log(), target), atol=1e-6)


def test_autocast_does_not_reach_the_loss():
    inputs = [x.float() if x.is_floating_point() else x for x in numbers()]
    criterion = PaCoLoss([50, 20, 5, 1], alpha=.05)
    expected = criterion(*inputs)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(criterion(*inputs), expected)
        assert criterion(*(x.bfloat16() if x.is_floating_point() else x for x in inputs)).dtype == torch.float32


@pytest.mark.parametrize('wrong', [{'alpha': -.1}, {'beta': 0.}, {'gamma': -1.}, {'temperature': 0.}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=f'{next(iter(wrong))}={next(iter(wrong.values()))}'):
        PaCoLoss(COUNTS, **{'alpha': .05, **wrong})


def test_mixed_labels_are_refused():
    logits, queries, target, *contrast = numbers()
    with pytest.raises(ValueError, match='--mixup 0 --cutmix 0'):
        PaCoLoss([50, 20, 5, 1], alpha=.05)(logits, queries, F.one_hot(target, 4).double(), *contrast)


@pytest.mark.parametrize('counts', [[50, 20, 5], [50]], ids=len)
def test_counts_of_other_classes_than_the_models_are_refused(counts):
    with pytest.raises(ValueError, match=f'class_counts is for {len(counts)} classes, but the logits .* are of 4: '):
        PaCoLoss(counts, alpha=.05)(*numbers())


@pytest.mark.parametrize('name', ['resnet20_cifar', 'resnet50'])
def test_one_pass_gives_the_plain_models_logits_and_a_projection_of_length_1(name):
    model = plain_model(name)
    alone = copy.deepcopy(model).train()
    net = PaCoNet(model, dim=8).train()
    passes = []
    model.conv1.register_forward_hook(lambda *_: passes.append(1))
    query, *_ = views(range(4), size=32)
    logits, projection = net(query)
    assert len(passes) == 1
    assert torch.equal(logits, alone(query)), 'training mode, BatchNorm by the batch'
    assert projection.shape == (4, 8)
    assert torch.allclose(projection.norm(dim=1), torch.ones(4))
    assert not torch.allclose(projection[0], projection[1], atol=1e-3)
    assert torch.equal(net.eval()(query), model(query))
    assert torch.equal(net(query), alone.eval()(query)), 'the same running statistics'


def test_what_the_model_keeps_from_weight_decay_is_kept_from_it():
    vit = timm.create_model('vit_tiny_patch16_224', img_size=32, embed_dim=48, depth=1, num_heads=3, num_classes=10)
    assert PaCoNet(vit, dim=8).no_weight_decay() == {f'model.{name}' for name in vit.no_weight_decay()}
    assert PaCoNet(plain_model('resnet20_cifar'), dim=8).no_weight_decay() == set()


@pytest.mark.parametrize(('model', 'message'), [
    (lambda: timm.create_model('deit_lt_tiny', img_size=32, embed_dim=48, depth=1, num_heads=3), '2 heads'),
    (lambda: plain_model(num_classes=0), 'no head'),
    (lambda: nn.Linear(3, 2), 'forward_features'),
])
def test_model_without_exactly_one_head_is_refused(model, message):
    with pytest.raises(ValueError, match=message):
        PaCoNet(model(), dim=8)


def test_task_returns_a_loss_and_logits_and_leaves_the_key_encoder_without_gradient():
    ours = paco()
    query, key, target = views()
    result = ours(query, target, weak=key)
    assert set(result) == {'loss', 'output'}
    result['loss'].backward()
    assert result['output'].shape == (6, 5)
    assert all(p.grad is not None and p.grad.any() for p in ours.trainable_module.parameters())
    assert all(p.grad is None and not p.requires_grad for p in ours.key_encoder.parameters())


def test_key_view_reaches_the_key_encoder_only():
    ours = paco()
    seen = []
    ours.key_encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    ours.trainable_module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    query, key, target = views()
    ours(query, target, weak=key)
    assert torch.equal(seen[0], query) and torch.equal(seen[1], key) and len(seen) == 2


def test_task_loss_is_the_loss_of_queries_keys_and_queue():
    ours = paco()
    update(ours, sgd(ours), [plan()])
    before = ours.queue.state_dict()
    query, key, target = views(range(6, 10))
    logits, queries = copy.deepcopy(ours.trainable_module)(query)
    _, keys = copy.deepcopy(ours.key_encoder)(key)
    filled = before['labels'] >= 0
    assert filled.sum() == 6
    expected = slow_loss(
        logits, queries, target, torch.cat([keys, before['keys'][filled]]),
        torch.cat([target, before['labels'][filled]]), COUNTS, alpha=.05, beta=1., gamma=1., temperature=.05)
    assert ours(query, target, weak=key)['loss'].item() == pytest.approx(expected, rel=1e-4)


def test_key_encoder_moves_by_its_momentum_at_the_end_of_an_update_and_not_before():
    ours = paco()
    optimizer = sgd(ours)
    query, key, target = views()
    start = copy.deepcopy(dict(ours.key_encoder.named_parameters()))
    for name, value in ours.trainable_module.named_parameters():
        assert torch.equal(start[name], value), 'both encoders start alike'
    ours(query, target, weak=key)['loss'].backward()
    optimizer.step()
    assert not changed(start, dict(ours.key_encoder.named_parameters()))
    ours.end_update([plan()])
    for name, value in ours.trainable_module.named_parameters():
        expected = .9 * start[name] + .1 * value
        assert torch.allclose(dict(ours.key_encoder.named_parameters())[name], expected, atol=1e-7)
        assert not torch.equal(start[name], value)


def test_key_encoder_keeps_statistics_of_its_own_view():
    ours = paco()
    query, key, target = views()
    ours(query, target, weak=key)
    own = ours.key_encoder.model.bn1.running_mean
    assert own.any() and not torch.allclose(own, ours.trainable_module.model.bn1.running_mean, atol=1e-3)


@pytest.mark.parametrize('sizes', [[3, 3, 3], [5, 4, 4], [7, 8], [20, 1]])
def test_queue_is_a_ring_of_the_latest_keys(sizes):
    queue = KeyQueue(8, dim=2)
    places, count = [(0., -1)] * 8, 0
    for size in sizes:
        batch = torch.arange(count, count + size)
        queue.push(batch[:, None].repeat(1, 2).float() + 1, batch % 5)
        for number in batch.tolist():
            places[number % 8] = (number + 1., number % 5)
        count += size
    assert queue.keys[:, 0].tolist() == [key for key, _ in places]
    assert queue.labels.tolist() == [label for _, label in places]
    assert queue.pointer.item() == count % 8


def test_queue_holds_normalised_keys_and_labels_in_the_order_of_the_micro_batches():
    ours = paco()
    keys = []
    ours.key_encoder.register_forward_hook(lambda _, inputs, output: keys.append(output[1]))
    numbers_and_weights = [(2, .5), (0, 0.), (1, .5)]  # as ranks take turns; number 0 only fills up
    for number, _ in numbers_and_weights:
        query, key, target = views(range(3 * number, 3 * number + 3))
        ours(query, target, weak=key)
    ours.end_update([plan(number, 3, weight) for number, weight in numbers_and_weights])
    assert torch.equal(ours.queue.keys[:6], torch.cat([keys[2], keys[0]]))
    assert torch.allclose(ours.queue.keys[:6].norm(dim=1), torch.ones(6))
    assert ours.queue.labels[:7].tolist() == [3, 4, 0, 1, 2, 3, -1]
    assert ours.queue.pointer.item() == 6


def test_empty_places_of_the_queue_do_not_count():
    query, key, target = views()
    small, large = (paco(queue_size=size)(query, target, weak=key)['loss'] for size in (1, 500))
    assert torch.isclose(small, large, atol=1e-6)


@pytest.mark.parametrize('name', ['resnet20_cifar', 'resnet50'])
def test_second_pass_changes_no_state_and_repeats_the_first(name):
    ours = paco(plain_model(name, drop_rate=.3))
    query, key, target = views(size=32)

    def losses(second_pass):
        for i in (0, 3):
            torch.manual_seed(i)  # dropout repeats, as under the Trainer
            yield ours(query[i:i + 3], target[i:i + 3], weak=key[i:i + 3], second_pass=second_pass)['loss']

    first = list(losses(second_pass=False))
    before = snapshot(ours)
    second = list(losses(second_pass=True))
    assert not changed(before, ours.state_dict())
    assert torch.equal(torch.stack(first), torch.stack(second))
    gradients = [torch.autograd.grad(sum(x), list(ours.trainable_module.parameters())) for x in (first, second)]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_sam_queues_its_keys_once_and_moves_the_key_encoder_once():
    ours = paco()
    keys = []
    ours.key_encoder.register_forward_hook(lambda _, inputs, output: keys.append(output[1]))
    optimizer = SAMSGD(ours.trainable_module.parameters(), rho=.5, lr=.05)
    start = copy.deepcopy(dict(ours.key_encoder.named_parameters()))
    first, second = update(ours, optimizer, [plan(0, 4, .5), plan(1, 4, .5)])
    assert not torch.allclose(first, second, atol=1e-3), 'the second pass is at the perturbed weights'
    assert ours.queue.pointer.item() == 8 and (ours.queue.labels >= 0).sum() == 8
    assert torch.equal(ours.queue.keys[:8], torch.cat(keys[:2]))
    for name, value in ours.trainable_module.named_parameters():
        assert torch.allclose(dict(ours.key_encoder.named_parameters())[name], .9 * start[name] + .1 * value, atol=1e-7)
    statistics = ours.trainable_module.model.bn1.num_batches_tracked
    assert statistics == ours.key_encoder.model.bn1.num_batches_tracked == 2


def test_update_that_was_broken_off_is_forgotten_in_the_next_epoch():
    ours = paco()
    query, key, target = views()
    ours(query, target, weak=key)
    with pytest.raises(ValueError, match='update of 2 micro-batch.* 1 first pass'):
        ours.end_update([plan(0), plan(1)])
    ours(query, target, weak=key)
    ours.set_epoch(1)
    update(ours, sgd(ours), [plan()])
    assert ours.queue.pointer.item() == 6
    with pytest.raises(ValueError, match='before the first pass'):
        ours(query, target, weak=key, second_pass=True)


def two_epochs(world, rank, sam):
    """State after two epochs of 26 images in micro-batches of 4, four to an update.

    In double precision: so small batches and so low a temperature magnify single precision's rounding beyond 1e-5.
    """
    ours = paco(plain_model().double())
    model = ours.trainable_module.model
    if world > 1:
        ours.key_encoder.model.fc.bias.data += rank  # rank 0's is the one that counts
        ours.prepare_distributed()
        assert unwrap_model(ours.get_eval_model()) is model
    optimizer = SAMSGD(ours.trainable_module.parameters(), rho=.1, lr=.05) if sam else sgd(ours)
    sampler = MicroBatchSampler(IMAGES, 4, 4 // world, world, rank)
    for epoch in range(2):
        ours.set_epoch(epoch)
        sampler.set_epoch(epoch)
        plans = sampler.plan()
        while plans:
            end = [micro_batch.last for micro_batch in plans].index(True) + 1
            update(ours, optimizer, plans[:end], world)
            plans = plans[end:]
    state = {'model': model.state_dict(), **ours.get_task_state()}
    assert set(ours.get_checkpoint_state()['state_dict']) == set(state['model'])
    return copy.deepcopy(state)


def play(rank, folder):
    dist.init_process_group('gloo', timeout=timedelta(minutes=2))
    torch.save([two_epochs(2, rank, sam) for sam in (False, True)], folder / f'{rank}.pt')
    dist.destroy_process_group()


def test_two_ranks_make_the_updates_of_one_and_fill_the_same_queue(tmp_path):
    on_two_ranks(play, tmp_path)
    ranks = [torch.load(tmp_path / f'{rank}.pt') for rank in range(2)]
    for which, sam in enumerate((False, True)):
        one = two_epochs(1, 0, sam)
        assert one['queue']['pointer'] == 2 * IMAGES % 20
        for part in one:
            for name, value in one[part].items():
                if 'running' in name or 'num_batches' in name:
                    continue  # those of each rank's micro-batches
                for rank in ranks:
                    assert torch.allclose(rank[which][part][name], value, rtol=0, atol=1e-7), (part, name)
        for name in KEYS:
            assert torch.equal(ranks[0][which]['queue'][name], ranks[1][which]['queue'][name])


def test_run_goes_on_from_a_checkpoint_bit_for_bit(tmp_path):
    ours = paco()
    optimizer = sgd(ours)
    update(ours, optimizer, [plan(0, 6)])
    torch.save({**ours.get_checkpoint_state(), 'optimizer': optimizer.state_dict()}, tmp_path / 'last.pth.tar')
    update(ours, optimizer, [plan(0, 5), plan(1, 4)])

    torch.manual_seed(9)
    other = paco(timm.create_model('resnet20_cifar', num_classes=5))
    other_optimizer = sgd(other)
    checkpoint = torch.load(tmp_path / 'last.pth.tar', weights_only=True)
    unwrap_model(other.get_eval_model()).load_state_dict(checkpoint['state_dict'])
    other.load_task_state(checkpoint['task_state'])
    other_optimizer.load_state_dict(checkpoint['optimizer'])
    update(other, other_optimizer, [plan(0, 5), plan(1, 4)])
    assert not changed(ours.state_dict(), other.state_dict())


@pytest.mark.parametrize('name', ['resnet20_cifar', 'resnet50'])
def test_checkpoint_is_that_of_the_plain_classifier(name):
    ours = paco(plain_model(name))
    query, *_ = views(range(4), size=32)
    update(ours, sgd(ours, lr=.01), [plan(0, 4)])
    alone = timm.create_model(name, num_classes=5)
    alone.load_state_dict(ours.get_checkpoint_state()['state_dict'], strict=True)
    ours.eval()
    assert torch.equal(alone.eval()(query), ours.trainable_module(query))
    assert torch.equal(alone(query), unwrap_model(ours.get_eval_model())(query))
    shots = Shots.from_counts(COUNTS)
    evaluator = paco(shots=shots).create_evaluator()
    evaluator.update({'mean': alone(query), 'cls': alone(query)}, torch.tensor([0, 1, 2, 3]))
    assert set(evaluator.compute()) == {'mean', 'cls'}


def test_state_of_other_sizes_is_refused_and_says_which():
    state = paco().get_task_state()
    with pytest.raises(ValueError, match=r'paco-queue.*\[20, 8\], not \[30, 8\]'):
        paco(queue_size=30).load_task_state(state)
    with pytest.raises(ValueError, match='paco-dim'):
        paco(dim=4).load_task_state(state)


def test_plain_classifiers_checkpoint_starts_key_encoder_and_queue_anew():
    ours = paco()
    update(ours, sgd(ours), [plan()])
    ours.load_task_state(None)
    for name, value in ours.trainable_module.named_parameters():
        assert torch.equal(dict(ours.key_encoder.named_parameters())[name], value)
    assert (ours.queue.labels == -1).all() and not ours.queue.pointer


def test_ema_holds_a_plain_model_and_a_projection():
    ours = paco()
    ours.setup_ema(decay=.5)
    update(ours, sgd(ours), [plan()])
    ours.update_ema()
    averaged = unwrap_model(ours.get_eval_model(ema=True))
    assert type(averaged) is type(ours.get_eval_model()) and averaged is not ours.get_eval_model()
    state = ours.get_checkpoint_state(ema=True)
    plain_model().load_state_dict(state['state_dict_ema'], strict=True)
    assert set(state['task_state_ema']) == {'projection'}
    other = paco()
    other.setup_ema(decay=.5)
    other.load_task_state(state['task_state_ema'], ema=True)
    kept = unwrap_model(other.get_trainable_module(ema=True)).projection.state_dict()
    assert not changed(kept, state['task_state_ema']['projection'])


def test_compiled_task_makes_the_same_update_and_checkpoint():
    states = []
    for compiled in (False, True):
        ours = paco()
        if compiled:
            ours.compile(backend='eager')
        update(ours, SAMSGD(ours.trainable_module.parameters(), rho=.1, lr=.05), [plan(0, 4)])
        states.append(copy.deepcopy(ours.get_checkpoint_state()))
        assert type(unwrap_model(ours.get_eval_model())).__name__ == 'ResNetCifar'
    plain, compiled = states
    assert not changed(plain['state_dict'], compiled['state_dict'])
    assert plain['task_state'].keys() == compiled['task_state'].keys()
    for part, state in plain['task_state'].items():
        assert not changed(state, compiled['task_state'][part])


def test_gradients_of_the_models_head_can_be_left_out_of_clipping():
    ours = paco()
    every, some = ours.get_clip_parameters(), ours.get_clip_parameters(exclude_head=True)
    left_out = {id(p) for p in every} - {id(p) for p in some}
    assert left_out == {id(p) for p in ours.trainable_module.model.fc.parameters()}
    assert len(every) == len(list(ours.trainable_module.parameters()))


def test_second_view_full_precision_and_a_sensible_momentum_are_asked_for():
    query, _, target = views()
    with pytest.raises(ValueError, match='two views'):
        paco()(query, target)
    with pytest.raises(ValueError, match='bfloat16.*--amp'):
        paco(plain_model().bfloat16())
    with pytest.raises(ValueError, match=r'momentum=1\.0'):
        paco(momentum=1.)
    with pytest.raises(ValueError, match='0 places'):
        paco(queue_size=0)


def test_examples_in_the_documentation_run():
    results = [doctest.testmod(module, extraglobs={'timm': timm}) for module in (loss, network, task)]
    assert not sum(result.failed for result in results)
    assert sum(result.attempted for result in results) > 8
