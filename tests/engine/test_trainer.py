"""The loop against hand-written loops: updates, SAM, stages, means, evaluation, files, compilation."""
import copy
import errno
import random
import resource
import shutil
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINIEST_TEACHER, TINY, last_json, run_script
from helpers import (
    CLASSES,
    COUNTS,
    HALF,
    SEED,
    SILENT,
    SIZE,
    Breaks,
    Pictures,
    assert_close,
    classifier,
    cnn,
    differ,
    distiller,
    eval_loader,
    settings_of,
    sgd,
    summary,
    teacher,
    train_loader,
    trainer,
    vit,
    weights,
)
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import TokenDistillationTask
from torch import nn
from torch.utils.data import IterableDataset

from timm_deitlt.data.augment import BatchAugment, train_transform
from timm_deitlt.data.loader import TrainLoader
from timm_deitlt.data.seeds import seed_everything
from timm_deitlt.engine.checkpoint import load_checkpoint, save_checkpoint
from timm_deitlt.engine.fit import fit, restore
from timm_deitlt.engine.meter import Meter, NonFiniteLossError
from timm_deitlt.engine.run_folder import RunFolder
from timm_deitlt.loss import LabelLoss, class_weights
from timm_deitlt.models.weights import tensor_bytes
from timm_deitlt.optim import SAMSGD
from timm_deitlt.run.space import optimizer_bytes
from timm_deitlt.utils.files import atomic_write, write_text


def test_accumulated_update_equals_timms_task_on_the_whole_batch():
    ours = distiller()
    start = weights(ours)
    loader = train_loader()  # 22 images: updates of 4 x 4 and of 4 + 2
    trainer(ours, loader=loader).train_one_epoch(0, SILENT)

    theirs = TokenDistillationTask(
        vit(), teacher(), nn.CrossEntropyLoss(), distill_type='hard', task_loss_weight=.3, verbose=False).train()
    optimizer = sgd(theirs)
    order = loader.sampler.order()
    for indices in (order[:16], order[16:]):
        optimizer.zero_grad()
        theirs(*Pictures(22).batch(indices))['loss'].backward()
        optimizer.step()
    assert_close(weights(ours), weights(theirs))
    assert differ(weights(ours), start, atol=1e-2)


def test_class_weighted_losses_are_normalised_inside_the_micro_batch():
    label = LabelLoss(CLASSES, class_counts=COUNTS, drw_start_epoch=0, weighted=True)
    ours = distiller(loss='drw_hard', criterion=label)
    loader = train_loader()
    trainer(ours, loader=loader).train_one_epoch(0, SILENT)

    weight, net = class_weights(COUNTS), teacher().eval()

    def by_hand(split):
        model = vit().train()
        model.set_distilled_training(True)
        optimizer = torch.optim.SGD(model.parameters(), lr=.1, momentum=.9)
        order = loader.sampler.order()
        for update in (order[:16], order[16:]):
            optimizer.zero_grad()
            for indices in (update[i:i + split] for i in range(0, len(update), split)):
                images, target = Pictures(22).batch(indices)
                cls, dist = model(images)
                with torch.no_grad():
                    said = net(images).argmax(-1)
                losses = [
                    sum(weight[t] * F.cross_entropy(x, t) for x, t in zip(logits, labels, strict=True))
                    / weight[labels].sum() for logits, labels in ((cls, target), (dist, said))
                ]
                ((.3 * losses[0] + .7 * losses[1]) * len(indices) / len(update)).backward()
            optimizer.step()
        return model.state_dict()

    assert_close(weights(ours), by_hand(4))
    assert differ(weights(ours), by_hand(16)), 'another micro-batch is another loss'


