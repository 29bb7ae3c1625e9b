"""PaCo: parametric contrastive learning of a classifier, with two encoders and a queue of keys.

A classifier learns from the labels. At the same time a projection of its features (a query) is contrasted with other
queries of the micro-batch, with keys and with a queue. Keys are projections of a second view of the images by the key
encoder, which follows the weights slowly. The queue holds keys of earlier updates. Only the plain classifier is saved
and evaluated as the model.

Paper: Parametric Contrastive Learning, https://arxiv.org/abs/2107.12028
"""
import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.task import ClassificationTask
from timm.utils import unwrap_model
from torch import Tensor, nn

from ..data.loader import MicroBatch
from ..evaluation import Shots
from ..loss.paco import PaCoLoss
from ..models.weights import load_weights
from .common import AuxiliaryTask, frozen_statistics
from .paco_network import KeyQueue, PaCoNet


class PaCoTask(AuxiliaryTask, ClassificationTask):
    """Training of a classifier by PaCo, on two views of each image.

    Key encoder and queue change only in `end_update`, once after each optimizer step. So all micro-batches of an
    update, on all ranks, are contrasted with the same queue, and SAM's second pass changes nothing. BatchNorm
    normalises keys by their micro-batch. Unlike the released code, we do not shuffle images over ranks, because updates
    would then depend on the number of ranks. The running statistics of the key encoder are never used.

    Args:
        model: Classifier of timm with one head. The 'state_dict' of a checkpoint holds this model only.
        class_counts: Training images per class.
        alpha, beta, gamma, temperature: See `PaCoLoss`.
        queue_size: Number of keys in the queue.
        dim: Width of the projection.
        momentum: Share of its own weights that the key encoder keeps in each update.
        shots: Groups of classes for `create_evaluator`.
        kwargs: `device`, `dtype` and `verbose` as in timm.

    Raises:
        ValueError: If an argument is out of range, or the model is not suitable, see `PaCoNet`.

    Source: PaCo (https://arxiv.org/abs/2107.12028).

    Example:
        >>> task = PaCoTask(timm.create_model('resnet32_cifar', num_classes=3), [500, 50, 5], alpha=.01)
        >>> query, key, target = torch.randn(4, 3, 32, 32), torch.randn(4, 3, 32, 32), torch.tensor([0, 0, 1, 2])
        >>> task.train()(query, target, weak=key)['loss'].backward()
        >>> task.end_update([MicroBatch(number=0, indices=(0, 1, 2, 3), weight=1., last=True)])
        >>> (task.queue.labels >= 0).sum()
        tensor(4)
    """

    experts = ('mean', 'cls')
    auxiliary_words = ("the checkpoint's projection (--paco-dim)",)

    def __init__(
            self,
            model: nn.Module,
            class_counts: Sequence[int] | Tensor,
            alpha: float,
            beta: float = 1.,
            gamma: float = 1.,
            temperature: float = .05,
            queue_size: int = 1024,
            dim: int = 32,
            momentum: float = .999,
            shots: Shots | None = None,
            **kwargs: Any,
    ):
        if not 0. <= momentum < 1.:
            raise ValueError(f'momentum={momentum} of the key encoder must be at least 0 and below 1.')
        net = PaCoNet(model, dim)
        kind = next(net.parameters()).dtype
        if torch.finfo(kind).bits < 32:
            raise ValueError(
                f"In each update PaCo's key encoder moves by a share of {1 - momentum:.3g}, which is lost by rounding "
                f'in {kind}: keep the weights in float32 and use --amp.')
        super().__init__(net, PaCoLoss(class_counts, alpha, beta, gamma, temperature), **kwargs)
        self.momentum = momentum
        self.shots = shots
        self.key_encoder = copy.deepcopy(net).requires_grad_(False)
        self.queue = KeyQueue(queue_size, dim, device=self.device)
        self._forget()

    def _forget(self) -> None:
        # keys and labels of the current update, and how many of them the second pass has used
        self._fresh: list[tuple[Tensor, Tensor]] = []
        self._reused = 0

    def set_epoch(self, epoch: int) -> None:
        """Take the 0-based epoch, and forget an update that was interrupted."""
        self._forget()

    def forward(
            self,
            input: Tensor,
            target: Tensor,
            weak: Tensor | None = None,
            second_pass: bool = False,
    ) -> dict[str, Tensor]:
        """Forward pass of both encoders, and the loss.

        Args:
            input: View for the trained network, `[B, C, H, W]`.
            target: Class indices `[B]`.
            weak: View for the key encoder, `[B, C, H, W]`.
            second_pass: Whether this is SAM's second pass. It must visit the micro-batches in the order of the first
                pass, reuses their keys and changes no state but gradients.

        Returns:
            'loss' and 'output', the logits `[B, num_classes]`.
        """
        if weak is None:
            raise ValueError(
                'PaCo needs two views of each image, but `weak`, the view for the key encoder, is missing: train with '
                'train.py of timm_deitlt, or give a loader two transforms.')
        net = self.trainable_module
        if second_pass:
            with frozen_statistics(net):
                logits, queries = net(input)
            keys = self._reuse_keys()
        else:
            logits, queries = net(input)
            with torch.no_grad():
                # a copy, because CUDA graphs overwrite the output in the next forward pass
                keys = self.key_encoder(weak)[1].clone()
            self._fresh.append((keys, target))
        loss = self.criterion(
            logits, queries, target, torch.cat([keys, self.queue.keys]), torch.cat([target, self.queue.labels]))
        return {'loss': loss, 'output': logits}

    def _reuse_keys(self) -> Tensor:
        if self._reused == len(self._fresh):
            raise ValueError('A second pass of PaCo came before the first pass over its micro-batch: run that first.')
        keys, _ = self._fresh[self._reused]
        self._reused += 1
        return keys

    @torch.no_grad()
    def end_update(self, plans: Sequence[MicroBatch]) -> None:
        """Move the key encoder towards the new weights, and put the keys of the update, of all ranks, into the queue.

        Args:
            plans: This rank's micro-batches, in the order of the first pass. Those of weight 0 add no keys.

        Raises:
            ValueError: If the number of first passes is not that of the micro-batches.
        """
        fresh = self._fresh
        self._forget()
        if len(fresh) != len(plans):
            raise ValueError(
                f'An update of {len(plans)} micro-batch(es) ended after {len(fresh)} first pass(es): run one for each.')
        torch._foreach_lerp_(
            list(self.key_encoder.parameters()), list(unwrap_model(self.trainable_module).parameters()),
            1. - self.momentum)
        batches = [(plan.number, *views) for plan, views in zip(plans, fresh, strict=True) if plan.weight]
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            batches = _gather(plans, fresh)
        if batches:
            _, keys, labels = zip(*sorted(batches, key=lambda batch: batch[0]), strict=True)
            self.queue.push(torch.cat(keys), torch.cat(labels))

    def prepare_distributed(self, device_ids: list | None = None, **ddp_kwargs: Any) -> 'PaCoTask':
        """Wrap the trained network for this rank, as in timm, and copy key encoder and queue from rank 0."""
        super().prepare_distributed(device_ids=device_ids, **ddp_kwargs)
        for tensor in (*self.key_encoder.state_dict().values(), *self.queue.state_dict().values()):
            dist.broadcast(tensor, src=0)
        return self

    def compile(  # type: ignore[override]
            self,
            backend: str = 'inductor',
            mode: str | None = None,
            **compile_kwargs: Any,
    ) -> nn.Module:
        """Compile both encoders and the plain model. Call it before `prepare_distributed`."""
        compiled = super().compile(backend=backend, mode=mode, **compile_kwargs)
        # in place, so that the keys of its state_dict do not change
        self.key_encoder.compile(backend=backend, mode=mode, **compile_kwargs)
        return compiled

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """State in a checkpoint next to the plain model: the projection, the key encoder and the queue."""
        state = super().get_task_state(module, ema)
        if state and not ema:
            state.update(key_encoder=self.key_encoder.state_dict(), queue=self.queue.state_dict())
        return state

    def load_task_state(
            self,
            state: dict[str, Any] | None,
            strict: bool = True,
            module: nn.Module | None = None,
            ema: bool = False,
    ) -> None:
        """Load the state of a checkpoint, after its model was loaded.

        The checkpoint of a plain classifier has none. Then the key encoder starts from the current weights, and the
        queue is empty.

        Raises:
            ValueError: If the sizes of the state differ.
        """
        super().load_task_state(state, strict, module, ema)
        if ema:
            return
        if state:
            load_weights(self.key_encoder, state['key_encoder'], "the checkpoint's key encoder")
            load_weights(self.queue, state['queue'], "the checkpoint's queue (--paco-queue)")
        else:
            self.key_encoder.load_state_dict(unwrap_model(self.trainable_module).state_dict())
            self.queue.load_state_dict(KeyQueue(*self.queue.keys.shape).state_dict())
        self._forget()


def _gather(plans: Sequence[MicroBatch], fresh: list[tuple[Tensor, Tensor]]) -> list[tuple[int, Tensor, Tensor]]:
    """(number, keys, labels) of the micro-batches of all ranks, without those of weight 0."""
    keys, labels = zip(*fresh, strict=True)
    sizes = [[plan.number, len(x) if plan.weight else 0] for plan, x in zip(plans, labels, strict=True)]
    sizes = _all_gather(torch.tensor(sizes, device=labels[0].device)).tolist()
    longest = max(size for _, size in sizes)
    # ranks can only exchange tensors of one shape, so a short micro-batch is padded, and cut afterwards
    all_keys = _all_gather(torch.stack([F.pad(x, (0, 0, 0, longest - len(x))) for x in keys]))
    all_labels = _all_gather(torch.stack([F.pad(x, (0, longest - len(x))) for x in labels]))
    return [
        (number, x[:size], y[:size])
        for (number, size), x, y in zip(sizes, all_keys, all_labels, strict=True) if size]


def _all_gather(tensor: Tensor) -> Tensor:
    # from [S, ...] on each of W ranks to [W * S, ...]
    gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, tensor.contiguous())
    return torch.cat(gathered)
