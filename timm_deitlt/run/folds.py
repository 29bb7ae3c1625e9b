"""K-fold evaluation: a run for each fold, with a teacher of its own, and one table over all of them."""
import argparse
import copy
import gc
import json
import logging
import statistics
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from timm.utils.distributed import world_info_from_env

from ..benchmarks import BENCHMARKS
from ..evaluation import Shots
from ..settings.checks import validate_args
from ..settings.groups import NOT_TRAINED
from ..settings.layers import args_to_yaml
from ..utils.files import write_text
from ..utils.tables import text_table
from ..utils.words import first_of
from .results import EXPERTS
from .settings import say_what_folds_leave_out
from .train import train

_logger = logging.getLogger(__name__)

FOLDS = 'folds.json'
_COLUMNS = {'top1': 'overall', 'head': 'head', 'mid': 'mid', 'tail': 'tail', 'balanced': 'balanced'}
# Settings that a run works out by itself, and the one that tells the folds apart
_FOUND = {'val_fraction', 'mean', 'std', 'fold'}


def train_folds(args: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate the folds of `--folds`, or the one of `--fold`, in OUTPUT/EXPERIMENT/fold-0 and so on.

    A finished fold is kept and an interrupted one is resumed, so the same command can be given again. Each fold has its
    own teacher, trained only on the training images of that fold.

    Returns:
        With `--dry-run`, what `train` returns. If all folds are finished, the content of folds.json: the result of
        `summarize_folds`, and the folders of the folds under 'runs'. Otherwise the metrics of the fold of `--fold`.

    Raises:
        ValueError: As `train`. Also if a finished fold was trained with other settings or on other images, or if
            several devices are to train all folds.
    """
    validate_args(args)
    say_what_folds_leave_out(args)
    if args.dry_run:
        return train(args)
    if args.fold is None and world_info_from_env()[2] > 1:
        raise ValueError(  # torchrun's processes meet once
            f'Several devices train one fold a command: give --fold 0, then 1, ... to {args.folds - 1} with the same '
            '--experiment; the last one prints the table.')
    name = args.experiment or datetime.now().strftime(f'%Y%m%d-%H%M%S-{args.folds}-folds')
    root = Path(args.output) / name
    for fold in range(args.folds) if args.fold is None else (args.fold,):
        if _finished(root / f'fold-{fold}', args) is None:
            _logger.info(f'Fold {fold} (counted from 0) of {args.folds}, in {root / f"fold-{fold}"}')
            torch.compiler.reset()  # each fold has a new model; without this the later ones would run uncompiled
            gc.collect()
            train(_of_fold(args, fold, root))
    results = [_finished(root / f'fold-{fold}', args) for fold in range(args.folds)]
    missing = [fold for fold, result in enumerate(results) if result is None]
    if missing:
        _logger.info(f'Folds not finished yet: {", ".join(map(str, missing))}. The table follows with the last one.')
        return results[args.fold]
    benchmark = BENCHMARKS.get(args.dataset)
    finished = [result for result in results if result is not None]
    summary = summarize_folds(finished, benchmark.shot_boundaries if benchmark else None)
    summary['runs'] = [str(root / f'fold-{fold}') for fold in range(args.folds)]
    if world_info_from_env()[1] == 0:
        write_text(root / FOLDS, json.dumps(summary, indent=2) + '\n')
    _logger.info(f'\n{folds_table(summary)}\nEverything is in {root}')
    return summary


def _of_fold(args: argparse.Namespace, fold: int, root: Path) -> argparse.Namespace:
    args = copy.deepcopy(args)
    args.fold, args.output, args.experiment, args.resume = fold, str(root), f'fold-{fold}', 'auto'
    return args


def _finished(folder: Path, args: argparse.Namespace) -> dict[str, Any] | None:
    """Metrics of a fold that was trained to the end with these settings, or None if it was not finished."""
    if not (folder / 'metrics.json').is_file():
        return None
    metrics = json.loads((folder / 'metrics.json').read_text())
    if (metrics.get('epochs_trained') or 0) < min(args.stop_epoch or metrics['epochs'], metrics['epochs']):
        return None
    before = yaml.safe_load((folder / 'args.yaml').read_text())
    now = yaml.safe_load(args_to_yaml(args))
    changed = [name for name in now if name in before and before[name] != now[name]]
    if changed := sorted(set(changed) - NOT_TRAINED - _FOUND):
        raise ValueError(
            f'{folder} was trained with other settings ({", ".join(changed)}): give them as they were, or another '
            '--experiment.')
    if not metrics.get('mean'):
        raise ValueError(f'{folder} was not evaluated: delete it to train this fold again.')
    return metrics


def summarize_folds(
        results: Sequence[Mapping[str, Any]],
        boundaries: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Accuracies of every expert over the folds.

    Args:
        results: metrics.json of each fold.
        boundaries: First mid and first tail class, see `Shots`. The groups follow from the counts of all images, so
            they are the same in every fold.

    Returns:
        Under 'experts', for each expert and column: 'mean' and 'std' over the 'n' folds that have a value, and
        'pooled', the accuracy over the images of all folds together. 'std' is the sample standard deviation, or None
        for one fold. Under 'per_class', for each expert the pooled accuracy by class name. Under 'answer', the
        fusion by which the folds predict, or None for the mean of the logits.

    Raises:
        ValueError: If the folds do not split the same images.
    """
    names = results[0]['data']['class_names']
    counts = [
        [a + b for a, b in zip(result['data']['train_counts'], result['data']['test_counts'], strict=True)]
        for result in results]
    if any(result['data']['class_names'] != names for result in results) or any(x != counts[0] for x in counts):
        raise ValueError('The images changed between the folds: train all folds again, in another --experiment.')
    shots = Shots.of_benchmark(counts[0], boundaries)
    tests = [r['data']['test_counts'] for r in results]
    total = [sum(column) for column in zip(*tests, strict=True)]
    summary: dict[str, Any] = {
        'folds': len(results), 'images': sum(total), 'rule': shots.rule, 'answer': results[0].get('answer'),
        'experts': {}, 'per_class': {},
        'not_evaluated': [name for name, count in zip(names, total, strict=True) if not count]}
    # the answer first, if that is a fusion
    measured = [{**result.get('fusion', {}), **{name: result.get(name) for name in EXPERTS}} for result in results]
    for expert in [name for name in measured[0] if all(metrics.get(name) for metrics in measured)]:
        correct = [_correct(metrics[expert]['per_class'], test) for metrics, test in zip(measured, tests, strict=True)]
        pooled = [sum(column) for column in zip(*correct, strict=True)]
        by_fold = [_columns(right, test, shots) for right, test in zip(correct, tests, strict=True)]
        over_all = _columns(pooled, total, shots)
        summary['experts'][expert] = {
            column: {**_spread([values[column] for values in by_fold]), 'pooled': over_all[column]}
            for column in _COLUMNS}
        summary['per_class'][expert] = {
            name: 100 * right / count if count else None
            for name, right, count in zip(names, pooled, total, strict=True)}
    return summary


def _correct(per_class: Sequence[float | None], test_counts: Sequence[int]) -> list[int]:
    return [round((value or 0) * count / 100) for value, count in zip(per_class, test_counts, strict=True)]


def _columns(correct: Sequence[int], counts: Sequence[int], shots: Shots) -> dict[str, float | None]:
    def over_classes(labels: Sequence[int]) -> float | None:
        known = [100 * correct[label] / counts[label] for label in labels if counts[label]]
        return statistics.fmean(known) if known else None

    groups = {group: over_classes(labels) for group, labels in shots.groups.items()}
    return {'top1': 100 * sum(correct) / sum(counts), **groups, 'balanced': over_classes(shots.order)}


def _spread(values: Sequence[float | None]) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    return {
        'mean': statistics.fmean(known) if known else None,
        'std': statistics.stdev(known) if len(known) > 1 else None,
        'n': len(known),
    }


def folds_table(summary: Mapping[str, Any]) -> str:
    """`summarize_folds` as a plain-text table."""
    table = [['', *_COLUMNS.values()]]
    for expert, columns in summary['experts'].items():
        table.append([expert, *(_cell(columns[column]) for column in _COLUMNS)])
        table.append([f'{expert}, all images', *(_number(columns[column]['pooled']) for column in _COLUMNS)])
    lines = [
        text_table(table),
        f'mean and standard deviation over {summary["folds"]} folds; in the rows "all images", accuracy over all '
        f'{summary["images"]:,} images together',
        f'groups: {summary["rule"]}']
    if summary['answer']:
        lines.append(f'prediction: {summary["answer"]}')
    if missing := summary['not_evaluated']:
        lines.append(f'never evaluated, because the class has only one image: {first_of(missing)}')
    return '\n'.join(lines)


def _cell(column: Mapping[str, Any]) -> str:
    return _number(column['mean']) + ('' if column['std'] is None else f' ± {column["std"]:.1f}')


def _number(value: float | None) -> str:
    return '-' if value is None else f'{value:.1f}'
