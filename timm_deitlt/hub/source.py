"""Reads a model to export or publish: a run, a cached teacher, or a converted model. Says what others may see of it."""
import argparse
import json
import logging
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import timm
import torch
import yaml
from timm.models.deit import VisionTransformerDistilled

from ..benchmarks import BENCHMARKS
from ..engine.checkpoint import LAST, load_checkpoint, load_run
from ..models._timm import TimmModel
from ..models.weights import CONFIG, WEIGHTS, load_config, load_safetensors, load_weights, weights_sha256
from ..run.build.model import build_model
from ..run.results import refuse_folds
from ..run.settings import choose_precision, resolve_settings
from ..run.teacher_cache import RECORD, read_record
from ..run.teacher_file import HUB
from ..run.teacher_settings import NO_WEIGHTS, benchmark_tag, cache_key, key_sha256
from ..settings.groups import NOT_TRAINED
from ..settings.layers import args_to_yaml, flag_of, model_kind, recipe_names, recipes_for, with_defaults
from ..utils.words import first_of
from ..version import __version__
from .figures import METRICS, VALIDATION, find_figures, headline

_logger = logging.getLogger(__name__)

SETTINGS = 'args.yaml'
# Settings that are paths on the machine of the training: only their last part is published
_PLACES = (
    'data_dir', 'list_dir', 'output', 'teacher_cache', 'teacher_checkpoint', 'resume', 'branch_from', 'class_map',
    'class_counts', 'initial_checkpoint', 'pretrained_path',
)
_OF_A_TEACHER = ('name', 'source', 'path', 'top1', 'head', 'mid', 'tail')
# What runs of other seeds must have in common besides their settings, and settings in which they may differ
_SAME_IMAGES = ('fingerprint', 'evaluated_on', 'test_counts')
_NOT_COMPARED = NOT_TRAINED | {'list_dir', 'fusion', 'seed', 'sources', 'teacher_checkpoint'}
_TRAIN_AGAIN = 'Delete the folder of this teacher; then it is trained again.'
_DATA = ('name', 'imbalance_factor', 'split_seed', 'fingerprint', 'evaluated_on')


@dataclass
class Model:
    """A model to export or publish, and what is known about it.

    Attributes:
        network: In eval mode, on the CPU.
        config: The 'timm_deitlt' object of config.json.
        class_names: Names by label.
        metrics: Content of metrics.json; None if nobody measured these weights.
        settings: Settings of its training; None for a converted model.
        data_config: Size, mean, std, interpolation and crop of its images.
        plots: Plots of the run.
    """
    network: TimmModel
    config: dict[str, Any]
    class_names: list[str]
    metrics: dict[str, Any] | None
    settings: argparse.Namespace | None
    data_config: dict[str, Any]
    plots: Sequence[Path] = ()

    @property
    def architecture(self) -> str:
        """Name of the network in timm."""
        return self.network.pretrained_cfg['architecture']


