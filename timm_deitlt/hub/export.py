"""The files that are published, written and loaded back by timm."""
import hashlib
import json
import shutil
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
from .settings import SETTINGS, public_metrics, public_settings
from .source import Model

_IMAGES = ('input_size', 'mean', 'std', 'interpolation', 'crop_pct', 'crop_mode')


def write_model(model: Model, out: Path, license_id: str) -> str:
    """Write weights, config.json, metrics.json, args.yaml and plots; returns the sha256 of the weights.

    Raises:
        ValueError: If timm cannot load back what was written, or gives other logits.
    """
    out.mkdir(parents=True, exist_ok=True)
    content = weights_file(model.network.state_dict())
    (out / WEIGHTS).write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    architecture, model_args = _as_registered(model.network)
    cfg = {'architecture': architecture, 'tag': model.config.get('benchmark') or '', 'license': license_id}
    about = {**model.config, 'weights_sha256': sha256}
    try:
        save_config_for_hf(
            model.network, out / CONFIG, model_args=model_args,
            data_config={name: model.data_config[name] for name in _IMAGES if name in model.data_config},
            model_config={'pretrained_cfg': cfg, 'label_names': model.class_names, 'timm_deitlt': about})
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
