"""What a run would do, worked out before it touches an image or a device."""
import argparse
import logging
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from timm.models import PretrainedCfg
from timm.models.deit import VisionTransformerDistilled
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.data import Dataset

from ..benchmarks import BENCHMARKS
from ..data.folds import split_fold
from ..data.loader import MicroBatchSampler
from ..data.long_tail import ClassificationSet, holdout, long_tailed_subset
from ..data.readers import count_listed
from ..data.sampling import class_counts
from ..evaluation import Shots
from ..loss import class_weights
from ..models._timm import TimmModel
from ..models.weights import tensor_bytes
from ..optim import SAM
from ..optim.rho_schedule import rho_schedule
from ..settings.images import DataSettings
from ..settings.resolved import OptimizerSettings, ScheduleSettings, Settings
from .advice import named_counts, too_few_updates
from .build.data import build_data
from .build.loaders import size_schedule
from .build.model import build_optimizer, check_student, untrained_cfg
from .build.normalisation import assumed_settings, to_be_measured
from .settings import resolve_settings
from .space import optimizer_bytes
from .teacher_settings import teacher_settings

_logger = logging.getLogger(__name__)


def dry_run(args: argparse.Namespace) -> dict[str, Any]:
    """Work out sizes, updates, learning rates, class weights and memory of a run, and log them.

    The class counts of the synthetic benchmarks follow from their protocol. Those of 'lt/imagenet' and 'lt/inat18' are
    read from their list file; without it the published number of images is used and the counts are None. Any other data
    set is opened, and some of its images are looked at.

    Args:
        args: Flags as `settings.layers.parse_args` returns them, checked.

    Returns:
        What was logged, as plain values; the command prints it as one JSON object.

    Raises:
        ValueError: If a setting is not usable.
        FileNotFoundError: If data that have to be opened are missing.
    """
    asked = resolve_settings(args, args.dry_run_world_size or 1, planned=True)
    settings = assumed_settings(asked)
    data, loader = settings.data, settings.loader
    world_size = settings.machine.world_size
    images, counts, names, boundaries, needs = _training_set(settings)
    sampler = MicroBatchSampler(
        images, loader.batch_size, loader.micro_batches, world_size, repeats=loader.aug_repeats,
        even=settings.augment.mixes, global_batch_size=loader.update_images)
    updates = sampler.updates_per_epoch
    num_classes = BENCHMARKS[data.dataset].num_classes if data.dataset in BENCHMARKS else len(counts or ())
    model = check_student(settings, num_classes, counts or [1] * num_classes)
    result = {
        'recipe': next(x for x in reversed([*settings.sources.values()]) if x not in ('default', 'command line')),
        'data': data.dataset or str(data.data_dir),
        'train_images': images,
        'class_counts': counts,
        'class_names': names,
        'fold': f'{data.fold or 0} of {data.folds}' if data.folds else None,
        'needs': needs,
        'shots': None if counts is None else _shots(counts, boundaries),
        'images_per_epoch': sampler.images_per_epoch,
        'left_out': _left_out(loader.aug_repeats, images - sampler.images_per_epoch, settings.augment.mixes),
        'world_size': world_size,
        'batch_size': loader.batch_size,
        'grad_accum_steps': loader.micro_batches,
        'idle': loader.micro_batches * world_size * loader.batch_size > loader.update_images,
        'global_batch_size': loader.update_images,
        'measured': bool(to_be_measured(asked)),
        'updates_per_epoch': updates,
        **_training(settings, updates),
        **_stages(settings, counts, updates),
        'model': settings.model.name,
        'parameters': sum(p.numel() for p in model.parameters()),
        'memory_gib': round(_memory(settings, model) / 2 ** 30, 2),
        'fusion': settings.output.fusion,
        'teacher': _teacher(settings, images),
    }
    _logger.info(_report(result))
    few = too_few_updates(data.dataset, sampler.images_per_epoch, loader.update_images, settings.schedule.epochs)
    if few:
        _logger.warning(few)
    return {**result, 'warning': few}


