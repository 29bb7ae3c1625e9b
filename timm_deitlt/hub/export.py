"""Writes a model as files that timm loads; publishing sends the same files."""
import hashlib
import json
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from ..benchmarks import CATALOGUE
from ..evaluation.fusion import class_tensor
from ..models._timm import TimmModel
from ..models.cosine import has_cosine_classifier
from ..models.resnet_cifar import ResNetCifar
from ..models.weights import CONFIG, WEIGHTS, weights_file
from ..settings.groups import NO_NETWORK
from .figures import METRICS, VALIDATION
from .programs import Answers, check_onnx, noise, write_onnx, write_program
from .source import SETTINGS, Model, public_metrics, public_settings, read_model

_logger = logging.getLogger(__name__)

ONNX, PROGRAM = 'model.onnx', 'model.pt2'
# What the folder of an exported model may hold; a published one has a card too
FILES = {WEIGHTS, CONFIG, METRICS, SETTINGS, VALIDATION, 'README.md', 'plots', ONNX, PROGRAM}
_IMAGES = ('input_size', 'mean', 'std', 'interpolation', 'crop_pct', 'crop_mode')
# timm's names of our networks; the parameters are the same
_TIMMS = {f'deit_lt_{size}': f'deit_{size}_distilled_patch16_224' for size in ('tiny', 'small', 'base')}
# Kinds of `benchmarks.Entry` in words
_KINDS = {
    'student': 'student of a teacher', 'sam': 'teacher by LDAM and SAM', 'paco_sam': 'teacher by PaCo and SAM'}


def export(
        run: Path, out: Path, onnx: bool = False, program: bool = False, fold_prior: bool = False) -> dict[str, Any]:
    """Export a model as a folder that needs no training code: weights, config.json, its figures and settings.

    Args:
        run: Folder of a run, of a cached teacher, or of a converted model.
        out: Folder to write. It appears when it is complete. An earlier export in it is replaced.
        onnx: Whether to add model.onnx, with the outputs of `programs.Answers`.
        program: Whether to add model.pt2, a program of torch.export with the same outputs.
        fold_prior: Whether to take the class prior out of the CLS head, see `without_prior`.

    Returns:
        'output', 'architecture', 'timm_architecture' (its name in timm, or None if timm alone cannot load it),
        'experts', 'num_classes', 'sha256' of the weights, and the sizes of the 'files' in bytes.

    Raises:
        FileNotFoundError: If there is no such run.
        ValueError: If the run cannot be exported, or `out` holds something else or cannot be written.
    """
    check_free(out)
    if onnx:
        check_onnx()
    model = read_model(run, finished=False)
    if fold_prior:
        without_prior(model, str(run))
    elif model.config.get('fusion') == 'mean_adjusted':
        _logger.warning(
            'The prediction of this run is mean_adjusted. timm and transformers, which know only the mean of the '
            'experts, will answer a little differently; --fold-prior makes them give this prediction.')
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # in the same folder, so that it can be moved in one step
        temporary = tempfile.TemporaryDirectory(dir=out.parent, prefix=f'.{out.name}.')
    except OSError as error:  # such as /proc, where even root cannot make a folder
        raise ValueError(f'{out} cannot be written ({error.strerror}): give another folder.') from error
    with temporary as made:
        folder = Path(made) / 'model'
        sha256 = write_model(model, folder)
        answers = Answers(
            model.network, model.config['experts'], model.config.get('fusion') or 'mean',
            model.config.get('class_counts') or ()).eval()
        if onnx:
            write_onnx(answers, folder / ONNX)
        if program:
            write_program(answers, folder / PROGRAM)
        if out.exists():
            shutil.rmtree(out)
        folder.rename(out)
    config = json.loads((out / CONFIG).read_text())
    files = {path.relative_to(out).as_posix(): path.stat().st_size for path in sorted(out.rglob('*')) if path.is_file()}
    return {
        'output': str(out), 'architecture': config['timm_deitlt']['architecture'],
        'timm_architecture': config['architecture'] if in_timm(config['architecture']) else None,
        'experts': model.config['experts'], 'num_classes': config['num_classes'], 'sha256': sha256, 'files': files}


def without_prior(model: Model, source: str) -> None:
    """Take the class prior out of the CLS head, in place: the mean of the experts is then the fusion 'mean_adjusted'.

    The bias of the head loses the log of each class's share of the training images. Figures and plots of the run
    do not belong to these weights, so they are left out.

    Raises:
        ValueError: If the prediction is another than 'mean_adjusted', as it is once the prior has been taken out.
    """
    config, head = model.config, cast(nn.Linear, model.network.head)
    fusion = config.get('fusion') or 'mean'
    if fusion != 'mean_adjusted':
        raise ValueError(
            f'--fold-prior is for models that predict by --fusion mean_adjusted, but {source} predicts by {fusion}: '
            'leave the flag out.')
    images = class_tensor(config['class_counts'])
    with torch.no_grad():
        head.bias.sub_((images / images.sum()).log())
    config['fusion'] = 'mean'
    model.metrics, model.plots = None, ()
    _logger.info(
        'The class prior is taken out of the CLS head. The figures of the run are left out; validate.py measures the '
        'exported model.')


