"""What a run reports: metrics.json, the final table, versions."""
import argparse
import math
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy
import timm
import torch
import torchvision
from timm.utils import unwrap_model

from .build.data import Data
from .checkpoint import weights_sha256
from .engine import Trainer
from .evaluation import format_table
from .folder import RunFolder
from .teachers import Teacher
from .version import __version__

EXPERTS = ('mean', 'cls', 'dist')


def plain_json(value: Any) -> Any:
    """The same with None for numbers that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: plain_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def run_result(
        args: argparse.Namespace,
        data: Data,
        trainer: Trainer,
        folder: RunFolder,
        metrics: dict[str, Any] | None,
        teacher: Teacher | None,
        teacher_metrics: dict[str, Any] | None,
        seconds: float,
) -> dict[str, Any]:
    """The content of metrics.json."""
    experts = (metrics or {}).get('experts', {})
    test_counts = trainer.test_counts if metrics else [0] * data.train.num_classes
    train_seconds = sum(float(row['train_seconds']) for row in folder.rows)
    images = trainer.loader.images_per_epoch * len(folder.rows)
    result = {
        **{expert: experts.get(expert) for expert in EXPERTS},
        'teacher': None if teacher is None else {
            'name': teacher.name, 'source': teacher.source, 'path': str(teacher.path), **(teacher_metrics or {})},
        'shots': data.shots.describe(test_counts),
        'data': {**data.describe(test_counts), 'bad_images': data.bad_images},
        'model': args.model,
        'epochs': trainer.epochs,
        'epochs_trained': int(folder.rows[-1]['epoch']) + 1 if folder.rows else None,
        'seed': args.seed,
        'seconds': round(seconds, 1),
        'train_images_per_second': round(images / train_seconds, 1) if train_seconds else None,
        'weights_sha256': weights_sha256(unwrap_model(trainer.task.get_eval_model()).state_dict()),
        'versions': versions(),
    }
    if metrics and 'ema' in metrics:
        result['ema'] = metrics['ema']
    return result


def final_table(result: dict[str, Any], shots: Any) -> str:
    """The table that a run ends with: experts, EMA and teacher by shot."""
    rows = {expert: result[expert] for expert in EXPERTS if result.get(expert)}
    rows.update({f'ema {expert}': values for expert, values in result.get('ema', {}).items()})
    rows.update(result.get('fusion', {}))
    if result['teacher'] and result['teacher'].get('top1') is not None:
        rows['teacher'] = result['teacher']
    return format_table(rows, shots, result['data']['test_counts'])


def versions() -> dict[str, str]:
    """Versions, commit and machine that a result was obtained with."""
    here = Path(__file__).resolve().parent
    git = subprocess.run(
        ['git', '-C', str(here), 'describe', '--always', '--dirty', '--abbrev=12'], capture_output=True, text=True)
    return {
        'timm_deitlt': __version__,
        'git': git.stdout.strip() or 'unknown',
        'timm': timm.__version__,
        'torch': torch.__version__,
        'torchvision': torchvision.__version__,
        'numpy': numpy.__version__,
        'python': platform.python_version(),
        'machine': _machine(),
    }


def _machine() -> str:
    known = getattr(torch.cpu, 'get_capabilities', dict)()  # younger than torch 2.6
    words = [platform.machine(), f'{os.cpu_count()} cores']
    # what bfloat16 gains on a CPU depends on these
    words += [word for name, word in (('amx_bf16', 'AMX'), ('avx512_bf16', 'AVX-512 BF16')) if known.get(name)]
    if torch.cuda.is_available():
        words.append(torch.cuda.get_device_name())
    return ', '.join(words)
