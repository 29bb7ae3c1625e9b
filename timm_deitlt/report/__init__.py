"""Plots and a self-contained HTML page of a run, and of a study."""
from importlib.util import find_spec
from pathlib import Path

__all__ = ['write_report', 'write_study_report']


def write_report(folder: Path) -> Path:
    """Write report.html into the folder of a run, and its figures as plots/*.png.

    Only files of the folder are read: args.yaml, summary.csv, metrics.json, versions.json, signatures.json and, from
    analyze.py, analysis.json and attention.npz. What is missing is left out, with a line that says how to get it. The
    page needs no network and no JavaScript; the same files give the same bytes.

    Returns:
        The page.

    Raises:
        FileNotFoundError: If the folder is missing or holds nothing of a run.
        ValueError: If a file cannot be read, or matplotlib is not installed.
    """
    if not find_spec('matplotlib'):
        raise ValueError("The report needs matplotlib: pip install 'timm_deitlt[report]'.")
    from .run_page import write  # matplotlib takes a second to import: only who writes a page pays for it
    return write(Path(folder))
