"""ResNet-50 with a cosine classifier, the network of the LDAM teachers of ImageNet-LT and iNaturalist-2018.

Its parameters have the names of those of timm's resnet50, except that the classifier has no bias.
"""
from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models.resnet import Bottleneck, ResNet

from ..benchmarks import pretrained_cfgs
from ._pretrained import create_pretrained
from .cosine import CosineLinear

__all__ = ['ResNetCosine']


class ResNetCosine(ResNet):
    """timm's ResNet with a `CosineLinear` as classifier, also after `reset_classifier`.

    It takes the arguments of timm's ResNet.

    Example:
        >>> timm.create_model('resnet50_cosine', num_classes=10)(torch.randn(2, 3, 64, 64)).shape
        torch.Size([2, 10])
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._set_cosine()

    def _set_cosine(self) -> None:
        if self.num_classes > 0:
            weight = self.fc.weight
            self.fc = CosineLinear(self.head_hidden_size, self.num_classes, device=weight.device, dtype=weight.dtype)
            self.fc.train(self.training)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give the model a new cosine classifier. None keeps the pooling; with 0 classes there is no classifier."""
        super().reset_classifier(num_classes, global_pool)
        self._set_cosine()


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        'pool_size': (7, 7),
        'first_conv': 'conv1', 'classifier': 'fc',
        'license': 'apache-2.0', 'paper_ids': 'arXiv:1512.03385',
        **kwargs,
    }


default_cfgs = generate_default_cfgs({
    name: _cfg(**cfg) for name, cfg in pretrained_cfgs('resnet50_cosine').items()
})


@register_model
def resnet50_cosine(pretrained: bool = False, **kwargs: Any) -> ResNetCosine:
    """ResNet-50 with a cosine classifier: 25.6M parameters at 1000 classes."""
    model_args = dict(block=Bottleneck, layers=(3, 4, 6, 3))
    return create_pretrained(ResNetCosine, 'resnet50_cosine', pretrained, **dict(model_args, **kwargs))
