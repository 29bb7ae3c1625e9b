"""A trained model that answers for new images, loaded from a run, a folder in timm's form, or the Hub."""
import argparse
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..data.image import as_opened, image_mode, open_image
from ..engine.checkpoint import LAST, load_run
from ..engine.device import choose_device
from ..engine.trainer import expert_logits
from ..evaluation.fusion import choose_fusions, fuse, scale_of_outputs
from ..models._hub import model_folder
from ..models.weights import CONFIG, load_config, load_safetensors, load_weights
from ..settings.layers import with_defaults
from .build.model import build_model
from .results import EXPERTS, refuse_folds
from .settings import model_settings
from .teacher_cache import RECORD
from .teacher_file import HUB
from .teacher_settings import NO_WEIGHTS


@dataclass(frozen=True)
class TrainedModel:
    """A trained model, and what it takes to use it; `load_model` makes it.

    Attributes:
        model: In evaluation mode, on its device.
        transform: Makes of a PIL image what the model takes, float32 `[C, H, W]`.
        label_names: Names of the classes in the order of the logits.
        experts: Those of 'mean', 'cls' and 'dist' that were trained.
        class_counts: Training images of each class, or None where that is not known.
        data_config: Size, mean, std, interpolation and crop of its images.
        image_mode: Mode that images are opened in, see `data.image.open_image`.
        logit_scale: Factor that makes the outputs of a single classifier the logits of its loss, see LDAM.
        fusion: How the answer is made of the experts, unless `predict` is told otherwise.

    Example:
        >>> trained = timm_deitlt.load_model('output/train/RUN')  # doctest: +SKIP
        >>> trained.predict(['new.jpg'])[0]['labels'][0]  # doctest: +SKIP
        'cat'
    """
    model: nn.Module
    transform: Callable[[Image.Image], Tensor]
    label_names: tuple[str, ...]
    experts: tuple[str, ...]
    class_counts: tuple[int, ...] | None
    data_config: dict[str, Any]
    image_mode: str = 'RGB'
    logit_scale: float = 1.
    fusion: str = 'mean'

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def predict(self, images: Iterable[Any], **options: Any) -> list[dict[str, Any]]:
        """What the model says of images.

        Args:
            images: Paths, files that are open for reading bytes, and PIL images, in any mixture; or one of them.
            options: Of `predict_batches`.

        Returns:
            For each image a row of `predict_batches`.
        """
        single = isinstance(images, (str, bytes, os.PathLike, Image.Image)) or hasattr(images, 'read')
        return [row for rows in self.predict_batches([images] if single else images, **options) for row in rows]

    def predict_batches(
            self,
            images: Iterable[Any],
            topk: int = 5,
            experts: bool = False,
            fusion: str | None = None,
            batch_size: int = 64,
            workers: int = 0,
            autocast: Callable = nullcontext,
    ) -> Iterator[list[dict[str, Any]]]:
        """Rows of one batch of images after the other, in the order of the images.

        Args:
            images: As for `predict`. Processes (`workers`) can be sent paths and PIL images.
            topk: Classes of an answer, the likeliest first.
            experts: Whether CLS and DIST give an answer of their own.
            fusion: How the answer is made of the experts: 'mean' is the mean of their logits, others are in
                `evaluation.fusion`. By default that of the run.
            batch_size: Images in a batch.
            workers: Processes that read images; 0 for none beside this one.
            autocast: Makes the context of forward passes.

        Yields:
            For each image 'path', then 'labels' and 'probabilities' of the answer, and with `experts` the same two
            under 'cls' and 'dist'. Of an image that cannot be read 'path' and 'error', the reason.

        Raises:
            ValueError: If an option is not usable, or a fusion needs what is not known of the model.
        """
        answers = self._answers(topk, experts, fusion or self.fusion, batch_size)
        images = list(images)
        for image in images:
            if not isinstance(image, (str, os.PathLike, Image.Image)) and not hasattr(image, 'read'):
                raise TypeError(
                    f'An image is a path, a file open for reading bytes, or a PIL image, not {type(image).__name__}. '
                    'Make an array one by PIL.Image.fromarray, and the bytes of a file by io.BytesIO.')
        return self._batches(images, topk, answers, batch_size, workers, autocast)

    def _batches(
            self,
            images: list[Any],
            topk: int,
            answers: Sequence[str],
            batch_size: int,
            workers: int,
            autocast: Callable,
    ) -> Iterator[list[dict[str, Any]]]:
        loader = DataLoader(
            _Files(self._pixels(), self.data_config['input_size'][0], self.image_mode), num_workers=workers,
            collate_fn=_collate,
            batch_sampler=[images[start:start + batch_size] for start in range(0, len(images), batch_size)],
            pin_memory=self.device.type == 'cuda')
        for names, pixels, errors in loader:
            found = [] if pixels is None else self._answer(pixels, topk, answers, autocast)
            readable = iter(found)
            yield [
                {'path': name, **({'error': error} if error else next(readable))}
                for name, error in zip(names, errors, strict=True)]

    def logits(self, pixels: Tensor, answers: Sequence[str] = ('mean',)) -> Tensor:
        """Logits, or log-probabilities of a fusion, of uint8 images `[B, C, H, W]` on its device: `[A, B, classes]`."""
        mean, std = (
            pixels.new_tensor(self.data_config[name], dtype=torch.float32).view(-1, 1, 1) for name in ('mean', 'std'))
        images = (pixels.float() - 255 * mean) / (255 * std)
        logits = {
            name: self.logit_scale * values for name, values in expert_logits(self.model, images, self.experts).items()}
        fusions = [name for name in answers if name not in EXPERTS]
        if fusions and self.class_counts is not None:
            logits = fuse(logits, fusions, self.class_counts)
        return torch.stack([logits[name].float() for name in answers])

    def _answers(self, topk: int, experts: bool, fusion: str, batch_size: int) -> tuple[str, ...]:
        for name, value in (('topk', topk), ('batch_size', batch_size)):
            if value < 1:
                raise ValueError(f'{name} must be at least 1, got {value}.')
        if fusion == 'all':
            raise ValueError('An image has one answer: give one fusion, not all.')
        answer, = choose_fusions(fusion, self.experts, self.logit_scale != 1) or ('mean',)
        if answer != 'mean' and self.class_counts is None:
            raise ValueError(
                f'{fusion} needs the training images of each class, which are not known of this model: use mean.')
        return (answer, *(name for name in self.experts if experts and name != 'mean'))

    @torch.inference_mode()
    def _answer(self, pixels: Tensor, topk: int, answers: Sequence[str], autocast: Callable) -> list[dict[str, Any]]:
        with autocast():
            logits = self.logits(pixels.to(self.device, non_blocking=True), answers)
        best = logits.softmax(dim=-1).topk(min(topk, len(self.label_names)))
        rows = []
        for found in zip(best.values.transpose(0, 1).tolist(), best.indices.transpose(0, 1).tolist(), strict=True):
            first, *others = (
                {'labels': [self.label_names[label] for label in labels], 'probabilities': probabilities}
                for probabilities, labels in zip(*found, strict=True))
            rows.append({**first, **dict(zip(answers[1:], others, strict=True))})
        return rows

    def _pixels(self) -> Callable[[Image.Image], Tensor]:
        """The transform as far as uint8: a quarter of the bytes go from the processes to the device."""
        return create_transform(**self.data_config, is_training=False, use_prefetcher=True)


