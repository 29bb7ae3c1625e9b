"""The parts of gpu.py: each tells its results one by one, the most important first."""
import argparse
import gc
import importlib.util
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from functools import partial
from typing import Any

import pytest
import torch
from gpu import ROOT
from gpu_measure import Result, flops_of_an_image, guarded, noise_trainer, rate, repeated, share_of_peak
from train_step import ours, plain, theirs

from timm_deitlt.engine.progress import Progress
from timm_deitlt.engine.speed import choose_speed
from timm_deitlt.engine.trainer import Trainer
from timm_deitlt.run.settings import resolve_settings
from timm_deitlt.settings.layers import parse_args
from timm_deitlt.settings.resolved import Settings
from timm_deitlt.studies import ablate
from timm_deitlt.studies.cells import Cell, cell_args
from timm_deitlt.studies.study import load_study
from timm_deitlt.utils.versions import versions

Tell = Callable[..., None]

# What is measured, the most important first: student, its batch, teacher
CASES = (
    ('deit_lt_base', 128, 'resnet32_cifar'),
    ('deit_lt_base', 256, 'resnet32_cifar'),
    ('deit_lt_small', 256, 'resnet32_cifar'),
    ('deit_lt_base', 128, 'resnet50'),
    ('deit_lt_small', 128, 'resnet32_cifar'),
    ('deit_lt_base', 256, 'resnet50'),
    ('deit_lt_small', 256, 'resnet50'),
    ('deit_lt_small', 128, 'resnet50'),
)
# Nothing is tried out, because each trial would compile anew; fused attention is the usual on a GPU
CHOSEN = ('--auto-speed', 'off', '--opt-kwargs', 'fused=True')
# The step whose teacher sees the image at the student's size
WHOLE_IMAGE = "timm's task"
# All in bf16, and compiled by the backend that is given, if any
STEPS: dict[str, Callable] = {
    'ours': lambda asked, backend: ours(asked, *CHOSEN, *(('--torchcompile', backend) if backend else ())),
    WHOLE_IMAGE: lambda asked, backend: theirs(asked, amp=True, resize=False, compiled=backend),
    'plain PyTorch': lambda asked, backend: plain(asked, amp=True, compiled=backend),
    "timm's task, teacher at its own size": lambda asked, backend: theirs(
        asked, amp=True, resize=True, compiled=backend),
}
# How the images of whole epochs are loaded and augmented: settings by name
LOADERS = {
    'processes, Pillow': dict(augment_backend='pillow'),
    'device': dict(augment_backend='device'),
    **({'processes, OpenCV': dict(augment_backend='opencv')} if importlib.util.find_spec('cv2') else {}),
}
SMALL_LOADERS = {
    'device': dict(augment_backend='device'),
    'this process': dict(augment_backend='pillow', workers=0),
    'processes': dict(augment_backend='pillow', workers=os.cpu_count()),
}
# Files of tests for a GPU, and which of their tests --smoke runs
CHECKS = {'test_updates': 'twenty or soft', 'test_step_graph': 'add_up', 'test_runs': 'refused'}
# Arms of the study small_data that are trained in what time is left, as its plan orders them
ARMS = ('base', 'guide', 'guide_init_muon', 'vit', 'published', 'cnn')


def device_of(asked: argparse.Namespace) -> torch.device:
    """The GPU, or with --smoke the CPU."""
    return torch.device('cpu' if asked.smoke else 'cuda')


def seconds_of(asked: argparse.Namespace) -> float:
    """Seconds for which a rate is measured, once everything is compiled."""
    return 0. if asked.smoke else 4.


def about(asked: argparse.Namespace) -> Result:
    """Card, versions, commit and time.

    Raises:
        SystemExit: If there is no GPU to measure.
    """
    if not asked.smoke and not torch.cuda.is_available():
        raise SystemExit('PyTorch finds no GPU here: give --smoke to try the script on the CPU.')
    card = {} if asked.smoke else {
        'card': torch.cuda.get_device_name(), 'memory_gib': torch.cuda.get_device_properties(0).total_memory / 2 ** 30,
        'cuda': torch.version.cuda}
    return {
        **versions(), **({'git': asked.commit} if asked.commit else {}), **card, 'minutes': asked.minutes,
        'smoke': asked.smoke, 'time': datetime.now(timezone.utc).isoformat(timespec='seconds')}


def checks(name: str, asked: argparse.Namespace, tell: Tell) -> None:
    """The tests marked `gpu` of a file, a line for each; with --smoke some of its tests, on the CPU.

    Raises:
        SystemExit: With pytest's exit code, if a test failed.
    """
    marks = ('-m', 'not gpu', '-k', CHECKS[name]) if asked.smoke else ('-m', 'gpu')
    listener = _Listener(tell)
    os.chdir(ROOT)
    code = pytest.main(
        ['-q', '-o', 'addopts=', '-p', 'no:cacheprovider', *marks, f'tests/gpu/{name}.py'], plugins=[listener])
    tell(name='all', **listener.outcomes)
    raise SystemExit(int(code))


# each file is a part, and so a process: after an error such as an illegal address every test of a process fails
test_updates, test_step_graph, test_runs = (partial(checks, name) for name in CHECKS)


class _Listener:
    """Tells the result of each test when it is there."""

    def __init__(self, tell: Tell):
        self.tell, self.outcomes = tell, Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != 'call' and report.outcome == 'passed':
            return
        self.outcomes[report.outcome] += 1
        reason = {'reason': str(report.longrepr)[-500:]} if report.failed else {}
        self.tell(name=report.nodeid, outcome=report.outcome, seconds=report.duration, **reason)


