"""Training on labels only: a CNN teacher, a plain ViT, or both tokens of a distilled ViT."""
from collections.abc import Hashable
from contextlib import nullcontext
from typing import Any

import torch
from timm.models.deit import VisionTransformerDistilled
from timm.task import ClassificationTask
from timm.utils import unwrap_model
from torch import Tensor, nn

from ..evaluation import Shots
from .common import ShotEvaluation, frozen_statistics, set_epochs, stages


class ClassifierTask(ShotEvaluation, ClassificationTask):
    """Training on labels only: a CNN teacher, a plain ViT, or both tokens of a distilled ViT.

    Args:
        model: Model with one classifier, or timm's distilled ViT.
        criterion: Loss of logits `[B, C]` and targets; its `set_epoch`, if any, is called by `set_epoch`.
        experts: ('cls',) trains one classifier. In a distilled ViT the DIST token and its head are then frozen, and the
            head is zero. So timm's own evaluation, the mean of both heads, gives half of the CLS logits and ranks the
            classes as CLS does. ('cls', 'dist') trains both tokens on the labels, with the mean of both losses.
        shots: Groups of classes for `create_evaluator`.
        kwargs: `device`, `dtype` and `verbose` as in timm.
    """

    def __init__(
            self,
            model: nn.Module,
            criterion: nn.Module,
            experts: tuple[str, ...] = ('cls',),
            shots: Shots | None = None,
            **kwargs: Any,
    ):
        super().__init__(model, criterion, **kwargs)
        if experts not in (('cls',), ('cls', 'dist')):
            raise ValueError(f"experts={experts!r} is unknown: use ('cls',) or ('cls', 'dist').")
        self.experts = ('mean', *experts)
        self.shots = shots
        self._epoch = 0
        if 'dist' in experts and not isinstance(model, VisionTransformerDistilled):
            raise ValueError(f'{type(model).__name__} has no DIST token to train on the labels: use a deit_lt model.')
        if isinstance(model, VisionTransformerDistilled):
            model.set_distilled_training(True)
            if 'dist' not in experts:
                freeze_dist(model)

    def set_epoch(self, epoch: int) -> None:
        """Tell the losses the 0-based epoch."""
        set_epochs([self.criterion], epoch)
        self._epoch = epoch

    def load_task_state(self, state: dict[str, Any] | None, *args: Any, **kwargs: Any) -> None:
        """As in timm. A DIST head that came with the weights of a distilled run is silenced again."""
        super().load_task_state(state, *args, **kwargs)
        for ema in (False, True):
            model: Any = self.get_eval_model(ema=ema)
            if 'dist' not in self.experts and isinstance(unwrapped := unwrap_model(model), VisionTransformerDistilled):
                freeze_dist(unwrapped)

    def stage(self) -> Hashable:
        """See `ShotEvaluation.stage`."""
        return stages([self.criterion], self._epoch)

    def forward(self, input: Tensor, target: Tensor, second_pass: bool = False) -> dict[str, Tensor]:
        """Forward pass and loss.

        Args:
            input: Images `[B, C, H, W]`.
            target: Class indices `[B]` or distributions `[B, num_classes]`.
            second_pass: Whether this is SAM's second pass, which must not update BatchNorm statistics.

        Returns:
            'loss' and 'output', the logits `[B, num_classes]` of the first expert.
        """
        with frozen_statistics(self.trainable_module) if second_pass else nullcontext():
            output = self.trainable_module(input)
        logits = output if isinstance(output, tuple) else (output,)
        logits = logits[:len(self.experts) - 1]
        loss = torch.stack([self.criterion(x, target) for x in logits]).mean() if len(logits) > 1 else \
            self.criterion(logits[0], target)
        return {'loss': loss, 'output': logits[0]}


def freeze_dist(model: Any) -> None:
    """Turn a distilled ViT into a ViT with one expert: freeze the DIST token and its head, with the head at zero."""
    nn.init.zeros_(model.head_dist.weight)
    nn.init.zeros_(model.head_dist.bias)
    model.head_dist.requires_grad_(False)
    model.dist_token.requires_grad_(False)
