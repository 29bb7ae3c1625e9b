"""Checkpoints that are whole or not there, in timm's key layout, and models in timm's form for the hub."""
import argparse
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from timm.models._hub import load_model_config_from_path

LAST = 'last.pth.tar'
# Of a model in timm's form for the hub
WEIGHTS, CONFIG = 'model.safetensors', 'config.json'
_AS_IN_TRAINING = (
    'Give the model and its options (--model, --img-size, --model-kwargs, --num-classes) as they were in training.')


MAKE_ROOM = 'Make room and start again; a run goes on with --resume auto and its --experiment name.'
# A full disk, a quota, and the largest file that the file system or `ulimit -f` allows
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def no_space(error: BaseException) -> str | None:
    """The operating system's words for a lack of space that led to an error; None for any other error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            return os.strerror(error.errno)
        error = error.__cause__ or error.__context__
    return None


def atomic_write(path: Path, write, size: int | None = None) -> None:
    """Call `write(temporary path)` and move the result to `path`: a crash leaves the old file or the new one.

    Args:
        path: File to write.
        write: Writes it, by Python's own files, whose errors tell of a full disk.
        size: Bytes it takes about, for the message.

    Raises:
        ValueError: If there is no space for it, with its folder, what it takes and what is left.
    """
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.tmp')
    try:
        write(temporary)
        with open(temporary, 'rb+') as file:
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # safetensors writes files that only their owner can read
        os.replace(temporary, path)
    except Exception as error:  # torch's writer ends in a RuntimeError about positions
        reason = no_space(error)
        if reason is None:
            raise
        temporary.unlink(missing_ok=True)
        needed = '' if size is None else f'It takes about {amount(size)}, and '
        left = amount(free_bytes(path.parent))
        raise ValueError(
            f'{path.name} cannot be written to {path.parent}: {reason}. {needed}{left} are left there. The files that '
            f'were there are whole. {MAKE_ROOM}') from error
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    atomic_write(path, lambda temporary: temporary.write_text(text), len(text.encode()))


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Save a training checkpoint atomically.

    Args:
        path: File to write.
        state: Keys as timm's CheckpointSaver writes them: 'state_dict', 'optimizer', 'epoch' (0-based, finished),
            'arch', 'args', and 'state_dict_ema' or the loss scaler's where used. 'version' 2 is added.
    """
    def write(temporary: Path) -> None:
        # of a file that it opens itself torch does not say why it could not be written
        with open(temporary, 'wb') as file:
            torch.save({'version': 2, **state}, file)

    atomic_write(Path(path), write, tensor_bytes(state))


def tensor_bytes(value: Any) -> int:
    """Bytes of all tensors in nested mappings and sequences, each time that one is met."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return 0
    return sum(map(tensor_bytes, value))


def free_bytes(folder: Path) -> int:
    """Bytes left in a folder, which need not exist yet."""
    folder = Path(folder).absolute()
    return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free


def amount(size: int) -> str:
    """Words for a number of bytes."""
    for unit, factor in (('GB', 1e9), ('MB', 1e6)):
        if size >= factor:
            return f'{size / factor:.2f} {unit}'
    return f'{size / 1e3:.1f} kB'


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint on the CPU, tensors and plain values only.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated or not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'There is no checkpoint {str(path)!r}.')
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ValueError(
            f'The checkpoint {str(path)!r} cannot be read: it is truncated, or not a file of weights and plain values '
            f'({reason}). Use a last.pth.tar or milestone-*.pth.tar that train.py wrote.') from error
    if not isinstance(checkpoint, dict) or 'state_dict' not in checkpoint:
        raise ValueError(
            f"The checkpoint {str(path)!r} holds no 'state_dict': use a last.pth.tar or milestone-*.pth.tar that "
            'train.py wrote.')
    return checkpoint


def check_checkpoint(
        checkpoint: dict[str, Any],
        source: str,
        architecture: str,
        fingerprint: str,
        class_names: Sequence[str] | None = None,
) -> None:
    """Refuse a checkpoint of another architecture, trained on other images, or with another order of classes if given.

    Raises:
        ValueError: Naming the difference.
    """
    if checkpoint.get('arch') != architecture:
        raise ValueError(
            f"The checkpoint {source} is of the architecture {checkpoint.get('arch')}, not {architecture}: give "
            f"--model {checkpoint.get('arch')}.")
    data = checkpoint.get('data', {})
    if data.get('fingerprint') != fingerprint:
        raise ValueError(
            f"The checkpoint {source} was trained on other images ({data.get('name')}, counts "
            f"{str(data.get('train_counts'))[:60]}): give the same data set, --imbalance-factor, --n-max, --split-seed "
            'and --val-fraction.')
    if class_names is not None and list(data['class_names']) != list(class_names):
        raise ValueError(
            f'The checkpoint {source} numbers the classes otherwise than the data set does now, so that it cannot go '
            'on: give list files, --class-map and data as they were in training.')


def load_weights(
        model: torch.nn.Module,
        state_dict: dict[str, torch.Tensor],
        source: str,
        mend: str = _AS_IN_TRAINING,
) -> None:
    """Load weights that must fit exactly.

    Args:
        model: Where to.
        state_dict: Weights.
        source: What they are called in messages.
        mend: What the error advises.

    Raises:
        ValueError: Naming the first keys or shapes that differ, if the weights are of another architecture.
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
        more = f' and {len(differing) - 3} more' if len(differing) > 3 else ''
        raise ValueError(
            f'The weights of {source} are of another architecture than {type(model).__name__}: '
            f'{"; ".join(differing[:3])}{more}. {mend}')
    model.load_state_dict(state_dict)


