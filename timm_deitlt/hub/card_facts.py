"""What a model card is written from."""
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PureWindowsPath
from typing import Any

from ..evaluation import Shots

__all__ = ['EXPERTS', 'About', 'Facts', 'check_others', 'model_name']

EXPERTS = {'mean': 'mean of both', 'cls': 'CLS', 'dist': 'DIST'}


@dataclass(frozen=True)
class About:
    """What a card says beyond configuration and metrics.

    Attributes:
        repo_id: Repository, 'owner/name'.
        license: Identifier of the Hub; 'other' needs a name and a link.
        license_name: Name of another licence.
        license_link: Its address, or its file in the repository.
        datasets: Hub ids of the training data, none if it is not on the Hub.
        dataset_name: The data in words, such as 'long-tailed scikit-learn digits'.
        command: The training command in one line, or None if it is not known.
        evaluation: Command that repeats the figures.
        weights_sha256: Of model.safetensors.
        num_params: Parameters of the model.
        registered: Name for `timm.create_model` if the model is a tag of the catalogue.
        plots: File names in the folder plots.
    """
    repo_id: str
    license: str
    license_name: str | None
    license_link: str | None
    datasets: tuple[str, ...]
    dataset_name: str
    command: str | None
    evaluation: str
    weights_sha256: str
    num_params: int
    registered: str | None
    plots: tuple[str, ...] = ()


class Facts:
    """What the sections are written from."""

    def __init__(
            self,
            config: dict[str, Any],
            metrics: dict[str, Any] | None,
            others: Sequence[dict[str, Any]],
            about: About,
    ):
        self.config = config
        self.cfg = config['pretrained_cfg']
        self.info = config['timm_deitlt']
        self.architecture = self.info.get('architecture') or config['architecture']  # by our name
        self.about = about
        self.metrics = metrics or {}
        self.runs = [self.metrics, *others]
        self.measured = bool(self.metrics.get('mean'))
        self.teacher = self.metrics.get('teacher')

        self.student = self.info['kind'] == 'student'
        self.converted = 'source_file' in self.info
        self.two_experts = 'dist' in self.info['experts']
        # the mean of a single expert is that expert
        self.experts = EXPERTS if self.two_experts else {'mean': 'this model'}

        self.data = {**(self.metrics.get('data') or {}), **(self.info.get('data') or {})}
        self.data_name = _without_folder(self.data.get('name'))
        self.dataset_name = ' '.join(about.dataset_name.split()) or self.data_name
        self.class_counts = self.data.get('train_counts') or self.info.get('class_counts')
        self.class_names = self.data.get('class_names') or config.get('label_names') or [
            str(label) for label in range(config['num_classes'])]
        self.shots = self.metrics.get('shots') or self.info.get('shots')
        self.groups = {}  # training images of the classes of each group, most first
        if self.class_counts and self.shots:
            groups = Shots.from_counts(self.class_counts, tuple(self.shots['boundaries'])).groups
            self.groups = {group: [self.class_counts[label] for label in labels] for group, labels in groups.items()}

    def figures(self, row: str, key: str) -> list[float | None]:
        """A figure of an expert or the teacher: the published run's, then those of the others."""
        return [(run.get(row) or {}).get(key) for run in self.runs]

    def mean(self, row: str, key: str) -> float | None:
        """The mean of a figure over the runs, None if one lacks it."""
        figures = self.figures(row, key)
        return None if None in figures else statistics.fmean(figures)


def _without_folder(name: str | None) -> str | None:
    # own data is named by its folder, which the world need not know in full
    return PureWindowsPath(name).name or 'own data' if re.match(r'[/~.]|\w:', name or '') else name


def check_others(facts: Facts) -> None:
    """Raise a ValueError if further runs differ from the published one in more than the seed."""
    published, *others = facts.runs
    if not others:
        return
    if not all(run.get('mean') for run in facts.runs):
        raise ValueError('Mean and standard deviation need the metrics of the published run and of every other run.')
    seeds = [run['seed'] for run in facts.runs]
    if None in seeds or len(set(seeds)) < len(seeds):
        raise ValueError(
            f'The runs have the seeds {", ".join(map(str, seeds))}: give every run once, each with a seed of its own.')
    for run in others:
        expected, settings = _settings(published), _settings(run)
        if differing := [name for name in expected if expected[name] != settings[name]]:
            raise ValueError(
                f'The run of seed {run["seed"]} differs from the published one in {", ".join(differing)}: mean and '
                'standard deviation are for runs that differ in the seed alone.')


def _settings(run: dict[str, Any]) -> dict[str, Any]:
    return {
        **{name: run[name] for name in ('model', 'epochs', 'epochs_trained')},
        **{name: run['data'][name] for name in ('fingerprint', 'evaluated_on', 'test_counts')},
        'teacher': (run['teacher'] or {}).get('name'),
        'experts': [expert for expert in EXPERTS if run[expert]],
    }


def model_name(about: About) -> str:
    """Name of the repository without its owner."""
    return about.repo_id.rsplit('/', 1)[-1]
