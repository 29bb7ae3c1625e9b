"""What is to be published: a finished run, a cached teacher or a converted model, with figures that are its own."""
import argparse
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.deit import VisionTransformerDistilled
from torch import nn

from ..build.model import build_model
from ..build.trainer import choose_precision
from ..checkpoint import (
    CONFIG,
    LAST,
    WEIGHTS,
    load_checkpoint,
    load_config,
    load_safetensors,
    load_weights,
    weights_sha256,
)
from ..results import EXPERTS
from ..teachers import NO_WEIGHTS, RECORD, benchmark_tag, cache_key, key_sha256, read_record
from ..version import __version__
from .settings import public_name

METRICS, VALIDATION = 'metrics.json', 'validation.json'
_DATA = ('name', 'imbalance_factor', 'split_seed', 'fingerprint', 'evaluated_on')


@dataclass
class Model:
    """A model to publish, and what is known of it.

    Attributes:
        network: In eval mode, on the CPU.
        config: The 'timm_deitlt' object of config.json.
        class_names: Names by label.
        metrics: Content of metrics.json; None if nobody measured these weights.
        settings: Settings of its training; None for a converted model.
        data_config: Size, mean, std, interpolation and crop of its images.
        plots: Image files of the run.
    """
    network: nn.Module
    config: dict[str, Any]
    class_names: list[str]
    metrics: dict[str, Any] | None
    settings: argparse.Namespace | None
    data_config: dict[str, Any]
    plots: Sequence[Path] = ()


def read_model(folder: Path) -> Model:
    """Read what is to be published: the folder of a run, of a cached teacher, or of a converted model.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If the run is not finished, its weights are not finite, metrics are of other weights, or classes do
            not add up.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f'There is no folder {str(folder)!r}: give the folder of a run of train.py.')
    if (folder / CONFIG).is_file():
        return _read_converted(folder)
    record = None
    if (folder / RECORD).is_file():  # a cached teacher: its run lies inside
        record = read_record(folder / RECORD, 'Have the teacher trained anew.')
        folder = folder / 'train'
    if not (folder / LAST).is_file():
        raise ValueError(
            f'{str(folder)!r} holds neither {LAST}, as a run of train.py, nor {CONFIG}, as a model that '
            'hfhub/convert.py wrote: give the folder of one of them.')
    return _read_run(folder, record)


def _read_run(folder: Path, record: dict[str, Any] | None) -> Model:
    checkpoint = load_checkpoint(folder / LAST)
    if not {'args', 'experts', 'data'} <= checkpoint.keys():
        raise ValueError(f'{folder / LAST} was not written by this train.py: it names no settings and no data.')
    args = argparse.Namespace(**vars(checkpoint['args']), sources=checkpoint.get('sources', {}))
    data = checkpoint['data']
    if checkpoint['epoch'] + 1 < args.epochs:
        raise ValueError(
            f'{folder} is not finished: {checkpoint["epoch"] + 1} of {args.epochs} epochs are trained. Go on with it '
            'by train.py --resume.')
    weights = checkpoint['state_dict']
    _check_finite(weights, str(folder / LAST))
    metrics = _find_metrics(folder, weights, (METRICS, VALIDATION))
    network = build_model(argparse.Namespace(**{**vars(args), **NO_WEIGHTS}), len(data['class_names']))
    load_weights(network, weights, str(folder / LAST))
    data_config = network.pretrained_cfg
    precision = choose_precision(args, torch.device('cpu'))[2].split(' on ')[0]
    key = record or cache_key(args, data['fingerprint'], data['class_names'], data_config, precision)
    student = isinstance(network, VisionTransformerDistilled)
    config = {
        'kind': 'student' if student else 'teacher',
        'benchmark': benchmark_tag(args),
        'data': {**_public_data(data), 'selection': _selection(args)},
        'class_counts': data['train_counts'],
        'shots': metrics['shots'],
        'experts': list(checkpoint['experts']) if student else ['mean', 'cls'],
        'training': {
            'epochs': args.epochs, 'seed': args.seed, 'git': metrics['versions']['git'],
            **({} if student else {'key': key_sha256(key)})},
        'version': __version__,
    }
    plots = sorted(path for pattern in ('*.png', 'plots/*.png', 'report/*.png') for path in folder.glob(pattern))
    return _checked(Model(
        network.eval(), config, list(data['class_names']), metrics, args, data_config, plots), str(folder))


def _public_data(data: dict[str, Any]) -> dict[str, Any]:
    return {**{name: data[name] for name in _DATA}, 'name': public_name(data['name'])}


def _selection(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that chose the images, for others who have the same data."""
    names = (
        'dataset', 'imbalance_factor', 'imbalance_profile', 'n_max', 'split_seed', 'val_fraction', 'train_split',
        'val_split')
    return {name: getattr(args, name) for name in names if getattr(args, name) not in (None, '')}


