"""The training loop: updates, evaluation, epochs. It is meant to be read in one sitting."""
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.models.deit import VisionTransformerDistilled
from timm.task.evaluator import evaluation_sample_limit
from timm.utils import dispatch_clip_grad, distribute_bn, unwrap_model
from torch import Tensor, nn
from torchvision.utils import save_image

from ..data.augment import BatchAugment
from ..data.loader import MicroBatch, TrainLoader
from ..data.ramp import AugmentationRamp
from ..data.seeds import seed_everything
from ..evaluation import ShotEvaluator
from ..evaluation.fusion import fuse
from ..optim import SAM
from ..task.common import ShotEvaluation
from .meter import Meter
from .progress import Progress, doing


@dataclass
class Trainer:
    """Everything a run trains with, built once.

    BatchNorm normalises each micro-batch by itself, so the number of ranks and accumulation steps changes the weights
    only by rounding. At the start of each pass over an update, all ranks take over the running statistics of rank 0.
    `end_epoch` averages them over the ranks ('reduce') or copies those of rank 0 ('broadcast').

    Attributes:
        task: Task with `set_epoch`, `forward(input, target, ..., second_pass=False)` and `end_update(plans)`.
        optimizer: Any optimizer; `SAM` is stepped with a closure.
        loader: Updates of this rank.
        augment: Batch augmentation on the device.
        eval_loader: Evaluation images, or None for none.
        scheduler: timm's scheduler, or None.
        rho: SAM's radius by epoch and update of the run, both counted from 0, or None if it does not change. With
            radius 0 the base optimizer makes the update, in one pass.
        ramp: Lets the augmentation grow stronger over the first epochs, or None.
        epochs: Epochs of the schedule.
        seed: Seed of the run.
        autocast: Makes the context of forward passes.
        scaler: Gradient scaler of fp16, or None.
        clip_grad: Largest gradient norm (or value, see `clip_mode`), or None.
        clip_mode: 'norm', 'value' or 'agc'.
        channels_last: Memory format of the images.
        drw_start_epoch: 0-based epoch at which stage two begins: the EMA restarts from the weights, and mixing ends.
        keep_mixup: Whether mixing continues in stage two.
        mixup_off_epoch: timm's own switch: mixing ends at this epoch; 0 for never.
        world_size: Number of ranks.
        dist_bn: What to do with BatchNorm statistics across ranks after an epoch, 'reduce', 'broadcast' or ''.
        log_interval: Updates between two log lines.
        image_folder: Where to save a batch as the student sees it at every log line, or None.
        test_counts: Evaluation images of each class, known after the first evaluation.
        confusion: Evaluation images by their class and the class that the student gave them in the last evaluation,
            see `ShotEvaluator`; never of the EMA.
        on_device: Makes a `loader`, `augment` and `ramp` for augmentation on the device; None if --auto-speed may not
            choose it.
        graph: Runs `compute` as a CUDA graph, or None.
        fusions: The fusion of CLS and DIST that is the answer, in `evaluation.fusion`; none if that is their mean.
        logit_scale: Factor from the outputs to the logits of the evaluation's loss, see `ShotEvaluator`.
    """
    task: ShotEvaluation
    optimizer: torch.optim.Optimizer
    loader: TrainLoader
    augment: BatchAugment
    eval_loader: Any = None
    scheduler: Any = None
    rho: Callable[[int, int], float] | None = None
    ramp: AugmentationRamp | None = None
    epochs: int = 1
    seed: int = 0
    autocast: Callable = nullcontext
    scaler: torch.amp.GradScaler | None = None
    clip_grad: float | None = None
    clip_mode: str = 'norm'
    channels_last: bool = False
    drw_start_epoch: int = 0
    keep_mixup: bool = False
    mixup_off_epoch: int = 0
    world_size: int = 1
    dist_bn: str = 'reduce'
    log_interval: int = 50
    image_folder: Path | None = None
    test_counts: Sequence[int] = ()
    confusion: Sequence[Sequence[int]] | None = None
    on_device: Callable[[], dict[str, Any]] | None = None
    graph: Callable[..., tuple[dict[str, Tensor], Tensor]] | None = None
    fusions: tuple[str, ...] = ()
    logit_scale: float = 1.

    def mixing(self, epoch: int) -> bool:
        """Whether Mixup and CutMix are on in an epoch."""
        last_stage = epoch >= self.drw_start_epoch and not self.keep_mixup
        return not last_stage and not (self.mixup_off_epoch and epoch >= self.mixup_off_epoch)

    def train_one_epoch(self, epoch: int, progress: Progress) -> dict[str, float]:
        """Train one epoch.

        Returns:
            Means over the images: 'loss' and what else the task measures; 'lr'; 'train_seconds', from asking for the
            first batch to the end of the last update, and 'train_images_per_second' over all ranks; with
            `--train-img-sizes` 'image_size', the mean side in pixels.

        Raises:
            NonFiniteLossError: If the loss is not finite; the message names the update.
        """
        self.task.train()
        self.task.set_epoch(epoch)
        self.augment.mixup_enabled = self.mixing(epoch)
        if self.ramp is not None:
            self.ramp.set_epoch(epoch)
        if self.task.has_ema() and epoch == self.drw_start_epoch:
            ema: Any = self.task.get_trainable_module(ema=True)
            ema.set(unwrap_model(self.task.get_trainable_module()))
        meter = Meter(self.task.device, distributed=self.world_size > 1)
        updates = self.loader.updates_per_epoch
        num_updates = epoch * updates
        start = time.perf_counter()
        for index, group in enumerate(self.loader.epoch(epoch)):
            logged = index + 1 == updates or (index + 1) % self.log_interval == 0
            picture = self.image_folder / f'train-batch-{epoch}-{index}.jpg' if self.image_folder and logged else None
            self.update(epoch, num_updates, group, meter, picture)
            num_updates += 1
            self.task.update_ema(step=num_updates)
            if self.scheduler is not None:
                self.scheduler.step_update(num_updates=num_updates)
            if meter.pending_on_host or logged:
                meter.check_finite(epoch, updates)
            progress.update(index, meter, self._lr())
        meter.check_finite(epoch, updates)
        seconds = time.perf_counter() - start
        return {
            **meter.compute(),
            'lr': self._lr(),
            'train_seconds': seconds,
            'train_images_per_second': self.loader.images_per_epoch / seconds,
            **({'image_size': self.loader.sizes.mean(epoch, updates)} if self.loader.sizes else {}),
        }

    def _lr(self) -> float:
        rates = [group['lr'] for group in self.optimizer.param_groups]
        return sum(rates) / len(rates)

    def update(
            self,
            epoch: int,
            number: int,
            group: list[tuple[MicroBatch, Tensor, Tensor]],
            meter: Meter,
            picture: Path | None = None,
    ) -> None:
        """Make one update from the micro-batches of `group`; `number` counts the updates of the run from 0."""
        optimizer = self.optimizer
        sam = optimizer if isinstance(optimizer, SAM) else None
        if self.rho is not None:
            for parameters in self.optimizer.param_groups:
                parameters['rho'] = self.rho(epoch, number)

        def closure() -> Tensor:
            second_pass = sam is not None and sam.perturbed
            optimizer.zero_grad()
            total: Any = None
            for batch, images, target in group:
                # the ranks exchange gradients only in the last backward of a pass
                with nullcontext() if batch.last else self.task.no_sync():
                    result, loss = self.forward_backward(epoch, batch, images, target, second_pass, picture)
                if not second_pass:
                    meter.add(result, len(result['output']) if batch.weight else 0)
                total = loss if total is None else total + loss
            if self.clip_grad is not None and (second_pass or sam is None or sam.single_pass):
                self._clip(self.clip_grad)
            return total

        if sam is not None:
            loss = sam.step(closure)
        else:
            loss = closure()
            if self.scaler is None:
                optimizer.step()
            else:
                self.scaler.step(optimizer)
                self.scaler.update()
        self.task.end_update([batch for batch, *_ in group])
        meter.updates.append(loss)

    def forward_backward(
            self,
            epoch: int,
            batch: MicroBatch,
            images: Tensor,
            target: Tensor,
            second_pass: bool = False,
            picture: Path | None = None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Augment a micro-batch and add its gradients.

        Returns:
            What the task returned, and the micro-batch's share of the update's loss.
        """
        # seeded for each micro-batch: erasing, mixing and drop path repeat in SAM's second pass and in a resumed run
        seed_everything(self.seed, epoch, batch.number)
        images, weak, target = self.augment(images, target, self.loader.num_views)
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        if picture is not None:
            # of more channels than a picture has, the first ones
            save_image(images[:, :3 if images.shape[1] > 2 else 1], picture, padding=0, normalize=True)
        # DDP averages gradients over the ranks, but an update is the sum of the shares of its micro-batches
        compute = self.graph or self.compute
        return compute(batch.weight * self.world_size, second_pass, images, target, weak)

    def compute(
            self,
            share: float,
            second_pass: bool,
            images: Tensor,
            target: Tensor,
            weak: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Forward and backward of augmented images; returns what `forward_backward` does."""
        views = {} if weak is None else {'weak': weak}
        with self.autocast():
            result = self.task(images, target, second_pass=second_pass, **views)
        loss = result['loss'] * share
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        # without the graph of autograd, whose nodes would lie on the stream of this pass for as long as they live
        return {name: value.detach() for name, value in result.items()}, loss.detach()

    def _clip(self, largest: float) -> None:
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        parameters = self.task.get_clip_parameters(exclude_head='agc' in self.clip_mode)
        dispatch_clip_grad(parameters, value=largest, mode=self.clip_mode)

    def evaluate(self, ema: bool = False) -> dict[str, Any]:
        """Evaluate every expert of the student (or of its EMA) on the evaluation images; exact across ranks."""
        self.optimizer.zero_grad()  # frees the memory of gradients that are not needed any more
        model = unwrap_model(self.task.get_eval_model(ema=ema))
        evaluator = self.task.create_evaluator(
            self.fusions, max_samples=evaluation_sample_limit(self.eval_loader), logit_scale=self.logit_scale)
        metrics = evaluate(
            model, self.eval_loader, evaluator, self.autocast, self.channels_last, self.world_size > 1, self.fusions)
        self.test_counts = evaluator.test_counts
        if not ema:
            self.confusion = evaluator.confusion
        return metrics

    def end_epoch(self, epoch: int) -> None:
        """After the last update of an epoch: share the BatchNorm statistics over the ranks, and step the schedule."""
        if self.world_size > 1 and self.dist_bn in ('broadcast', 'reduce'):
            for module in map(self.task.get_trainable_module, (False, True)):
                # NCCL cannot reduce an EMA that is kept on the CPU, and that EMA is not evaluated either
                if module is not None and next(module.parameters()).device.type == self.task.device.type:
                    distribute_bn(module, self.world_size, self.dist_bn == 'reduce')
        if self.scheduler is not None:
            self.scheduler.step(epoch + 1)


def expert_logits(model: nn.Module, images: Tensor, experts: tuple[str, ...]) -> dict[str, Tensor]:
    """Logits `[B, num_classes]` of each expert from one forward pass; 'mean' is the mean of the others'."""
    if isinstance(model, VisionTransformerDistilled):
        features = model.forward_features(images)
        logits = {'cls': model.head(model.head_drop(features[:, 0]))}
        if 'dist' in experts:
            logits['dist'] = model.head_dist(model.head_drop(features[:, 1]))
    else:
        logits = {'cls': model(images)}
    logits['mean'] = torch.stack(list(logits.values())).mean(dim=0) if len(logits) > 1 else logits['cls']
    return logits


@torch.inference_mode()
def evaluate(
        model: nn.Module,
        loader: Any,
        evaluator: ShotEvaluator,
        autocast: Callable = nullcontext,
        channels_last: bool = False,
        distributed: bool = False,
        fusions: Sequence[str] = (),
) -> dict[str, Any]:
    """Evaluate a model over a loader: metrics in percent of every expert and fusion, as `ShotEvaluator.compute`."""
    training = model.training
    model.eval()
    batch = 0
    with doing(lambda: f'... evaluating, {batch} batches are done'):
        for batch, (images, target) in enumerate(loader):  # noqa: B007
            if channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            with autocast():
                logits = expert_logits(model, images, evaluator.experts)
            evaluator.update(fuse(logits, fusions, evaluator.shots.class_counts) if fusions else logits, target)
    model.train(training)
    return evaluator.compute(distributed)
