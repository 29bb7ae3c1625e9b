"""Cosine classifier, and a function that puts it into any timm model."""
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import Linear as TimmLinear

__all__ = ['CosineLinear', 'has_cosine_classifier', 'set_cosine_classifier']


@torch.fx.wrap
def _unit_length(x: torch.Tensor) -> torch.Tensor:
    # In half precision the square of a large feature overflows, and the eps that guards against division by zero
    # underflows. This is a leaf of torch.fx, because the dtype is only known when the graph runs.
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1).to(x.dtype)


class CosineLinear(nn.Module):
    """Classifier whose logits are the cosines between a feature and the class weights.

    Logits lie in [-1, 1] and do not depend on the length of the class weights. In a linear classifier this length grows
    with the number of training images. The loss scales the logits before its softmax.

    Args:
        in_features: Width D of the features.
        num_classes: Number of classes C; the weight is `[C, D]`, as in `nn.Linear`, and there is no bias.

    Shape: `[..., D]` to `[..., C]`, in the dtype of the input.

    Source: LDAM-DRW (https://arxiv.org/abs/1906.07413), NormedLinear.

    Example:
        >>> CosineLinear(64, 10)(torch.randn(2, 64)).shape
        torch.Size([2, 10])
    """

    def __init__(
            self,
            in_features: int,
            num_classes: int,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = num_classes
        self.weight = nn.Parameter(torch.empty(num_classes, in_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw class weights uniformly from the unit sphere."""
        # The length of a weight does not change the logits, but the gradient is divided by it. With unit length the
        # learning rates of the published teachers apply.
        nn.init.normal_(self.weight)
        with torch.no_grad():
            self.weight.copy_(_unit_length(self.weight))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(_unit_length(x), _unit_length(self.weight))

    def extra_repr(self) -> str:
        return f'in_features={self.in_features}, out_features={self.out_features}'


def has_cosine_classifier(model: nn.Module) -> bool:
    """Whether the outputs of a model are cosines."""
    return any(isinstance(module, CosineLinear) for module in model.modules())


def set_cosine_classifier(model: nn.Module) -> nn.Module:
    """Replace the linear classifier of a timm model by a cosine one of the same size.

    The new weights are random, on the device and in the dtype of the old ones. A later call of
    `model.reset_classifier(...)` creates a linear classifier again, because the model knows no other.

    Args:
        model: Any timm model whose `pretrained_cfg` names a single `nn.Linear` as classifier; changed in place.

    Returns:
        The same model.

    Raises:
        ValueError: If the model names no classifier or several, or if its classifier is not an `nn.Linear`.
    """
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    name = cfg.get('classifier')
    kind = type(model).__name__
    if not isinstance(name, str):
        raise ValueError(
            f'A cosine classifier needs one classifier to replace, but {kind} names {name!r} as "classifier" in its '
            'pretrained_cfg: use a timm model with a single head (not a distilled or a features_only one).'
        )
    classifier: Any = model.get_submodule(name)
    if isinstance(classifier, CosineLinear):
        return model
    # Another subclass may also normalise or quantise, which would be lost silently. timm's subclass only casts.
    if type(classifier) not in (nn.Linear, TimmLinear):
        raise ValueError(
            f'A cosine classifier can only replace an nn.Linear, but "{name}" of {kind} is '
            f'{type(classifier).__name__}: create the model with num_classes > 0, or choose one with a linear head.'
        )
    cosine = CosineLinear(
        classifier.in_features,
        classifier.out_features,
        device=classifier.weight.device,
        dtype=classifier.weight.dtype,
    )
    parent, _, child = name.rpartition('.')
    setattr(model.get_submodule(parent), child, cosine.train(classifier.training))
    return model
