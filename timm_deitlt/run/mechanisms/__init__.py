"""Measure the three mechanisms of DeiT-LT on a finished run or an exported model."""
from .analyze import analyze

__all__ = ['analyze']
