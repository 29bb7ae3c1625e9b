"""Images/s of a teacher's training step, with SGD and with SAM.

    python speed/teacher.py

A plain PyTorch loop in fp32 with SGD is measured too.
"""
import argparse

import timm
import torch
import torch.nn.functional as F
from pairs import Step, main
from train_step import CLASSES, batch, our_update


def plain(asked: argparse.Namespace) -> Step:
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


def ours(asked: argparse.Namespace, opt: str, *flags: str) -> Step:
    """An update of our trainer, in a training long enough for everything that is worth its while."""
    return our_update(asked, None, (
        '--teacher', 'none', '--mixup', '0', '--cutmix', '0', '--smoothing', '0', '--loss', 'ce', '--opt', opt, '--lr',
        '.01', '--epochs', '30000', *flags))


VARIANTS = {
    'plain PyTorch, SGD, fp32': plain,
    'ours, SGD': lambda asked: ours(asked, 'momentum'),
    'ours, SAM': lambda asked: ours(asked, 'samsgd'),
    'ours, SGD, --auto-speed off': lambda asked: ours(asked, 'momentum', '--auto-speed', 'off'),
    'ours, SAM, --auto-speed off': lambda asked: ours(asked, 'samsgd', '--auto-speed', 'off'),
}


if __name__ == '__main__':
    main(__doc__, VARIANTS, model='resnet32_cifar', img_size=32, batch_size=128, rounds=31)
