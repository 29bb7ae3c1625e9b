"""Image sizes of the updates."""
import pytest
import torch
from timm.data.scheduled_sampler import ScheduledBatchSampler

from timm_deitlt.data.multi_scale import SizeSchedule


def drawn(schedule, epoch, updates=400):
    return torch.tensor([schedule.choice(epoch, update) for update in range(updates)]).bincount(
        minlength=len(schedule.sizes)) / updates


def test_probabilities_are_timms():
    settings = dict(schedule_spread=.4, schedule_random_mix=.2)
    timms = ScheduledBatchSampler(
        range(64), [8, 8, 8], [1., 2., 0.], choice_schedule='progressive', schedule_epochs=7, **settings)
    ours = SizeSchedule((8, 16, 24), [1., 2., 0.], 'progressive', epochs=7, spread=.4, random_mix=.2)
    for epoch in range(7):
        assert torch.equal(ours.probabilities(epoch), timms.choice_weights_for_epoch(epoch))


def test_sizes_are_drawn_with_these_probabilities_and_anew_in_each_epoch():
    schedule = SizeSchedule((8, 16, 24), [1., 3., 0.], seed=5)
    assert schedule.drawn == [8, 16]
    first, second = drawn(schedule, 0), drawn(schedule, 1)
    assert first.tolist() != second.tolist()
    for part in (first, second):
        assert part[0] == pytest.approx(.25, abs=.08) and part[2] == 0
    again = SizeSchedule((8, 16, 24), [1., 3., 0.], seed=5)
    assert [schedule.choice(3, u) for u in range(50)] == [again.choice(3, u) for u in range(50)]
    other = SizeSchedule((8, 16, 24), [1., 3., 0.], seed=6)
    assert [schedule.choice(3, u) for u in range(50)] != [other.choice(3, u) for u in range(50)]


def test_progressive_goes_from_the_first_size_to_the_last():
    steps = SizeSchedule((8, 16, 24), schedule='progressive', epochs=10, spread=0., random_mix=0.)
    assert [steps.sizes[steps.choice(epoch, 0)] for epoch in range(10)] == [8] * 3 + [16] * 4 + [24] * 3
    soft = SizeSchedule((8, 24), schedule='progressive', epochs=10)
    assert drawn(soft, 0)[0] > .7 > .3 > drawn(soft, 9)[0]
    assert steps.mean(0, updates=5) == 8 and steps.mean(9, updates=5) == 24
    assert soft.mean(5, updates=50) == pytest.approx((16 * drawn(soft, 5, updates=50)[1] + 8).item())