def sam_by_hand(task, loader, augment, rho=.5, lr=.1, clip=None, second_seed=0):
    """An epoch of SAM in plain PyTorch."""
    params = [p for p in task.trainable_module.parameters() if p.requires_grad]
    task.train()
    for group in loader.epoch(0):
        def backward(second_pass, extra=(), group=group):
            task.zero_grad()
            for plan, images, target in group:
                seed_everything(SEED, 0, plan.number, *extra)
                views = augment(images.clone(), target)
                (task(views.student, views.target, second_pass=second_pass)['loss'] * plan.weight).backward()

        backward(False)
        gradients = [p.grad.clone() for p in params]
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        with torch.no_grad():
            start = [p.clone() for p in params]
            for p, g in zip(params, gradients, strict=True):
                p += rho * g / norm
        backward(True, (second_seed,) if second_seed else ())
        with torch.no_grad():
            for p, w in zip(params, start, strict=True):
                p.copy_(w - lr * (p.grad if clip is None else p.grad.clamp(-clip, clip)))
    return weights(task)


def test_sam_through_the_trainer_equals_sam_by_hand_with_the_same_random_numbers_in_both_passes():
    def parts():
        mixup = Mixup(mixup_alpha=.8, cutmix_alpha=1., num_classes=CLASSES)
        task = classifier(vit(drop_path_rate=.5, proj_drop_rate=.2), LabelLoss(CLASSES))
        return task, train_loader(accum=2, no_aug=False), BatchAugment(mixup, re_prob=.5, re_mode='pixel')

    task, loader, augment = parts()
    optimizer = SAMSGD(task.trainable_module.parameters(), rho=.5, lr=.1)
    trainer(task, optimizer, loader, augment, drw_start_epoch=9).train_one_epoch(0, SILENT)
    assert_close(weights(task), sam_by_hand(*parts()))
    assert differ(weights(task), sam_by_hand(*parts(), second_seed=1)), 'other masks in the second pass would be seen'


def test_sam_counts_batch_norm_statistics_once_and_clips_the_second_gradient_only():
    def parts():
        return classifier(cnn()), train_loader(accum=2), BatchAugment()

    clip = 2e-3
    task, loader, augment = parts()
    optimizer = SAMSGD(task.trainable_module.parameters(), rho=.5, lr=.1)
    trainer(task, optimizer, loader, augment, clip_grad=clip, clip_mode='value').train_one_epoch(0, SILENT)
    assert task.trainable_module[1].num_batches_tracked == 6, '22 images are 6 micro-batches'
    assert_close(weights(task), sam_by_hand(*parts(), clip=clip))
    assert differ(weights(task), sam_by_hand(*parts())), 'the bound was reached'


@pytest.mark.parametrize('on_cpu', [True, False])
def test_nan_names_its_own_update_even_where_losses_are_only_read_at_log_lines(on_cpu, monkeypatch):
    if not on_cpu:
        # as on a GPU, where reading every loss would wait for the device
        monkeypatch.setattr(Meter, 'pending_on_host', property(lambda self: False, lambda self, _: None), raising=False)
    criterion = Breaks(at=3)
    task = classifier(cnn(), criterion)
    loader = train_loader(images=32, accum=1)
    with pytest.raises(NonFiniteLossError, match=r'epoch 3, update 2 of 8 '):
        trainer(task, loader=loader, log_interval=5).train_one_epoch(3, SILENT)
    assert criterion.calls == (3 if on_cpu else 5)


@pytest.mark.parametrize(('keep_mixup', 'off_epoch', 'mixed'), [
    (False, 0, [True, True, False, False]),
    (True, 0, [True, True, True, True]),
    (False, 1, [True, False, False, False]),
    (True, 3, [True, True, True, False]),
])
def test_mixing_ends_at_the_drw_start_unless_kept_and_at_timms_own_switch(keep_mixup, off_epoch, mixed):
    seen = []

    class Spy(LabelLoss):
        def forward(self, logits, target):
            seen.append(target.ndim == 2)
            return super().forward(logits, target)

    augment = BatchAugment(Mixup(num_classes=CLASSES))
    ours = trainer(
        classifier(cnn(), Spy(CLASSES)), loader=train_loader(images=4), augment=augment, drw_start_epoch=2,
        keep_mixup=keep_mixup, mixup_off_epoch=off_epoch)
    for epoch in range(4):
        ours.train_one_epoch(epoch, SILENT)
    assert seen == mixed


