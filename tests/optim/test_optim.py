import copy
import inspect
import io
import math
import pickle

import pytest
import timm
import torch
import torch.nn as nn
from timm.optim import create_optimizer_v2, get_optimizer_class, list_optimizers
from timm.optim._optim_factory import default_registry
from timm.scheduler import CosineLRScheduler

import timm_deitlt.models  # noqa: F401  registers the models
from timm_deitlt.optim import SAM, SAMSGD, SAMAdamW

INPUTS = [[0.5, -1.0, 2.0], [1.5, 0.3, -0.7], [-0.2, 0.8, 1.1], [0.9, -0.4, 0.6]]
TARGETS = [0.3, -1.2, 0.7, 2.0]
NAMES = ('samadamw', 'samsgd')


def sgd(params, **options):
    return SAM(params, torch.optim.SGD, **{'rho': 0.2, 'lr': 0.1, **options})


def regression(make=sgd, dtype=torch.float64):
    """Parameters of a small regression, the optimizer made of them, and the closure that SAM needs."""
    weight = nn.Parameter(torch.tensor([0.4, -0.3, 0.2], dtype=dtype))
    bias = nn.Parameter(torch.tensor([0.1], dtype=dtype))
    x, y = torch.tensor(INPUTS, dtype=dtype), torch.tensor(TARGETS, dtype=dtype)
    optimizer = make([weight, bias])

    def closure():
        optimizer.zero_grad()
        loss = (x @ weight + bias - y).pow(2).mean()
        loss.backward()
        return loss

    return weight, bias, optimizer, closure


def vector(*params):
    return torch.cat([p.detach() for p in params])


def plain_gradient(w):
    """Gradient of the regression at [weight..., bias], in plain Python."""
    gradient = [0.] * 4
    for x, y in zip(INPUTS, TARGETS, strict=True):
        x = [*x, 1.]
        error = sum(a * b for a, b in zip(w, x, strict=True)) - y
        gradient = [g + 2 * error * a / len(INPUTS) for g, a in zip(gradient, x, strict=True)]
    return gradient


def plain_sam(steps, lr, rho, adaptive, momentum, weight_decay):
    """SAM around SGD with a learning rate, radius and weight decay per coordinate, in plain Python."""
    w = [0.4, -0.3, 0.2, 0.1]
    velocity = None
    for _ in range(steps):
        g = plain_gradient(w)
        t = [abs(a) if adaptive else 1. for a in w]
        norm = math.sqrt(sum((a * b) ** 2 for a, b in zip(t, g, strict=True)))
        e = [r * a * a * b / norm for r, a, b in zip(rho, t, g, strict=True)]
        g = plain_gradient([a + b for a, b in zip(w, e, strict=True)])
        g = [a + d * b for a, d, b in zip(g, weight_decay, w, strict=True)]
        velocity = g if velocity is None else [momentum * v + a for v, a in zip(velocity, g, strict=True)]
        w = [a - r * v for a, r, v in zip(w, lr, velocity, strict=True)]
    return torch.tensor(w, dtype=torch.float64)


@pytest.mark.parametrize('adaptive', [False, True])
@pytest.mark.parametrize('bias_options', [{}, {'lr': 0.02, 'rho': 0.4, 'weight_decay': 0.}])
def test_sam_equals_plain_recomputation_over_groups(adaptive, bias_options):
    options = {'lr': 0.05, 'rho': 0.2, 'weight_decay': 0.01}
    weight, bias, optimizer, closure = regression(lambda params: sgd(
        [{'params': params[:1]}, {'params': params[1:], **bias_options}], adaptive=adaptive, momentum=0.9, **options))
    for _ in range(5):
        optimizer.step(closure)
    per_coordinate = {name: [value] * 3 + [bias_options.get(name, value)] for name, value in options.items()}
    expected = plain_sam(5, adaptive=adaptive, momentum=0.9, **per_coordinate)
    torch.testing.assert_close(vector(weight, bias), expected, rtol=1e-12, atol=1e-12)


