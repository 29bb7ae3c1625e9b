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
# Measures of analyze.py that claims may name: (what is measured, measure)
MEASURES = {('dist', 'rank'), ('cls', 'rank'), ('early', 'distance'), ('tokens', 'divergence')}


@dataclass(frozen=True)
class Arm:
    """One way of training.

    Attributes:
        name: Name in files and claims.
        label: Name in tables.
        settings: What differs from the study's settings.
        parent: Arm from whose milestone, at the start of stage two, it continues, or None.
        origin: Name of another packaged study and of its arm, whose results are shown here too, or None.
    """
    name: str
    label: str
    settings: Mapping[str, Any]
    parent: str | None = None
    origin: tuple[str, str] | None = None


@dataclass(frozen=True)
class Side:
    """One figure of a claim: an arm, one of its experts (or what is measured), and a class group (or a measure)."""
    arm: str
    of: str
    measure: str

    def __str__(self) -> str:
        return f'{self.arm} {self.of} {self.measure}'


@dataclass(frozen=True)
class Claim:
    """A claim: the figure `a` is above the figure `b`, or below it if `less`. Claims that are `main` come first."""
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
        sweep: What is varied, or None. 'x' is the title of the axis, or 'teacher_view' for the teacher's accuracy on
            the student's images. 'levels' is a list; each level has a 'label', its value 'x', and 'arms': the arm of
            each method by the method's name.
        recipe: Name or path of the recipe that students start from, in place of those of the data set, or None. CNNs
            start from the recipes of the data set all the same.
    """
    name: str
    settings: Mapping[str, Any]
    arms: Mapping[str, Arm]
    claims: tuple[Claim, ...] = ()
    seeds: tuple[int, ...] = (1, 2, 3)
    sweep: Mapping[str, Any] | None = None
    recipe: str | None = None


def study_names() -> list[str]:
    """Names of the packaged studies."""
    return sorted(path.name.removesuffix('.yaml') for path in STUDIES.iterdir() if path.name.endswith('.yaml'))


def load_study(name: str) -> Study:
    """Read a packaged study by name, or a YAML file.

    Raises:
        FileNotFoundError: If it is neither.
        ValueError: If a key is unknown, an arm continues from an arm that it cannot continue from, or a claim names
            something that is not a figure.
    """
    path = STUDIES / f'{name}.yaml' if name in study_names() else Path(name)
    if not path.is_file():
        raise FileNotFoundError(
            f'There is no study {name!r}: give {" or ".join(study_names())}, or a YAML file of the same form.')
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
        _known(content, {'recipe', 'settings', 'arms', 'claims', 'seeds', 'sweep'}, 'the study')
        arms = {arm: _arm(arm, body) for arm, body in content['arms'].items()}
        claims = tuple(_claim(body) for body in content.get('claims') or ())
        sweep = _sweep(content.get('sweep'))
    except (AttributeError, KeyError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f'{path} is not a study ({type(error).__name__}: {error}).') from error
    for arm in arms.values():
        if arm.parent and (arm.parent not in arms or arms[arm.parent].parent):
            raise ValueError(
                f'{path}: {arm.name} continues from {arm.parent}, which must be an arm that has no `from` itself.')
    for side in (side for claim in claims for side in (claim.a, claim.b)):
        if side.arm not in arms or not (
                side.of in EXPERTS and side.measure in GROUPS or (side.of, side.measure) in MEASURES):
            raise ValueError(
                f'{path}: "{side}" is no figure: give ARM EXPERT GROUP with one of the experts {", ".join(EXPERTS)} '
                f'and one of the groups {", ".join(GROUPS)}, or give ARM and '
                f'{" or ".join(" ".join(m) for m in sorted(MEASURES))}.')
    for level in (sweep or {'levels': ()})['levels']:
        if unknown := set(level['arms'].values()) - set(arms):
            raise ValueError(
                f'{path}: level {level["label"]} of the sweep names unknown arms: {", ".join(sorted(unknown))}.')
    seeds = tuple(content.get('seeds') or Study.seeds)
    name = path.name.removesuffix('.yaml')
    return Study(name, dict(content['settings']), arms, claims, seeds, sweep, content.get('recipe'))


def _known(body: Mapping[str, Any], allowed: set[str], what: str) -> None:
    if unknown := set(body) - allowed:
        raise KeyError(f'{what} has unknown keys: {", ".join(sorted(map(str, unknown)))}; allowed: {sorted(allowed)}')


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
