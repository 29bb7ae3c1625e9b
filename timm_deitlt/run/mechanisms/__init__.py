"""The three mechanisms of DeiT-LT measured on a finished run, or on a model in timm's form for the hub."""
from .analyze import analyze

__all__ = ['analyze']
