"""The page of a study: which claims hold, by how much, and from which runs that is known."""
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..utils.files import atomic_write
from .page import Plot, details, document, facts, figures, missing, paragraph, text
from .plots import drawing, write_plots
from .run_files import short_path
from .study_mechanism_plots import distance_by_arm, divergence_by_arm, fusions, rank_by_arm, sweep
from .study_plots import (
    claims_groups,
    claims_measures,
    claims_overall,
    head_by_arm,
    overall_by_arm,
    student_and_teacher,
    tail_by_arm,
)
from .study_tables import arms, claims, fusions_by_arm, mechanisms
from .study_values import Study, known, levels

PAGE, PLOTS = 'report.html', 'plots'
_FIGURES: dict[str, Callable[[Study], Plot | None]] = {
    draw.__name__: draw for draw in (
        claims_overall, claims_groups, claims_measures, overall_by_arm, tail_by_arm, head_by_arm, student_and_teacher,
        sweep, fusions, distance_by_arm, rank_by_arm, divergence_by_arm)
}
# of one claim, and of several
_VERDICTS = {
    'holds': ('holds', 'hold'), 'does not hold': ('does not hold', 'do not hold'),
    'not shown at this scale': ('is not shown at this scale', 'are not shown at this scale'),
    'too few runs': ('has too few runs', 'have too few runs')}


def write(folder: Path, *values: Any) -> Path:
    """Write page and plots of a study; see `write_study_report`."""
    study = Study(*values)
    folder.mkdir(parents=True, exist_ok=True)
    with drawing():
        plots = {name: plot for name, draw in _FIGURES.items() if (plot := draw(study)) is not None}
    write_plots(folder / PLOTS, plots, _FIGURES)
    html = _html(study, plots).encode('utf-8')
    atomic_write(folder / PAGE, lambda file: file.write_bytes(html))
    return folder / PAGE


def _html(study: Study, plots: Mapping[str, Plot]) -> str:
    def shown(*names: str, packed: bool = False) -> str:
        return figures((plots.get(name) for name in names), packed)

    sections = {
        'Claims': claims(study) + shown('claims_overall', 'claims_groups', 'claims_measures', packed=True),
        'Arms': arms(study) + shown('overall_by_arm', 'tail_by_arm', 'head_by_arm'),
        'Student and teacher': shown('student_and_teacher') or (
            missing('No run has its accuracy by epoch.') if study.results else ''),
        'The sweep': shown('sweep') + _levels_missing(study),
        'Fusions of the experts': shown('fusions') + fusions_by_arm(study),
        'Mechanisms': shown('distance_by_arm', 'divergence_by_arm', 'rank_by_arm', packed=True) + mechanisms(study),
        'Settings and versions': _settings(study),
        'Files': _files(study, plots),
    }
    return document(
        f'Study {study.name}', _about(study), _sentence(study), sections, _unfinished(study),
        '<p>Written by timm_deitlt from the results of the study. It needs no network and holds no script.</p>')


def _about(study: Study) -> str:
    settings = study.settings
    parts = [
        short_path(str(settings['dataset'])) if 'dataset' in settings else None, settings.get('model'),
        _counted(settings['epochs'], 'epoch') if 'epochs' in settings else None, _counted(len(study.arms), 'arm'),
        _counted(len(study.results), 'run')]
    if study.results:
        parts += [f'{_plural(len(of), word)} {", ".join(map(str, of))}'
                  for word, of in (('seed', study.seeds), ('subset', study.subsets))]
        seconds = sum(known(run['metrics'].get('seconds') for run in study.results))
        parts.append(f'{seconds / 3600:.1f} hours')
    return ' · '.join(f'<span>{text(part)}</span>' for part in parts if part)


def _counted(number: int, word: str) -> str:
    return f'{number} {_plural(number, word)}'


def _plural(number: int, word: str) -> str:
    return word if number == 1 else f'{word}s'


def _sentence(study: Study) -> str:
    found = Counter(claim['verdict'] for claim in study.verdicts)
    if not found:
        return f'{_counted(len(study.results), "run")} of {_counted(len(study.arms), "arm")}, and no claims to judge.'
    order = [*_VERDICTS, *sorted(set(found) - set(_VERDICTS))]
    words = [f'{found[verdict]} {_VERDICTS.get(verdict, (verdict, verdict))[found[verdict] != 1]}'
             for verdict in order if found[verdict]]
    return f'Of {_counted(len(study.verdicts), "claim")}, {_listed(words)}.'


def _listed(words: Sequence[str]) -> str:
    return ' and '.join(filter(None, (', '.join(words[:-1]), words[-1])))


def _unfinished(study: Study) -> str:
    """A note on the runs that other arms have and an arm has not."""
    lines = [] if study.results else ['No arm has been run.']
    for subset in study.subsets:
        seeds = sorted({run['seed'] for run in study.results if run['subset'] == subset})
        short = []
        for arm in study.arms:
            there = {run['seed'] for run in study.runs(arm) if run['subset'] == subset}
            gone = ', '.join(str(seed) for seed in seeds if seed not in there)
            if gone:
                short.append(f'{arm} (seed {gone})' if there else arm)
        if short:
            lines.append(f'Subset {subset}, seeds {", ".join(map(str, seeds))}: {", ".join(short)}.')
    if not lines:
        return ''
    body = ''.join(f'<p>{text(line)}</p>\n' for line in lines)
    return f'<div class="note" role="note">\n<p><strong>Not run</strong></p>\n{body}</div>'


def _levels_missing(study: Study) -> str:
    asked, found = len(study.sweep.get('levels', ())), len(levels(study))
    return missing(f'{found} of the {asked} levels of the sweep have been run.') if found < asked else ''


def _settings(study: Study) -> str:
    versions: dict[str, Counter] = {}
    for run in study.results:
        for name, value in {**run['versions'], 'threads': run.get('threads')}.items():
            if value is not None:
                versions.setdefault(name, Counter())[str(value)] += 1
    pairs = [(name, next(iter(found)) if len(found) == 1 else
              ', '.join(f'{value} ({_counted(count, "run")})' for value, count in found.items()))
             for name, found in versions.items()]
    html = facts(pairs) if pairs else missing('No versions, as nothing has been run.')
    several = [name for name, found in versions.items() if len(found) > 1]
    if several:
        html += paragraph(f'The runs differ in {_listed(several)}; each file of results has its own.', 'small')
    given = [(name, _setting(value)) for name, value in study.settings.items()]
    return html + (details(f'Settings of all arms ({len(given)})', facts(given)) if given else '')


def _setting(value: Any) -> str:
    if isinstance(value, Mapping):
        return ' '.join(f'{key}={item}' for key, item in value.items())
    return short_path(value) if isinstance(value, str) else str(value)


def _files(study: Study, plots: Mapping[str, Plot]) -> str:
    names = [f'{run["arm"]}-subset{run["subset"]}-seed{run["seed"]}.json' for run in study.results
             if run['study'] == study.name]
    others = Counter(run['study'] for run in study.results if run['study'] != study.name)
    pairs = [
        ('*.json', f'{_counted(len(names), "run")}: settings, figures, curve, versions'),
        *((f'../{name}/*.json', f'{_counted(count, "run")} of that study') for name, count in others.items()),
        *([('../verdicts.json', 'the claims, and the files they rest on')] if study.verdicts and names else []),
        (f'{PLOTS}/*.png', f'the {_counted(len(plots), "figure")} of this page')]
    listed = details(f'Every file of results ({len(names)})', paragraph(', '.join(names), 'small')) if names else ''
    return facts(pairs) + listed
