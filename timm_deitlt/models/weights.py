"""Load and compare weights, and read folders of models in timm's form for the Hub."""
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from timm.models._hub import load_model_config_from_path

from ..utils.words import first_of

# Files of a model in timm's form for the Hub
WEIGHTS, CONFIG = 'model.safetensors', 'config.json'
_AS_IN_TRAINING = (
    'Give the model and its options (--model, --img-size, --model-kwargs, --num-classes) as they were in training.')


def tensor_bytes(value: Any) -> int:
    """Bytes of all tensors in nested mappings and sequences. A tensor that occurs twice counts twice."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return 0
    return sum(map(tensor_bytes, value))


def load_weights(
        model: torch.nn.Module,
        state_dict: dict[str, torch.Tensor],
        source: str,
        mend: str = _AS_IN_TRAINING,
) -> None:
    """Load weights that must fit exactly.

    Args:
        model: Model to load them into.
        state_dict: The weights.
        source: Name of the weights in error messages.
        mend: Advice at the end of error messages.

    Raises:
        ValueError: If the weights are those of another architecture. The error names the first differences.
    """
    wanted = model.state_dict()
    differing = [
        *(f'{key} is missing' for key in wanted if key not in state_dict),
        *(f'{key} is unknown' for key in state_dict if key not in wanted),
        *(
            f'{key} is {list(state_dict[key].shape)}, not {list(value.shape)}'
            for key, value in wanted.items() if key in state_dict and state_dict[key].shape != value.shape
        ),
    ]
    if differing:
        raise ValueError(
            f'The weights of {source} do not fit the architecture {type(model).__name__}: '
            f'{first_of(differing, 3, "; ")}. {mend}')
    model.load_state_dict(state_dict)


def weights_file(state_dict: Mapping[str, torch.Tensor]) -> bytes:
    """Content of model.safetensors for a state dict. Equal weights give equal bytes."""
    return save({
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state_dict.items()})


def weights_sha256(state_dict: Mapping[str, torch.Tensor]) -> str:
    """sha256 of `weights_file`, which says to which weights metrics belong."""
    return hashlib.sha256(weights_file(state_dict)).hexdigest()


def load_safetensors(path: Path, mend: str) -> dict[str, torch.Tensor]:
    """Read a safetensors file, or the one in the folder of an exported model.

    Args:
        path: File or folder.
        mend: Advice at the end of error messages.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is truncated or not a safetensors file.
    """
    path = path / WEIGHTS if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f'There is no file {str(path)!r}. {mend}')
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f'{str(path)!r} is truncated or not a safetensors file ({error}). {mend}') from error


def load_config(folder: Path) -> dict[str, Any]:
    """Read the config.json of an exported model.

    Returns:
        'architecture', 'pretrained_cfg' (with 'label_names' if known), 'model_args', and 'about', which holds the
        entries that this project adds, if any.

    Raises:
        ValueError: If it is not in timm's form.
    """
    try:
        pretrained_cfg, architecture, model_args = load_model_config_from_path(folder)
        json.dumps([architecture, model_args, pretrained_cfg['num_classes'], pretrained_cfg['input_size']])
        about = dict(json.loads((folder / CONFIG).read_text()).get('timm_deitlt') or {})
        architecture = about.get('architecture', architecture)  # ours, where the file names timm's for all to load
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{str(folder / CONFIG)!r} is not a config.json in timm's form ({type(error).__name__}: {error}): create "
            'it again by hfhub/convert.py.') from error
    return {
        'architecture': architecture, 'pretrained_cfg': pretrained_cfg, 'model_args': model_args, 'about': about}


def exported_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Settings of train.py that create the network of a config.json, see `load_config`."""
    cfg, model_args = config['pretrained_cfg'], dict(config['model_args'])
    architecture = config['architecture']
    cosine = model_args.pop('cosine', False) or architecture.endswith('_cosine')
    for name in ('num_classes', 'in_chans', 'global_pool'):  # these have their own settings
        model_args.pop(name, None)
    return {
        'model': architecture.removesuffix('_cosine'),
        'model_kwargs': model_args,
        'classifier': 'cosine' if cosine else 'linear',
        'input_size': list(cfg['input_size']),
        'img_size': None,
        'in_chans': cfg['input_size'][0],
        'input_img_mode': (config.get('about') or {}).get('image_mode'),
        'fusion': (config.get('about') or {}).get('fusion') or 'mean',
        **{name: list(cfg[name]) for name in ('mean', 'std') if name in cfg},
        **{name: cfg[name] for name in ('interpolation', 'crop_pct') if name in cfg},
    }
