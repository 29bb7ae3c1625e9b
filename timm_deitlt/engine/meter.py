"""Means of the losses and other measures while an epoch trains."""
import torch
import torch.distributed as dist
from torch import Tensor

from ..utils.precision import widest_float


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the last complete checkpoint is untouched.

    Args:
        where: Sentence that says when it happened.
        mend: Sentence that says what to do.
    """

    def __init__(self, where: str, mend: str):
        super().__init__(where, mend)
        self.where = where

    def __str__(self) -> str:
        return ' '.join(self.args)


class Meter:
    """Means over the images of an epoch and of all ranks, summed on the device and read once."""

    def __init__(self, device: torch.device, distributed: bool = False):
        self.device = device
        self.distributed = distributed
        self.dtype = widest_float(device)
        self.pending_on_host = device.type == 'cpu'
        self.images = 0
        self.sums: dict[str, Tensor] = {}
        self.updates: list[Tensor] = []
        self.checked = 0

    def add(self, result: dict[str, Tensor], images: int) -> None:
        """Add what the task returned for a micro-batch; `images` is 0 if it only fills up an update."""
        self.images += images
        for name, value in result.items():
            if name == 'output':
                continue
            # losses are means over the batch, other measures are sums; with 0 images only the names count: all ranks
            # must have the same ones
            value = value.detach().to(self.dtype) * (images if 'loss' in name else bool(images))
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def check_finite(self, epoch: int, updates_per_epoch: int) -> None:
        """Raise NonFiniteLossError on all ranks if any rank had a loss that is not finite since the last check."""
        fresh = self.updates[self.checked:]
        if not fresh:
            return
        finite = torch.stack(fresh).isfinite().int()
        if self.distributed:
            dist.all_reduce(finite, dist.ReduceOp.MIN)  # a rank that stopped alone would leave the others waiting
        found = finite.tolist()
        if 0 in found:
            update = self.checked + found.index(0)
            raise NonFiniteLossError(
                f'The loss is not finite in epoch {epoch}, update {update} of {updates_per_epoch} (counted from 0).',
                'Lower --lr, add --clip-grad 1.0 or use --no-amp; the last complete checkpoint is untouched.')
        self.checked = len(self.updates)

    def loss(self) -> float:
        """Mean loss so far on this rank."""
        return (self.sums['loss'] / self.images).item() if self.images else float('nan')

    def compute(self) -> dict[str, float]:
        """Means over the images of all ranks, by name."""
        names = sorted(self.sums)
        images = torch.tensor(self.images, dtype=self.dtype, device=self.device)
        packed = torch.stack([images, *(self.sums[name] for name in names)])
        if self.distributed:
            dist.all_reduce(packed)
        images, *sums = packed.tolist()
        return {name: value / images for name, value in zip(names, sums, strict=True)}
