"""Optimizers. Importing this package registers `samsgd` and `samadamw` with timm."""
from .sam import SAM as SAM
from .sam import SAMSGD as SAMSGD
from .sam import SAMAdamW as SAMAdamW
