"""A teacher from a file or from the Hub, its classes brought into the order of the data set."""
import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch

from ..benchmarks import TAGS, hub_id, published_id
from ..engine.checkpoint import load_checkpoint
from ..models._hub import ask_config, model_folder
from ..models._timm import TimmModel
from ..models.weights import CONFIG, exported_settings, load_config, load_safetensors, load_weights, weights_sha256
from ..settings.resolved import Settings
from .build.data import Data
from .build.model import build_model
from .settings import model_settings
from .teacher_cache import RECORD, read_record
from .teachers import NO_WEIGHTS, Teacher, benchmark_tag, key_sha256, split_name

_logger = logging.getLogger(__name__)


HUB = 'hf-hub:'


def hub_name(settings: Settings) -> str | None:
    """Name by which the teacher of `--teacher` is, or would be, published; None for data that is no benchmark's."""
    tag = benchmark_tag(settings.data)
    if tag is None:
        return None
    architecture, kind = split_name(settings.teacher.name)
    if architecture == 'resnet50' and not kind.startswith('paco'):
        architecture = 'resnet50_cosine'  # as LDAM's is called once it is published
    return f'{architecture}.{tag}' + ('' if kind == 'plain' else f'_{kind}')


def from_hub(settings: Settings, key: dict[str, Any]) -> tuple[dict[str, torch.Tensor], str] | None:
    """Weights of the published teacher and its id, if it is just the one that would be trained.

    Its config.json is asked for once, for three seconds; what its weights must be follows from that.

    Returns:
        None where no such teacher is published, or it cannot be had.
    """
    name = published_id(hub_name(settings) or '')
    if name is None:
        return None
    try:
        config, commit = ask_config(name)
        about = config.get('timm_deitlt') or {}
        if (about.get('training') or {}).get('key') != key_sha256(key):
            _logger.info(
                f'The teacher of {HUB}{name} was trained otherwise (by its seed, images or settings), so one is '
                'trained now; --teacher-source hub takes it as it is.')
            return None
        folder = model_folder(f'{name}@{commit}')
        weights = load_safetensors(folder, f'Delete {folder} to have it downloaded again.')
        if weights_sha256(weights) != about.get('weights_sha256'):
            raise ValueError(f'The weights of {HUB}{name} are not those that its config.json was written for.')
    except (AttributeError, FileNotFoundError, ValueError) as error:
        _logger.warning(f'{error} The teacher is trained now.')
        return None
    _logger.info(f'The teacher is {HUB}{name}, trained just as it would be now.')
    return weights, HUB + name


