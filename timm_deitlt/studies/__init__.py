"""Studies: named arms on one data set and budget, trained, tabled, and judged by their claims."""
from .command import ablate
from .study import load_study, study_names

__all__ = ['ablate', 'load_study', 'study_names']
