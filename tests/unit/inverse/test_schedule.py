from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from lowdim.errors import DataError
from lowdim.inverse import linear_alphas_cumprod
from lowdim.inverse.schedule import SCHEDULES, alphas_cumprod_of, ddim_times, noise_levels, purification_times


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_times_fall_from_first_to_last_and_never_reach_zero(schedule):
    times = purification_times(20, t0=0.4, t_end=0.0, schedule=schedule)
    assert len(times) == 20
    assert times[0] == 399
    assert times[-1] == (399 if schedule == "constant" else 1)
    assert all(later <= earlier for earlier, later in pairwise(times))


def test_the_linear_schedule_is_that_of_the_paper():
    # T_k = linspace(400, 0, 5), index T_k - 1; a time of 0 becomes the smallest that purifies.
    assert purification_times(5, t0=0.4) == [399, 299, 199, 99, 1]
    assert purification_times(3, t0=0.4, t_end=0.05) == [399, 224, 49]


def test_geometric_times_have_noise_levels_that_fall_by_one_factor():
    abar = linear_alphas_cumprod()
    levels = noise_levels(abar)
    times = purification_times(6, t0=0.5, t_end=0.05, schedule="geometric", alphas_cumprod=abar)
    ratios = [float(levels[b] / levels[a]) for a, b in pairwise(times)]
    assert max(ratios) - min(ratios) < 0.03


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "whole number"),
        ({"steps": 2.0}, "whole number"),
        ({"t0": 0.0}, "fractions"),
        ({"t0": 400}, "t0=0.4"),
        ({"t0": 0.2, "t_end": 0.2}, "t_end < t0"),
        ({"schedule": "quadratic"}, "Use one of"),
        ({"steps": 500}, "more than the 400 times"),
    ],
)
def test_impossible_times_are_refused(options, message):
    with pytest.raises(DataError, match=message):
        purification_times(**{"steps": 20, "t0": 0.4, **options})


def test_ddim_takes_min_of_t_and_steps():
    assert [len(ddim_times(t, 20)) for t in (399, 20, 7, 1)] == [20, 20, 7, 1]
    assert ddim_times(7, 20) == [7, 6, 5, 4, 3, 2, 1]


def test_a_scheduler_is_read_or_refused_by_name():
    table = linear_alphas_cumprod(10)
    assert torch.equal(alphas_cumprod_of(SimpleNamespace(alphas_cumprod=table)), table)

    class FlowMatchScheduler:
        pass

    with pytest.raises(DataError, match=r"FlowMatchScheduler has no alphas_cumprod"):
        alphas_cumprod_of(FlowMatchScheduler())
    with pytest.raises(DataError, match="must fall"):
        alphas_cumprod_of(SimpleNamespace(alphas_cumprod=table.flip(0)))