def test_both_passes_see_the_flag_and_the_radius_and_the_loss_is_of_the_first():
    weight, bias, optimizer, closure = regression()
    start = vector(weight, bias)
    flags, losses, distances = [], [], []

    def watched():
        flags.append(optimizer.perturbed)
        distances.append((vector(weight, bias) - start).norm().item())
        losses.append(closure())
        return losses[-1]

    loss = optimizer.step(watched)
    assert flags == [False, True]
    assert not optimizer.perturbed
    assert distances == pytest.approx([0., 0.2], abs=1e-12)
    assert loss is losses[0]
    assert losses[1] > losses[0]


def test_weights_are_restored_bit_for_bit():
    torch.manual_seed(0)
    net = nn.Linear(50, 20)
    before = copy.deepcopy(net.state_dict())
    optimizer = SAM(net.parameters(), torch.optim.SGD, rho=0.7, lr=0.)
    optimizer.step(lambda: backward(optimizer, net, torch.ones(8, 50)))
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def backward(optimizer, net, x, micro_batch=None):
    optimizer.zero_grad()
    total = 0.
    for part in x.split(micro_batch or len(x)):
        loss = net(part).pow(2).sum() / len(x)
        loss.backward()
        total += loss.detach()
    return total


@pytest.mark.parametrize('adaptive', [False, True])
def test_accumulated_micro_batches_equal_one_batch(adaptive):
    x = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    results = []
    for micro_batch in (8, 2):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
        optimizer = SAM(net.parameters(), torch.optim.AdamW, rho=0.5, adaptive=adaptive, lr=0.01)
        for _ in range(4):
            optimizer.step(lambda: backward(optimizer, net, x, micro_batch))  # noqa: B023
        results.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('base, options', [
    (torch.optim.SGD, {'lr': 0.1, 'momentum': 0.9, 'weight_decay': 0.01}),
    (torch.optim.AdamW, {'lr': 0.01}),
])
def test_radius_zero_is_the_base_optimizer_bit_for_bit_in_one_pass(base, options):
    results, calls = [], []
    for make in (base, lambda params, **kwargs: SAM(params, base, rho=0., **kwargs)):
        weight, bias, optimizer, closure = regression(lambda params: make(params, **options), torch.float32)  # noqa: B023
        for _ in range(5):
            optimizer.step(lambda: calls.append(1) or closure())  # noqa: B023
        results.append(vector(weight, bias))
    assert optimizer.single_pass
    assert len(calls) == 10
    assert torch.equal(*results)


@pytest.mark.parametrize('name', NAMES)
def test_saved_state_continues_bit_for_bit_with_its_radius(name):
    def build(**options):
        return regression(lambda params: create_optimizer_v2(params, name, lr=0.05, weight_decay=0.1, **options))

    weight, bias, optimizer, closure = build(rho=0.3, adaptive=True)
    for _ in range(3):
        optimizer.step(closure)
    file = io.BytesIO()
    torch.save({'optimizer': optimizer.state_dict(), 'weight': weight.data, 'bias': bias.data}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    weight_2, bias_2, resumed, closure_2 = build(rho=0.01)
    weight_2.data.copy_(saved['weight'])
    bias_2.data.copy_(saved['bias'])
    resumed.load_state_dict(saved['optimizer'])
    assert (resumed.param_groups[0]['rho'], resumed.param_groups[0]['adaptive']) == (0.3, True)
    for _ in range(3):
        optimizer.step(closure)
        resumed.step(closure_2)
    assert torch.equal(vector(weight, bias), vector(weight_2, bias_2))
    assert_shared(resumed)


def assert_shared(optimizer):
    base = optimizer.base_optimizer
    assert optimizer.param_groups is base.param_groups
    assert optimizer.state is base.state
    assert optimizer.defaults is base.defaults


def test_state_has_the_layout_of_the_base_and_takes_a_state_of_the_base():
    _, _, base, closure = regression(lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9))
    base.step(closure)
    _, _, optimizer, _ = regression(lambda params: sgd(params, lr=0.5, momentum=0.1))
    optimizer.load_state_dict(base.state_dict())
    expected, state = base.state_dict(), optimizer.state_dict()
    assert torch.equal(state['state'][0]['momentum_buffer'], expected['state'][0]['momentum_buffer'])
    assert state['param_groups'][0] == {**expected['param_groups'][0], 'rho': 0.2, 'adaptive': False}


