"""Initialisations of a ViT that is trained from scratch on few images."""
from typing import Any

import torch
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

INITIALIZATIONS = ('mimetic', 'conditioned')


@torch.no_grad()
def initialize(model: nn.Module, how: str) -> None:
    """Give the attention of a ViT new random weights, in place, and set its position embedding to sines and cosines.

    'mimetic' makes the attention similar to that of a trained ViT: together with sines and cosines every token attends
    to its neighbours, and the values are subtracted from the token rather than added. 'conditioned' gives each
    projection the best condition number. The position embedding stays trainable, and timm's optimizer factory exempts
    it from weight decay. All other weights stay as they are. Numbers are drawn from torch's global generator.

    Args:
        model: timm's ViT with a position embedding; changed in place.
        how: One of INITIALIZATIONS.

    Raises:
        ValueError: If the model is not such a ViT, the name is unknown, or the width is not a multiple of 4.

    Source: Mimetic Initialization of Self-Attention Layers (https://arxiv.org/abs/2305.09828); Conditioned
    Initialization for Attention (https://openreview.net/forum?id=cKNOCYPo2W).
    """
    if how not in INITIALIZATIONS:
        raise ValueError(f'Unknown initialisation {how!r}, expected one of {INITIALIZATIONS}.')
    if not isinstance(model, VisionTransformer) or model.pos_embed is None:
        raise ValueError(
            f'--init {how} needs a ViT with a position embedding, but the model is {type(model).__name__}: use a '
            'deit_lt model, or leave --init out.')
    if model.embed_dim % 4:
        raise ValueError(
            f'--init {how} sets sines and cosines, which need a width that is a multiple of 4, but the width is '
            f'{model.embed_dim}: give another one by --model-kwargs embed_dim=N.')
    for block in model.blocks:
        attention: Any = block.attn
        query, key, value = attention.qkv.weight.chunk(3)
        if how == 'mimetic':
            _mimetic(query, key, value, attention.proj.weight, attention.num_heads)
        else:
            nn.init.orthogonal_(query)
            nn.init.orthogonal_(key)
            nn.init.eye_(value)
    _sines_and_cosines(model)


def _mimetic(query: Tensor, key: Tensor, value: Tensor, proj: Tensor, heads: int) -> None:
    """Make W_q^T W_k of each head close to .7 Z + .7 I, and W_v^T W_proj^T of all heads equal to .4 Z - .4 I."""
    width = len(query)
    rank = width // heads
    for head in range(heads):
        left, right = _roots(.7 * _noise(query) + .7 * torch.eye(width), rank)
        rows = slice(head * rank, (head + 1) * rank)
        query[rows] = left.T
        key[rows] = right.T
    left, right = _roots(.4 * _noise(value) - .4 * torch.eye(width), width)
    value.copy_(left.T)
    proj.copy_(right)


def _noise(like: Tensor) -> Tensor:
    # with variance 1 / D, as in an orthogonal matrix
    bound = (3 / len(like)) ** .5
    return torch.empty(like.shape).uniform_(-bound, bound)


def _roots(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """L and R `[D, rank]` such that L R^T is the best approximation of this rank to a matrix `[D, D]`."""
    u, s, vh = torch.linalg.svd(matrix)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, vh[:rank].T * root


def _sines_and_cosines(model: VisionTransformer) -> None:
    patches = build_sincos2d_pos_embed(model.patch_embed.grid_size, model.embed_dim)
    embedding: Any = model.pos_embed
    embedding.zero_()
    embedding[0, -len(patches):] = patches
