"""Find the fastest options on this machine by timing the training step itself.

The options change a result only by rounding, except that augmentation on the device draws other random numbers. A run
that is resumed keeps the options that it began with.
"""
import logging
import math
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from timm.layers import Attention
from timm.utils import unwrap_model
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..data.loader import MicroBatch
from ..optim import SAM
from ..optim.layout import match_layout
from ..settings.resolved import MachineSettings, Settings
from .device import keep_freed_memory, return_freed_memory
from .step_graph import RecordingError, StepGraph, recordable, restored_buffers
from .trainer import Trainer

_logger = logging.getLogger(__name__)

# A run with fewer micro-batches is too short to gain from timing; it uses the usual options of its device
FEWEST_STEPS = 200
# Measured on a slow CPU: 95 s for the 98 layers of a ResNet-32, forward and backward
SECONDS_TO_COMPILE_A_LAYER = 1.
# Largest share of a step that compiling was seen to save. It is tried only if that share, over the whole run, is this
# many times the cost of trying
MOST_GAIN_OF_COMPILING = {'cpu': .2, 'cuda': .4}
LEAST_RETURN_OF_COMPILING = 3
# A step that takes longer does not wait for the host, and a CUDA graph of it would only need memory
LONGEST_STEP_TO_RECORD = .05
# Share of the free memory of a GPU. Larger sets are not copied to it unless a flag asks for that
LARGEST_SHARE_OF_IMAGES = .1
# A smaller gain may be noise. Then two runs with the same settings could choose differently, and differ by rounding
LEAST_GAIN = .1
_TIMED_STEPS = 4


@dataclass(frozen=True)
class Speed:
    """How a training computes.

    Attributes:
        fused_attention: timm's attention by torch's fused kernel, not by matrix products.
        channels_last: Memory format of the networks.
        compile: Backend of torch.compile, '' for none.
        on_device: Images are augmented on the device, although the settings do not ask for it.
        graph: Forward and backward are a CUDA graph.
    """
    fused_attention: bool
    channels_last: bool
    compile: str
    on_device: bool = False
    graph: bool = False

    def words(self, attention: bool) -> str:
        """In words, for a network with or without `attention`."""
        words = []
        if attention:
            words.append('fused attention' if self.fused_attention else 'attention by matrix products')
        if self.channels_last:
            words.append('channels last')
        if self.compile:
            words.append(f'compiled by {self.compile}')
        if self.graph:
            words.append('as a CUDA graph')
        if self.on_device:
            words.append('augmentation on the device')
        return ', '.join(words) or 'plain'


