"""What is measured while an epoch trains."""
import torch
import torch.distributed as dist
from torch import Tensor


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the last complete checkpoint is untouched."""


class Meter:
    """Means over the images of an epoch and of all ranks, summed on the device and read once."""

    def __init__(self, device: torch.device, distributed: bool = False):
        self.device = device
        self.distributed = distributed
        self.pending_on_host = device.type == 'cpu'
        self.images = 0
        self.sums: dict[str, Tensor] = {}
        self.updates: list[Tensor] = []
        self.checked = 0

    def add(self, result: dict[str, Tensor], images: int) -> None:
        """Add what the task returned for a micro-batch; 0 images for one that only fills up an update."""
        self.images += images
        for name, value in result.items():
            if name == 'output':
                continue
            # losses are means over the batch, measurements are sums; without images the names still count, on all ranks
            value = value.detach().double() * (images if 'loss' in name else bool(images))
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def check_finite(self, epoch: int, updates_per_epoch: int) -> None:
        """Raise NonFiniteLossError on all ranks if an update since the last check had no finite loss on any."""
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
                f'The loss is not finite in epoch {epoch}, update {update} of {updates_per_epoch} (counted from 0). '
                'Lower --lr, add --clip-grad 1.0 or use --no-amp; the last complete checkpoint is untouched.')
        self.checked = len(self.updates)

    def loss(self) -> float:
        """Mean loss so far on this rank."""
        return (self.sums['loss'] / self.images).item() if self.images else float('nan')

    def compute(self) -> dict[str, float]:
        names = sorted(self.sums)
        images = torch.tensor(self.images, dtype=torch.float64, device=self.device)
        packed = torch.stack([images, *(self.sums[name] for name in names)])
        if self.distributed:
            dist.all_reduce(packed)
        images, *sums = packed.tolist()
        return {name: value / images for name, value in zip(names, sums, strict=True)}
