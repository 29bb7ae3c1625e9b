"""Which classes are taken for which others, against plain counting."""
from collections import Counter

import pytest
import torch

from timm_deitlt.evaluation import ShotEvaluator, Shots
from timm_deitlt.evaluation.confusion import confused_pairs, describe_confusion
from timm_deitlt.evaluation.evaluator import _MOST_CLASSES_COUNTED

NAMES = ['cat', 'dog', 'emu', 'fox']


def evaluated(target, logits, batches=3, classes=4, **options):
    evaluator = ShotEvaluator(Shots.from_counts(range(classes, 0, -1)), ('mean', 'cls'), **options)
    for part in torch.arange(len(target)).tensor_split(batches):
        evaluator.update({'mean': logits[part], 'cls': -logits[part]}, target[part])
    return evaluator


def test_confusion_counts_the_answers_of_the_first_expert_whatever_the_batches():
    torch.manual_seed(0)
    target, logits = torch.randint(4, (57,)), torch.randn(57, 4)
    evaluator = evaluated(target, logits)
    assert evaluator.confusion is None, 'nothing is read back before the end'
    metrics = evaluator.compute()
    counted = Counter(zip(target.tolist(), logits.argmax(-1).tolist(), strict=True))
    assert evaluator.confusion == [[counted[true, said] for said in range(4)] for true in range(4)]
    assert metrics['mean']['per_class'] == [
        pytest.approx(100 * evaluator.confusion[label][label] / sum(evaluator.confusion[label])) for label in range(4)]
    again = evaluated(target, logits, batches=1)
    again.compute()
    assert again.confusion == evaluator.confusion


def test_images_without_an_answer_and_the_padding_of_a_rank_are_in_no_column():
    target, logits = torch.tensor([0, 1, 2, 3]), torch.eye(4)
    logits[1, 2] = float('nan')
    evaluator = evaluated(target, logits, batches=2, max_samples=3)
    evaluator.compute()
    assert evaluator.confusion == [[1, 0, 0, 0], [0] * 4, [0, 0, 1, 0], [0] * 4]


def test_too_many_classes_are_not_counted_in_pairs():
    classes = _MOST_CLASSES_COUNTED + 1
    evaluator = evaluated(torch.tensor([0, 5]), torch.eye(classes)[[0, 5]], classes=classes)
    assert evaluator.compute()['mean']['top1'] == 100 and evaluator.confusion is None
    assert describe_confusion(None, NAMES) is None


def test_pairs_are_named_most_images_first_then_the_larger_share():
    confusion = [[5, 3, 0, 0], [1, 9, 0, 0], [0, 3, 1, 0], [0, 0, 0, 0]]
    expected = [('emu', 'dog', 3, 75), ('cat', 'dog', 3, 37.5), ('dog', 'cat', 1, 10)]
    assert [tuple(pair.values()) for pair in confused_pairs(confusion, NAMES)] == expected
    described = describe_confusion(confusion, NAMES)
    assert described['matrix'] == confusion and described['expert'] == 'mean'
    many = [[1] * 101 for _ in range(101)]
    described = describe_confusion(many, list(map(str, range(101))))
    assert described['matrix'] is None and len(described['pairs']) == 20
