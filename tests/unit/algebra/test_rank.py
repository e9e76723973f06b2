"""Exact small cases and refusals of the rank rules."""

import math

import pytest
import torch

from lowdim.algebra.rank import (
    budget_rank,
    effective_rank,
    energy_rank,
    hard_threshold,
    numerical_rank,
    participation_ratio,
    stable_rank,
)
from lowdim.errors import BudgetError, DataError, ShapeError

RULES = [
    energy_rank,
    effective_rank,
    stable_rank,
    participation_ratio,
    lambda s: numerical_rank(s, shape=(s.shape[-1], s.shape[-1])),
    lambda s: hard_threshold(s, shape=(s.shape[-1], 2 * s.shape[-1])),
]


@pytest.mark.parametrize("rule", RULES[:5])
def test_flat_and_rank_one_and_zero_spectra(rule):
    flat, one, zero = torch.full((7,), 3.0), torch.tensor([4.0, 0.0, 0.0]), torch.zeros(3)
    assert float(rule(flat)) == pytest.approx(7, rel=1e-6)
    assert float(rule(one)) == pytest.approx(1, rel=1e-6)
    assert float(rule(zero)) == 0


@pytest.mark.parametrize("rule", RULES)
def test_batch_is_a_loop_and_order_and_scale_do_not_matter(rule):
    values = torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    together = rule(values)
    assert together.shape == (3, 4)
    for i in range(3):
        for j in range(4):
            assert torch.equal(rule(values[i, j].flip(-1)), together[i, j])
    if rule is not RULES[-1]:
        torch.testing.assert_close(rule(values * 2.0**200), together)
        torch.testing.assert_close(rule(values * 2.0**-300), together)
    else:
        torch.testing.assert_close(rule(values * 2.0), together * 2)


def test_closed_forms():
    values = torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64)
    assert float(stable_rank(values)) == pytest.approx(1.5)
    assert float(participation_ratio(values)) == pytest.approx(36 / 18)
    entropy = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
    assert float(effective_rank(values)) == pytest.approx(math.exp(entropy))
    # Energies 4/6, 5/6, 1.
    for energy, expected in ((0.5, 1), (4 / 6, 1), (0.7, 2), (5 / 6, 2), (0.9, 3), (1.0, 3)):
        assert int(energy_rank(values, energy=energy)) == expected
    assert int(numerical_rank(torch.tensor([1.0, 1e-5, 1e-8]), shape=(3, 3))) == 2
    assert int(numerical_rank(torch.tensor([1.0, 1e-5, 1e-8]), shape=(3, 3), tol=1e-4)) == 1


def test_a_tiny_tail_is_counted_where_it_is_asked_for():
    # The tail of 1000 values holds 1e-3 of the energy; float32 sums from the top would lose it.
    values = torch.cat([torch.ones(1), torch.full((1000,), 1e-3)])
    assert int(energy_rank(values, energy=0.999)) in (1, 2)
    assert int(energy_rank(values, energy=0.9995)) == pytest.approx(501, abs=2)


def test_numerical_rank_agrees_with_torch():
    generator = torch.Generator().manual_seed(0)
    for rank in range(1, 6):
        A = torch.randn(9, rank, generator=generator) @ torch.randn(rank, 7, generator=generator)
        assert (
            int(numerical_rank(torch.linalg.svdvals(A), shape=(9, 7)))
            == int(torch.linalg.matrix_rank(A))
            == min(rank, 5)
        )


def test_budget_rank():
    assert budget_rank(0.5 * 768 * 768, per_rank=2 * 768) == 192
    assert budget_rank(1000, per_rank=10, fixed=100) == 88
    assert budget_rank(1000, per_rank=10, fixed=100, multiple=1) == 90
    assert budget_rank(75, per_rank=10) == 7
    # Products of floats that fall short of an integer by rounding.
    assert budget_rank(0.1 * 3 * 100, per_rank=10, multiple=1) == 3
    assert budget_rank(0.29 * 100, per_rank=29) == 1
    with pytest.raises(BudgetError, match=r"do not pay for rank 1, which needs 110"):
        budget_rank(109, per_rank=10, fixed=100)
    with pytest.raises(DataError, match="per_rank"):
        budget_rank(10, per_rank=0)


def test_hard_threshold_constants_of_the_paper():
    square = torch.ones(10, dtype=torch.float64)
    assert float(hard_threshold(square, shape=(10, 10), noise=1.0)) == pytest.approx(
        4 / math.sqrt(3) * math.sqrt(10)
    )
    # Table of omega(beta) in the paper: 2.858 at 1, 1.5194 at 0.05, 2.1711 at 0.5.
    assert float(hard_threshold(square, shape=(10, 10))) == pytest.approx(2.858, abs=1e-3)
    for beta, omega in ((0.05, 1.5194), (0.5, 2.1711)):
        short = int(1000 * beta)
        assert float(hard_threshold(torch.ones(short), shape=(short, 1000))) == pytest.approx(omega, abs=2e-3)


@pytest.mark.parametrize("shape", [(120, 120), (60, 200), (200, 60)])
def test_hard_threshold_finds_the_rank_in_noise(shape):
    generator = torch.Generator().manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(n, 4, generator=generator, dtype=torch.float64)).Q for n in shape)
    noise = 0.3
    strength = noise * math.sqrt(max(shape)) * torch.tensor([12.0, 8.0, 5.0, 4.0], dtype=torch.float64)
    A = (U * strength) @ V.mT + noise * torch.randn(shape, generator=generator, dtype=torch.float64)
    values = torch.linalg.svdvals(A)
    for known in (None, noise):
        assert int((values > hard_threshold(values, shape=shape, noise=known)).sum()) == 4


def test_refusals():
    with pytest.raises(ShapeError, match="one number"):
        stable_rank(torch.tensor(1.0))
    with pytest.raises(DataError, match="not negative"):
        stable_rank(torch.tensor([1.0, -1.0]))
    with pytest.raises(DataError, match="finite"):
        effective_rank(torch.tensor([1.0, float("nan")]))
    with pytest.raises(DataError, match="complex"):
        effective_rank(torch.ones(2, dtype=torch.complex64))
    with pytest.raises(DataError, match="energy=0"):
        energy_rank(torch.ones(2), energy=0)
    with pytest.raises(ShapeError, match="expected all 5"):
        hard_threshold(torch.ones(3), shape=(5, 6))
    with pytest.raises(DataError, match="noise=-1"):
        hard_threshold(torch.ones(3), shape=(3, 6), noise=-1.0)
