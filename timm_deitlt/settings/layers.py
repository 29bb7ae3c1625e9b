"""Settings in layers: the command line wins over a config file, which wins over the recipes of data set and model."""
import argparse
import copy
import difflib
import functools
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import yaml

from ..benchmarks import BENCHMARKS
from .flags import REFUSED, KeyValues, add_flags, number_or_auto
from .groups import NO_NETWORK
from .recipe_rules import Rule, read_rules, rules_that_hold, say_why, size_given

RECIPES = files(__package__.partition('.')[0]) / 'recipes'
DEFAULT_DATASET = 'lt/digits'
# Architectures that start from the teacher's recipe, SGD and LDAM; everything else starts from the student's.
TEACHER_FAMILIES = ('resnet', 'resnext', 'wide_resnet', 'seresnet', 'densenet', 'vgg', 'regnet', 'mobilenet')
# Pairs of which only one counts: a layer that sets the left one resets the right one of the layers below to default.
_RIVALS = {
    'lr_base': 'lr', 'input_size': 'img_size', 'img_size': 'input_size', 'grad_accum_steps': 'global_batch_size',
    'global_batch_size': 'grad_accum_steps', 'pretrained': 'init', 'pretrained_path': 'init',
    'initial_checkpoint': 'init',
}
# Settings that are given in epochs, and are stretched if --epochs changes
_PLANNED = {'drw_start_epoch', 'decay_milestones', 'rho_milestones', 'aug_ramp'}

# Recipes of each kind of teacher, in order: resnet32_paco_sam uses recipes/teachers/paco.yaml, then paco_sam.yaml.
TEACHER_RECIPES = {
    'plain': ('plain',),
    'sam': ('sam',),
    'strong': ('strong',),
    'strong_drw': ('strong_drw',),
    'weak_drw': ('weak_drw',),
    'paco': ('paco',),
    'paco_sam': ('paco', 'paco_sam'),
}


class Layer(NamedTuple):
    """One source of settings.

    Attributes:
        name: Its name in messages.
        values: Its settings.
        is_recipe: Whether it is a recipe of this package.
        base: Recipes below it, if it names them.
        needs: Settings that the user must give with it.
        rules: Settings that follow from the images, see `recipe_rules`.
    """
    name: str
    values: dict[str, Any]
    is_recipe: bool = False
    base: tuple[str, ...] | None = None
    needs: tuple[str, ...] = ()
    rules: tuple[tuple[Rule, ...], ...] = ()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f'{self.prog}: error: {message}\n')  # one line; argparse's own repeats all flags


def build_parser(prog: str = 'train.py') -> argparse.ArgumentParser:
    """The parser of the command line: timm's flags that are supported, then ours."""
    usage = '%(prog)s [-c FILE] [DIR] [--flag value ...]'
    parser = _Parser(prog, usage, 'Train a Vision Transformer or a CNN on long-tailed data.', allow_abbrev=False)
    add_flags(parser)
    return parser


@functools.cache
def _settings() -> dict[str, argparse.Action]:
    return {action.dest: action for action in build_parser()._actions if action.dest not in ('help', 'config', 'data')}


def flag_of(name: str) -> str:
    """The long flag of a setting."""
    return next(flag for flag in _settings()[name].option_strings if flag.startswith('--'))


def with_defaults(args: argparse.Namespace) -> argparse.Namespace:
    """Settings of an older run, with defaults for the settings that did not exist then."""
    return argparse.Namespace(**{
        **{name: copy.deepcopy(action.default) for name, action in _settings().items()}, **vars(args)})


def _near(name: str, names: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, list(names))
    return f"; did you mean {' or '.join(matches)}?" if matches else ''


def model_kind(model: str) -> str:
    """Which recipes a model starts from: 'teacher' for classical CNNs, 'student' for everything else."""
    return 'teacher' if model.rsplit('/', 1)[-1].startswith(TEACHER_FAMILIES) else 'student'


