"""The figures of a model: are they of these weights, complete and consistent, and does a sample of images agree?"""
import copy
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import IterableDataset

from ..benchmarks import TAGS
from ..engine.trainer import evaluate
from ..evaluation import GROUPS, ShotEvaluator, Shots
from ..evaluation.fusion import choose_fusions, figures_of
from ..run.build.data import build_data
from ..run.build.loaders import build_eval_loader
from ..run.build.trainer import autocast_of
from ..run.results import EXPERTS
from ..run.teacher_file import reorder_classes
from ..run.validate import run_settings, settings_of_export
from ..settings.resolved import Settings

if TYPE_CHECKING:
    from .source import Model

METRICS, VALIDATION = 'metrics.json', 'validation.json'
_NEEDED = ('shots', 'data', 'model', 'epochs', 'seed', 'versions', *EXPERTS)
_DATA_NEEDED = (
    'name', 'imbalance_factor', 'train_counts', 'test_counts', 'class_names', 'evaluated_on', 'split_seed',
    'fingerprint')

# Allowed distance of the sample from the figures in standard deviations; by chance one in 16,000 is refused
_DEVIATIONS = 4
# Allowed besides: answers, and part of all images. Another machine rounds differently, which changes a few answers.
_OTHER_ANSWERS, _OTHER_PART = 2, .005

def find_figures(folder: Path, weights_sha256: str, names: Sequence[str]) -> dict[str, Any]:
    """Content of the first of these files that was measured with these weights, checked.

    Raises:
        ValueError: If there is none, or its figures contradict each other.
    """
    found = []
    for name in names:
        if not (folder / name).is_file():
            continue
        try:
            metrics = json.loads((folder / name).read_text())
            own = metrics['weights_sha256']
        except (KeyError, TypeError, ValueError):
            found.append(f'{name} does not say to which weights it belongs')
            continue
        if own != weights_sha256:
            found.append(f'{name} is of other weights')
            continue
        try:
            check_figures(metrics, str(folder / name))
            return metrics
        except ValueError as error:
            found.append(str(error))
    raise ValueError(
        f'{folder} has no figures of its weights: {"; ".join(found) or f"there is no {names[0]}"}. Measure them: '
        f'python validate.py {shlex.quote(str(folder))}')


def check_figures(metrics: dict[str, Any], name: str) -> None:
    """Refuse figures that are incomplete, are not numbers, or do not follow from the accuracies of the classes.

    Raises:
        ValueError: Naming what is wrong.
    """
    mend = 'Measure them again: python validate.py RUN_DIR'
    data = metrics.get('data') or {}
    missing = [key for key in _NEEDED if key not in metrics]
    missing += [f'data.{key}' for key in _DATA_NEEDED if key not in data]
    if missing:
        raise ValueError(f'{name} lacks {", ".join(missing)}: another version wrote it. {mend}')
    if headline(metrics) is None:
        raise ValueError(f'{name} holds no figures: the run was never evaluated. Run validate.py with --val-split.')
    try:
        shots = Shots.from_counts(data['train_counts'], tuple(metrics['shots']['boundaries']))
        rows = {row: metrics.get(row) for row in (*EXPERTS, 'teacher')} | (metrics.get('fusion') or {})
        wrong = [
            f'{row}.{key} is {found}, but its accuracies per class give {expected}'
            for row, figures in rows.items() if figures and figures.get('top1') is not None
            for key, expected in _recomputed(figures['per_class'], data['test_counts'], shots).items()
            if not _same(found := figures.get(key), expected)]
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f'{name} is damaged ({type(error).__name__}: {error}). {mend}') from error
    if wrong:
        raise ValueError(f'{name} contradicts itself: {"; ".join(wrong[:3])}. {mend}')


def _recomputed(per_class: Sequence[Any], counts: Sequence[int], shots: Shots) -> dict[str, float | None]:
    if any(value is not None and not 0 <= value <= 100 for value in per_class):  # NaN too
        raise ValueError('an accuracy is not between 0 and 100')

    def mean(labels: Sequence[int]) -> float | None:
        known = [value for label in labels if (value := per_class[label]) is not None]
        return sum(known) / len(known) if known else None

    top1 = sum(n * value for n, value in zip(counts, per_class, strict=True) if n) / sum(counts)
    return {
        'top1': top1, 'balanced': mean(range(len(counts))),
        **{group: mean(shots.groups[group]) for group in GROUPS}}


def _same(found: Any, expected: float | None) -> bool:
    if found is None or expected is None:
        return found is expected
    return math.isclose(found, expected, abs_tol=1e-6)


def headline(metrics: dict[str, Any]) -> dict[str, Any] | None:
    """Figures of the mean of the experts, or of a single one, which is what timm answers; None if there are none."""
    for expert in EXPERTS:
        figures = metrics.get(expert)
        if isinstance(figures, dict) and figures.get('top1') is not None:
            return figures
    return None


