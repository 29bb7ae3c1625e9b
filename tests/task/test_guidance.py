"""Guidance by a teacher's feature maps: what is trained, what is kept, and what never leaves the task."""
import copy
import doctest
from datetime import timedelta

import pytest
import timm
import torch
import torch.distributed as dist
from conftest import TINY
from helpers import (
    CLASSES,
    COUNTS,
    SILENT,
    SIZE,
    assert_close,
    on_two_ranks,
    settings_of,
    sgd,
    teacher,
    train_loader,
    trainer,
    vit,
    weights,
)
from timm.optim import create_optimizer_v2
from torch import nn

from timm_deitlt import DeiTLTTask, Shots, create_distillation_loss
from timm_deitlt.loss.guidance import dense_distillation, locality_guidance
from timm_deitlt.optim import SAMSGD
from timm_deitlt.run.build.model import guidance_of
from timm_deitlt.task import guidance as guidance_module
from timm_deitlt.task.guidance import Guidance, GuidedStudent, GuidingTeacher, spread_blocks

BOTH = Guidance(weight=2.5, end_epoch=1, dense=1., epochs=4)


def guided(guidance=BOTH, model=None, network=None, loss='drw_hard', **kwargs):
    torch.manual_seed(3)
    distillation = create_distillation_loss(loss, class_counts=COUNTS, drw_start_epoch=3)
    model = model or vit()
    torch.manual_seed(4)
    return DeiTLTTask(
        model, network or teacher(), distillation, nn.CrossEntropyLoss(), task_loss_weight=.3, guidance=guidance,
        verbose=False, shots=Shots.from_counts(COUNTS), **kwargs).train()


def images():
    generator = torch.Generator().manual_seed(2)
    return torch.randn(6, 3, SIZE, SIZE, generator=generator), torch.tensor([0, 1, 2, 3, 4, 0])


def test_loss_is_the_unguided_one_plus_both_losses_of_maps_computed_by_hand():
    x, target = images()
    ours, plain = guided(), guided(None)
    for epoch in (0, 1, 3):
        ours.set_epoch(epoch)
        plain.set_epoch(epoch)
        result, before = ours(x, target), plain(x, target)
        model, net = ours.trainable_module.model, ours.teacher.model.network
        with torch.no_grad():
            view = ours.teacher_view(x)
            _, blocks = model.forward_intermediates(x, indices=[0, 1])
            _, stages = net.forward_intermediates(view, indices=[1, 2, 3])
            maps = [
                nn.functional.conv2d(blocks[block], layer.weight[:, :, None, None], layer.bias)
                for block, layer in zip((0, 1, 1), ours.trainable_module.projections, strict=True)]
            guidance = locality_guidance(maps, stages) if epoch < 1 else torch.tensor(0.)
            tokens = model.forward_features(x)[:, 2:]
            local = net.fc(stages[-1].movedim(1, -1)).movedim(-1, 1)
            dense = dense_distillation(
                model.head_dist(tokens).mT.unflatten(2, (2, 2)), local, net(view), 1 - epoch / 4,
                ours.distillation_loss.active_weight)
        assert torch.allclose(result['guidance_loss'], guidance, rtol=1e-5)
        assert torch.allclose(result['dense_loss'], dense, rtol=1e-5)
        for name in ('output', 'task_loss', 'distill_loss', 'teacher_correct', 'agreement', 'cosine'):
            assert torch.equal(result[name], before[name]), name
        assert torch.allclose(result['loss'], before['loss'] + 2.5 * guidance + dense, rtol=1e-5)


@pytest.mark.parametrize('guidance', [Guidance(weight=1.), Guidance(dense=1., epochs=4)])
def test_either_loss_goes_alone(guidance):
    x, target = images()
    result = guided(guidance)(x, target)
    assert bool(result['guidance_loss']) == bool(guidance.weight)
    assert bool(result['dense_loss']) == bool(guidance.dense)


def test_teacher_runs_once_and_stays_as_it_is():
    ours = guided()
    calls = []
    ours.teacher.model.network.layer3.register_forward_hook(lambda *_: calls.append(1))
    before = copy.deepcopy(ours.teacher.state_dict())
    x, target = images()
    ours(x, target)['loss'].backward()
    assert len(calls) == 1 and not ours.teacher.training
    assert all(p.grad is None and not p.requires_grad for p in ours.teacher.parameters())
    assert all(torch.equal(value, ours.teacher.state_dict()[name]) for name, value in before.items())


