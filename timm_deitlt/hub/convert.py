"""Turns a released checkpoint of DeiT-LT, or of one of its teachers, into model.safetensors and config.json."""
import argparse
import re
import zipfile
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models._hub import save_config_for_hf

from ..benchmarks import BENCHMARKS
from ..data.readers import listed_classes
from ..models import conversion
from ..models._hub import file_sha256
from ..models.weights import CONFIG, WEIGHTS
from ..utils.files import atomic_write
from ..version import __version__


class _NumpyType:
    """Replaces `numpy.dtype` when a pickle is read; knows plain numbers only."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code = str(code)

    def __setstate__(self, state: tuple) -> None:
        if state[1] in ('<', '>'):
            self.code = state[1] + self.code


def _numpy_number(dtype: _NumpyType, raw: bytes) -> int | float | bool:
    """Replaces NumPy's reading of a pickled scalar, which would accept any dtype."""
    if not isinstance(dtype, _NumpyType) or not re.fullmatch(r'[<>]?[iuf][1248]|b1', dtype.code):
        raise ValueError('a NumPy scalar that is not a plain number')
    return np.frombuffer(raw, dtype.code, count=1)[0].item()


# What the released files hold besides tensors and plain values: settings, with a path, and accuracies from NumPy. All
# names but the first are replaced by something of ours, so nothing that a file names is called.
_HARMLESS: list[Any] = [
    argparse.Namespace,
    *((PurePosixPath, f'{module}.PosixPath') for module in ('pathlib', 'pathlib._local')),
    *((_numpy_number, f'{module}.multiarray.scalar') for module in ('numpy.core', 'numpy._core')),
    (_NumpyType, 'numpy.dtype'),
]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a file of `torch.save` without executing anything that it names.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds anything but tensors, plain values and settings, or cannot be read.
    """
    if not path.is_file():
        raise FileNotFoundError(f'There is no file {str(path)!r}.')
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            checkpoint = torch.load(path, map_location='cpu', weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises many kinds of errors for a damaged file
        refused = re.search(r'GLOBAL (\S+)', str(error))
        if refused:
            raise ValueError(
                f'{str(path)!r} holds a pickled {refused[1]}, which is refused and was not executed. Only tensors, '
                'plain values and argparse.Namespace are allowed.') from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:150]
        raise ValueError(
            f'{str(path)!r} cannot be read: it is truncated, or not a checkpoint of PyTorch ({reason}).') from error
    if not isinstance(checkpoint, dict):
        raise ValueError(
            f'{str(path)!r} holds a {type(checkpoint).__name__}, but must hold a dict with the weights under model or '
            'state_dict.')
    return checkpoint


def find_weights(checkpoint: dict[str, Any]) -> tuple[dict[str, torch.Tensor], str]:
    """State dict of a released checkpoint, and words that say where it was."""
    for key in ('model', 'state_dict'):
        if isinstance(checkpoint.get(key), dict):
            average = " (not 'model_ema', which the released code never evaluates)" if 'model_ema' in checkpoint else ''
            return checkpoint[key], repr(key) + average
    if checkpoint and all(isinstance(value, torch.Tensor) for value in checkpoint.values()):
        return checkpoint, 'the file itself'
    raise ValueError(
        f'This checkpoint has no weights: it must hold model or state_dict, but has the keys '
        f'{", ".join(map(str, list(checkpoint)[:5])) or "none"}.')


def read_settings(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What a student's file says about its data set. A teacher's file says nothing."""
    settings = checkpoint.get('args')
    settings = vars(settings) if isinstance(settings, argparse.Namespace) else {}
    kinds = {'data_set': str, 'imb_type': str, 'imb_factor': float, 'class_map': list}
    found = {name: settings[name] for name, kind in kinds.items() if isinstance(settings.get(name), kind)}
    if not all(type(rank) is int for rank in found.get('class_map', [])):
        raise ValueError('The class_map in the file must hold whole numbers only: give the file as it was released.')
    return found


def class_names(
        benchmark: str,
        kind: str,
        settings: dict[str, Any],
        list_file: Path | None,
        class_order: str | None,
) -> tuple[list[str], str]:
    """Class names in the order of the logits, and the name of that order.

    For ImageNet-LT and iNaturalist-2018, students and LDAM teachers number the classes by count, and PaCo teachers in
    the order of the list file. A student's file holds its order.

    Raises:
        ValueError: If the list file is missing, is not the one of the training, or contradicts the file.
    """
    data = BENCHMARKS[conversion.ROWS[benchmark].dataset]
    if conversion.ROWS[benchmark].imbalance_factor:
        if list_file:
            raise ValueError(
                f'--list-file is for imagenet_lt and inat18. The classes of {benchmark} are known: leave it out.')
        # the counts fall with the label, so both orders are the same
        return list(data.class_names or conversion.CIFAR100_NAMES), 'list'
    if not list_file:
        raise ValueError(
            f'{benchmark} needs {" or ".join(data.files["train"])} to name its classes: give it by --list-file.')
    if not list_file.is_file():
        raise FileNotFoundError(f'There is no list file {str(list_file)!r}.')
    counts, names = listed_classes(data, list_file)
    as_listed = list(range(data.num_classes))
    if sum(counts) != data.train_images:
        raise ValueError(
            f'{str(list_file)!r} lists {sum(counts)} images, but the training set of {benchmark} has '
            f'{data.train_images}: give {" or ".join(data.files["train"])}.')
    used = class_order or ('list' if kind == 'paco' else 'count')
    order = conversion.count_order(counts) if used == 'count' else as_listed
    ranks = settings.get('class_map')  # by label, in a student's file
    if ranks is not None:
        own = sorted(as_listed, key=ranks.__getitem__) if Counter(ranks) == Counter(as_listed) else []
        if [counts[label] for label in own] != sorted(counts, reverse=True):
            raise ValueError(
                f'The class_map in the file is not the order by count of {str(list_file)!r}: give the list file of the '
                'training.')
        if class_order == 'list':
            raise ValueError('--class-order list contradicts the class_map in the file, by count: leave it out.')
        order = own
    return [names[label] for label in order], used