def weights_file(state_dict: Mapping[str, torch.Tensor]) -> bytes:
    """Content of the model.safetensors of a state dict: the same weights give the same bytes."""
    return save({
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state_dict.items()})


def weights_sha256(state_dict: Mapping[str, torch.Tensor]) -> str:
    """sha256 of `weights_file`, by which metrics are known to belong to weights."""
    return hashlib.sha256(weights_file(state_dict)).hexdigest()


def load_safetensors(path: Path, mend: str) -> dict[str, torch.Tensor]:
    """Read a safetensors file, or the one of an exported model's folder.

    Args:
        path: File or folder.
        mend: What errors advise.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is truncated or something else.
    """
    path = path / WEIGHTS if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f'There is no file {str(path)!r}. {mend}')
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f'{str(path)!r} is truncated or no safetensors file ({error}). {mend}') from error


def load_config(folder: Path) -> dict[str, Any]:
    """Read the config.json of an exported model.

    Returns:
        'architecture', 'pretrained_cfg' (with 'label_names' where known), 'model_args', and under 'about' what this
        project says of the model, if anything.

    Raises:
        ValueError: If it is not in timm's form.
    """
    try:
        pretrained_cfg, architecture, model_args = load_model_config_from_path(folder)
        json.dumps([architecture, model_args, pretrained_cfg['num_classes'], pretrained_cfg['input_size']])
        about = dict(json.loads((folder / CONFIG).read_text()).get('timm_deitlt') or {})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{str(folder / CONFIG)!r} is not a config.json in timm's form ({type(error).__name__}: {error}): write it "
            'anew by hfhub/convert.py.') from error
    return {
        'architecture': architecture, 'pretrained_cfg': pretrained_cfg, 'model_args': model_args, 'about': about}


def exported_settings(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of train.py that make the network of a config.json, see `load_config`."""
    cfg, model_args = config['pretrained_cfg'], dict(config['model_args'])
    architecture = config['architecture']
    cosine = model_args.pop('cosine', False) or architecture.endswith('_cosine')
    for name in ('num_classes', 'in_chans', 'global_pool'):  # have settings of their own
        model_args.pop(name, None)
    return {
        'model': architecture.removesuffix('_cosine'),
        'model_kwargs': model_args,
        'classifier': 'cosine' if cosine else 'linear',
        'input_size': list(cfg['input_size']),
        'img_size': None,
        'in_chans': cfg['input_size'][0],
        **{name: list(cfg[name]) for name in ('mean', 'std') if name in cfg},
        **{name: cfg[name] for name in ('interpolation', 'crop_pct') if name in cfg},
    }
