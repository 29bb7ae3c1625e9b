"""Create models by timm's `build_model_with_cfg`, with one clear error if their weights are not available."""
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from huggingface_hub.errors import EntryNotFoundError
from timm.models import PretrainedCfg, build_model_with_cfg, resolve_pretrained_cfg
from torch import nn

from ..benchmarks import BENCHMARKS, CATALOGUE, RELEASED, TAGS, Entry, hub_id, published_id
from ._hub import HUB_ERRORS, explain

__all__ = ['create_pretrained']

Model = TypeVar('Model', bound=nn.Module)


def create_pretrained(
        model_cls: Callable[..., Model],
        variant: str,
        pretrained: bool = False,
        pretrained_cfg: str | Mapping[str, Any] | PretrainedCfg | None = None,
        pretrained_cfg_overlay: Mapping[str, Any] | None = None,
        tag_args: Mapping[str, Mapping[str, Any]] | None = None,
        **kwargs: Any,
) -> Model:
    """Create a model of this package, and load its weights if `pretrained`.

    Args:
        model_cls: Class of the model.
        variant: Name of the architecture.
        pretrained: Whether to load weights.
        pretrained_cfg: A tag, or the whole configuration, as timm passes it for `hf-hub:` and `local-dir:`.
        pretrained_cfg_overlay: Entries that replace those of the configuration.
        tag_args: Model arguments that the weights of a tag need, by tag. They are used if the user names the tag, or if
            the published weights of the tag are loaded. `kwargs` take precedence.
        kwargs: Further arguments of `build_model_with_cfg` and of the model.

    Raises:
        FileNotFoundError: If the model has no known weights, or they cannot be read from the Hub.
    """
    # timm takes any mapping, and what its `generate_default_cfgs` makes
    given: dict[str, Any] = dict(pretrained_cfg=pretrained_cfg, pretrained_cfg_overlay=pretrained_cfg_overlay)
    cfg = resolve_pretrained_cfg(variant, **given)
    if pretrained and not (cfg.state_dict or cfg.file or cfg.hf_hub_id or cfg.url):
        raise FileNotFoundError(_not_known(cfg))
    by_name = bool(pretrained_cfg) and isinstance(pretrained_cfg, str)
    needed = (tag_args or {}).get(cfg.tag or '', {}) if by_name or pretrained and _is_published(cfg) else {}
    model_args = {key: kwargs.get(key, value) for key, value in needed.items()}
    try:
        model = build_model_with_cfg(model_cls, variant, pretrained, **{**kwargs, 'pretrained_cfg': cfg, **model_args})
    except HUB_ERRORS as error:
        failure = explain(error)
        foreign = failure.kind == 'other' and not isinstance(error, EntryNotFoundError)
        if foreign or not _is_on_hub(cfg):
            raise
        raise FileNotFoundError(_not_given(cfg, failure.words)) from error
    if model_args:
        # timm exports these together with the arguments of create_model, so that a saved model is created the same way
        cast(Any, model)._model_args = {**getattr(model, '_model_args', {}), **model_args}
    return model


def _is_on_hub(cfg: PretrainedCfg) -> bool:
    return bool(cfg.hf_hub_id) and not (cfg.state_dict or cfg.file)


def _is_published(cfg: PretrainedCfg) -> bool:
    # hf-hub: and local-dir: set a source, and their config.json already holds all model arguments
    return _is_on_hub(cfg) and not cfg.source and str(cfg.hf_hub_id).partition('@')[0] == published_id(_name(cfg))


def _name(cfg: PretrainedCfg) -> str:
    return f'{cfg.architecture}.{cfg.tag}' if cfg.tag else str(cfg.architecture)


def _not_known(cfg: PretrainedCfg) -> str:
    name = _name(cfg)
    where = f'; its id would be {hub_id(name)}' if name in CATALOGUE else ''
    return f'No published weights of {name} are known, so the Hub was not asked{where}. {_advice(name)}'


def _not_given(cfg: PretrainedCfg, words: str) -> str:
    repository, _, revision = str(cfg.hf_hub_id).partition('@')
    asked = f'{repository}, revision {revision},' if revision else repository
    return f'The weights of {_name(cfg)} could not be read from {asked} on the Hub: {words}. {_advice(_name(cfg))}'


def _advice(name: str) -> str:
    ways = ["load a folder by timm.create_model('local-dir:FOLDER', pretrained=True)"]
    if name in RELEASED:
        ways.insert(0, f'convert the released file by `{_conversion(CATALOGUE[name])}`')
    if name in CATALOGUE:
        ways.insert(0, f'train it by `{_training(CATALOGUE[name])}`')
    text = ' or '.join(filter(None, (', '.join(ways[:-1]), ways[-1])))
    return f'{text[0].upper()}{text[1:]}.'


def _training(entry: Entry) -> str:
    tag = TAGS[entry.benchmark]
    digits = tag.dataset == 'lt/digits'
    if entry.kind != 'student':
        asked = f'-c {tag.recipe}/teacher_{"ldam_sam" if entry.kind == "sam" else entry.kind}'
        if entry.architecture not in ('resnet32_cifar', 'resnet50_cosine'):  # these recipes are for these two
            asked += f' --model {entry.architecture}'
    else:
        asked = f'--model {entry.architecture} --teacher resnet32_sam' if digits else (
            f'-c {tag.recipe}/{entry.architecture}')
    return f'python train.py {asked}' if digits else f'python train.py {asked} --data-dir DIR'


def _conversion(entry: Entry) -> str:
    lists = BENCHMARKS[TAGS[entry.benchmark].dataset].files.get('train')
    names = f' --list-file {lists[0]}' if lists else ''
    return f'python hfhub/convert.py FILE FOLDER --benchmark {entry.benchmark}{names}'