def check_free(out: Path) -> None:
    """Refuse a folder that holds anything but an exported model, and one that cannot be made.

    Raises:
        ValueError: Naming what it holds, or what cannot be written to.
    """
    if not out.exists():
        above = next(path for path in out.absolute().parents if path.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise ValueError(
                f'{out} cannot be written, because {above} is not a folder that can be written to: give another '
                'folder.')
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

    config.json gives a student with two experts timm's name of the distilled DeiT, which has the same parameters. So
    timm and the TimmWrapper of transformers load it without this package, and answer with the mean of the experts. Our
    name of the architecture is under 'timm_deitlt'.

    Raises:
        ValueError: If timm cannot load what was written, or the loaded model gives other logits.
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
            'The DIST token was not trained, but timm averages CLS and DIST. Use timm_deitlt.load_model, which gives '
            'the probabilities of CLS alone.')
    if not in_timm(architecture):
        _logger.warning(f'timm and transformers do not have {architecture}: this package is needed to load it.')
    cfg = {'architecture': architecture, 'tag': model.config.get('benchmark') or '', 'license': license_id}
    try:
        save_config_for_hf(
            model.network, str(out / CONFIG), model_args=model_args,
            data_config={name: model.data_config[name] for name in _IMAGES if name in model.data_config},
            model_config={'pretrained_cfg': cfg, 'label_names': model.class_names, 'timm_deitlt': about})
        _without_num_classes(out / CONFIG)
        loaded = load_back(out)
    except Exception as error:  # timm, torch and safetensors raise many kinds
        raise ValueError(f'timm cannot load {architecture} from the files that were written: {error}') from error
    images = noise(model.network)
    if not torch.equal(logits(loaded, images), logits(model.network, images)):
        raise ValueError(f'{architecture} gives other logits when timm loads it, so it cannot be exported.')
    if model.metrics is not None:
        (out / METRICS).write_text(json.dumps(public_metrics(model.metrics), indent=2) + '\n')
    if model.settings is not None:
        (out / SETTINGS).write_text(public_settings(model.settings))
    for path in model.plots:
        (out / 'plots').mkdir(exist_ok=True)
        shutil.copyfile(path, out / 'plots' / path.name)
    return sha256


def _without_num_classes(path: Path) -> None:
    """Remove the number of classes from `model_args`; timm reads it at the root of config.json.

    The TimmWrapper of transformers gives timm both, and the call fails if both hold the number of classes.
    """
    config = json.loads(path.read_text())
    config.get('model_args', {}).pop('num_classes', None)
    path.write_text(json.dumps(config, indent=2) + '\n')


def _as_registered(network: TimmModel) -> tuple[str, dict[str, Any]]:
    """Name and arguments with which timm makes the network; its classifier may have been replaced by a cosine one."""
    name = network.pretrained_cfg['architecture']
    if not has_cosine_classifier(network):
        return name, {}
    if isinstance(network, ResNetCifar):
        return name, {'cosine': True}
    if name in ('resnet50', 'resnet50_cosine'):
        return 'resnet50_cosine', {}
    raise ValueError(
        f'timm has no {name} with a cosine classifier, so nobody could load it: give a CIFAR ResNet, a resnet50, or a '
        'network that was trained with --classifier linear.')


def registered_name(model: Model, name: str) -> str | None:
    """`name` if timm has a tag of this name; None for any other name.

    Raises:
        ValueError: If the catalogue has this name for another model.
    """
    if name not in CATALOGUE:
        return None
    entry = CATALOGUE[name]
    wanted = f'{entry.architecture}, a {_KINDS[entry.kind]}, trained on {entry.benchmark}'
    found = f'{model.architecture}, a {_KINDS.get(str(_kind(model)), "model of another training")}, trained on ' + (
        model.config.get('benchmark') or 'other data')
    if found.replace('_cosine', '') != wanted.replace('_cosine', ''):
        raise ValueError(f'The name {name} promises {wanted}, but this is {found}: give another REPO_ID.')
    if name not in timm.list_models(f'{entry.architecture}*', include_tags=True):
        return None  # an architecture of timm, for which we register no tags
    known: Any = timm.get_pretrained_cfg(name)
    cfg = known.to_dict()
    for key in ('num_classes', 'input_size', 'mean', 'std', 'interpolation', 'crop_pct'):
        ours = model.data_config[key] if key in model.data_config else model.network.pretrained_cfg[key]
        if (tuple(ours) if isinstance(ours, (list, tuple)) else ours) != cfg[key]:
            raise ValueError(
                f'timm would load {name} with {key} {cfg[key]}, but this model was trained with {ours}: train it by '
                'its recipe, or give another REPO_ID.')
    shapes = {key: value.shape for key, value in timm.create_model(name, device='meta').state_dict().items()}
    if shapes != {key: value.shape for key, value in model.network.state_dict().items()}:
        raise ValueError(
            f"The weights do not have the shapes of timm's {name}: train it by its recipe, or give another REPO_ID.")
    return name


def _kind(model: Model) -> str | None:
    """How the model was trained, as a kind of `benchmarks.Entry`."""
    args = model.settings
    if args is None:
        return {'student': 'student', 'cosine': 'sam', 'paco': 'paco_sam'}.get(str(model.config.get('released_kind')))
    if model.config['kind'] == 'student':
        return 'student' if args.teacher not in NO_NETWORK else None
    return {'ldam': 'sam', 'paco': 'paco_sam'}.get(args.loss) if args.opt.startswith('sam') else None


def in_timm(architecture: str) -> bool:
    """Whether timm alone has a model of this name."""
    return timm.is_model(architecture) and timm.model_entrypoint(architecture).__module__.startswith('timm.')


def load_back(folder: Path) -> TimmModel:
    """The model of a folder, as timm loads it for a user."""
    return cast(TimmModel, timm.create_model(f'local-dir:{folder}', pretrained=True).eval())


@torch.no_grad()
def logits(network: TimmModel, images: Tensor) -> Tensor:
    """Logits of every expert, `[E, B, num_classes]`."""
    if hasattr(network, 'forward_experts'):
        return torch.stack(network.forward_experts(images))
    return network(images)[None]
