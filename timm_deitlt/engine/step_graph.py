"""A CUDA graph of the training step, for small networks: their step ends before the host has told the GPU all of it."""
import logging
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

if TYPE_CHECKING:
    from .trainer import Trainer

_logger = logging.getLogger(__name__)

Tensors = tuple[Any, ...]  # images, targets, and weak views or None
Step = Callable[[], tuple[dict[str, Tensor], Tensor]]

# Modes of torch.compile that record graphs themselves
OWN_GRAPHS = ('reduce-overhead', 'max-autotune')
# Runs before a recording, in which libraries set up what they keep
_WARM_UP = 3
# The recording is wrong if loss and gradients, as one vector, are off by more than this share. Rounding is far below
_TOLERANCE = .02


class RecordingError(RuntimeError):
    """A recording broke off, after which PyTorch's random generator and memory still wait for its end."""


def recordable(trainer: 'Trainer', compile_mode: str | None = None) -> bool:
    """Whether the step of a trainer can be a CUDA graph: one process, no gradient scaler, nothing decided by values, no
    mode of torch.compile that records graphs itself."""
    checkpoints = any(getattr(module, 'grad_checkpointing', False) for module in trainer.task.modules())
    return (
        trainer.task.device.type == 'cuda' and trainer.world_size == 1 and trainer.scaler is None
        and trainer.task.stage() is not None and not checkpoints and compile_mode not in OWN_GRAPHS)


class StepGraph:
    """Forward and backward of a micro-batch, recorded once for each kind of micro-batch and then replayed as a whole.

    A kind is all that the host decides: shapes, the share of the update, the pass, the stage of the task. A replay
    draws new random numbers, those that the step would draw without a graph. Gradients are added to the same tensors
    in all replays. A kind that waits for the GPU, or whose replay differs, runs without a graph.

    On a CPU nothing is recorded. There the step runs again on the tensors that a recording uses.
    """

    def __init__(self, trainer: 'Trainer'):
        self.trainer = trainer
        self.stage: Hashable = None
        self.recordings: dict[Hashable, _Recording | None] = {}
        self.gradients: dict[nn.Parameter, Tensor] = {}
        device = trainer.task.device
        # one stream for warm-up and recording: what libraries keep for a stream is then set up outside of a recording,
        # and does not lie in the memory of a graph
        self.stream = torch.cuda.Stream(device) if device.type == 'cuda' else None
        self.pool: Any = None

    def __call__(self, share: float, second_pass: bool, *tensors: Any) -> tuple[dict[str, Tensor], Tensor]:
        """As `Trainer.compute`. What the task returned is valid until the next call.

        Raises:
            RecordingError: If a recording breaks off.
        """
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
        task, device = self.trainer.task, self.trainer.task.device
        inputs: Tensors = tuple(None if x is None else x.clone() for x in tensors)
        step = partial(self.trainer.compute, share, second_pass, *inputs)
        begun = False
        try:
            with _undone(task):
                loss = _warmed_up(step, task, device, self.stream)
                # a parameter without a gradient stays without one: its weights must not decay
                expected = {parameter: parameter.grad for parameter in task.parameters() if parameter.grad is not None}
                recording = _Recording(inputs, {
                    parameter: self.gradients.setdefault(parameter, torch.zeros_like(gradient))
                    for parameter, gradient in expected.items()}, step)
                _clear_gradients(task)
                recording.attach()
                begun = True  # if it breaks off, nothing can run any more on this stream and with this generator
                with _same_draws(device):
                    recording.replay = self._recorded(step)
                with _same_draws(device):
                    found = recording.replay()[1]
                begun = False
                _check([found, *recording.gradients.values()], [loss, *expected.values()])
        except RuntimeError as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            if begun:
                raise RecordingError(
                    f'This step could not be recorded as a CUDA graph ({reason}), and the process cannot train on '
                    'after that: give --auto-speed on.') from error
            _logger.warning(f'This step runs without a CUDA graph: {reason}')
            return None
        return recording

    def _recorded(self, step: Step) -> Step:
        if self.stream is None:
            return step
        if not any(self.recordings.values()):  # memory of graphs that are all gone is closed to new ones
            self.pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # thread_local: a thread of the loader may pin memory meanwhile
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode='thread_local'):
            result = step()

        def replay() -> tuple[dict[str, Tensor], Tensor]:
            graph.replay()
            return result
        return replay


class _Recording:
    """A step on `inputs` that adds to the tensors of `gradients`, which all recordings share."""

    def __init__(self, inputs: Tensors, gradients: dict[nn.Parameter, Tensor], replay: Step):
        self.inputs, self.gradients, self.replay = inputs, gradients, replay

    def __call__(self, tensors: Tensors) -> tuple[dict[str, Tensor], Tensor]:
        for kept, given in zip(self.inputs, tensors, strict=True):
            if kept is not None:
                kept.copy_(given)
        self.attach()
        result, loss = self.replay()
        return result, loss.clone()  # the losses of many updates are read at once

    def attach(self) -> None:
        """Let the parameters have the tensors of `gradients`, with the values of the gradients that they have now."""
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


def _warmed_up(step: Step, task: nn.Module, device: torch.device, stream: torch.cuda.Stream | None) -> Tensor:
    """Loss of a step that is run several times, each time without gradients before it, on `stream` as torch asks for.

    Raises:
        RuntimeError: If the last run waits for the GPU, which a recording cannot do.
    """
    if stream is not None:
        stream.wait_stream(torch.cuda.current_stream(device))
    try:
        with torch.cuda.stream(stream):
            for number in range(_WARM_UP):
                _clear_gradients(task)
                last = number + 1 == _WARM_UP
                with _same_draws(device), _waiting_refused() if last and stream is not None else nullcontext():
                    _, loss = step()
    finally:
        if stream is not None:
            torch.cuda.current_stream(device).wait_stream(stream)
    return loss


@contextmanager
def _waiting_refused() -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # torch says once that not all that waits is found
        torch.cuda.set_sync_debug_mode('error')
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _check(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Compare loss and gradients. If they are not finite without a graph either, the run will say so."""
    size = get_total_norm(expected)
    far = get_total_norm([a - b for a, b in zip(found, expected, strict=True)])
    if size.isfinite() and not far <= _TOLERANCE * size:
        raise RuntimeError('the recording does not repeat the loss and the gradients')
