"""A student and a teacher that return their feature maps, for losses at each place of an image.

What is added to the student is needed for training only. Checkpoints hold it as state of the task, not of the student.
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
from .common import AuxiliaryNet


@dataclass(frozen=True)
class Guidance:
    """Settings of what a student learns at each place of a teacher's feature maps.

    Attributes:
        weight: Weight of locality guidance, beta. The paper has 2.5; 0 is off. The loss grows with the teacher's maps,
            whose mean square is near 10 for our teachers with a cosine classifier.
        blocks: Blocks of the student that are guided, from 0. None: one for each stage, spread evenly from the first to
            the last.
        stages: Features of the teacher that guide them, by timm's numbers. None: all but the stem.
        end_epoch: First epoch, from 0, without guidance. None: guidance never ends.
        dense: Weight of dense distillation. The paper has 1; 0 is off.
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
        """Weight of the place in the labels of dense distillation in a 0-based epoch; the image has the rest."""
        return max(0., 1. - epoch / self.epochs)


class GuidingTeacher(nn.Module):
    """A teacher that returns its logits, feature maps and logits at each place, all from one pass.

    Args:
        network: Classifier of timm with `forward_intermediates`. It is put into eval mode.
        stages: Features by timm's numbers. None: all but the stem; empty: no features.
        dense: Whether to return the logits at each place.

    Raises:
        ValueError: If the network has no feature maps or no such stage, or if `dense` is set and its head is not
            average pooling followed by a classifier.

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
                f'The teacher {kind} returns no feature maps (it lacks forward_intermediates or forward_head, which '
                'models of timm have): use a CNN such as resnet32_sam, or give --guidance 0 --dense-distill 0.')
        self.network = cast(Any, network.eval())
        self.dense = dense
        self.stages = all_stages(network) if stages is None else list(stages)
        # try one image of the network's own size, which changes nothing in eval mode
        image = next(network.parameters()).new_ones(1, *self.network.pretrained_cfg['input_size'])
        try:
            with torch.no_grad():
                features, maps = self._features(image)
        except (AssertionError, IndexError, NotImplementedError) as error:
            raise ValueError(
                f'The teacher {kind} has no features {self.stages}: --guidance-stages takes numbers from 0 to '
                f'{len(self.network.feature_info) - 1}.') from error
        if any(x.ndim != 4 for x in maps):
            raise ValueError(
                f'The features of the teacher {kind} have the shapes {[tuple(x.shape) for x in maps]}, but guidance '
                'needs maps [B, C, H, W]: use a CNN such as resnet32_sam, or give --guidance 0.')
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
        """Logits `[B, K]` and maps `[B, C, H, W]` of images, and logits `[B, K, H, W]` at each place, or None."""
        features, maps = self._features(x)
        logits = self.network.forward_head(features)
        local = self.network.get_classifier()(features.movedim(1, -1)).movedim(-1, 1) if self.dense else None
        return logits, maps, local


@torch.no_grad()
def _classifies_the_mean(network: Any, features: Tensor) -> bool:
    """Whether the head of a network classifies the mean of its features over all places."""
    if features.ndim != 4 or not isinstance(network.get_classifier(), nn.Linear | CosineLinear):
        return False
    pooled = network.forward_head(features, pre_logits=True)
    return pooled.shape == features.shape[:2] and torch.allclose(
        pooled, features.mean(dim=(2, 3)), rtol=1e-2, atol=1e-3)


def all_stages(network: Any) -> list[int]:
    """Numbers of a network's features in `forward_intermediates`, without the stem if it has one."""
    info = network.feature_info
    names = [part['module'] for part in getattr(info, 'info', info)]
    first = network.get_submodule(names[0])
    stem = names[0].startswith('stem') or not list(first.children())
    return list(range(int(stem and len(names) > 1), len(names)))


class GuidedStudent(AuxiliaryNet):
    """A distilled ViT with 1 x 1 convolutions that project its maps to a teacher's channels; the ViT in eval mode.

    Args:
        model: timm's distilled ViT, which is trained in place.
        channels: Channels of each map that guides it.
        blocks: Block for each map, from 0. None: spread evenly from the first to the last.
        dense: Whether to apply the DIST head to every patch token.

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

    auxiliary = 'projections'

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
                f'The blocks {self.blocks} do not fit {maps} stage(s) of the teacher: --guidance-blocks takes one '
                f'block from 0 to {depth - 1} for each stage, and --guidance-stages chooses the stages.')
        self.model = model
        self.dense = dense
        self.projections = nn.ModuleList(nn.Linear(model.embed_dim, width) for width in channels)
        self.projections.to(next(model.parameters()))

    def forward(self, x: Tensor, guided: bool = True) -> Tensor | tuple[Tensor, Tensor, list[Tensor], Tensor | None]:
        """CLS and DIST logits `[B, K]`, maps `[B, C, h, w]` and DIST's logits at each place `[B, K, h, w]` or None.

        Without `guided` there are no maps, and the convolutions get gradients of zero, because DistributedDataParallel
        would wait for parameters that get no gradient.
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
    """Choose `maps` of `depth` blocks, spread evenly from the first to the last."""
    return [int(number * (depth - 1) / max(1, maps - 1) + .5) for number in range(maps)]


def check_guidable(model: nn.Module) -> None:
    """Refuse a student whose patch tokens do not form a map of the image.

    Raises:
        ValueError: If they do not; the error gives the reason.
    """
    model = unwrap_model(model)
    if not isinstance(model, VisionTransformerDistilled):
        raise ValueError(
            f'--guidance and --dense-distill need the patch tokens of a distilled ViT, not {type(model).__name__}: use '
            'a deit_lt model.')
    if isinstance(model.patch_drop, PatchDropout):
        raise ValueError(
            '--guidance and --dense-distill compare every place, but patch_drop_rate drops patches: leave out '
            'patch_drop_rate, or give --guidance 0 --dense-distill 0.')


def _as_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    return tokens.unflatten(1, grid).movedim(-1, 1)