@pytest.mark.parametrize('name', ['resnet20_cifar', 'resnet50_cosine', 'test_resnet', 'efficientnet_b0', 'regnety_002'])
def test_logits_of_a_guiding_teacher_are_the_networks_own_and_its_places_average_to_them(name):
    network = timm.create_model(name, num_classes=CLASSES).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        logits, maps, local = GuidingTeacher(network, dense=True)(x)
        assert torch.equal(logits, network(x))
        if isinstance(network.get_classifier(), nn.Linear):
            assert torch.allclose(local.mean(dim=(2, 3)), logits, atol=1e-4)
        else:
            assert local.abs().max() <= 1 + 1e-5, 'each place has its own length'
    assert len(maps) == {'resnet20_cifar': 3, 'efficientnet_b0': 5}.get(name, 4)
    assert maps[0].shape[-1] > maps[-1].shape[-1] == local.shape[-1]


def test_checkpoint_ema_and_evaluation_hold_the_plain_student():
    ours = guided()
    ours.setup_ema(decay=.5)
    x, target = images()
    optimizer = sgd(ours)
    ours(x, target)['loss'].backward()
    optimizer.step()
    ours.update_ema()
    names = set(vit().state_dict())
    for ema, keys in ((False, ('state_dict', 'task_state')), (True, ('state_dict_ema', 'task_state_ema'))):
        state = ours.get_checkpoint_state(ema=ema)
        assert set(state) == set(keys) and set(state[keys[0]]) == names
        assert len(state[keys[1]]['projections']) == 6
    alone = vit().eval()
    alone.load_state_dict(ours.get_checkpoint_state()['state_dict'])
    ours.eval()
    assert torch.equal(alone(x), ours.get_eval_model()(x))
    assert torch.equal(alone(x), ours.trainable_module(x))
    assert type(ours.get_eval_model(ema=True)) is type(alone)


def test_state_goes_on_bit_for_bit_and_one_of_other_stages_is_refused():
    x, target = images()
    ours = guided()
    optimizer = sgd(ours)
    for _ in range(2):
        optimizer.zero_grad()
        ours(x, target)['loss'].backward()
        optimizer.step()
    saved = copy.deepcopy(ours.get_checkpoint_state())
    other = guided()
    other.load_checkpoint_state(saved['state_dict'], saved['task_state'])
    assert all(torch.equal(value, weights(other)[name]) for name, value in weights(ours).items())
    with pytest.raises(ValueError, match='--guidance-stages'):
        guided(Guidance(1., stages=[2, 3])).load_task_state(saved['task_state'])
    guided().load_task_state(None)  # of a run without guidance
    guided(None).load_task_state(saved['task_state'])


def test_convolutions_come_to_rest_when_guidance_ends():
    x, target = images()
    ours = guided()
    ours.set_epoch(1)
    ours(x, target)['loss'].backward()
    for parameter in ours.trainable_module.projections.parameters():
        assert parameter.grad is not None and not parameter.grad.any()


def test_cool_down_epochs_are_guided_and_learn_the_label_of_the_image():
    args = settings_of(
        *TINY, '--teacher', 'resnet20_sam', '--epochs', '4', '--cooldown-epochs', '2', '--guidance', '1',
        '--dense-distill', '1')
    guidance = guidance_of(args)
    assert guidance.guides(5) and guidance.share_of_places(2) == .5 and guidance.share_of_places(5) == 0


def test_accumulated_guidance_equals_one_batch():
    states = []
    for size, accum in ((16, 1), (4, 4)):
        ours = guided(model=vit(), loss='hard')
        trainer(ours, loader=train_loader(32, size, accum), drw_start_epoch=9).train_one_epoch(0, SILENT)
        states.append(weights(ours))
    assert_close(*states)


def test_second_pass_of_sam_is_guided_too():
    x, target = images()
    ours = guided(Guidance(2.5))
    optimizer = SAMSGD(ours.trainable_module.parameters(), rho=.5, lr=.1)
    seen = []

    def closure():
        optimizer.zero_grad()
        result = ours(x, target, second_pass=optimizer.perturbed)
        seen.append(result['guidance_loss'].item())
        result['loss'].backward()
        return result['loss']

    before = weights(ours)
    optimizer.step(closure)
    assert seen[1] > seen[0] > 0, 'the second is found up the slope, of the convolutions too'
    assert not torch.equal(before['projections.0.weight'], weights(ours)['projections.0.weight'])


