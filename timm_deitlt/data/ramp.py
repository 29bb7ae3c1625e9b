"""An augmentation that grows stronger over the first epochs."""
from collections.abc import Iterable

from timm.data.auto_augment import RandAugment
from torchvision import transforms

from .augment import BatchAugment


class AugmentationRamp:
    """Sets the strength of an augmentation by the epoch: from none to all of it, linearly.

    What is scaled are the magnitude of RandAugment and the probabilities of its operations, of erasing and of mixing;
    crops and flips stay. The strength is a function of the epoch alone, so that a resumed epoch is the same epoch.

    Args:
        epochs: First 0-based epoch of full strength.
        views: Training transforms, changed in place.
        batch: What is done to batches, changed in place.

    Example:
        >>> augment = BatchAugment(Mixup(num_classes=10), re_prob=.25)
        >>> AugmentationRamp(10, [], augment).set_epoch(5)
        >>> augment.erase.probability, augment.mixup.mix_prob
        (0.125, 0.5)
    """

    def __init__(self, epochs: int, views: Iterable[transforms.Compose], batch: BatchAugment):
        self.epochs = epochs
        operations = [
            operation for view in views for step in view.transforms if isinstance(step, RandAugment)
            for operation in step.ops]
        parts = [(operation, name) for operation in operations for name in ('magnitude', 'prob')]
        parts += [(batch.erase, 'probability')] if batch.erase else []
        parts += [(batch.mixup, 'mix_prob')] if batch.mixup else []
        self.parts = [(part, name, getattr(part, name)) for part, name in parts]

    def strength(self, epoch: int) -> float:
        """Share of the full strength in a 0-based epoch."""
        return min(1., epoch / self.epochs)

    def set_epoch(self, epoch: int) -> None:
        """Take the strength of a 0-based epoch; loader processes started later have it too."""
        for part, name, full in self.parts:
            setattr(part, name, full * self.strength(epoch))
