"""Where a run computes, and what is fastest there."""
import ctypes
import functools
import os
import time
from contextlib import suppress

import torch
from timm.layers import set_fused_attn


def choose_device(name: str | None, plain: bool = False) -> str:
    """Settle on a device, and on what is usually fastest there unless `plain`.

    Args:
        name: Its name, or None for a GPU where there is one.
        plain: Whether attention and memory stay as PyTorch has them.

    Returns:
        Its name.

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
    """Let glibc keep freed memory for the next step, where it would return it to the system and ask for it again.

    Returns:
        Whether it does; another C library does not.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    trim_threshold, mmap_threshold = -1, -3  # of malloc.h
    # older ones take no more than 32 MiB for the second
    large = mallopt(mmap_threshold, 2 ** 31 - 1) or mallopt(mmap_threshold, 2 ** 25)
    return bool(mallopt(trim_threshold, 2 ** 31 - 1) and large)


def return_freed_memory() -> None:
    """Give the system what glibc keeps: of use once, after what needs more memory than the steps that follow."""
    with suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def has_bfloat16(device: torch.device) -> bool:
    """Whether PyTorch computes matrix products of bfloat16 with instructions of the device.

    Where it does not, it emulates them: on a CPU with AVX2 alone at about a fiftieth of the speed of float32.
    """
    if device.type == 'cuda':
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != 'cpu' or not torch.backends.mkldnn.is_available():
        return False
    # oneDNN is what computes them, and it can be told to leave instructions unused (ONEDNN_MAX_CPU_ISA). On x86 it also
    # says yes to AVX-512 alone, which only converts.
    x86 = torch.backends.cpu.get_cpu_capability().startswith('AVX')
    return torch.ops.mkldnn._is_mkldnn_bf16_supported() and (not x86 or torch.cpu._is_avx512_bf16_supported())


@functools.cache
def price_of_bfloat16() -> float:
    """How many times as long as in float32 a matrix product takes in bfloat16 on this CPU, timed once."""
    seconds = []
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(256, 256, dtype=dtype)
        matrix @ matrix  # kernels are chosen in the first
        began = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - began)
    return seconds[1] / seconds[0]


def local_device(name: str) -> torch.device:
    """The device of this process: of several GPUs that a launcher shares out, its own."""
    if name.startswith('cuda') and 'LOCAL_RANK' in os.environ:
        return torch.device('cuda', int(os.environ['LOCAL_RANK']))
    return torch.device(name)
