"""Studies: train named arms on one data set and budget, put the results into tables, and judge claims about them."""
from .command import ablate
from .study import load_study, study_names

__all__ = ['ablate', 'load_study', 'study_names']
