"""The command ablate.py: train a study, judge its claims, write its page, and print its table."""
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..report import write_study_report
from ..utils.files import read_json, write_text
from .cells import Cell, plan, read_results
from .study import Study, load_study
from .table import format_study, verdicts

_logger = logging.getLogger(__name__)


def ablate(
        study: str,
        arms: Sequence[str] | None,
        seeds: Sequence[int] | None,
        subsets: Sequence[int],
        data_dir: str | None,
        results: Path,
        work: Path,
        jobs: int,
        table: bool,
        readme: Path | None = None,
) -> dict[str, Any]:
    """Train the cells that have no file of results yet, then write verdicts and page, and print the table.

    Args:
        study: Name of a packaged study, or a YAML file.
        arms: Arms to train; all if None.
        seeds: Seeds of the runs; the study's own if None.
        subsets: Seeds of the images.
        data_dir: Where the data set is.
        results: Folder of results.
        work: Folder of runs and teachers.
        jobs: Number of trainings at a time.
        table: Whether to train nothing, and only print the table.
        readme: A file with the lines `<!-- study NAME -->` and `<!-- end NAME -->`, between which the table is put.

    Returns:
        The verdicts, the cells that have results, and those that failed.

    Raises:
        ValueError: If the study, an arm or a file of results is not usable, or the readme has no place for the table.
        FileNotFoundError: If there is no such study.
    """
    asked = load_study(study)
    if jobs < 1:
        raise ValueError(f'--jobs must be 1 or more, got {jobs}')
    # fail now, not after hours of training
    read_results(results, asked)
    if readme:
        with_table(readme.read_text(encoding='utf-8'), asked.name, '')
    failed = []
    if not table:
        from .train_cells import check_cells, train_cells  # a slow import that the table does not need
        cells = plan(asked, results, arms or list(asked.arms), seeds or asked.seeds, subsets)
        places = {'data_dir': data_dir} if data_dir else {}
        check_cells(asked, cells, places)
        _logger.info(f'{len(cells)} trainings will run, {jobs} at a time, in {work / asked.name}.')
        failed = train_cells(asked, cells, results, work, places, jobs)
    return _report(asked, results, failed, readme)


def _report(asked: Study, results: Path, failed: Sequence[tuple[Cell, str]], readme: Path | None) -> dict[str, Any]:
    """Write verdicts, page and table of the cells that have results."""
    found = read_results(results, asked)
    judged = verdicts(asked, found, results.name)
    text = format_study(asked, found)
    if failed:
        text += '\n\nFailed: ' + '; '.join(f'`{cell.name}` ({reason})' for cell, reason in failed) + '.'
    if found:
        add_verdicts(results / 'verdicts.json', asked.name, judged)
        _write_page(asked, results / asked.name, found, judged)
    if readme:
        write_text(readme, with_table(readme.read_text(encoding='utf-8'), asked.name, format_study(asked, found)))
    _logger.info('\n' + text)
    return {
        'study': asked.name, 'cells': [cell.name for cell in sorted(found)],
        'failed': {cell.name: reason for cell, reason in failed},
        'verdicts': {verdict['claim']: verdict['verdict'] for verdict in judged}}


def _write_page(study: Study, folder: Path, found: Mapping[Cell, Any], judged: list[dict[str, Any]]) -> None:
    arms = [dict(name=arm.name, label=arm.label, parent=arm.parent) for arm in study.arms.values()]
    results = [{**result, 'arm': cell.arm} for cell, result in found.items()]
    try:
        sweep = None if study.sweep is None else dict(study.sweep)
        recipe = {'recipe': study.recipe} if study.recipe else {}
        page = write_study_report(folder, study.name, arms, results, judged, {**recipe, **study.settings}, sweep)
        _logger.info(f'Report: {page}')
    except Exception as error:  # the table says the same, and must still be printed
        _logger.warning(f'The page was not written ({type(error).__name__}: {error}): --table tries it again.')


def add_verdicts(path: Path, study: str, judged: list[dict[str, Any]]) -> None:
    """Put the verdicts of a study into verdicts.json, beside those of the others."""
    write_text(path, json.dumps({**read_json(path), study: judged}, indent=1, sort_keys=True) + '\n')


def with_table(readme: str, study: str, table: str) -> str:
    """The text with a new table between the two lines that mark the place of the study's table.

    Raises:
        ValueError: If the text lacks one of these lines.
    """
    start, end = f'<!-- study {study} -->\n', f'<!-- end {study} -->\n'
    before, found, rest = readme.partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f'The file has no place for the table: add the two lines {start.strip()} and {end.strip()}.')
    return f'{before}{start}{table}\n{end}{after}'
