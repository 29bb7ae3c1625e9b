"""Pages and plots of a run and of a study, written from their files alone.

The pages are Jinja templates (`*.jinja`), their figures matplotlib's. A page is one file without scripts that loads
nothing. It imports `evaluation`, `settings` and `utils`.
"""
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ['write_report', 'write_study_report']

# matplotlib and Jinja take a second to import, so only a page that is written imports them


def write_report(folder: Path) -> Path:
    """Write report.html into the folder of a run, and its figures as plots/*.png.

    Only files of the folder are read: args.yaml, summary.csv, metrics.json, versions.json, signatures.json and, from
    analyze.py, analysis.json, attention.npz and tail_images.npz. What is missing is left out, and the page says how to
    get it. The same files give the same bytes.

    Returns:
        The page.

    Raises:
        FileNotFoundError: If the folder is missing or is not that of a run.
        ValueError: If a file cannot be read.
    """
    from . import run_analysis, run_plots
    from .look import write_page
    from .run import Run, page_values
    run = Run(Path(folder))
    figures = (*run_plots.FIGURES, *run_analysis.FIGURES)
    return write_page(Path(folder), 'run.html.jinja', figures, run, **page_values(run))


def write_study_report(
        folder: Path,
        name: str,
        arms: Sequence[Mapping[str, Any]],
        results: Sequence[Mapping[str, Any]],
        verdicts: Sequence[Mapping[str, Any]],
        settings: Mapping[str, Any],
        sweep: Mapping[str, Any] | None = None,
) -> Path:
    """Write report.html into the folder of a study's results, and its figures as plots/*.png.

    Args:
        folder: Folder of the study's results. It is made if it is missing.
        name: Name of the study.
        arms: 'name', 'label' and 'parent' of each arm. The parent is the arm that it continues, or None.
        results: Contents of the result files. 'arm' names an arm of this study, even if 'study' names another study
            that the run was taken from. Results of other arms are left out.
        verdicts: What `studies.table.verdicts` returns.
        settings: What the arms have in common.
        sweep: None, or a dict of 'x' and 'levels'. 'x' is the title of an axis, or 'teacher_view' for the teacher's
            accuracy on the student's images, which is read from the results. Each level has a 'label', 'x' (a number,
            or None where the levels have no scale) and 'arms': the arm of 'DeiT-LT' and, if there is one, that of a
            baseline, by its name.

    Returns:
        The page.
    """
    from . import study_curves, study_plots
    from .look import write_page
    from .study import Study, page_values
    study = Study(name, arms, results, verdicts, settings, sweep)
    figures = (*study_plots.FIGURES, *study_curves.FIGURES)
    levels_run = len(study_curves.levels(study))
    return write_page(
        Path(folder), 'study.html.jinja', figures, study, levels_run=levels_run, **page_values(study))
