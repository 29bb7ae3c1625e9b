"""After the last epoch: measure the mechanisms, look for known failures, and write the report."""
import json
import logging
import shutil
from pathlib import Path

from ..evaluation.signatures import failure_signatures
from ..report import write_report
from ..settings.layers import model_kind
from ..utils.files import read_json, read_rows, write_text
from .mechanisms import analyze

_logger = logging.getLogger(__name__)

# Files that are made from the last weights, beside metrics.json
FINDINGS = ('analysis.json', 'attention.npz', 'tail_images.npz', 'signatures.json', 'report.html')
PLOTS = 'plots'


def discard_findings(folder: Path) -> None:
    """Remove the findings of an earlier part of the run: they describe weights that training will change."""
    for name in FINDINGS:
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / PLOTS, ignore_errors=True)


def has_mechanisms(folder: Path, split: str | None = None) -> bool:
    """Whether the mechanisms of a run can be measured: it trained a ViT, and evaluated it or has a `split` for that."""
    metrics = read_json(folder / 'metrics.json')
    return bool(split or metrics.get('mean')) and model_kind(metrics['model']) == 'student'


def finish_run(folder: Path, device: str | None = None) -> None:
    """Measure, check and describe a finished run. A failure here is only a warning; the run stays as it is.

    Args:
        folder: Folder of the run.
        device: Device to measure on.
    """
    if has_mechanisms(folder):
        try:
            analyze(str(folder), {'device': device})
        except Exception as error:
            _warn('The mechanisms were not measured', error)
    check_run(folder)
    describe_run(folder)


def check_run(folder: Path) -> None:
    """Look for known failures, log them, and save them as signatures.json."""
    try:
        signatures = failure_signatures(
            read_json(folder / 'metrics.json'), read_rows(folder / 'summary.csv'),
            read_json(folder / 'analysis.json'))
        for found in signatures:
            _logger.warning(f'{found["name"].replace("_", " ")}: {found["message"]}\n    {found["suggestion"]}')
        write_text(folder / 'signatures.json', json.dumps(signatures, indent=2) + '\n')
    except Exception as error:
        _warn('The run was not checked for known failures', error)


def describe_run(folder: Path) -> None:
    """Write report.html and plots/."""
    try:
        _logger.info(f'Report: {write_report(folder)}')
    except Exception as error:
        _warn('The report was not written', error)


def _warn(what: str, error: Exception) -> None:
    _logger.warning(f'{what} ({type(error).__name__}: {" ".join(str(error).split())}): analyze.py RUN tries it again.')
