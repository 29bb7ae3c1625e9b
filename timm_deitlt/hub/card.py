"""The model card of a published model, written from its measured metrics."""
import re
from collections.abc import Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..evaluation import GROUPS
from .card_facts import About, Facts, check_others, model_name
from .card_text import card_text

__all__ = ['About', 'model_card']


def model_card(
        config: dict[str, Any],
        metrics: dict[str, Any] | None,
        others: Sequence[dict[str, Any]],
        about: About,
) -> ModelCard:
    """The README.md of a published model.

    Args:
        config: Its config.json.
        metrics: Its metrics.json, or None if it was never evaluated.
        others: metrics.json of further runs of the same settings with other seeds: the text then gives mean and
            standard deviation; the model-index always holds the published weights' own figures.
        about: What neither file says.

    Raises:
        ValueError: If data set or licence are missing, or `others` are not runs of the same settings and other seeds.
    """
    if not config['timm_deitlt'].get('data') and not about.dataset_name.strip():
        raise ValueError('The card would not name the data set, which config.json does not: give it in words.')
    if not about.license.strip():
        raise ValueError('The card would have no licence: give an identifier of the Hub such as apache-2.0, or other.')
    if about.license == 'other' and not (about.license_name and about.license_link):
        raise ValueError("The licence 'other' needs a name and a link.")
    facts = Facts(config, metrics, others, about)
    check_others(facts)
    return ModelCard(f'---\n{_front_matter(facts).to_yaml()}\n---\n\n{card_text(facts)}\n')


def _front_matter(facts: Facts) -> ModelCardData:
    about = facts.about
    distilled = facts.student and (facts.teacher or facts.converted)
    results = _eval_results(facts) if facts.measured else []
    return ModelCardData(
        license=about.license,
        license_name=about.license_name or None,
        license_link=about.license_link or None,
        library_name='timm',
        pipeline_tag='image-classification',
        tags=['image-classification', 'timm', 'long-tailed', *(['knowledge-distillation'] if distilled else [])],
        datasets=list(about.datasets) or None,
        metrics=['accuracy'],
        # without results a model_name would become a field of its own
        **(dict(model_name=model_name(about), eval_results=results) if results else {}),
    )


def _eval_results(facts: Facts) -> list[EvalResult]:
    groups = {'all': [count for counts in facts.groups.values() for count in counts], **facts.groups}
    names = {'mean': 'Top-1 mean of experts', 'cls': 'Top-1 CLS expert', 'dist': 'Top-1 DIST expert'}
    return [
        EvalResult(
            task_type='image-classification',
            task_name='Image classification',
            dataset_type=(*facts.about.datasets, facts.data_name)[0],
            dataset_name=facts.dataset_name,
            dataset_config=facts.info.get('benchmark'),
            dataset_split=_split(facts.data['evaluated_on']),
            dataset_args={
                'imbalance_factor': round(facts.data['imbalance_factor'], 4),
                'split_seed': facts.data['split_seed'],
                'fingerprint': facts.data['fingerprint'],
            },
            metric_type='accuracy',
            metric_name=f'{names[expert] if facts.two_experts else "Top-1"}, {group} (%)',
            metric_value=round(value, 4),
            metric_args={
                'expert': expert if facts.two_experts else None,
                'group': group,
                'classes': len(counts),
                'train_images': sum(counts),
                'min_train_images_per_class': min(counts),
                'max_train_images_per_class': max(counts),
                'test_images': sum(facts.shots[part]['test_images'] for part in GROUPS if group in ('all', part)),
                'seed': facts.metrics['seed'],
            },
        )
        for expert in facts.experts for group, counts in groups.items()
        if (value := facts.metrics[expert]['top1' if group == 'all' else group]) is not None
    ]


def _split(evaluated_on: str) -> str | None:
    if evaluated_on.endswith('held out'):
        return 'held-out'
    found = re.fullmatch(r"split '(.+)'|the (test|validation) images", evaluated_on)
    return (found[1] or found[2]) if found else None
