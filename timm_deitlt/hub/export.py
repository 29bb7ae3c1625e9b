"""The files of an exported model, which are also what is published, written and loaded back by timm."""
import hashlib
import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models._hub import save_config_for_hf
from torch import nn

from ..models.cosine import CosineLinear
from ..models.resnet_cifar import ResNetCifar
from ..models.weights import CONFIG, WEIGHTS, weights_file
from .figures import METRICS
from .portable import ONNX, PROGRAM, check_onnx, write_onnx, write_program
from .settings import SETTINGS, public_metrics, public_settings
from .source import Model, read_model

_logger = logging.getLogger(__name__)

# What an exported model's folder holds, with the card of a published one
FILES = {WEIGHTS, CONFIG, METRICS, SETTINGS, 'README.md', 'plots', ONNX, PROGRAM}
_IMAGES = ('input_size', 'mean', 'std', 'interpolation', 'crop_pct', 'crop_mode')
# timm's own names of the networks of ours that have the very same parameters
_TIMMS = {f'deit_lt_{size}': f'deit_{size}_distilled_patch16_224' for size in ('tiny', 'small', 'base')}


def export(run: Path, out: Path, onnx: bool = False, program: bool = False) -> dict[str, Any]:
    """Export a model as a folder that needs no training code: weights, config.json, its figures and settings.

    Args:
        run: Folder of a run, of a cached teacher, or of a converted model.
        out: Folder to write; it is there when all is in it, and not before. An earlier export in it is replaced.
        onnx: Whether to add model.onnx, see `portable.write_onnx`.
        program: Whether to add model.pt2, see `portable.write_program`.

    Returns:
        'output', 'architecture', 'timm_architecture' (its name in timm, or None if timm alone cannot load it),
        'experts', 'num_classes', 'sha256' of the weights, and sizes of the 'files' in bytes.

    Raises:
        FileNotFoundError: If there is no such run.
        ValueError: If the run cannot be exported, or something else lies in `out`.
    """
    check_free(out)
    if onnx:
        check_onnx()
    model = read_model(run, finished=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    # beside it, so that it is moved and not copied
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f'.{out.name}.') as made:
        folder = Path(made) / 'model'
        sha256 = write_model(model, folder)
        if onnx:
            write_onnx(model.network, model.config['experts'], folder / ONNX)
        if program:
            write_program(model.network, model.config['experts'], folder / PROGRAM)
        if out.exists():
            shutil.rmtree(out)
        folder.rename(out)
    config = json.loads((out / CONFIG).read_text())
    files = {path.relative_to(out).as_posix(): path.stat().st_size for path in sorted(out.rglob('*')) if path.is_file()}
    return {
        'output': str(out), 'architecture': config['timm_deitlt']['architecture'],
        'timm_architecture': config['architecture'] if in_timm(config['architecture']) else None,
        'experts': model.config['experts'], 'num_classes': config['num_classes'], 'sha256': sha256, 'files': files}


def check_free(out: Path) -> None:
    """Refuse a folder that holds anything but an exported model.

    Raises:
        ValueError: Naming what it holds.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise ValueError(f'{out} is a file: give a folder.')
    held = {path.name for path in out.iterdir()}
    others = sorted(held - FILES)
    if others or held and CONFIG not in held:
        raise ValueError(
            f'{out} holds other files than an exported model ({", ".join(others or sorted(held))[:100]}): give a new '
            'folder.')


def write_model(model: Model, out: Path, license_id: str | None = None) -> str:
    """Write weights, config.json, metrics.json, args.yaml and plots; returns the sha256 of the weights.

    A student of two experts is named as timm's distilled DeiT, which it is to the last key: timm alone loads it, as
    does the TimmWrapper of transformers, and its answer is the mean of the experts. Our name stands beside, under
    'timm_deitlt'.

    Raises:
        ValueError: If timm cannot load back what was written, or gives other logits.
    """
    out.mkdir(parents=True, exist_ok=True)
    content = weights_file(model.network.state_dict())
    (out / WEIGHTS).write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    architecture, model_args = _as_registered(model.network)
    about = {**model.config, 'architecture': architecture, 'weights_sha256': sha256}
    if 'dist' in model.config['experts']:
        architecture = _TIMMS.get(architecture, architecture)
    elif architecture in _TIMMS:
        _logger.warning(
            'Its DIST token was not trained, and timm would average both experts: timm_deitlt.load_model gives the '
            'probabilities of CLS alone.')
    if not in_timm(architecture):
        _logger.warning(f'timm and transformers do not have {architecture}: this package is needed to load it.')
    cfg = {'architecture': architecture, 'tag': model.config.get('benchmark') or '', 'license': license_id}
    try:
        save_config_for_hf(
            model.network, out / CONFIG, model_args=model_args,
            data_config={name: model.data_config[name] for name in _IMAGES if name in model.data_config},
            model_config={'pretrained_cfg': cfg, 'label_names': model.class_names, 'timm_deitlt': about})
        _without_num_classes(out / CONFIG)
        loaded = load_back(out)
    except Exception as error:  # timm, torch and safetensors raise many kinds
        raise ValueError(f'timm cannot load {architecture} back: {error}') from error
    images = fixed_images(model.network)
    if not torch.equal(logits(loaded, images), logits(model.network, images)):
        raise ValueError(f'{architecture} as timm loads it back gives other logits: it cannot be published.')
    if model.metrics is not None:
        (out / METRICS).write_text(json.dumps(public_metrics(model.metrics), indent=2) + '\n')
    if model.settings is not None:
        (out / SETTINGS).write_text(public_settings(model.settings))
    for path in model.plots:
        (out / 'plots').mkdir(exist_ok=True)
        shutil.copyfile(path, out / 'plots' / path.name)
    return sha256


def _without_num_classes(path: Path) -> None:
    """Leave the number of classes to the root of config.json, where timm reads it.

    The TimmWrapper of transformers gives it to timm beside `model_args`, and cannot load a model that has it in both.
    """
    config = json.loads(path.read_text())
    config.get('model_args', {}).pop('num_classes', None)
    path.write_text(json.dumps(config, indent=2) + '\n')


def _as_registered(network: nn.Module) -> tuple[str, dict[str, Any]]:
    """Name and arguments by which timm makes the network, whose classifier may have been exchanged."""
    name = network.pretrained_cfg['architecture']
    if not any(isinstance(module, CosineLinear) for module in network.modules()):
        return name, {}
    if isinstance(network, ResNetCifar):
        return name, {'cosine': True}
    if name in ('resnet50', 'resnet50_cosine'):
        return 'resnet50_cosine', {}
    raise ValueError(
        f'timm has no {name} with a cosine classifier, so nobody could load it: publish a CIFAR ResNet, a resnet50, or '
        'a network trained with --classifier linear.')


def in_timm(architecture: str) -> bool:
    """Whether timm alone has a model of this name."""
    return timm.is_model(architecture) and timm.model_entrypoint(architecture).__module__.startswith('timm.')


def load_back(folder: Path) -> nn.Module:
    """The model of a folder, as a user has it from timm."""
    return timm.create_model(f'local-dir:{folder}', pretrained=True).eval()


def fixed_images(network: nn.Module) -> torch.Tensor:
    """Two images of noise, always the same, `[2, C, H, W]`."""
    size = network.pretrained_cfg['input_size']
    return torch.randn(2, *size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Logits of every expert, `[E, B, num_classes]`."""
    if hasattr(network, 'forward_experts'):
        return torch.stack(network.forward_experts(images))
    return network(images)[None]
