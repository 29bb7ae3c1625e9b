"""A study as data: settings, arms and claims of a YAML file."""
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from ..evaluation.fusion import FUSIONS

STUDIES = files(__package__.rpartition('.')[0]) / 'studies'
EXPERTS = ('mean', 'cls', 'dist', 'teacher', *FUSIONS)
GROUPS = ('overall', 'head', 'mid', 'tail')
# Measures of analyze.py that claims may name, by what they are of
MEASURES = {('dist', 'rank'), ('cls', 'rank'), ('early', 'distance'), ('tokens', 'divergence')}


@dataclass(frozen=True)
class Arm:
    """One way of training.

    Attributes:
        name: Name in files and claims.
        label: Name in tables.
        settings: What differs from the study's settings.
        parent: Arm whose milestone at the start of stage two it goes on from, or None.
        origin: Name of another packaged study and of its arm, whose results are shown here too, or None.
    """
    name: str
    label: str
    settings: Mapping[str, Any]
    parent: str | None = None
    origin: tuple[str, str] | None = None


@dataclass(frozen=True)
class Side:
    """A figure: of an arm, of an expert (or what a measure is of), the accuracy of a group or a measure."""
    arm: str
    of: str
    measure: str

    def __str__(self) -> str:
        return f'{self.arm} {self.of} {self.measure}'


@dataclass(frozen=True)
class Claim:
    """A claim of the paper: `a` is above `b`, or below if `less`; those that are `main` stand first in tables."""
    text: str
    a: Side
    b: Side
    less: bool = False
    main: bool = False


@dataclass(frozen=True)
class Study:
    """A study.

    Attributes:
        name: Name of its folder of results.
        settings: Settings of train.py that all arms share.
        arms: Its arms by name.
        claims: Claims to be judged.
        seeds: Seeds that are run if none are asked for.
        sweep: None, or what is varied: 'x', the title of the axis, or 'teacher_view' for the teacher's accuracy on the
            student's images; and 'levels', each with a 'label', the value 'x' and its 'arms' by the name of the method.
    """
    name: str
    settings: Mapping[str, Any]
    arms: Mapping[str, Arm]
    claims: tuple[Claim, ...] = ()
    seeds: tuple[int, ...] = (1, 2, 3)
    sweep: Mapping[str, Any] | None = None


def study_names() -> list[str]:
    """Names of the packaged studies."""
    return sorted(path.name.removesuffix('.yaml') for path in STUDIES.iterdir() if path.name.endswith('.yaml'))


def load_study(name: str) -> Study:
    """Read a packaged study by name, or a YAML file.

    Raises:
        FileNotFoundError: If it is neither.
        ValueError: If a key is unknown, an arm goes on from one that is not there, or a claim names no figure.
    """
    path = STUDIES / f'{name}.yaml' if name in study_names() else Path(name)
    if not path.is_file():
        raise FileNotFoundError(
            f'There is no study {name!r}: give {" or ".join(study_names())}, or a YAML file of the same form.')
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
        _known(content, {'settings', 'arms', 'claims', 'seeds', 'sweep'}, 'the study')
        arms = {arm: _arm(arm, body) for arm, body in content['arms'].items()}
        claims = tuple(_claim(body) for body in content.get('claims') or ())
        sweep = _sweep(content.get('sweep'))
    except (AttributeError, KeyError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f'{path} is not a study ({type(error).__name__}: {error}).') from error
    for arm in arms.values():
        if arm.parent and (arm.parent not in arms or arms[arm.parent].parent):
            raise ValueError(f'{path}: {arm.name} goes on from {arm.parent}, which is no arm that begins at the start.')
    for side in (side for claim in claims for side in (claim.a, claim.b)):
        if side.arm not in arms or not (
                side.of in EXPERTS and side.measure in GROUPS or (side.of, side.measure) in MEASURES):
            raise ValueError(
                f'{path}: {side} is no figure: give ARM EXPERT GROUP, of the experts {", ".join(EXPERTS)} and the '
                f'groups {", ".join(GROUPS)}, or ARM and {" or ".join(" ".join(m) for m in sorted(MEASURES))}.')
    for level in (sweep or {'levels': ()})['levels']:
        if unknown := set(level['arms'].values()) - set(arms):
            raise ValueError(f'{path}: level {level["label"]} of the sweep names no arm: {", ".join(sorted(unknown))}.')
    seeds = tuple(content.get('seeds') or Study.seeds)
    return Study(path.name.removesuffix('.yaml'), dict(content['settings']), arms, claims, seeds, sweep)


def _known(body: Mapping[str, Any], allowed: set[str], what: str) -> None:
    if unknown := set(body) - allowed:
        raise KeyError(f'{what} has the unknown {", ".join(sorted(map(str, unknown)))}; allowed: {sorted(allowed)}')


def _arm(name: str, body: Mapping[str, Any]) -> Arm:
    if 'of' in body:
        _known(body, {'label', 'of'}, f'arm {name}')
        origin, arm = body['of'].split()
        return Arm(name, body['label'], {}, origin=(origin, arm))
    _known(body, {'label', 'settings', 'from'}, f'arm {name}')
    return Arm(name, body['label'], dict(body['settings']), body.get('from'))


def _sweep(body: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    if body is None:
        return None
    _known(body, {'x', 'levels'}, 'the sweep')
    for level in body['levels']:
        _known(level, {'label', 'x', 'arms'}, 'a level of the sweep')
    return {'x': body['x'], 'levels': [{'x': None, **level, 'label': str(level['label'])} for level in body['levels']]}


def _claim(body: Mapping[str, Any]) -> Claim:
    _known(body, {'claim', 'a', 'b', 'less', 'main'}, 'a claim')
    return Claim(
        body['claim'], Side(*body['a'].split()), Side(*body['b'].split()), bool(body.get('less')),
        bool(body.get('main')))
