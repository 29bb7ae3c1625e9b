"""Fusions of the experts against plain Python."""
import math

import pytest
import torch

from timm_deitlt.engine.trainer import evaluate
from timm_deitlt.evaluation import ShotEvaluator, Shots
from timm_deitlt.evaluation.fusion import FUSIONS, choose_fusions, fuse

COUNTS = [100, 10, 1]
CLS = [[2., 1., 0.], [0., 3., -1.]]
DIST = [[0., 1., 2.5], [.5, .5, .5]]


def softmax(row):
    exps = [math.exp(x) for x in row]
    return [x / sum(exps) for x in exps]


def plain(name, cls_row, dist_row):
    """Probabilities of a fusion of one image, by hand."""
    prior = [count / sum(COUNTS) for count in COUNTS]
    adjusted = softmax([x - math.log(p) for x, p in zip(cls_row, prior, strict=True)])
    cls_probs, dist_probs = softmax(cls_row), softmax(dist_row)
    if name == 'mean_probs':
        return [(a + b) / 2 for a, b in zip(cls_probs, dist_probs, strict=True)]
    if name == 'cls_adjusted':
        return adjusted
    if name == 'mean_adjusted':
        geometric = [math.sqrt(a * b) for a, b in zip(adjusted, dist_probs, strict=True)]
        return [g / sum(geometric) for g in geometric]
    mixed = [w * a + (1 - w) * b for w, a, b in zip((1., .5, 0.), cls_probs, dist_probs, strict=True)]
    return [m / sum(mixed) for m in mixed]


@pytest.mark.parametrize('name', FUSIONS)
def test_each_fusion_is_what_plain_python_makes_of_it(name):
    fused = fuse({'cls': torch.tensor(CLS), 'dist': torch.tensor(DIST)}, (name,), COUNTS)[name].exp()
    for row, cls_row, dist_row in zip(fused.tolist(), CLS, DIST, strict=True):
        assert row == pytest.approx(plain(name, cls_row, dist_row), abs=1e-5)


@pytest.mark.parametrize('name', FUSIONS)
def test_every_fusion_is_a_distribution_whatever_the_type_and_scale_of_the_logits(name):
    generator = torch.Generator().manual_seed(0)
    logits = {key: (50 * torch.randn(16, 3, generator=generator)).bfloat16() for key in ('cls', 'dist')}
    fused = fuse(logits, (name,), COUNTS)[name]
    assert fused.dtype == torch.float32
    assert fused.exp().sum(dim=-1).tolist() == pytest.approx([1.] * 16, abs=1e-4)


@pytest.mark.parametrize('name', FUSIONS)
def test_balanced_training_images_leave_the_experts_as_they_are(name):
    same = torch.tensor(CLS)
    fused = fuse({'cls': same, 'dist': same}, (name,), [7, 7, 7])[name]
    assert torch.allclose(fused, same.log_softmax(dim=-1), atol=1e-5)


def test_a_model_of_one_expert_takes_the_fusion_that_needs_no_other():
    assert choose_fusions('all', ('mean', 'cls')) == ('cls_adjusted',)
    assert choose_fusions('all', ('mean', 'cls', 'dist')) == tuple(FUSIONS)
    assert choose_fusions('mean', ('mean', 'cls', 'dist')) == ()
    with pytest.raises(ValueError, match='only CLS: use cls_adjusted'):
        choose_fusions('count_mix', ('mean', 'cls'))
    with pytest.raises(ValueError, match='takes mean, mean_probs, .* or all'):
        choose_fusions('median', ('mean', 'cls', 'dist'))


def test_the_prior_is_not_subtracted_from_what_the_loss_scales():
    assert choose_fusions('all', ('mean', 'cls'), scaled=True) == ()
    assert choose_fusions('mean', ('mean', 'cls'), scaled=True) == ()
    with pytest.raises(ValueError, match='scales its outputs'):
        choose_fusions('cls_adjusted', ('mean', 'cls'), scaled=True)


def test_evaluation_counts_a_fusion_like_an_expert():
    class Fixed(torch.nn.Module):
        def forward(self, images):
            return torch.tensor(CLS)

    batches = [(torch.zeros(2, 1, 2, 2), torch.tensor([2, 1]))]
    evaluator = ShotEvaluator(Shots.from_counts(COUNTS), experts=('mean', 'cls', 'cls_adjusted'))
    metrics = evaluate(Fixed(), batches, evaluator, fusions=('cls_adjusted',))
    # log(100) lifts the rarest class of the first image above the first, and log(10) lifts nothing over the second's 3
    assert metrics['cls']['per_class'][1:] == [100., 0.]
    assert metrics['cls_adjusted']['per_class'][1:] == [100., 100.]
