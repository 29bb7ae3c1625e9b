"""DeiT-LT's task against timm's own, and what SAM's second pass may not touch."""
import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.task import TokenDistillationTask
from timm.task.task import TrainingTask
from torch import nn

from timm_deitlt import ClassifierTask, DeiTLTTask, Shots, create_distillation_loss
from timm_deitlt.engine.trainer import expert_logits
from timm_deitlt.loss import LabelLoss
from timm_deitlt.models.weights import load_weights
from timm_deitlt.task.common import frozen_statistics

COUNTS = [40, 20, 8, 4, 2]
SMALL = dict(img_size=32, patch_size=16, embed_dim=48, depth=2, num_heads=3, num_classes=5)


def student():
    torch.manual_seed(0)
    return timm.create_model('deit_lt_tiny', **SMALL)


def teacher(**kwargs):
    torch.manual_seed(1)
    return timm.create_model('resnet20_cifar', **{'num_classes': 5, **kwargs})


def batch():
    generator = torch.Generator().manual_seed(2)
    return torch.randn(6, 3, 32, 32, generator=generator), torch.tensor([0, 1, 2, 3, 4, 0])


def task(loss='hard', **kwargs):
    distillation = create_distillation_loss(
        loss, class_counts=COUNTS, drw_start_epoch=3, temperature=kwargs.pop('T', 1.))
    return DeiTLTTask(student(), teacher(), distillation, nn.CrossEntropyLoss(), verbose=False, **kwargs)


@pytest.mark.parametrize(('loss', 'temperature'), [('hard', 1.), ('soft', 3.)])
def test_before_the_drw_start_the_loss_is_timms_bit_for_bit(loss, temperature):
    images, target = batch()
    for name in (loss, f'drw_{loss}'):
        ours = task(name, T=temperature, task_loss_weight=.3)
        theirs = TokenDistillationTask(
            student(), teacher(), nn.CrossEntropyLoss(), distill_type=loss, temperature=temperature,
            task_loss_weight=.3, verbose=False)
        ours.train()
        theirs.train()
        ours.set_epoch(2)
        a, b = ours(images, target), theirs(images, target)
        for key in ('loss', 'task_loss', 'distill_loss', 'output'):
            assert torch.equal(a[key], b[key]), key


@pytest.mark.parametrize('loss', ['soft', 'drw_soft', 'hard'])
def test_a_teacher_trained_with_a_scale_is_as_sure_in_soft_distillation_as_in_its_own_loss(loss):
    images, target = batch()
    network = teacher(cosine=True)
    distillation = create_distillation_loss(loss, class_counts=COUNTS, drw_start_epoch=3, temperature=2.)
    scaled = DeiTLTTask(
        student(), network, distillation, nn.CrossEntropyLoss(), verbose=False, teacher_scale=30.).train()
    plain = task(loss, T=2.)
    plain.teacher.model = nn.Sequential(network, Times(30.)).eval()
    plain.train()
    ours, by_hand = scaled(images, target), plain(images, target)
    assert torch.allclose(ours['distill_loss'], by_hand['distill_loss'], rtol=1e-5)
    unscaled = DeiTLTTask(student(), network, distillation, nn.CrossEntropyLoss(), verbose=False).train()
    same = torch.equal(unscaled(images, target)['distill_loss'], ours['distill_loss'])
    assert same == (loss == 'hard'), 'a hard label has no scale'


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


def test_from_the_drw_start_the_distillation_loss_is_weighted():
    images, target = batch()
    ours = task('drw_hard').train()
    before = ours(images, target)['distill_loss']
    ours.set_epoch(3)
    assert ours(images, target)['distill_loss'] != before
    ours.set_epoch(2)
    assert torch.equal(ours(images, target)['distill_loss'], before), 'the stage is a function of the epoch alone'


def test_teacher_stays_in_eval_and_frozen_when_task_trains():
    ours = task().train()
    assert not ours.teacher.training and ours.trainable_module.training
    images, target = batch()
    before = copy.deepcopy(ours.teacher.state_dict())
    ours(images, target)['loss'].backward()
    assert all(p.grad is None and not p.requires_grad for p in ours.teacher.parameters())
    assert all(torch.equal(value, ours.teacher.state_dict()[key]) for key, value in before.items())


def test_teacher_sees_the_students_image_at_its_own_size_and_normalisation():
    net = teacher()
    net.pretrained_cfg = {**net.pretrained_cfg, 'input_size': (3, 16, 16), 'mean': (.2,) * 3, 'std': (.5,) * 3}
    ours = DeiTLTTask(student(), net, create_distillation_loss('hard'), nn.CrossEntropyLoss(), verbose=False)
    cfg = ours.trainable_module.pretrained_cfg
    mean, std = (torch.tensor(cfg[key]).view(1, 3, 1, 1) for key in ('mean', 'std'))
    pixels = torch.rand(2, 3, 32, 32)
    expected = (F.interpolate(pixels, (16, 16), mode='bicubic', antialias=True) - .2) / .5
    assert torch.allclose(ours.teacher_view((pixels - mean) / std), expected, atol=1e-5)
    ours.teacher_normalize, ours.teacher_antialias = 'student', False
    expected = F.interpolate((pixels - mean) / std, (16, 16), mode='bicubic', antialias=False)
    assert torch.allclose(ours.teacher_view((pixels - mean) / std), expected, atol=1e-6)


def test_weak_view_reaches_the_teacher_only():
    images, target = batch()
    ours = task().train()
    other = images.flip(0)
    seen = []
    ours.teacher.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    ours(images, target, weak=other)
    assert torch.equal(seen[0], ours.teacher_view(other))


