"""Accuracy by shot: overall, and over the head, mid and tail classes of a long-tailed training set.

Everything is counted per class, in integers, and divided only at the end. So the figures do not depend on how the test
images were cut into batches or spread over processes.
"""
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ..utils.precision import widest_float
from ..utils.tables import text_table
from ..utils.words import first_of
from .shots import GROUPS, Shots

# A matrix of so many classes takes 8 MB
_MOST_CLASSES_COUNTED = 1000


def _class_accuracies(correct: Sequence[int], total: Sequence[int]) -> list[float | None]:
    return [100 * right / count if count else None for right, count in zip(correct, total, strict=True)]


def _mean(accuracies: Sequence[float | None]) -> float | None:
    known = [accuracy for accuracy in accuracies if accuracy is not None]
    return sum(known) / len(known) if known else None


class ShotEvaluator:
    """Count right predictions of several experts per class; like timm's ClassificationEvaluator.

    Counts are int64, and the sum of losses is float64 (float32 on MPS, which has no float64). Both stay on the device
    until `compute`. If an expert gives a NaN logit for an image, the image counts as wrong.

    Args:
        shots: Groups of classes.
        experts: Names of the experts whose logits `update` gets.
        device: Device of the logits; CPU if None.
        max_samples: Number of images to count. A distributed sampler may repeat images after these to fill up a rank.
        logit_scale: Factor from the outputs to the logits, for the loss: networks that LDAM trained give cosines.

    Attributes:
        confusion: After `compute`, images by their class and the class that the first expert gives them, `[C][C]`; None
            for more than 1,000 classes. An image of which it gives a NaN logit is in no column.

    Example:
        >>> evaluator = ShotEvaluator(Shots.from_counts([1000, 50, 10]), experts=('cls',))
        >>> evaluator.update({'cls': torch.eye(3)}, torch.tensor([0, 1, 1]))
        >>> metrics = evaluator.compute()['cls']
        >>> metrics['head'], metrics['mid'], metrics['tail']
        (100.0, 50.0, None)
    """

    def __init__(
            self,
            shots: Shots,
            experts: Sequence[str] = ('mean', 'cls', 'dist'),
            device: torch.device | str | None = None,
            *,
            max_samples: int | None = None,
            logit_scale: float = 1.,
    ):
        self.shots = shots
        self.logit_scale = logit_scale
        self.experts = tuple(experts)
        self.device = torch.device(device or 'cpu')
        self.max_samples = max_samples
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self.num_samples = 0
        self.test_counts: list[int] = []
        num_experts, num_classes = len(self.experts), len(self.shots.order)
        counted = num_classes if num_classes <= _MOST_CLASSES_COUNTED else 0
        counter = partial(torch.zeros, dtype=torch.int64, device=self.device)
        self.images = counter(num_classes + 1)  # by class; the last are of unknown classes
        self.right = counter(num_experts, num_classes)
        self.top5 = counter(num_experts)
        self.confused = counter(counted, counted)
        self.confusion: list[list[int]] | None = None
        self.loss_sum = torch.zeros(num_experts, dtype=widest_float(self.device), device=self.device)

    @torch.no_grad()
    def update(self, logits: Mapping[str, Tensor], target: Tensor) -> None:
        """Count a batch: logits `[B, C]` of each expert (others are ignored) and class indices `[B]`.

        Raises:
            ValueError: If an expert is missing or a shape is wrong.
        """
        num_classes = len(self.shots.order)
        for expert in self.experts:
            if expert not in logits:
                raise ValueError(f'There are no logits of expert {expert!r}, only of {list(logits)}.')
            if target.ndim != 1 or logits[expert].shape != (len(target), num_classes):
                raise ValueError(
                    f'Expected class indices [B] and logits [B, {num_classes}], got {tuple(target.shape)} and, of '
                    f'{expert!r}, {tuple(logits[expert].shape)}.')
        limit = len(target) if self.max_samples is None else max(0, self.max_samples - self.num_samples)
        target = target[:limit].long()
        self.num_samples += len(target)
        known = (target >= 0) & (target < num_classes)
        self.images.index_add_(0, torch.where(known, target, num_classes), torch.ones_like(target))
        # An unknown class is an error. `compute` raises it, because a check here would wait for the device.
        target = target.clamp(0, num_classes - 1)
        for row, expert in enumerate(self.experts):
            self._count(row, logits[expert][:limit].detach().float(), target, known)

    def _count(self, row: int, logits: Tensor, target: Tensor, known: Tensor) -> None:
        loss = F.cross_entropy(self.logit_scale * logits, target, reduction='none')
        self.loss_sum[row] += loss.to(self.loss_sum.dtype).sum()
        ranked = logits.topk(min(5, logits.shape[-1]), dim=-1).indices
        # topk ranks NaN above every number, so a NaN would count as a prediction of its class
        numbers = ~logits.isnan().any(dim=-1, keepdim=True)
        hits = (ranked == target[:, None]) & numbers
        self.right[row].index_add_(0, target, hits[:, 0].long())
        self.top5[row] += hits.sum()
        if not row and len(self.confused):
            cells = target * len(self.confused) + ranked[:, 0]
            self.confused.view(-1).index_add_(0, cells, (numbers[:, 0] & known).long())

    def compute(self, distributed: bool = False) -> dict[str, dict[str, Any]]:
        """Metrics of each expert over all images so far, and `test_counts`, the images per class.

        Args:
            distributed: Whether to add up the counts of all ranks.

        Returns:
            For each expert 'loss' (mean cross-entropy) and, in percent, 'top1', 'top5' (if there are more than 5
            classes), 'balanced' (mean over all classes), 'head', 'mid', 'tail' (means over their classes) and
            'per_class' (a list by class index). Classes without test images have the accuracy None and are left out of
            every mean. A group that has only such classes is None too. A NaN among the logits makes the loss NaN.

        Raises:
            ValueError: If there was no image, or an image of a class that the training set does not have.
        """
        sums = [part.clone() for part in (self.images, self.right, self.top5, self.loss_sum, self.confused)]
        if distributed:
            for part in sums:
                dist.all_reduce(part)
        (*test_counts, num_unknown), right, top5, losses, confused = (part.tolist() for part in sums)
        num_images = sum(test_counts)
        if num_unknown:
            raise ValueError(
                f'{num_unknown} of {num_images + num_unknown} test images have a label outside 0 to '
                f'{len(test_counts) - 1}: training and test set must number the same classes in the same way.')
        if not num_images:
            raise ValueError('There is no test image to evaluate: give an evaluation set that is not empty.')
        self.test_counts = test_counts
        self.confusion = confused or None
        metrics = {}
        for expert, correct, hits, loss in zip(self.experts, right, top5, losses, strict=True):
            per_class = _class_accuracies(correct, test_counts)
            metrics[expert] = {
                'loss': loss / num_images,
                'top1': 100 * sum(correct) / num_images,
                **({'top5': 100 * hits / num_images} if len(test_counts) > 5 else {}),
                'balanced': _mean(per_class),
                **{group: _mean([per_class[label] for label in labels]) for group, labels in self.shots.groups.items()},
                'per_class': per_class,
            }
        return metrics


