"""Rules of a recipe: settings that follow from the images, for whoever gives no others.

A recipe holds them under `rules` as named lists of lines. In each list the first line that holds is taken. A line holds
if all of its conditions do, and always if it has none. The condition `distils: true` is that a network teaches a ViT
from scratch:

    rules:
      size:
        - {side_below: 48, set: {img_size: 32}, why: the images are small}
        - {set: {img_size: 224}}
"""
import argparse
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_logger = logging.getLogger(__name__)

# What is known of the images, each with a condition NAME_below
FACTS = ('images', 'side')


class Rule(NamedTuple):
    """A line of a recipe's rules.

    Attributes:
        below: Facts by name, and the number that each must be below.
        values: Settings that follow.
        why: The reason, for the log.
        distils: Whether a network must teach a ViT from scratch, or must not; None if it does not matter.
    """
    below: Mapping[str, float]
    values: Mapping[str, Any]
    why: str
    distils: bool | None = None


def read_rules(lists: Any, where: str) -> tuple[tuple[Rule, ...], ...]:
    """Read the rules of a recipe; their settings are checked by the caller.

    Raises:
        ValueError: If they are not named lists of lines, or a line has an unknown key.
    """
    if not isinstance(lists, Mapping) or not all(isinstance(lines, list) and lines for lines in lists.values()):
        raise ValueError(f'{where}: rules are named lists of lines such as {{side_below: 48, set: {{img_size: 32}}}}')
    return tuple(tuple(_read(line, f'{where}: rules: {name}') for line in lines) for name, lines in lists.items())


def _read(line: Any, where: str) -> Rule:
    conditions = [f'{name}_below' for name in FACTS]
    if not isinstance(line, Mapping) or not isinstance(line.get('set'), Mapping):
        raise ValueError(f'{where}: a line is a mapping with the settings under "set", got {line!r}')
    if unknown := set(line) - {*conditions, 'distils', 'set', 'why'}:
        raise ValueError(
            f'{where}: unknown key {sorted(map(str, unknown))[0]!r}; allowed are {", ".join(conditions)}, distils, set '
            'and why')
    below = {name: line[f'{name}_below'] for name in FACTS if f'{name}_below' in line}
    if wrong := [value for value in below.values() if isinstance(value, bool) or not isinstance(value, int | float)]:
        raise ValueError(f'{where}: a condition is a number, got {wrong[0]!r}')
    if not isinstance(line.get('distils', True), bool):
        raise ValueError(f'{where}: distils is true or false, got {line["distils"]!r}')
    return Rule(below, dict(line['set']), str(line.get('why', '')), line.get('distils'))


def rules_that_hold(lists: Sequence[Sequence[Rule]], facts: Mapping[str, float]) -> list[Rule]:
    """The first line of each list whose conditions hold; a fact that is not known holds for none."""
    found = []
    for lines in lists:
        for rule in lines:
            below = all(name in facts and facts[name] < bound for name, bound in rule.below.items())
            if below and rule.distils in (None, facts.get('distils')):
                found.append(rule)
                break
    return found


def size_given(chosen: argparse.Namespace) -> dict[str, float]:
    """The side that the network sees, as the fact 'side', if the user gives an image size; else nothing.

    The patch size must fit what the network sees, not the files.
    """
    size = min(chosen.input_size[1:]) if chosen.input_size else chosen.img_size
    if not size:
        return {}
    _logger.info(f'The rules go by your image size of {size} px, not by the size of the images.')
    return {'side': size}


def say_why(rule: Rule, args: argparse.Namespace, chosen: argparse.Namespace) -> None:
    """Log the reason of a rule and what was taken from it, if anything was.

    Args:
        rule: A rule that holds.
        args: All settings.
        chosen: Settings of the user alone; mappings of both are merged.
    """
    taken = {}
    for name, value in rule.values.items():
        if isinstance(value, Mapping):
            value = {key: part for key, part in value.items() if key not in getattr(chosen, name)}
        elif not args.sources[name].startswith('rules of') or name.startswith('lr_base') and args.lr:
            continue
        if value != {}:
            taken[name] = value
    if rule.why and taken:
        words = ', '.join(f'{name} {value}' for name, value in taken.items())
        _logger.info(f'{rule.why}: {words}. Your own flags and files win.')
