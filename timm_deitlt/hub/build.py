"""The folder that is published: the model's files and its card."""
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm

from ..benchmarks import BENCHMARKS, CATALOGUE, TAGS
from ..run.settings import NO_NETWORK
from .card import About, model_card
from .export import FILES as FILES
from .export import write_model
from .figures import METRICS
from .settings import NOT_THE_TRAINING, training_command
from .source import Model, read_model

CARD = 'README.md'
# Of weights that were trained on the public benchmarks by this code
DEFAULT_LICENSE = 'apache-2.0'
# Kinds of `benchmarks.Entry` in words
_KINDS = {
    'student': 'student of a teacher', 'sam': 'teacher by LDAM and SAM', 'paco_sam': 'teacher by PaCo and SAM'}


@dataclass(frozen=True)
class CardFacts:
    """What a run does not tell, for its card: the flags of publish.py."""
    repo_id: str
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    dataset_name: str | None = None
    datasets: tuple[str, ...] = ()


def build_folder(model: Model, folder: Path, facts: CardFacts, other_seeds: Sequence[Path] = ()) -> str:
    """Write everything that is published; returns the card.

    Raises:
        ValueError: If the name of the repository promises another model, the card would lack its data set or licence,
            or the other runs differ in more than their seed.
    """
    registered = _registered(model, facts.repo_id.split('/')[1])
    tag = TAGS.get(model.config.get('benchmark'))
    benchmark = BENCHMARKS.get(tag.dataset if tag else (model.config['data'] or {}).get('name'))
    if facts.license is not None:
        license_id = facts.license
    else:
        license_id = DEFAULT_LICENSE if benchmark and model.settings else ''
    if not license_id.strip():
        raise ValueError(
            'The card needs a licence, which decides what others may do with the weights: give --license, such as '
            'apache-2.0, mit or cc-by-nc-4.0.')
    if (facts.license_name or facts.license_link) and license_id != 'other':
        raise ValueError('--license-name and --license-link belong to --license other.')
    dataset_name = facts.dataset_name or (benchmark.title if benchmark else '')
    if not dataset_name:
        raise ValueError('The card needs the name of the data set, which is no benchmark: give it by --dataset-name.')
    others = [_other_seed(path, model) for path in other_seeds]
    sha256 = write_model(model, folder, license_id)
    config = json.loads((folder / 'config.json').read_text())
    metrics = json.loads((folder / METRICS).read_text()) if model.metrics else None
    plots = tuple(sorted(path.name for path in (folder / 'plots').glob('*')))
    about = About(
        repo_id=facts.repo_id,
        license=license_id,
        license_name=facts.license_name,
        license_link=facts.license_link,
        datasets=facts.datasets or (benchmark.hub_datasets if benchmark else ()),
        dataset_name=dataset_name,
        command=training_command(model.settings) if model.settings else None,
        evaluation=_evaluation(model, facts),
        weights_sha256=sha256,
        num_params=sum(parameter.numel() for parameter in model.network.parameters()),
        registered=registered,
        plots=plots,
    )
    card = model_card(config, metrics, others, about)
    (folder / CARD).write_text(str(card), encoding='utf-8')
    return str(card)


def _registered(model: Model, name: str) -> str | None:
    """Name for timm if the repository is called as an entry of the catalogue is, which the model must then be."""
    if name not in CATALOGUE:
        return None
    entry = CATALOGUE[name]
    wanted = f'{entry.architecture}, a {_KINDS[entry.kind]}, trained on {entry.benchmark}'
    architecture = model.network.pretrained_cfg['architecture']
    found = f'{architecture}, a {_KINDS.get(_kind(model), "model of another training")}, trained on ' + (
        model.config.get('benchmark') or 'other data')
    if found.replace('_cosine', '') != wanted.replace('_cosine', ''):
        raise ValueError(f'The name {name} promises {wanted}; this is {found}: give another REPO_ID.')
    if name not in timm.list_models(f'{entry.architecture}*', include_tags=True):
        return None  # timm's own architecture, which has no tags of ours
    cfg = timm.get_pretrained_cfg(name).to_dict()
    for key in ('num_classes', 'input_size', 'mean', 'std', 'interpolation', 'crop_pct'):
        ours = model.data_config[key] if key in model.data_config else model.network.pretrained_cfg[key]
        if (tuple(ours) if isinstance(ours, (list, tuple)) else ours) != cfg[key]:
            raise ValueError(
                f'Whoever loads {name} from timm has {key} {cfg[key]}, this model was trained with {ours}: train it by '
                'its recipe, or give another REPO_ID.')
    shapes = {key: value.shape for key, value in timm.create_model(name, device='meta').state_dict().items()}
    if shapes != {key: value.shape for key, value in model.network.state_dict().items()}:
        raise ValueError(
            f"The weights are not of the shapes of timm's {name}: train it by its recipe, or give another REPO_ID.")
    return name


def _kind(model: Model) -> str | None:
    """Kind of `benchmarks.Entry` by how the model was trained."""
    args = model.settings
    if args is None:
        return {'student': 'student', 'cosine': 'sam', 'paco': 'paco_sam'}.get(model.config.get('released_kind'))
    if model.config['kind'] == 'student':
        return 'student' if args.teacher not in NO_NETWORK else None
    kind = {'ldam': 'sam', 'paco': 'paco_sam'}.get(args.loss)
    return kind if args.opt.startswith('sam') else None


def _other_seed(path: Path, model: Model) -> dict[str, Any]:
    other = read_model(path)
    if other.metrics is None or other.settings is None or model.settings is None:
        raise ValueError(f'{path} has no figures: --other-seeds takes finished runs of train.py.')
    ours, theirs = vars(model.settings), vars(other.settings)
    names = (ours.keys() | theirs.keys()) - NOT_THE_TRAINING - {'seed', 'sources', 'teacher_checkpoint'}
    differing = sorted(name for name in names if ours.get(name) != theirs.get(name))
    if differing:
        raise ValueError(
            f'{path} was trained with other settings ({", ".join(differing)}): mean and standard deviation are for '
            'runs that differ in the seed alone.')
    return other.metrics


def _evaluation(model: Model, facts: CardFacts) -> str:
    words = ['python validate.py', f'hf-hub:{facts.repo_id}']
    tag = TAGS.get(model.config.get('benchmark'))
    if model.settings is None and tag:  # config.json of a run tells
        words.append(f'--dataset {tag.dataset}')
        if tag.imbalance_factor not in (None, BENCHMARKS[tag.dataset].imbalance_factor):
            words.append(f'--imbalance-factor {tag.imbalance_factor:g}')
    data_dir = model.settings.data_dir if model.settings else True
    return ' '.join([*words, *(['--data-dir DIR'] if data_dir else [])])
