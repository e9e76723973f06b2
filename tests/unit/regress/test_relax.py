"""Block relaxation: exact blocks, objectives that fall, forms that agree, batches that are loops."""

import numpy as np
import pytest
import torch
from drawn import error, regression

from lowdim.regress.grid import Grid
from lowdim.regress.samples import Samples
from lowdim.regress.squared import fit_squared

SHAPES = [(6, 5), (4, 3, 5), (2, 3, 2, 4), (2, 3, 2, 2, 2)]


def fit(X, y, rank, *, alpha=1e-2, weights=None, center=True, padded=False, **options):
    """One fit with equal weights, or several if alpha or rank is a list."""
    N, shape = len(X), X.shape[1:]
    alphas, ranks = np.atleast_1d(alpha), rank if isinstance(rank, list) else [rank]
    C = max(len(alphas), len(ranks))
    s = torch.full((N,), 1 / N, dtype=torch.float64) if weights is None else torch.as_tensor(weights)
    s = s.expand(C, -1) if s.ndim == 1 else s
    samples = Samples(X.reshape(N, -1), Grid(shape, int(np.prod(shape))), s.mean(0), center=center)
    samples.streamed = padded  # then all ranks share a batch
    targets = torch.as_tensor(y).expand(C, -1) if y.ndim == 1 else torch.as_tensor(y.T)
    penalties = torch.as_tensor(np.broadcast_to(alphas, C).copy())
    ranks = ranks * C if len(ranks) == 1 else ranks
    options.setdefault("random", np.random.RandomState(0))
    return fit_squared(samples, s, targets, penalties, ranks, center=center, **options)


def penalty(found):
    W = found.coefficients()
    if found.core is None and len(found.factors) > 2:
        return float(torch.stack([factor.square().sum(0) for factor in found.factors]).prod(0).sum())
    return float(W.square().sum())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", ["cp", "tucker"])
def test_the_objective_is_what_it_says_and_falls(shape, form):
    X, y, W = regression(shape, 2 if form == "cp" else (2,) * len(shape))
    (found,) = fit(X, y, (2,) if form == "cp" else (2,) * len(shape))
    residual = y - float(found.intercept) - X.reshape(len(X), -1) @ found.coefficients().numpy().ravel()
    assert found.objective == pytest.approx(np.mean(residual**2) + 1e-2 * penalty(found), rel=1e-10)
    assert residual.mean() == pytest.approx(0, abs=1e-10)
    assert (np.diff(found.history) <= 1e-12 * found.history[0]).all()
    assert found.converged
    assert found.steps == len(found.history)
    assert error(found.coefficients().numpy(), W) < 0.15


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", ["cp", "tucker"])
def test_no_factor_can_be_moved_to_a_lower_objective(shape, form):
    X, y, _ = regression(shape, 2 if form == "cp" else (2,) * len(shape), noise=0.5)
    (found,) = fit(X, y, (2,) if form == "cp" else (2,) * len(shape), tol=1e-14, max_iter=3000)
    factors = [factor.clone().requires_grad_() for factor in found.factors]
    core = None if found.core is None else found.core.clone().requires_grad_()
    moved = type(found)(factors, core, found.intercept, 0.0, 0, True, [])
    W = moved.coefficients()
    rows = torch.as_tensor(X.reshape(len(X), -1))
    rows = rows - rows.mean(0)
    misfit = (torch.as_tensor(y - y.mean()) - rows @ W.flatten()).square().mean()
    pen = W.square().sum()
    if core is None and len(shape) > 2:
        pen = torch.stack([factor.square().sum(0) for factor in factors]).prod(0).sum()
    (misfit + 1e-2 * pen).backward()
    scale = float(W.detach().norm())
    for part in [*factors, *([] if core is None else [core])]:
        assert float(part.grad.norm()) < 2e-5 * scale * max(1, float(part.detach().norm()))


def test_cp_is_tucker_for_matrices():
    X, y, _ = regression()
    cp, tucker = (fit(X, y, rank, tol=1e-12, max_iter=500)[0] for rank in ((2,), (2, 2)))
    assert cp.objective == pytest.approx(tucker.objective, rel=1e-8)
    torch.testing.assert_close(cp.coefficients(), tucker.coefficients(), rtol=1e-4, atol=1e-5)