def _training(settings: Settings, updates: int) -> dict[str, Any]:
    optimizer, schedule, augment = settings.optimizer, settings.schedule, settings.augment
    sizes = size_schedule(settings)
    final_lr, epochs = _final_lr(schedule, optimizer.peak_lr, updates)
    return {
        'train_img_sizes': None if sizes is None else sizes.drawn,
        'train_size_schedule': augment.train_size_schedule,
        'epochs': epochs,
        'peak_lr': optimizer.peak_lr,
        'final_lr': final_lr,
        'warmup_epochs': schedule.warmup_epochs,
        'opt': optimizer.opt,
        'rho': _radii(optimizer),
        'sam_every': optimizer.sam_every,
        'loss': settings.flags['loss'],
        'cls_loss': settings.loss.cls_loss,
    }


def _stages(settings: Settings, counts: list[int] | None, updates: int) -> dict[str, Any]:
    stage_two = settings.stage_two
    first = last = None
    if counts is not None:
        weights = class_weights(counts, stage_two.beta).tolist()
        order = sorted(range(len(counts)), key=lambda label: -counts[label])
        first, last = weights[order[0]], weights[order[-1]]
    return {
        'keep_mixup_drw': stage_two.keep_mixup,
        'drw_on': stage_two.targets,
        'drw_start_epoch': stage_two.start_epoch,
        'drw_start_update': stage_two.start_epoch * updates,
        'class_weight_first': first,
        'class_weight_last': last,
    }


def _training_set(
        settings: Settings,
) -> tuple[int, list[int] | None, Sequence[str] | None, tuple[int, int] | None, str | None]:
    """Number of training images, class counts, class names, shot boundaries, and what is missing to know the counts."""
    data = settings.data
    benchmark = BENCHMARKS.get(data.dataset)
    if benchmark is None:
        train = build_data(settings).train
        return sum(train.class_counts), list(train.class_counts), list(train.class_names), None, None
    natural = benchmark.imbalance_factor is None
    try:
        counts = count_listed(benchmark, data.data_dir, data.list_dir) if natural else class_counts(
            benchmark.num_classes, data.n_max or benchmark.n_max,
            data.imbalance_factor or benchmark.imbalance_factor or 1., data.imbalance_profile)
    except FileNotFoundError as error:
        if data.list_dir or data.imbalance_factor or data.held_out or data.folds:
            raise  # these settings choose other images, so the published number would be wrong
        return benchmark.train_images, None, None, benchmark.shot_boundaries, str(error)
    if not natural and benchmark.name != 'lt/digits' and max(counts) > benchmark.n_max:
        raise ValueError(
            f'{benchmark.name} has {benchmark.n_max} images of a class, but --n-max asks for {data.n_max}: give at '
            f'most {benchmark.n_max}.')
    chosen = _chosen(data, counts, natural)
    return len(chosen), chosen.class_counts, benchmark.class_names, benchmark.shot_boundaries, None


def _chosen(data: DataSettings, counts: list[int], natural: bool) -> ClassificationSet:
    """The training set of a benchmark, with labels and without images."""
    labels = range(len(counts))
    chosen = ClassificationSet(Dataset(), np.repeat(labels, counts), [*map(str, labels)], data.dataset)
    if natural and data.imbalance_factor:
        chosen = long_tailed_subset(chosen, data.imbalance_factor, data.imbalance_profile, data.n_max)
    if data.held_out:
        chosen, *_ = holdout(chosen, data.held_out)
    if data.folds:
        chosen, *_ = split_fold(chosen, data.folds, data.fold or 0)
    return chosen


def _left_out(repeats: float, images: int, mixes: bool) -> str | None:
    if not images:
        return None
    odd = 'Mixup needs pairs of images' if mixes else 'a micro-batch needs at least two images'
    rounded = 'repeated augmentation rounds down to a multiple of 256, as in the published code'
    return f'{images} left out: {rounded if repeats > 1 and images > 1 else odd}'


