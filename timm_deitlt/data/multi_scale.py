"""Training at several image sizes: the size of each update."""
from collections.abc import Sequence

import torch
from timm.data.scheduled_sampler import ScheduledBatchSampler

from .seeds import IMAGE_SIZE, derive_seed


class SizeSchedule:
    """Image size of each update, drawn with the probabilities of timm's `ScheduledBatchSampler`.

    Every micro-batch of an update has the same size on all ranks. The size depends only on (seed, epoch, update).

    Args:
        sizes: Sides of square images in pixels; 'progressive' moves from the first to the last.
        probs: Weight of each size; None for equal weights. A size of weight 0 is never drawn.
        schedule: 'constant' or 'progressive'.
        epochs: Epochs in which 'progressive' goes from the first size to the last.
        spread: Standard deviation of the probabilities of 'progressive', in positions of the list; 0 for the nearest
            size only.
        random_mix: Share of updates of 'progressive' that draw from all sizes with equal probability.
        seed: Seed of the run.

    Raises:
        ValueError: If the arguments contradict each other.

    Example:
        >>> schedule = SizeSchedule((16, 32), schedule='progressive', epochs=10, spread=0., random_mix=0.)
        >>> [schedule.sizes[schedule.choice(epoch, update=0)] for epoch in (0, 4, 5, 9)]
        [16, 16, 32, 32]
    """

    def __init__(
            self,
            sizes: Sequence[int],
            probs: Sequence[float] | None = None,
            schedule: str = 'constant',
            epochs: int = 1,
            spread: float = 0.65,
            random_mix: float = 0.1,
            seed: int = 0,
    ):
        self.sizes = tuple(sizes)
        self.seed = seed
        # only the probabilities of timm's sampler are used, because its batches know neither updates nor ranks
        self._timms = ScheduledBatchSampler(
            range(1), [1] * len(self.sizes), probs,  # type: ignore[arg-type]
            choice_schedule=schedule, schedule_epochs=epochs,
            schedule_spread=spread, schedule_random_mix=random_mix)

    def probabilities(self, epoch: int) -> torch.Tensor:
        """Probability of each size in a 0-based epoch, float64 `[len(sizes)]`."""
        return self._timms.choice_weights_for_epoch(epoch)

    @property
    def drawn(self) -> list[int]:
        """The sizes whose weight is not 0."""
        return [size for size, weight in zip(self.sizes, self._timms.choice_weights, strict=True) if weight]

    def mean(self, epoch: int, updates: int) -> float:
        """Mean side, in pixels, of the images of an epoch with this number of updates."""
        return sum(self.sizes[self.choice(epoch, update)] for update in range(updates)) / updates

    def choice(self, epoch: int, update: int) -> int:
        """Position in `sizes` of the image size of an update of an epoch, both counted from 0."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch, update, 0, IMAGE_SIZE))
        return int(torch.multinomial(self.probabilities(epoch), 1, generator=generator))
