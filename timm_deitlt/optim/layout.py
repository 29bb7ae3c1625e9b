"""Memory layout of an optimizer's state."""
import torch
from torch import Tensor
from torch.optim import Optimizer


def match_layout(optimizer: Optimizer) -> None:
    """Give each tensor of an optimizer's state the memory layout of its parameter.

    torch's fused steps on CPUs ignore strides. A momentum that was saved contiguous would be added to the wrong
    elements of a channels-last weight.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