def test_ema_follows_the_weights_and_starts_anew_from_them_at_the_drw_start():
    task = classifier(vit())
    task.setup_ema(decay=.7)
    ours = trainer(task, loader=train_loader(images=12, accum=1), drw_start_epoch=2)
    history = []
    update_ema = task.update_ema
    task.update_ema = lambda step: (history.append(weights(task)), update_ema(step=step))
    for epoch in range(4):
        if epoch == 2:
            start, before = weights(task), copy.deepcopy(task.trainable_module_ema.module.state_dict())
        ours.train_one_epoch(epoch, SILENT)
    assert differ(before, start), 'it lagged behind'
    expected = start
    for state in history[6:]:  # 3 updates an epoch
        expected = {name: .7 * value + .3 * state[name] for name, value in expected.items()}
    assert_close(task.trainable_module_ema.module.state_dict(), expected)


def test_radius_of_sam_follows_the_epoch_and_is_the_plain_one_without_a_schedule():
    for schedule, expected in ((None, [.7] * 3), (lambda epoch, update: [.1, .2, .0][epoch], [.1, .2, .0])):
        task = classifier(cnn())
        optimizer = SAMSGD(task.trainable_module.parameters(), rho=.7, lr=.1)
        ours, seen = trainer(task, optimizer, rho=schedule), []
        for epoch in range(3):
            ours.train_one_epoch(epoch, SILENT)
            seen.append(optimizer.param_groups[0]['rho'])
        assert seen == expected


def test_sam_perturbs_in_every_nth_update_of_the_run(monkeypatch):
    passes = []
    closure_of = SAMSGD.step
    monkeypatch.setattr(SAMSGD, 'step', lambda self, closure: closure_of(self, lambda: (
        passes.append((update[0], self.perturbed)), closure())[1]))
    task, update = classifier(cnn()), [0]
    task.end_update = lambda plans: update.__setitem__(0, update[0] + 1)
    optimizer = SAMSGD(task.trainable_module.parameters(), rho=.1, lr=.1)
    loader = train_loader(20, batch_size=4, accum=1)
    ours = trainer(task, optimizer, loader, rho=lambda _, update: 0 if update % 3 else .1)
    for epoch in range(2):
        ours.train_one_epoch(epoch, SILENT)
    twice = [update for update, perturbed in passes if perturbed]
    assert twice == [0, 3, 6, 9] and len(passes) == 10 + 4


def test_task_is_told_of_every_update_once_under_sam_too():
    task, told = classifier(cnn()), []
    task.end_update = told.append
    optimizer = SAMSGD(task.trainable_module.parameters(), rho=.1, lr=.1)
    loader = train_loader(22, batch_size=4, accum=2)
    trainer(task, optimizer, loader).train_one_epoch(0, SILENT)
    assert [[plan.number for plan in plans] for plans in told] == [[0, 1], [2, 3], [4, 5]]


def test_means_of_an_epoch_equal_a_plain_recomputation():
    task = distiller()
    results, forward = [], task.forward

    def spy(images, target, **kwargs):
        results.append((len(images), forward(images, target, **kwargs)))
        return results[-1][1]

    task.forward = spy
    metrics = trainer(task).train_one_epoch(0, SILENT)
    assert [images for images, _ in results] == [4, 4, 4, 4, 4, 2]
    for name in ('loss', 'task_loss', 'distill_loss'):
        expected = sum(images * result[name].item() for images, result in results) / 22
        assert metrics[name] == pytest.approx(expected, rel=1e-6)
    for name in ('teacher_correct', 'agreement', 'cosine'):
        assert metrics[name] == pytest.approx(sum(result[name].item() for _, result in results) / 22, rel=1e-6)
    assert metrics['lr'] == .1
    assert metrics['train_images_per_second'] == pytest.approx(22 / metrics['train_seconds'])


