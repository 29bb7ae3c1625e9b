"""The model card: card.md.jinja holds the text, and this module the values, from config.json and metrics.json."""
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from torch.utils.flop_counter import FlopCounterMode

from ..evaluation import GROUPS, Shots
from ..evaluation.fusion import figures_of
from ..utils.words import duration_in_words
from .markdown import environment

EXPERTS = {'mean': 'mean of both', 'cls': 'CLS', 'dist': 'DIST'}
_COLUMNS = {'top1': 'overall', 'head': 'head', 'mid': 'mid', 'tail': 'tail', 'balanced': 'balanced'}
_MOST_CLASSES_LISTED = 12
# Arguments of a model that the card gives in words
_IN_WORDS = ('num_classes', 'in_chans', 'img_size', 'global_pool')


@dataclass(frozen=True)
class Card:
    """What the card of one model is written from.

    Attributes:
        config: Content of config.json.
        metrics: Content of metrics.json; empty if nobody measured the weights.
        repo_id: Repository, 'owner/name'.
        license: Identifier of the Hub; 'other' needs a name and a link.
        dataset_name: The data in words, such as 'long-tailed scikit-learn digits'.
        evaluation: Command that repeats the figures.
        num_params: Parameters of the model.
        command: The training command in one line, or None if it is not known.
        registered: Name for `timm.create_model` if the model is a tag of the catalogue.
        license_name: Name of another licence.
        license_link: Its address, or its file in the repository.
        datasets: Hub ids of the training data, none if it is not on the Hub.
        plots: File names in the folder plots.
        others: metrics.json of runs of the same settings with other seeds. The text then gives mean and standard
            deviation. The model-index always holds the figures of the published weights.
    """
    config: dict[str, Any]
    metrics: dict[str, Any]
    repo_id: str
    license: str
    dataset_name: str
    evaluation: str
    num_params: int
    command: str | None = None
    registered: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    datasets: tuple[str, ...] = ()
    plots: tuple[str, ...] = ()
    others: Sequence[dict[str, Any]] = ()

    @property
    def name(self) -> str:
        return self.repo_id.rsplit('/', 1)[-1]

    @property
    def info(self) -> dict[str, Any]:
        return self.config['timm_deitlt']

    @property
    def architecture(self) -> str:
        """By our name; config.json may give timm's."""
        return self.info['architecture']

    @property
    def student(self) -> bool:
        return self.info['kind'] == 'student'

    @property
    def converted(self) -> bool:
        return 'source_file' in self.info

    @property
    def experts(self) -> dict[str, str]:
        """Experts with figures of their own, and their names; before them the prediction, if that is not the mean.

        The mean of a single expert is that expert.
        """
        experts = EXPERTS if self.two_experts else {'mean': 'this model'}
        return experts if self.answer == 'mean' else {self.answer: f'prediction ({self.answer})', **experts}

    @property
    def answer(self) -> str:
        """The fusion that gives the prediction, if it was measured; else 'mean'."""
        name = self.info.get('fusion') or 'mean'
        return name if self.mean(name, 'top1') is not None else 'mean'

    @property
    def two_experts(self) -> bool:
        return 'dist' in self.info['experts']

    @property
    def measured(self) -> bool:
        return bool(self.metrics.get('mean'))

    @property
    def teacher(self) -> dict[str, Any] | None:
        return self.metrics.get('teacher') or self.info.get('teacher')

    @property
    def data(self) -> dict[str, Any]:
        return {**(self.info.get('data') or {}), **(self.metrics.get('data') or {})}

    @property
    def class_names(self) -> list[str]:
        """In the order of the class counts."""
        return self.data.get('class_names') or self.config['label_names']

    @property
    def groups(self) -> dict[str, list[int]]:
        """Training images of the classes of each group, most first; empty if they are not known."""
        counts, shots = self.info.get('class_counts'), self.info.get('shots')
        if not (counts and shots):
            return {}
        groups = Shots.from_counts(counts, tuple(shots['boundaries'])).groups
        return {group: [counts[label] for label in labels] for group, labels in groups.items()}

    @property
    def runs(self) -> list[dict[str, Any]]:
        return [self.metrics, *self.others]

    def figures(self, row: str, key: str) -> list[float | None]:
        """A figure of an expert, a fusion or the teacher: first of the published run, then of the others."""
        return [figures_of(run, row).get(key) for run in self.runs]

    def mean(self, row: str, key: str) -> float | None:
        """Mean of a figure over the runs; None if one of them lacks it."""
        known = [value for value in self.figures(row, key) if value is not None]
        return statistics.fmean(known) if len(known) == len(self.runs) else None


