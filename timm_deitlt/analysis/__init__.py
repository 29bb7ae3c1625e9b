"""The three mechanisms of DeiT-LT as measures of a trained model: tensors in, tensors out."""
from .attention import attention_maps as attention_maps
from .attention import attention_rollout as attention_rollout
from .attention import mean_attention_distance as mean_attention_distance
from .attention import prefix_attention as prefix_attention
from .attention import uniform_attention_distance as uniform_attention_distance
from .attention import watched_attention as watched_attention
from .teacher_view import TeacherView as TeacherView
from .tokens import TokenFeatures as TokenFeatures
from .tokens import divergence as divergence
from .tokens import effective_rank as effective_rank
from .tokens import energy_rank as energy_rank
from .tokens import token_features as token_features
