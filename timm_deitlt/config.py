"""Settings: the command line over a config file over the recipes of data set and model."""
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
from timm.utils import ParseKwargs

from .benchmarks import BENCHMARKS
from .flags import REFUSED, add_flags

RECIPES = files(__package__) / 'recipes'
DEFAULT_DATASET = 'lt/digits'
# Architectures that start from the teacher's recipe, SGD and LDAM; everything else starts from the student's.
TEACHER_FAMILIES = ('resnet', 'resnext', 'wide_resnet', 'seresnet', 'densenet', 'vgg', 'regnet', 'mobilenet')
# timm heeds only one of these; a later layer that sets the left one voids the right one of the layers below.
_RIVALS = {'lr_base': 'lr', 'input_size': 'img_size', 'img_size': 'input_size'}

# Settings, what each of their values must fulfil, and how to say it.
_BOUNDS: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    ('epochs stop_epoch save_epochs teacher_epochs batch_size validation_batch_size grad_accum_steps imbalance_factor '
     'n_max val_interval log_interval img_size in_chans num_classes', lambda x: x >= 1, 'at least 1'),
    ('rho mixup cutmix workers drw_start_epoch warmup_epochs weight_decay task_loss_weight distill_loss_weight seed '
     'split_seed aug_repeats',
     lambda x: x >= 0, 'at least 0'),
    ('kd_temperature ldam_margin ldam_scale', lambda x: x > 0, 'above 0'),
    ('drw_beta val_fraction', lambda x: 0 < x < 1, 'between 0 and 1, both excluded'),
    ('smoothing drop drop_path model_ema_decay', lambda x: 0 <= x < 1, 'at least 0 and below 1'),
    ('hflip vflip reprob mixup_prob mixup_switch_prob', lambda x: 0 <= x <= 1, 'between 0 and 1'),
)
_FILES = ('teacher_checkpoint', 'class_counts', 'branch_from', 'resume', 'class_map', 'initial_checkpoint')


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


class Layer(NamedTuple):
    """One source of settings: its name in messages, its values, and whether it is a recipe of this package."""
    name: str
    values: dict[str, Any]
    is_recipe: bool = False


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f'{self.prog}: error: {message}\n')  # one line; argparse's own repeats all flags


def build_parser(prog: str = 'train.py') -> argparse.ArgumentParser:
    """The command line alone: timm's flags as far as supported, then ours in the group 'DeiT-LT'."""
    usage = '%(prog)s [-c FILE] [DIR] [--flag value ...]'
    parser = _Parser(prog, usage, 'Train a Vision Transformer or a CNN on long-tailed data.', allow_abbrev=False)
    add_flags(parser)
    return parser


@functools.cache
def _settings() -> dict[str, argparse.Action]:
    return {action.dest: action for action in build_parser()._actions if action.dest not in ('help', 'config', 'data')}


def _near(name: str, names: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, list(names))
    return f"; did you mean {' or '.join(matches)}?" if matches else ''


def model_kind(model: str) -> str:
    """Which recipes a model starts from: 'teacher' for classical CNNs, 'student' for everything else."""
    return 'teacher' if model.rsplit('/', 1)[-1].startswith(TEACHER_FAMILIES) else 'student'


def recipe_names() -> list[str]:
    """Names of the packaged recipes, such as 'digits/student'."""
    paths = [(folder.name, file.name) for folder in RECIPES.iterdir() if folder.is_dir() for file in folder.iterdir()]
    return sorted(f"{folder}/{file.removesuffix('.yaml')}" for folder, file in paths if file.endswith('.yaml'))


def recipes_for(dataset: str, kind: str) -> list[str]:
    """The recipes under a run on this data set, later wins; `kind` is 'student' or 'teacher'."""
    names = [f'default/{kind}', f'{BENCHMARKS[dataset].recipe}/{kind}' if dataset in BENCHMARKS else '']
    return [name for name in names if name in recipe_names()]


