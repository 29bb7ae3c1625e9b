"""The three mechanisms of DeiT-LT measured on a finished run, or on a model in timm's form for the hub."""
import argparse
import csv
import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor, nn
from torch.utils.data import IterableDataset, Subset

from .analysis import (
    TeacherView,
    TokenFeatures,
    attention_maps,
    attention_rollout,
    divergence,
    effective_rank,
    energy_rank,
    mean_attention_distance,
    prefix_attention,
    token_features,
    uniform_attention_distance,
    watched_attention,
)
from .build.data import Data, build_data
from .build.loaders import build_eval_loader, build_mixup, build_train_loader
from .build.model import build_model, build_task, drw_start
from .build.trainer import choose_precision
from .checkpoint import (
    CONFIG,
    LAST,
    atomic_write,
    check_checkpoint,
    load_checkpoint,
    load_config,
    load_safetensors,
    load_weights,
    write_text,
)
from .data.augment import BatchAugment
from .data.loader import seed_everything
from .engine import expert_logits
from .hub import model_folder
from .results import EXPERTS, plain_json, versions
from .teacher_file import HUB, from_file, reorder_classes
from .teachers import NO_NETWORK, Teacher, teacher_args
from .validation import run_settings, settings_of_export

_logger = logging.getLogger(__name__)

RANK_ENERGY = 0.99
# The teacher is shown an epoch of training views, but not more than this many for each evaluation image
VIEWS_PER_IMAGE = 10
# Images of head classes, and as many of tail classes, of which attention maps are kept
PICTURES = 4


@dataclass
class Subject:
    """What is measured.

    Attributes:
        args: Settings of its training, or that make it.
        data: Its data sets.
        model: The trained network, in evaluation mode on its device.
        experts: Experts that were trained.
        teacher: Where its teacher's weights are, or None where that is not known.
        history: (epoch, mean cosine of CLS and DIST) of each epoch up to its weights.
        folder: Where the measurements are kept, or None for nowhere.
        suffix: What follows the names of the files; empty for the last checkpoint of a run.
    """
    args: argparse.Namespace
    data: Data
    model: nn.Module
    experts: Sequence[str]
    teacher: str | None
    history: list[tuple[int, float]]
    folder: Path | None
    suffix: str

    def __post_init__(self):
        self.device = torch.device(self.args.device)
        self.model.to(self.device).eval()
        self.autocast, _, words = choose_precision(self.args, self.device)
        _logger.info(f'Precision: {words}')

    @property
    def has_dist(self) -> bool:
        """Whether there is a DIST token, and it was trained."""
        return 'dist' in self.experts and isinstance(self.model, VisionTransformerDistilled)

    def batches(self, images: Any) -> Any:
        """Loader of evaluation images as the model expects them."""
        return build_eval_loader(self.args, images, self.model.pretrained_cfg, self.device)


def analyze(path: str, overrides: dict[str, Any] | None = None, num_images: int = 1000) -> dict[str, Any]:
    """Measure locality, rank and divergence on evaluation images, and the teacher on training images.

    Everything is in evaluation mode, by the last weights (not the EMA) and in the precision of the run. Of a model
    whose DIST token was not trained all that concerns DIST is None; `attention.npz` then has no maps of DIST.

    Args:
        path: Folder of a run, one of its checkpoints, a folder with model.safetensors and config.json, or
            'hf-hub:owner/name'.
        overrides: Settings that differ from the run's, as for `validation.validate`.
        num_images: Largest number of evaluation images; they are taken class by class, the same at every call.

    Returns:
        The measures, as also saved in analysis.json beside the checkpoint (with attention.npz; for a milestone-N both
        names end in -milestone-N), unless that is the Hub's folder. 'ood' is None without the teacher.

    Raises:
        ValueError: If the model is no plain ViT with a CLS token, or there are no evaluation images.
        FileNotFoundError: If there is no such file.
    """
    start = time.perf_counter()
    if num_images < 1:
        raise ValueError(f'--num-images {num_images} leaves nothing to measure: give at least 1, such as 1000.')
    subject = _open(path, overrides or {})
    images, labels = _evaluation_images(subject.data, num_images)
    result = {
        'model': subject.args.model,
        'num_images': len(labels),
        'images': subject.data.evaluated_on,
        **_measure_tokens(subject, images),
        'divergence_over_training': [[epoch, 1 - cosine] for epoch, cosine in subject.history],
        'ood': _measure_teacher(subject, images, VIEWS_PER_IMAGE * num_images),
    }
    maps = _picture_maps(subject, images, labels)
    result = plain_json({**result, 'seconds': round(time.perf_counter() - start, 1), 'versions': versions()})
    if subject.folder is not None and os.access(subject.folder, os.W_OK):
        write_text(subject.folder / f'analysis{subject.suffix}.json', json.dumps(result, indent=2) + '\n')
        if maps:
            atomic_write(subject.folder / f'attention{subject.suffix}.npz', lambda path: _save_arrays(path, maps))
    _logger.info('\n' + describe(result))
    return result


