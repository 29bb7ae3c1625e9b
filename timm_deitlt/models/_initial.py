"""Start from weights that may have been trained on other classes."""
import logging
import os
from typing import Any, cast

from timm.models import load_checkpoint, load_state_dict
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import nn

_logger = logging.getLogger(__name__)


def load_initial(model: nn.Module, path: str) -> None:
    """Load a checkpoint to start from. If its number of classes differs, the model keeps its new classifiers.

    Position embeddings of a ViT are resized if the image size differs. As in timm, the EMA is loaded if there is one.

    Args:
        model: Any untrained model of timm; changed in place.
        path: File in any format that timm reads.

    Raises:
        RuntimeError: If the weights are those of another architecture.
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
    """Log that the classifiers are not loaded."""
    names = classifier_names(model)
    which = f'both heads ({", ".join(names)}) start' if len(names) == 2 else f'the head ({", ".join(names)}) starts'
    has = f'{source} has {theirs} classes, the data set {ours}' if theirs else f'The classes of {source} are not known'
    _logger.info(f'{has}: {which} from new random weights, all other weights are loaded.')