def rates(asked: argparse.Namespace, tell: Tell) -> None:
    """Images/s of training steps, and the share of the card's peak that the networks' own products reach."""
    device = device_of(asked)
    backend = usable('' if asked.smoke else 'inductor', device, tell)
    for model, batch_size, teacher in [('deit_lt_tiny', 4, 'resnet20_cifar')] if asked.smoke else CASES:
        case = argparse.Namespace(
            model=model, batch_size=batch_size, teacher=teacher, img_size=32 if asked.smoke else 224,
            device=device.type)
        found = {}
        for name, build in STEPS.items():
            flops = flops_of_an_image(case, resize=name != WHOLE_IMAGE)
            measured = guarded(rate, partial(build, case, backend), batch_size, device, seconds_of(asked))
            found[name] = measured.get('images_per_second')
            tell(**vars(case), name=name, **measured, **flops, share_of_peak=share_of_peak(found[name], flops))
            if name != 'ours' and found[name] and found['ours']:
                tell(**vars(case), **{f'ours / {name}': found['ours'] / found[name]})
            torch.compiler.reset()
            gc.collect()
            torch.cuda.empty_cache()


def usable(backend: str, device: torch.device, tell: Tell) -> str:
    """A backend of torch.compile; '' and a line that says why, if it lacks something here, such as a C compiler."""
    def compile_little() -> None:
        torch.compile(lambda x: x.sin() + 1, backend=backend)(torch.ones(8, device=device))

    failed = guarded(compile_little) if backend else None
    if failed:
        tell(name=f'nothing is compiled: {backend} fails', **failed)
    return '' if failed else backend


def epochs(asked: argparse.Namespace, tell: Tell) -> None:
    """Whole epochs of the paper's CIFAR-100-LT recipe on noise in memory, beside steps without a loader."""
    tiny = (
        '--model', 'deit_lt_tiny', '--model-kwargs', 'depth=2', '--img-size', '32', '--n-max', '2',
        '--imbalance-factor', '2', '--batch-size', '16', '--global-batch-size', '32')
    backend = usable('eager' if asked.smoke else 'inductor', device_of(asked), tell)
    args = parse_args([
        '-c', 'cifar100_if100/deit_lt_base', '--device', device_of(asked).type,
        '--workers', '2' if asked.smoke else str(os.cpu_count()), *(tiny if asked.smoke else ()), *CHOSEN,
        *(('--torchcompile', backend) if backend else ())])
    fed_and_bare(asked, tell, args, LOADERS)


def small_data(asked: argparse.Namespace, tell: Tell) -> None:
    """Epochs of the study small_data on noise; then its runs on Fashion-MNIST, in what time is left."""
    args = cell_args(load_study('small_data'), Cell(7, 1, 'base'), {'device': device_of(asked).type})
    vars(args).update(epochs=1200, **(dict(n_max=20, imbalance_factor=4) if asked.smoke else {}))
    for choice in ('off',) if asked.smoke else ('on', 'graph'):
        args.auto_speed = choice
        if failed := guarded(fed_and_bare, asked, partial(tell, auto_speed=choice), args, SMALL_LOADERS):
            tell(name='epochs', auto_speed=choice, **failed)
            return  # a recording that broke off leaves this process unable to train
    if asked.smoke or not asked.fashion_mnist.is_dir():
        tell(name='runs', left_out='--smoke' if asked.smoke else f'no folder {asked.fashion_mnist}')
        return
    folder = asked.output.with_suffix('')
    for arm in ARMS:
        began = time.perf_counter()
        made = guarded(
            ablate, 'small_data', arms=[arm], seeds=[1], subsets=[7], data_dir=str(asked.fashion_mnist), results=folder,
            work=folder / 'work', jobs=1, table=False)
        tell(name=f'run of {arm}', seconds=time.perf_counter() - began, **made)


def fed_and_bare(
        asked: argparse.Namespace,
        tell: Tell,
        args: argparse.Namespace,
        loaders: Mapping[str, Mapping[str, Any]],
) -> None:
    """Images/s of updates on the same images again and again, then of whole epochs with each of the loaders."""
    def made(more: Mapping[str, Any]) -> tuple[Trainer, Settings]:
        settings = resolve_settings(argparse.Namespace(**{**vars(args), **more}))
        return noise_trainer(settings, device), settings

    device = device_of(asked)
    first, settings = made(next(iter(loaders.values())))
    choose_speed(first, settings)
    group = next(first.loader.epoch(0))
    bare = rate(partial(repeated, first, group), sum(len(target) for _, _, target in group), device, seconds_of(asked))
    tell(name='bare steps', **bare)

    def fed(name: str, more: Mapping[str, Any]) -> None:
        trainer, _ = made(more)
        # the networks are compiled once
        trainer.task, trainer.optimizer, trainer.channels_last = first.task, first.optimizer, first.channels_last
        trainer.graph = first.graph
        for epoch in range(1 if asked.smoke else 3):
            trained = trainer.train_one_epoch(epoch, Progress('', 1, 0, 1, 1., enabled=False))
            tell(
                name=name, epoch=epoch, images_per_second=trained['train_images_per_second'],
                of_bare_steps=trained['train_images_per_second'] / bare['images_per_second'],
                # without evaluations and checkpoints
                training_hours_of_1200_epochs=1200 / 3600 * trained['train_seconds'])

    for name, more in loaders.items():
        if failed := guarded(fed, name, more):
            tell(name=name, **failed)
