"""Weights to start from that were trained on other classes."""
import logging
import os
from typing import Any, cast

from timm.models import load_checkpoint, load_state_dict
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import nn

_logger = logging.getLogger(__name__)


def load_initial(model: nn.Module, path: str) -> None:
    """Load a checkpoint to start from; of another number of classes, all classifiers stay as they were made.

    Position embeddings of a ViT are resized where the image size is another. The EMA is taken where there is one, as by
    timm.

    Args:
        model: Any model of timm, untrained; changed in place.
        path: File in any form that timm reads.

    Raises:
        RuntimeError: If the weights are of another architecture.
    """
    if os.path.splitext(path)[1].lower() in ('.npz', '.npy'):
        load_checkpoint(model, path)
        return
    weights, own = load_state_dict(path), model.state_dict()
    if isinstance(model, VisionTransformer):
        weights = checkpoint_filter_fn(weights, model)
    heads = classifier_names(model)
    keys = [key for key in own if key.rpartition('.')[0] in heads]
    theirs = {len(weights[key]) for key in keys if key in weights and len(weights[key]) != len(own[key])}
    if theirs:
        say_new_heads(model, path, theirs.pop(), len(own[keys[0]]))
        weights = {**weights, **{key: own[key] for key in keys}}
    model.load_state_dict(weights)


def classifier_names(model: nn.Module) -> tuple[str, ...]:
    """Names of a model's classifiers, such as 'head' and 'head_dist'."""
    names = cast(Any, model).pretrained_cfg.get('classifier') or ()
    return (names,) if isinstance(names, str) else tuple(names)


def say_new_heads(model: nn.Module, source: str, theirs: int | None, ours: int) -> None:
    """Log that the classifiers are not taken over."""
    names = classifier_names(model)
    which = f'both heads ({", ".join(names)}) are' if len(names) == 2 else f'the head ({", ".join(names)}) is'
    has = f'{source} has {theirs} classes, the data set {ours}' if theirs else f'Of {source} the classes are not known'
    _logger.info(f'{has}: {which} made anew, all else is taken over.')
