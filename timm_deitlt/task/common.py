"""What all tasks share."""
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from timm.task import TrainingTask
from timm.utils import unwrap_model
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..evaluation import ShotEvaluator, Shots
from ..models.weights import load_weights


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


def stages(modules: Sequence[Any], epoch: int) -> tuple[Hashable, ...]:
    """What an epoch changes in each of these losses: its stage. Of a loss with `set_epoch` but without stages, all."""
    return tuple(getattr(x, 'in_drw_stage', epoch) if hasattr(x, 'set_epoch') else None for x in modules)


class ShotEvaluation(TrainingTask):
    # `shots` and `experts` are set by the task
    shots: Shots | None
    experts: tuple[str, ...]

    def set_epoch(self, epoch: int) -> None:
        """Take the 0-based epoch."""

    def stage(self) -> Hashable:
        """What the epoch decides about a forward pass; None if that differs in each epoch or something else decides."""
        return None

    def create_evaluator(self, fusions: Sequence[str] = (), **kwargs: Any) -> ShotEvaluator:
        """Create a fresh evaluator of fusions and of every expert, by shot. What comes first is the answer."""
        if self.shots is None:
            raise ValueError('This task was created without shots: pass shots=Shots.from_counts(class_counts).')
        return ShotEvaluator(self.shots, experts=(*fusions, *self.experts), device=self.device, **kwargs)

    def end_update(self, plans: Sequence) -> None:
        """Called after the optimizer's step; `plans` are this rank's micro-batches of the update, in order."""


class AuxiliaryNet(nn.Module):
    """A model together with auxiliary layers that only its training needs; in eval mode the model alone.

    Attributes:
        model: The plain model. The 'state_dict' of a checkpoint and the evaluation have nothing else.
        auxiliary: Name of the submodule that holds the auxiliary layers, also in a checkpoint's state of the task.
    """
    model: Any
    auxiliary: str

    @property
    def auxiliary_layers(self) -> nn.Module:
        return self.get_submodule(self.auxiliary)

    def no_weight_decay(self) -> set[str]:
        """Parameters that timm's optimizer factory exempts from weight decay: those of the model."""
        return {f'model.{name}' for name in getattr(self.model, 'no_weight_decay', set)()}


class AuxiliaryTask(ShotEvaluation):
    """A task that trains an `AuxiliaryNet` or a plain model, and evaluates and saves the plain model."""
    # what an error message calls the auxiliary layers, and how to mend a misfit
    auxiliary_words: tuple[str, ...] = ()

    def _auxiliary_net(self, module: nn.Module | None = None, ema: bool = False) -> AuxiliaryNet | None:
        module = self.get_trainable_module(ema=ema) if module is None else module
        net = None if module is None else unwrap_model(module)
        return net if isinstance(net, AuxiliaryNet) else None

    def compile(  # type: ignore[override]
            self,
            backend: str = 'inductor',
            mode: str | None = None,
            **compile_kwargs: Any,
    ) -> nn.Module:
        """Compile as in timm; with auxiliary layers also the plain model. Call it before `prepare_distributed`."""
        options: dict[str, Any] = dict(backend=backend, mode=mode, **compile_kwargs)
        plain: Any = None if self._auxiliary_net() is None else torch.compile(self.get_eval_model(), **options)
        compiled: Any = super().compile(**options)
        if plain is None:
            return compiled
        self.eval_model = plain
        return plain

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module | None:
        """The plain model, or the EMA of the plain model."""
        module = super().get_eval_model(module=module, ema=ema)
        net = module if module is None else unwrap_model(module)
        return net.model if isinstance(net, AuxiliaryNet) else module

    def get_clip_parameters(self, exclude_head: bool = False) -> list[nn.Parameter]:
        """Parameters for gradient clipping; `exclude_head` leaves out the last two of the plain model."""
        net = self._auxiliary_net()
        if net is None:
            return super().get_clip_parameters(exclude_head)
        return [*list(net.model.parameters())[:-2 if exclude_head else None], *net.auxiliary_layers.parameters()]

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """State in a checkpoint next to the plain model: the auxiliary layers, if there are any."""
        net = self._auxiliary_net(module, ema)
        return {} if net is None else {net.auxiliary: net.auxiliary_layers.state_dict()}

    def load_task_state(
            self,
            state: dict[str, Any] | None,
            strict: bool = True,
            module: nn.Module | None = None,
            ema: bool = False,
    ) -> None:
        """Load the state of a checkpoint. If it has none, the auxiliary layers keep their new weights.

        Raises:
            ValueError: If the sizes of the state differ.
        """
        net = self._auxiliary_net(module, ema)
        if state and net is not None:
            load_weights(net.auxiliary_layers, state[net.auxiliary], *self.auxiliary_words)
