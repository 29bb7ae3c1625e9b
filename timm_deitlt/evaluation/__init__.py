"""Accuracy by shot of every expert, ways to join experts, signatures of failed runs. Imports nothing else of ours."""
from .evaluator import GROUPS as GROUPS
from .evaluator import ShotEvaluator as ShotEvaluator
from .evaluator import Shots as Shots
from .evaluator import format_table as format_table