def load_recipe(name_or_path: str) -> Layer:
    """Read a recipe by name or a YAML file by path, and check every key and value.

    Raises:
        FileNotFoundError: If it is neither a file nor a recipe.
        ValueError: If it is not a YAML mapping, a key is unknown or refused, or a value has the wrong type.
    """
    name, known = str(name_or_path), recipe_names()
    is_recipe = name in known and not Path(name).is_file()
    if not is_recipe and not Path(name).is_file():
        raise FileNotFoundError(f"{name}: no such file or recipe{_near(name, known)} (recipes: {', '.join(known)})")
    path = RECIPES.joinpath(*f'{name}.yaml'.split('/')) if is_recipe else Path(name)
    try:
        values = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{name} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f'{name}: expected a mapping of settings such as "epochs: 50", got {values!r}')
    return Layer(name, _checked(values, name), is_recipe)


def _checked(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    checked = {}
    for key, value in values.items():
        action, flag = _settings().get(key), _flag(str(key))
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
    """The value as the flag would have given it, so that a file holds nothing that the command line refuses."""
    if value is None and action.default is None or value == action.default == []:
        return copy.copy(value)
    if isinstance(action, ParseKwargs):
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
    convert = action.type or str
    expected = {int: 'a whole number', float: 'a number'}.get(convert, 'text')
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise ValueError(f'expected {expected}, got {value!r}')
    try:
        converted = convert(str(value))
    except ValueError:
        raise ValueError(f'expected {expected}, got {value!r}') from None
    if action.choices is not None and converted not in action.choices:
        raise ValueError(f"'{value}' is not one of {', '.join(filter(None, action.choices))}")
    return converted


def parse_args(argv: Sequence[str] | None = None, prog: str = 'train.py') -> argparse.Namespace:
    """Settings of a run: the command line over `--config` over the recipes of data set and model.

    Later wins: parser defaults, recipes/default/<kind>.yaml, recipes/<benchmark>/<kind>.yaml, `--config` (a path or a
    recipe's name), command line; mappings are merged key by key. Where a later layer changes the epochs of a recipe,
    its DRW start and decay milestones are stretched with them. The namespace has one attribute per setting, and
    `sources`: for each 'default', a recipe's name, the config's path or 'command line'.

    Raises:
        SystemExit: With code 2 and one line on stderr, if a flag is unknown, refused or has a bad value.
        FileNotFoundError: If `--config` is neither a file nor a recipe.
        ValueError: If a file has an unknown or refused key, or a value of the wrong type.
    """
    given = _command_line(build_parser(prog), argv)
    config = given.pop('config', '')
    layers = [*([load_recipe(config)] if config else []), Layer('command line', given)]
    chosen = _merge(layers)
    return _merge([*map(load_recipe, recipes_for(chosen.dataset, model_kind(chosen.model))), *layers])


def resolve(overrides: Mapping[str, Any], recipes: Sequence[str] = (), prog: str = 'overrides') -> argparse.Namespace:
    """The same settings from Python: `recipes` in order over the parser's defaults, then `overrides`.

    Args:
        overrides: Settings by name, checked as in a file.
        recipes: Names of recipes or paths; nothing is chosen by data set or model, see `recipes_for`.
        prog: What errors and `sources` call the overrides.

    Raises:
        FileNotFoundError: If a recipe does not exist.
        ValueError: If a key is unknown or refused, or a value has the wrong type.
    """
    return _merge([*map(load_recipe, recipes), Layer(prog, _checked(overrides, prog))])


def _command_line(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> dict[str, Any]:
    for action in parser._actions:
        action.default = argparse.SUPPRESS  # only what was typed
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
    planned = {}  # epochs that a recipe had in mind when it set these
    for layer in layers:
        void = {rival: None for key, rival in _RIVALS.items() if layer.values.get(key) is not None and values[rival]}
        if layer.values.get('opt', values['opt']) != values['opt']:
            values['opt_kwargs'] = {}  # they were another optimizer's
        for key, value in {**void, **layer.values}.items():
            values[key] = {**values[key], **value} if isinstance(value, dict) else value
            sources.pop(key)  # so that their order follows the layers
            sources[key] = layer.name
        for key in {'drw_start_epoch', 'decay_milestones'} & layer.values.keys():
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


def describe_defaults(args: argparse.Namespace) -> str:
    """Lines for the log: which recipe, file or command line set what."""
    parts: dict[str, list[str]] = {}
    for key, source in args.sources.items():
        value = getattr(args, key)
        parts.setdefault(source, []).append(f"{key} {' '.join(map(str, value)) if isinstance(value, list) else value}")
    lines = (f"{source}: {', '.join(shown)}" for source, shown in parts.items() if source != 'default')
    return '\n'.join(textwrap.fill(line, 118, subsequent_indent='    ') for line in lines)


def args_to_yaml(args: argparse.Namespace) -> str:
    """The settings as YAML that `--config` and `resolve` read back to the same values; sources are left out."""
    return yaml.safe_dump({key: getattr(args, key) for key in _settings()}, default_flow_style=None, width=118)


def validate_args(args: argparse.Namespace) -> None:
    """Check what can be checked before data and models are touched.

    Raises:
        FileNotFoundError: If a file that a setting names does not exist.
        ValueError: If a value is out of its range, or two settings contradict each other.
    """
    for names, holds, allowed in _BOUNDS:
        for name in names.split():
            value = getattr(args, name)
            for item in value if isinstance(value, list) else [value]:
                if item is not None and not holds(item):
                    raise ValueError(f'{_flag(name)} must be {allowed}, got {item}')
    for wrong, message in _conflicts(args):
        if wrong:
            raise ValueError(message)
    for name in _FILES:
        path = getattr(args, name)
        if path and not Path(path).is_file() and (name, path) != ('resume', 'auto'):
            raise FileNotFoundError(f'{_flag(name)} {path}: no such file')


def _conflicts(args: argparse.Namespace) -> tuple[tuple[Any, str], ...]:
    ldam, mixes, epochs = args.loss == 'ldam', args.mixup or args.cutmix or args.cutmix_minmax, args.epochs
    last = max([args.stop_epoch or 0, *(args.save_epochs or [])])
    return (
        ((args.drw_start_epoch or 0) > epochs,
         f'--drw-start-epoch {args.drw_start_epoch} lies beyond --epochs {epochs}; {epochs} itself means never'),
        (last > epochs, f'--stop-epoch or --save-epochs {last} lies beyond --epochs {epochs}'),
        (args.distill_loss_weight is None and args.task_loss_weight > 1,
         f'--task-loss-weight {args.task_loss_weight} leaves a negative weight for DIST; give --distill-loss-weight'),
        (mixes and args.batch_size % 2,
         f'mixup and cutmix need an even --batch-size, got {args.batch_size}; or set --mixup 0 --cutmix 0'),
        (ldam and mixes, '--loss ldam needs hard labels (its margins belong to one class); set --mixup 0 --cutmix 0'),
        (ldam and args.smoothing, '--loss ldam needs hard labels (its margins belong to one class); set --smoothing 0'),
        (ldam and args.bce_loss, '--loss ldam and --bce-loss exclude each other; give one of them'),
        (args.opt.startswith('sam') and args.amp_dtype == 'float16' and args.amp is not False,
         f'--opt {args.opt} cannot scale float16 gradients over its two passes; use --amp-dtype bfloat16 or --no-amp'),
        (args.amp and args.model_dtype in ('bfloat16', 'float16'), '--amp needs --model-dtype float32; leave it out'),
        (args.resume and args.branch_from, '--resume goes on with a run, --branch-from starts a new one; give one'),
        (args.resume == 'auto' and not args.experiment, '--resume auto needs the name of the run in --experiment'),
        (args.wandb_resume_id and not args.resume, '--wandb-resume-id needs --resume'),
        (args.teacher == 'none' and args.drw_on in ('dist', 'both'),
         f'--drw-on {args.drw_on} needs a DIST expert, which --teacher none does not train; use --drw-on cls'),
        (args.teacher_checkpoint and args.teacher in ('none', 'labels'),
         f'--teacher-checkpoint needs the architecture of the teacher, got --teacher {args.teacher}'),
    )
