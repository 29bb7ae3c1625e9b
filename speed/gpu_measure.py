"""What the parts of gpu.py measure with: rates, FLOPs, and trainers on noise."""
import argparse
import time
from collections.abc import Callable
from itertools import count
from statistics import median
from typing import Any

import numpy as np
import timm
import torch
from pairs import forget_peak_memory, peak_memory
from timm.layers import Attention
from torch.utils.flop_counter import FlopCounterMode
from train_step import CLASSES

from timm_deitlt.benchmarks import BENCHMARKS
from timm_deitlt.data.long_tail import ClassificationSet
from timm_deitlt.data.sampling import profile_counts
from timm_deitlt.data.sources import GreyImages
from timm_deitlt.engine.meter import Meter
from timm_deitlt.engine.speed import synchronize
from timm_deitlt.engine.trainer import Trainer
from timm_deitlt.evaluation import Shots
from timm_deitlt.run.build.data import Data
from timm_deitlt.run.build.trainer import build_trainer
from timm_deitlt.settings.resolved import Settings

Result = dict[str, Any]

# Dense products in bf16, FLOP/s, from NVIDIA's data sheets; the first name that is part of the card's counts
PEAKS = {'H100 PCIe': 756e12, 'H100 NVL': 835e12, 'H100': 989e12, 'H200': 989e12, 'A100': 312e12}
STEPS_OF_A_ROUND = 5


def noise_trainer(settings: Settings, device: torch.device) -> Trainer:
    """A trainer whose images are noise of the benchmark's shape and class counts, in memory, and whose teacher is
    not trained."""
    benchmark = BENCHMARKS[settings.data.dataset]
    classes, shape = benchmark.num_classes, (28, 28) if benchmark.name == 'lt/fashion_mnist' else (32, 32, 3)
    counts = profile_counts(
        classes, settings.data.n_max or benchmark.n_max, settings.data.imbalance_factor or benchmark.imbalance_factor,
        'exp')
    targets = np.repeat(np.arange(classes), counts)
    pixels = np.random.default_rng(0).integers(0, 256, (len(targets), *shape), dtype=np.uint8)
    images = ClassificationSet(GreyImages(pixels, targets), targets, [str(label) for label in range(classes)], 'noise')
    data = Data(images, None, '', Shots.from_counts(counts), 'noise', max(counts) / min(counts), 0)
    teacher = timm.create_model('resnet32_cifar', num_classes=classes)
    trainer = build_trainer(settings, data, teacher, device)
    trainer.task.train()
    return trainer


def repeated(trainer: Trainer, group: list) -> Callable[[], None]:
    """An update on the same images."""
    trainer.task.set_epoch(0)
    meter, numbers = Meter(trainer.task.device), count()
    return lambda: trainer.update(
        0, next(numbers), [(plan, images.clone(), target) for plan, images, target in group], meter)


def rate(build: Callable[[], Callable], images: int, device: torch.device, seconds: float) -> Result:
    """Images/s of a step, the median of rounds; seconds of building it and of its first call; peak memory after it."""
    began = time.perf_counter()
    step = build()
    step()
    synchronize(device)
    first = time.perf_counter() - began
    step()
    forget_peak_memory(device)
    rounds: list[float] = []
    began = time.perf_counter()
    while not rounds or time.perf_counter() - began < seconds:
        synchronize(device)
        start = time.perf_counter()
        for _ in range(STEPS_OF_A_ROUND):
            step()
        synchronize(device)
        rounds.append(time.perf_counter() - start)
    return {
        'images_per_second': STEPS_OF_A_ROUND * images / median(rounds), 'first_step_seconds': first,
        'peak_memory_gib': peak_memory(device), 'rounds': len(rounds)}


def flops_of_an_image(case: argparse.Namespace, resize: bool = True) -> Result:
    """FLOPs of an image: student, forward and backward, and the teacher's forward pass at its own size.

    Without `resize` the teacher sees the student's image as it is.

    Only the products of the networks count, each multiplication and each addition as one. They are counted by torch on
    tensors without values.
    """
    student = timm.create_model(case.model, num_classes=CLASSES, img_size=case.img_size, device='meta').train()
    student.set_distilled_training(True)
    for module in student.modules():
        if isinstance(module, Attention):
            module.fused_attn = False  # the fused kernels have no form without values that torch counts everywhere
    teacher = timm.create_model(case.teacher, num_classes=CLASSES, device='meta').eval()
    image = torch.empty(1, 3, case.img_size, case.img_size, device='meta')
    with FlopCounterMode(display=False) as of_student:
        sum(logits.sum() for logits in student(image)).backward()
    seen = torch.empty(1, *teacher.pretrained_cfg['input_size'], device='meta') if resize else image
    with FlopCounterMode(display=False) as of_teacher, torch.no_grad():
        teacher(seen)
    return {'flop_student': of_student.get_total_flops(), 'flop_teacher': of_teacher.get_total_flops()}


def share_of_peak(images_per_second: float | None, flops: Result) -> float | None:
    """Share of the card's dense bf16 peak; None if the rate or the card is unknown."""
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else ''
    peak = next((peak for name, peak in PEAKS.items() if name in card), None)
    return images_per_second and peak and images_per_second * sum(flops.values()) / peak


def guarded(measure: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What was measured, or why it could not be: too little memory for one variant leaves the others."""
    try:
        return measure(*args, **kwargs)
    except Exception as error:
        return {'error': f'{type(error).__name__}: {str(error)[:500]}'}