def choose_speed(
        trainer: Trainer,
        settings: Settings,
        start_epoch: int = 0,
        before: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Choose and apply the options that make the training step fastest, and log why. Call it before DDP wraps the task.

    Args:
        trainer: Its weights, statistics and optimizer state do not change.
        settings: With --auto-speed off PyTorch's own options are used. --channels-last and --torchcompile always hold.
        start_epoch: 0-based epoch to be trained first.
        before: Options of the run that is resumed, see `speed_before`.

    Returns:
        The options, to be saved in checkpoints.
    """
    machine = settings.machine
    on_cpu = torch.device(machine.device).type == 'cpu'
    usual = Speed(machine.auto_speed == 'off' or not on_cpu, machine.channels_last, machine.torchcompile or '')
    steps = (trainer.epochs - start_epoch) * trainer.loader.updates_per_epoch * trainer.loader.grad_accum_steps
    speed, reason = usual, ''
    if machine.auto_speed == 'off':
        reason = ', as --auto-speed off asks for'
    elif before is not None:
        speed, reason = Speed(**before), ', as before'
        speed = replace(
            speed, on_device=speed.on_device and trainer.on_device is not None,
            graph=speed.graph and recordable(trainer, machine.torchcompile_mode))
        if speed.compile != usual.compile and math.isinf(_seconds(trainer, machine, speed, start_epoch)):
            speed = replace(speed, compile=usual.compile)  # this machine has no compiler
    elif steps >= FEWEST_STEPS:
        speed, reason = _fastest(trainer, settings, usual, start_epoch, steps)
        return_freed_memory()
    also = [words for words, true in (
        ('fused optimizer', any(group.get('fused') for group in trainer.optimizer.param_groups)),
        ('freed memory kept', on_cpu and machine.auto_speed != 'off' and keep_freed_memory())) if true]
    _logger.info(f'Speed: {", ".join([speed.words(_attends(trainer)) + reason, *also])}')
    _apply(trainer, machine, speed)
    return asdict(speed)


def speed_before(checkpoint: dict[str, Any] | None, machine: MachineSettings) -> dict[str, Any] | None:
    """Options chosen in the run of a checkpoint; None if its flags for speed or its device were others."""
    if checkpoint is None or 'speed' not in checkpoint:
        return None
    then = vars(checkpoint['args'])
    same = all(then.get(name) == getattr(machine, name) for name in (
        'auto_speed', 'channels_last', 'torchcompile', 'torchcompile_mode'))
    same_device = str(then.get('device')).split(':')[0] == machine.device.split(':')[0]
    return checkpoint['speed'] if same and same_device else None


def _fastest(
        trainer: Trainer,
        settings: Settings,
        speed: Speed,
        epoch: int,
        steps: int,
) -> tuple[Speed, str]:
    """The fastest options, and their gain in words. Each option is tried on top of those chosen before it."""
    passes = 1 + isinstance(trainer.optimizer, SAM) / settings.optimizer.sam_every
    first = seconds = _seconds(trainer, settings.machine, speed, epoch)
    if math.isinf(first):
        return speed, ''  # training fails in the same way, and says why
    for name, value in _alternatives(trainer, speed, settings.machine):
        if name == 'compile' and not _compiling_can_pay(trainer, seconds * steps * passes):
            continue
        if name == 'graph' and seconds > LONGEST_STEP_TO_RECORD:
            continue
        candidate = replace(speed, **{name: value})
        other = _seconds(trainer, settings.machine, candidate, epoch)
        if other < seconds * (1 - LEAST_GAIN):
            speed, seconds = candidate, other
        elif name == 'compile':
            torch.compiler.reset()  # removes the graphs of the trial
    speed = replace(speed, on_device=_feeds_faster(trainer, seconds))
    gain = f', {1e3 * first:.0f} ms without' if seconds < first else ''
    return speed, f' ({1e3 * seconds:.0f} ms for forward and backward of a batch{gain})'


def _feeds_faster(trainer: Trainer, seconds: float) -> bool:
    """Whether micro-batches that take so many seconds come faster if the device augments the images."""
    if trainer.on_device is None:
        return False
    made = trainer.loader
    now = made.seconds_per_image() * made.batch_size
    if made.workers:
        # in each epoch they start anew, and a single one makes the first batch
        first = now / (made.updates_per_epoch * made.grad_accum_steps)
        now = max(seconds, now / made.workers) + first
    else:
        now += seconds
    then = math.inf
    # the device may not do all that the augmentation asks for
    with suppress(ValueError, torch.OutOfMemoryError):
        there = trainer.on_device()['loader'] if _fits_on_device(trainer) else None
        if there is not None and there.in_memory:
            then = seconds + there.seconds_per_image() * there.batch_size
    now, then = _on_slowest_rank(trainer, now), _on_slowest_rank(trainer, then)
    return then < now * (1 - LEAST_GAIN)


def _fits_on_device(trainer: Trainer) -> bool:
    """Whether all images, if they are as large as the first, leave almost all of the free memory to the training."""
    device, images = trainer.task.device, trainer.loader.dataset
    free = torch.cuda.mem_get_info(device)[0] if device.type == 'cuda' else math.inf
    return len(images) * np.asarray(images[0][0]).nbytes < LARGEST_SHARE_OF_IMAGES * free


def _compiling_can_pay(trainer: Trainer, seconds: float) -> bool:
    """Whether a run whose steps take so many seconds is long enough to try compiling: most trials gain nothing."""
    layers = sum(not list(module.children()) for module in trainer.task.modules())
    gain = seconds * MOST_GAIN_OF_COMPILING.get(trainer.task.device.type, .2)
    return gain > LEAST_RETURN_OF_COMPILING * layers * SECONDS_TO_COMPILE_A_LAYER


def _alternatives(trainer: Trainer, speed: Speed, machine: MachineSettings) -> Iterator[tuple[str, Any]]:
    if _attends(trainer):
        yield 'fused_attention', not speed.fused_attention
    trained = unwrap_model(trainer.task.get_trainable_module())
    normalises = any(isinstance(module, _BatchNorm) for module in trained.modules())
    if normalises and not speed.channels_last:
        yield 'channels_last', True
    sizes = trainer.loader.sizes
    if not speed.compile and (sizes is None or len(set(sizes.drawn)) == 1):  # every size is compiled by itself
        yield 'compile', 'inductor'
    if machine.auto_speed == 'graph' and recordable(trainer, machine.torchcompile_mode):
        yield 'graph', True


def _attends(trainer: Trainer) -> bool:
    trained = unwrap_model(trainer.task.get_trainable_module())
    return any(isinstance(module, Attention) for module in trained.modules())


def _seconds(trainer: Trainer, machine: MachineSettings, speed: Speed, epoch: int) -> float:
    """Shortest time of forward and backward of a micro-batch with these options, on the slowest rank; infinite if it
    fails.

    Weights, statistics, gradients and queues are the same afterwards.
    """
    task, device = trainer.task, trainer.task.device
    images, target = noise(trainer, trainer.loader.batch_size)
    batch = MicroBatch(number=0, indices=(), weight=1., last=True)
    seconds = []
    try:
        _apply(trainer, machine, speed)
        task.train()
        task.set_epoch(epoch)
        trainer.augment.mixup_enabled = trainer.mixing(epoch)
        with restored_buffers(task):  # freezing them instead would compile a graph that training does not use
            for _ in range(1 + _TIMED_STEPS):
                began = time.perf_counter()
                trainer.forward_backward(epoch, batch, images, target)
                synchronize(device)
                seconds.append(time.perf_counter() - began)
        result = min(seconds[1:])
    except RecordingError:
        raise
    except Exception as error:  # no compiler for the backend, no kernel for the type, too little memory
        words = next(iter(str(error).splitlines()), type(error).__name__)
        _logger.info(f'Speed: not {speed.words(_attends(trainer))}, which fails: {words}')
        result = math.inf
    finally:
        trainer.optimizer.zero_grad()
        task.set_epoch(epoch)
    return _on_slowest_rank(trainer, result)


def _on_slowest_rank(trainer: Trainer, seconds: float) -> float:
    if trainer.world_size == 1:
        return seconds
    slowest = torch.tensor(seconds, device=trainer.task.device)  # all ranks must choose alike
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    return slowest.item()


def synchronize(device: torch.device) -> None:
    """Wait for what a device was told to do."""
    if device.type != 'cpu':
        torch.accelerator.synchronize(device)


def noise(trainer: Trainer, batch_size: int) -> tuple[Tensor, Tensor]:
    """Random images and labels as the loader gives them; starting its workers would take longer than a step."""
    model, loader, device = unwrap_model(trainer.task.get_eval_model()), trainer.loader, trainer.task.device
    generator = torch.Generator().manual_seed(0)
    channels, *size = model.pretrained_cfg['input_size']
    if loader.sizes is not None:
        size = [max(loader.sizes.drawn)] * 2
    shape = (loader.num_views * batch_size, channels, *size)
    images = torch.randn(shape, generator=generator).to(device, loader.dtype)
    return images, torch.randint(model.num_classes, shape[:1], generator=generator).to(device)


def _apply(trainer: Trainer, machine: MachineSettings, speed: Speed) -> None:
    task = trainer.task
    _undo_compile(task)
    for module in task.modules():
        if isinstance(module, Attention):
            cast(Any, module).fused_attn = speed.fused_attention
    if speed.channels_last != trainer.channels_last:
        task.to(memory_format=torch.channels_last if speed.channels_last else torch.contiguous_format)
        match_layout(trainer.optimizer)
        trainer.channels_last = speed.channels_last
    if speed.on_device and trainer.on_device is not None:
        vars(trainer).update(trainer.on_device(), on_device=None)
    if speed.compile:
        torch._inductor.config.fallback_random = True  # the same random numbers as without compiling
        # without `dynamic`, torch would compile for any batch size once an epoch ends with a smaller micro-batch
        sizes = trainer.loader.sizes
        dynamic = None if sizes is not None and len(set(sizes.drawn)) > 1 else False
        task.compile(backend=speed.compile, mode=machine.torchcompile_mode, dynamic=dynamic)
    trainer.graph = StepGraph(trainer) if speed.graph else None


def _undo_compile(task: nn.Module) -> None:
    for parent in list(task.modules()):
        parent._compiled_call_impl = None
        for name, child in list(parent._modules.items()):  # named_children leaves out a second name of the same module
            if hasattr(child, '_orig_mod'):
                setattr(parent, name, cast(Any, child)._orig_mod)
    task._modules.pop('eval_model', None)  # which timm's `compile` adds