def test_evaluation_equals_a_plain_loop_and_leaves_mode_weights_and_random_numbers_alone():
    pictures = Pictures(11)
    task = distiller(vit(drop_path_rate=.9)).train()
    task.setup_ema(decay=.5)
    with torch.no_grad():
        task.trainable_module_ema.module.head.bias[3] += 9
    ours = trainer(task, eval_loader=eval_loader(11))
    before, states = weights(task), (torch.get_rng_state(), random.getstate(), str(np.random.get_state()))
    metrics, ema_metrics = ours.evaluate(), ours.evaluate(ema=True)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), str(np.random.get_state())) == states[1:]
    assert task.trainable_module.training and not task.teacher.training
    assert not differ(before, weights(task), atol=0)
    assert list(ours.test_counts) == [3, 2, 2, 2, 2]

    images, target = pictures.batch(range(11))
    for model, result in ((task.trainable_module, metrics), (task.trainable_module_ema.module, ema_metrics)):
        with torch.no_grad():
            cls, dist = copy.deepcopy(model).eval().forward_experts(images)
        for expert, logits in (('cls', cls), ('dist', dist), ('mean', (cls + dist) / 2)):
            right = (logits.argmax(-1) == target).float()
            assert result[expert]['top1'] == pytest.approx(100 * right.mean().item())
            assert result[expert]['loss'] == pytest.approx(F.cross_entropy(logits, target).item(), rel=1e-5)
            per_class = [100 * right[target == label].mean().item() for label in range(CLASSES)]
            assert result[expert]['per_class'] == pytest.approx(per_class)
    assert ema_metrics['cls']['per_class'][3] == 100


def settings(**schedule):
    whole = settings_of('--model', 'resnet20_cifar', '--model-kwargs')
    return replace(whole, schedule=replace(whole.schedule, **schedule))


def fitted(path, settings, start_epoch=0, checkpoint=None):
    """A run of 4 epochs with the DRW start at 3: its trainer, its metrics, the rows of summary.csv."""
    task = classifier(cnn())
    ours = trainer(task, loader=train_loader(images=8), eval_loader=eval_loader(10), epochs=4, drw_start_epoch=3)
    folder = RunFolder(path)
    if checkpoint is not None:
        start_epoch = restore(ours, checkpoint, 'last')
        folder.rewind(start_epoch)
    return ours, fit(ours, folder, settings, {'experts': ['cls']}, start_epoch), summary(path)


def test_fit_keeps_milestones_evaluates_at_intervals_and_stops_early(tmp_path):
    _, metrics, rows = fitted(tmp_path / 'run', settings(save_epochs=[1], val_interval=3))
    assert sorted(file.name for file in (tmp_path / 'run').glob('*.tar')) == [
        'last.pth.tar', 'milestone-1.pth.tar', 'milestone-3.pth.tar']
    assert load_checkpoint(tmp_path / 'run/milestone-3.pth.tar')['epoch'] == 2
    assert load_checkpoint(tmp_path / 'run/last.pth.tar')['epoch'] == 3
    assert [bool(row['eval_cls_top1']) for row in rows] == [False, False, True, True], 'every third, and the last'
    assert float(rows[-1]['eval_cls_top1']) == metrics['experts']['cls']['top1']
    _, metrics, rows = fitted(tmp_path / 'short', settings(stop_epoch=2, val_interval=3))
    assert len(rows) == 2 and metrics['experts']['cls']['top1'] == float(rows[-1]['eval_cls_top1'])


def test_fit_saves_at_intervals_with_every_milestone_and_at_the_end(tmp_path, monkeypatch):
    saved, save = [], RunFolder.save
    monkeypatch.setattr(RunFolder, 'save', lambda folder, state, *args: (
        saved.append(state['epoch'] + 1), save(folder, state, *args)))
    *_, rows = fitted(tmp_path / 'run', settings(save_interval=2, save_epochs=[1]))
    assert saved == [1, 2, 3, 4] and len(rows) == 4
    saved.clear()
    fitted(tmp_path / 'seldom', settings(save_interval=9))
    assert saved == [3, 4], 'at the start of stage two and at the end'
    # as if it had been killed in its last epoch
    again, _, rows = fitted(
        tmp_path / 'seldom', settings(save_interval=9),
        checkpoint=load_checkpoint(tmp_path / 'seldom/milestone-3.pth.tar'))
    assert [row['epoch'] for row in rows] == ['0', '1', '2', '3']