def test_full_rank_is_ridge_regression():
    X, y, _ = regression((5, 4), N=60)
    found = fit(X, y, (4,), alpha=0.1, tol=1e-13, max_iter=2000)[0]
    flat = X.reshape(60, -1) - X.reshape(60, -1).mean(0)
    v = np.linalg.solve(flat.T @ flat / 60 + 0.1 * np.eye(20), flat.T @ (y - y.mean()) / 60)
    best = np.mean((y - y.mean() - flat @ v) ** 2) + 0.1 * v @ v
    assert best * (1 - 1e-12) <= found.objective <= best * (1 + 1e-4)


def test_vectors_are_solved_in_either_number_of_unknowns():
    for p in (5, 60):
        X, y, _ = regression((p,), 1, N=30)
        found = fit(X, y, ())[0]
        flat = X - X.mean(0)
        v = np.linalg.solve(flat.T @ flat / 30 + 1e-2 * np.eye(p), flat.T @ (y - y.mean()) / 30)
        np.testing.assert_allclose(found.coefficients().numpy().ravel(), v, rtol=1e-9, atol=1e-11)
        assert float(found.intercept) == pytest.approx(y.mean() - X.mean(0) @ v)


@pytest.mark.parametrize("shape", SHAPES[:3])
@pytest.mark.parametrize("form", ["cp", "tucker"])
@pytest.mark.parametrize("padded", [False, True])
def test_a_batch_of_ranks_penalties_and_weights_is_a_loop(shape, form, padded):
    X, y, _ = regression(shape, 2, N=80)
    d = len(shape)
    each = [(1,), (2,), (3,)] if form == "cp" else [(1,) * d, (2,) * d, (2, 2, *[1] * (d - 2))]
    s = np.random.default_rng(3).random((3, 80)) * (np.arange(80) % 4 != np.arange(3)[:, None])
    s /= s.sum(1, keepdims=True)
    alphas = [1e-3, 1e-1, 1e-2]
    sweeps = {"tol": 0.0, "max_iter": 12}
    together = fit(X, y, each, alpha=alphas, weights=s, padded=padded, **sweeps)
    for rank, alpha, weights, found in zip(each, alphas, s, together, strict=True):
        (alone,) = fit(X, y, rank, alpha=alpha, weights=weights, **sweeps)
        assert [f.shape for f in found.factors] == [f.shape for f in alone.factors]
        torch.testing.assert_close(found.coefficients(), alone.coefficients(), rtol=1e-7, atol=1e-8)
        torch.testing.assert_close(found.intercept, alone.intercept, rtol=1e-7, atol=1e-8)


def test_more_starts_are_never_worse_and_the_seed_decides():
    X, y, _ = regression((4, 4, 4), 3, N=50, noise=0.3)
    one = fit(X, y, (3,))[0]
    more, same = (fit(X, y, (3,), n_init=6, random=np.random.RandomState(1))[0] for _ in range(2))
    assert more.objective <= one.objective * (1 + 1e-12)
    torch.testing.assert_close(more.coefficients(), same.coefficients(), rtol=0, atol=0)


def test_a_rank_beyond_a_mode_is_possible():
    X, y, _ = regression((2, 6, 5), 3, N=300)
    found = fit(X, y, (3,), tol=1e-8, max_iter=500)[0]
    assert found.factors[0].shape == (2, 3)
    assert found.objective < 0.05 * y.var()


def test_constant_targets_have_no_coefficients():
    X, _, _ = regression()
    for rank in ((2,), (2, 2)):
        found = fit(X, np.full(len(X), 3.0), rank)[0]
        assert float(found.coefficients().abs().max()) < 1e-12
        assert float(found.intercept) == pytest.approx(3)
        assert found.converged


def test_little_working_memory_changes_nothing():
    from sklearn import config_context

    X, y, _ = regression(N=60)
    ranks, alphas = [(1,), (2,), (1,), (2,)], [1e-3, 1e-3, 1e-1, 1e-1]
    plain = fit(X, y, ranks, alpha=alphas)
    with config_context(working_memory=0.01):
        small = fit(X, y, ranks, alpha=alphas)
    for a, b in zip(plain, small, strict=True):
        torch.testing.assert_close(a.coefficients(), b.coefficients(), rtol=1e-8, atol=1e-9)
