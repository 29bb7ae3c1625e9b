"""Training tasks: modules that hold student, teacher and losses and turn a batch into a loss, as in `timm.task`.

Every task adds `set_epoch`, on which deferred re-weighting (DRW) depends, and `forward(..., second_pass=True)` for the
second pass of SAM, which changes nothing but gradients. Tasks import models, data, losses and evaluation.
"""
from .deit_lt import DeiTLTTask as DeiTLTTask
from .label import ClassifierTask as ClassifierTask
from .paco import PaCoTask as PaCoTask