@pytest.mark.parametrize('copied', [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=['copy', 'pickle'])
@pytest.mark.parametrize('name', NAMES)
def test_copy_continues_bit_for_bit_and_shares_its_own_base(name, copied):
    net = nn.Linear(3, 2)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    optimizer = create_optimizer_v2(net, name, lr=0.05)
    for _ in range(2):
        optimizer.step(lambda: backward(optimizer, net, x))
    net_2, optimizer_2 = copied((net, optimizer))
    for _ in range(2):
        optimizer.step(lambda: backward(optimizer, net, x))
        optimizer_2.step(lambda: backward(optimizer_2, net_2, x))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), net_2.parameters(), strict=True))
    assert_shared(optimizer_2)
    assert 'rho: 0.05' in repr(optimizer_2)


def test_schedulers_and_new_groups_reach_the_base():
    weight, bias, optimizer, closure = regression(lambda params: sgd(params[:1]))
    optimizer.add_param_group({'params': [bias], 'lr': 0.4})
    assert optimizer.param_groups[1]['rho'] == 0.2
    torch_schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    optimizer.step(closure)
    torch_schedule.step()
    assert [group['lr'] for group in optimizer.base_optimizer.param_groups] == [0.05, 0.2]

    timm_schedule = CosineLRScheduler(optimizer, t_initial=10, lr_min=0.01)
    timm_schedule.step(10)
    assert [group['lr'] for group in optimizer.base_optimizer.param_groups] == [0.01, 0.01]


def test_step_hooks_run_once_per_step():
    _, _, optimizer, closure = regression()
    calls = []
    optimizer.register_step_post_hook(lambda *args: calls.append(args[0]))
    optimizer.step(closure)
    assert calls == [optimizer]


def test_parameters_without_gradient_are_left_alone():
    unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
    results = []
    for others in ([], [unused]):
        weight, bias, optimizer, closure = regression(lambda params: sgd(others + params, weight_decay=0.1))  # noqa: B023
        optimizer.step(closure)
        results.append(vector(weight, bias))
    assert torch.equal(*results)
    assert torch.equal(unused, torch.ones_like(unused))


@pytest.mark.parametrize('adaptive', [False, True])
def test_zero_gradient_leaves_weight_decay_alone_at_work(adaptive):
    weight = nn.Parameter(torch.ones(3))
    optimizer = sgd([weight], adaptive=adaptive, weight_decay=0.5)
    weight.grad = torch.zeros(3)
    optimizer.step(lambda: 0.)
    torch.testing.assert_close(weight.detach(), torch.full((3,), 0.95))


def test_error_in_the_second_pass_restores_the_weights():
    weight, bias, optimizer, closure = regression()
    before = vector(weight, bias)

    def failing():
        if optimizer.perturbed:
            assert not torch.equal(vector(weight, bias), before)
            raise RuntimeError('no memory')
        return closure()

    with pytest.raises(RuntimeError, match='no memory'):
        optimizer.step(failing)
    assert torch.equal(vector(weight, bias), before)
    assert not optimizer.perturbed


@pytest.mark.parametrize('bad_pass', [False, True], ids=['first', 'second'])
@pytest.mark.parametrize('bad_loss', [1., math.nan, math.inf])
def test_gradient_that_is_not_finite_changes_nothing_and_shows_in_the_loss(bad_pass, bad_loss):
    weight, bias, optimizer, closure = regression(lambda params: sgd(params, momentum=0.9))
    before = vector(weight, bias)

    def spoiled():
        loss = closure()
        if optimizer.perturbed is bad_pass:
            weight.grad[1] = math.inf
            return torch.tensor(bad_loss)
        return loss

    assert not math.isfinite(optimizer.step(spoiled))
    assert torch.equal(vector(weight, bias), before)
    assert not optimizer.state


@pytest.mark.parametrize('make', [
    lambda params: SAMSGD(params, rho=.1, lr=.1, momentum=.9, fused=True),
    lambda params: SAMAdamW(params, rho=.1, lr=.1, fused=True)], ids=NAMES[::-1])