def _open(path: str, overrides: dict[str, Any]) -> Subject:
    if path.startswith(HUB):
        return _open_exported(model_folder(path.removeprefix(HUB)), overrides, save=False)
    file = Path(path)
    if (file / CONFIG).is_file():
        return _open_exported(file, overrides)
    return _open_run(file / LAST if file.is_dir() else file, overrides)


def _open_run(file: Path, overrides: dict[str, Any]) -> Subject:
    checkpoint = load_checkpoint(file)
    if 'args' not in checkpoint or 'experts' not in checkpoint:
        raise ValueError(f'{file} was not written by this train.py: it names no settings and no experts.')
    args = run_settings(checkpoint, overrides)
    data = build_data(args, evaluate_split=overrides.get('val_split'))
    check_checkpoint(checkpoint, str(file), args.model, data.train.fingerprint)
    model = build_model(args, data.train.num_classes)
    load_weights(model, checkpoint['state_dict'], str(file))
    reorder_classes(model, checkpoint['data']['class_names'], data.train.class_names, str(file))
    metrics = file.parent / 'metrics.json'
    teacher = (json.loads(metrics.read_text()).get('teacher') or {}) if metrics.is_file() else {}
    suffix = '' if file.name == LAST else '-' + file.name.removesuffix('.pth.tar')
    return Subject(
        args, data, model, checkpoint['experts'], teacher.get('path'), _history(file.parent, checkpoint['epoch']),
        file.parent, suffix)


def _history(folder: Path, last_epoch: int) -> list[tuple[int, float]]:
    summary = folder / 'summary.csv'
    if not summary.is_file():
        return []
    with open(summary, newline='') as file:
        rows = [(int(row['epoch']), row.get('train_cosine')) for row in csv.DictReader(file)]
    return [(epoch, float(cosine)) for epoch, cosine in rows if cosine and epoch <= last_epoch]


def _open_exported(folder: Path, overrides: dict[str, Any], save: bool = True) -> Subject:
    config = load_config(folder)
    args = settings_of_export(folder, config, overrides)
    data = build_data(args, evaluate_split=overrides.get('val_split'))
    model = build_model(args, data.train.num_classes)
    load_weights(model, load_safetensors(folder, 'Convert or download it again.'), str(folder / CONFIG))
    if names := config['pretrained_cfg'].get('label_names'):
        reorder_classes(model, names, data.train.class_names, str(folder / CONFIG))
    experts = config['about'].get('experts') or EXPERTS
    return Subject(args, data, model, experts, None, [], folder if save else None, '')


def _choose(labels: Sequence[int], classes: Sequence[int], limit: int) -> list[int]:
    """Positions of the first image of each class, then the second, ...; what does not fit is left out evenly."""
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


def _evaluation_images(data: Data, limit: int) -> tuple[Any, list[int]]:
    """At most `limit` evaluation images and their labels, in the order of the data set, all classes among them."""
    if data.evaluation is None:
        raise ValueError('There are no evaluation images to measure on: give --val-split.')
    if isinstance(data.evaluation, IterableDataset):
        _logger.warning(f'{data.name} is read as a stream: the first {limit} images are taken, of whatever class.')
        images = list(islice(data.evaluation, limit))
        return images, [int(label) for _, label in images]
    labels = [int(label) for label in data.evaluation.targets]
    chosen = sorted(_choose(labels, data.shots.order, limit))
    return Subset(data.evaluation, chosen), [labels[i] for i in chosen]


