"""Attention of every block, its mean distance, and its rollout over all blocks."""
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from timm.layers.attention import Attention, resolve_self_attn_mask
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn


@contextmanager
def watched_attention(model: nn.Module, receive: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Hand the attention of every block to `receive` while the model runs, one block at a time.

    The fused kernel does not return the attention. So it is computed again from the input of each attention module, by
    timm's own steps but without dropout. The output of the model does not change.

    Args:
        model: timm's VisionTransformer or VisionTransformerDistilled.
        receive: Called with the number of the block and its attention `[B, heads, N, N]`, float32. Its rows (queries)
            sum to 1, and N counts the prefix tokens, followed by the patches.

    Raises:
        ValueError: If the model is another one, or its blocks have another kind of attention.
    """
    modules = _attention_modules(model)

    def hook(block: int) -> Callable:
        return lambda module, args, kwargs: receive(block, _attention(module, *args, **kwargs).detach())

    handles = [
        module.register_forward_pre_hook(hook(block), with_kwargs=True) for block, module in enumerate(modules)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _attention_modules(model: nn.Module) -> list[Attention]:
    blocks = model.blocks if isinstance(model, VisionTransformer) else ()
    modules: list[Any] = [getattr(block, 'attn', None) for block in blocks]
    # another class may compute its attention in another way
    if not modules or any(type(module) is not Attention for module in modules):
        raise ValueError(
            f'{type(model).__name__} has no blocks with the attention of a plain ViT, which is needed to measure '
            "attention: give a deit_lt model, or another of timm's VisionTransformer models with timm's own Block.")
    return modules


def _attention(module: Attention, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    # takes the arguments of Attention.forward
    batch, length, _ = x.shape
    query, key, _ = module.qkv(x).view(batch, length, 3, module.num_heads, module.head_dim).permute(2, 0, 3, 1, 4)
    scores = (module.q_norm(query) * module.scale) @ module.k_norm(key).mT
    bias = resolve_self_attn_mask(length, scores, attn_mask, is_causal)
    # in float32, so that the rows sum to 1 under autocast too
    return (scores if bias is None else scores + bias).float().softmax(dim=-1)


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode, and restore the mode of every module afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@torch.no_grad()
def attention_maps(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Attention of each block in evaluation mode, with or without fused attention.

    Args:
        model: timm's VisionTransformer or VisionTransformerDistilled; unchanged afterwards.
        images: Normalised images `[B, C, H, W]`.

    Returns:
        For each block `[B, heads, N, N]`, float32, whose rows sum to 1. N counts the prefix tokens, followed by the
        patches.

    Raises:
        ValueError: If the model has no such blocks.

    Example:
        >>> model = timm.create_model('deit_lt_tiny', num_classes=10, img_size=64)
        >>> len(attention_maps(model, torch.randn(2, 3, 64, 64)))
        12
    """
    maps: list[Tensor] = []
    with watched_attention(model, lambda _, attention: maps.append(attention)), in_evaluation(model):
        cast(Any, model).forward_features(images)
    return maps


def patch_distances(grid: tuple[int, int], patch_px: int | tuple[int, int]) -> Tensor:
    """Distances between the centres of all patches in pixels, float64 `[h * w, h * w]`; patches count row by row."""
    height, width = (patch_px, patch_px) if isinstance(patch_px, int) else patch_px
    centres = torch.cartesian_prod(
        torch.arange(grid[0], dtype=torch.float64) * height, torch.arange(grid[1], dtype=torch.float64) * width)
    return torch.linalg.vector_norm(centres[:, None] - centres, dim=-1)


def uniform_attention_distance(grid: tuple[int, int], patch_px: int | tuple[int, int]) -> float:
    """Mean attention distance in pixels if every patch gets the same attention."""
    return patch_distances(grid, patch_px).mean().item()


def mean_attention_distance(
        attention: Tensor,
        grid: tuple[int, int],
        patch_px: int | tuple[int, int],
        num_prefix_tokens: int,
) -> Tensor:
    """Mean distance over which each head of a block attends: distance to patches weighted by attention, in pixels.

    Prefix tokens (CLS, DIST, registers) have no place in the image, so they are dropped as queries and as keys. The
    attention that a patch pays to patches is then scaled to a sum of 1. The mean is over query patches and images. A
    query is left out if its attention to all patches is rounded to 0, because it has no distance.

    Args:
        attention: `[B, heads, N, N]`, as from `attention_maps`.
        grid: Rows and columns of patches.
        patch_px: Side, or height and width, of a patch in pixels of the model's input.
        num_prefix_tokens: Tokens before the patches.

    Returns:
        The distance of each head, float64 `[heads]`. Uniform attention on 14 x 14 patches of 16 px has 116.5 px.

    Raises:
        ValueError: If N is not the number of prefix tokens and patches.

    Source: Raghu et al. (https://arxiv.org/abs/2108.08810), section 3; Dosovitskiy et al.
    (https://arxiv.org/abs/2010.11929), figure 7.
    """
    length = num_prefix_tokens + grid[0] * grid[1]
    if attention.ndim != 4 or attention.shape[-2:] != (length, length):
        raise ValueError(
            f'Attention of {num_prefix_tokens} prefix tokens and {grid[0]} x {grid[1]} patches must be '
            f'[B, heads, {length}, {length}], got {list(attention.shape)}.')
    between = attention[:, :, num_prefix_tokens:, num_prefix_tokens:]
    distances = patch_distances(grid, patch_px).to(attention.dtype).to(attention.device)  # MPS has no float64
    distance = (between * distances).sum(dim=-1).cpu().double()
    left = between.sum(dim=-1).cpu().double()
    seeing = left != 0
    distance = torch.where(seeing, distance / left, 0.)
    return distance.sum(dim=(0, 2)) / seeing.sum(dim=(0, 2))


def prefix_attention(attention: Tensor, num_prefix_tokens: int) -> Tensor:
    """Attention of the prefix tokens to the patches, as the mean of the heads, each row scaled to a sum of 1.

    Args:
        attention: `[B, heads, N, N]`, as from `attention_maps`.
        num_prefix_tokens: Tokens before the patches.

    Returns:
        `[B, num_prefix_tokens, h * w]`, the row of CLS first and, in a distilled model, that of DIST second.

    Raises:
        ValueError: If there is no prefix token.
    """
    return _over_patches(attention.mean(dim=1), num_prefix_tokens)


def attention_rollout(attentions: Sequence[Tensor], num_prefix_tokens: int) -> Tensor:
    """How much of each patch reaches the prefix tokens through all blocks.

    The attention A of a block is the mean of its heads. With the residual connection it becomes (A + I) / 2, with rows
    scaled to a sum of 1. The rollout is the product over the blocks; small values are not discarded. The result holds
    the rows of the prefix tokens and the columns of the patches, with rows scaled to a sum of 1.

    Args:
        attentions: `[B, heads, N, N]` of each block, first block first, as from `attention_maps`.
        num_prefix_tokens: Tokens before the patches.

    Returns:
        `[B, num_prefix_tokens, h * w]`, the row of CLS first and, in a distilled model, that of DIST second.

    Raises:
        ValueError: If there is no block or no prefix token.

    Source: Abnar and Zuidema (https://arxiv.org/abs/2005.00928), section 3, equation 1.
    """
    if not attentions:
        raise ValueError('A rollout needs the attention of at least one block, got none.')
    rollout: Any = None
    for attention in attentions:
        mixed = (attention.mean(dim=1) + torch.eye(attention.shape[-1], device=attention.device)) / 2
        mixed = mixed / mixed.sum(dim=-1, keepdim=True)
        rollout = mixed if rollout is None else mixed @ rollout
    return _over_patches(rollout, num_prefix_tokens)


def _over_patches(attention: Tensor, num_prefix_tokens: int) -> Tensor:
    if num_prefix_tokens < 1:
        raise ValueError(
            f'Attention maps are those of prefix tokens, but there are {num_prefix_tokens}: use a model with a CLS '
            'token.')
    rows = attention[:, :num_prefix_tokens, num_prefix_tokens:]
    return rows / rows.sum(dim=-1, keepdim=True)
