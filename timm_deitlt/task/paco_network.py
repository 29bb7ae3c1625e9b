"""Network of PaCo, and the queue of its keys."""
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..loss import full_precision
from ..loss.paco import EMPTY
from .common import AuxiliaryNet


class PaCoNet(AuxiliaryNet):
    """A classifier with a projection of its pooled features; in eval mode the plain classifier only.

    Args:
        model: Classifier of timm with one head, which is trained in place.
        dim: Width D of the projection.

    Raises:
        ValueError: If the model has several heads or none, or lacks timm's methods.

    Example:
        >>> net = PaCoNet(timm.create_model('resnet32_cifar', num_classes=10), dim=32)
        >>> [tuple(x.shape) for x in net(torch.randn(4, 3, 32, 32))]
        [(4, 10), (4, 32)]
        >>> net.eval()(torch.randn(4, 3, 32, 32)).shape
        torch.Size([4, 10])
    """

    auxiliary = 'projection'

    def __init__(self, model: nn.Module, dim: int):
        super().__init__()
        kind = type(model).__name__
        lacks = [x for x in ('forward_features', 'forward_head', 'get_classifier') if not hasattr(model, x)]
        width = getattr(model, 'head_hidden_size', None) or getattr(model, 'num_features', None)
        if lacks or not width:
            raise ValueError(
                f'PaCo needs a classifier of timm, but {kind} has no {(lacks or ["num_features"])[0]}: use one such as '
                'resnet32_cifar or resnet50.')
        heads = cast(Any, model).get_classifier()
        if not isinstance(heads, nn.Module) or isinstance(heads, nn.Identity | nn.ModuleList | nn.ModuleDict):
            found = 'no head' if heads is None or isinstance(heads, nn.Identity) else f'{len(heads)} heads'
            raise ValueError(
                f'PaCo trains a classifier with one head, but {kind} has {found}: use one such as resnet32_cifar or '
                'resnet50, with num_classes above 0.')
        self.model = model
        self.projection = nn.Sequential(
            nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, dim),
        ).to(next(model.parameters()))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Logits `[B, C]`, and in training also projections `[B, D]` of length 1, at least float32, from one pass."""
        if not self.training:
            return self.model(x)
        features = self.model.forward_head(self.model.forward_features(x), pre_logits=True)
        logits = self.model.get_classifier()(features)
        return logits, F.normalize(full_precision(self.projection(features)), dim=1)


class KeyQueue(nn.Module):
    """The latest keys and their classes, in a ring buffer.

    The places start empty and are ignored until they are filled. The released code starts with random vectors and
    random labels, but in the first updates these would teach the network that images are similar to noise.

    Args:
        size: Number of places K.
        dim: Width D of a key.
    """

    keys: Tensor
    labels: Tensor
    pointer: Tensor

    def __init__(self, size: int, dim: int, device: torch.device | None = None):
        super().__init__()
        if size < 1:
            raise ValueError(f'The queue of PaCo has {size} places, but needs at least 1: give a larger --paco-queue.')
        self.register_buffer('keys', torch.zeros(size, dim, device=device))
        self.register_buffer('labels', torch.full((size,), EMPTY, device=device))
        self.register_buffer('pointer', torch.zeros((), dtype=torch.int64, device=device))

    @torch.no_grad()
    def push(self, keys: Tensor, labels: Tensor) -> None:
        """Replace the oldest keys and labels by keys `[N, D]` and labels `[N]`, in order; N is any number."""
        size, count = len(self.labels), len(labels)
        offset = max(count - size, 0)  # earlier ones would be overwritten at once
        # computed on the device, so that nothing waits for the pointer's value
        places = (self.pointer + torch.arange(offset, count, device=self.pointer.device)) % size
        self.keys[places] = keys[offset:].to(self.keys.dtype)
        self.labels[places] = labels[offset:]
        self.pointer.copy_((self.pointer + count) % size)