@functools.cache
def recipe_names() -> list[str]:
    """Names of the packaged recipes, such as 'own_data' and 'digits/student'."""
    names = []
    for entry in RECIPES.iterdir():
        names += [f'{entry.name}/{file.name}' for file in entry.iterdir()] if entry.is_dir() else [entry.name]
    return sorted(name.removesuffix('.yaml') for name in names if name.endswith('.yaml'))


def recipe_text(name: str) -> str:
    """The file of a packaged recipe."""
    return RECIPES.joinpath(*f'{name}.yaml'.split('/')).read_text(encoding='utf-8')


def recipes_for(dataset: str, kind: str, teacher: str = '') -> list[str]:
    """The recipes that a run on this data set starts from; later ones win.

    Args:
        dataset: Its name.
        kind: 'student' or 'teacher'.
        teacher: For a named teacher, its key of TEACHER_RECIPES. Each of its recipes is followed by the recipe of the
            same name in the folder of the benchmark, if there is one.
    """
    folder = BENCHMARKS[dataset].recipe if dataset in BENCHMARKS else ''
    names = [f'default/{kind}', f'{folder}/{kind}']
    for part in TEACHER_RECIPES.get(teacher, ()):
        names += [f'teachers/{part}', f'{folder}/{part}']
    known = recipe_names()
    return [name for name in names if name in known]


def load_recipe(name_or_path: str) -> Layer:
    """Read a recipe by name or a YAML file by path, and check every key and value.

    The key `base` lists the recipes below it, in place of those that data set and model would choose. The key `needs`
    lists settings that the user has to give.

    Raises:
        FileNotFoundError: If it is neither a file nor a recipe.
        ValueError: If it is not a YAML mapping, a key is unknown or refused, or a value has the wrong type.
    """
    name, known = str(name_or_path), recipe_names()
    is_recipe = name in known and not Path(name).is_file()
    if not is_recipe and not Path(name).is_file():
        raise FileNotFoundError(
            f"{name}: no such file or recipe{_near(name, known) or '; examples are own_data, digits/student'}")
    try:
        values = yaml.safe_load(recipe_text(name) if is_recipe else Path(name).read_text(encoding='utf-8'))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{name} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f'{name}: expected a mapping of settings such as "epochs: 50", got {values!r}')
    base = _names(values, 'base', 'recipe', known, name)
    needs = _names(values, 'needs', 'setting', _settings(), name)
    rules = read_rules(values.pop('rules'), name) if 'rules' in values else ()
    rules = tuple(tuple(rule._replace(values=_checked(rule.values, name)) for rule in lines) for lines in rules)
    return Layer(name, _checked(values, name), is_recipe, base, needs or (), rules)


def _names(values: dict[str, Any], key: str, what: str, known: Iterable[str], where: str) -> tuple[str, ...] | None:
    names = values.pop(key, None)
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(item, str) for item in names):
        raise ValueError(f'{where}: {key} is a list of {what}s, got {names!r}')
    for item in names:
        if item not in known:
            raise ValueError(f"{where}: {key} names the {what} '{item}', which does not exist{_near(item, known)}")
    return tuple(names)


