"""DeiT-LT: the distilled DeiT whose class and distillation tokens act as two experts.

Paper: DeiT-LT: Distillation Strikes Back for Vision Transformer Training on Long-Tailed Datasets,
https://arxiv.org/abs/2404.02900

The model has the same parameters as timm's distilled DeiT, so their checkpoints can be exchanged. What makes it DeiT-LT
is its training.
"""
from functools import partial
from typing import Any

import torch
from timm.layers import PatchDropout
from timm.models import generate_default_cfgs, register_model
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import checkpoint_filter_fn

from ..benchmarks import pretrained_cfgs
from ._pretrained import create_pretrained

__all__ = ['DeiTLT']


def keep_prefix_tokens(model: Any) -> None:
    """Let patch dropout keep every token before the patches.

    timm creates it when a distilled ViT has only the class token, so that it would drop DIST like a patch.
    """
    if isinstance(getattr(model, 'patch_drop', None), PatchDropout):
        model.patch_drop.num_prefix_tokens = model.num_prefix_tokens


class DeiTLT(VisionTransformerDistilled):
    """Distilled Vision Transformer that can return the logits of its two experts.

    In evaluation `forward` returns the mean of the logits of both heads. In training with
    `set_distilled_training(True)` it returns both as a tuple. In training call `forward`, not `forward_experts`,
    because DistributedDataParallel only wraps `forward`.

    Example:
        >>> model = timm.create_model('deit_lt_tiny', num_classes=10, img_size=32, patch_size=4).eval()
        >>> cls_logits, dist_logits = model.forward_experts(torch.randn(2, 3, 32, 32))
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        keep_prefix_tokens(self)

    @torch.jit.export
    def forward_experts(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the class token's head and of the distillation token's head.

        Args:
            x: Images `[B, in_chans, H, W]`.

        Returns:
            `cls_logits` and `dist_logits`, each `[B, num_classes]`. If the model has no classifier, the two tokens,
            each `[B, D]`. In evaluation `forward` returns the mean of both.
        """
        x = self.forward_features(x)
        return self.head(self.head_drop(x[:, 0])), self.head_dist(self.head_drop(x[:, 1]))


# Students are exported under the names of timm's own distilled DeiT, so that timm alone loads them; here such a model
# shows its experts too.
VisionTransformerDistilled.forward_experts = DeiTLT.forward_experts  # type: ignore[attr-defined]


def _create_deit_lt(variant: str, pretrained: bool = False, **kwargs: Any) -> DeiTLT:
    out_indices = kwargs.pop('out_indices', 3)
    return create_pretrained(
        DeiTLT,
        variant,
        pretrained,
        pretrained_filter_fn=partial(checkpoint_filter_fn, adapt_layer_scale=True),
        feature_cfg=dict(out_indices=out_indices, feature_cls='getter'),
        **kwargs,
    )


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        'pool_size': None, 'fixed_input_size': True,
        'first_conv': 'patch_embed.proj', 'classifier': ('head', 'head_dist'),
        'license': 'apache-2.0', 'paper_ids': 'arXiv:2404.02900',
        **kwargs,
    }


default_cfgs = generate_default_cfgs({
    name: _cfg(**cfg)
    for variant in ('deit_lt_tiny', 'deit_lt_small', 'deit_lt_base') for name, cfg in pretrained_cfgs(variant).items()
})


@register_model
def deit_lt_tiny(pretrained: bool = False, **kwargs: Any) -> DeiTLT:
    """DeiT-LT tiny: width 192, 3 heads, 12 blocks, 16 px patches."""
    model_args = dict(patch_size=16, embed_dim=192, depth=12, num_heads=3)
    return _create_deit_lt('deit_lt_tiny', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def deit_lt_small(pretrained: bool = False, **kwargs: Any) -> DeiTLT:
    """DeiT-LT small: width 384, 6 heads, 12 blocks, 16 px patches."""
    model_args = dict(patch_size=16, embed_dim=384, depth=12, num_heads=6)
    return _create_deit_lt('deit_lt_small', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def deit_lt_base(pretrained: bool = False, **kwargs: Any) -> DeiTLT:
    """DeiT-LT base, the size of the paper: width 768, 12 heads, 12 blocks, 16 px patches."""
    model_args = dict(patch_size=16, embed_dim=768, depth=12, num_heads=12)
    return _create_deit_lt('deit_lt_base', pretrained=pretrained, **dict(model_args, **kwargs))
