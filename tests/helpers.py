"""What tests of several files share: tiny tasks on noise, runs on the digits, and two ranks."""
import copy
import csv
import multiprocessing
import os
import re
import socket

import numpy as np
import timm
import torch
import torch.nn.functional as F
from conftest import TINY
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

from timm_deitlt import ClassifierTask, DeiTLTTask, Shots, create_distillation_loss
from timm_deitlt.data.augment import BatchAugment, train_transform
from timm_deitlt.data.loader import TrainLoader, create_eval_loader
from timm_deitlt.engine.progress import Progress
from timm_deitlt.engine.trainer import Trainer
from timm_deitlt.run.settings import resolve_settings
from timm_deitlt.settings.layers import parse_args

CLASSES, SIZE, SEED = 5, 16, 7
COUNTS = [40, 20, 8, 4, 2]
HALF = (.5,) * 3
SILENT = Progress('', 1, 0, 1, 1., enabled=False)
CPU = torch.device('cpu')


class Pictures(Dataset):
    """Noise, whose classes follow one another."""

    def __init__(self, length):
        generator = np.random.RandomState(0)
        self.pixels = generator.randint(0, 256, (length, SIZE, SIZE, 3), dtype=np.uint8)

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        return Image.fromarray(self.pixels[index]), index % CLASSES

    def batch(self, indices):
        """Normalised images and targets, without a loader."""
        pixels = torch.from_numpy(self.pixels[list(indices)]).permute(0, 3, 1, 2).float()
        return (pixels / 255 - .5) / .5, torch.tensor([index % CLASSES for index in indices])


def vit(**kwargs):
    torch.manual_seed(0)
    model = timm.create_model(
        'deit_lt_tiny', img_size=SIZE, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=CLASSES, **kwargs)
    model.pretrained_cfg = {**model.pretrained_cfg, 'mean': HALF, 'std': HALF}
    return model


def teacher():
    torch.manual_seed(1)
    model = timm.create_model('resnet20_cifar', num_blocks=1, num_classes=CLASSES)
    model.pretrained_cfg = {**model.pretrained_cfg, 'mean': HALF, 'std': HALF, 'input_size': (3, SIZE, SIZE)}
    return model


def cnn():
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, CLASSES))


def classifier(model, criterion=None, **kwargs):
    return ClassifierTask(
        model, criterion or nn.CrossEntropyLoss(), verbose=False, shots=Shots.from_counts(COUNTS), **kwargs)


def distiller(model=None, loss='hard', criterion=None):
    distillation = create_distillation_loss(loss, class_counts=COUNTS, drw_start_epoch=0)
    return DeiTLTTask(
        model or vit(), teacher(), distillation, criterion or nn.CrossEntropyLoss(), task_loss_weight=.3, verbose=False,
        shots=Shots.from_counts(COUNTS))


def train_loader(images=22, batch_size=4, accum=4, no_aug=True, **kwargs):
    return TrainLoader(
        Pictures(images), [(train_transform((3, SIZE, SIZE), no_aug=no_aug),)], HALF, HALF, batch_size=batch_size,
        grad_accum_steps=accum, even=True, seed=SEED, **kwargs)


def eval_loader(images, **kwargs):
    transform = train_transform((3, SIZE, SIZE), no_aug=True)
    return create_eval_loader(Pictures(images), transform, HALF, HALF, batch_size=4, **kwargs)


def trainer(task, optimizer=None, loader=None, augment=None, **kwargs):
    return Trainer(
        task=task, optimizer=optimizer or sgd(task), loader=loader or train_loader(), augment=augment or BatchAugment(),
        seed=SEED, **kwargs)


def sgd(task, lr=.1, momentum=.9):
    return torch.optim.SGD(task.trainable_module.parameters(), lr=lr, momentum=momentum)


def weights(task):
    return copy.deepcopy(task.trainable_module.state_dict())


def state(trainer):
    """Copy of the task's weights and statistics, and of the optimizer's moments."""
    moments = trainer.optimizer.state_dict()['state']
    return copy.deepcopy({
        **trainer.task.state_dict(),
        **{f'{number}.{name}': value for number, values in moments.items() for name, value in values.items()
           if isinstance(value, torch.Tensor)}})


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def assert_close(a, b, atol=1e-6):
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.allclose(value, b[name], rtol=0, atol=atol), name


def differ(a, b, atol=1e-5):
    return any(not torch.allclose(value, b[name], rtol=0, atol=atol) for name, value in a.items())


class Breaks(nn.Module):
    """Cross-entropy that is NaN at one call."""

    def __init__(self, at):
        super().__init__()
        self.at, self.calls = at, 0

    def forward(self, logits, target):
        self.calls += 1
        return F.cross_entropy(logits, target) * (float('nan') if self.calls == self.at else 1)


def summary(folder):
    """Lines of a run's summary.csv."""
    with open(folder / 'summary.csv', newline='') as file:
        return list(csv.DictReader(file))


def settings_of(*argv):
    """Settings of a command line of train.py on the CPU, as everything below the command sees them."""
    return resolve_settings(parse_args([*map(str, argv), '--device', 'cpu']))


def asked(*argv, teacher='resnet20_sam'):
    """Settings of a tiny run on the digits, as train.py has them once it knows its device."""
    args = parse_args([*TINY, '--teacher', teacher, *map(str, argv)])
    args.device = 'cpu'
    return args


def loopback():
    """Environment in which gloo keeps to the loopback interface, where its name is known."""
    return {'GLOO_SOCKET_IFNAME': 'lo'} if 'lo' in dict(map(reversed, socket.if_nameindex())) else {}


def free_port():
    """One for the two ranks to meet at."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]


def environment_of(rank, port):
    """What a launcher gives one of two ranks."""
    return {
        **loopback(), 'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1',
        'MASTER_PORT': str(port)}


def _rank(rank, env, port, function, args):
    os.environ.update({**env, **environment_of(rank, port)})
    torch.set_num_threads(1)
    function(rank, *args)


def on_two_ranks(function, *args):
    """Call `function(rank, *args)` in two processes that have what a launcher gives them.

    They are forked from a server that has imported everything. This process could not be forked if a test before has
    let autograd start threads.
    """
    multiprocessing.set_forkserver_preload(['timm_deitlt.run.train', 'torch.distributed', 'scipy.special', 'sklearn'])
    torch.multiprocessing.start_processes(
        _rank, ({**os.environ}, free_port(), function, args), nprocs=2, start_method='forkserver')


def unpadded(table):
    """A table in Markdown, whose cells are no longer filled up with spaces."""
    return re.sub(' +', ' ', table)
