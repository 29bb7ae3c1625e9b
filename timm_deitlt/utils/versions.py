"""Versions, commit and machine of a result, and values that are valid JSON."""
import json
import os
import platform
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy
import timm
import torch
import torchvision

from ..version import __version__


def plain_json(value: Any) -> Any:
    """The same value with None in place of numbers that JSON does not allow (NaN and infinity)."""
    return json.loads(json.dumps(value), parse_constant=lambda name: None)


def versions() -> dict[str, str]:
    """Versions, commit and machine that a result was obtained with."""
    here = Path(__file__).resolve().parent
    commit = ''
    with suppress(FileNotFoundError):  # a machine without git
        commit = subprocess.run(
            ['git', '-C', str(here), 'describe', '--always', '--dirty', '--abbrev=12'], capture_output=True, text=True,
        ).stdout.strip()
    return {
        'timm_deitlt': __version__,
        'git': commit or 'unknown',
        'timm': timm.__version__,
        'torch': torch.__version__,
        'torchvision': torchvision.__version__,
        'numpy': numpy.__version__,
        'python': platform.python_version(),
        'machine': _machine(),
    }


def _machine() -> str:
    known: dict[str, Any] = getattr(torch.cpu, 'get_capabilities', dict)()  # newer than torch 2.6
    words = [platform.machine(), f'{os.cpu_count()} cores']
    # the speed of bfloat16 on a CPU depends on these
    words += [word for name, word in (('amx_bf16', 'AMX'), ('avx512_bf16', 'AVX-512 BF16')) if known.get(name)]
    if torch.cuda.is_available():
        words.append(torch.cuda.get_device_name())
    return ', '.join(words)
