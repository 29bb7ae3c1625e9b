r"""Images/s of a training step: student, teacher, Mixup, loss, clipping and optimizer, on images that are in memory.

    python speed/train_step.py --model deit_lt_small --batch-size 32
    python speed/train_step.py --model deit_lt_base --batch-size 16
    python speed/train_step.py --variants "ours, --auto-speed off" "ours, --auto-speed off, both" ours
    python speed/train_step.py --model deit_lt_tiny --variants "ours, --auto-speed off" \
        "ours, --auto-speed off, guided" "ours, --auto-speed off, guided and dense"
    python speed/train_step.py --model deit_lt_tiny --img-size 32 --batch-size 64 --variants \
        "small data, not guided" "small data"
    python speed/train_step.py --model deit_lt_base --batch-size 16 --profile "ours, --auto-speed off, both"

The guided variants, and those of small data, show what --guidance and --dense-distill cost in time and memory; the aim
is at most 1.15 times. If other people use the machine too, give more --rounds.

All variants are in memory at once, about 3 GiB each. timm's TokenDistillationTask is measured too, in a plain loop:
once as it is (its teacher gets the student's images without resizing), and once with a teacher that gets them at its
own size, as ours does. On a CPU without instructions for bf16 all variants are in fp32, unless one in bf16 is named:
there such a step takes minutes.
"""
import argparse
from collections.abc import Sequence
from itertools import count

import timm
import torch
import torch.nn.functional as F
from pairs import Step, main
from timm.data import Mixup
from timm.layers import Attention
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.task import TokenDistillationTask
from timm.utils import dispatch_clip_grad
from torch import nn

import timm_deitlt  # noqa: F401  registers the models
from timm_deitlt.data.loader import MicroBatch
from timm_deitlt.engine.device import has_bfloat16, keep_freed_memory
from timm_deitlt.engine.meter import Meter
from timm_deitlt.engine.speed import choose_speed
from timm_deitlt.engine.trainer import Trainer
from timm_deitlt.run.build.data import build_data
from timm_deitlt.run.build.trainer import build_trainer
from timm_deitlt.run.settings import resolve_settings
from timm_deitlt.settings.layers import parse_args

CLASSES = 10  # of the digits, whose recipe ours runs


def resized(images: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Images of a teacher's own size."""
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    return F.interpolate(images, tuple(size), mode='bicubic', antialias=True)


def plain(asked: argparse.Namespace, amp: bool, compiled: str = '') -> Step:
    """A step as one writes it with timm's models and PyTorch alone; `compiled` is a backend of torch.compile."""
    device = torch.device(asked.device)
    student = timm.create_model(asked.model, num_classes=CLASSES, img_size=asked.img_size, device=device).train()
    student.set_distilled_training(True)
    teacher = timm.create_model(asked.teacher, num_classes=CLASSES, device=device).eval()
    size = teacher.pretrained_cfg['input_size'][1:]
    if compiled:
        student, teacher = (torch.compile(network, backend=compiled) for network in (student, teacher))
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, weight_decay=.05, fused=True)
    mixup = Mixup(.8, 1., label_smoothing=.1, num_classes=CLASSES)
    images, target = batch(asked)

    def step() -> None:
        mixed, labels = mixup(images.clone(), target)
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            with torch.no_grad():
                taught = teacher(resized(mixed, size)).argmax(dim=1)
            cls_logits, dist_logits = student(mixed)
            loss = (F.cross_entropy(cls_logits, labels) + F.cross_entropy(dist_logits, taught)) / 2
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.)
        optimizer.step()

    return step


def theirs(asked: argparse.Namespace, amp: bool, resize: bool, compiled: str = '') -> Step:
    """A step of timm's task, its teacher given images of its own size or the student's."""
    student = timm.create_model(asked.model, num_classes=CLASSES, img_size=asked.img_size, device=asked.device)
    teacher = timm.create_model(asked.teacher, num_classes=CLASSES, device=asked.device)
    task = TokenDistillationTask(
        student, teacher, criterion=SoftTargetCrossEntropy(), distill_type='hard', device=torch.device(asked.device),
        verbose=False)
    if resize:
        forward, size = task.teacher.forward, teacher.pretrained_cfg['input_size'][1:]
        task.teacher.forward = lambda x: forward(resized(x, size))
    if compiled:
        task.compile(backend=compiled)
    optimizer = create_optimizer_v2(student, opt='adamw', lr=1e-4, weight_decay=.05)
    mixup = Mixup(.8, 1., label_smoothing=.1, num_classes=CLASSES)
    images, target = batch(asked)
    task.train()

    def step() -> None:
        mixed, labels = mixup(images.clone(), target)
        with torch.autocast(torch.device(asked.device).type, torch.bfloat16, enabled=amp):
            loss = task(mixed, labels)['loss']
        optimizer.zero_grad()
        loss.backward()
        dispatch_clip_grad(task.get_clip_parameters(), value=1.)
        optimizer.step()

    return step