def test_resumed_fit_rewinds_the_rows_that_it_trains_again_and_ends_the_same(tmp_path):
    whole, metrics, rows = fitted(tmp_path, settings(save_epochs=[2]))
    checkpoint = load_checkpoint(tmp_path / 'milestone-2.pth.tar')
    again, resumed, rows_again = fitted(tmp_path, settings(), checkpoint=checkpoint)
    assert [row['epoch'] for row in rows_again] == ['0', '1', '2', '3']
    assert [row['train_loss'] for row in rows_again] == [row['train_loss'] for row in rows]
    assert not differ(weights(whole.task), weights(again.task), atol=0)
    assert metrics == resumed
    *_, done = fitted(tmp_path, settings(), checkpoint=load_checkpoint(tmp_path / 'last.pth.tar'))
    assert len(done) == 4, 'a run that has ended is evaluated, not trained'


@pytest.mark.parametrize('breaks', [False, True])
def test_fit_lets_go_of_the_graph_however_it_ends(tmp_path, breaks):
    task = classifier(cnn(), Breaks(at=1 if breaks else 0))
    ours = trainer(task, loader=train_loader(images=8), epochs=1, drw_start_epoch=1)
    ours.graph = ours.compute
    with pytest.raises(NonFiniteLossError) if breaks else nullcontext():
        fit(ours, RunFolder(tmp_path), settings(), {'experts': ['cls']})
    assert ours.graph is None


def test_options_of_flags_win_over_those_of_the_checkpoint(tmp_path):
    task = classifier(cnn())
    save_checkpoint(tmp_path / 'last', {
        'epoch': 0, 'state_dict': weights(task),
        'optimizer': SAMSGD(task.trainable_module.parameters(), rho=.05, lr=.3, momentum=.9).state_dict()})
    optimizer = SAMSGD(task.trainable_module.parameters(), rho=.1, lr=.1, momentum=.8, weight_decay=.2)
    restore(trainer(task, optimizer), load_checkpoint(tmp_path / 'last'), 'last')
    group = optimizer.param_groups[0]
    assert (group['rho'], group['momentum'], group['weight_decay'], group['lr']) == (.1, .8, .2, .1)

    saved = torch.optim.SGD(task.trainable_module.parameters(), lr=.1, momentum=.9).state_dict()
    nesterov = torch.optim.SGD(task.trainable_module.parameters(), lr=.1, momentum=.9, nesterov=True)
    restore(trainer(task, nesterov), {'epoch': 0, 'state_dict': weights(task), 'optimizer': saved}, 'last')
    assert nesterov.param_groups[0]['nesterov'] is True

    adam = torch.optim.AdamW(task.trainable_module.parameters(), lr=.1)
    amsgrad = torch.optim.AdamW(task.trainable_module.parameters(), lr=.1, amsgrad=True)
    with pytest.raises(ValueError, match='does not fit AdamW: give --opt, its options'):
        restore(trainer(task, amsgrad), {
            'epoch': 0, 'state_dict': weights(task), 'optimizer': adam.state_dict()}, 'last')

    scheduled = trainer(task, optimizer)
    scheduled.scheduler, _ = create_scheduler_v2(optimizer, 'cosine', num_epochs=2, min_lr=0.)
    restore(scheduled, load_checkpoint(tmp_path / 'last'), 'last')
    assert optimizer.param_groups[0]['lr'] == pytest.approx(.05), 'with a schedule the rate is the schedule\'s'


