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
    _need_matplotlib()
    from .run_page import write  # matplotlib takes a second to import: only who writes a page pays for it
    return write(Path(folder))


def write_study_report(
        folder: Path,
        name: str,
        arms: list[dict],
        results: list[dict],
        verdicts: list[dict],
        settings: dict,
        sweep: dict | None = None,
) -> Path:
    """Write report.html into the folder of a study's results, and its figures as plots/*.png.

    Args:
        folder: Folder of the study's results; it is made if it is not there.
        name: Name of the study.
        arms: 'name', 'label' and 'parent' (the arm that it goes on from, or None) of each arm.
        results: Contents of the files of results. Their 'arm' is that of this study, also where 'study' says that they
            are of another one; those of other arms are left out.
        verdicts: As `studies.table.verdicts` gives them.
        settings: What the arms have in common.
        sweep: None, or 'x', the title of an axis or 'teacher_view' (the teacher's accuracy on the student's images,
            which is read from the results), and 'levels': of each its 'label', 'x' (a number, or None where the levels
            have no scale) and 'arms': that of 'DeiT-LT' and, if there is one, that of a baseline by its name.

    Returns:
        The page.

    Raises:
        ValueError: If matplotlib is not installed.
    """
    _need_matplotlib()
    from .study_page import write
    return write(Path(folder), name, arms, results, verdicts, settings, sweep)


def _need_matplotlib() -> None:
    if not find_spec('matplotlib'):
        raise ValueError("The report needs matplotlib: pip install matplotlib.")