def ours(asked: argparse.Namespace, *flags: str, **kwargs: bool) -> Step:
    """An update of our trainer with its teacher."""
    teacher = timm.create_model(asked.teacher, num_classes=CLASSES)
    return our_update(asked, teacher, (
        '--teacher', 'resnet32', '--mixup', '.8', '--cutmix', '1', '--mixup-prob', '1', '--clip-grad', '1',
        '--opt', 'adamw', '--lr', '1e-4', '--epochs', '300', *flags), **kwargs)


def small_data(asked: argparse.Namespace, *flags: str) -> Step:
    """An update of the recipe for small data on the digits; give deit_lt_tiny, 32 px and batches of 64."""
    teacher = timm.create_model(asked.teacher, num_classes=CLASSES)
    return our_update(asked, teacher, ('-c', 'digits/small_data', '--auto-speed', 'off', *flags))


def with_choices(asked: argparse.Namespace, keep_memory: bool = False, matmul: bool = False) -> Step:
    """Ours with --auto-speed off, but for these choices of it."""
    if keep_memory:
        keep_freed_memory()
    return ours(asked, '--auto-speed', 'off', matmul=matmul)


def our_update(
        asked: argparse.Namespace,
        teacher: nn.Module | None,
        flags: Sequence[str],
        matmul: bool = False,
) -> Step:
    """An update of our trainer on one batch again and again."""
    trainer = our_trainer(teacher, [
        '--model', asked.model, '--img-size', str(asked.img_size), '--batch-size', str(asked.batch_size), '--device',
        asked.device, '--reprob', '0', *flags])
    if matmul:
        for module in trainer.task.modules():
            if isinstance(module, Attention):
                module.fused_attn = False
    trainer.task.set_epoch(0)
    images, target = batch(asked)
    meter = Meter(trainer.task.device)
    numbers = count()

    def step() -> None:
        number = next(numbers)
        plan = MicroBatch(number, indices=(), weight=1., last=True)
        trainer.update(0, number, [(plan, images.clone(), target)], meter)
        if meter.pending_on_host:  # as in training; on a GPU it would wait for the device
            meter.check_finite(0, 1)

    return step


def our_trainer(teacher: nn.Module | None, flags: Sequence[str]) -> Trainer:
    """Our trainer of a run on the digits, as train.py makes it."""
    args = parse_args(['--workers', '0', *flags])
    settings = resolve_settings(args)
    trainer = build_trainer(settings, build_data(settings), teacher, torch.device(settings.machine.device))
    choose_speed(trainer, settings)
    trainer.task.train()
    return trainer


def batch(asked: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """The same noise for all."""
    torch.manual_seed(0)
    images = torch.randn(asked.batch_size, 3, asked.img_size, asked.img_size)
    return images.to(asked.device), torch.randint(CLASSES, (asked.batch_size,)).to(asked.device)


VARIANTS = {
    "timm's task, bf16": lambda asked: theirs(asked, amp=True, resize=False),
    "timm's task, fp32": lambda asked: theirs(asked, amp=False, resize=False),
    "timm's task, bf16, teacher at its own size": lambda asked: theirs(asked, amp=True, resize=True),
    "timm's task, fp32, teacher at its own size": lambda asked: theirs(asked, amp=False, resize=True),
    'plain PyTorch, bf16': lambda asked: plain(asked, amp=True),
    'plain PyTorch, fp32': lambda asked: plain(asked, amp=False),
    'ours': ours,
    'ours, --auto-speed off': lambda asked: ours(asked, '--auto-speed', 'off'),
    'ours, --auto-speed off, freed memory kept': lambda asked: with_choices(asked, keep_memory=True),
    'ours, --auto-speed off, attention by matrix products': lambda asked: with_choices(asked, matmul=True),
    'ours, --auto-speed off, both': lambda asked: with_choices(asked, keep_memory=True, matmul=True),
    'ours, --auto-speed off, guided': lambda asked: ours(asked, '--auto-speed', 'off', '--guidance', '2.5'),
    'ours, --auto-speed off, guided and dense': lambda asked: ours(
        asked, '--auto-speed', 'off', '--guidance', '2.5', '--dense-distill', '1'),
    'small data, not guided': lambda asked: small_data(asked, '--guidance', '0'),
    'small data': small_data,
    'ours, compiled': lambda asked: ours(asked, '--torchcompile'),
}
BFLOAT16 = has_bfloat16(torch.device('cuda' if torch.cuda.is_available() else 'cpu'))
USUAL = [
    *(["timm's task, bf16", "timm's task, fp32", "timm's task, bf16, teacher at its own size"] if BFLOAT16 else
      ["timm's task, fp32", "timm's task, fp32, teacher at its own size"]),
    'ours', 'ours, --auto-speed off']


if __name__ == '__main__':
    main(
        __doc__, VARIANTS, usual=USUAL,
        model='deit_lt_small', teacher='resnet32_cifar', img_size=224, batch_size=32, rounds=7)
