"""From resolved arguments to the parts of a run."""
