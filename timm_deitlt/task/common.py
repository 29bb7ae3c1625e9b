"""What all tasks share."""
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from timm.task import TrainingTask
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..evaluation import ShotEvaluator, Shots


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Let BatchNorm layers in training mode normalise by the batch but not update their running statistics."""
    tracking = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    for layer in tracking:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in tracking:
            layer.track_running_stats = True


def hard_labels(target: Tensor) -> Tensor:
    # the dominant label of a mixed image
    return target if target.ndim == 1 else target.argmax(dim=-1)


def set_epochs(modules: Sequence[Any], epoch: int) -> None:
    for module in modules:
        if hasattr(module, 'set_epoch'):
            module.set_epoch(epoch)


class ShotEvaluation(TrainingTask):
    # `shots` and `experts` are set by the task
    shots: Shots | None
    experts: tuple[str, ...]

    def set_epoch(self, epoch: int) -> None:
        """Take the 0-based epoch."""

    def create_evaluator(self, **kwargs: Any) -> ShotEvaluator:
        """Create a fresh evaluator of every expert, by shot."""
        if self.shots is None:
            raise ValueError('This task was created without shots: pass shots=Shots.from_counts(class_counts).')
        return ShotEvaluator(self.shots, experts=self.experts, device=self.device, **kwargs)

    def end_update(self, plans: Sequence) -> None:
        """Called after the optimizer's step; `plans` are this rank's micro-batches of the update, in order."""