def test_crash_inside_torch_save_leaves_the_old_checkpoint_and_nothing_else(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    folder.save({'state_dict': {}, 'epoch': 0})
    old = folder.last.read_bytes()

    def half(state, file):
        file.write(b'half of it')
        raise OSError('Input/output error')

    monkeypatch.setattr(torch, 'save', half)
    with pytest.raises(OSError, match='Input/output'):
        folder.save({'state_dict': {}, 'epoch': 1}, milestone=True)
    assert folder.last.read_bytes() == old
    assert [file.name for file in tmp_path.iterdir()] == ['last.pth.tar']


MEGABYTE = 10 ** 6
# what is written, how, and how much of it is said to be needed
WRITTEN = {
    'large': (lambda path: save_checkpoint(path, {'state_dict': {'x': torch.zeros(MEGABYTE)}}), '4.00 MB'),
    'many': (lambda path: save_checkpoint(path, {str(i): torch.zeros(10_000) for i in range(60)}), '2.40 MB'),
    'text': (lambda path: write_text(path, 'x' * 3 * MEGABYTE), '3.00 MB'),
    'bytes': (lambda path: atomic_write(path, lambda file: file.write_bytes(bytes(3 * MEGABYTE))), None),
}


@pytest.fixture(params=['largest file', 'full disk', 'full when flushed'])
def no_room(request, monkeypatch):
    """Starts a shortage of space, and says in which words the system reports it."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(*args):
        raise OSError(errno.ENOSPC, 'No space left on device')

    def start():
        if request.param == 'largest file':  # a real one, wherever the tests run
            resource.setrlimit(resource.RLIMIT_FSIZE, (MEGABYTE, limit[1]))
            return 'File too large'
        monkeypatch.setattr('os.fsync' if request.param == 'full when flushed' else 'os.replace', full)
        return 'No space left on device'

    monkeypatch.setattr(shutil, 'disk_usage', lambda path: SimpleNamespace(free=1_230_000))
    yield start
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)


@pytest.mark.parametrize('what', WRITTEN)
def test_file_without_room_leaves_the_old_one_and_says_what_is_needed_and_left(tmp_path, no_room, what):
    write, needed = WRITTEN[what]
    path = tmp_path / 'last.pth.tar'
    path.write_bytes(b'the old one')
    words = no_room()
    with pytest.raises(ValueError) as error:
        write(path)
    message = str(error.value)
    assert message.startswith(f'last.pth.tar cannot be written to {tmp_path}: {words}. ')
    assert (f'It needs about {needed}, and ' in message) == (needed is not None)
    assert '1.23 MB are left' in message and '--resume auto' in message
    assert [file.name for file in tmp_path.iterdir()] == ['last.pth.tar'] and path.read_bytes() == b'the old one'


@pytest.mark.parametrize('name, kwargs', [
    ('sgd', {}), ('sgd', {'fused': True}), ('samsgd', {}), ('samsgd', {'fused': True}), ('samsgd', {'momentum': 0.}),
    ('samadamw', {'fused': True}), ('adamw', {'amsgrad': True}), ('muon', {}), ('adafactor', {}), ('lamb', {}),
    ('adagrad', {}),
])
def test_state_of_an_optimizer_is_known_before_its_first_step(name, kwargs):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 6, bias=False), nn.Linear(6, 2))
    model[2].weight.requires_grad_(False)
    optimizer = create_optimizer_v2(model, name, lr=.1, weight_decay=.1, **kwargs)
    before = copy.deepcopy(optimizer.state_dict())
    known = optimizer_bytes(optimizer)
    assert str(optimizer.state_dict()) == str(before)

    def closure():
        model(torch.ones(2, 3, 4, 4)).sum().backward()
    closure()
    optimizer.step(closure)
    assert known == tensor_bytes(list(optimizer.state_dict()['state'].values()))


def test_milestone_is_there_before_the_checkpoint_that_goes_on_after_it(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr('timm_deitlt.engine.run_folder.save_checkpoint', lambda path, state: written.append(path.name))
    RunFolder(tmp_path).save({'epoch': 4}, milestone=True)
    assert written == ['milestone-5.pth.tar', 'last.pth.tar'], 'killed in between, the epoch is done again'


def test_compiled_task_trains_and_measures_as_the_plain_one_and_compiles_once():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain, compiled = distiller(vit(drop_path_rate=.3)), distiller(vit(drop_path_rate=.3))
    compiled.compile(backend='eager')
    loader = train_loader(images=16, accum=2)
    expected = trainer(plain, loader=loader).train_one_epoch(0, SILENT)
    metrics = trainer(compiled, loader=loader).train_one_epoch(0, SILENT)
    for name in ('loss', 'teacher_correct', 'agreement', 'cosine'):
        assert metrics[name] == pytest.approx(expected[name], rel=1e-5), name
    state = compiled.get_checkpoint_state()['state_dict']
    assert_close(weights(plain), state)
    assert torch._dynamo.utils.counters['stats']['unique_graphs'] == 2, 'student and teacher, once each'


@pytest.mark.slow
def test_train_script_compiles_by_inductor(tmp_path, shared_teachers):
    command = [
        *TINY, '--model-kwargs', 'embed_dim=48', 'depth=1', 'num_heads=3', 'patch_size=8', *TINIEST_TEACHER,
        '--teacher-cache', shared_teachers, '--epochs', '1', '--output', tmp_path]
    plain = last_json(run_script(*command, '--experiment', 'plain'))
    anew = {'TORCHINDUCTOR_CACHE_DIR': str(tmp_path / 'cache')}
    compiled = last_json(run_script(*command, '--experiment', 'compiled', '--torchcompile', env=anew))
    for expert in ('mean', 'cls', 'dist'):
        assert compiled[expert]['loss'] == pytest.approx(plain[expert]['loss'], rel=1e-2)
    rows = [summary(tmp_path / name)[0] for name in ('plain', 'compiled')]
    for name in ('train_loss', 'train_teacher_correct', 'train_cosine'):
        assert float(rows[0][name]) == pytest.approx(float(rows[1][name]), rel=1e-2), name


@pytest.mark.parametrize('fused', [False, True])
def test_fp16_scaling_is_undone_before_clipping_and_an_overflow_makes_no_update(fused):
    def run(scale, **kwargs):
        task = classifier(vit())
        start = weights(task)
        scaler = torch.amp.GradScaler('cpu', init_scale=scale)
        optimizer = torch.optim.SGD(task.trainable_module.parameters(), lr=1., fused=fused)
        trainer(
            task, optimizer, train_loader(images=16), scaler=scaler,
            autocast=lambda: torch.autocast('cpu', dtype=torch.float16), **kwargs).train_one_epoch(0, SILENT)
        change = torch.cat([(value - start[name]).flatten() for name, value in weights(task).items()])
        return change, scaler.get_scale()

    clipped, scale = run(2. ** 8, clip_grad=.01)
    assert clipped.norm().item() == pytest.approx(.01, rel=1e-3) and scale == 2. ** 8
    free, _ = run(2. ** 8)
    assert torch.allclose(free / free.norm(), clipped / clipped.norm(), atol=1e-5)
    overflow, scale = run(2. ** 40)
    assert not overflow.any() and scale == 2. ** 39


def test_gradient_checkpointing_changes_nothing_but_memory():
    plain, saving = (distiller(vit(drop_path_rate=.5, proj_drop_rate=.2)) for _ in range(2))
    saving.trainable_module.set_grad_checkpointing(True)
    expected, metrics = (trainer(task).train_one_epoch(0, SILENT) for task in (plain, saving))
    assert not differ(weights(plain), weights(saving), atol=0)
    assert all(metrics[name] == expected[name] for name in ('loss', 'agreement', 'cosine', 'teacher_correct'))


class Stream(IterableDataset):
    """A stream that says it is longer than it is."""

    def __init__(self):
        self.transform = None

    def __len__(self):
        return 40

    def __iter__(self):
        pictures = Pictures(20)
        for index in range(20):
            image, target = pictures[index]
            yield self.transform(image), target


def stream_loader(rank=0, workers=0):
    transform = train_transform((3, SIZE, SIZE), auto_augment='rand-m9-mstd0.5-inc1', color_jitter=None)
    return TrainLoader(
        Stream(), [(transform,)], HALF, HALF, batch_size=4, grad_accum_steps=3, world_size=2, rank=rank, seed=SEED,
        workers=workers)


def test_stream_that_ends_early_ends_in_a_whole_update():
    groups = [[plan for plan, *_ in group] for group in stream_loader().epoch(0)]
    assert [len(group) for group in groups] == [3, 2]
    for group in groups:
        assert [plan.last for plan in group] == [False] * (len(group) - 1) + [True], 'or DDP would not synchronise'
        assert sum(plan.weight for plan in group) == pytest.approx(1 / 2), 'the other rank has the other half'


@pytest.mark.parametrize('workers', [0, 1])
def test_stream_is_augmented_by_seed_epoch_and_rank(workers):
    def images(epoch, **kwargs):
        return torch.cat([x for group in stream_loader(workers=workers, **kwargs).epoch(epoch) for _, x, _ in group])

    first = images(1)
    torch.manual_seed(99)
    random.seed(99)
    assert torch.equal(first, images(1))
    assert not torch.equal(first, images(2))
    assert not torch.equal(first, images(1, rank=1))
