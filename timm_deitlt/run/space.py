"""Room on the disk for the checkpoints of a run, before it trains."""
import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from ..engine.checkpoint import LAST
from ..engine.trainer import Trainer
from ..models.weights import tensor_bytes
from ..settings.resolved import Settings
from ..utils.files import amount, free_bytes


def check_space(
        settings: Settings,
        folder: Path,
        trainer: Trainer,
        start_epoch: int,
        flag: str = '--output',
) -> None:
    """Refuse a training whose checkpoints do not fit into its folder.

    Args:
        settings: Settings of the training.
        folder: Its folder, which need not exist yet.
        trainer: Everything that a checkpoint holds.
        start_epoch: Epoch that it begins with, 0-based.
        flag: What gives another folder.

    Raises:
        ValueError: With the folder, what is needed and what is left.
    """
    states = [trainer.task.get_checkpoint_state(ema=ema) for ema in (False, True)]
    size = tensor_bytes(states) + optimizer_bytes(trainer.optimizer)
    end = settings.schedule.stop_epoch or settings.schedule.epochs
    milestones = sum(
        start_epoch < epoch <= end and not (folder / f'milestone-{epoch}.pth.tar').is_file()
        for epoch in {settings.stage_two.start_epoch, *(settings.schedule.save_epochs or ())})
    # the newest checkpoint lies there until the one that is to replace it is whole
    files = milestones + (1 if (folder / LAST).is_file() else 2)
    free = free_bytes(folder)
    if start_epoch < end and files * size > free:
        raise ValueError(
            f'The checkpoints do not fit into {folder}: {amount(files * size)} are needed for {files} file(s) of about '
            f'{amount(size)} at a time, {milestones} of them milestone(s), and {amount(free)} are left there. Make '
            f'room, or give another {flag}{" or fewer --save-epochs" if settings.schedule.save_epochs else ""}.')


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes that the state of an optimizer will take, found by a step without data; it stays as it is."""
    base = getattr(optimizer, 'base_optimizer', optimizer)  # SAM keeps no state beside it
    trial = copy.copy(base)
    trial.state = defaultdict(dict)
    trial.param_groups = [{**group, 'params': list(_without_data(group['params']))} for group in base.param_groups]
    for group in trial.param_groups:
        group.update({name: False for name in ('fused', 'foreach') if name in group})
    try:
        trial.step()
    except Exception:  # some look at values, and each fails in its own way: as momentum
        return sum(tensor_bytes(group['params']) for group in base.param_groups)
    return tensor_bytes(list(trial.state.values()))


def _without_data(parameters: Sequence[torch.Tensor]) -> Iterator[nn.Parameter]:
    for parameter in parameters:
        like = nn.Parameter(torch.empty_like(parameter, device='meta'), requires_grad=parameter.requires_grad)
        like.grad = torch.empty_like(like) if parameter.requires_grad else None
        yield like
