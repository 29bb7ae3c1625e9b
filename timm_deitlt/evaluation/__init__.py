"""Accuracy of every expert by class group, ways to join experts, signs of failed runs."""
from .evaluator import ShotEvaluator as ShotEvaluator
from .evaluator import format_table as format_table
from .shots import GROUPS as GROUPS
from .shots import Shots as Shots