def format_table(
        metrics: Mapping[str, Mapping[str, Any] | None],
        shots: Shots,
        test_counts: Sequence[int],
        header: bool = True,
        class_names: Sequence[str] | None = None,
) -> str:
    """Lay out metrics as a plain-text table with one decimal, for 80 columns.

    Args:
        metrics: Metrics of each row as `ShotEvaluator.compute` returns them; further rows such as 'teacher' may be
            added. A value that a row does not have is printed as '-', and so are all values of a row that is None.
        shots: Groups of classes.
        test_counts: Test images per class, by class index.
        header: Whether to print also the classes and images of each group, and warnings.
        class_names: Names by class index, for the warnings; by default the indices.
    """
    keys = ['top1', *GROUPS, 'balanced', 'top5']
    if not any('top5' in (row or {}) for row in metrics.values()):
        keys.remove('top5')
    groups = shots.describe(test_counts)
    table = [['', *({'top1': 'overall', 'top5': 'top-5'}.get(key, key) for key in keys)]]
    if header:
        for key in ('classes', 'train_images', 'test_images'):
            counts = [groups[group][key] for group in GROUPS]
            cells = [f'{count:,}' for count in (sum(counts), *counts)]
            table.append([key.replace('_', ' '), *cells, *[''] * (len(keys) - len(cells))])
    for name, row in metrics.items():
        values = [(row or {}).get(key) for key in keys]
        table.append([name, *('-' if value is None else f'{value:.1f}' for value in values)])
    lines = [text_table(table)]
    if header:
        notes = _notes(groups, class_names or range(len(test_counts)))
        lines += [line for note in notes for line in textwrap.wrap(note, width=80, subsequent_indent='  ')]
    return '\n'.join(lines)


def _notes(groups: Mapping[str, Any], class_names: Sequence[str | int]) -> list[str]:
    notes = [f"groups: {groups['rule']}"]
    if not any(groups[group]['test_images'] for group in GROUPS):
        return [*notes, 'warning: nothing was evaluated, there are no test images']
    for group in GROUPS:
        count = groups[group]['test_images']
        if groups[group]['classes'] and count < 30:
            notes.append(f'warning: {group} has fewer than 30 test images ({count}): its accuracy is coarse')
    missing = groups['missing_classes']
    if missing:
        named = first_of([str(class_names[label]) for label in missing])
        notes.append(f'warning: no test images of class {named}; every mean leaves them out')
    return notes