def _shots(counts: list[int], boundaries: tuple[int, int] | None) -> dict[str, Any]:
    groups = Shots.of_benchmark(counts, boundaries).groups
    return {
        group: {
            'classes': len(labels),
            'images': sum(counts[label] for label in labels),
            'largest': counts[labels[0]] if labels else None,
            'smallest': counts[labels[-1]] if labels else None,
        }
        for group, labels in groups.items()
    }


def _final_lr(schedule: ScheduleSettings, lr: float, updates: int) -> tuple[float, int]:
    """Learning rate of the last update, as the scheduler gives it, and the number of epochs with cool-down."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler, epochs = create_scheduler_v2(optimizer, **scheduler_kwargs(schedule), updates_per_epoch=updates)
    if scheduler is not None:
        scheduler.step(epochs - 1)
        scheduler.step_update(epochs * updates - 1)
    return optimizer.param_groups[0]['lr'], epochs


def _memory(settings: Settings, model: TimmModel) -> int:
    """Bytes of weights, gradients, optimizer state and one micro-batch's activations, with mixed precision unless off.

    The activations are the tensors that autograd keeps. A forward pass on fake tensors finds them and computes nothing.
    Not included are the workspace of the libraries, the teacher, and the images of the loader.
    """
    channels, *size = model.pretrained_cfg['input_size']
    if (sizes := size_schedule(settings)) is not None:
        size = [max(sizes.drawn)] * 2
    weights = tensor_bytes(list(model.parameters()))
    optimizer = build_optimizer(settings, model)
    copies = 3 if isinstance(optimizer, SAM) else 2  # gradients, and for SAM the weights of before its first step
    total = copies * weights + optimizer_bytes(optimizer)
    kept = {}
    own = {p.untyped_storage()._cdata for p in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage  # a reference, so that no other storage gets the same address
        return tensor

    if isinstance(model, VisionTransformerDistilled):
        model.set_distilled_training(True)
    model.train()
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast('cpu', dtype=torch.bfloat16, enabled=settings.machine.precision.mixed is not None),
    ):
        model(torch.empty(settings.loader.batch_size, channels, *size))
    return total + sum(storage.nbytes() for key, storage in kept.items() if key not in own)


def _radii(optimizer: OptimizerSettings) -> dict[int, float] | None:
    """SAM's radius, by the 0-based epoch from which it holds."""
    if not optimizer.is_sam:
        return None
    rho = rho_schedule(optimizer)
    if rho is None:
        return {0: optimizer.rho}
    return {epoch: rho(epoch, 0) for epoch in (0, *(m - 1 for m in optimizer.rho_milestones))}


def _teacher(student: Settings, images: int) -> dict[str, Any] | None:
    asked = student.teacher
    if not asked.is_network:
        return None
    settings = teacher_settings(student, images, planned=True)
    return {
        'name': asked.name,
        'checkpoint': asked.checkpoint or ('the Hub' if asked.source == 'hub' else None),
        'model': settings.model.name,
        'img_size': settings.model.img_size or cast(PretrainedCfg, untrained_cfg(settings.model.name)).input_size[-1],
        'loss': settings.flags['loss'],
        'epochs': settings.schedule.epochs,
        'batch_size': settings.loader.update_images,
        'opt': settings.optimizer.opt,
        'lr': settings.optimizer.lr,
        'weight_decay': settings.optimizer.weight_decay,
        'rho': _radii(settings.optimizer),
        'sam_every': settings.optimizer.sam_every,
        'normalize': asked.normalize,
        'antialias': asked.antialias,
    }


