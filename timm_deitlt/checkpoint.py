"""Checkpoints that are whole or not there, in timm's key layout."""
import argparse
import os
from pathlib import Path
from typing import Any

import torch

LAST = 'last.pth.tar'


def atomic_write(path: Path, write) -> None:
    """Call `write(temporary path)` and move the result to `path`: a crash leaves the old file or the new one."""
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.tmp')
    try:
        write(temporary)
        with open(temporary, 'rb+') as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    atomic_write(path, lambda temporary: temporary.write_text(text))


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Save a training checkpoint atomically.

    Args:
        path: File to write.
        state: Keys as timm's CheckpointSaver writes them: 'state_dict', 'optimizer', 'epoch' (0-based, finished),
            'arch', 'args', and 'state_dict_ema' or the loss scaler's where used. 'version' 2 is added.
    """
    atomic_write(Path(path), lambda temporary: torch.save({'version': 2, **state}, temporary))


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


def load_weights(model: torch.nn.Module, state_dict: dict[str, torch.Tensor], source: str) -> None:
    """Load weights that must fit exactly.

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
            f'{"; ".join(differing[:3])}{more}. Give the model and its options (--model, --img-size, --model-kwargs, '
            '--num-classes) as they were in training.')
    model.load_state_dict(state_dict)
