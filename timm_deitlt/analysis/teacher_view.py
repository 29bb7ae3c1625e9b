"""How well a teacher does on the student's images, and how often the student agrees with it."""
from collections.abc import Sequence

import torch
from torch import Tensor


class TeacherView:
    """Running counts of a teacher's predictions.

    Args:
        tail: Indices of the tail classes.
        logit_scale: Factor of the teacher's logits before the entropy. If the logits are cosines, give the scale of the
            teacher's loss, because the softmax of plain cosines is always almost flat.

    Example:
        >>> view = TeacherView(tail=[2])
        >>> view.update(torch.eye(3), torch.tensor([0, 1, 1]))
        >>> round(view.compute()['top1'], 1), round(view.compute()['tail_share'], 1)
        (66.7, 33.3)
    """

    def __init__(self, tail: Sequence[int], logit_scale: float = 1.):
        self.tail = torch.tensor(list(tail), dtype=torch.int64)
        self.logit_scale = logit_scale
        self.num_views = 0
        self.correct = self.agreed = self.in_tail = self.truly_in_tail = 0.
        self.entropy = 0.
        self.compared = True

    @torch.no_grad()
    def update(self, teacher_logits: Tensor, target: Tensor, dist_logits: Tensor | None = None) -> None:
        """Count a batch.

        Args:
            teacher_logits: `[B, C]`.
            target: Class indices `[B]`, or after Mixup distributions `[B, C]`, whose dominant label counts.
            dist_logits: Logits of the student's DIST expert `[B, C]`, or None if it is not compared.
        """
        logits = self.logit_scale * teacher_logits.detach().cpu().double()
        labels = logits.argmax(dim=-1)
        target = (target if target.ndim == 1 else target.argmax(dim=-1)).cpu()
        self.num_views += len(labels)
        self.correct += (labels == target).sum().item()
        self.in_tail += torch.isin(labels, self.tail).sum().item()
        self.truly_in_tail += torch.isin(target, self.tail).sum().item()
        self.entropy += torch.special.entr(logits.softmax(dim=-1)).sum().item()
        self.compared = self.compared and dist_logits is not None
        if dist_logits is not None:
            self.agreed += (dist_logits.argmax(dim=-1).cpu() == labels).sum().item()

    def compute(self) -> dict[str, float | int | None]:
        """Figures over all images so far.

        Returns:
            In percent 'top1', 'tail_share' (predictions that are tail classes), 'true_tail_share' (labels that are tail
            classes) and 'agreement' (DIST predicts the same class as the teacher; None if a batch had no DIST logits).
            Also 'entropy', the mean over the images in nats, and 'num_views', the number of images.

        Raises:
            ValueError: If there was no image.
        """
        if not self.num_views:
            raise ValueError('The teacher has seen no image: call update first.')
        return {
            'top1': 100 * self.correct / self.num_views,
            'entropy': self.entropy / self.num_views,
            'tail_share': 100 * self.in_tail / self.num_views,
            'true_tail_share': 100 * self.truly_in_tail / self.num_views,
            'agreement': 100 * self.agreed / self.num_views if self.compared else None,
            'num_views': self.num_views,
        }