def test_optimizer_spares_the_same_parameters_weight_decay():
    model, ours = vit(), guided(model=vit())
    plain = create_optimizer_v2(model, 'adamw', lr=.1, weight_decay=.05)
    groups = create_optimizer_v2(ours.trainable_module, 'adamw', lr=.1, weight_decay=.05).param_groups
    extra = [3, 3]  # biases without, weights with decay
    assert [len(group['params']) for group in groups] == [
        len(group['params']) + more for group, more in zip(plain.param_groups, extra, strict=True)]
    every, some = ours.get_clip_parameters(), ours.get_clip_parameters(exclude_head=True)
    model = ours.trainable_module.model
    assert {id(p) for p in every} - {id(p) for p in some} == {id(p) for p in model.head_dist.parameters()}


def test_compiled_task_gives_the_same_gradient_with_guidance_on_and_off():
    x, target = images()
    gradients = []
    for compiled in (False, True):
        ours = guided()
        if compiled:
            ours.compile(backend='eager')
        for epoch in (0, 1):
            ours.set_epoch(epoch)
            ours.zero_grad()
            ours(x, target)['loss'].backward()
            gradients.append([p.grad.clone() for p in ours.get_clip_parameters()])
        names = set(ours.get_checkpoint_state()['state_dict'])
        assert names == set(vit().state_dict())
    for plain, other in zip(gradients[:2], gradients[2:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(plain, other, strict=True))


def two_epochs(world, rank):
    """Weights after an epoch with locality guidance and one in stage two without it, of short last updates."""
    ours = guided(model=vit(drop_path_rate=.5))
    if world > 1:
        ours.prepare_distributed()
    optimizer = SAMSGD(ours.trainable_module.parameters(), rho=.1, lr=.1)
    ours_trainer = trainer(
        ours, optimizer, train_loader(28, 4, 4 // world, world_size=world, rank=rank), drw_start_epoch=3,
        world_size=world, clip_grad=1.)
    losses = [ours_trainer.train_one_epoch(epoch, SILENT)['guidance_loss'] for epoch in (0, 3)]
    state = {name.removeprefix('module.'): value for name, value in weights(ours).items()}
    return {'state': state, 'losses': losses}


def play(rank, folder):
    dist.init_process_group('gloo', timeout=timedelta(minutes=2))
    torch.save(two_epochs(2, rank), folder / f'{rank}.pt')
    dist.destroy_process_group()


def test_two_ranks_make_the_updates_of_one(tmp_path):
    on_two_ranks(play, tmp_path)
    one = two_epochs(1, 0)
    assert one['losses'][0] > 0 == one['losses'][1]
    for rank in range(2):
        other = torch.load(tmp_path / f'{rank}.pt')
        assert_close(other['state'], one['state'])
        assert other['losses'] == pytest.approx(one['losses'], rel=1e-5)


def test_blocks_are_spread_from_the_first_to_the_last():
    assert spread_blocks(12, 3) == [0, 6, 11] and spread_blocks(6, 3) == [0, 3, 5]
    assert spread_blocks(12, 4) == [0, 4, 7, 11] and spread_blocks(2, 3) == [0, 1, 1] and spread_blocks(6, 1) == [0]


def without_maps():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))
    net.pretrained_cfg = teacher().pretrained_cfg
    return net


@pytest.mark.parametrize(('guidance', 'kwargs', 'message'), [
    (Guidance(1.), {'network': without_maps()}, 'no feature maps'),
    (Guidance(1., stages=[7]), {}, '--guidance-stages takes numbers from 0 to 3'),
    (Guidance(1., blocks=[0, 9, 1]), {}, 'from 0 to 1'),
    (Guidance(1., blocks=[0, 1]), {}, 'do not fit 3 stage'),
    (Guidance(dense=1.), {'network': 'vgg11'}, 'more than average pooling'),
    (Guidance(dense=1.), {'network': 'test_convnext'}, 'more than average pooling'),
    (Guidance(dense=1.), {'model': vit(patch_drop_rate=.5)}, 'patch_drop_rate'),
])
def test_what_cannot_guide_or_be_guided_is_refused(guidance, kwargs, message):
    if isinstance(kwargs.get('network'), str):
        kwargs = {'network': timm.create_model(kwargs['network'], num_classes=CLASSES)}
    with pytest.raises(ValueError, match=message):
        guided(guidance, **kwargs)


def test_student_without_dist_and_a_weak_view_are_refused():
    with pytest.raises(ValueError, match='distilled ViT'):
        GuidedStudent(timm.create_model('test_vit'), [16])
    x, target = images()
    with pytest.raises(ValueError, match='--teacher-view student'):
        guided()(x, target, weak=x)


def test_examples_in_the_documentation_run():
    result = doctest.testmod(guidance_module, extraglobs={'timm': timm, 'torch': torch})
    assert result.attempted and not result.failed
