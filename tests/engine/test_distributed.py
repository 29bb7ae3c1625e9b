"""Two gloo processes against one: the same updates, measurements and files, on the loopback interface alone."""
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import yaml
from conftest import ROOT, TINIEST_TEACHER, TINY
from helpers import (
    CLASSES,
    SILENT,
    Breaks,
    assert_close,
    classifier,
    cnn,
    differ,
    distiller,
    environment_of,
    eval_loader,
    free_port,
    loopback,
    on_two_ranks,
    sgd,
    summary,
    train_loader,
    trainer,
    vit,
    weights,
)
from timm.data import Mixup
from torch import nn
from warm import WarmProcess

from timm_deitlt.data.augment import BatchAugment
from timm_deitlt.engine.meter import NonFiniteLossError
from timm_deitlt.loss import LabelLoss
from timm_deitlt.optim import SAMSGD
from timm_deitlt.run.train import train
from timm_deitlt.settings.layers import parse_args

MICRO_BATCHES = 4  # of an update, over all ranks


def part(world, rank, images, no_aug=False):
    return train_loader(images, accum=MICRO_BATCHES // world, no_aug=no_aug, world_size=world, rank=rank)


def strong():
    return BatchAugment(Mixup(mixup_alpha=.8, cutmix_alpha=1., num_classes=CLASSES), re_prob=.5, re_mode='pixel')


def spread(task, world):
    return task.prepare_distributed() if world > 1 else task


def state(task):
    return {name.removeprefix('module.'): value for name, value in weights(task).items()}


def assert_same_metrics(a, b):
    assert a.keys() == b.keys()
    for name, value in b.items():
        assert a[name] == pytest.approx(value, rel=1e-5), name


def one_backward(world, rank, compiled=False):
    """Gradients and measurements of one update, at a learning rate of 0; the evaluation of 11 images."""
    task = distiller(vit(drop_path_rate=.5))
    if compiled:
        task.trainable_module = torch.compile(task.trainable_module, backend='eager')
    spread(task, world)
    ours = trainer(
        task, sgd(task, lr=0.), part(world, rank, 16), strong(), drw_start_epoch=9, world_size=world,
        eval_loader=eval_loader(11, world_size=world, rank=rank))
    metrics = ours.train_one_epoch(0, SILENT)
    return {
        'gradients': {str(i): p.grad.clone() for i, p in enumerate(task.trainable_module.parameters())},
        'measured': {name: value for name, value in metrics.items() if 'seconds' not in name and 'second' not in name},
        'evaluated': ours.evaluate(), 'test_counts': list(ours.test_counts)}


def short_updates(world, rank, images):
    """Two epochs whose last update leaves a rank without work."""
    task = spread(distiller(vit(drop_path_rate=.5)), world)
    ours = trainer(task, loader=part(world, rank, images), augment=strong(), drw_start_epoch=1, world_size=world)
    metrics = [ours.train_one_epoch(epoch, SILENT) for epoch in range(2)]
    return {'state': state(task), 'losses': [m['loss'] for m in metrics], 'cosine': [m['cosine'] for m in metrics]}


def sam(world, rank):
    task = spread(classifier(vit(drop_path_rate=.5), LabelLoss(CLASSES)), world)
    optimizer = SAMSGD(task.trainable_module.parameters(), rho=.5, lr=.1, momentum=.9)
    ours = trainer(task, optimizer, part(world, rank, 20), strong(), drw_start_epoch=9, world_size=world, clip_grad=1.)
    ours.train_one_epoch(0, SILENT)
    return {'state': state(task)}


def batch_norm(world, rank, dist_bn='reduce', with_sam=False):
    task = classifier(cnn())
    task.setup_ema(decay=.5)
    spread(task, world)
    optimizer = SAMSGD(task.trainable_module.parameters(), rho=.5, lr=.1) if with_sam else None
    ours = trainer(task, optimizer, part(world, rank, 32, no_aug=True), world_size=world, dist_bn=dist_bn)
    ours.train_one_epoch(0, SILENT)
    before = state(task)
    ours.end_epoch(0)
    return {'before': before, 'after': state(task), 'ema': task.trainable_module_ema.module.state_dict()}


def diverging(world, rank):
    """A loss that is NaN on the last rank only, in the second of three updates."""
    task = spread(classifier(cnn(), Breaks(at=3) if rank == world - 1 else nn.CrossEntropyLoss()), world)
    try:
        trainer(task, loader=part(world, rank, 48), world_size=world).train_one_epoch(1, SILENT)
    except NonFiniteLossError as error:
        return {'error': str(error)}
    return {}


SCENES = {
    'one_backward': one_backward,
    'compiled': lambda world, rank: one_backward(world, rank, compiled=True),
    'idle_rank': lambda world, rank: short_updates(world, rank, 28),
    'always_idle_rank': lambda world, rank: short_updates(world, rank, 4),
    'sam': sam,
    'reduce': batch_norm,
    'broadcast': lambda world, rank: batch_norm(world, rank, 'broadcast'),
    'sam_batch_norm': lambda world, rank: batch_norm(world, rank, with_sam=True),
    'diverging': diverging,
}


def play(rank, folder):
    """All scenes on one of two ranks; their results go to a file."""
    dist.init_process_group('gloo', timeout=timedelta(minutes=2))
    torch.save({name: scene(2, rank) for name, scene in SCENES.items()}, folder / f'{rank}.pt')
    dist.destroy_process_group()


@pytest.fixture(scope='module')
def played(tmp_path_factory):
    """Results of all scenes on both ranks."""
    folder = tmp_path_factory.mktemp('ranks')
    on_two_ranks(play, folder)
    return [torch.load(folder / f'{rank}.pt', weights_only=False) for rank in range(2)]


@pytest.mark.parametrize('scene', ['one_backward', 'compiled'])
def test_after_one_backward_both_ranks_hold_the_gradient_of_the_whole_update(played, scene):
    one = one_backward(1, 0)
    first, second = (results[scene] for results in played)
    assert not differ(first['gradients'], second['gradients'], atol=0), 'bit for bit, or the ranks would drift apart'
    assert_close(first['gradients'], one['gradients'])
    assert all(gradient.any() for gradient in one['gradients'].values())


@pytest.mark.parametrize('scene', ['one_backward', 'compiled'])
def test_measurements_and_evaluation_over_two_ranks_equal_those_of_one(played, scene):
    one = one_backward(1, 0)
    assert {'teacher_correct', 'agreement', 'cosine', 'task_loss'} <= set(one['measured'])
    for results in played:
        assert results[scene]['measured'] == pytest.approx(one['measured'], rel=1e-5)
        assert results[scene]['test_counts'] == one['test_counts'] == [3, 2, 2, 2, 2], 'padding is not counted'
        for expert, metrics in one['evaluated'].items():
            assert_same_metrics(results[scene]['evaluated'][expert], metrics)


@pytest.mark.parametrize(('scene', 'images'), [('idle_rank', 28), ('always_idle_rank', 4)])
def test_rank_without_work_in_a_short_update_still_takes_part(played, scene, images):
    one = short_updates(1, 0, images)
    for results in played:
        assert_close(results[scene]['state'], one['state'])
        assert results[scene]['losses'] == pytest.approx(one['losses'], rel=1e-5)
        assert results[scene]['cosine'] == pytest.approx(one['cosine'], rel=1e-5)


def test_sam_over_two_ranks_equals_sam_in_one_process(played):
    one = sam(1, 0)['state']
    assert not differ(played[0]['sam']['state'], played[1]['sam']['state'], atol=0)
    assert_close(played[0]['sam']['state'], one, atol=1e-5)


def statistics(states):
    return {name: value for name, value in states.items() if 'running' in name}


def by_hand():
    """Two ranks' BatchNorm in one process: weights after an epoch, and each rank's running statistics."""
    task = classifier(cnn()).train()
    model, optimizer = task.trainable_module, sgd(task)
    ranks = [model.state_dict()] * 2
    for groups in zip(*(part(2, rank, 32, no_aug=True).epoch(0) for rank in range(2)), strict=True):
        start = statistics(ranks[0])
        ranks = []
        optimizer.zero_grad()
        for group in groups:
            model.load_state_dict(start, strict=False)
            for plan, images, target in group:
                (task(images, target)['loss'] * plan.weight).backward()
            ranks.append(weights(task))
        optimizer.step()
    return dict(model.named_parameters()), [statistics(rank) for rank in ranks]


def test_batch_norm_normalises_by_micro_batch_and_its_statistics_are_rank_0s_until_the_epoch_ends(played):
    parameters, (first, second) = by_hand()
    one = batch_norm(1, 0)['after']
    mean = {name: (value + second[name]) / 2 for name, value in first.items()}
    assert_close({name: one[name] for name in parameters}, parameters)
    for results, own in zip(played, (first, second), strict=True):
        for scene in ('reduce', 'broadcast'):
            assert_close({name: results[scene]['after'][name] for name in parameters}, parameters)
            assert_close(statistics(results[scene]['before']), own)
        assert_close(statistics(results['reduce']['after']), mean)
        assert_close(statistics(results['broadcast']['after']), first)
    assert differ(first, second) and differ(statistics(one), mean), 'the ranks saw other images'


def test_ema_of_batch_norm_is_the_same_on_both_ranks_after_an_epoch(played):
    for scene in ('reduce', 'broadcast'):
        assert not differ(played[0][scene]['ema'], played[1][scene]['ema'], atol=1e-7)
        assert differ(statistics(played[0][scene]['ema']), statistics(played[0][scene]['after'])), 'it lags behind'


def test_batch_norm_under_sam_takes_the_statistics_of_rank_0s_first_passes(played):
    one = batch_norm(1, 0, with_sam=True)['after']
    first, second = (results['sam_batch_norm'] for results in played)
    parameters = [name for name in one if name.endswith(('weight', 'bias'))]
    assert_close({name: first['after'][name] for name in parameters}, {name: one[name] for name in parameters})
    assert not differ(first['before'], second['before'], atol=0)
    assert not differ(first['before'], first['after'], atol=1e-7)
    assert first['after']['1.num_batches_tracked'] == 4, '2 updates of 2 micro-batches, once each'


def test_nan_on_one_rank_stops_both_at_the_same_update(played):
    for results in played:
        assert 'epoch 1, update 1 of 3' in results['diverging']['error']


SPY = '''
import os
from torch import distributed
from timm_deitlt.run import train_teacher as run

def log(text):
    with open(os.environ['SPY_LOG'], 'a') as file:
        file.write(os.environ['RANK'] + ' ' + text + '\\n')

def train_teacher(*args, original=run.train_teacher):
    log(f'trains {distributed.is_initialized()}')
    return original(*args)

def replace(source, target, original=os.replace):
    log(f'writes {target}')
    original(source, target)

run.train_teacher, os.replace = train_teacher, replace
'''
# Muon and Adam divide by the size of a gradient, so one that is next to nothing would follow its rounding at the full
# learning rate: in float64 its rounding is far below their epsilon.
COMMAND = [
    *TINY, *TINIEST_TEACHER, '--epochs', '3', '--drw-start-epoch', '2', '--model-dtype', 'float64', '--opt', 'muon',
    '--muon-hidden-only', '--lr', '.02', '--guidance', '2.5', '--init', 'conditioned', '--aug-ramp', '2',
    '--warmup-epochs', '1', '--aug-repeats', '3', '--reprob', '.5', '--mixup-prob', '1', '--drop-path', '.3',
    '--val-fraction', '.22', '--validation-batch-size', '10', '--clip-grad', '5',
]


def run_on_two_ranks(folder, *command, **env):
    """train.py with what a launcher gives its two processes, and what they print."""
    def run(rank):
        (folder / f'rank{rank}').mkdir()
        with WarmProcess({}, folder / f'rank{rank}') as process:
            return process.run(ROOT / 'train.py', *command, env={**env, **environment_of(rank, port)})

    port = free_port()
    with ThreadPoolExecutor() as pool:
        ranks = list(pool.map(run, range(2)))
    assert not any(done.returncode for done in ranks), ''.join(done.stderr[-3000:] for done in ranks)
    return SimpleNamespace(**{name: ''.join(getattr(done, name) for done in ranks) for name in ('stdout', 'stderr')})


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """train.py on two processes with an empty cache; then the same run in one."""
    root = tmp_path_factory.mktemp('runs')
    (root / 'spy_of_ranks.py').write_text(SPY)
    command = [*COMMAND, '--teacher-cache', str(root / 'cache'), '--output', str(root)]
    two = run_on_two_ranks(
        root, *command, '--grad-accum-steps', '2', '--experiment', 'two', '--device-modules', 'spy_of_ranks',
        PYTHONPATH=str(root), SPY_LOG=str(root / 'spy.log'))
    one = train(parse_args([*command, '--grad-accum-steps', '4', '--experiment', 'one']))
    return root, one, two, (root / 'spy.log').read_text().splitlines()


def test_two_processes_end_in_the_weights_and_moments_of_one_before_and_after_the_drw_start(runs):
    root, *_ = runs
    before, after = {}, {}
    for states, file in ((before, 'milestone-2.pth.tar'), (after, 'last.pth.tar')):
        one, two = (torch.load(root / name / file, weights_only=False) for name in ('one', 'two'))
        assert_close(one['state_dict'], two['state_dict'], atol=1e-9)
        assert_close(one['task_state']['projections'], two['task_state']['projections'], atol=1e-9)
        for index, values in one['optimizer']['state'].items():
            moments = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
            others = two['optimizer']['state'][index]
            assert_close(moments, {name: others[name] for name in moments}, atol=1e-9)
        states.update(one['state_dict'])
    assert differ(before, after, atol=1e-3), 'the last stage trained'


def train_on_rank(rank, command):
    train(parse_args(command))


def test_sam_teacher_on_two_processes_has_the_parameters_of_one_before_and_after_the_drw_start(tmp_path):
    """LDAM-DRW with SAM by its own recipe, 3 updates in each stage, cut by --global-batch-size.

    In float32 a ReLU may fall on the other side of zero by rounding, which a large step then magnifies; in float64 it
    does not, at the real step.
    """
    command = [
        '--model', 'resnet20_cifar', '--model-kwargs', 'num_blocks=1', '--opt', 'samsgd', '--n-max', '34',
        '--imbalance-factor', '4', '--img-size', '16',
        '--batch-size', '16', '--global-batch-size', '64', '--epochs', '2', '--drw-start-epoch', '1', '--lr', '.02',
        '--warmup-lr', '.02', '--workers', '0', '--no-amp', '--model-dtype', 'float64', '--no-report', '--output',
        str(tmp_path), '--experiment']
    on_two_ranks(train_on_rank, [*command, 'two'])
    train(parse_args([*command, 'one']))
    stages = []
    for file in ('milestone-1.pth.tar', 'last.pth.tar'):
        one, two = (torch.load(tmp_path / name / file, weights_only=False)['state_dict'] for name in ('one', 'two'))
        parameters = {name: value for name, value in one.items() if 'running' not in name and 'num_batch' not in name}
        assert_close({name: two[name] for name in parameters}, parameters, atol=1e-12)
        stages.append(parameters)
        # 182 images are 12 micro-batches an epoch; each rank has seen half of them, once, not in SAM's second pass
        assert (one['bn1.num_batches_tracked'], two['bn1.num_batches_tracked']) == (12 * len(stages), 6 * len(stages))
        assert differ(statistics(one), statistics(two)), 'the ranks saw other images'
    assert differ(*stages, atol=1e-2), 'the last stage trained'


def test_two_processes_report_the_numbers_of_one(runs):
    root, one, two, _ = runs
    result = json.loads(two.stdout)
    for expert in ('mean', 'cls', 'dist'):
        assert_same_metrics(result[expert], one[expert])
    assert result['data'] == one['data'] and sum(one['data']['test_counts']) == 47
    assert result['teacher']['per_class'] == one['teacher']['per_class']
    rows = [summary(root / name) for name in ('one', 'two')]
    assert len(rows[0]) == len(rows[1]) == 3
    for a, b in zip(*rows, strict=True):
        for name, value in a.items():
            if 'second' not in name:
                assert float(b[name]) == pytest.approx(float(value), rel=1e-4), name


def test_one_process_trains_the_teacher_before_the_ranks_meet_and_the_other_waits(runs):
    root, one, two, log = runs
    assert [line.split(' ', 1)[1] for line in log if 'trains' in line] == ['trains False']
    assert len(list((root / 'cache' / 'teachers').iterdir())) == 1
    assert json.loads(two.stdout)['teacher']['path'] == one['teacher']['path'] and one['teacher']['source'] == 'cache'


def test_rank_0_alone_writes_the_run_and_prints_the_result(runs):
    root, _, two, log = runs
    writers = {line.split(' writes ')[0] for line in log if f'writes {root / "two"}' in line}
    assert writers == {'0'}
    assert len(two.stdout.splitlines()) == 1, 'one JSON object'
    assert two.stderr.count('train epoch 3/3') == 1
    assert json.loads((root / 'two' / 'metrics.json').read_text()) == json.loads(two.stdout)


@pytest.mark.slow
def test_torchrun_starts_two_processes_that_print_one_result(tmp_path):
    done = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--local-addr', '127.0.0.1', '--nproc-per-node',
         '2', str(ROOT / 'train.py'), *TINY, '--teacher', 'none', '--epochs', '1', '--output', str(tmp_path),
         '--experiment', 'run'],
        capture_output=True, text=True, env={**os.environ, **loopback()})
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == json.loads((tmp_path / 'run' / 'metrics.json').read_text())