def result_rows(card: Card) -> list[list[str]]:
    """Table of classes, images and accuracies; with other seeds, mean and standard deviation come first."""
    rows = [['', *_COLUMNS.values()]]
    for key in ('classes', 'train_images', 'test_images'):
        counts = [card.info['shots'][group][key] for group in GROUPS]
        rows.append([key.replace('_', ' '), *(f'{count:,}' for count in (sum(counts), *counts)), ''])
    rows += [[label, *accuracy_cells(card, expert)] for expert, label in card.experts.items()]
    if card.others:
        own = replace(card, others=())
        rows += [
            [f'{label}, seed {card.metrics["seed"]}', *accuracy_cells(own, expert)]
            for expert, label in card.experts.items()]
    return rows


def teacher_rows(card: Card) -> list[list[str]]:
    """Table of the teacher's accuracies."""
    return [['', *_COLUMNS.values()], [card.metrics['teacher']['name'], *accuracy_cells(card, 'teacher')]]


def accuracy_cells(card: Card, row: str) -> list[str]:
    """Accuracies of an expert or the teacher in percent, '-' for those that do not exist."""
    cells = []
    for key in _COLUMNS:
        mean, known = card.mean(row, key), [value for value in card.figures(row, key) if value is not None]
        spread = f' ± {statistics.stdev(known):.1f}' if len(known) > 1 else ''
        cells.append('-' if mean is None else f'{mean:.1f}{spread}')
    return cells


def class_list(card: Card) -> str:
    """Class names and their training images, most first; of many classes the first and the last five."""
    named = sorted(zip(card.class_names, card.info['class_counts'], strict=True), key=lambda pair: -pair[1])
    listed = [f'{name} ({count:,})' for name, count in named]
    if len(listed) > _MOST_CLASSES_LISTED:
        listed[5:-5] = [f'... ({len(listed) - 10:,} more) ...']
    return ', '.join(listed)


def missing_classes(card: Card) -> str:
    """Names of classes without evaluation images."""
    labels = card.info['shots']['missing_classes']
    names = [card.class_names[label] for label in labels[:_MOST_CLASSES_LISTED]]
    more = f' and {len(labels) - len(names):,} more' if len(labels) > len(names) else ''
    return ', '.join(names) + more


def group_words(card: Card) -> str:
    """Classes and training images of each group that has classes."""
    words = []
    for group, images in card.groups.items():
        if images:
            least = f' to {min(images):,}' if min(images) < max(images) else ''
            plural = '' if len(images) == 1 else 'es'
            words.append(f'{group} {len(images):,} class{plural} of {max(images):,}{least} images')
    return '; '.join(words)


def model_args(card: Card) -> str:
    """Arguments of timm's model that the card does not give in words."""
    arguments = card.config.get('model_args', {})
    return ', '.join(f'{name}={value}' for name, value in arguments.items() if name not in _IN_WORDS)


def versions_words(versions: dict[str, str]) -> str:
    """Versions of the software, the commit, and the machine."""
    packages = [f'{name} {version}' for name, version in versions.items() if name not in ('git', 'machine')]
    commit = f' (commit {versions["git"]})' if versions['git'] != 'unknown' else ''
    return f'{packages[0]}{commit}, {", ".join(packages[1:])}, on {versions["machine"]}'


def limits(card: Card) -> list[str]:
    """Sentences on what the figures say against the model."""
    if not card.measured:
        return ['How well the model recognises rare classes is not known.']
    lines = ['The accuracies in this section are means over the seeds.'] if card.others else []
    head, tail = card.mean(card.answer, 'head'), card.mean(card.answer, 'tail')
    if head is not None and tail is not None:
        images = card.info['shots']['tail']['test_images']
        one = f', so one image more or less changes this figure by about {100 / images:.1f} points'
        lines.append(
            f'Rare classes are recognised {compare(tail, head, "worse than", "as well as", "better than")} frequent '
            f'ones: {tail:.1f} % on the tail, {head:.1f} % on the head. The tail has {images:,} evaluation '
            f'images{one if images <= 1000 else ""}.')
    cls, dist = card.mean('cls', 'tail'), card.mean('dist', 'tail')
    if card.two_experts and tail is not None and cls is not None and dist is not None:
        words = ('worse than', 'as good as', 'better than')
        the_answer = 'the mean of both experts' if card.answer == 'mean' else f'the prediction ({card.answer})'
        lines.append(
            f'On the tail {the_answer} ({tail:.1f} %) is {compare(tail, cls, *words)} CLS alone '
            f'({cls:.1f} %) and {compare(tail, dist, *words)} DIST alone ({dist:.1f} %).')
    against = []
    for key, where in (('top1', 'overall'), ('tail', 'on the tail')):
        own, teacher = card.mean(card.answer, key), card.mean('teacher', key)
        if own is not None and teacher is not None:
            order = compare(own, teacher, 'worse', 'as good', 'better')
            against.append(f'{order} {where} ({own:.1f} % against {teacher:.1f} %)')
    if against:
        lines.append(f'Compared with its teacher, the student is {" and ".join(against)}.')
    if card.converted:
        lines.append('There is one checkpoint (n = 1). The authors ' + (
            'chose its epoch on the test images, so the figures are probably too high.' if card.student else
            'may have chosen its epoch on the test images; then the figures are too high.'))
    elif not card.others:
        lines.append('There is one run (n = 1), so it is not known how much another seed would change these figures.')
    return lines


