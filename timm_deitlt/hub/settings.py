"""Settings of a training as others may see and use them."""
import argparse
import re
import shlex
from pathlib import Path
from typing import Any

from ..benchmarks import BENCHMARKS
from ..run.teacher_file import HUB
from ..settings.layers import args_to_yaml, flag_of, model_kind, recipe_names, recipes_for

SETTINGS = 'args.yaml'
# Settings that name places of the machine of the training: their last part is published, no more
_PLACES = (
    'data_dir', 'list_dir', 'output', 'teacher_cache', 'teacher_checkpoint', 'resume', 'branch_from', 'class_map',
    'class_counts', 'initial_checkpoint', 'pretrained_path',
)
# Settings of the machine or of the bookkeeping, which are no part of a command that others run
NOT_THE_TRAINING = {
    'output', 'experiment', 'teacher_cache', 'device', 'workers', 'pin_mem', 'resume', 'log_interval', 'stop_epoch',
    'log_wandb', 'log_tensorboard', 'log_trackio', 'wandb_project', 'wandb_tags', 'wandb_resume_id', 'save_images',
    'data_dir', 'list_dir', 'distributed', 'local_rank', 'rank', 'world_size', 'validation_batch_size', 'branch_from',
    'auto_speed', 'cache_images',
}


def public_metrics(metrics: dict[str, Any]) -> dict[str, Any]:
    """metrics.json without the places of the machine, and without figures of weights that are not published."""
    metrics = {name: value for name, value in metrics.items() if name != 'ema'}
    metrics['teacher'] = public_teacher(metrics.get('teacher'))
    metrics['data'] = {**metrics['data'], 'name': public_name(metrics['data']['name'])}
    return metrics


def public_teacher(teacher: dict[str, Any] | None) -> dict[str, Any] | None:
    """What metrics.json says of a teacher, without a place that is not the Hub."""
    if teacher is None:
        return None
    hidden = () if str(teacher.get('path')).startswith(HUB) else ('path',)
    return {name: value for name, value in teacher.items() if name not in hidden}


def public_settings(args: argparse.Namespace) -> str:
    """args.yaml without the places of the machine of the training."""
    values = vars(args)
    places = {name: Path(values[name]).name for name in _PLACES if isinstance(values.get(name), str) and values[name]}
    return args_to_yaml(argparse.Namespace(**{**values, **places}))


def public_name(name: str) -> str:
    """A name of data as it is, of a path the last part."""
    if name in BENCHMARKS or re.match(r'(torch|tfds|wds|hfds|hfids)/[^/]', name):
        return name
    return Path(name).name or 'own data'


def training_command(args: argparse.Namespace) -> str:
    """The command that trains the same: what was typed, else the published settings as a file."""
    sources = getattr(args, 'sources', {})
    hidden = NOT_THE_TRAINING - {'data_dir', 'list_dir'}
    typed = [name for name, source in sources.items() if source == 'command line' and name not in hidden]
    automatic = {'default', 'command line', *recipes_for(args.dataset, model_kind(args.model))}
    configs = [source for source in dict.fromkeys(sources.values()) if source not in automatic]
    from_recipe = not configs or (configs[-1] in recipe_names() and len(configs) <= 2)
    if not sources or not from_recipe:
        return f'python train.py -c {SETTINGS}' + (' --data-dir DIR' if args.data_dir else '')
    words = ['-c', configs[-1]] if configs else []
    for name in typed:
        value = getattr(args, name)
        if name in _PLACES:
            words += [flag_of(name), 'DIR' if name.endswith('dir') else 'FILE']
        elif value is True:
            words.append(flag_of(name))
        elif value is False:
            words.append(flag_of(name).replace('--', '--no-', 1))
        elif isinstance(value, dict):
            words += [flag_of(name), *(f'{key}={item}' for key, item in value.items())]
        elif value is not None:
            words += [flag_of(name), *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(['python', 'train.py', *words])
