"""Studies: train named arms on one data set and budget, put the results into tables, and judge claims about them."""
from .command import ablate as ablate