@pytest.mark.parametrize('what', ['num_classes', 'in_chans'])
def test_teacher_of_other_classes_or_channels_is_refused(what):
    with pytest.raises(ValueError, match=what):
        DeiTLTTask(student(), teacher(**{what: 4}), create_distillation_loss('hard'), verbose=False)


def test_measurements_equal_a_plain_recomputation():
    images, _ = batch()
    ours = task(shots=Shots.from_counts(COUNTS)).train()
    _, target = Mixup(num_classes=5)(images.clone(), torch.tensor([0, 1, 2, 3, 4, 0]))
    result = ours(images, target)
    net, vit = ours.teacher.model, ours.trainable_module
    with torch.no_grad():
        said = net(ours.teacher_view(images)).argmax(-1)
        tokens = vit.forward_features(images)[:, :2]
        dist = vit.head_dist(tokens[:, 1]).argmax(-1)
    assert result['teacher_correct'] == (said == target.argmax(-1)).sum()
    assert result['agreement'] == (dist == said).sum()
    expected = sum(F.cosine_similarity(t[0], t[1], dim=0) for t in tokens)
    assert torch.isclose(result['cosine'], expected, atol=1e-5)


def test_ema_copies_the_student_and_not_the_task():
    ours = task().train()
    ours.setup_ema(decay=.5)
    assert not any(isinstance(module, TrainingTask) for module in ours.trainable_module_ema.modules())
    images, target = batch()
    cosine = ours(images, target)['cosine']
    ours.trainable_module_ema.module(images)  # evaluating the EMA leaves the student's tokens alone
    assert torch.equal(ours(images, target)['cosine'], cosine)


def test_second_pass_changes_no_batch_norm_statistics_and_gives_the_same_gradient():
    images, target = batch()
    ours = ClassifierTask(teacher(), nn.CrossEntropyLoss(), verbose=False).train()
    state = copy.deepcopy(ours.trainable_module.state_dict())
    ours(images, target, second_pass=True)['loss'].backward()
    assert all(torch.equal(value, ours.trainable_module.state_dict()[key]) for key, value in state.items())
    second = [p.grad.clone() for p in ours.parameters()]
    ours.zero_grad()
    ours(images, target)['loss'].backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(second, ours.parameters(), strict=True))
    changed = [key for key, value in state.items() if not torch.equal(value, ours.trainable_module.state_dict()[key])]
    assert any('running_mean' in key for key in changed), 'the first pass does update them'


def test_frozen_statistics_come_back_after_an_error():
    net = nn.BatchNorm2d(3).train()
    with pytest.raises(RuntimeError, match='boom'), frozen_statistics(net):
        assert not net.track_running_stats
        raise RuntimeError('boom')
    assert net.track_running_stats


def test_one_expert_leaves_dist_untrained_and_timms_evaluation_ranks_as_cls():
    ours = ClassifierTask(student(), nn.CrossEntropyLoss(), ('cls',), verbose=False).train()
    images, target = batch()
    before = ours.trainable_module.dist_token.clone()
    optimizer = torch.optim.SGD([p for p in ours.parameters() if p.requires_grad], lr=.1)
    ours(images, target)['loss'].backward()
    optimizer.step()
    vit = ours.trainable_module
    assert torch.equal(vit.dist_token, before) and not vit.head_dist.weight.any()
    vit.eval()
    with torch.no_grad():
        logits = expert_logits(vit, images, ('mean', 'cls'))
        assert set(logits) == {'cls', 'mean'} and logits['mean'] is logits['cls']
        assert torch.equal(vit(images).argsort(-1), logits['cls'].argsort(-1))
    load_weights(vit, student().state_dict(), 'a distilled run')
    assert vit.head_dist.weight.any()
    ours.load_task_state(None)
    assert not vit.head_dist.weight.any() and not vit.head_dist.bias.any(), 'silent again'


def test_labels_train_both_tokens():
    ours = ClassifierTask(student(), nn.CrossEntropyLoss(), ('cls', 'dist'), verbose=False).train()
    images, target = batch()
    result = ours(images, target)
    cls, dist = ours.trainable_module(images)
    expected = (F.cross_entropy(cls, target) + F.cross_entropy(dist, target)) / 2
    assert torch.isclose(result['loss'], expected)
    result['loss'].backward()
    assert all(p.grad is not None for p in ours.trainable_module.parameters())


def test_experts_are_the_models_own_logits():
    vit = student().eval()
    images, _ = batch()
    with torch.no_grad():
        logits = expert_logits(vit, images, ('mean', 'cls', 'dist'))
        cls, dist = vit.forward_experts(images)
        assert torch.equal(logits['cls'], cls) and torch.equal(logits['dist'], dist)
        assert torch.allclose(logits['mean'], vit(images), atol=1e-6)


def test_label_loss_and_distillation_loss_hear_of_the_epoch():
    label = LabelLoss(5, class_counts=COUNTS, drw_start_epoch=3, weighted=True)
    ours = DeiTLTTask(
        student(), teacher(), create_distillation_loss('drw_hard', class_counts=COUNTS, drw_start_epoch=3), label,
        verbose=False)
    ours.set_epoch(3)
    assert label.in_drw_stage


def test_timms_task_works_with_our_teacher_and_student():
    theirs = TokenDistillationTask(student(), teacher(), nn.CrossEntropyLoss(), distill_type='hard', verbose=False)
    images, target = batch()
    theirs.train()(images, target)['loss'].backward()
