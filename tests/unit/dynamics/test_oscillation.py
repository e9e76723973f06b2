"""Alternation, period and rank of an oscillation: exact on known orbits."""

import math

import pytest
import torch

from lowdim.dynamics.oscillation import EdgeDetector, alternation, oscillation_rank, period
from lowdim.errors import DataError, ShapeError


def diagonal_network(target, lr, *, steps=12_000, layers=3, scale=0.01, keep=17):
    """Last states and end-to-end products of a linear network that starts aligned: one scalar map each."""
    s = torch.tensor(target, dtype=torch.float64)
    d = torch.full((layers, len(s)), scale, dtype=torch.float64)
    d[-1] = 0
    states, products = [], []
    for step in range(steps):
        if step >= steps - keep:
            states.append(torch.stack([torch.diag(row) for row in d]).flatten())
            products.append(torch.diag(d.prod(0)))
        error = d.prod(0) - s
        others = torch.stack([torch.cat([d[:layer], d[layer + 1 :]]).prod(0) for layer in range(layers)])
        d = d - lr * error * others
    return torch.stack(states), torch.stack(products)


@pytest.mark.parametrize(
    ("target", "lr", "expected", "rank"),
    [
        ((10, 9.5, 9, 0, 0), 0.0300, 1, 0),
        ((10, 9.5, 9, 0, 0), 0.0312, 2, 1),
        ((10, 9.5, 9, 0, 0), 0.0340, 2, 2),
        ((10, 9.5, 9, 0, 0), 0.0360, 2, 3),
        ((10, 5, 1, 0, 0), 0.0396, 4, None),
        ((10, 5, 1, 0, 0), 0.0410, 0, None),
    ],
)
def test_orbits_of_deep_linear_networks(target, lr, expected, rank):
    states, products = diagonal_network(target, lr, steps=4000 if expected != 1 else 12_000)
    assert period(states) == expected
    if rank is not None:
        assert oscillation_rank(products) == rank
    if expected == 1:
        assert alternation(states).isnan().all()  # at rest there is only rounding noise
    if expected == 2:
        assert torch.allclose(alternation(states), torch.ones(15, dtype=torch.float64))


