"""Head, mid and tail: which classes of a long-tailed training set are frequent, and which are rare."""
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

GROUPS = ('head', 'mid', 'tail')
# Classes are balanced if the largest has at most so many times the training images of the smallest
_BALANCED = 1.2
_NO_TAIL = 'no head and no tail, because all classes have about as many training images; mid is all of them'


@dataclass(frozen=True)
class Shots:
    """Head, mid and tail classes (also called many-, medium- and few-shot), by their number of training images.

    Args:
        order: Class indices from most to least frequent. Classes of equal frequency are in the order of their indices.
        boundaries: Positions in `order` of the first mid class and of the first tail class.
        rule: A sentence that says how the boundaries were chosen.
        class_counts: Training images per class, by class index.

    Example:
        >>> Shots.from_counts([10, 1000, 50]).groups
        {'head': [1], 'mid': [2], 'tail': [0]}
    """
    order: tuple[int, ...]
    boundaries: tuple[int, int]
    rule: str
    class_counts: tuple[int, ...]

    @classmethod
    def from_counts(cls, class_counts: Sequence[int], boundaries: tuple[int, int] | None = None) -> 'Shots':
        """Group the classes at the given cuts, or else at 100 and 20 images, or into thirds if a group would be empty.

        Without given cuts, balanced classes have no head and no tail: all of them are in mid.

        Args:
            class_counts: Training images per class, by class index.
            boundaries: Positions of the first mid and the first tail class among the classes, most frequent first.

        Raises:
            ValueError: If there are fewer than 2 classes, or given cuts leave a group empty. With 2 classes mid may be
                empty, and the cuts `(0, C)` are those of balanced classes.
        """
        counts = tuple(int(count) for count in class_counts)
        num_classes = len(counts)
        if num_classes < 2:
            raise ValueError(f'Head, mid and tail need at least 2 classes, got {num_classes}.')
        order = tuple(sorted(range(num_classes), key=lambda label: -counts[label]))
        if boundaries is None and _is_balanced(counts) or boundaries == (0, num_classes):
            return cls(order, (0, num_classes), _NO_TAIL, counts)
        if boundaries is not None:
            mid, tail = checked_cuts(boundaries, num_classes)
            rule = f'given cuts: head is the {mid} most frequent classes, tail the {num_classes - tail} rarest'
            return cls(order, (mid, tail), rule, counts)
        mid, tail = sum(count > 100 for count in counts), sum(count >= 20 for count in counts)
        rule = 'cuts by training images: head has more than 100 a class, mid 20 to 100, tail fewer than 20'
        if not 0 < mid < tail < num_classes:
            mid, tail = round(num_classes / 3), num_classes - round(num_classes / 3)
            rule = 'thirds of the classes, as cuts at 100 and 20 training images would leave a group empty'
        return cls(order, (mid, tail), rule, counts)

    @classmethod
    def of_benchmark(cls, class_counts: Sequence[int], boundaries: tuple[int, int] | None) -> 'Shots':
        """Group the classes at the cuts of their benchmark, if it has any and the classes are not balanced."""
        return cls.from_counts(class_counts, None if _is_balanced(class_counts) else boundaries)

    @property
    def groups(self) -> dict[str, list[int]]:
        """Class indices of 'head', 'mid' and 'tail', from most to least frequent."""
        mid, tail = self.boundaries
        return {'head': list(self.order[:mid]), 'mid': list(self.order[mid:tail]), 'tail': list(self.order[tail:])}

    def describe(self, test_counts: Sequence[int]) -> dict[str, Any]:
        """Rule, groups, and the classes without test images, as JSON, given the test images per class."""
        return {
            'rule': self.rule,
            'boundaries': list(self.boundaries),
            **{
                group: {
                    'classes': len(labels),
                    'train_images': sum(self.class_counts[label] for label in labels),
                    'test_images': sum(test_counts[label] for label in labels),
                }
                for group, labels in self.groups.items()
            },
            'missing_classes': [label for label, count in enumerate(test_counts) if not count],
        }


def _is_balanced(class_counts: Sequence[int]) -> bool:
    return max(class_counts) <= _BALANCED * min(class_counts)


def checked_cuts(boundaries: tuple[int, int], num_classes: int) -> tuple[int, int]:
    """Positions of the first mid and the first tail class, or a ValueError if they do not cut the classes."""
    mid, tail = boundaries
    if not (0 < mid < tail < num_classes or 0 < mid == tail < num_classes < 3):
        raise ValueError(
            f'Boundaries {(mid, tail)} do not cut {num_classes} classes into head, mid and tail: give the positions of '
            f'the first mid and the first tail class among the sorted classes, 0 < mid < tail < {num_classes}.')
    return mid, tail