def _report(result: dict[str, Any]) -> str:
    lines = [f"{result['recipe']}: {result['model']}, {result['parameters']:,} parameters, on {result['data']}"]
    if result['class_counts'] is None:
        lines.append(f"{result['train_images']:,} training images as published, counts unknown. {result['needs']}")
    else:
        groups = ', '.join(
            f"{group} {part['classes']} classes ({part['largest']} to {part['smallest']} images each)"
            for group, part in result['shots'].items() if part['classes'])
        lines += [
            f"{result['train_images']:,} training images{_of_fold(result)}: {groups}",
            f"classes: {named_counts(result['class_names'], result['class_counts'])}",
            f"class weights from {result['class_weight_first']:.4f} (most frequent) to "
            f"{result['class_weight_last']:.3f} (rarest)",
        ]
    lines += [
        f"{result['global_batch_size']} images an update, on {result['world_size']} device(s): "
        f"{result['grad_accum_steps']} x {result['batch_size']} on each{' at most' * result['idle']}",
        f"{result['updates_per_epoch']} updates an epoch of {result['images_per_epoch']:,} images"
        f"{' (' + result['left_out'] + ')' if result['left_out'] else ''}, {result['epochs']} epochs",
        *_sizes(result),
        *(['mean and std are measured from the training images when the run starts'] if result['measured'] else []),
        f"learning rate up to {result['peak_lr']:.3g} after {result['warmup_epochs']} epochs of warm-up, "
        f"{result['final_lr']:.3g} at the end",
        f"loss {result['loss']}, {result['opt']}{_sam(result)}; {_stage_two(result)}",
        *([f"prediction: {result['fusion']}"] if result['fusion'] != 'mean' else []),
        f"estimated memory of a device: {result['memory_gib']} GiB for weights, gradients, optimizer and activations",
    ]
    return '\n'.join([*lines, *_report_teacher(result['teacher'])])


def _of_fold(result: dict[str, Any]) -> str:
    return f" of fold {result['fold']} (counted from 0; each fold has its own run)" if result['fold'] else ''


def _sizes(result: dict[str, Any]) -> list[str]:
    if not result['train_img_sizes']:
        return []
    sizes = ', '.join(map(str, result['train_img_sizes']))
    order = 'moving from first to last' if result['train_size_schedule'] == 'progressive' else 'all in every epoch'
    return [f'training image sizes {sizes} px, {order}']


def _sam(result: dict[str, Any]) -> str:
    if result['rho'] is None:
        return ''
    steps = (f'{value:g} from epoch {epoch}' if epoch else f'{value:g}' for epoch, value in result['rho'].items())
    every = f" in 1 of {result['sam_every']} updates" if result['sam_every'] > 1 else ''
    return f", rho {', '.join(steps)}{every}"


def _stage_two(result: dict[str, Any]) -> str:
    if result['drw_start_epoch'] >= result['epochs'] or result['loss'] == 'paco':
        return 'one stage'
    weights = 'no class weights' if result['drw_on'] == 'none' else f"DRW on {result['drw_on']}"
    prior = '' if result['cls_loss'] == 'ce' else f", {result['cls_loss']} on CLS"
    mixing = 'mixing goes on' if result['keep_mixup_drw'] else 'no mixing'
    return (
        f"stage two from epoch {result['drw_start_epoch']} (counted from 0), update {result['drw_start_update']:,}: "
        f'{weights}{prior}, {mixing}')


def _report_teacher(teacher: dict[str, Any] | None) -> list[str]:
    if teacher is None:
        return []
    source = f"read from {teacher['checkpoint']}" if teacher['checkpoint'] else (
        f"from the cache, or trained with loss {teacher['loss']}, {teacher['opt']}, lr {teacher['lr']:g}"
        f"{_sam(teacher)}, {teacher['epochs']} epochs, batch size "
        f"{teacher['batch_size']}")
    whose = {'own': 'its own', 'student': "the student's"}[teacher['normalize']]
    return [
        f"teacher {teacher['name']}: {teacher['model']} at {teacher['img_size']} px, {source}",
        f"the teacher's images: normalised by {whose} mean and std, resized with"
        f"{'' if teacher['antialias'] else 'out'} antialiasing",
    ]
