"""Residual networks for images of 32 px, the teachers of the CIFAR benchmarks.

Paper: Deep Residual Learning for Image Recognition, section 4.2, https://arxiv.org/abs/1512.03385
"""
from typing import TYPE_CHECKING, Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import create_classifier, get_device_dtype
from timm.models import checkpoint_seq, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices

from ..benchmarks import CATALOGUE, pretrained_cfgs
from ._pretrained import create_pretrained
from .cosine import CosineLinear

__all__ = ['ResNetCifar']

_WIDTHS = (16, 32, 64)
# timm reads no config.json for a registered name, so the arguments that LDAM's teachers need are given here, by tag
_TAG_ARGS = {entry.tag: dict(cosine=True) for entry in CATALOGUE.values() if entry.kind == 'sam'}


class PadShortcut(nn.Module):
    """Shortcut without parameters: takes every second pixel and fills new channels with zeros (option A)."""

    def __init__(self, new_channels: int) -> None:
        super().__init__()
        # The paper does not say where the zeros go. The weights of the published teachers need them on both sides.
        self.before = new_channels // 2
        self.after = new_channels - self.before

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class CifarBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut without parameters."""

    def __init__(
            self,
            in_channels: int,
            channels: int,
            stride: int = 1,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False, **dd)
        self.bn1 = nn.BatchNorm2d(channels, **dd)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False, **dd)
        self.bn2 = nn.BatchNorm2d(channels, **dd)
        self.shortcut = nn.Identity() if stride == 1 else PadShortcut(channels - in_channels)
        self.act2 = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = self.act1(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        return self.act2(residual + self.shortcut(x))


class ResNetCifar(nn.Module):
    """Residual network of 6n + 2 layers in three stages of 16, 32 and 64 channels.

    Args:
        num_blocks: Blocks per stage, n.
        num_classes: Number of classes. With 0 the model returns the pooled features.
        in_chans: Channels of the input images.
        global_pool: timm's pooling type ('avg', 'max', 'avgmax', 'catavgmax', '' for none).
        cosine: Whether the classifier is a `CosineLinear` instead of an `nn.Linear`.
        drop_rate: Dropout rate before the classifier.

    Example:
        >>> timm.create_model('resnet32_cifar', num_classes=10, cosine=True)(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    if TYPE_CHECKING:  # TorchScript would take them for its own
        layer1: nn.Sequential
        layer2: nn.Sequential
        layer3: nn.Sequential
        feature_info: list[dict[str, Any]]

    def __init__(
            self,
            num_blocks: int,
            num_classes: int = 100,
            in_chans: int = 3,
            global_pool: str = 'avg',
            cosine: bool = False,
            drop_rate: float = 0.,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.cosine = cosine
        self.drop_rate = drop_rate
        self.grad_checkpointing = False

        width = _WIDTHS[0]
        self.conv1 = nn.Conv2d(in_chans, width, 3, padding=1, bias=False, **dd)
        self.bn1 = nn.BatchNorm2d(width, **dd)
        self.act1 = nn.ReLU(inplace=True)
        self.feature_info = [dict(num_chs=width, reduction=1, module='act1')]
        for index, channels in enumerate(_WIDTHS):
            blocks = [CifarBlock(width, channels, stride=1 if index == 0 else 2, **dd)]
            blocks += [CifarBlock(channels, channels, **dd) for _ in range(num_blocks - 1)]
            self.add_module(f'layer{index + 1}', nn.Sequential(*blocks))
            self.feature_info.append(dict(num_chs=channels, reduction=2 ** index, module=f'layer{index + 1}'))
            width = channels

        self.num_features = width
        self._set_classifier(global_pool, **dd)
        self.init_weights()

    def _set_classifier(self, global_pool: str, **dd: Any) -> None:
        self.global_pool, self.fc = create_classifier(self.num_features, self.num_classes, pool_type=global_pool, **dd)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        if self.cosine and self.num_classes > 0:
            self.fc = CosineLinear(self.head_hidden_size, self.num_classes, **dd)

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Draw convolutions by the rule of He et al., and reset everything else to its default."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity='relu')
            elif isinstance(module, nn.BatchNorm2d | nn.Linear | CosineLinear):
                module.reset_parameters()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Patterns by which timm assigns parameters to layers."""
        return dict(stem=r'^(?:conv1|bn1)\.', blocks=r'^layer(\d+)' if coarse else r'^layer(\d+)\.(\d+)')

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Save the memory of activations by a second forward pass of each block."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The linear or cosine classifier, or an identity if the model has none."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give the model a new classifier of the same kind; None keeps the pooling."""
        self.num_classes = num_classes
        if global_pool is None:
            global_pool = self.global_pool.pool_type
        self._set_classifier(global_pool, **get_device_dtype(self))
        self.global_pool.train(self.training)
        self.fc.train(self.training)

    def forward_intermediates(
            self,
            x: torch.Tensor,
            indices: int | list[int] | None = None,
            norm: bool = False,
            stop_early: bool = False,
            output_fmt: str = 'NCHW',
            intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Final features, and the features of the stem (0) and the stages (1 to 3), as in every timm model.

        Args:
            x: Images `[B, in_chans, H, W]`.
            indices: Features to return: the last n for an int, all for None, else those in the list.
            norm: It has no effect; timm's interface has this argument.
            stop_early: Whether to skip the stages after the last feature in `indices`.
            output_fmt: Only 'NCHW'.
            intermediates_only: Whether to return only the list.

        Raises:
            ValueError: If `output_fmt` is another format.
        """
        if output_fmt != 'NCHW':
            raise ValueError(f"output_fmt is {output_fmt!r}, but ResNetCifar only returns feature maps as 'NCHW'.")
        take_indices, last = feature_take_indices(len(self.feature_info), indices)
        intermediates = []
        x = self.act1(self.bn1(self.conv1(x)))
        if 0 in take_indices:
            intermediates.append(x)
        stages = [self.layer1, self.layer2, self.layer3]
        for index, stage in enumerate(stages[:last] if stop_early else stages, start=1):
            x = checkpoint_seq(stage, x) if self.grad_checkpointing and not torch.jit.is_scripting() else stage(x)
            if index in take_indices:
                intermediates.append(x)
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
            self,
            indices: int | list[int] = 1,
            prune_norm: bool = False,
            prune_head: bool = True,
    ) -> list[int]:
        """Remove the stages after the last feature in `indices`.

        Args:
            indices: As in `forward_intermediates`.
            prune_norm: It has no effect; timm's interface has this argument.
            prune_head: Whether to remove the classifier too. If a stage is removed, the classifier always is, because
                it only fits the last stage.

        Returns:
            The indices of the features as numbers from 0.
        """
        take_indices, last = feature_take_indices(len(self.feature_info), indices)
        for index in range(last + 1, len(self.feature_info)):
            setattr(self, f'layer{index}', nn.Sequential())
        if last < len(self.feature_info) - 1:
            self.num_features = self.head_hidden_size = self.feature_info[last]['num_chs']
            prune_head = True
        if prune_head:
            self.reset_classifier(0, '')
        return take_indices

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Feature map of the last stage, `[B, 64, H / 4, W / 4]`."""
        x = self.act1(self.bn1(self.conv1(x)))
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq([self.layer1, self.layer2, self.layer3], x, flatten=True)
        x = self.layer1(x)
        x = self.layer2(x)
        return self.layer3(x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Pooled features `[B, head_hidden_size]` if `pre_logits`, else logits `[B, num_classes]`."""
        x = self.global_pool(x)
        if self.drop_rate > 0.:
            x = F.dropout(x, p=self.drop_rate, training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))


def _create_resnet_cifar(variant: str, pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    return create_pretrained(
        ResNetCifar,
        variant,
        pretrained,
        tag_args=_TAG_ARGS,
        feature_cfg=dict(out_indices=(0, 1, 2, 3)),
        **kwargs,
    )


def _cfg(**kwargs: Any) -> dict[str, Any]:
    *_, height, width = kwargs['input_size']
    return {
        'pool_size': (height // 4, width // 4),  # two of the three stages halve the image
        'first_conv': 'conv1', 'classifier': 'fc',
        'license': 'apache-2.0', 'paper_ids': 'arXiv:1512.03385',
        **kwargs,
    }


default_cfgs = generate_default_cfgs({
    name: _cfg(**cfg)
    for depth in (20, 32, 44, 56) for name, cfg in pretrained_cfgs(f'resnet{depth}_cifar').items()
})


@register_model
def resnet20_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """ResNet-20 for CIFAR: 3 blocks per stage, 0.27M parameters."""
    return _create_resnet_cifar('resnet20_cifar', pretrained=pretrained, **dict(dict(num_blocks=3), **kwargs))


@register_model
def resnet32_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """ResNet-32 for CIFAR, the field's usual long-tailed baseline: 5 blocks per stage, 0.46M parameters."""
    return _create_resnet_cifar('resnet32_cifar', pretrained=pretrained, **dict(dict(num_blocks=5), **kwargs))


@register_model
def resnet44_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """ResNet-44 for CIFAR: 7 blocks per stage, 0.66M parameters."""
    return _create_resnet_cifar('resnet44_cifar', pretrained=pretrained, **dict(dict(num_blocks=7), **kwargs))


@register_model
def resnet56_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """ResNet-56 for CIFAR: 9 blocks per stage, 0.85M parameters."""
    return _create_resnet_cifar('resnet56_cifar', pretrained=pretrained, **dict(dict(num_blocks=9), **kwargs))
