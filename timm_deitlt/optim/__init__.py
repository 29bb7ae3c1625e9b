"""Optimizers; importing this package registers `samsgd` and `samadamw` with timm. Imports nothing else of ours."""
from .sam import SAM as SAM
from .sam import SAMSGD as SAMSGD
from .sam import SAMAdamW as SAMAdamW
