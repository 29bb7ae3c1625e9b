"""Models. Importing this package registers them with timm."""
from .cosine import CosineLinear, set_cosine_classifier
from .deit_lt import DeiTLT
from .resnet_cifar import ResNetCifar
from .resnet_cosine import ResNetCosine

__all__ = ['CosineLinear', 'DeiTLT', 'ResNetCifar', 'ResNetCosine', 'set_cosine_classifier']