@pytest.mark.parametrize('bad_pass', [False, True], ids=['first', 'second'])
@pytest.mark.parametrize('steps_before', [0, 2])
def test_fused_base_leaves_out_a_step_whose_gradient_is_not_finite_and_goes_on(make, bad_pass, steps_before):
    def train(*bad):
        weight, bias, optimizer, closure = regression(make, dtype=torch.float32)
        for spoil in (*[False] * steps_before, *bad, False):
            def closure_of_step(spoil=spoil):
                loss = closure()
                if spoil and optimizer.perturbed is bad_pass:
                    weight.grad[1] = math.nan
                return loss

            assert bool(optimizer.step(closure_of_step).isfinite()) is not spoil
        return vector(weight, bias)

    assert torch.equal(train(True), train())


def test_norm_of_half_precision_gradients_does_not_overflow():
    weight = nn.Parameter(torch.ones(100, dtype=torch.float16))
    optimizer = SAM([weight], torch.optim.SGD, rho=1., lr=1e-4)
    weight.grad = torch.full_like(weight, 1e4)
    seen = []
    assert optimizer.step(lambda: seen.append(weight.detach().clone()) or 0.) == 0.
    torch.testing.assert_close(seen[1], torch.full_like(weight, 1.1))
    torch.testing.assert_close(weight.detach(), torch.zeros_like(weight), atol=1e-3, rtol=0)


def test_step_without_closure_says_how_to_train():
    _, _, optimizer, _ = regression()
    with pytest.raises(ValueError, match=r'two .*passes.*closure.*train\.py'):
        optimizer.step()


def test_fp16_gradient_scaling_is_refused_by_name():
    weight, _, optimizer, _ = regression(dtype=torch.float32)
    scaler = torch.amp.GradScaler('cpu')
    scaler.scale(weight.pow(2).sum()).backward()
    with pytest.raises(ValueError, match='fp16 gradient scaling .* bf16 or fp32'):
        scaler.step(optimizer)


@pytest.mark.parametrize('rho', [-0.1, math.inf, math.nan])
def test_radius_must_be_finite_and_not_negative(rho):
    with pytest.raises(ValueError, match='rho is'):
        SAM([nn.Parameter(torch.ones(1))], torch.optim.SGD, rho=rho)
    with pytest.raises(ValueError, match='rho is'):
        SAM([{'params': [nn.Parameter(torch.ones(1))], 'rho': rho}], torch.optim.SGD)


def test_base_must_be_an_optimizer_without_such_options():
    for base in (list, 'sgd', torch.optim.SGD([nn.Parameter(torch.ones(1))])):
        with pytest.raises(ValueError, match=r'torch\.optim\.Optimizer class'):
            SAM([nn.Parameter(torch.ones(1))], base)
    with pytest.raises(ValueError, match='Adadelta has its own'):
        SAM([nn.Parameter(torch.ones(1))], torch.optim.Adadelta)


def test_timm_registry_holds_our_names():
    """Contract with the instance that timm does not export."""
    assert default_registry.list_optimizers('sam*') == list_optimizers('sam*') == sorted(NAMES)
    assert get_optimizer_class('samsgd', bind_defaults=False) is SAMSGD
    assert get_optimizer_class('samadamw', bind_defaults=False) is SAMAdamW
    assert all(description for _, description in list_optimizers('sam*', with_description=True))


@pytest.mark.parametrize('name, base, options', [
    ('samsgd', torch.optim.SGD, {'momentum': 0.8}),
    ('samadamw', torch.optim.AdamW, {'eps': 1e-6, 'betas': (0.8, 0.9)}),
])
def test_timm_factory_passes_every_option(name, base, options):
    model = timm.create_model('resnet20_cifar')
    optimizer = create_optimizer_v2(
        model, name, lr=0.2, weight_decay=0.03, foreach=False, rho=0.7, adaptive=True, **options)
    assert type(optimizer.base_optimizer) is base
    no_decay, decay = optimizer.param_groups
    assert (no_decay['weight_decay'], decay['weight_decay']) == (0., 0.03)
    expected = {'lr': 0.2, 'foreach': False, 'rho': 0.7, 'adaptive': True, **options}
    assert {key: decay[key] for key in expected} == expected