def write(
        out: Path,
        released: conversion.Released,
        weights: dict[str, torch.Tensor],
        benchmark: str,
        names: list[str],
        about: dict[str, Any],
) -> torch.nn.Module:
    """Write the files of the model, and return it. config.json comes last, so it is never beside other weights."""
    data = BENCHMARKS[conversion.ROWS[benchmark].dataset]
    student = released.kind == 'student'
    registered: Any = timm.get_pretrained_cfg(released.architecture)
    known = registered.to_dict()
    cfg = {
        **{name: known[name] for name in ('first_conv', 'classifier', 'pool_size')},
        'architecture': released.architecture,
        'tag': benchmark,
        'num_classes': released.num_classes,
        'input_size': (3, released.image_size, released.image_size),
        'fixed_input_size': student,
        'mean': IMAGENET_DEFAULT_MEAN if student else data.mean,
        'std': IMAGENET_DEFAULT_STD if student else data.std,
        'interpolation': 'bicubic' if student else 'bilinear',
        'crop_pct': 1. if not student and released.image_size == 32 else .875,
    }
    model = timm.create_model(
        released.architecture, pretrained_cfg=cfg, num_classes=released.num_classes, device='meta',
        **released.model_args)
    model_config = dict(label_names=names, timm_deitlt=about)

    def save_weights(temporary: Path) -> None:
        save_file(weights, temporary)
        (out / CONFIG).unlink(missing_ok=True)

    out.mkdir(parents=True, exist_ok=True)
    atomic_write(out / WEIGHTS, save_weights)
    atomic_write(out / CONFIG, lambda temporary: save_config_for_hf(model, str(temporary), model_config=model_config))
    return model


def check_free(out: Path, overwrite: bool) -> None:
    """Refuse to write over other files.

    Raises:
        ValueError: If `out` is a file, or a folder that is not empty. With `overwrite` it may hold a converted model.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise ValueError(f'{str(out)!r} is a file: give a folder.')
    held = {path.name for path in out.iterdir()}
    # with what a conversion leaves if it is killed, and what validate.py adds
    ours = {WEIGHTS, CONFIG, f'.{WEIGHTS}.tmp', f'.{CONFIG}.tmp', 'validation.json'}
    if held and not (overwrite and held <= ours):
        raise ValueError(
            f'{str(out)!r} is not empty: give another folder, or --overwrite if it holds {WEIGHTS} and {CONFIG} and '
            'nothing else.')


def convert_file(
        file: Path,
        out: Path,
        benchmark: str | None = None,
        architecture: str | None = None,
        list_file: Path | None = None,
        class_order: str | None = None,
        overwrite: bool = False,
) -> dict[str, Any]:
    """Convert a released file.

    Args:
        file: Such as student.pth or teacher.pth.tar.
        out: Folder for model.safetensors and config.json.
        benchmark: The data set, a key of `conversion.ROWS`. Needed if the file does not say it.
        architecture: The architecture that the file must have.
        list_file: Training list that names the classes of ImageNet-LT and iNaturalist-2018.
        class_order: How the network numbers these classes: 'count' or 'list'. By default, as its kind does.
        overwrite: Whether to replace a converted model in `out`.

    Returns:
        What was found, for a report.

    Raises:
        FileNotFoundError, ValueError: If a file is missing, is not a released one, or contradicts an argument.
    """
    check_free(out, overwrite)
    checkpoint = read_checkpoint(file)
    state_dict, place = find_weights(checkpoint)
    settings, released = read_settings(checkpoint), conversion.recognise(state_dict)
    if architecture not in (None, released.architecture):
        raise ValueError(
            f'--architecture {architecture} contradicts the file, which holds a {released.architecture}: leave it out.')
    benchmark = conversion.recognise_benchmark(released, settings, benchmark)
    names, order = class_names(benchmark, released.kind, settings, list_file, class_order)
    weights = conversion.convert(state_dict, released)
    about = {
        'source_file': file.name,
        'source_sha256': file_sha256(file),
        'kind': released.kind, 'benchmark': benchmark, 'class_order': order,
        'version': __version__,
    }
    model = write(out, released, weights, benchmark, names, about)
    numbered = 'by count' if order == 'count' else 'as listed'
    print(
        f'{file}: {released.kind}, {released.architecture}, {released.num_classes} classes, {released.image_size} px, '
        f'{benchmark}\nweights from {place}; classes {numbered}, from {names[0]} to {names[-1]}\n'
        f'written to {out / WEIGHTS} and {out / CONFIG}')
    return {
        'architecture': released.architecture,
        'kind': released.kind,
        'num_classes': released.num_classes,
        'benchmark': benchmark,
        'class_order': order,
        'parameters': sum(parameter.numel() for parameter in model.parameters()),
        'sha256': file_sha256(out / WEIGHTS),
        'tensors': len(weights),
        'dropped_keys': len(state_dict) - len(weights),
    }
