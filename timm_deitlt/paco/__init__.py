"""PaCo, parametric contrastive learning of a classifier: its loss, two encoders, queue and task.

A classifier learns from the labels while a projection of the same features is contrasted with those of other images:
the micro-batch itself, its other view through a key encoder that follows the weights slowly, and a queue of keys of the
updates before. What is saved and evaluated as the model is the plain classifier.

Paper: Parametric Contrastive Learning, https://arxiv.org/abs/2107.12028
"""
from .loss import PaCoLoss as PaCoLoss
from .network import KeyQueue as KeyQueue
from .network import PaCoNet as PaCoNet
from .task import PaCoTask as PaCoTask
