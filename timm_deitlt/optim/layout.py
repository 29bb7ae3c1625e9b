"""How an optimizer's state lies in memory."""
import torch
from torch import Tensor
from torch.optim import Optimizer


def match_layout(optimizer: Optimizer) -> None:
    """Lay out an optimizer's state in memory as its parameters are.

    torch's fused steps on CPUs take memory as it comes: a momentum that was saved contiguous, beside a channels-last
    weight, would be added to the wrong elements.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
