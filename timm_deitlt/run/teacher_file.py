"""Load a teacher from a file or from the Hub, and put its classes in the order of the data set."""
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
from .teacher_settings import NO_WEIGHTS, Teacher, benchmark_tag, key_sha256, split_name

_logger = logging.getLogger(__name__)


HUB = 'hf-hub:'


def hub_name(settings: Settings) -> str | None:
    """Name under which the teacher of `--teacher` is, or would be, published; None if the data is no benchmark."""
    tag = benchmark_tag(settings.data)
    if tag is None:
        return None
    architecture, kind = split_name(settings.teacher.name)
    if architecture == 'resnet50' and not kind.startswith('paco'):
        architecture = 'resnet50_cosine'  # the published name of the teacher with LDAM
    return f'{architecture}.{tag}' + ('' if kind == 'plain' else f'_{kind}')


def from_hub(settings: Settings, key: dict[str, Any]) -> tuple[dict[str, torch.Tensor], str] | None:
    """Weights of the published teacher and its id, if it is exactly the one that would be trained now.

    Its config.json is requested once, with a timeout of three seconds. It holds the checksum of the weights.

    Returns:
        None if no such teacher is published, or it cannot be downloaded.
    """
    name = published_id(hub_name(settings) or '')
    if name is None:
        return None
    try:
        config, commit = ask_config(name)
        about = config.get('timm_deitlt') or {}
        if (about.get('training') or {}).get('key') != key_sha256(key):
            _logger.info(
                f'The published teacher {HUB}{name} was trained with another seed, other images or other settings, so '
                'one is trained now. Give --teacher-source hub to use the published one.')
            return None
        folder = model_folder(f'{name}@{commit}')
        weights = load_safetensors(folder, f'Delete {folder} to have it downloaded again.')
        if weights_sha256(weights) != about.get('weights_sha256'):
            raise ValueError(f'The weights of {HUB}{name} do not have the checksum that its config.json names.')
    except (AttributeError, FileNotFoundError, ValueError) as error:
        _logger.warning(f'{error} The teacher is trained now.')
        return None
    _logger.info(f'The teacher is {HUB}{name}, which was trained exactly as it would be trained now.')
    return weights, HUB + name


def from_file(settings: Settings, named: Settings, data: Data) -> Teacher:
    """The teacher of `--teacher-checkpoint`, or the published one of `--teacher-source hub`.

    It may be a checkpoint of train.py, a cached teacher, an exported model (a folder with model.safetensors and
    config.json, or hf-hub:owner/name), or bare weights. Some released teachers number the classes in another order than
    the data set; the classifier is then put in order by class name.

    Args:
        settings: The student's settings.
        named: Settings of the teacher that `--teacher` names. They decide the architecture of bare weights.
        data: The student's data.

    Raises:
        FileNotFoundError: If there is no such teacher, or the Hub cannot be reached.
        ValueError: If it is of another architecture, or was trained on other classes or images.
    """
    name = settings.teacher.checkpoint
    if not name:
        known = hub_name(settings)
        if known is None:
            raise ValueError(
                f'--teacher-source hub has teachers for the benchmarks only ({", ".join(TAGS)}), not for this data: '
                'name a teacher by --teacher-checkpoint hf-hub:OWNER/NAME.')
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
        model, weights, name, 'Give its architecture by --teacher; convert a released file by hfhub/convert.py first.')
    if theirs := data_record.get('class_names'):
        reorder_classes(model, theirs, data.train.class_names, name)
    source, scale = 'hub' if name.startswith(HUB) else 'file', trained.ldam_scale if trained.loss == 'ldam' else 1.
    return Teacher(model.eval(), settings.teacher.name, source, name, scale)


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, Any]]:
    """Weights, settings of their training and a record of their data; what the file does not say is left empty."""
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
    if 'experts' not in checkpoint:  # not written by our train.py
        return checkpoint['state_dict'], {}, {}
    return checkpoint['state_dict'], vars(checkpoint['args']), checkpoint['data']


def _check_data(record: dict[str, Any], data: Data, path: str) -> None:
    theirs, ours = record.get('class_names'), list(data.train.class_names)
    if theirs is None:
        _logger.warning(
            f'{path} does not say what it was trained on. Three things are assumed: it numbers the classes as the data '
            'set does, it expects images as the recipe of --teacher prepares them, and it was not trained on the '
            'evaluation images.')
        return
    if len(theirs) != len(ours):
        raise ValueError(
            f'The teacher {path} knows {len(theirs)} classes, but the data set has {len(ours)}: use a teacher of this '
            'data.')
    if 'fingerprint' not in record:
        _logger.warning(f'{path} does not say which images it was trained on: it may have seen the evaluation images.')
    elif record['fingerprint'] != data.train.fingerprint:
        raise ValueError(
            f'The teacher {path} was trained on other images (another subset, --split-seed, --n-max, '
            '--imbalance-factor or --val-fraction): it may have seen the evaluation images. Use a teacher of this '
            'data, or leave --teacher-checkpoint out to have one trained.')


def reorder_classes(model: TimmModel, theirs: Sequence[str], ours: Sequence[str], name: str) -> None:
    """Reorder the rows of a model's classifiers, from the class order `theirs` to the class order `ours`.

    Args:
        model: Any timm model; changed in place.
        theirs: Class names in the order of its logits.
        ours: The same names in the order wanted.
        name: What the model is called in messages.

    Raises:
        ValueError: If the names are not the same, or a name is repeated and the order differs.
    """
    theirs, ours = list(theirs), list(ours)
    if theirs == ours:
        return
    number = {class_name: label for label, class_name in enumerate(theirs)}
    if sorted(theirs) != sorted(ours) or len(number) < len(theirs):
        first = next(i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
        raise ValueError(
            f'The classes of {name} cannot be matched by name: its class {first} is {theirs[first]!r}, but in the data '
            f'set it is {ours[first]!r}. Use a model of this data.')
    order = torch.tensor([number[class_name] for class_name in ours])
    heads = model.get_classifier()
    for head in heads if isinstance(heads, tuple) else (heads,):
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.copy_(parameter[order.to(parameter.device)])
    _logger.info(f'{name} numbers the classes differently from the data set: its classifier was put in order by name.')
