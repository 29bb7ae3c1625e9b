"""What is measured: a trained model, its data and where its teacher is."""
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.models.deit import VisionTransformerDistilled
from torch.utils.data import IterableDataset, Subset

from ...engine.checkpoint import LAST
from ...evaluation.fusion import choose_fusions, scale_of_outputs
from ...models._hub import model_folder
from ...models._timm import TimmModel
from ...models.weights import CONFIG, load_config, load_safetensors, load_weights
from ...settings.resolved import Settings
from ...utils.files import read_json, read_rows
from ..build.data import Data
from ..build.loaders import build_eval_loader
from ..build.model import build_model
from ..build.trainer import autocast_of
from ..teacher_file import HUB, reorder_classes
from ..validate import data_of_export, experts_of_export, open_run, settings_of_export

_logger = logging.getLogger(__name__)


@dataclass
class Subject:
    """What is measured.

    Attributes:
        settings: Settings of its training, or those that make the model.
        data: Its data sets.
        model: The trained network, in evaluation mode on its device.
        experts: Experts that were trained.
        logit_scale: Factor that makes the outputs the logits of the loss, see `scale_of_outputs`.
        teacher: Where its teacher's weights are, or None if that is not known.
        history: (epoch, mean cosine of CLS and DIST) of each epoch up to its weights.
        epochs: Epochs it was trained for, or None if that is not known.
        folder: Where the measurements are saved, or None to save nothing.
        suffix: Ending of the file names; empty for the last checkpoint of a run.
    """
    settings: Settings
    data: Data
    model: TimmModel
    experts: Sequence[str]
    logit_scale: float
    teacher: str | None
    history: list[tuple[int, float]]
    epochs: int | None
    folder: Path | None
    suffix: str

    def __post_init__(self):
        machine = self.settings.machine
        self.device = torch.device(machine.device)
        self.model.to(self.device).eval()
        _logger.info(f'Precision: {machine.precision.words_on(self.device)}')
        self.autocast = autocast_of(machine.precision, self.device)

    @property
    def has_dist(self) -> bool:
        """Whether there is a DIST token, and it was trained."""
        return 'dist' in self.experts and isinstance(self.model, VisionTransformerDistilled)

    @property
    def answer(self) -> tuple[str, ...]:
        """The fusion that gives the prediction; empty for the mean of the experts."""
        return choose_fusions(self.settings.output.fusion, self.experts)

    def batches(self, images: Any) -> Any:
        """Loader of evaluation images as the model expects them."""
        return build_eval_loader(self.settings, images, self.model.pretrained_cfg, self.device)

    def pixels(self, batch: torch.Tensor) -> np.ndarray:
        """Normalised images `[N, C, H, W]` as they are looked at, uint8 `[N, H, W, 3]`."""
        mean, std = (batch.new_tensor(self.model.pretrained_cfg[name]).view(-1, 1, 1) for name in ('mean', 'std'))
        pixels = (255 * (batch * std + mean)).round().clamp(0, 255)
        pixels = pixels[:, [0, 1, 2] if pixels.shape[1] >= 3 else [0, 0, 0]]
        return pixels.permute(0, 2, 3, 1).byte().cpu().numpy()


def open_subject(path: str, overrides: dict[str, Any]) -> Subject:
    if path.startswith(HUB):
        return _open_exported(model_folder(path.removeprefix(HUB)), overrides, save=False)
    file = Path(path)
    if (file / CONFIG).is_file():
        return _open_exported(file, overrides)
    return _open_run(file / LAST if file.is_dir() else file, overrides)


def _open_run(file: Path, overrides: dict[str, Any]) -> Subject:
    checkpoint, settings, data, model = open_run(file, overrides)
    load_weights(model, checkpoint['state_dict'], str(file))
    reorder_classes(model, checkpoint['data']['class_names'], data.train.class_names, str(file))
    teacher = read_json(file.parent / 'metrics.json').get('teacher') or {}
    suffix = '' if file.name == LAST else '-' + file.name.removesuffix('.pth.tar')
    experts = checkpoint['experts']
    return Subject(
        settings, data, model, experts, scale_of_outputs(experts, settings.loss.logit_scale), teacher.get('path'),
        _history(file.parent, checkpoint['epoch']), checkpoint['epoch'] + 1, file.parent, suffix)


def _history(folder: Path, last_epoch: int) -> list[tuple[int, float]]:
    rows = [(int(row['epoch']), row.get('train_cosine')) for row in read_rows(folder / 'summary.csv')]
    return [(epoch, float(cosine)) for epoch, cosine in rows if cosine and epoch <= last_epoch]


def _open_exported(folder: Path, overrides: dict[str, Any], save: bool = True) -> Subject:
    config = load_config(folder)
    settings = settings_of_export(folder, config, overrides)
    data = data_of_export(settings, config, overrides.get('val_split'))
    model = build_model(settings.model, data.train.num_classes)
    load_weights(model, load_safetensors(folder, 'Convert or download it again.'), str(folder / CONFIG))
    if names := config['pretrained_cfg'].get('label_names'):
        reorder_classes(model, names, data.train.class_names, str(folder / CONFIG))
    experts = experts_of_export(config, model)
    scale = scale_of_outputs(experts, config['about'].get('logit_scale', 1.))
    return Subject(settings, data, model, experts, scale, None, [], None, folder if save else None, '')


def choose(labels: Sequence[int], classes: Sequence[int], limit: int) -> list[int]:
    """At most `limit` positions: the first image of each class, then the second, and so on, spread over the classes."""
    found: dict[int, list[int]] = {label: [] for label in classes}
    for position, label in enumerate(labels):
        if label in found:
            found[label].append(position)
    chosen: list[int] = []
    for turn in range(max(map(len, found.values()), default=0)):
        fresh = [positions[turn] for positions in found.values() if len(positions) > turn]
        room = min(limit - len(chosen), len(fresh))
        chosen += [fresh[i * len(fresh) // room] for i in range(room)]
    return chosen


def evaluation_images(data: Data, limit: int) -> tuple[Any, list[int]]:
    """At most `limit` evaluation images and their labels, in the order of the data set and from all classes."""
    if data.evaluation is None:
        raise ValueError('There are no evaluation images to measure on: name a split by --val-split.')
    if isinstance(data.evaluation, IterableDataset):
        _logger.warning(f'{data.name} is read as a stream: the first {limit} images are taken, whatever their class.')
        images = list(islice(data.evaluation, limit))
        return images, [int(label) for _, label in images]
    labels = [int(label) for label in data.evaluation.targets]
    chosen = sorted(choose(labels, data.shots.order, limit))
    return Subset(data.evaluation, chosen), [labels[i] for i in chosen]