def compare(own: float, other: float, less: str, equal: str, more: str) -> str:
    """One of three words, by how a number compares with another; rounding errors do not decide."""
    own, other = round(own, 6), round(other, 6)
    return less if own < other else more if own > other else equal


def gmacs(config: dict[str, Any]) -> float | None:
    """Multiply-adds for one image in 1e9, or None if timm cannot make the model without memory."""
    cfg = config['pretrained_cfg']
    args = {'num_classes': config['num_classes'], 'in_chans': cfg['input_size'][0], **config.get('model_args', {})}
    # on the meta device, because the counter overlooks the fused attention of CPUs
    try:
        model = timm.create_model(config['architecture'], pretrained_cfg=cfg, device='meta', **args).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.empty(1, *cfg['input_size'], device='meta'))
    except (AssertionError, RuntimeError, TypeError, ValueError):
        return None
    return counter.get_total_flops() / 2e9


def front_matter(card: Card) -> ModelCardData:
    """What the Hub reads of the card."""
    distilled = card.student and (card.teacher or card.converted)
    # without results, a model_name would become a field of its own
    figures: dict[str, Any] = {'model_name': card.name, 'eval_results': eval_results(card)} if card.measured else {}
    return ModelCardData(
        license=card.license,
        license_name=card.license_name or None,
        license_link=card.license_link or None,
        library_name='timm',
        pipeline_tag='image-classification',
        tags=['image-classification', 'timm', 'long-tailed', *(['knowledge-distillation'] if distilled else [])],
        datasets=list(card.datasets) or None,
        metrics=['accuracy'],
        **figures,
    )


def eval_results(card: Card) -> list[EvalResult]:
    """The model-index: accuracy of the published weights by expert and group."""
    groups = {'all': [count for counts in card.groups.values() for count in counts], **card.groups}
    names = {'mean': 'Top-1 mean of experts', 'cls': 'Top-1 CLS expert', 'dist': 'Top-1 DIST expert'}
    return [
        EvalResult(
            task_type='image-classification',
            task_name='Image classification',
            dataset_type=(*card.datasets, card.data['name'])[0],
            dataset_name=card.dataset_name,
            dataset_config=card.info.get('benchmark'),
            dataset_split=_split(card.data['evaluated_on']),
            dataset_args={
                'imbalance_factor': round(card.data['imbalance_factor'], 4),
                'split_seed': card.data['split_seed'],
                'fingerprint': card.data['fingerprint'],
            },
            metric_type='accuracy',
            metric_name=f'{names.get(expert, f"Top-1 {expert}") if card.two_experts else "Top-1"}, {group} (%)',
            metric_value=round(value, 4),
            metric_args={
                'expert': expert if card.two_experts else None,
                'group': group,
                'classes': len(counts),
                'train_images': sum(counts),
                'min_train_images_per_class': min(counts),
                'max_train_images_per_class': max(counts),
                'test_images': sum(
                    card.info['shots'][part]['test_images'] for part in GROUPS if group in ('all', part)),
                'seed': card.metrics['seed'],
            },
        )
        for expert in card.experts for group, counts in groups.items()
        if (value := figures_of(card.metrics, expert)['top1' if group == 'all' else group]) is not None
    ]


def _split(evaluated_on: str) -> str | None:
    if evaluated_on.endswith('held out'):
        return 'held-out'
    found = re.fullmatch(r"split '(.+)'|the (test|validation) images", evaluated_on)
    return (found[1] or found[2]) if found else None


_TEMPLATES = environment(Path(__file__).parent)
_TEMPLATES.filters.update(
    duration=duration_in_words,
    numbers=lambda values: ' '.join(f'{value:.4g}' for value in values),
    short=lambda number: f'{number:.1f}' if number >= 1 else f'{number:.2g}',
    thousands='{:,}'.format)
_TEMPLATES.globals.update({function.__name__: function for function in (
    class_list, front_matter, gmacs, group_words, limits, missing_classes, model_args, result_rows, teacher_rows,
    versions_words)})


def model_card(card: Card) -> ModelCard:
    """README.md of a published model: card.md.jinja, filled in."""
    # huggingface_hub's ModelCard.from_template cannot escape the values
    return ModelCard(_TEMPLATES.get_template('card.md.jinja').render(card=card))