def load_model(path: str | os.PathLike, device: str | None = None) -> TrainedModel:
    """Load a trained model.

    Args:
        path: Folder of a run, one of its checkpoints, a folder with model.safetensors and config.json, or
            'hf-hub:owner/name'.
        device: 'cuda', 'cuda:N' or 'cpu'; by default CUDA where it is available.

    Raises:
        FileNotFoundError: If there is no such file, or the Hub does not give it.
        ValueError: If it is not a model, or the device cannot be used.
    """
    device = choose_device(device, plain=True)  # forward alone the fused attention is faster on CPUs too
    name = os.fspath(path)
    if name.startswith(HUB):
        return _load_exported(model_folder(name.removeprefix(HUB)), name, device)
    file = Path(name)
    if (file / CONFIG).is_file():
        return _load_exported(file, name, device)
    if (file / RECORD).is_file():  # a cached teacher: its run lies inside
        file = file / 'train'
    refuse_folds(file)
    if file.is_dir() and not (file / LAST).is_file():
        raise FileNotFoundError(
            f'{name!r} holds neither {LAST}, as a run does, nor {CONFIG}, as an exported model does: give the folder '
            'of one of them.')
    return _load_run(file / LAST if file.is_dir() else file, device)


def _load_run(file: Path, device: str) -> TrainedModel:
    checkpoint = load_run(file)
    asked = argparse.Namespace(**{**vars(with_defaults(checkpoint['args'])), **NO_WEIGHTS})
    names = checkpoint['data']['class_names']
    model = build_model(model_settings(asked), len(names))
    load_weights(model, checkpoint['state_dict'], str(file))
    return _trained(
        model, names, checkpoint['experts'], checkpoint['data']['train_counts'], device, asked.input_img_mode,
        asked.ldam_scale if asked.loss == 'ldam' else 1., asked.fusion)


