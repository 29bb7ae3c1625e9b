"""Loss of the first updates with every speed option. The options should change it only by rounding.

    python speed/loss_curves.py loss_curves.png
    python speed/loss_curves.py teacher_curves.png --model resnet32_cifar --img-size 32 --opt samsgd

Prints the distance of each curve from plain PyTorch in bf16, and for comparison the distance of plain PyTorch in fp32.
On a CPU without instructions for bf16 both are in fp32. The student learns from soft labels, because rounding would
change some of the hard labels that an untrained teacher gives.
"""
import argparse
from itertools import chain, count, islice
from pathlib import Path

import matplotlib
import numpy as np
import timm
import torch
from pairs import machine
from train_step import BFLOAT16, CLASSES, our_trainer

from timm_deitlt.engine.meter import Meter

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402

PLAIN = 'plain, bf16' if BFLOAT16 else 'plain, fp32'
VARIANTS = {
    PLAIN: ('--auto-speed', 'off'),
    'plain, fp32': ('--no-amp', '--auto-speed', 'off'),
    'auto-speed': (),
    'channels last': ('--channels-last',),
    'compiled': ('--torchcompile',),
}


def curve(asked: argparse.Namespace, flags: tuple[str, ...]) -> np.ndarray:
    """Losses of the updates of a run on the digits."""
    distilled = asked.model.startswith('deit')
    torch.manual_seed(1)
    teacher = timm.create_model('resnet32_cifar', num_classes=CLASSES) if distilled else None
    trainer = our_trainer(teacher, [
        '--model', asked.model, '--img-size', str(asked.img_size), '--batch-size', str(asked.batch_size), '--opt',
        asked.opt, '--lr', str(asked.lr), '--warmup-epochs', '0', '--epochs', '300', '--teacher',
        'resnet32' if distilled else 'none', '--kd-token-distill-type', 'soft', *flags])
    meter = Meter(trainer.task.device)
    losses = []
    updates = chain.from_iterable(zip(count(epoch, 0), trainer.loader.epoch(epoch)) for epoch in count())
    for number, (epoch, group) in enumerate(islice(updates, asked.updates)):
        trainer.task.set_epoch(epoch)
        trainer.update(epoch, number, group, meter)
        losses.append(float(meter.updates[-1]))
    return np.array(losses)


def main() -> None:
    """Print the distances and draw the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('picture', type=Path, help='where to draw the curves')
    for name, value in dict(
            model='deit_lt_small', img_size=224, batch_size=16, opt='adamw', lr=1e-4, updates=50).items():
        parser.add_argument(f'--{name.replace("_", "-")}', type=type(value), default=value)
    parser.add_argument('--variants', nargs='+', choices=VARIANTS, default=list(VARIANTS), help=f'beside {PLAIN!r}')
    asked = parser.parse_args()
    curves = {name: curve(asked, VARIANTS[name]) for name in dict.fromkeys([PLAIN, *asked.variants])}
    print('| | first update | mean of all | largest |\n| --- | ---: | ---: | ---: |')
    figure, axes = plt.subplots(figsize=(7, 4), layout='constrained')
    for name, losses in curves.items():
        distance = np.abs(losses - curves[PLAIN])
        print(f'| {name} | {distance[0]:.1e} | {distance.mean():.1e} | {distance.max():.1e} |')
        axes.plot(range(1, len(losses) + 1), losses, label=name, linewidth=1)
    axes.set(xlabel='update', ylabel='loss', title=f'{asked.model}, {asked.img_size} px, batch {asked.batch_size}')
    axes.legend()
    figure.savefig(asked.picture, dpi=150)
    print(f'\n{machine()}')


if __name__ == '__main__':
    main()
