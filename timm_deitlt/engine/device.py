"""Where a run computes, and what is fastest there."""
import ctypes
import functools
import os
import time
from contextlib import suppress

import torch
from timm.layers import set_fused_attn


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


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
