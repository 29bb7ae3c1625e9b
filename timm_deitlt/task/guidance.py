"""A student and a teacher that show their feature maps, for what is learned place by place.

What is added to the student is for training alone: checkpoints hold it as the task's own state, not as the student's.
"""
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from timm.layers import PatchDropout
from timm.models.deit import VisionTransformerDistilled
from timm.utils import unwrap_model
from torch import Tensor, nn

from ..models.cosine import CosineLinear


@dataclass(frozen=True)
class Guidance:
    """What a student learns from the places of a teacher's feature maps.

    Attributes:
        weight: Weight of locality guidance, beta; the paper has 2.5, 0 is off. The loss has the scale of the teacher's
            maps, whose mean square is near 10 for our teachers with a cosine classifier.
        blocks: The student's blocks that are guided, from 0; None: one a stage, spread evenly from the first to the
            last.
        stages: The features of the teacher that guide them, by timm's numbers; None: all its stages.
        end_epoch: First epoch, from 0, without guidance; None: it never ends.
        dense: Weight of dense distillation; the paper has 1, 0 is off.
        epochs: Epochs over which the labels of dense distillation turn from those of places into those of images.
    """
    weight: float = 0.
    blocks: Sequence[int] | None = None
    stages: Sequence[int] | None = None
    end_epoch: int | None = None
    dense: float = 0.
    epochs: int = 1

    def guides(self, epoch: int) -> bool:
        """Whether locality guidance is on in a 0-based epoch."""
        return self.weight > 0 and (self.end_epoch is None or epoch < self.end_epoch)

    def share_of_places(self, epoch: int) -> float:
        """Weight of a place against the image in the labels of dense distillation, in a 0-based epoch."""
        return 1. - epoch / self.epochs


class GuidingTeacher(nn.Module):
    """A teacher that gives its logits, feature maps and logits at each place, all from one pass.

    Args:
        network: Classifier of timm with `forward_intermediates`; put into eval mode.
        stages: Features by timm's numbers; None: all but the stem. Empty for none.
        dense: Whether the logits at each place are wanted.

    Raises:
        ValueError: If it has no feature maps, no such stage, or another head than average pooling and a classifier
            where the logits at each place are wanted.

    Example:
        >>> teacher = GuidingTeacher(timm.create_model('resnet32_cifar', num_classes=10).eval(), dense=True)
        >>> logits, maps, local = teacher(torch.randn(2, 3, 32, 32))
        >>> [tuple(x.shape) for x in (logits, *maps, local)]
        [(2, 10), (2, 16, 32, 32), (2, 32, 16, 16), (2, 64, 8, 8), (2, 10, 8, 8)]
    """

    def __init__(self, network: nn.Module, stages: Sequence[int] | None = None, dense: bool = False):
        super().__init__()
        kind = type(network).__name__
        if not hasattr(network, 'forward_intermediates') or not hasattr(network, 'forward_head'):
            raise ValueError(
                f'The teacher {kind} shows no feature maps (it has no forward_intermediates and forward_head as models '
                'of timm have): use a CNN such as resnet32_sam, or leave out --guidance and --dense-distill.')
        self.network = cast(Any, network.eval())
        self.dense = dense
        self.stages = all_stages(network) if stages is None else list(stages)
        # one image of the network's own size; in eval mode it leaves no trace
        image = next(network.parameters()).new_ones(1, *self.network.pretrained_cfg['input_size'])
        try:
            with torch.no_grad():
                features, maps = self._features(image)
        except (AssertionError, IndexError, NotImplementedError) as error:
            raise ValueError(
                f'The teacher {kind} does not show the features {self.stages}: --guidance-stages takes numbers from 0 '
                f'to {len(self.network.feature_info) - 1}.') from error
        if any(x.ndim != 4 for x in maps):
            raise ValueError(
                f'The features of the teacher {kind} are no maps, but of shape {[tuple(x.shape) for x in maps]}: use a '
                'CNN such as resnet32_sam.')
        self.channels = [x.shape[1] for x in maps]
        if dense and not _classifies_the_mean(network, features):
            raise ValueError(
                f'--dense-distill applies the classifier of the teacher at each place, but {kind} does more than '
                'average pooling before it: use a teacher such as resnet32_sam or resnet50_sam.')

    def _features(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        if not self.stages:
            return self.network.forward_features(x), []
        features, maps = self.network.forward_intermediates(x, indices=sorted(set(self.stages)))
        found = dict(zip(sorted(set(self.stages)), maps, strict=True))
        return features, [found[stage] for stage in self.stages]

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor], Tensor | None]:
        """Logits `[B, K]` and maps `[B, C, H, W]` of images, and logits `[B, K, H, W]` of each place, or None."""
        features, maps = self._features(x)
        logits = self.network.forward_head(features)
        local = self.network.get_classifier()(features.movedim(1, -1)).movedim(-1, 1) if self.dense else None
        return logits, maps, local


