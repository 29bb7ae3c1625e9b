"""All measures of a model, and the files that keep them."""
import json
import logging
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from ...analysis import (
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
from ...models._timm import TimmModel
from ...utils.files import atomic_write, write_text
from ...utils.tables import text_table
from ...utils.versions import plain_json, versions
from .subject import Subject, choose, evaluation_images, open_subject
from .tail_gap import measure_tail_gap
from .tail_images import worst_tail_images
from .teacher import measure_teacher

_logger = logging.getLogger(__name__)

RANK_ENERGY = 0.99
# The teacher is shown an epoch of training views, but not more than this many for each evaluation image
VIEWS_PER_IMAGE = 10
# Number of images of head classes, and of tail classes, whose attention maps are kept
PICTURES = 4


def analyze(path: str, overrides: dict[str, Any] | None = None, num_images: int = 1000) -> dict[str, Any]:
    """Measure locality, rank and divergence on evaluation images, and the teacher on training images.

    The model is in evaluation mode, with the last weights (not the EMA) and in the precision of the run. If its DIST
    token was not trained, all measures of DIST are None, and `attention.npz` has no maps of DIST.

    Args:
        path: Folder of a run, one of its checkpoints, a folder with model.safetensors and config.json, or
            'hf-hub:owner/name'.
        overrides: Settings that differ from the run's, as for `run.validate.validate`.
        num_images: Largest number of evaluation images; they are spread over the classes and the same in every call.

    Returns:
        The measures. They are also saved beside the checkpoint as analysis.json, together with attention.npz and
        tail_images.npz, unless the model comes from the Hub. For a milestone-N the names end in -milestone-N. 'ood' is
        None without a teacher.

    Raises:
        ValueError: If the model is no plain ViT with a CLS token, or there are no evaluation images.
        FileNotFoundError: If there is no such file.
    """
    start = time.perf_counter()
    if num_images < 1:
        raise ValueError(f'--num-images {num_images} leaves nothing to measure: give at least 1, such as 1000.')
    subject = open_subject(path, overrides or {})
    images, labels = evaluation_images(subject.data, num_images)
    result = {
        'model': subject.settings.model.name,
        'num_images': len(labels),
        'images': subject.data.evaluated_on,
        **_measure_tokens(subject, images),
        'divergence_over_training': [[epoch, 1 - cosine] for epoch, cosine in subject.history],
        'tail_gap': measure_tail_gap(subject, images, num_images),
        'ood': measure_teacher(subject, images, VIEWS_PER_IMAGE * num_images),
    }
    pictures = {
        'attention': _picture_maps(subject, images, labels), 'tail_images': worst_tail_images(subject, images, labels)}
    result = plain_json({**result, 'seconds': round(time.perf_counter() - start, 1), 'versions': versions()})
    if subject.folder is not None and os.access(subject.folder, os.W_OK):
        write_text(subject.folder / f'analysis{subject.suffix}.json', json.dumps(result, indent=2) + '\n')
        for name, arrays in pictures.items():
            if arrays:
                atomic_write(subject.folder / f'{name}{subject.suffix}.npz', partial(_save_arrays, arrays=arrays))
    _logger.info('\n' + describe(result))
    return result


def _measure_tokens(subject: Subject, images: Any) -> dict[str, Any]:
    """Locality, rank and divergence, from one pass over the images."""
    model = subject.model
    features: list[TokenFeatures] = []
    sums: dict[int, Tensor] = {}

    def add(block: int, attention: Tensor) -> None:
        # one block at a time, because the maps of all blocks take too much memory
        distance = mean_attention_distance(attention, grid, patch_px, model.num_prefix_tokens)
        sums[block] = sums.get(block, 0) + distance * len(attention)

    with torch.inference_mode(), watched_attention(model, add):
        grid, patch_px = _grid(model), tuple(model.patch_embed.patch_size)
        for batch, _ in subject.batches(images):
            with subject.autocast():
                tokens: list[Any] = [x if x is None else x.cpu() for x in token_features(model, batch)]
                features.append(TokenFeatures(*tokens))
    has_dist = subject.has_dist
    joined: list[Any] = [
        torch.cat(parts, dim=-2) if parts[0] is not None else None for parts in zip(*features, strict=True)]
    cls, dist, cls_norm, dist_norm = joined
    if len(images) < cls.shape[-1]:
        _logger.info(
            f'{len(images)} images span at most {len(images)} of the {cls.shape[-1]} dimensions: compare the ranks '
            'only with those of runs measured on as many images.')
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
        'cos': None if apart is None else [1 - value for value in apart],
        'divergence': apart,
        'cos_norm': 1 - divergence(cls_norm, dist_norm).item() if has_dist else None,
    }


def _grid(model: TimmModel) -> tuple[int, int]:
    return tuple(model.patch_embed.dynamic_feat_size(model.pretrained_cfg['input_size'][-2:]))


def _picture_maps(subject: Subject, images: Any, labels: Sequence[int]) -> dict[str, np.ndarray]:
    """Arrays of attention.npz: a few images of head and of tail classes as the model sees them, with their maps."""
    model, groups = subject.model, subject.data.shots.groups
    chosen = {group: choose(labels, groups[group], PICTURES) for group in ('head', 'tail')}
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
    return {
        'images': subject.pixels(batch),
        'labels': np.array([labels[i] for i in positions], dtype=np.int64),
        'groups': np.array([group for group, found in chosen.items() for _ in found]),
        **{
            f'{expert}_{kind}': rows[:, row].reshape(-1, *_grid(model)).cpu().numpy()
            for kind, rows in maps.items() for row, expert in enumerate(experts)
        },
    }


def _save_arrays(path: Path, arrays: dict[str, Any]) -> None:
    with open(path, 'wb') as file:  # given a name, numpy would add its own ending
        np.savez_compressed(file, **arrays)


def describe(result: dict[str, Any]) -> str:
    """Measures of `analyze` as a plain-text table."""
    table = [['block', 'attention distance, px', 'rank CLS', 'rank DIST', '1 - cos']]
    for block, distances in enumerate(result['attention_distance_px']):
        rank = apart = '-'
        if result['rank_dist'] is not None:
            rank, apart = f'{result["rank_dist"][block]}', f'{result["divergence"][block]:.3f}'
        table.append([
            str(block + 1), f'{min(distances):.1f} to {max(distances):.1f}', f'{result["rank_cls"][block]}', rank,
            apart])
    lines = [
        f'{result["num_images"]} images; uniform attention would have a distance of '
        f'{result["uniform_attention_distance_px"]:.1f} px',
        text_table(table)]
    if ood := result['ood']:
        lines.append(
            f'The teacher is right on {ood["teacher_top1_train_view"]:.1f} % of {ood["num_views"]} training views '
            f'(clean evaluation images: {ood["teacher_top1_clean"]:.1f} %). It predicts a tail class for '
            f'{ood["teacher_tail_share"]:.1f} % of these views (true share: {ood["true_tail_share"]:.1f} %). DIST '
            f'predicts the same class as the teacher on {ood["dist_agreement"]:.1f} %.')
    return '\n'.join(lines)
