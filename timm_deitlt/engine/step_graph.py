"""A CUDA graph of the training step, for small networks: their step ends before the host has told the GPU all of it."""
import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

if TYPE_CHECKING:
    from .trainer import Trainer

_logger = logging.getLogger(__name__)

Tensors = tuple[Any, ...]  # images, targets, and weak views or None
Step = Callable[[], tuple[dict[str, Tensor], Tensor]]

# Runs before a recording, in which libraries set up what they keep
_WARM_UP = 3
# The recording is wrong if loss and gradients, as one vector, are off by more than this share. Rounding is far below
_TOLERANCE = .02


def recordable(trainer: 'Trainer') -> bool:
    """Whether the step of a trainer can be a CUDA graph: one process, no gradient scaler, nothing decided by values."""
    checkpoints = any(getattr(module, 'grad_checkpointing', False) for module in trainer.task.modules())
    return (
        trainer.task.device.type == 'cuda' and trainer.world_size == 1 and trainer.scaler is None
        and trainer.task.stage() is not None and not checkpoints)


class StepGraph:
    """Forward and backward of a micro-batch, recorded once for each kind of micro-batch and then replayed as a whole.

    A kind is all that the host decides: shapes, the share of the update, the pass, the stage of the task. A replay
    draws new random numbers, those that the step would draw without a graph. Gradients are added to the same tensors
    in all replays. A kind that cannot be recorded runs without a graph.

    On a CPU nothing is recorded. There the step runs again on the tensors that a recording uses.
    """

    def __init__(self, trainer: 'Trainer'):
        self.trainer = trainer
        self.stage: Hashable = None
        self.recordings: dict[Hashable, _Recording | None] = {}
        self.gradients: dict[nn.Parameter, Tensor] = {}
        self.pool = torch.cuda.graph_pool_handle() if trainer.task.device.type == 'cuda' else None

    def __call__(self, share: float, second_pass: bool, *tensors: Any) -> tuple[dict[str, Tensor], Tensor]:
        """As `Trainer.compute`. What the task returned is valid until the next call."""
        stage = self.trainer.task.stage()
        if stage != self.stage:
            self.recordings.clear()
            self.stage = stage
        kind = (share, second_pass, *(None if x is None else (x.shape, x.dtype, x.stride()) for x in tensors))
        if kind not in self.recordings:
            self.recordings[kind] = self._record(share, second_pass, tensors)
        recording = self.recordings[kind]
        return self.trainer.compute(share, second_pass, *tensors) if recording is None else recording(tensors)

    def _record(self, share: float, second_pass: bool, tensors: Tensors) -> '_Recording | None':
        inputs: Tensors = tuple(None if x is None else x.clone() for x in tensors)
        try:
            return _Recording(
                self.trainer.task, lambda: self.trainer.compute(share, second_pass, *inputs), inputs, self.gradients,
                self.pool)
        except RuntimeError as error:
            _logger.warning(f'This step runs without a CUDA graph: {str(error).splitlines()[0]}')
            return None


class _Recording:
    """A step on `inputs` that adds to the tensors of `gradients`, which all recordings share."""

    def __init__(
            self,
            task: nn.Module,
            step: Step,
            inputs: Tensors,
            gradients: dict[nn.Parameter, Tensor],
            pool: Any,
    ):
        self.inputs = inputs
        device = next(task.parameters()).device
        with _undone(task):
            result = _warmed_up(step, task, device)
            # a parameter without a gradient stays without one: its weights must not decay
            self.gradients = {
                parameter: gradients.setdefault(parameter, torch.zeros_like(parameter.grad))
                for parameter in task.parameters() if parameter.grad is not None}
            expected: list[Any] = [result[1], *(parameter.grad for parameter in self.gradients)]
            _clear_gradients(task)
            self._attach()
            with _same_draws(device):
                self.replay = step if pool is None else _recorded(step, pool)
            with _same_draws(device):
                _check([self.replay()[1], *self.gradients.values()], expected)

    def __call__(self, tensors: Tensors) -> tuple[dict[str, Tensor], Tensor]:
        for kept, given in zip(self.inputs, tensors, strict=True):
            if kept is not None:
                kept.copy_(given)
        self._attach()
        result, loss = self.replay()
        return result, loss.clone()  # the losses of many updates are read at once

    def _attach(self) -> None:
        fresh = [gradient for parameter, gradient in self.gradients.items() if parameter.grad is None]
        if fresh:
            torch._foreach_zero_(fresh)
        for parameter, gradient in self.gradients.items():
            if parameter.grad is not gradient:
                if parameter.grad is not None:  # of a micro-batch without a graph
                    gradient.copy_(parameter.grad)
                parameter.grad = gradient


@contextmanager
def restored_buffers(module: nn.Module) -> Iterator[None]:
    """Give the buffers of a module their values back at the end."""
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)


@contextmanager
def _undone(task: nn.Module) -> Iterator[None]:
    """Begin without gradients, and restore gradients and buffers at the end."""
    before = [(parameter, parameter.grad) for parameter in task.parameters()]
    values = [None if gradient is None else gradient.clone() for _, gradient in before]
    _clear_gradients(task)
    try:
        with restored_buffers(task):
            yield
    finally:
        for (parameter, gradient), value in zip(before, values, strict=True):
            parameter.grad = None if gradient is None or value is None else gradient.copy_(value)


def _clear_gradients(task: nn.Module) -> None:
    for parameter in task.parameters():
        parameter.grad = None


def _same_draws(device: torch.device) -> AbstractContextManager:
    """A context that ends with the states of the random generators that it began with."""
    return torch.random.fork_rng([device] if device.type == 'cuda' else [])


def _warmed_up(step: Step, task: nn.Module, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    """Run a step several times, each time without gradients before it, on a stream of its own as torch asks for."""
    stream = torch.cuda.Stream(device) if device.type == 'cuda' else None
    if stream is not None:
        stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            _clear_gradients(task)
            with _same_draws(device):
                result = step()
    if stream is not None:
        torch.cuda.current_stream(device).wait_stream(stream)
    return result


def _recorded(step: Step, pool: Any) -> Step:
    graph = torch.cuda.CUDAGraph()
    # thread_local: a thread of the loader may pin memory meanwhile
    with torch.cuda.graph(graph, pool=pool, capture_error_mode='thread_local'):
        result = step()

    def replay() -> tuple[dict[str, Tensor], Tensor]:
        graph.replay()
        return result
    return replay


def _check(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Compare loss and gradients. If they are not finite without a graph either, the run will say so."""
    size = get_total_norm(expected)
    far = get_total_norm([a - b for a, b in zip(found, expected, strict=True)])
    if size.isfinite() and not far <= _TOLERANCE * size:
        raise RuntimeError('the recording does not repeat the loss and the gradients')