@torch.no_grad()
def _classifies_the_mean(network: Any, features: Tensor) -> bool:
    """Whether the head of a network is a classifier of the mean of its features over all places."""
    if features.ndim != 4 or not isinstance(network.get_classifier(), nn.Linear | CosineLinear):
        return False
    pooled = network.forward_head(features, pre_logits=True)
    return pooled.shape == features.shape[:2] and torch.allclose(
        pooled, features.mean(dim=(2, 3)), rtol=1e-2, atol=1e-3)


def all_stages(network: Any) -> list[int]:
    """Numbers of a network's features in `forward_intermediates` without that of the stem, where it has one."""
    info = network.feature_info
    names = [part['module'] for part in getattr(info, 'info', info)]
    first = network.get_submodule(names[0])
    stem = names[0].startswith('stem') or not list(first.children())
    return list(range(int(stem and len(names) > 1), len(names)))


class GuidedStudent(nn.Module):
    """A distilled ViT and the 1 x 1 convolutions that bring its maps to a teacher's channels; in eval mode the ViT.

    Args:
        model: timm's distilled ViT, changed by training as if it were alone.
        channels: Of the maps that guide it, one a map.
        blocks: Blocks that are guided, from 0, one a map; None: spread evenly from the first to the last.
        dense: Whether its DIST head is wanted on every patch token.

    Raises:
        ValueError: If the model has no DIST token, drops patches, or lacks a block.

    Example:
        >>> vit = timm.create_model('deit_lt_tiny', num_classes=10, img_size=64)
        >>> vit.set_distilled_training(True)
        >>> student = GuidedStudent(vit, channels=[16, 32, 64])
        >>> student.blocks
        [0, 6, 11]
        >>> cls_logits, dist_logits, maps, patches = student.train()(torch.randn(2, 3, 64, 64))
        >>> [tuple(x.shape) for x in maps]
        [(2, 16, 4, 4), (2, 32, 4, 4), (2, 64, 4, 4)]
    """

    def __init__(
            self,
            model: VisionTransformerDistilled,
            channels: Sequence[int] = (),
            blocks: Sequence[int] | None = None,
            dense: bool = False,
    ):
        super().__init__()
        check_guidable(model)
        depth, maps = len(model.blocks), len(channels)
        self.blocks = spread_blocks(depth, maps) if blocks is None else list(blocks)
        if len(self.blocks) != maps or any(not 0 <= block < depth for block in self.blocks):
            raise ValueError(
                f'The blocks {self.blocks} are to be guided by {maps} stage(s): --guidance-blocks takes one a stage, '
                f'from 0 to {depth - 1}, and --guidance-stages chooses the stages.')
        self.model = model
        self.dense = dense
        self.projections = nn.ModuleList(nn.Linear(model.embed_dim, width) for width in channels)
        self.projections.to(next(model.parameters()))

    def no_weight_decay(self) -> set[str]:
        """Parameters that timm's optimizer factory spares weight decay: the model's."""
        return {f'model.{name}' for name in self.model.no_weight_decay()}

    def forward(self, x: Tensor, guided: bool = True) -> Tensor | tuple[Tensor, Tensor, list[Tensor], Tensor | None]:
        """CLS and DIST logits `[B, K]`, maps `[B, C, h, w]` and DIST's logits at each place `[B, K, h, w]` or None.

        Without `guided` there are no maps, and the convolutions get gradients of zero: parameters without any would
        keep DistributedDataParallel waiting.
        """
        if not self.training:
            return self.model(x)
        model: Any = self.model
        grid = model.patch_embed.dynamic_feat_size(x.shape[-2:])
        maps: list[Tensor] = []
        if guided and self.blocks:
            taken = sorted(set(self.blocks))
            features, tokens = model.forward_intermediates(x, indices=taken, output_fmt='NLC')
            found = dict(zip(taken, tokens, strict=True))
            maps = [
                _as_map(projection(found[block]), grid)
                for projection, block in zip(self.projections, self.blocks, strict=True)]
        else:
            features = model.forward_features(x)
        cls_logits, dist_logits = model.forward_head(features)
        if self.blocks and not guided:
            cls_logits = cls_logits + 0. * sum(parameter.sum() for parameter in self.projections.parameters())
        patches = None
        if self.dense:
            patches = _as_map(model.head_dist(model.head_drop(features[:, model.num_prefix_tokens:])), grid)
        return cls_logits, dist_logits, maps, patches


def spread_blocks(depth: int, maps: int) -> list[int]:
    """So many of `depth` blocks, evenly from the first to the last."""
    return [int(number * (depth - 1) / max(1, maps - 1) + .5) for number in range(maps)]


def check_guidable(model: nn.Module) -> None:
    """Refuse a student whose patch tokens are no map of the image.

    Raises:
        ValueError: Naming the reason.
    """
    model = unwrap_model(model)
    if not isinstance(model, VisionTransformerDistilled):
        raise ValueError(
            f'--guidance and --dense-distill need the patch tokens of a distilled ViT, not {type(model).__name__}: use '
            'a deit_lt model.')
    if isinstance(model.patch_drop, PatchDropout):
        raise ValueError(
            '--guidance and --dense-distill compare every place, but patch_drop_rate leaves patches out: leave one of '
            'them out.')


def _as_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    return tokens.unflatten(1, grid).movedim(-1, 1)
