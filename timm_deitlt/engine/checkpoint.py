"""Save and load checkpoints with timm's keys. A file is written completely or not at all."""
import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..models.weights import tensor_bytes
from ..utils.files import atomic_write

LAST = 'last.pth.tar'


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Save a training checkpoint atomically.

    Args:
        path: File to write.
        state: Keys as timm's CheckpointSaver writes them: 'state_dict', 'optimizer', 'epoch' (0-based, finished),
            'arch', 'args', and 'state_dict_ema' or the loss scaler's where used. 'version' 2 is added.
    """
    def write(temporary: Path) -> None:
        # if torch opens the file itself, it does not say why writing failed
        with open(temporary, 'wb') as file:
            torch.save({'version': 2, **state}, file)

    atomic_write(Path(path), write, tensor_bytes(state))


def load_checkpoint(path: Path | str) -> dict[str, Any]:
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


def load_run(path: Path | str) -> dict[str, Any]:
    """Read a checkpoint of train.py, which names settings, experts, data and epoch.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, or another program wrote it.
    """
    checkpoint = load_checkpoint(path)
    if not {'args', 'experts', 'data', 'epoch'} <= checkpoint.keys():
        raise ValueError(
            f'{path} was not written by this train.py: it does not name settings, experts, data and epoch. Give '
            'another run.')
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
        ValueError: If it does not fit; the message names the difference.
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
            f'The checkpoint {source} numbers the classes differently from the data set now, so training cannot '
            'continue: give list files, --class-map and data as they were in training.')