def read_model(folder: Path, finished: bool = True) -> Model:
    """Read a model from the folder of a run, of a cached teacher, or of a converted or exported model.

    Args:
        folder: The folder.
        finished: Whether the run must be finished and evaluated. If False, a warning says what is missing.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If the run is not finished, weights are NaN or infinite, the figures belong to other weights, or the
            numbers of classes differ.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f'There is no folder {str(folder)!r}: give the folder of a run of train.py.')
    if (folder / CONFIG).is_file():
        return _read_converted(folder, finished)
    record = None
    if (folder / RECORD).is_file():  # a cached teacher, whose run is in a folder inside
        record = read_record(folder / RECORD, _TRAIN_AGAIN)
        folder = folder / 'train'
    if not (folder / LAST).is_file():
        refuse_folds(folder)
        raise ValueError(
            f'{str(folder)!r} holds neither {LAST} nor {CONFIG}: give the folder of a run of train.py, or of a model '
            'that hfhub/convert.py or timm-deitlt export wrote.')
    if record is not None and not _has_weights(folder):
        raise ValueError(f'{folder} holds other weights than the teacher beside it. {_TRAIN_AGAIN}')
    try:
        return _read_run(folder, record, finished)
    except KeyError as error:
        raise ValueError(
            f'{folder} lacks {error}: another version of train.py wrote it. Train it again.') from error


def _has_weights(folder: Path) -> bool:
    """Whether a cached teacher has the weights of the run inside."""
    cached = load_safetensors(folder.parent, _TRAIN_AGAIN)
    return weights_sha256(cached) == weights_sha256(load_checkpoint(folder / LAST)['state_dict'])


def _read_run(folder: Path, record: dict[str, Any] | None, finished: bool) -> Model:
    checkpoint = load_run(folder / LAST)
    args = with_defaults(checkpoint['args'])
    args.sources = checkpoint.get('sources', {})
    data = checkpoint['data']
    if checkpoint['epoch'] + 1 < args.epochs:
        words = f'{folder} is not finished: {checkpoint["epoch"] + 1} of {args.epochs} epochs are trained.'
        if finished:
            raise ValueError(f'{words} Continue the run with train.py --resume.')
        _logger.warning(words)
    weights = checkpoint['state_dict']
    _check_finite(weights, str(folder / LAST))
    metrics = _figures(folder, weights, finished)
    # the model can be built without its images
    elsewhere = {**NO_WEIGHTS, 'data_dir': None, 'grad_accum_steps': 1}
    settings = resolve_settings(argparse.Namespace(**{**vars(args), **elsewhere}), planned=True)
    network = build_model(settings.model, len(data['class_names']))
    load_weights(network, weights, str(folder / LAST))
    student = isinstance(network, VisionTransformerDistilled)
    teacher = None
    if settings.teacher.is_network:  # figures of a later evaluation do not name it
        teacher = {'name': args.teacher, 'source': None, **((metrics or {}).get('teacher') or {})}
        if metrics:
            metrics['teacher'] = teacher
    config = {
        'kind': 'student' if student else 'teacher',
        'benchmark': benchmark_tag(settings.data),
        'data': {**_public_data(data), 'selection': _selection(args)},
        'image_mode': settings.data.image_mode,
        'logit_scale': settings.loss.logit_scale,
        'fusion': settings.output.fusion,
        'class_counts': data['train_counts'],
        'shots': metrics['shots'] if metrics else None,
        'experts': list(checkpoint['experts']) if student else ['mean', 'cls'],
        'teacher': teacher and {
            name: value for name, value in public_teacher(teacher).items() if name in _OF_A_TEACHER},
        'training': {'epochs': args.epochs, 'seed': args.seed, 'git': _commit(folder, metrics)},
        'version': __version__,
    }
    if not student:
        precision = checkpoint.get('precision') or choose_precision(args, torch.device('cpu')).words
        key = cache_key(
            vars(args), data['fingerprint'], data['class_names'], network.pretrained_cfg,
            record['precision'] if record else precision)
        if record not in (None, key):
            raise ValueError(f'{folder} was trained in another way than {RECORD} beside it says. {_TRAIN_AGAIN}')
        config['training']['key'] = key_sha256(key)
    return _checked(Model(
        network.eval(), config, list(data['class_names']), metrics, args, network.pretrained_cfg,
        sorted(folder.glob('plots/*.png'))), str(folder))


def _figures(folder: Path, weights: dict[str, torch.Tensor], needed: bool) -> dict[str, Any] | None:
    try:
        return find_figures(folder, weights_sha256(weights), (METRICS, VALIDATION))
    except ValueError as error:
        if needed:
            raise
        _logger.warning(f'Exported without figures. {error}')
        return None


def _commit(folder: Path, metrics: dict[str, Any] | None) -> str | None:
    """The commit that trained the run; another one may have measured the figures."""
    versions = folder / 'versions.json'
    if versions.is_file():
        return json.loads(versions.read_text()).get('git')
    return metrics['versions'].get('git') if metrics and metrics.get('train_images_per_second') else None


def _public_data(data: dict[str, Any]) -> dict[str, Any]:
    return {**{name: data[name] for name in _DATA}, 'name': public_name(data['name'])}


def _selection(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that select the images, for others who have the same data."""
    names = (
        'dataset', 'imbalance_factor', 'imbalance_profile', 'n_max', 'split_seed', 'val_fraction', 'folds', 'fold',
        'train_split', 'val_split', 'input_key', 'target_key')
    return {name: getattr(args, name) for name in names if getattr(args, name) not in (None, '')}


def _read_converted(folder: Path, finished: bool) -> Model:
    config = load_config(folder)
    weights = load_safetensors(folder, 'Convert it again.')
    _check_finite(weights, str(folder / WEIGHTS))
    try:
        network: Any = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    except RuntimeError as error:
        raise ValueError(f'timm cannot load {folder}: {error}. Convert it again.') from error
    network.pretrained_cfg = {**network.pretrained_cfg, 'architecture': config['architecture']}
    metrics = None
    if any((folder / name).is_file() for name in (METRICS, VALIDATION)):
        metrics = _figures(folder, weights, finished)
    settings = _published_settings(folder / SETTINGS) if (folder / SETTINGS).is_file() else None
    about = dict(config['about'])
    kind = 'student' if isinstance(network, VisionTransformerDistilled) else 'teacher'
    data = metrics and metrics['data']
    about.update(
        kind=kind,
        released_kind=about.get('released_kind', about.get('kind')) if 'source_file' in about else None,
        # of the training; a converted model does not name them, so it gets those that it was measured with
        data=about.get('data') or (_public_data(data) if data else None),
        class_counts=about.get('class_counts') or (data['train_counts'] if data else None),
        shots=metrics['shots'] if metrics else about.get('shots'),
        experts=about.get('experts') or (['mean', 'cls', 'dist'] if kind == 'student' else ['mean', 'cls']),
        training=about.get('training'),
        version=__version__,
    )
    names = config['pretrained_cfg'].get('label_names')
    if not names:
        raise ValueError(f'{folder / CONFIG} has no label_names: convert the file again.')
    return _checked(Model(
        network, about, list(names), metrics, settings, config['pretrained_cfg'], sorted(folder.glob('plots/*.png'))),
        str(folder))


