"""Evaluate a finished run, or an exported model."""
import argparse
import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..engine.checkpoint import check_checkpoint, load_run
from ..engine.trainer import evaluate
from ..evaluation import ShotEvaluator
from ..evaluation.confusion import describe_confusion
from ..evaluation.fusion import choose_fusions, scale_of_outputs
from ..models._hub import model_folder
from ..models._timm import TimmModel
from ..models.cosine import has_cosine_classifier
from ..models.weights import CONFIG, exported_settings, load_config, load_safetensors, load_weights, weights_sha256
from ..settings.layers import model_kind, recipes_for, resolve, with_defaults
from ..settings.resolved import Settings
from ..utils.files import read_json, write_text
from ..utils.versions import plain_json, versions
from .build.data import Data, build_data
from .build.loaders import build_eval_loader
from .build.model import build_model
from .build.trainer import autocast_of
from .results import EXPERTS, final_table, fused, refuse_folds
from .settings import resolve_settings
from .teacher_file import HUB, reorder_classes
from .teacher_settings import NO_WEIGHTS

_logger = logging.getLogger(__name__)


def validate(path: str, overrides: dict[str, Any], fusion: str = 'mean') -> dict[str, Any]:
    """Evaluate a run's checkpoint, every expert and the EMA by shot, or an exported model.

    Args:
        path: Folder of a run, one of its checkpoints, a folder with model.safetensors and config.json, or
            'hf-hub:owner/name'.
        overrides: Settings that differ from the run's, such as `data_dir`, `val_split` or `device`. A converted model
            does not name its data, so it needs `dataset`.
        fusion: Ways to combine the experts besides the run's own, see `fusion.choose_fusions`.

    Returns:
        The content of metrics.json, with each further fusion under 'fusion'. Figures of the training are
        copied from the metrics.json of the run, and None without that file. The result is saved as validation.json
        beside the weights, unless they come from the Hub.
    """
    if path.startswith(HUB):
        return _validate_exported(model_folder(path.removeprefix(HUB)), overrides, fusion, save=False)
    file = Path(path)
    if (file / CONFIG).is_file():
        return _validate_exported(file, overrides, fusion)
    return _validate_run(file / 'last.pth.tar' if file.is_dir() else file, overrides, fusion)


def run_settings(checkpoint: dict[str, Any], overrides: dict[str, Any]) -> Settings:
    """Settings to evaluate a checkpoint of a run with, on this machine."""
    args = with_defaults(checkpoint['args'])
    # the number of micro-batches in an update depends on the machine, and evaluation does not need it
    elsewhere = {**NO_WEIGHTS, 'device': None, 'grad_accum_steps': 1}
    return resolve_settings(argparse.Namespace(**{**vars(args), **elsewhere, **overrides}))


def settings_of_export(folder: Path, config: dict[str, Any], overrides: dict[str, Any]) -> Settings:
    """Settings to evaluate an exported model with, on this machine.

    Raises:
        ValueError: If neither its config.json (see `models.weights.load_config`) nor `overrides` name the data.
    """
    # the config.json of a published model says which images it was trained on
    selection = {} if overrides.get('dataset') else (config['about'].get('data') or {}).get('selection') or {}
    settings = {**exported_settings(config), **selection, **overrides}
    dataset = settings.get('dataset')
    if not dataset and not overrides.get('data_dir'):
        raise ValueError(f'{folder} does not say what to evaluate it on: give --dataset and --data-dir.')
    return resolve_settings(
        resolve(settings, recipes_for(dataset or '', model_kind(settings['model'])), prog=str(folder)))


def data_of_export(settings: Settings, config: dict[str, Any], split: str | None) -> Data:
    """The data to evaluate an exported model on; a warning if images are held out of others than the training's."""
    data = build_data(settings, evaluate_split=split)
    trained_on = (config['about'].get('data') or {}).get('fingerprint')
    held_out = not split and (settings.data.held_out or settings.data.folds)
    if held_out and trained_on not in (None, data.train.fingerprint):
        _logger.warning(
            'The images are not exactly those of the training, so the model may have been trained on some of the '
            'images that are held out here: evaluate on others, named by --val-split.')
    return data


def open_run(file: Path, overrides: dict[str, Any]) -> tuple[dict[str, Any], Settings, Data, TimmModel]:
    """A checkpoint of a run, its settings on this machine, its data, and its network without the weights.

    Raises:
        ValueError: If the checkpoint is not one of train.py, was trained on other images, or the folder holds folds.
    """
    if not file.is_file():
        refuse_folds(file.parent)
    checkpoint = load_run(file)
    settings = run_settings(checkpoint, overrides)
    data = build_data(settings, evaluate_split=overrides.get('val_split'))
    check_checkpoint(checkpoint, str(file), settings.model.name, data.train.fingerprint)
    return checkpoint, settings, data, build_model(settings.model, data.train.num_classes)


