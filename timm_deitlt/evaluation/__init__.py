"""Accuracy of every expert by class group, ways to join experts, signs of failed runs. It imports no other room."""
from .evaluator import GROUPS as GROUPS
from .evaluator import ShotEvaluator as ShotEvaluator
from .evaluator import Shots as Shots
from .evaluator import format_table as format_table