@pytest.mark.parametrize('ours, base', [(SAMSGD, torch.optim.SGD), (SAMAdamW, torch.optim.AdamW)])
def test_signature_is_that_of_the_base_and_reaches_it(ours, base):
    """Contract with torch: timm reads from a signature what an optimizer takes, so a new option belongs in ours."""
    own, theirs = (inspect.signature(optimizer).parameters for optimizer in (ours, base))
    assert {name: p.default for name, p in own.items() if name not in ('rho', 'adaptive')} == {
        name: p.default for name, p in theirs.items()}
    assert all(p.kind is not p.VAR_KEYWORD for p in own.values())
    group, expected = (optimizer([nn.Parameter(torch.ones(1))]).param_groups[0] for optimizer in (ours, base))
    assert group == {**expected, 'params': group['params'], 'rho': .05, 'adaptive': False}
    changed = {'lr': .3, 'weight_decay': .2, 'maximize': True, 'foreach': True, 'differentiable': False}
    group = ours([nn.Parameter(torch.ones(1))], .1, True, **changed).param_groups[0]
    assert {name: group[name] for name in changed} == changed and (group['rho'], group['adaptive']) == (.1, True)


def test_unknown_option_is_an_error_of_the_class_itself():
    with pytest.raises(TypeError, match=r"SAMSGD.*unexpected keyword argument 'betas'"):
        SAMSGD([nn.Parameter(torch.ones(1))], betas=(.9, .99))


def test_samsgd_is_not_nesterov_and_drops_what_sgd_does_not_know():
    group = create_optimizer_v2(nn.Linear(2, 2), 'samsgd', lr=0.1, eps=1e-8, betas=(0.9, 0.99)).param_groups[0]
    assert (group['nesterov'], group['momentum'], group['rho'], group['adaptive']) == (False, 0.9, 0.05, False)


@pytest.mark.parametrize('name, options', [
    ('samsgd', {'lr': 1e-2}),
    ('samsgd', {'lr': 3e-3, 'momentum': 1}),
    ('samsgd', {'lr': 3e-3, 'momentum': 1, 'weight_decay': .1}),
    ('samadamw', {'lr': 1e-2}),
    ('samadamw', {'lr': 1e-2, 'weight_decay': 1}),
])
@pytest.mark.parametrize('strided', [False, True])
def test_basic_cases_descend(name, options, strided):
    torch.manual_seed(0)
    weight, bias, x = torch.randn(10, 5, 2)[..., 0], torch.randn(10, 2)[..., 0], torch.randn(5)
    weight, bias = (nn.Parameter(value if strided else value.contiguous()) for value in (weight, bias))
    optimizer = create_optimizer_v2([weight, bias], name, **options)

    def closure():
        optimizer.zero_grad()
        loss = (weight.mv(x) + bias).pow(2).sum()
        loss.backward()
        return loss

    start = closure().item()
    for _ in range(200):
        optimizer.step(closure)
    assert closure().item() < start


# Along this valley SAM wanders to where it is flatter, the further the larger the radius: with SGD and the default 0.05
# a plain recomputation too ends at (0.227, 0.004). The small radius keeps the minimum where timm's test looks for it.
@pytest.mark.parametrize('name, lr, rho', [('samsgd', 1e-3, 1e-3), ('samadamw', 5e-2, 0.05)])
def test_rosenbrock_comes_closer_by_cyclic_coordinate_descent(name, lr, rho):
    point = nn.Parameter(torch.tensor([1.5, 1.5]))
    solution = torch.ones(2)
    optimizer = create_optimizer_v2([point], name, lr=lr, rho=rho)
    start = point.detach().dist(solution)
    for step in range(2000):
        def closure(coordinate=step % 2):
            optimizer.zero_grad()
            x, y = point
            loss = (1 - x) ** 2 + 100 * (y - x ** 2) ** 2
            loss.backward()
            point.grad[1 - coordinate] = 0.
            return loss

        optimizer.step(closure)
    assert point.detach().dist(solution) <= start
