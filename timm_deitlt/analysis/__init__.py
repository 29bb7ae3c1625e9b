"""The three mechanisms of DeiT-LT as measures of a trained model: tensors in, tensors out."""
from .attention import (
    attention_maps,
    attention_rollout,
    mean_attention_distance,
    prefix_attention,
    uniform_attention_distance,
    watched_attention,
)
from .teacher_view import TeacherView
from .tokens import TokenFeatures, divergence, effective_rank, energy_rank, token_features

__all__ = [
    'TeacherView',
    'TokenFeatures',
    'attention_maps',
    'attention_rollout',
    'divergence',
    'effective_rank',
    'energy_rank',
    'mean_attention_distance',
    'prefix_attention',
    'token_features',
    'uniform_attention_distance',
    'watched_attention',
]