def _measure_tokens(subject: Subject, images: Any) -> dict[str, Any]:
    """Locality, rank and divergence, from one pass over the images."""
    model = subject.model
    features: list[TokenFeatures] = []
    sums: dict[int, Tensor] = {}

    def add(block: int, attention: Tensor) -> None:
        # a block at a time, as the maps of all are too many to keep
        distance = mean_attention_distance(attention, grid, patch_px, model.num_prefix_tokens)
        sums[block] = sums.get(block, 0) + distance * len(attention)

    with torch.inference_mode(), watched_attention(model, add):
        grid, patch_px = _grid(model), tuple(model.patch_embed.patch_size)
        for batch, _ in subject.batches(images):
            with subject.autocast():
                features.append(TokenFeatures(*(x if x is None else x.cpu() for x in token_features(model, batch))))
    has_dist = subject.has_dist
    cls, dist, cls_norm, dist_norm = (
        torch.cat(parts, dim=-2) if parts[0] is not None else None for parts in zip(*features, strict=True))
    if len(images) < cls.shape[-1]:
        _logger.info(
            f'{len(images)} images span at most {len(images)} of the {cls.shape[-1]} dimensions: ranks are comparable '
            'only between runs measured on as many.')
    apart = divergence(cls, dist).tolist() if has_dist else None
    return {
        'grid': list(grid),
        'patch_px': list(patch_px),
        'prefix_tokens': model.num_prefix_tokens,
        'attention_distance_px': [(sums[block] / len(images)).tolist() for block in sorted(sums)],
        'uniform_attention_distance_px': uniform_attention_distance(grid, patch_px),
        'rank_cls': energy_rank(cls, RANK_ENERGY).tolist(),
        'rank_dist': energy_rank(dist, RANK_ENERGY).tolist() if has_dist else None,
        'effective_rank_cls': effective_rank(cls).tolist(),
        'effective_rank_dist': effective_rank(dist).tolist() if has_dist else None,
        'rank_energy': RANK_ENERGY,
        'cos': [1 - value for value in apart] if has_dist else None,
        'divergence': apart,
        'cos_norm': 1 - divergence(cls_norm, dist_norm).item() if has_dist else None,
    }


def _load_teacher(subject: Subject) -> Teacher | None:
    """The teacher of a run, or None, with the reason in the log."""
    args, data = subject.args, subject.data
    if not subject.has_dist or args.teacher in NO_NETWORK:
        _logger.info('The model was trained without a teacher network: its training images are not measured.')
        return None
    if subject.teacher is None:
        _logger.warning('Where the teacher is is not known: what it says of the training images is not measured.')
        return None
    try:
        settings = teacher_args(args, sum(data.train.class_counts))
        named = argparse.Namespace(**{**vars(args), 'teacher_checkpoint': subject.teacher})
        return from_file(named, settings, data, lambda settings: build_model(settings, data.train.num_classes))
    except (FileNotFoundError, ValueError) as error:
        _logger.warning(f'What the teacher says of the training images is not measured. {error}')
        return None


def _measure_teacher(subject: Subject, images: Any, max_views: int) -> dict[str, Any] | None:
    """The teacher on what the student sees in its first epoch, the very same views, and on the evaluation images.

    They are the student's views even if the teacher was shown weaker ones (`--teacher-view weak`).
    """
    teacher = _load_teacher(subject)
    if teacher is None:
        return None
    # micro-batches make the views; how many of them make an update does not matter here
    args = argparse.Namespace(**{**vars(subject.args), 'grad_accum_steps': 1})
    data, model, device = subject.data, subject.model, subject.device
    task = build_task(args, model, teacher.model.to(device), data, device, torch.float32)
    scale = teacher.args.ldam_scale if teacher.args.loss == 'ldam' else 1.
    seen, clean = (TeacherView(data.shots.groups['tail'], scale) for _ in range(2))
    loader = build_train_loader(args, data, model.pretrained_cfg, device, 1, 0, '', torch.float32)
    erasing = 0. if args.no_aug else args.reprob
    augment = BatchAugment(build_mixup(args, data.train.num_classes), erasing, args.remode, args.recount, device)
    augment.mixup_enabled = args.keep_mixup_drw or drw_start(args) > 0
    with torch.inference_mode():
        for plan, batch, target in (micro_batch for update in loader.epoch(0) for micro_batch in update):
            # as in training, see Trainer
            seed_everything(args.seed, 0, plan.number)
            batch, _, target = augment(batch, target)
            with subject.autocast():
                dist_logits = expert_logits(model, batch, ('cls', 'dist'))['dist']
                seen.update(task.teacher(task.teacher_view(batch)), target, dist_logits)
            if seen.num_views >= max_views:
                break
        for batch, target in subject.batches(images):
            with subject.autocast():
                clean.update(task.teacher(task.teacher_view(batch)), target)
    seen, clean = seen.compute(), clean.compute()
    return {
        'teacher_top1_clean': clean['top1'],
        'teacher_top1_train_view': seen['top1'],
        'teacher_entropy_train_view': seen['entropy'],
        'teacher_entropy_clean': clean['entropy'],
        'teacher_tail_share': seen['tail_share'],
        'true_tail_share': seen['true_tail_share'],
        'dist_agreement': seen['agreement'],
        'num_views': seen['num_views'],
    }


