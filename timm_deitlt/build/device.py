"""Where a run computes, and what is fastest there."""
import argparse
import ctypes
import os
from contextlib import suppress

import torch
from timm.layers import set_fused_attn


def choose_device(args: argparse.Namespace, plain: bool = False) -> None:
    """Settle on a device, and on what is usually fastest there unless `plain`.

    Raises:
        ValueError: If the device cannot be used.
    """
    args.device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        torch.empty(0, device=local_device(args))
    except (AssertionError, RuntimeError) as error:
        raise ValueError(
            f'--device {args.device} cannot be used ({str(error).splitlines()[0]}): leave it out, or give --device '
            'cpu.') from error
    on_cpu = torch.device(args.device).type == 'cpu'
    # on CPUs matrix products are about twice as fast as the fused kernel, forward and backward
    set_fused_attn(plain or not on_cpu)
    if on_cpu and not plain:
        keep_freed_memory()


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


def local_device(args: argparse.Namespace) -> torch.device:
    if args.device.startswith('cuda') and 'LOCAL_RANK' in os.environ:
        return torch.device('cuda', int(os.environ['LOCAL_RANK']))
    return torch.device(args.device)
