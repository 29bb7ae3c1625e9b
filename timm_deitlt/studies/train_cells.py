"""Train the cells of a study, several at a time. Every finished cell writes its file of results."""
import json
import logging
import multiprocessing
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, cast

import torch
from filelock import AcquireReturnProxy, FileLock, Timeout

from ..engine.checkpoint import LAST, load_checkpoint
from ..engine.device import cores
from ..engine.run_folder import seconds_of
from ..run.build.data import build_data
from ..run.build.model import check_student
from ..run.finish import has_mechanisms
from ..run.mechanisms import analyze
from ..run.settings import drw_start, resolve_settings
from ..run.teacher_cache import RECORD
from ..run.teacher_settings import teacher_settings
from ..run.train import train
from ..run.validate import validate
from ..settings.checks import validate_args
from ..settings.layers import with_defaults
from ..utils.files import read_rows, write_text
from .cells import Cell, cell_args, cell_path, cell_settings, on_one_device, resolved_settings
from .study import Study

_logger = logging.getLogger(__name__)

Failures = list[tuple[Cell, str]]


def train_cells(
        study: Study,
        cells: Sequence[Cell],
        root: Path,
        work: Path,
        places: Mapping[str, Any],
        jobs: int,
) -> Failures:
    """Train cells in separate processes. Cells that share a first stage run one after the other in the same process.

    Args:
        study: The study.
        cells: What to train, see `plan`.
        root: Folder of results.
        work: Folder of runs and teachers. It is kept, so that training can continue later.
        places: Settings that say where the data is, such as `data_dir`.
        jobs: Number of processes; they share the cores.

    Returns:
        Cells that failed, with the reason.
    """
    groups: dict[tuple[int, int, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.subset, cell.seed, study.arms[cell.arm].parent or cell.arm), []).append(cell)
    threads = max(1, cores() // jobs)
    os.environ['OMP_NUM_THREADS'] = str(threads)  # the processes read it when they start
    failed: Failures = []
    spawn = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_end_with_parent) as pool:
        futures = {
            pool.submit(_train_group, study, group, root, work, dict(places), threads): group
            for group in groups.values()}
        try:
            for future in as_completed(futures):
                try:
                    failed += future.result()
                except BrokenProcessPool as error:
                    failed += [
                        (cell, f'its process died, perhaps for lack of memory ({error})') for cell in futures[future]
                        if not cell_path(root, study, cell).is_file()]
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failed


def check_cells(study: Study, cells: Sequence[Cell], places: Mapping[str, Any]) -> None:
    """Find the errors of all cells before the first one is trained.

    Raises:
        ValueError: If a setting is not allowed, or the data is not usable.
        FileNotFoundError: If the data, or a file that a setting names, is missing.
    """
    data = {}
    for cell in cells:
        args = cell_args(study, cell, places)
        validate_args(args)
        settings = resolve_settings(args, planned=True)
        chosen = (args.dataset, args.split_seed)
        if chosen not in data:
            data[chosen] = build_data(settings)
        train = data[chosen].train
        check_student(settings, train.num_classes, train.class_counts)
        if settings.teacher.is_network:
            teacher_settings(settings, len(train), planned=True)


def _end_with_parent() -> None:
    def wait() -> None:
        cast(Any, multiprocessing.parent_process()).join()
        os._exit(1)  # a worker that outlived its parent would write into folders that the next start continues

    threading.Thread(target=wait, daemon=True).start()


def _train_group(
        study: Study,
        cells: Sequence[Cell],
        root: Path,
        work: Path,
        places: Mapping[str, Any],
        threads: int,
) -> Failures:
    torch.set_num_threads(threads)
    logging.basicConfig(level=logging.WARNING, format='%(message)s')
    failed = []
    for cell in cells:
        torch.compiler.reset()  # each cell has a new model; without this the later ones would run uncompiled
        try:
            train_cell(study, cell, root, work, places)
        except Exception as error:  # a cell that fails is reported, and the others are trained
            failed.append((cell, ' '.join(f'{type(error).__name__}: {error}'.split())))
    return failed