def _checked(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    checked = {}
    for key, value in values.items():
        action, flag = _settings().get(key), f"--{str(key).replace('_', '-')}"
        if action is None:
            if reason := REFUSED.get(flag, REFUSED.get(f'--{key}')):
                raise ValueError(f'{where}: {key} is not supported: {reason}')
            raise ValueError(f"{where}: unknown setting '{key}'{_near(flag[2:].replace('-', '_'), _settings())}")
        try:
            checked[key] = _checked_value(action, value)
        except (argparse.ArgumentTypeError, ValueError) as error:
            raise ValueError(f'{where}: {key}: {error}') from error
    return checked


def _checked_value(action: argparse.Action, value: Any) -> Any:
    """The value as the flag would give it, so that a file can hold only what the command line accepts."""
    if value is None and action.default is None or value == action.default == []:
        return copy.copy(value)
    if isinstance(action, KeyValues):
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise ValueError(f'expected a mapping such as {{embed_dim: 96}}, got {value!r}')
        return copy.deepcopy(dict(value))
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ValueError(f'expected true or false, got {value!r}')
        return value
    if action.nargs in (None, '?'):
        return _checked_scalar(action, value)
    if not isinstance(value, list | tuple) or not value or action.nargs not in ('+', len(value)):
        raise ValueError(f"expected a list{'' if action.nargs == '+' else f' of {action.nargs}'}, got {value!r}")
    return [_checked_scalar(action, item) for item in value]


def _checked_scalar(action: argparse.Action, value: Any) -> Any:
    convert: Any = action.type or str  # argparse's own hint allows a name too
    if isinstance(value, bool) and action.choices is not None and {'on', 'off'} <= set(action.choices):
        return 'on' if value else 'off'  # YAML reads these words as true and false
    expected = {int: 'a whole number', float: 'a number', number_or_auto: 'a number or auto'}.get(convert, 'text')
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise ValueError(f'expected {expected}, got {value!r}')
    try:
        converted = convert(str(value))
    except ValueError:
        raise ValueError(f'expected {expected}, got {value!r}') from None
    if action.choices is not None and converted not in action.choices:
        raise ValueError(f"'{value}' is not one of {', '.join(filter(None, action.choices))}")
    return converted


def parse_args(
        argv: Sequence[str] | None = None,
        prog: str = 'train.py',
        survey: Callable[[argparse.Namespace], Mapping[str, float]] = lambda args: {},
) -> argparse.Namespace:
    """Settings of a run: the command line over `--config` over the recipes of data set and model.

    Later layers win: parser defaults, recipes/default/<kind>.yaml, recipes/<benchmark>/<kind>.yaml (or what the config
    names as its base), `--config` (a path or a recipe's name), command line. Mappings are merged key by key. If a later
    layer changes the epochs of a recipe, milestones that the recipe gives in epochs are stretched with them. The
    namespace has one attribute for each setting, and `sources`, which says where each came from: 'default', a recipe's
    name, the config's path or 'command line'.

    Args:
        argv: Words of the command line; those of the process by default.
        prog: Name of the command for messages.
        survey: Finds out what the rules of a recipe ask of the images; it is called if there are rules. What follows
            from them wins over the other recipes, and loses against the config itself. An image size of the config or
            the command line takes the place of the side that it finds.

    Raises:
        SystemExit: With code 2 and one line on stderr, if a flag is unknown, refused or has a bad value.
        FileNotFoundError: If `--config` is neither a file nor a recipe.
        ValueError: If a file has an unknown or refused key, or a value of the wrong type.
    """
    given = _command_line(build_parser(prog), argv)
    config = given.pop('config', '')
    layers = [*([load_recipe(config)] if config else []), Layer('command line', given)]
    base: Sequence[str] | None = layers[0].base
    chosen = _merge(layers)
    if base is None:
        base = recipes_for(chosen.dataset, model_kind(chosen.model))
    below = [*map(load_recipe, base)]
    args = _merge([*below, *layers])
    if layers[0].rules:
        read = args.pretrained or args.pretrained_path or args.initial_checkpoint
        distils = args.teacher not in NO_NETWORK and model_kind(args.model) == 'student' and not read
        held = rules_that_hold(layers[0].rules, {**survey(args), **size_given(chosen), 'distils': distils})
        fitted = {key: value for rule in held for key, value in rule.values.items()}
        args = _merge([*below, Layer(f'rules of {config}', fitted), *layers])
        for rule in held:
            say_why(rule, args, chosen)
    named = layers[-1].values.get('amp_dtype') == 'bfloat16'
    if named and args.amp is None and args.model_dtype in (None, 'float32'):
        args.amp = True  # naming the type asks for it, even if the CPU has to emulate it
        args.sources['amp'] = 'command line'
    for name in layers[0].needs:
        if not getattr(args, name) and not (name == 'data_dir' and args.dataset != DEFAULT_DATASET):
            raise ValueError(f'{config} needs {flag_of(name)}: give it together with -c {config}')
    return args


def resolve(overrides: Mapping[str, Any], recipes: Sequence[str] = (), prog: str = 'overrides') -> argparse.Namespace:
    """Settings from Python: the parser's defaults, then `recipes` in order, then `overrides`; later ones win.

    Args:
        overrides: Settings by name, checked as in a file.
        recipes: Names or paths of recipes. None is added for data set or model, see `recipes_for`.
        prog: Name of the overrides in errors and in `sources`.

    Raises:
        FileNotFoundError: If a recipe does not exist.
        ValueError: If a key is unknown or refused, or a value has the wrong type.
    """
    return _merge([*map(load_recipe, recipes), Layer(prog, _checked(overrides, prog))])


def _command_line(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> dict[str, Any]:
    for action in parser._actions:
        action.default = argparse.SUPPRESS  # return only what was typed
    given, unknown = parser.parse_known_args(argv)
    for flag in (word.split('=', 1)[0] for word in unknown):
        if flag in REFUSED:
            parser.error(f'{flag} is not supported: {REFUSED[flag]}')
        parser.error(f'unknown argument {flag}{_near(flag, parser._option_string_actions)}')
    values = vars(given)
    if 'data' in values:
        values.setdefault('data_dir', values.pop('data'))
    return values


def _merge(layers: Sequence[Layer]) -> argparse.Namespace:
    values = {key: copy.deepcopy(action.default) for key, action in _settings().items()}
    sources = dict.fromkeys(values, 'default')
    planned = {}  # the number of epochs for which a recipe set these
    for layer in layers:
        void = {
            rival: _settings()[rival].default for key, rival in _RIVALS.items()
            if layer.values.get(key) and values[rival]}
        if layer.values.get('opt', values['opt']) != values['opt']:
            void.update(opt_kwargs={}, muon_hidden_only=False)  # they belong to another optimizer
            values['opt_kwargs'] = {}  # and are not merged with those of the next
        for key, value in {**void, **layer.values}.items():
            values[key] = {**values[key], **value} if isinstance(value, dict) else value
            sources.pop(key)  # so that their order follows the layers
            sources[key] = layer.name
        for key in _PLANNED & layer.values.keys():
            planned[key] = values['epochs'] if layer.is_recipe else None
    for key, epochs in planned.items():
        if epochs and epochs != values['epochs'] and values[key] is not None:
            values[key] = _stretched(values[key], values['epochs'] / epochs)
    if not values['dataset'] and not values['data_dir']:
        values['dataset'] = DEFAULT_DATASET
    return argparse.Namespace(**values, sources=sources)


def _stretched(epochs: int | list[int], factor: float) -> int | list[int]:
    if isinstance(epochs, list):
        return [round((epoch - 1) * factor) + 1 for epoch in epochs]  # timm counts milestones from 1
    return round(epochs * factor)


def describe_defaults(flags: Mapping[str, Any], sources: Mapping[str, str]) -> str:
    """Lines for the log: which recipe, file or command line set what."""
    parts: dict[str, list[str]] = {}
    for key, source in sources.items():
        value = flags[key]
        parts.setdefault(source, []).append(f"{key} {' '.join(map(str, value)) if isinstance(value, list) else value}")
    lines = (f"{source}: {', '.join(shown)}" for source, shown in parts.items() if source != 'default')
    return '\n'.join(textwrap.fill(line, 118, subsequent_indent='    ') for line in lines)


def args_to_yaml(args: argparse.Namespace) -> str:
    """The settings as YAML that `--config` and `resolve` read back to the same values; sources are left out."""
    return yaml.safe_dump({key: getattr(args, key) for key in _settings()}, default_flow_style=None, width=118)
