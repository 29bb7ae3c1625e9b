"""Images/s of a teacher's training step, by SGD and by SAM.

    python speed/teacher.py

Beside ours: a plain PyTorch loop in fp32 with SGD.
"""
import argparse
from collections.abc import Callable
from itertools import count

import timm
import torch
import torch.nn.functional as F
from pairs import compare, serve, table
from train_step import CLASSES, batch

from timm_deitlt.build.data import build_data
from timm_deitlt.build.device import choose_device
from timm_deitlt.build.speed import choose_speed
from timm_deitlt.build.trainer import build_trainer
from timm_deitlt.config import parse_args
from timm_deitlt.data.loader import MicroBatch
from timm_deitlt.meter import Meter


def plain(asked: argparse.Namespace) -> Callable[[], object]:
    """A step as in PyTorch's tutorials."""
    model = timm.create_model(asked.model, num_classes=CLASSES).to(asked.device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=.01, momentum=.9, weight_decay=2e-4)
    images, target = batch(asked)

    def step() -> None:
        loss = F.cross_entropy(model(images), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def ours(asked: argparse.Namespace, opt: str, *flags: str) -> Callable[[], object]:
    """An update of our trainer, with a recipe long enough for everything that is worth its while."""
    args = parse_args([
        '--model', asked.model, '--teacher', 'none', '--img-size', str(asked.img_size), '--batch-size',
        str(asked.batch_size), '--mixup', '0', '--cutmix', '0', '--smoothing', '0', '--loss', 'ce', '--reprob', '0',
        '--opt', opt, '--lr', '.01', '--device', asked.device, '--workers', '0', '--epochs', '30000', *flags])
    choose_device(args, plain=args.auto_speed == 'off')
    device = torch.device(asked.device)
    trainer = build_trainer(args, build_data(args), None, device)
    choose_speed(trainer, args)
    trainer.task.train()
    trainer.task.set_epoch(0)
    images, target = batch(asked)
    meter = Meter(device)
    plan = MicroBatch(number=0, indices=(), weight=1., last=True)
    updates = count()

    def step() -> None:
        trainer.update(0, next(updates), [(plan, images, target)], meter)
        meter.check_finite(0, 1)

    return step


VARIANTS = {
    'plain PyTorch, SGD, fp32': plain,
    'ours, SGD': lambda asked: ours(asked, 'momentum'),
    'ours, SAM': lambda asked: ours(asked, 'samsgd'),
    'ours, SGD, --auto-speed off': lambda asked: ours(asked, 'momentum', '--auto-speed', 'off'),
    'ours, SAM, --auto-speed off': lambda asked: ours(asked, 'samsgd', '--auto-speed', 'off'),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default='resnet32_cifar')
    parser.add_argument('--img-size', type=int, default=32)
    parser.add_argument('--batch-size', type=int, default=128)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--rounds', type=int, default=31)
    parser.add_argument('--variants', nargs='+', choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument('--child', choices=VARIANTS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        serve(lambda: VARIANTS[asked.child](asked))
    else:
        measured = compare(asked.variants, asked.rounds)
        print(table(measured, asked.batch_size, f'{asked.model}, {asked.img_size} px, batch {asked.batch_size}'))


if __name__ == '__main__':
    main()
