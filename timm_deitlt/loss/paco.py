"""Loss of PaCo: cross-entropy over classes and contrasts."""
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from . import full_precision
from .class_weights import check_classes, checked_counts

EMPTY = -1  # class of a contrast that does not count


class PaCoLoss(nn.Module):
    """Cross-entropy over the classes and over contrasts, which are features of other images.

    The softmax of an image i is over the C classes and over the contrasts. A class c has the logit z_ic + log(prior_c).
    The contrasts are all other queries of the batch, the keys and the queue. A contrast k_j has the logit q_i . k_j / T
    and counts `gamma` times in the denominator. The positives of i are the true class, with weight `beta`, and the
    contrasts of that class, each with weight `alpha`. The loss is minus the weighted mean of their log-probabilities.

    Args:
        class_counts: Training images per class, for the prior.
        alpha: Weight of a contrast of the same class.
        beta: Weight of the true class.
        gamma: Weight of the contrasts in the denominator.
        temperature: T.

    Raises:
        ValueError: If an argument is out of range, the number of classes differs between logits and counts, or the
            targets are not class indices.

    Source: PaCo (https://arxiv.org/abs/2107.12028), equations 3 and 4, as in its released training.

    Example:
        >>> loss = PaCoLoss([500, 50, 5], alpha=.05)
        >>> queries, keys = torch.randn(2, 2, 8) / 8
        >>> target = torch.tensor([0, 2])
        >>> loss(torch.zeros(2, 3), queries, target, keys, target).shape
        torch.Size([])
    """

    log_prior: Tensor

    def __init__(
            self,
            class_counts: Sequence[int] | Tensor,
            alpha: float,
            beta: float = 1.,
            gamma: float = 1.,
            temperature: float = .05,
    ):
        super().__init__()
        if not (alpha >= 0 and beta > 0 and gamma >= 0 and temperature > 0):
            raise ValueError(
                f'PaCo takes alpha and gamma of at least 0, and beta and temperature above 0; got alpha={alpha}, '
                f'beta={beta}, gamma={gamma}, temperature={temperature}.')
        self.alpha = alpha
        self.beta = beta
        self.log_gamma = math.log(gamma) if gamma else -math.inf
        self.temperature = temperature
        counts = checked_counts(class_counts)
        self.register_buffer('log_prior', (counts / counts.sum() + 1e-9).log().float(), persistent=False)

    def forward(
            self,
            logits: Tensor,
            queries: Tensor,
            target: Tensor,
            contrast: Tensor,
            contrast_target: Tensor,
    ) -> Tensor:
        """Mean loss of a batch.

        Args:
            logits: Logits of the classes, without the prior, `[B, C]`.
            queries: Projections of the same images, of length 1, `[B, D]`.
            target: Class indices `[B]`.
            contrast: Keys and queue, of length 1, `[M, D]`. The queries are contrasted with these and with each other.
            contrast_target: Class indices of `contrast`, `[M]`; `EMPTY` for entries that do not count.
        """
        if target.ndim != 1:
            raise ValueError(
                f'PaCo needs class indices [B], got targets {list(target.shape)}: set --mixup 0 --cutmix 0.')
        check_classes(logits, len(self.log_prior))
        # autocast would round the products to half precision, and 1 / T would magnify the error
        with torch.autocast(logits.device.type, enabled=False):
            logits, queries, contrast = (full_precision(x) for x in (logits, queries, contrast))
            classes = logits + self.log_prior
            similarity = queries @ torch.cat([queries, contrast]).T / self.temperature
            labels = torch.cat([target, contrast_target])
            itself = torch.eye(len(queries), len(labels), dtype=torch.bool, device=labels.device)
            counted = (labels != EMPTY) & ~itself
            weight = self.alpha * (counted & (labels == target[:, None]))
            positive = self.beta * classes.gather(1, target[:, None])[:, 0] + (weight * similarity).sum(dim=1)
            rest = (similarity + self.log_gamma).masked_fill(~counted, -math.inf)
            denominator = torch.cat([classes, rest], dim=1).logsumexp(dim=1)
            return (denominator - positive / (self.beta + weight.sum(dim=1))).mean()