def _validate_run(file: Path, overrides: dict[str, Any], fusion: str) -> dict[str, Any]:
    checkpoint, settings, data, model = open_run(file, overrides)
    weights = {'experts': checkpoint['state_dict'], 'ema': checkpoint.get('state_dict_ema')}
    trained = read_json(file.parent / 'metrics.json')
    names = checkpoint['data']['class_names']
    scale = settings.loss.logit_scale
    return _evaluate(settings, data, model, weights, names, tuple(checkpoint['experts']), scale, fusion, file, {
        'teacher': trained.get('teacher'),
        'epochs_trained': checkpoint['epoch'] + 1,
        **{key: trained.get(key) for key in ('seconds', 'train_images_per_second')},
    }, file.parent)


def _validate_exported(folder: Path, overrides: dict[str, Any], fusion: str, save: bool = True) -> dict[str, Any]:
    config = load_config(folder)
    settings = settings_of_export(folder, config, overrides)
    data = data_of_export(settings, config, overrides.get('val_split'))
    model = build_model(settings.model, data.train.num_classes)
    weights: dict[str, dict[str, torch.Tensor] | None] = {
        'experts': load_safetensors(folder, 'Convert or download it again.')}
    names = config['pretrained_cfg'].get('label_names')
    if names is None:
        _logger.warning(f'{folder} has no label_names: its classes are assumed to be numbered as in the data set.')
    unknown = dict.fromkeys(('teacher', 'epochs', 'epochs_trained', 'seed', 'seconds', 'train_images_per_second'))
    return _evaluate(
        settings, data, model, weights, names, experts_of_export(config, model),
        config['about'].get('logit_scale', 1.), fusion, folder / CONFIG, unknown, folder if save else None)


def experts_of_export(config: Mapping[str, Any], model: TimmModel) -> tuple[str, ...]:
    """Experts that were trained, as config.json says; without such words, all that the model has."""
    return tuple(config['about'].get('experts') or (
        EXPERTS if isinstance(model.get_classifier(), tuple) else ('mean', 'cls')))


def _evaluate(
        settings: Settings,
        data: Data,
        model: TimmModel,
        weights: dict[str, dict[str, torch.Tensor] | None],
        class_names: list[str] | None,
        experts: tuple[str, ...],
        logit_scale: float,
        fusion: str,
        file: Path,
        trained: dict[str, Any],
        folder: Path | None,
) -> dict[str, Any]:
    if data.evaluation is None:
        raise ValueError('There are no evaluation images: name a split by --val-split.')
    scaled = has_cosine_classifier(model) or logit_scale != 1
    answer = choose_fusions(settings.output.fusion, experts, scaled)
    fusions = tuple(dict.fromkeys((*answer, *choose_fusions(fusion, experts, scaled))))
    device = torch.device(settings.machine.device)
    model.to(device)
    loader = build_eval_loader(settings, data.evaluation, model.pretrained_cfg, device)
    _logger.info(f'Precision: {settings.machine.precision.words_on(device)}')
    autocast = autocast_of(settings.machine.precision, device)
    start = time.perf_counter()
    metrics, confusion = {}, None
    for name, state_dict in weights.items():
        if state_dict is None:
            continue
        load_weights(model, state_dict, str(file))
        if class_names is not None:
            reorder_classes(model, class_names, data.train.class_names, str(file))
        joined = fusions if name == 'experts' else answer
        others = joined[len(answer):]
        evaluator = ShotEvaluator(
            data.shots, experts=(*answer, *experts, *others), device=device,
            logit_scale=scale_of_outputs(experts, logit_scale))
        metrics[name] = evaluate(model, loader, evaluator, autocast, fusions=joined)
        confusion = evaluator.confusion if name == 'experts' else confusion
    seconds = time.perf_counter() - start
    result = plain_json({
        **{expert: metrics['experts'].get(expert) for expert in EXPERTS},
        **{key: value for key, value in metrics.items() if key == 'ema'},
        **fused(metrics['experts'], answer, fusions),
        'shots': data.shots.describe(evaluator.test_counts),
        'confusion': describe_confusion(confusion, data.train.class_names, answer),
        'data': {**data.describe(evaluator.test_counts), 'bad_images': data.bad_images},
        'model': settings.model.name,
        'epochs': settings.schedule.epochs,
        'seed': settings.seed,
        'eval_images_per_second': round(sum(evaluator.test_counts) * len(metrics) / seconds, 1),
        'weights_sha256': weights_sha256(weights['experts'] or {}),
        'versions': versions(),
        **trained,
    })
    if folder is not None and os.access(folder, os.W_OK):
        write_text(folder / 'validation.json', json.dumps(result, indent=2) + '\n')
    _logger.info('\n' + final_table(result, data.shots))
    _logger.info(f'{result["eval_images_per_second"]} images/s')
    return result
