"""DeiT-LT as a timm plugin: importing it registers the models and optimizers with timm."""
from . import models as models
from .data.factory import create_dataset as create_dataset
from .evaluation import ShotEvaluator as ShotEvaluator
from .evaluation import Shots as Shots
from .loss import DISTILLATION_LOSS_TYPES as DISTILLATION_LOSS_TYPES
from .loss import DRWDistillationLoss as DRWDistillationLoss
from .loss import create_distillation_loss as create_distillation_loss
from .optim import SAM as SAM
from .run.predict import TrainedModel as TrainedModel
from .run.predict import load_model as load_model
from .task import ClassifierTask as ClassifierTask
from .task import DeiTLTTask as DeiTLTTask
from .version import __version__ as __version__
