"""SAM's radius over the epochs and updates of a run."""
from bisect import bisect_right
from collections.abc import Callable

from ..settings.resolved import OptimizerSettings


def rho_schedule(settings: OptimizerSettings) -> Callable[[int, int], float] | None:
    """SAM's radius by epoch and update of the run, both counted from 0; None if it does not change."""
    if not settings.is_sam or (not settings.rho_milestones and settings.sam_every == 1):
        return None
    values = [settings.rho, *settings.rho_values]

    def rho(epoch: int, update: int) -> float:
        return 0. if update % settings.sam_every else values[bisect_right(settings.rho_milestones, epoch + 1)]

    return rho
