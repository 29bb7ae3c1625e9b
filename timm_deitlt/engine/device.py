"""Where a run computes, and what is fastest there."""
import ctypes
import functools
import logging
import os
import time
from contextlib import suppress
from pathlib import Path

import joblib
import torch
from timm.layers import set_fused_attn

_logger = logging.getLogger(__name__)

# A core is free if less than this share of it is used
_BUSY = .3
# If one of these is set, the user or a launcher has divided the cores
_CORES_DIVIDED = ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'WORLD_SIZE', 'SLURM_PROCID')


def cores() -> int:
    """Number of cores that this process may use: what its affinity and the limits of its container allow."""
    return joblib.cpu_count()


def use_free_cores() -> None:
    """Compute with fewer threads if other programs use some of the cores.

    An operation ends when its last thread has ended. A thread that shares its core with another program lets all others
    wait, thousands of times in a training step. On two cores, one of them busy, the quick start's teacher trains on 8
    images/s with two threads and on 540 with one.
    """
    if torch.cuda.is_available() or any(name in os.environ for name in _CORES_DIVIDED):
        return
    usual = min(torch.get_num_threads(), cores())
    idle = idle_cores()
    if idle + _BUSY < usual:  # perhaps only for a moment
        time.sleep(.7)
        idle = max(idle, idle_cores())
    threads = max(1, min(usual, int(idle + _BUSY)))
    if threads < torch.get_num_threads():
        torch.set_num_threads(threads)
        _logger.info(
            f'This command computes with {threads} threads: it may use {cores()} cores, of which {idle:.1f} are idle '
            'now, and more threads would wait for each other. OMP_NUM_THREADS sets another number.')


def idle_cores() -> float:
    """How many of the cores that this process may use are idle in the next 0.3 s; all, if the system keeps no
    /proc/stat."""
    try:
        before, began = _idle_seconds(), time.perf_counter()
        time.sleep(.3)
        return min((_idle_seconds() - before) / (time.perf_counter() - began), cores())
    except (AttributeError, OSError):
        return float(cores())


def _idle_seconds() -> float:
    names = {f'cpu{number}' for number in os.sched_getaffinity(0)}
    rows = [row.split() for row in Path('/proc/stat').read_text().splitlines()]
    ticks = sum(int(row[4]) + int(row[5]) for row in rows if row[0] in names)  # idle, and idle until a disk answers
    return ticks / os.sysconf('SC_CLK_TCK')


def choose_device(name: str | None, plain: bool = False) -> str:
    """Choose the device, and the options that are usually fastest on it unless `plain`.

    Args:
        name: Name of the device, or None for a GPU if there is one.
        plain: Whether attention and memory stay as PyTorch has them.

    Returns:
        Name of the device.

    Raises:
        ValueError: If it cannot be used.
    """
    name = name or ('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        device = local_device(name)
        torch.empty(0, device=device)
        if device.type == 'cuda' and device.index is not None:
            torch.cuda.set_device(device)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(
            f'--device {name} cannot be used ({str(error).splitlines()[0]}): leave it out, or give --device '
            'cpu.') from error
    on_cpu = device.type == 'cpu'
    # on CPUs matrix products are about twice as fast as the fused kernel, forward and backward
    set_fused_attn(plain or not on_cpu)
    if on_cpu and not plain:
        keep_freed_memory()
    return name


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next step, instead of returning it to the system and asking for it again.

    Returns:
        Whether that worked; it does not with another C library.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    trim_threshold, mmap_threshold = -1, -3  # of malloc.h
    # older versions of glibc accept at most 32 MiB for the second
    large = mallopt(mmap_threshold, 2 ** 31 - 1) or mallopt(mmap_threshold, 2 ** 25)
    return bool(mallopt(trim_threshold, 2 ** 31 - 1) and large)


def return_freed_memory() -> None:
    """Return to the system the freed memory that glibc keeps. Call it once, after work that needed more than a step."""
    with suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions that PyTorch uses for matrix products of bfloat16.

    Without them PyTorch emulates these products, on a CPU with only AVX2 at about a fiftieth of the speed of float32.
    """
    if device.type == 'cuda':
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != 'cpu' or not torch.backends.mkldnn.is_available():
        return False
    # Ask oneDNN: it computes the products, and ONEDNN_MAX_CPU_ISA may forbid it some instructions. On x86 it also says
    # yes if the CPU has plain AVX-512, which can only convert to bfloat16.
    x86 = torch.backends.cpu.get_cpu_capability().startswith('AVX')
    return torch.ops.mkldnn._is_mkldnn_bf16_supported() and (not x86 or torch.cpu._is_avx512_bf16_supported())


@functools.cache
def price_of_bfloat16() -> float:
    """Time of a matrix product in bfloat16 on this CPU, divided by its time in float32; measured once."""
    seconds = []
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(256, 256, dtype=dtype)
        matrix @ matrix  # not timed, because the first product also chooses a kernel
        began = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - began)
    return seconds[1] / seconds[0]


def local_device(name: str) -> torch.device:
    """The device of this process; with a launcher such as torchrun the GPU that this process was given."""
    if name.startswith('cuda') and 'LOCAL_RANK' in os.environ:
        return torch.device('cuda', int(os.environ['LOCAL_RANK']))
    return torch.device(name)