def better_figures(old: Any, new: dict[str, Any] | None) -> list[str]:
    """Words for each figure of an expert or the prediction, and a group, that is better in `old`, or missing in `new`.

    Args:
        old: Content of a published metrics.json, which may hold anything.
        new: The figures that would replace it.
    """
    found = []
    old = old if isinstance(old, dict) else {}
    rows = {expert: old.get(expert) for expert in EXPERTS}
    fusion, answer = old.get('fusion'), old.get('answer')
    if isinstance(fusion, dict) and isinstance(answer, str):
        rows['answer'] = fusion.get(answer)
    for expert, before in rows.items():
        now = figures_of(new or {}, expert)
        for key in ('top1', *GROUPS) if isinstance(before, dict) else ():
            was, is_now = before.get(key), now.get(key)
            if isinstance(was, (int, float)) and (is_now is None or was > is_now + 1e-9):
                found.append(f'{expert} {key} {was:.1f} %, here {"none" if is_now is None else f"{is_now:.1f} %"}')
    return found


def check_sample(model: 'Model', folder: str, size: int, places: dict[str, Any]) -> str:
    """Evaluate images drawn at random, and compare with the figures of the model.

    Args:
        model: The model to publish.
        folder: Its folder, for messages.
        size: Images to evaluate; all if there are fewer.
        places: Settings that say where the data is now, such as `data_dir`.

    Returns:
        Words that say what was compared, or why nothing was compared.

    Raises:
        ValueError: If an expert is further from its figures than chance explains, or the data of `places` is missing or
            is not the data of the figures.
    """
    metrics = model.metrics
    if metrics is None:
        return 'nothing was evaluated again, because there are no figures'
    settings = _settings(model, folder, places)
    asked = any(places.get(name) for name in ('data_dir', 'list_dir'))
    try:
        data = build_data(settings)
    except (FileNotFoundError, ValueError) as error:
        if asked:
            raise
        return f'nothing was evaluated again, because the data is not here ({error})'
    same = (
        data.evaluation is not None and not isinstance(data.evaluation, IterableDataset)
        and data.train.fingerprint == metrics['data']['fingerprint']
        and data.evaluated_on == metrics['data']['evaluated_on']
        and list(data.train.class_names) == metrics['data']['class_names'])
    if not same and asked:
        raise ValueError(
            f'The images that you gave are not those of the figures of {folder} '
            f'({metrics["data"]["evaluated_on"]} of {metrics["data"]["name"]}): give those, or leave the flag out.')
    if not same:
        return 'nothing was evaluated again, because the images here are not those of the figures'

    total = len(data.evaluation)
    chosen = torch.randperm(total, generator=torch.Generator().manual_seed(0))[:size].sort().values.tolist()
    device = torch.device(settings.machine.device)
    network = copy.deepcopy(model.network).to(device)
    reorder_classes(network, model.class_names, data.train.class_names, folder)
    fusions = choose_fusions(metrics.get('answer', 'mean'), EXPERTS)
    experts = (*fusions, *(expert for expert in EXPERTS if metrics.get(expert)))
    loader = build_eval_loader(settings, data.evaluation.subset(chosen), model.data_config, device)
    evaluator = ShotEvaluator(data.shots, experts=experts, device=device)
    measured = evaluate(network, loader, evaluator, autocast_of(settings.machine.precision, device), fusions=fusions)
    counts = evaluator.test_counts
    for expert in experts:
        stated = figures_of(metrics, expert)
        for group, labels in {'all classes': range(len(counts)), **data.shots.groups}.items():
            _compare(f'{expert} on {group}', labels, measured[expert], stated, counts, total, folder)
    return f'{len(chosen)} of {total} images evaluated again agree with the figures'


def _settings(model: 'Model', folder: str, places: dict[str, Any]) -> Settings:
    places = {name: value for name, value in places.items() if value is not None}
    if model.settings is not None:
        return run_settings({'args': model.settings}, places)
    dataset, tag = (model.metrics or {})['data']['name'], TAGS.get(str(model.config.get('benchmark')))
    config = {
        'architecture': model.network.pretrained_cfg['architecture'], 'model_args': {}, 'about': {},
        'pretrained_cfg': model.data_config}
    return settings_of_export(
        Path(folder), config, {'dataset': dataset, 'imbalance_factor': tag and tag.imbalance_factor, **places})


def _compare(
        what: str,
        labels: Sequence[int],
        measured: dict[str, Any],
        stated: Mapping[str, Any],
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
    left_out = 1 - sum(counts) / total  # with all images, nothing is left to chance
    allowed = _DEVIATIONS * math.sqrt(variance * left_out) + max(_OTHER_ANSWERS, _OTHER_PART * images)
    if abs(right - expected) > allowed:
        raise ValueError(
            f'The figures of {folder} are not those of its weights: {images} images were evaluated again, and {what} '
            f'has {right:.0f} right, but its figures say {expected:.0f} (± {allowed:.0f}). Measure it again: python '
            f'validate.py {folder}')
