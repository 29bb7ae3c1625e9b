"""Make the parts of a run from its settings: data, loaders, model, task and trainer."""
