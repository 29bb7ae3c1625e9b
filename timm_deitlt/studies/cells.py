"""The cells of a study. A cell is one training, and has one file of results."""
import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..settings.groups import NOT_TRAINED
from ..settings.layers import args_to_yaml, load_recipe, model_kind, recipes_for, resolve
from .study import Study, load_study

# every fusion is measured, whichever is the answer
_NOT_COMPARED = NOT_TRAINED | {'fusion'}


@dataclass(frozen=True, order=True)
class Cell:
    """One training of an arm.

    Attributes:
        subset: Seed of the images (`--split-seed`).
        seed: Seed of teacher, initialisation, order and augmentation (`--seed`).
        arm: Name of the arm.
    """
    subset: int
    seed: int
    arm: str

    @property
    def name(self) -> str:
        """Name of its file and its run."""
        return f'{self.arm}-subset{self.subset}-seed{self.seed}'


def cell_path(root: Path, study: Study, cell: Cell) -> Path:
    """Path of the file of results of a cell. The results of another study's arm lie in the folder of that study."""
    folder, arm = study.arms[cell.arm].origin or (study.name, cell.arm)
    return Path(root) / folder / f'{Cell(cell.subset, cell.seed, arm).name}.json'


def plan(
        study: Study,
        root: Path,
        arms: Sequence[str],
        seeds: Sequence[int],
        subsets: Sequence[int],
) -> list[Cell]:
    """Cells that have no file of results yet, in order of subset, seed and arm.

    Arms of another study are left out, because that study trains them.

    Raises:
        ValueError: If an arm is unknown.
    """
    if unknown := [arm for arm in arms if arm not in study.arms]:
        raise ValueError(f'There is no arm {", ".join(unknown)}: the study has {", ".join(study.arms)}.')
    ours = [name for name, arm in study.arms.items() if name in arms and not arm.origin]
    cells = [Cell(subset, seed, arm) for subset in subsets for seed in seeds for arm in ours]
    return [cell for cell in cells if not cell_path(root, study, cell).is_file()]


def read_results(root: Path, study: Study) -> dict[Cell, dict[str, Any]]:
    """Results of all cells that have a file; for an arm of another study, only subset 0 and the seeds of this study.

    Raises:
        ValueError: If a file is damaged, or was made with other settings than the study has.
    """
    results, resolved = {}, {}
    origins = {arm.origin[0] for arm in study.arms.values() if arm.origin}
    others = {folder: read_results(root, load_study(folder)) for folder in origins}
    for name, arm in study.arms.items():
        if arm.origin:
            folder, theirs = arm.origin
            results.update({
                Cell(cell.subset, cell.seed, name): result for cell, result in others[folder].items()
                if cell.arm == theirs and cell.seed in study.seeds and not cell.subset})
    for path in sorted((Path(root) / study.name).glob('*.json')):
        try:
            result = json.loads(path.read_text())
            cell = Cell(result['subset'], result['seed'], result['arm'])
            if missing := {'settings', 'resolved', 'metrics', 'fusion', 'analysis', 'curve', 'versions'} - set(result):
                raise KeyError(', '.join(sorted(missing)))
            if path.stem != cell.name:
                raise ValueError(f'it holds the results of {cell.name}')
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f'{path} is damaged ({error!r}): delete it to run the cell again.') from error
        if cell.arm not in study.arms:
            continue  # the study no longer has this arm
        if cell.arm not in resolved:  # once, as this takes a tenth of a second
            resolved[cell.arm] = resolved_settings(cell_args(study, cell))
        ours = {**resolved[cell.arm], 'seed': cell.seed, 'split_seed': cell.subset}
        _check_settings(study, cell, ours, result, path)
        results[cell] = result
    return results


def _check_settings(
        study: Study, cell: Cell, resolved: Mapping[str, Any], result: Mapping[str, Any], path: Path) -> None:
    """Refuse a result that was made with other settings than the study and its recipes have now."""
    wanted = cell_settings(study, cell)
    wrong = {name for name in wanted.keys() - _NOT_COMPARED if result['settings'].get(name) != wanted[name]}
    if not wrong:
        ours, theirs = on_one_device(resolved), on_one_device(result['resolved'])
        wrong = {name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name]}
    if wrong:
        raise ValueError(
            f'{path} was run with other settings than the study has ({", ".join(sorted(wrong))}): delete it and its '
            'run in --work to run it again, or give the study another name.')


def on_one_device(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in which only the number of images of an update counts, not by which flags it came about."""
    settings = dict(resolved)
    size, steps = settings.pop('global_batch_size', None), settings.pop('grad_accum_steps', 1)
    return {**settings, 'images of an update': size or settings['batch_size'] * steps}


def cell_args(study: Study, cell: Cell, more: Mapping[str, Any] | None = None) -> argparse.Namespace:
    """All settings of a cell: those of its recipes, of the study and of its arm, and `more`.

    Raises:
        ValueError: If a setting is unknown or not allowed, or there is no data set.
    """
    settings = {**cell_settings(study, cell), **(more or {})}
    if 'dataset' not in settings:
        raise ValueError(f'The study {study.name} names no data set: add dataset: NAME to its settings.')
    kind = model_kind(settings.get('model', ''))
    recipes = recipes_for(settings['dataset'], kind)
    if study.recipe and kind == 'student':
        recipes = [*(load_recipe(study.recipe).base or recipes), study.recipe]
    return resolve(settings, recipes, prog=f'{study.name} {cell.arm}')


def resolved_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that decide what a training results in, as plain values."""
    return {name: value for name, value in yaml.safe_load(args_to_yaml(args)).items() if name not in _NOT_COMPARED}


def cell_settings(study: Study, cell: Cell) -> dict[str, Any]:
    """Settings that the study, its arm and the seeds give a cell."""
    return {
        **study.settings, **study.arms[cell.arm].settings, 'seed': cell.seed, 'split_seed': cell.subset}
