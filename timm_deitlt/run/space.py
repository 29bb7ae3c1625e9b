"""Check that the checkpoints of a run fit on the disk, before it trains."""
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
        trainer: Trainer whose state the checkpoints hold.
        start_epoch: 0-based epoch that it begins with.
        flag: Flag that chooses the folder, for the message.

    Raises:
        ValueError: If they do not fit. The message says how much space is needed and how much is left.
    """
    states = [trainer.task.get_checkpoint_state(ema=ema) for ema in (False, True)]
    size = tensor_bytes(states) + optimizer_bytes(trainer.optimizer)
    end = settings.schedule.stop_epoch or settings.schedule.epochs
    milestones = sum(
        start_epoch < epoch <= end and not (folder / f'milestone-{epoch}.pth.tar').is_file()
        for epoch in {settings.stage_two.start_epoch, *(settings.schedule.save_epochs or ())})
    # the newest checkpoint is removed only when the file that replaces it is complete
    files = milestones + (1 if (folder / LAST).is_file() else 2)
    free = free_bytes(folder)
    if start_epoch < end and files * size > free:
        raise ValueError(
            f'The checkpoints do not fit into {folder}: {files} file(s) of about {amount(size)} each, {milestones} of '
            f'them milestone(s), need {amount(files * size)}, but only {amount(free)} are left. Free some space, or '
            f'give another {flag}{" or fewer --save-epochs" if settings.schedule.save_epochs else ""}.')


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes that the state of an optimizer will take, found by a step of a copy that has no data."""
    base = getattr(optimizer, 'base_optimizer', optimizer)  # SAM has no state of its own
    trial = copy.copy(base)
    trial.state = defaultdict(dict)
    trial.param_groups = [{**group, 'params': list(_without_data(group['params']))} for group in base.param_groups]
    for group in trial.param_groups:
        group.update({name: False for name in ('fused', 'foreach') if name in group})
    try:
        trial.step()
    except Exception:  # some read values, and each fails in its own way: assume as much state as with momentum
        return sum(tensor_bytes(group['params']) for group in base.param_groups)
    return tensor_bytes(list(trial.state.values()))


def _without_data(parameters: Sequence[torch.Tensor]) -> Iterator[nn.Parameter]:
    for parameter in parameters:
        like = nn.Parameter(torch.empty_like(parameter, device='meta'), requires_grad=parameter.requires_grad)
        like.grad = torch.empty_like(like) if parameter.requires_grad else None
        yield like
