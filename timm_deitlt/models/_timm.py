"""What type checkers may know of timm's models."""
from typing import TYPE_CHECKING, Any

from torch import nn


class TimmModel(nn.Module):
    """A model as timm makes it; a type hint, nothing is an instance of it.

    Torch declares any attribute of a module as `Tensor | Module`. The models of timm have settings and methods too,
    which differ from model to model.
    """
    pretrained_cfg: dict[str, Any]
    num_classes: int

    if TYPE_CHECKING:
        def __getattr__(self, name: str) -> Any: ...
