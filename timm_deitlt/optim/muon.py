"""timm's Muon in float32, and for hidden layers only."""
from functools import partial, wraps
from typing import Any

import torch
from timm.optim import Muon, muon
from torch import nn


def orthogonalize_in_float32(optimizer: Muon) -> None:
    """Let an optimizer of timm's Muon family run its Newton-Schulz iteration in float32.

    timm runs it in bfloat16 and has no argument to change this, so a run in float32 would depend on what its CPU makes
    of bfloat16. One without instructions for it emulates them: a 384 x 1536 matrix then takes 1.4 s, not 0.05 s.
    """
    step, iteration = optimizer.step, muon.zeropower_via_newtonschulz

    @wraps(step)
    def step_in_float32(*args: Any, **kwargs: Any) -> Any:
        muon.zeropower_via_newtonschulz = partial(iteration, dtype=torch.float32)
        try:
            return step(*args, **kwargs)
        finally:
            muon.zeropower_via_newtonschulz = iteration

    optimizer.step = step_in_float32  # type: ignore[method-assign]


def left_to_adamw(model: nn.Module) -> list[str]:
    """Patterns of the parameters that timm's Muon family should leave to its AdamW: classifiers and first layer.

    Muon is meant for hidden matrices. timm chooses parameters by their shape, so it would use Muon for these too.
    Position embedding and tokens need no pattern: timm already leaves them to AdamW, and `fallback_no_weight_decay` of
    its factory exempts them from weight decay.

    Args:
        model: A model of timm, or a module for training that holds one as `model`, next to its projections.

    Example:
        >>> left_to_adamw(timm.create_model('resnet32_cifar'))
        ['fc.*', 'conv1.*']
    """
    prefix = '' if hasattr(model, 'pretrained_cfg') else 'model.'
    holder: Any = model.model if prefix else model
    config = holder.pretrained_cfg
    names: list[str] = []
    for name in (config['classifier'], config['first_conv']):
        names += [name] if isinstance(name, str) else name or ()
    return [f'{prefix}{name}.*' for name in names] + ['projection*'] * bool(prefix)
