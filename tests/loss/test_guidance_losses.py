"""Losses on feature maps against slow plain-Python recomputations."""
import math

import pytest
import torch

from timm_deitlt.loss.guidance import dense_distillation, locality_guidance


def noise(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow_enlarged(rows, height, width):
    """A map as lists, bilinear between the centres of its pixels, as at the border beyond the outermost centres."""
    def places(length, size):
        for index in range(size):
            at = max((index + .5) * length / size - .5, 0)
            first = min(int(at), length - 1)
            yield first, min(first + 1, length - 1), at - first

    return [[
        (1 - b) * ((1 - a) * rows[y][x] + a * rows[y][right]) + b * ((1 - a) * rows[below][x] + a * rows[below][right])
        for x, right, a in places(len(rows[0]), width)] for y, below, b in places(len(rows), height)]


def slow_guidance(student, teacher):
    total = 0.
    for ours, theirs in zip(student, teacher, strict=True):
        height, width = (max(a, b) for a, b in zip(ours.shape[2:], theirs.shape[2:], strict=True))
        squares = [
            (a - b) ** 2
            for image in range(len(ours)) for channel in range(ours.shape[1])
            for row_a, row_b in zip(
                slow_enlarged(ours[image, channel].tolist(), height, width),
                slow_enlarged(theirs[image, channel].tolist(), height, width), strict=True)
            for a, b in zip(row_a, row_b, strict=True)]
        total += sum(squares) / len(squares)
    return total


def test_guidance_equals_a_slow_recomputation_whichever_map_is_larger():
    student = [noise(0, 2, 3, 3, 3), noise(1, 2, 4, 3, 3), noise(2, 2, 2, 5, 4)]
    teacher = [noise(3, 2, 3, 8, 8), noise(4, 2, 4, 3, 3), noise(5, 2, 2, 2, 6)]
    assert locality_guidance(student, teacher).item() == pytest.approx(slow_guidance(student, teacher), rel=1e-5)


def test_gradient_of_guidance_reaches_the_student_alone():
    ours, theirs = noise(0, 2, 3, 3, 3).requires_grad_(), noise(1, 2, 3, 6, 6).requires_grad_()
    locality_guidance([ours], [theirs]).backward()
    assert ours.grad.any() and theirs.grad is None
    assert locality_guidance([ours.half()], [theirs.half()]).dtype == torch.float32


@pytest.mark.parametrize('teacher', [[], [noise(0, 2, 4, 3, 3)], [noise(0, 1, 3, 3, 3)]])
def test_maps_that_do_not_pair_are_refused(teacher):
    with pytest.raises(ValueError, match='in pairs'):
        locality_guidance([noise(0, 2, 3, 3, 3)], teacher)


def slow_dense(patches, local, whole, share, weight=None):
    losses, mass = 0., 0.
    for image in range(len(patches)):
        for y in range(patches.shape[2]):
            for x in range(patches.shape[3]):
                said = [
                    share * a + (1 - share) * b
                    for a, b in zip(local[image, :, y, x].tolist(), whole[image].tolist(), strict=True)]
                label = said.index(max(said))
                row = patches[image, :, y, x].tolist()
                factor = 1. if weight is None else weight[label].item()
                losses -= factor * (row[label] - math.log(sum(map(math.exp, row))))
                mass += factor
    return losses / mass


@pytest.mark.parametrize('share', [1., .4, 0.])
@pytest.mark.parametrize('weight', [None, torch.tensor([.1, .5, 1., 1.4, 2.])])
def test_dense_distillation_equals_a_slow_recomputation(share, weight):
    patches, local, whole = noise(0, 2, 5, 3, 3), noise(1, 2, 5, 3, 3), noise(2, 2, 5)
    ours = dense_distillation(patches, local, whole, share, weight)
    assert ours.item() == pytest.approx(slow_dense(patches, local, whole, share, weight), rel=1e-5)


def test_logits_on_the_finer_grid_are_averaged_to_the_coarser_one():
    fine, coarse, whole = noise(0, 2, 5, 6, 6), noise(1, 2, 5, 3, 3), noise(2, 2, 5)
    means = torch.stack([
        torch.stack([fine[:, :, 2 * y:2 * y + 2, 2 * x:2 * x + 2].mean(dim=(2, 3)) for x in range(3)], dim=-1)
        for y in range(3)], dim=2)
    ours = dense_distillation(fine, coarse, whole, .5)
    assert ours.item() == pytest.approx(slow_dense(means, coarse, whole, .5), rel=1e-5)
    ours = dense_distillation(coarse, fine, whole, .5)
    assert ours.item() == pytest.approx(slow_dense(coarse, means, whole, .5), rel=1e-5)


def test_dense_distillation_of_other_classes_is_refused():
    with pytest.raises(ValueError, match='same images and classes'):
        dense_distillation(noise(0, 2, 5, 3, 3), noise(1, 2, 4, 3, 3), noise(2, 2, 4), .5)
