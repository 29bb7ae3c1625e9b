"""Losses of DeiT-LT: class weights, distillation with deferred re-weighting (DRW), LDAM, and the two-stage label loss.

The stage of a loss is a pure function of the epoch given to `set_epoch`, so no `state_dict` holds it. Everything is
computed in at least float32, also under autocast. A class-weighted mean is normalised inside the batch that is given.
Under gradient accumulation this is the micro-batch, as in the released code.
"""
from .class_weights import class_weights as class_weights
from .class_weights import full_precision as full_precision
from .class_weights import weighted_cross_entropy as weighted_cross_entropy
from .distillation import DISTILLATION_LOSS_TYPES as DISTILLATION_LOSS_TYPES
from .distillation import DistillationLoss as DistillationLoss
from .distillation import DRWDistillationLoss as DRWDistillationLoss
from .distillation import create_distillation_loss as create_distillation_loss
from .label import LabelLoss as LabelLoss
from .label import LDAMLoss as LDAMLoss
