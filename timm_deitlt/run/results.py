"""What a run reports: metrics.json, the final table, versions."""
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timm.utils import unwrap_model

from ..engine.run_folder import RunFolder
from ..engine.trainer import Trainer
from ..evaluation import format_table
from ..evaluation.confusion import describe_confusion
from ..models.weights import weights_sha256
from ..settings.resolved import Settings
from ..utils.versions import versions
from .build.data import Data
from .teacher_settings import Teacher

EXPERTS = ('mean', 'cls', 'dist')


def refuse_folds(folder: Path) -> None:
    """Refuse the folder of a run of `--folds`, which holds a run for each fold, where one model is asked for.

    Raises:
        ValueError: Naming one of them.
    """
    if (folder / 'fold-0').is_dir():
        raise ValueError(
            f"'{folder}' holds the folds of a run: give one of them, such as {folder / 'fold-0'}.")


def run_record(trainer: Trainer, settings: Settings, data: Data, speed: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint holds besides the state of training."""
    counts = getattr(data.evaluation, 'class_counts', None) or []  # unknown for a stream
    return {
        'experts': list(trainer.task.experts),
        'data': data.describe(list(counts)),
        'precision': settings.machine.precision.words,
        'speed': speed,
    }


def run_result(
        settings: Settings,
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
        **fused(experts, trainer.fusions, trainer.fusions),
        'teacher': None if teacher is None else {
            'name': teacher.name, 'source': teacher.source, 'path': str(teacher.path), **(teacher_metrics or {})},
        'shots': data.shots.describe(test_counts),
        'confusion': describe_confusion(
            trainer.confusion if metrics else None, data.train.class_names, trainer.fusions),
        'data': {**data.describe(test_counts), 'bad_images': data.bad_images},
        'model': settings.model.name,
        'epochs': trainer.epochs,
        'epochs_trained': int(folder.rows[-1]['epoch']) + 1 if folder.rows else None,
        'seed': settings.seed,
        'seconds': round(seconds, 1),
        'train_images_per_second': round(images / train_seconds, 1) if train_seconds else None,
        'weights_sha256': weights_sha256(unwrap_model(trainer.task.get_eval_model()).state_dict()),
        'versions': versions(),
    }
    if metrics and 'ema' in metrics:
        result['ema'] = metrics['ema']
    return result


def fused(metrics: Mapping[str, Any], answer: Sequence[str], fusions: Sequence[str]) -> dict[str, Any]:
    """What metrics.json says of fusions: which is the answer, unless it is the mean, and the metrics of all."""
    if not fusions:
        return {}
    return {**({'answer': answer[0]} if answer else {}), 'fusion': {name: metrics.get(name) for name in fusions}}


def final_table(result: dict[str, Any], shots: Any) -> str:
    """The table at the end of a run: accuracy of experts, EMA and teacher by class group."""
    fusions = {name: values for name, values in result.get('fusion', {}).items() if values}
    answer = result.get('answer')
    rows = {str(answer): fusions.pop(answer)} if answer in fusions else {}
    rows.update({expert: result[expert] for expert in EXPERTS if result.get(expert)})
    rows.update({f'ema {expert}': values for expert, values in result.get('ema', {}).items()})
    rows.update(fusions)
    if result['teacher'] and result['teacher'].get('top1') is not None:
        rows['teacher'] = result['teacher']
    table = format_table(rows, shots, result['data']['test_counts'], class_names=result['data']['class_names'])
    return f'{table}\nprediction: {answer}' if answer in rows else table
