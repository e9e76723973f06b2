"""Exact small cases and refusals of the spectral estimators."""

import numpy as np
import pytest
import torch

from lowdim.algebra.lowrank import LowRank
from lowdim.algebra.spectrum import eigenpairs, estimate_trace, truncated_svd
from lowdim.errors import DataError, Diverged, RankError, ShapeError


def symmetric(values, *, seed=0, dtype=torch.float64):
    values = torch.as_tensor(values, dtype=torch.float64)
    n = len(values)
    Q = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=dtype)).Q
    return (Q * values) @ Q.mH


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize(
    ("which", "expected"),
    [("largest", [7.0, 5.0]), ("smallest", [-9.0, -1.0]), ("magnitude", [-9.0, 7.0])],
)
def test_each_end_of_the_spectrum(which, expected, dtype):
    A = symmetric([-9, -1, 0, 0.5, 1, 2, 3, 5, 7], dtype=dtype)
    found = eigenpairs(A, count=2, which=which, seed=0, tol=1e-12)
    torch.testing.assert_close(found.values, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(found.vectors.mH @ found.vectors, torch.eye(2, dtype=dtype))
    true = torch.linalg.vector_norm(A @ found.vectors - found.vectors * found.values, dim=0)
    torch.testing.assert_close(found.residuals, true, atol=1e-12, rtol=0)
    assert float(true.max()) < 1e-10


def test_residual_estimates_are_the_true_residuals():
    A = symmetric(torch.linspace(0, 1, 60))
    found = eigenpairs(A, count=2, seed=0, steps=5, tol=1e-12)
    assert found.history.reason == "steps"
    true = torch.linalg.vector_norm(A @ found.vectors - found.vectors * found.values, dim=0)
    torch.testing.assert_close(found.residuals, true, rtol=1e-8, atol=0)
    assert found.products == 10
    assert len(found.ritz) == 10


def test_multiple_and_zero_eigenvalues():
    identity = eigenpairs(torch.eye(6), count=4, seed=0)
    torch.testing.assert_close(identity.values, torch.ones(4))
    zero = eigenpairs(torch.zeros(5, 5), count=3, seed=0)
    assert torch.equal(zero.values, torch.zeros(3))
    torch.testing.assert_close(zero.vectors.mT @ zero.vectors, torch.eye(3))
    A = symmetric([5, 5, 5, 1, 1, 1, 0, 0])
    found = eigenpairs(
        A, count=5, seed=0, start=torch.randn(8, 2, generator=torch.Generator().manual_seed(1))
    )
    # A block of two sees two of three equal ones, but the search goes on outside the invariant subspace.
    torch.testing.assert_close(found.values[:2], torch.full((2,), 5.0, dtype=torch.float64))
    everything = eigenpairs(A, count=8, seed=0)
    torch.testing.assert_close(everything.values, torch.linalg.eigvalsh(A).flip(-1), atol=1e-13, rtol=0)
    assert float(eigenpairs(torch.tensor([[3.0]])).values) == 3.0


def test_warm_start_saves_products():
    values = torch.linspace(0, 1, 400, dtype=torch.float64) ** 8
    A = symmetric(values)
    cold = eigenpairs(A, seed=0)
    nearby = A + 1e-5 * symmetric(torch.ones(400), seed=5) * torch.linspace(1, 2, 400).double().diag()
    warm = eigenpairs(nearby, start=cold.vectors, perturb=1e-3, seed=1)
    assert warm.products < 0.8 * eigenpairs(nearby, seed=1).products
    torch.testing.assert_close(warm.values[0], torch.linalg.eigvalsh(nearby)[-1], rtol=1e-7, atol=0)


def test_warm_start_at_another_eigenvector_is_left():
    A = torch.diag(torch.tensor([1.0, 2.0, 3.0, 10.0], dtype=torch.float64))
    stuck = torch.eye(4, dtype=torch.float64)[0]
    assert float(eigenpairs(A, start=stuck, seed=0).values) == pytest.approx(10.0)
    assert float(eigenpairs(A, start=stuck, perturb=0.0).values) == pytest.approx(1.0)


def test_increment_rule_is_cheaper():
    A = symmetric(torch.linspace(0, 1, 300) ** 4)
    by_residual, by_increment = (
        eigenpairs(A, seed=0, tol=1e-4, stop=stop) for stop in ("residual", "increment")
    )
    assert by_increment.products < by_residual.products
    assert float(by_increment.values) == pytest.approx(1.0, rel=5e-3)


def test_maps_that_track_gradients_of_their_own():
    weight = torch.arange(1.0, 6.0, dtype=torch.float64)

    def hessian(x):
        point = torch.ones(5, dtype=torch.float64, requires_grad=True)
        gradient = torch.autograd.grad((weight * point**2).sum() / 2, point, create_graph=True)[0]
        return torch.stack([torch.autograd.grad(gradient, point, v, retain_graph=True)[0] for v in x])

    found = eigenpairs(hessian, size=5, count=2, seed=0, dtype=torch.float64)
    torch.testing.assert_close(found.values, torch.tensor([5.0, 4.0], dtype=torch.float64))
    trace = estimate_trace(lambda x: x * weight.requires_grad_(), size=5, dtype=torch.float64)
    assert trace.value == pytest.approx(15.0)


def test_singular_triplets_of_operators_and_matrices():
    operator = LowRank(30, 20, rank=4, dtype=torch.float64)
    dense = operator.dense().detach()
    singular = torch.linalg.svdvals(dense)
    for form in (operator, dense, dense.numpy()):
        found = truncated_svd(form, rank=4, seed=0)
        torch.testing.assert_close(found.S, singular[:4])
        torch.testing.assert_close((found.U * found.S) @ found.Vh, dense)
        assert not found.S.requires_grad
        assert float(found.residuals.max()) < 1e-12
    by_function = truncated_svd(
        lambda x: x @ dense.mT, adjoint=lambda y: y @ dense, size=30, dtype=torch.float64, rank=2
    )
    torch.testing.assert_close(by_function.S, singular[:2])


def test_small_singular_values_are_not_those_of_a_square():
    singular = torch.tensor([1.0, 1e-2, 1e-4, 1e-6, 1e-7], dtype=torch.float64)
    Q, R = (
        torch.linalg.qr(torch.randn(n, 5, generator=torch.Generator().manual_seed(n), dtype=torch.float64)).Q
        for n in (8, 9)
    )
    found = truncated_svd((Q * singular) @ R.mT, rank=5, seed=0, tol=1e-14)
    torch.testing.assert_close(found.S, singular, rtol=1e-3, atol=1e-16)


def test_seed_decides():
    A = symmetric(torch.linspace(0, 1, 50))
    for estimate in (
        lambda seed: eigenpairs(A, seed=seed).values.item(),
        lambda seed: truncated_svd(A, seed=seed).S.item(),
        lambda seed: estimate_trace(A, products=20, seed=seed).value,
    ):
        assert estimate(3) == estimate(3)
        assert estimate(3) == estimate(torch.Generator().manual_seed(3))
        assert estimate(3) != estimate(4)


@pytest.mark.parametrize("method", ["hutch++", "hutchinson"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_trace_is_unbiased_and_its_error_bar_is_honest(method, dtype):
    A = symmetric(1 / torch.arange(1.0, 61.0) + 0.1, dtype=dtype)
    true = float(A.diagonal().sum().real)
    estimates = [estimate_trace(A, method=method, products=30, seed=seed) for seed in range(200)]
    deviations = np.array([estimate.value - true for estimate in estimates])
    errors = np.array([estimate.standard_error for estimate in estimates])
    assert abs(deviations.mean()) < 4 * deviations.std() / np.sqrt(len(deviations))
    # The quoted error is the actual spread.
    assert np.sqrt((errors**2).mean()) == pytest.approx(deviations.std(), rel=0.2)
    assert {estimate.products for estimate in estimates} == {30}


def test_hutch_plus_plus_beats_hutchinson_on_decaying_spectra():
    A = symmetric(0.7 ** torch.arange(100.0))
    true = float(A.trace())
    spread = {
        method: np.std(
            [estimate_trace(A, method=method, products=30, seed=s).value - true for s in range(30)]
        )
        for method in ("hutch++", "hutchinson")
    }
    assert spread["hutch++"] < spread["hutchinson"] / 10


def test_small_trace_is_exact():
    A = symmetric([3.0, -1.0, 2.0])
    estimate = estimate_trace(A, products=10)
    assert estimate.value == pytest.approx(4.0, abs=1e-14)
    assert (estimate.standard_error, estimate.products) == (0.0, 3)


def test_refusals():
    A = symmetric([1.0, 2.0, 3.0])
    with pytest.raises(ShapeError, match=r"2 x 3, expected a square.*truncated_svd"):
        eigenpairs(A[:2])
    with pytest.raises(RankError, match="count=4 of 3"):
        eigenpairs(A, count=4)
    with pytest.raises(RankError, match="rank=4 of 3"):
        truncated_svd(A, rank=4)
    with pytest.raises(DataError, match="size=n"):
        eigenpairs(lambda x: x)
    with pytest.raises(DataError, match="which='top'"):
        eigenpairs(A, which="top")
    with pytest.raises(DataError, match="coarse"):
        eigenpairs(A.bfloat16())
    with pytest.raises(DataError, match="start is zero"):
        eigenpairs(A, start=torch.zeros(3))
    with pytest.raises(ShapeError, match=r"expected \(3,\) or \(3, block\)"):
        eigenpairs(A, start=torch.zeros(4))
    with pytest.raises(DataError, match="Raise steps"):
        eigenpairs(A, count=3, start=torch.ones(3), steps=2)
    with pytest.raises(DataError, match="steps=0"):
        eigenpairs(A, steps=0)
    with pytest.raises(DataError, match="adjoint=function"):
        truncated_svd(lambda x: x, size=3)
    with pytest.raises(Diverged, match="not finite"):
        eigenpairs(A * float("nan"))
    with pytest.raises(Diverged, match="not finite"):
        estimate_trace(A * float("nan"))
    with pytest.raises(DataError, match="method='exact'"):
        estimate_trace(A, method="exact")
    with pytest.raises(DataError, match="error bar"):
        estimate_trace(torch.eye(50), products=5)
    with pytest.raises(ShapeError, match="turned vectors of length 3"):
        eigenpairs(lambda x: x[:, :2], size=3)
    with pytest.raises(ShapeError, match="only one"):
        eigenpairs(torch.stack([A, A]))
