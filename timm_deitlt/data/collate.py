"""Collate images into batches."""
from typing import Any

import torch
from timm.data.loader import fast_collate
from torch import Tensor
from torch.utils.data import default_collate


def collate(batch: list[tuple[Any, int]]) -> tuple[Tensor, Tensor]:
    """timm's `fast_collate`, extended to float images, which it would turn into bytes.

    Args:
        batch: For each image a view `[C, H, W]` or a tuple of V views, and the label.

    Returns:
        Images `[V * B, C, H, W]`, view after view, of unchanged type, and class indices `[V * B]`.
    """
    views = batch[0][0] if isinstance(batch[0][0], tuple) else (batch[0][0],)
    if not (isinstance(views[0], Tensor) and views[0].is_floating_point()):
        return fast_collate(batch)
    images = [image if isinstance(image, tuple) else (image,) for image, _ in batch]
    target = default_collate([label for _, label in batch]).long()
    return torch.stack([view for same in zip(*images, strict=True) for view in same]), target.repeat(len(views))