def _published_settings(path: Path) -> argparse.Namespace:
    try:
        return with_defaults(argparse.Namespace(**yaml.safe_load(path.read_text())))
    except (TypeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f'{path} is damaged: export the run again, or delete this file.') from error


def _check_finite(weights: dict[str, torch.Tensor], name: str) -> None:
    wrong = [key for key, value in weights.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if wrong:
        raise ValueError(
            f'The weights of {name} hold NaN or Inf, in {first_of(wrong, 3)}: the training diverged. Give another run.')


def _checked(model: Model, name: str) -> Model:
    figures = headline(model.metrics or {})
    numbers = {
        'the classifier': model.network.num_classes,
        'the class names': len(model.class_names),
        'the figures': len(figures['per_class']) if figures else None,
        'the class counts': len(model.config['class_counts']) if model.config['class_counts'] else None,
    }
    known = {what: count for what, count in numbers.items() if count is not None}
    if len(set(known.values())) > 1:
        found = ', '.join(f'{what} {count}' for what, count in known.items())
        raise ValueError(f'The numbers of classes in {name} differ: {found}. Give a folder whose files are unchanged.')
    return model


def other_figures(model: Model, others: Sequence[Model]) -> list[dict[str, Any]]:
    """Figures of runs that differ from the published one in their seed, and in nothing else.

    Raises:
        ValueError: Naming what differs.
    """
    if not others:
        return []
    known = []
    for run in (model, *others):
        if run.settings is None or not (run.metrics or {}).get('mean'):
            raise ValueError('--other-seeds needs finished runs of train.py with figures, the published run too.')
        data = (run.metrics or {})['data']
        known.append({**vars(run.settings), **{name: data[name] for name in _SAME_IMAGES}})
    for values in known:
        names = (values.keys() | known[0].keys()) - _NOT_COMPARED
        if differing := sorted(name for name in names if values.get(name) != known[0].get(name)):
            raise ValueError(
                f'The run of seed {values["seed"]} has other settings ({", ".join(differing)}). Mean and standard '
                'deviation need runs that differ only in the seed.')
    seeds = [values['seed'] for values in known]
    if len(set(seeds)) < len(seeds):
        raise ValueError(
            f'The runs have the seeds {", ".join(map(str, seeds))}: give each run once, and each needs its own seed.')
    return [run.metrics or {} for run in others]


# What others may see of a run

def public_metrics(metrics: dict[str, Any]) -> dict[str, Any]:
    """metrics.json without paths of the machine, and without the figures of EMA weights, which are not published."""
    metrics = {name: value for name, value in metrics.items() if name != 'ema'}
    metrics['teacher'] = public_teacher(metrics['teacher']) if metrics.get('teacher') else None
    metrics['data'] = {**metrics['data'], 'name': public_name(metrics['data']['name'])}
    return metrics


def public_teacher(teacher: dict[str, Any]) -> dict[str, Any]:
    """What metrics.json says about a teacher, with its path only if it is on the Hub."""
    hidden = () if str(teacher.get('path')).startswith(HUB) else ('path',)
    return {name: value for name, value in teacher.items() if name not in hidden}


def public_settings(args: argparse.Namespace) -> str:
    """args.yaml without paths of the machine of the training."""
    values = vars(args)
    places = {name: Path(values[name]).name for name in _PLACES if isinstance(values.get(name), str) and values[name]}
    return args_to_yaml(argparse.Namespace(**{**values, **places}))


def public_name(name: str) -> str:
    """The name of the data; of a path only the last part."""
    if name in BENCHMARKS or re.match(r'(torch|tfds|wds|hfds|hfids)/[^/]', name):
        return name
    return PureWindowsPath(name).name or 'own data'


def training_command(args: argparse.Namespace) -> str:
    """The command that repeats the training: what was typed, or else the published args.yaml as a configuration."""
    sources = getattr(args, 'sources', {})
    hidden = NOT_TRAINED - {'data_dir', 'dataset_download'}
    typed = [name for name, source in sources.items() if source == 'command line' and name not in hidden]
    automatic = {'default', 'command line', *recipes_for(args.dataset, model_kind(args.model))}
    configs = [source for source in dict.fromkeys(sources.values()) if source not in automatic]
    from_recipe = not configs or (configs[-1] in recipe_names() and len(configs) <= 2)
    if not sources or not from_recipe:
        return f'python train.py -c {SETTINGS}' + (' --data-dir DIR' if args.data_dir else '')
    words = ['-c', configs[-1]] if configs else []
    for name in typed:
        value = getattr(args, name)
        if name in _PLACES:
            words += [flag_of(name), 'DIR' if name.endswith('dir') else 'FILE']
        elif value is True:
            words.append(flag_of(name))
        elif value is False:
            words.append(flag_of(name).replace('--', '--no-', 1))
        elif isinstance(value, dict):
            words += [flag_of(name), *(f'{key}={item}' for key, item in value.items())]
        elif value is not None:
            words += [flag_of(name), *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(['python', 'train.py', *words])
