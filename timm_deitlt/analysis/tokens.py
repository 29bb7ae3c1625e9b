"""CLS and DIST tokens in each block: how many dimensions they fill (rank), and how much they differ (divergence).

The rank of the tokens of n images is at most n. So collect the tokens of at least as many images as the model is wide,
or better of a thousand, concatenate them along the batch, and measure once. Everything is computed in float64 on the
CPU.
"""
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from .attention import in_evaluation


class TokenFeatures(NamedTuple):
    """CLS and DIST tokens of images, float32.

    Attributes:
        cls: CLS in the output of each block, before the final norm, `[blocks, B, D]`.
        dist: DIST in the same outputs, or None for a model without a DIST token.
        cls_norm: CLS after the final norm, `[B, D]`, which is the input of the classifier.
        dist_norm: DIST after the final norm, or None.
    """
    cls: Tensor
    dist: Tensor | None
    cls_norm: Tensor
    dist_norm: Tensor | None


@torch.no_grad()
def token_features(model: nn.Module, images: Tensor) -> TokenFeatures:
    """CLS and DIST tokens of every block, in evaluation mode.

    Args:
        model: timm's VisionTransformer or VisionTransformerDistilled with a CLS token; unchanged afterwards.
        images: Normalised images `[B, C, H, W]`.

    Raises:
        ValueError: If the model is another one, or has no CLS token.

    Example:
        >>> model = timm.create_model('deit_lt_tiny', num_classes=10, img_size=64)
        >>> tokens = token_features(model, torch.randn(2, 3, 64, 64))
        >>> tokens.dist.shape, energy_rank(tokens.dist).shape
        (torch.Size([12, 2, 192]), torch.Size([12]))
    """
    if not isinstance(model, VisionTransformer) or not model.has_class_token:
        raise ValueError(
            f"{type(model).__name__} has no CLS token: give a deit_lt model, or another of timm's VisionTransformer "
            'models with a CLS token.')
    with in_evaluation(model):
        final, blocks = cast(Any, model).forward_intermediates(images, return_prefix_tokens=True, output_fmt='NLC')
    # [blocks, B, prefix, D]
    prefix = torch.stack([tokens for _, tokens in blocks]).float()
    distilled = isinstance(model, VisionTransformerDistilled)  # in other models the second token may be a register
    final = final.float()
    return TokenFeatures(
        prefix[:, :, 0], prefix[:, :, 1] if distilled else None, final[:, 0], final[:, 1] if distilled else None)


def energy_rank(features: Tensor, energy: float = 0.99) -> Tensor:
    """Number of largest singular values that are needed to reach a share of the sum of all squares.

    Args:
        features: `[..., n, D]`, one row per image. The rank is at most min(n, D). They are not centred, so what all
            images have in common counts as one dimension, and may hold most of the energy. (The source subtracts from
            each image the mean over its dimensions.)
        energy: The share of the squares, above 0 and at most 1.

    Returns:
        int64 `[...]`; 0 if all features are zero.

    Raises:
        ValueError: If an argument is out of its range.

    Source: Andriushchenko et al., Sharpness-aware minimization leads to low-rank features
    (https://arxiv.org/abs/2305.16292), and its released evaluation.
    """
    if not 0 < energy <= 1:
        raise ValueError(f'energy={energy} is out of range: give a share above 0 and at most 1.')
    squares = torch.linalg.svdvals(features.detach().cpu().double()).square()
    reached = squares.cumsum(dim=-1)
    total = reached[..., -1:]
    return (reached < energy * total).sum(dim=-1) + (total[..., 0] > 0)


def effective_rank(features: Tensor) -> Tensor:
    """Exponential of the entropy of the singular values, scaled to a sum of 1: a rank without a threshold.

    Args:
        features: `[..., n, D]`, one row per image.

    Returns:
        float64 `[...]`, from 1 to min(n, D). It is k for k equal singular values, and NaN if all features are zero.

    Source: Roy and Vetterli, The effective rank (EUSIPCO 2007), definition 1.
    """
    values = torch.linalg.svdvals(features.detach().cpu().double())
    shares = values / values.sum(dim=-1, keepdim=True)
    return torch.special.entr(shares).sum(dim=-1).exp()


def divergence(cls: Tensor, dist: Tensor) -> Tensor:
    """1 - mean cosine similarity of the CLS and DIST tokens of the same images.

    Args:
        cls: `[..., n, D]`.
        dist: `[..., n, D]`.

    Returns:
        float64 `[...]`: 0 for tokens of the same direction, 1 for orthogonal tokens.

    Source: DeiT-LT (https://arxiv.org/abs/2404.02900), whose released training logs the mean cosine of the tokens after
    the final norm, eps 1e-6.
    """
    cls, dist = cls.detach().cpu().double(), dist.detach().cpu().double()
    return 1 - F.cosine_similarity(cls, dist, dim=-1, eps=1e-6).mean(dim=-1)
