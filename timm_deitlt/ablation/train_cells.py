"""Training the cells of a study, several at a time; every finished one is a file."""
import json
import logging
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import write_text
from ..config import model_kind, recipes_for, resolve
from ..mechanisms import analyze
from ..run import train
from ..validation import validate
from .cells import Cell, cell_path, cell_settings
from .study import Study

_logger = logging.getLogger(__name__)


def train_cells(
        study: Study,
        cells: Sequence[Cell],
        root: Path,
        work: Path,
        places: Mapping[str, Any],
        jobs: int,
) -> list[tuple[Cell, str]]:
    """Train cells in processes of their own; those that share a first stage one after the other in one of them.

    Args:
        study: The study.
        cells: What to train, see `plan`.
        root: Folder of results.
        work: Folder of runs and teachers, kept for going on later.
        places: Settings that say where the data is, such as `data_dir`.
        jobs: Processes; the cores are shared among them.

    Returns:
        Cells that failed, with the reason.
    """
    groups: dict[tuple[int, int, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.subset, cell.seed, study.arms[cell.arm].parent or cell.arm), []).append(cell)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    os.environ['OMP_NUM_THREADS'] = str(threads)  # of the processes, which read it when they start
    failed = []
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context('spawn')) as pool:
        futures = {
            pool.submit(_train_group, study, group, root, work, dict(places), threads): group
            for group in groups.values()}
        try:
            for future in as_completed(futures):
                failed += future.result()
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failed


def _train_group(
        study: Study,
        cells: Sequence[Cell],
        root: Path,
        work: Path,
        places: Mapping[str, Any],
        threads: int,
) -> list[tuple[Cell, str]]:
    torch.set_num_threads(threads)
    logging.basicConfig(level=logging.WARNING, format='%(message)s')
    failed = []
    for cell in cells:
        torch.compiler.reset()  # each has a model of its own: else the later ones would run uncompiled
        try:
            train_cell(study, cell, root, work, places)
        except Exception as error:  # a cell that fails is reported, and the others go on
            failed.append((cell, ' '.join(f'{type(error).__name__}: {error}'.split())))
    return failed


def train_cell(study: Study, cell: Cell, root: Path, work: Path, places: Mapping[str, Any]) -> dict[str, Any]:
    """Train one cell, or go on with it, measure its mechanisms, and write its file."""
    parent = study.arms[cell.arm].parent
    milestone = None
    if parent:
        milestone = _milestone(study, Cell(cell.subset, cell.seed, parent), work, places)
    args = _args(study, cell, work, places)
    folder = Path(args.output) / args.experiment
    if (folder / 'last.pth.tar').is_file():
        args.resume = 'auto'
    elif milestone:
        args.branch_from = str(milestone)
    metrics = train(args)
    result = {
        'study': study.name, 'arm': cell.arm, 'label': study.arms[cell.arm].label, 'subset': cell.subset,
        'seed': cell.seed, 'settings': cell_settings(study, cell),
        'metrics': _without_places(metrics),
        'fusion': validate(str(folder), {}, 'all')['fusion'],
        'analysis': analyze(str(folder), {}),
        'curve': (folder / 'summary.csv').read_text().splitlines(),
        'threads': torch.get_num_threads(), 'versions': metrics['versions'],
    }
    path = cell_path(root, study, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(result, indent=1) + '\n')
    return result


def _without_places(metrics: Mapping[str, Any]) -> dict[str, Any]:
    metrics = {name: figures for name, figures in metrics.items() if name != 'versions'}
    if metrics['teacher']:
        metrics['teacher'] = {name: figure for name, figure in metrics['teacher'].items() if name != 'path'}
    return metrics


def _args(study: Study, cell: Cell, work: Path, places: Mapping[str, Any]) -> Any:
    settings = {
        **cell_settings(study, cell), **places, 'output': str(work / study.name), 'experiment': cell.name,
        'teacher_cache': str(work), 'report': False}
    return resolve(settings, recipes_for(settings['dataset'], model_kind(settings['model'])), prog=study.name)


def _milestone(study: Study, parent: Cell, work: Path, places: Mapping[str, Any]) -> Path:
    """Milestone of a cell at the start of stage two; it is trained that far if the runs of its file are gone."""
    args = _args(study, parent, work, places)
    path = Path(args.output) / args.experiment / f'milestone-{args.drw_start_epoch}.pth.tar'
    if not path.is_file():
        args.stop_epoch = args.drw_start_epoch
        if (path.parent / 'last.pth.tar').is_file():
            args.resume = 'auto'
        train(args)
    return path