def train_cell(study: Study, cell: Cell, root: Path, work: Path, places: Mapping[str, Any]) -> dict[str, Any]:
    """Train one cell, or continue its run, measure its mechanisms, and write its file of results.

    Raises:
        ValueError: If its folder holds a run with other settings, or another process trains it.
    """
    parent = study.arms[cell.arm].parent
    milestone = None
    if parent:
        milestone = _milestone(study, Cell(cell.subset, cell.seed, parent), work, places)
    args = _args(study, cell, work, places)
    resolved = resolved_settings(args)
    folder = Path(args.output) / args.experiment
    with _locked(folder):
        if _has_run(folder / LAST, args):
            args.resume = 'auto'
        elif milestone:
            args.branch_from = str(milestone)
        metrics = train(args)
        result = {
            'study': study.name, 'arm': cell.arm, 'label': study.arms[cell.arm].label, 'subset': cell.subset,
            'seed': cell.seed, 'settings': cell_settings(study, cell), 'resolved': resolved,
            'teacher_settings': _teacher_settings(metrics),
            'metrics': {**_without_places(metrics), 'seconds': round(seconds_of(read_rows(folder / 'summary.csv')), 1)},
            'fusion': validate(str(folder), {}, 'all').get('fusion', {}),
            'analysis': analyze(str(folder), {}) if has_mechanisms(folder) else None,
            'curve': (folder / 'summary.csv').read_text().splitlines(),
            'threads': torch.get_num_threads(), 'versions': metrics['versions'],
        }
    path = cell_path(root, study, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(result, indent=1) + '\n')
    return result


def _locked(folder: Path) -> AcquireReturnProxy:
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / '.lock')
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f'Another process is training {folder}: wait for it, or give another --work.') from None


def _has_run(checkpoint: Path, args: Any) -> bool:
    """Whether there is a checkpoint to continue from.

    Raises:
        ValueError: If its run had other settings.
    """
    if not checkpoint.is_file():
        return False
    before = with_defaults(load_checkpoint(checkpoint)['args'])
    ours, theirs = (on_one_device(resolved_settings(each)) for each in (args, before))
    if ours['val_fraction'] is None:
        del ours['val_fraction']  # the run has worked it out by itself
    if wrong := sorted(name for name, value in ours.items() if value != theirs[name]):
        raise ValueError(
            f'{checkpoint} was trained with other settings than the study now has ({", ".join(wrong)}): delete '
            f'{checkpoint.parent} to train it again, or give another --work.')
    return True


def _without_places(metrics: Mapping[str, Any]) -> dict[str, Any]:
    metrics = {name: figures for name, figures in metrics.items() if name not in ('versions', 'confusion')}
    if metrics['teacher']:
        metrics['teacher'] = {name: figure for name, figure in metrics['teacher'].items() if name != 'path'}
    return metrics


def _teacher_settings(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    record = Path((metrics['teacher'] or {}).get('path', '')).parent / RECORD
    return json.loads(record.read_text())['settings'] if metrics['teacher'] and record.is_file() else None


def _args(study: Study, cell: Cell, work: Path, places: Mapping[str, Any]) -> Any:
    return cell_args(study, cell, {
        **places, 'output': str(work / study.name), 'experiment': cell.name, 'teacher_cache': str(work),
        'report': False})


def _milestone(study: Study, parent: Cell, work: Path, places: Mapping[str, Any]) -> Path:
    """Milestone of a cell at the start of stage two. If its run was deleted, the cell is trained again up to there."""
    args = _args(study, parent, work, places)
    start = drw_start(args)
    path = Path(args.output) / args.experiment / f'milestone-{start}.pth.tar'
    if not _has_run(path, args):
        with _locked(path.parent):
            args.stop_epoch = start
            if _has_run(path.parent / LAST, args):
                args.resume = 'auto'
            train(args)
    return path