def from_file(settings: Settings, named: Settings, data: Data) -> Teacher:
    """The teacher of `--teacher-checkpoint`, or the published one of `--teacher-source hub`.

    It may be a checkpoint of train.py, a cached teacher, a model that hfhub/convert.py wrote or that was published
    (model.safetensors with config.json beside it, as a folder or as hf-hub:owner/name), or bare weights. A teacher that
    numbers the classes otherwise than the data set, as some released ones do by count, has its classifier put in order
    by name.

    Args:
        settings: The student's settings.
        named: The settings that `--teacher` names; they decide the architecture of bare weights.
        data: The student's data.

    Raises:
        FileNotFoundError: If it is not there, or the Hub cannot be asked.
        ValueError: If it is of another architecture, or was trained on other classes or images.
    """
    name = settings.teacher.checkpoint
    if not name:
        known = hub_name(settings)
        if known is None:
            raise ValueError(
                f'--teacher-source hub knows teachers of the benchmarks by name ({", ".join(TAGS)}), not of this data: '
                'give one by --teacher-checkpoint hf-hub:OWNER/NAME.')
        name = HUB + hub_id(known)
    path = model_folder(name.removeprefix(HUB), quick=True) if name.startswith(HUB) else Path(name)
    weights, recorded, data_record = _read(path)
    if not recorded:
        classifier = getattr(timm.get_pretrained_cfg(named.model.name), 'classifier', None)
        recorded = {'classifier': 'linear' if f'{classifier}.bias' in weights else 'cosine'}
    architecture = recorded.get('model', named.model.name)
    if architecture.split('.')[0] != named.model.name.split('.')[0]:
        raise ValueError(
            f'The teacher {name} is of the architecture {architecture}, not {named.model.name}: give --teacher '
            f'{architecture.removesuffix("_cifar")}.')
    _check_data(data_record, data, name)
    trained = argparse.Namespace(**{**named.flags, **recorded, **NO_WEIGHTS})
    model = build_model(model_settings(trained), data.train.num_classes)
    load_weights(
        model, weights, name, 'Give the --teacher that it is; a released file is made ready by hfhub/convert.py.')
    if theirs := data_record.get('class_names'):
        reorder_classes(model, theirs, data.train.class_names, name)
    source, scale = 'hub' if name.startswith(HUB) else 'file', trained.ldam_scale if trained.loss == 'ldam' else 1.
    return Teacher(model.eval(), settings.teacher.name, source, name, scale)


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, Any]]:
    """Weights, the settings of their training and what is known of their data, as far as the file says."""
    if path.is_dir() or path.suffix == '.safetensors':
        folder = path if path.is_dir() else path.parent
        file = load_safetensors(path, 'Give another --teacher-checkpoint.')
        if (folder / RECORD).is_file():
            key = read_record(folder / RECORD, f'Delete it to use {path.name} as bare weights.')
            return file, key['settings'], {'class_names': key['class_names'], 'fingerprint': key['data']}
        if (folder / CONFIG).is_file():
            config = load_config(folder)
            record = {'class_names': config['pretrained_cfg'].get('label_names')}
            if fingerprint := (config['about'].get('data') or {}).get('fingerprint'):
                record['fingerprint'] = fingerprint
            return file, exported_settings(config), record
        if path.is_dir():
            raise ValueError(
                f'{path} holds no {CONFIG}: it was not written to the end. Convert it again, or give the file itself '
                'to use bare weights.')
        return file, {}, {}
    checkpoint = load_checkpoint(path)
    if 'experts' not in checkpoint:  # not of our train.py
        return checkpoint['state_dict'], {}, {}
    return checkpoint['state_dict'], vars(checkpoint['args']), checkpoint['data']


def _check_data(record: dict[str, Any], data: Data, path: str) -> None:
    theirs, ours = record.get('class_names'), list(data.train.class_names)
    if theirs is None:
        _logger.warning(
            f'{path} does not say what it was trained on; it is taken to number the classes as the data set does, to '
            "know images as the teacher's recipe makes them, and never to have seen the evaluation images.")
        return
    if len(theirs) != len(ours):
        raise ValueError(
            f'The teacher {path} knows {len(theirs)} classes, the data set has {len(ours)}: use one of this data.')
    if 'fingerprint' not in record:
        _logger.warning(f'{path} does not say which images it was trained on: it may have seen the evaluation images.')
    elif record['fingerprint'] != data.train.fingerprint:
        raise ValueError(
            f'The teacher {path} was trained on other images (another subset, --split-seed, --n-max, '
            '--imbalance-factor or --val-fraction): it may have seen the evaluation images. Use a teacher of this '
            'data, or leave --teacher-checkpoint out to have one trained.')


def reorder_classes(model: TimmModel, theirs: Sequence[str], ours: Sequence[str], name: str) -> None:
    """Put the rows of a model's classifiers, which number the classes as `theirs`, in the order of `ours`.

    Args:
        model: Any timm model; changed in place.
        theirs: Class names in the order of its logits.
        ours: The same names in the order wanted.
        name: What the model is called in messages.

    Raises:
        ValueError: If the names are not the same, or repeat and are ordered otherwise.
    """
    theirs, ours = list(theirs), list(ours)
    if theirs == ours:
        return
    number = {class_name: label for label, class_name in enumerate(theirs)}
    if sorted(theirs) != sorted(ours) or len(number) < len(theirs):
        first = next(i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
        raise ValueError(
            f'The classes of {name} cannot be matched by name: its class {first} is {theirs[first]!r}, in the data set '
            f'it is {ours[first]!r}. Use a model of this data.')
    order = torch.tensor([number[class_name] for class_name in ours])
    heads = model.get_classifier()
    for head in heads if isinstance(heads, tuple) else (heads,):
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.copy_(parameter[order.to(parameter.device)])
    _logger.info(f'{name} numbers the classes otherwise than the data set: its classifier was put in order by name.')
