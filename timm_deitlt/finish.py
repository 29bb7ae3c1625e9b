"""What follows the last epoch: the mechanisms are measured, known failures looked for, the page is written."""
import csv
import json
import logging
from pathlib import Path
from typing import Any

from .checkpoint import write_text
from .config import model_kind
from .mechanisms import analyze
from .report import write_report
from .signatures import failure_signatures

_logger = logging.getLogger(__name__)


def finish_run(folder: Path, device: str | None = None) -> None:
    """Measure, check and describe a finished run; whatever fails here is a warning, and the run stays as it is.

    Args:
        folder: Folder of the run.
        device: Where to measure.
    """
    metrics = json.loads((folder / 'metrics.json').read_text())
    if metrics['mean'] and model_kind(metrics['model']) == 'student':
        try:
            analyze(str(folder), {'device': device})
        except Exception as error:
            _warn('The mechanisms were not measured', error, 'analyze.py RUN measures them')
    try:
        _logger.info(f'Report: {describe_run(folder)}')
    except Exception as error:
        _warn('The report was not written', error, 'analyze.py RUN writes it')


def describe_run(folder: Path) -> Path:
    """Look for known failures, print and keep them as signatures.json, and write report.html and plots/.

    Returns:
        The page.

    Raises:
        FileNotFoundError: If the folder holds no finished run.
        ValueError: If a file cannot be read, or matplotlib is not installed.
    """
    signatures = failure_signatures(
        _read_json(folder / 'metrics.json') or {}, _read_rows(folder / 'summary.csv'),
        _read_json(folder / 'analysis.json'))
    for found in signatures:
        _logger.warning(f'{found["name"].replace("_", " ")}: {found["message"]}\n    {found["suggestion"]}')
    write_text(folder / 'signatures.json', json.dumps(signatures, indent=2) + '\n')
    return write_report(folder)


def _warn(what: str, error: Exception, how: str) -> None:
    _logger.warning(f'{what} ({type(error).__name__}: {" ".join(str(error).split())}): {how}.')


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None


def _read_rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with open(path, newline='') as file:
        return list(csv.DictReader(file))
