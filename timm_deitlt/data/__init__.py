"""Images for training and evaluation: data sets by name, long-tailed subsets, augmentation and loaders."""
from .factory import create_dataset as create_dataset
from .image import open_image as open_image
from .long_tail import ClassificationSet as ClassificationSet
from .long_tail import UnreadableImageError as UnreadableImageError
from .long_tail import holdout as holdout
from .long_tail import long_tailed_subset as long_tailed_subset
from .sampling import class_counts as class_counts
from .sampling import long_tailed_indices as long_tailed_indices
from .sampling import stratified_split as stratified_split
from .splits import has_split as has_split
