"""What is kept and shown of an epoch: its row of summary.csv, and its lines in the log."""
from typing import Any, cast

from ..evaluation import Shots, format_table
from .trainer import Trainer


def summary_row(
        epoch: int,
        trained: dict[str, float],
        eval_seconds: float,
        metrics: dict[str, Any] | None,
) -> dict[str, Any]:
    """The row of an epoch in summary.csv.

    Args:
        epoch: Counted from 0.
        trained: Averages over the epoch, as `Trainer.train_one_epoch` returns them.
        eval_seconds: How long the evaluation took.
        metrics: Metrics under 'experts' and, with an EMA, 'ema'; None if the epoch was not evaluated.
    """
    row: dict[str, Any] = {
        'epoch': epoch, **{f'train_{key.removeprefix("train_")}': value for key, value in trained.items()},
        'eval_seconds': eval_seconds}
    for prefix, experts in (('eval', 'experts'), ('ema', 'ema')):
        for expert, values in (metrics or {}).get(experts, {}).items():
            row.update({
                f'{prefix}_{expert}_{name}': value for name, value in values.items() if name != 'per_class'})
    return row


def epoch_report(
        trainer: Trainer,
        title: str,
        epoch: int,
        trained: dict[str, float],
        metrics: dict[str, Any] | None,
) -> str:
    """The text to log after an epoch: a line about training, and a short table of the experts."""
    line = (
        f'{title} epoch {epoch + 1}/{trainer.epochs}  loss {trained["loss"]:.3f}  '
        f'{trained["train_images_per_second"]:.0f} img/s')
    if 'image_size' in trained:
        line += f'  images of {trained["image_size"]:.0f} px on average'
    if 'teacher_correct' in trained:
        line += (
            f'  teacher right on {100 * trained["teacher_correct"]:.0f} % of these images, DIST agrees on '
            f'{100 * trained["agreement"]:.0f} %, cos(CLS, DIST) {trained["cosine"]:.2f}')
    if metrics is None:
        return line
    rows = {**metrics['experts'], **{f'ema {expert}': values for expert, values in metrics.get('ema', {}).items()}}
    if 'dist' not in rows:
        rows.pop('mean')  # the same as the only expert
    return f'{line}\n{format_table(rows, cast(Shots, trainer.task.shots), trainer.test_counts, header=False)}'