@pytest.mark.parametrize("p", [2, 4, 8])
def test_period_is_the_smallest(p):
    generator = torch.Generator().manual_seed(p)
    cycle = torch.randn(p, 5, generator=generator, dtype=torch.float64)
    states = cycle.repeat(-(-17 // p), 1)[:17]
    assert period(states) == p
    assert period(states + 0.002 * torch.randn(17, 5, generator=generator)) == p
    assert period(states + 0.5 * torch.randn(17, 5, generator=generator)) == 0
    assert period(states[: 2 * p]) == 0  # too few states to see it come back twice


def test_a_period_that_is_not_looked_for_is_none():
    assert period(torch.arange(3.0).repeat(6)[:17, None]) == 0
    assert period(torch.full((17, 2), math.nan)) == 0


def test_noise_of_float32_at_rest_is_period_one():
    generator = torch.Generator().manual_seed(0)
    states = 1 + 1e-7 * torch.randn(17, 100, generator=generator, dtype=torch.float64)
    assert period(states, still=2e-6) == 1
    assert alternation(states, still=2e-6).isnan().all()
    assert oscillation_rank(states, still=2e-6) == 0
    # Without the gate, independent rounding looks like half an oscillation.
    assert 0.3 < float(alternation(states, still=0).mean()) < 0.7


def test_drift_does_not_count_as_oscillation():
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(9)[:17]
    drift = torch.arange(17, dtype=torch.float64)
    states = torch.stack([signs, 0.01 * drift, torch.zeros(17)], dim=1)
    assert oscillation_rank(states) == 1
    assert float(alternation(states).min()) > 0.99
    states[:, 2] = signs * torch.arange(17) * 0.1  # a second direction, of a growth of its own
    assert oscillation_rank(states) == 2


def test_average_takes_out_independent_noise():
    generator = torch.Generator().manual_seed(0)
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(200)
    walk = (1.5 * torch.randn(400, 20, generator=generator, dtype=torch.float64)).cumsum(0)
    states = torch.cat([3 * signs[:, None], walk], dim=1)
    plain = alternation(states).mean()
    assert plain < 0.6
    averaged = alternation(states, average=64)
    assert averaged.shape == (335,)
    assert float(averaged.mean()) > 0.85
    straight = torch.cat([torch.arange(400.0)[:, None] * 6, walk], dim=1)
    assert float(alternation(straight, average=64).mean()) < -0.85
    assert abs(float(alternation(walk, average=64).mean())) < 0.3


def test_average_of_a_perfect_flip_is_one():
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(10)[:, None]
    assert torch.equal(alternation(signs, average=4), torch.ones(15, dtype=torch.float64))


def test_detector_needs_a_full_window():
    detector = EdgeDetector(window=3, threshold=0.5)
    assert [detector.update(1.0) for _ in range(3)] == [False, False, True]
    assert detector.crossed_at == 3
    assert detector.update(0.6)
    assert not detector.update(math.nan)
    assert [detector.update(1.0) for _ in range(3)] == [False, False, True]
    assert not detector.update(0.5)
    assert detector.crossed_at == 3  # the first time


def test_a_few_flips_among_other_scores_do_not_ring():
    # As kinks of ReLU give them: five flips in a row, and as much that goes another way.
    kinks = ([1.0] * 5 + [-0.5] * 5) * 10
    detector = EdgeDetector()
    assert not any(detector.update(score) for score in kinks[5:])
    without = EdgeDetector(memory=4)
    assert any(without.update(score) for score in kinks[5:])


def test_what_grows_is_heard_before_the_memory_is_full_of_it():
    detector, steady = EdgeDetector(), EdgeDetector()
    for _ in range(24):
        detector.update(-1.0)
        steady.update(-1.0)
    rings = [detector.update(1.0, weight=4.0**t) for t in range(8)]
    assert rings == [False] * 4 + [True] * 4
    assert [steady.update(1.0) for _ in range(24)].index(True) == 22  # 23 of 24: 0.92


@pytest.mark.parametrize("options", [{"memory": 3}, {"memory": True}, {"level": 1.0}, {"level": -1.0}])
def test_detector_refuses_a_mean_of_nothing(options):
    with pytest.raises(DataError, match=next(iter(options))):
        EdgeDetector(**options)


def heavy_ball(h, *, steps=400, momentum=0.9):
    """Train a quadratic of two directions at lr 1: one flat and long, one of curvature h and short."""
    x, v = torch.tensor([1e3, 1e-9], dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    states = []
    for _ in range(steps):
        v = momentum * v + torch.tensor([1e-4, h], dtype=torch.float64) * x
        x = x - v
        states.append(x)
    return torch.stack(states)


def rings_at(states):
    detector = EdgeDetector()
    for score in alternation(states, order=2).tolist():
        detector.update(score)
    return detector.crossed_at


def test_second_differences_see_through_momentum():
    # The threshold is 2 + 2 b = 3.8.
    stable, unstable = heavy_ball(3.7), heavy_ball(3.81)
    assert rings_at(stable) is None
    assert rings_at(unstable) is not None
    assert float(alternation(unstable[:200]).mean()) < -0.9  # steps themselves do not tell yet


def test_independent_steps_have_the_score_one_half():
    steps = torch.randn(500, 4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores = alternation(steps.cumsum(0), order=2)
    assert scores.shape == (497,)
    assert float(scores.mean()) == pytest.approx(0.5, abs=0.01)
    assert rings_at(steps.cumsum(0)) is None


def test_refusals():
    with pytest.raises(ShapeError, match="alternation"):
        alternation(torch.zeros(2, 3))
    with pytest.raises(ShapeError, match="period"):
        period(torch.zeros(5))
    with pytest.raises(DataError, match="average"):
        alternation(torch.zeros(9, 3), average=0)
    with pytest.raises(DataError, match="order=3"):
        alternation(torch.zeros(9, 3), order=3)
    with pytest.raises(DataError, match="window"):
        EdgeDetector(window=0)
    with pytest.raises(DataError, match="threshold"):
        EdgeDetector(threshold=1.0)
