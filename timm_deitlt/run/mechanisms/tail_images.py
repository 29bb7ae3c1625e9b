"""The images of tail classes that a model gets most wrong."""
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Subset

from ...engine.trainer import expert_logits
from ...evaluation.fusion import fuse
from .subject import Subject

MOST_IMAGES = 12
# Longest side of what is kept of an image, in pixels
THUMBNAIL = 80


@torch.inference_mode()
def worst_tail_images(subject: Subject, images: Any, labels: Sequence[int]) -> dict[str, np.ndarray]:
    """The wrong answers to images of tail classes that give the true class the least probability.

    Args:
        subject: The model.
        images: Evaluation images.
        labels: Their classes.

    Returns:
        Arrays of at most 12 images, the worst first: 'images' as the model sees them, shrunk, uint8 `[N, H, W, 3]`,
        their 'labels', the class 'predicted' by the model, its probability 'confidence', and
        'probability', that of the true class; nothing where there is no wrong answer.
    """
    tail = set(subject.data.shots.groups['tail'])
    positions = [i for i, label in enumerate(labels) if label in tail]
    if not positions:
        return {}
    true = torch.tensor([labels[i] for i in positions])
    chances = torch.cat([
        _probabilities(subject, batch) for batch, _ in subject.batches(Subset(images, positions))])
    confidence, predicted = chances.max(dim=-1)
    probability = chances.gather(1, true[:, None])[:, 0]
    worst = [i for i in probability.argsort(stable=True).tolist() if predicted[i] != true[i]][:MOST_IMAGES]
    if not worst:
        return {}
    batch = torch.cat([x for x, _ in subject.batches(Subset(images, [positions[i] for i in worst]))])
    height, width = batch.shape[-2:]
    if max(height, width) > THUMBNAIL:
        size = [max(1, round(side * THUMBNAIL / max(height, width))) for side in (height, width)]
        batch = F.interpolate(batch, size, mode='area')
    return {
        'images': subject.pixels(batch),
        'labels': true[worst].numpy(),
        'predicted': predicted[worst].numpy(),
        'confidence': confidence[worst].numpy(),
        'probability': probability[worst].numpy(),
    }


def _probabilities(subject: Subject, batch: torch.Tensor) -> torch.Tensor:
    with subject.autocast():
        logits = expert_logits(subject.model, batch, tuple(subject.experts))
    logits = fuse(logits, subject.answer, subject.data.shots.class_counts)
    return logits[(*subject.answer, 'mean')[0]].float().mul(subject.logit_scale).softmax(dim=-1).cpu()