def _read_converted(folder: Path) -> Model:
    config = load_config(folder)
    weights = load_safetensors(folder, 'Convert it again.')
    _check_finite(weights, str(folder / WEIGHTS))
    network = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    metrics = None
    if (folder / VALIDATION).is_file():
        metrics = _find_metrics(folder, weights, (VALIDATION,))
    about = dict(config['about'])
    kind = 'student' if isinstance(network, VisionTransformerDistilled) else 'teacher'
    data = metrics and metrics['data']
    about.update(
        kind=kind,
        data=data and _public_data(data),
        class_counts=data and data['train_counts'],
        shots=metrics and metrics['shots'],
        experts=['mean', 'cls', 'dist'] if kind == 'student' else ['mean', 'cls'],
        training=None,
        version=__version__,
    )
    names = config['pretrained_cfg'].get('label_names')
    if not names:
        raise ValueError(f'{folder / CONFIG} has no label_names: convert the file again.')
    return _checked(Model(network, about, list(names), metrics, None, config['pretrained_cfg']), str(folder))


def _find_metrics(folder: Path, weights: dict[str, torch.Tensor], names: Sequence[str]) -> dict[str, Any]:
    """The first of the files that was measured with these weights."""
    own, found = weights_sha256(weights), []
    for name in names:
        if (folder / name).is_file():
            try:
                metrics = json.loads((folder / name).read_text())
                if metrics['weights_sha256'] == own:
                    return metrics
                found.append(f'{name} is of other weights')
            except (KeyError, TypeError, ValueError):
                found.append(f'{name} does not say of which weights it is')
    raise ValueError(
        f'The figures in {folder} do not belong to its weights: {"; ".join(found) or f"there is no {names[0]}"}. '
        f'Measure them: python validate.py {shlex.quote(str(folder))}')


def _check_finite(weights: dict[str, torch.Tensor], name: str) -> None:
    wrong = [key for key, value in weights.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if wrong:
        more = f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''
        raise ValueError(
            f'The weights of {name} hold NaN or Inf, in {", ".join(wrong[:3])}{more}: the training diverged. Publish '
            'another run.')


def _checked(model: Model, name: str) -> Model:
    numbers = {
        'the classifier': model.network.num_classes,
        'the class names': len(model.class_names),
        'the figures': len(headline(model.metrics)['per_class']) if model.metrics else None,
        'the class counts': len(model.config['class_counts']) if model.config['class_counts'] else None,
    }
    known = {what: count for what, count in numbers.items() if count is not None}
    if len(set(known.values())) > 1:
        found = ', '.join(f'{what} {count}' for what, count in known.items())
        raise ValueError(f'The number of classes in {name} does not add up: {found}. Publish a run as it was written.')
    return model


def headline(metrics: dict[str, Any]) -> dict[str, Any]:
    """Figures of the answer: the mean of the experts."""
    for expert in EXPERTS:
        if metrics.get(expert) and metrics[expert].get('top1') is not None:
            return metrics[expert]
    raise ValueError('The run was never evaluated: measure it by python validate.py RUN --val-split NAME.')