SLURM = ROOT / 'docs' / 'assets' / 'slurm.sh'


def test_slurm_script_is_valid_bash_and_stands_in_the_docs():
    subprocess.run(['bash', '-n', SLURM], check=True)
    assert SLURM.read_text() in (ROOT / 'docs' / 'devices.md').read_text()


@pytest.mark.slow
def test_slurm_script_trains_on_two_nodes_and_goes_on_when_it_is_started_again(tmp_path):
    # stand-ins for Slurm's commands: both nodes are this machine, with one process each
    commands = {
        'scontrol': 'echo 127.0.0.1',
        'srun': 'one=$1; shift\nfor node in 0 1; do SLURM_PROCID=$node "$one" --local-addr 127.0.0.1 "$@" & done\n'
                'wait -n && wait -n'}
    for name, body in commands.items():
        (tmp_path / name).write_text(f'#!/bin/bash\n{body}\n')
        (tmp_path / name).chmod(0o755)
    python = Path(sys.executable).parent
    env = {
        **os.environ, **loopback(), 'PATH': f'{tmp_path}:{python}:{os.environ["PATH"]}', 'SLURM_NNODES': '2',
        'SLURM_NTASKS': '2', 'SLURM_GPUS_ON_NODE': '1', 'SLURM_JOB_ID': str(free_port()),
        'SLURM_JOB_NODELIST': 'node[1-2]'}
    for epochs in (1, 2):
        done = subprocess.run(
            ['bash', SLURM, *TINY, '--teacher', 'none', '--epochs', '2', '--stop-epoch', str(epochs), '--device', 'cpu',
             '--global-batch-size', '32', '--output', str(tmp_path), '--experiment', 'run'],
            capture_output=True, text=True, env=env, cwd=ROOT)
        assert done.returncode == 0, done.stderr[-3000:]
        assert len(summary(tmp_path / 'run')) == epochs
    assert 'Going on with epoch 1' in done.stderr
    assert yaml.safe_load((tmp_path / 'run' / 'args.yaml').read_text())['global_batch_size'] == 32