def _grid(model: nn.Module) -> tuple[int, int]:
    return tuple(model.patch_embed.dynamic_feat_size(model.pretrained_cfg['input_size'][-2:]))


def _picture_maps(subject: Subject, images: Any, labels: Sequence[int]) -> dict[str, np.ndarray]:
    """Arrays of attention.npz: a few images of head and of tail classes as the model sees them, with their maps."""
    model, groups = subject.model, subject.data.shots.groups
    chosen = {group: _choose(labels, groups[group], PICTURES) for group in ('head', 'tail')}
    positions = [*chosen['head'], *chosen['tail']]
    if not positions:
        _logger.warning('There is no image of a head or a tail class among those measured: no attention maps are kept.')
        return {}
    batch = torch.cat([x for x, _ in subject.batches(Subset(images, positions))])
    with torch.inference_mode(), subject.autocast():
        attentions = attention_maps(model, batch)
    maps = {
        'rollout': attention_rollout(attentions, model.num_prefix_tokens),
        'last': prefix_attention(attentions[-1], model.num_prefix_tokens),
    }
    experts = ('cls', 'dist') if subject.has_dist else ('cls',)
    mean, std = (batch.new_tensor(model.pretrained_cfg[name]).view(-1, 1, 1) for name in ('mean', 'std'))
    pixels = (255 * (batch * std + mean)).round().clamp(0, 255)
    pixels = pixels[:, [0, 1, 2] if pixels.shape[1] >= 3 else [0, 0, 0]]
    return {
        'images': pixels.permute(0, 2, 3, 1).byte().cpu().numpy(),
        'labels': np.array([labels[i] for i in positions], dtype=np.int64),
        'groups': np.array([group for group, found in chosen.items() for _ in found]),
        **{
            f'{expert}_{kind}': rows[:, row].reshape(-1, *_grid(model)).cpu().numpy()
            for kind, rows in maps.items() for row, expert in enumerate(experts)
        },
    }


def _save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with open(path, 'wb') as file:  # given a name, numpy would add its own ending
        np.savez_compressed(file, **arrays)


def describe(result: dict[str, Any]) -> str:
    """Measures of `analyze` as a plain-text table."""
    lines = [
        f'{result["num_images"]} images; attention that is uniform reaches '
        f'{result["uniform_attention_distance_px"]:.1f} px',
        'block  attention distance, px  rank CLS  rank DIST  1 - cos']
    for block, distances in enumerate(result['attention_distance_px']):
        reach = f'{min(distances):.1f} to {max(distances):.1f}'
        rank = apart = '-'
        if result['rank_dist'] is not None:
            rank, apart = result['rank_dist'][block], f'{result["divergence"][block]:.3f}'
        lines.append(f'{block + 1:5}  {reach:>22}  {result["rank_cls"][block]:8}  {rank:>9}  {apart:>7}')
    if ood := result['ood']:
        lines.append(
            f'The teacher is right on {ood["teacher_top1_train_view"]:.1f} % of {ood["num_views"]} training views '
            f'(clean evaluation images: {ood["teacher_top1_clean"]:.1f} %) and says tail of '
            f'{ood["teacher_tail_share"]:.1f} % (true: {ood["true_tail_share"]:.1f} %); DIST says the same on '
            f'{ood["dist_agreement"]:.1f} %.')
    return '\n'.join(lines)