def _load_exported(folder: Path, name: str, device: str) -> TrainedModel:
    config = load_config(folder)
    try:
        model: Any = timm.create_model(f'local-dir:{folder}')
    except (AssertionError, RuntimeError, TypeError) as error:
        raise ValueError(f'timm cannot make the model of {name}: {error}') from error
    load_weights(model, load_safetensors(folder, 'Export or download it again.'), name, 'Export or download it again.')
    about = config['about']
    names = config['pretrained_cfg'].get('label_names') or map(str, range(model.num_classes))
    experts = about.get('experts') or (EXPERTS if isinstance(model.get_classifier(), tuple) else ('mean', 'cls'))
    return _trained(
        model, names, experts, about.get('class_counts'), device, about.get('image_mode'), about.get('logit_scale', 1.),
        about.get('fusion', 'mean'))


def _trained(
        model: nn.Module,
        names: Iterable[str],
        experts: Sequence[str],
        class_counts: Sequence[int] | None,
        device: str,
        mode: str | None,
        logit_scale: float,
        fusion: str,
) -> TrainedModel:
    config = resolve_data_config(pretrained_cfg=model.pretrained_cfg)
    mode = image_mode(config['input_size'][0], mode)
    return TrainedModel(
        model.to(device).eval(), create_transform(**config, is_training=False), tuple(names),
        tuple(experts), tuple(class_counts) if class_counts else None, config, mode,
        scale_of_outputs(experts, logit_scale), fusion)


class _Files(Dataset):
    """Images by themselves or by their path: an item is the name, and the pixels or why there are none."""

    def __init__(self, transform: Callable[[Any], Tensor], in_chans: int, mode: str):
        self.transform, self.in_chans, self.mode = transform, in_chans, mode

    def __getitem__(self, image: Any) -> tuple[str, Tensor | None, str]:
        name = os.fspath(image) if isinstance(image, (str, os.PathLike)) else str(getattr(image, 'filename', '') or '')
        try:
            opened: Any = (as_opened if isinstance(image, Image.Image) else open_image)(image, self.in_chans, self.mode)
            return name, self.transform(opened), ''
        except Exception as error:  # Pillow and its decoders raise many kinds, and one image does not end the others
            return name, None, ' '.join(str(error).split()) or type(error).__name__


def _collate(items: list[tuple[str, Tensor | None, str]]) -> tuple[list[str], Tensor | None, list[str]]:
    pixels = [pixels for _, pixels, _ in items if pixels is not None]
    return [name for name, *_ in items], torch.stack(pixels) if pixels else None, [error for *_, error in items]
