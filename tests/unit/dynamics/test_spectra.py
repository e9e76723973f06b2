"""Singular values, ranks, drift: against the plain singular value decomposition."""

import math

import pytest
import torch

from lowdim.dynamics.drift import drift
from lowdim.dynamics.spectra import as_matrix, spectrum
from lowdim.errors import DataError, RankError, ShapeError


def matrix(m, n, *, seed=0, dtype=torch.float32):
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("shape", [(40, 40), (30, 70), (70, 30), (230, 250), (170, 100)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("vectors", [False, True])
def test_values_are_those_of_the_decomposition(shape, dtype, vectors):
    A = matrix(*shape, dtype=dtype)
    found = spectrum(A, count=3, vectors=vectors)
    U, S, Vh = torch.linalg.svd(A.double(), full_matrices=False)
    assert torch.allclose(found.values, S, rtol=1e-9)
    weights = S / S.sum()
    assert found.effective_rank == pytest.approx(float((-(weights * weights.log()).sum()).exp()))
    assert found.stable_rank == pytest.approx(float(S.square().sum() / S[0] ** 2))
    assert found.participation_ratio == pytest.approx(float(S.square().sum() ** 2 / S.pow(4).sum()))
    assert found.energy_rank(0.9) == float((S.square().cumsum(0) < 0.9 * S.square().sum()).sum() + 1)
    assert (found.left is not None) == vectors
    if vectors:
        assert torch.allclose((found.left.mT @ U[:, :3]).abs(), torch.eye(3).double(), atol=1e-9)
        assert torch.allclose((found.right.mT @ Vh[:3].mT).abs(), torch.eye(3).double(), atol=1e-9)


def test_low_rank_in_float32_is_seen():
    # The Gram matrix in float32 would invent singular values of 2e-4 of the largest, 200 of them.
    A = matrix(200, 2) @ matrix(2, 300, seed=1)
    assert spectrum(A).effective_rank < 2.001


def test_large_matrices_give_the_stable_rank_only():
    A = matrix(60, 80)
    exact, found = spectrum(A), spectrum(A, limit=50, count=4)
    assert not found.complete
    assert math.isnan(found.effective_rank)
    assert math.isnan(found.participation_ratio)
    assert math.isnan(found.energy_rank(0.99))
    assert found.energy_rank(0.01) == 1
    assert found.stable_rank == pytest.approx(exact.stable_rank, rel=1e-3)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scales_do_not_overflow(scale):
    A = matrix(20, 30)
    assert spectrum(scale * A).stable_rank == pytest.approx(spectrum(A).stable_rank, rel=1e-5)


def test_zero_matrix():
    for limit in (10, 2):
        found = spectrum(torch.zeros(4, 6), limit=limit)
        assert (found.stable_rank, found.energy) == (0.0, 0.0)
    assert math.isnan(drift(torch.zeros(4, 4), torch.eye(4)).angle_deg)


def test_what_is_a_matrix():
    assert as_matrix(torch.zeros(5)) is None
    assert as_matrix(torch.zeros(1, 5)) is None
    assert as_matrix(torch.zeros(0, 5)) is None
    assert as_matrix(torch.zeros(8, 3, 2)).shape == (8, 6)


@pytest.mark.parametrize("limit", [1000, 10])
def test_drift_is_the_angle_of_a_known_rotation(limit):
    generator = torch.Generator().manual_seed(0)
    U = torch.linalg.qr(torch.randn(30, 30, generator=generator, dtype=torch.float64))[0]
    V = torch.linalg.qr(torch.randn(40, 40, generator=generator, dtype=torch.float64))[0]
    values = torch.tensor([5.0, 4.0, 3.0, 1e-3, 1e-4], dtype=torch.float64)
    angle = math.radians(20)
    turned = U.clone()
    turned[:, 0] = math.cos(angle) * U[:, 0] + math.sin(angle) * U[:, 7]
    A = (U[:, :5] * values) @ V[:, :5].mT
    B = (turned[:, :5] * values) @ V[:, :5].mT
    found = drift(A, B, rank=3, limit=limit)
    assert found.angle_deg == pytest.approx(20, abs=0.02)
    # One of three left directions has turned, no right one.
    assert found.share == pytest.approx(math.sin(angle) ** 2 / 6, rel=1e-2)
    assert drift(A, -2 * A, rank=3, limit=limit).angle_deg == pytest.approx(0, abs=0.02)


def test_refusals():
    with pytest.raises(ShapeError, match="as_matrix"):
        spectrum(torch.zeros(2, 2, 2))
    with pytest.raises(RankError, match="count=5"):
        spectrum(torch.eye(4), count=5)
    with pytest.raises(DataError, match="NaN"):
        spectrum(torch.full((3, 3), math.nan))
    with pytest.raises(ShapeError, match="two steps"):
        drift(torch.eye(3), torch.eye(4))
