"""An augmentation that becomes stronger over the first epochs."""
from collections.abc import Iterable

from timm.data.auto_augment import RandAugment
from torchvision import transforms

from .augment import BatchAugment


class AugmentationRamp:
    """Sets the strength of an augmentation by the epoch, linearly from zero to full strength.

    It scales the magnitude of RandAugment and the probabilities of its operations, of erasing and of mixing. Crops and
    flips do not change. The strength depends only on the epoch, so a resumed epoch is the same epoch.

    Args:
        epochs: First 0-based epoch with full strength.
        views: Training transforms; changed in place.
        batch: Augmentation of batches; changed in place.

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
        """Set the strength of a 0-based epoch. Loader processes that start later have it too."""
        for part, name, full in self.parts:
            setattr(part, name, full * self.strength(epoch))
