"""Whether published figures belong to the weights: a sample of the images is evaluated again."""
import argparse
import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import IterableDataset

from ..benchmarks import TAGS
from ..engine.trainer import evaluate
from ..evaluation import ShotEvaluator
from ..models.weights import exported_settings
from ..run.build.data import build_data
from ..run.build.loaders import build_eval_loader
from ..run.build.trainer import autocast_of
from ..run.settings import resolve_settings
from ..run.teacher_file import reorder_classes
from ..settings.layers import model_kind, recipes_for, resolve
from ..settings.resolved import Settings
from .source import Model

# Standard deviations by which the sample may miss the figures: one in 16,000 is refused by chance
_DEVIATIONS = 4
# Beyond them, and of all images: another machine rounds otherwise, which turns an answer now and then
_OTHER_ANSWERS, _OTHER_PART = 2, .005


def check_sample(model: Model, folder: str, size: int, places: dict[str, Any]) -> str:
    """Evaluate images drawn at random and compare with the figures of the model.

    Args:
        model: What is to be published.
        folder: Where it lies, for messages.
        size: Images to evaluate; all if there are fewer.
        places: Settings that say where the data lies now, such as `data_dir`.

    Returns:
        Words for what was compared, or why nothing was.

    Raises:
        ValueError: If an expert is further from its figures than chance explains, or images that were said to be
            somewhere are not there, or are others.
    """
    metrics = model.metrics
    if metrics is None:
        return 'nothing was evaluated again: there are no figures'
    settings = _settings(model, folder, places)
    asked = any(places.get(name) for name in ('data_dir', 'list_dir'))
    try:
        data = build_data(settings)
    except (FileNotFoundError, ValueError) as error:
        if asked:
            raise
        return f'nothing was evaluated again, as the data is not at hand ({error})'
    same = (
        data.evaluation is not None and not isinstance(data.evaluation, IterableDataset)
        and data.train.fingerprint == metrics['data']['fingerprint']
        and data.evaluated_on == metrics['data']['evaluated_on']
        and list(data.train.class_names) == metrics['data']['class_names'])
    if not same and asked:
        raise ValueError(
            f'The images that were given are not those of the figures of {folder} '
            f'({metrics["data"]["evaluated_on"]} of {metrics["data"]["name"]}): give others, or none.')
    if not same:
        return 'nothing was evaluated again: the images at hand are not those of the figures'

    total = len(data.evaluation)
    chosen = torch.randperm(total, generator=torch.Generator().manual_seed(0))[:size].sort().values.tolist()
    device = torch.device(settings.machine.device)
    network = copy.deepcopy(model.network).to(device)
    reorder_classes(network, model.class_names, data.train.class_names, folder)
    experts = tuple(expert for expert in ('mean', 'cls', 'dist') if metrics.get(expert))
    loader = build_eval_loader(settings, data.evaluation.subset(chosen), model.data_config, device)
    evaluator = ShotEvaluator(data.shots, experts=experts, device=device)
    measured = evaluate(network, loader, evaluator, autocast_of(settings.machine.precision, device))
    counts = evaluator.test_counts
    for expert in experts:
        for group, labels in {'all classes': range(len(counts)), **data.shots.groups}.items():
            _compare(f'{expert} on {group}', labels, measured[expert], metrics[expert], counts, total, folder)
    return f'{len(chosen)} of {total} images evaluated again agree with the figures'


def _settings(model: Model, folder: str, places: dict[str, Any]) -> Settings:
    places = {name: value for name, value in places.items() if value is not None}
    if model.settings is not None:
        return resolve_settings(argparse.Namespace(
            **{**vars(model.settings), 'device': None, 'grad_accum_steps': 1, **places}))
    dataset, tag = model.metrics['data']['name'], TAGS.get(model.config.get('benchmark'))
    exported = exported_settings({
        'architecture': model.network.pretrained_cfg['architecture'], 'model_args': {},
        'pretrained_cfg': model.data_config})
    return resolve_settings(resolve(
        {**exported, 'dataset': dataset, 'imbalance_factor': tag and tag.imbalance_factor, **places},
        recipes_for(dataset, model_kind(exported['model'])), prog=folder))


def _compare(
        what: str,
        labels: Sequence[int],
        measured: dict[str, Any],
        stated: dict[str, Any],
        counts: list[int],
        total: int,
        folder: str,
) -> None:
    images = sum(counts[label] for label in labels)
    expected = variance = right = 0.
    for label in labels:
        if counts[label]:
            chance = stated['per_class'][label] / 100
            expected += counts[label] * chance
            variance += counts[label] * chance * (1 - chance)
            right += counts[label] * measured['per_class'][label] / 100
    left_out = 1 - sum(counts) / total  # of all images the figures leave nothing to chance
    allowed = _DEVIATIONS * math.sqrt(variance * left_out) + max(_OTHER_ANSWERS, _OTHER_PART * images)
    if abs(right - expected) > allowed:
        raise ValueError(
            f'The figures of {folder} are not those of its weights: of {images} images evaluated again, {what} has '
            f'{right:.0f} right, where its figures say {expected:.0f} (within {allowed:.0f}). Measure it anew: python '
            f'validate.py {folder}')
