"""The products with X that all fits are made of: in memory, in pieces, against the plain formula."""

import numpy as np
import pytest
import torch
from sklearn import config_context

from lowdim.algebra.tensors import khatri_rao
from lowdim.regress.grid import Grid
from lowdim.regress.ridge import ridge, solve_positive
from lowdim.regress.samples import Samples, rows_at_once

N, SHAPE = 23, (3, 4, 5)


@pytest.fixture(name="X")
def samples():
    return np.random.default_rng(0).normal(size=(N, *SHAPE)) + 2


def weights(seed=1):
    s = torch.as_tensor(np.random.default_rng(seed).random(N))
    return s / s.sum()


def mapped(X, folder, order="C"):
    """The same numbers as a memory map."""
    held = np.memmap(folder / f"X{order}.dat", dtype=X.dtype, mode="w+", shape=X.shape, order=order)
    held[:] = X
    held.flush()
    return np.memmap(folder / f"X{order}.dat", dtype=X.dtype, mode="r", shape=X.shape, order=order)


def draw(*shape):
    return torch.as_tensor(np.random.default_rng(2).normal(size=shape))


@pytest.mark.parametrize("how", ["whole", "pieces", "pieces, Fortran order"])
def test_products_are_those_of_the_formula(X, tmp_path, how):
    held = X.reshape(N, -1) if how == "whole" else mapped(X, tmp_path, "F" if "F" in how else "C")
    s = weights()
    with config_context(working_memory=60 * 8 * 5 * 4 / 2**20):
        samples = Samples(held, Grid(SHAPE, 60), s)
    assert len(list(samples.pieces())) == (1 if how == "whole" else 5)
    flat = torch.as_tensor(X.reshape(N, -1))
    centered = flat - s @ flat
    close = lambda a, b: torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)  # noqa: E731
    close(samples.mean, s @ flat)
    W, D, right, left = draw(60, 2), draw(N, 3), draw(2, 5, 3), draw(2, 12, 3)
    close(samples.against(W), centered @ W)
    close(samples.moment(D), centered.mT @ D)
    cube = centered.reshape(N, 12, 5)
    close(samples.contract(right, leading=False), torch.einsum("nlr,crq->cnql", cube, right))
    close(samples.contract(left, leading=True), torch.einsum("nlr,clq->cnqr", cube, left))


def test_without_centering_nothing_is_taken_off(X):
    samples = Samples(X.reshape(N, -1), Grid(SHAPE, 60), weights(), center=False)
    W = draw(60, 1)
    torch.testing.assert_close(samples.against(W), torch.as_tensor(X.reshape(N, -1)) @ W)


def test_single_precision_is_read_as_such_and_other_numbers_become_double(X):
    grid = Grid(SHAPE, 60)
    single = Samples(X.reshape(N, -1).astype(np.float32), grid, weights())
    assert next(single.pieces())[1].dtype == torch.float32
    assert single.against(draw(60, 1)).dtype == torch.float64
    assert next(Samples(np.ones((N, 60), dtype=np.int16), grid, weights()).pieces())[1].dtype == torch.float64


def test_the_users_array_is_not_touched(X):
    flat = X.reshape(N, -1)
    before = flat.copy()
    Samples(flat, Grid(SHAPE, 60), weights()).contract(draw(1, 12, 2), leading=True)
    np.testing.assert_array_equal(flat, before)


def test_pieces_obey_the_working_memory():
    with config_context(working_memory=1):
        assert rows_at_once(2**10) == 32
    assert rows_at_once(10**12) == 1


@pytest.mark.parametrize("q", [4, 40])
def test_ridge_solves_its_normal_equations(q):
    C, s = 3, torch.stack([weights(seed) for seed in range(3)])
    Z, y, alpha = draw(C, N, q) + 1, draw(C, N), torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    y = y - (s * y).sum(1, keepdim=True)
    found = ridge(Z, y, s, alpha)
    for c in range(C):
        z = s[c] @ Z[c]
        A = Z[c] - z
        left = A.mT @ (s[c][:, None] * A) + alpha[c] * torch.eye(q, dtype=torch.float64)
        expected = torch.linalg.solve(left, A.mT @ (s[c] * y[c]))
        torch.testing.assert_close(found.solution[c], expected)
        torch.testing.assert_close(found.offset[c], z @ expected)
        torch.testing.assert_close(found.misfit[c], (s[c] * (y[c] - A @ expected) ** 2).sum())


def test_ridge_without_intercept():
    s, Z, y = weights()[None], draw(1, N, 3) + 1, draw(1, N)
    found = ridge(Z, y, s, torch.zeros(1, dtype=torch.float64), center=False)
    root = s[0].sqrt()
    expected = torch.linalg.lstsq(root[:, None] * Z[0], (root * y[0])[:, None]).solution[:, 0]
    torch.testing.assert_close(found.solution[0], expected)
    assert float(found.offset) == 0


def test_a_singular_gram_matrix_gives_the_shortest_solution():
    A = draw(5, 2) @ draw(2, 3)
    right = A.mT @ draw(5, 1)
    found = solve_positive((A.mT @ A)[None].clone(), right[None], torch.zeros(1, dtype=torch.float64))[0]
    torch.testing.assert_close(found, torch.linalg.pinv(A.mT @ A) @ right, rtol=1e-8, atol=1e-8)


def test_khatri_rao_matches_the_layout_of_contract(X):
    samples = Samples(X.reshape(N, -1), Grid(SHAPE, 60), weights())
    a, b = draw(1, 3, 2), draw(1, 4, 2)
    found = samples.contract(khatri_rao([a, b]), leading=True)[0]
    cube = torch.as_tensor(X) - samples.mean.view(SHAPE)
    torch.testing.assert_close(found, torch.einsum("nabk,ar,br->nrk", cube, a[0], b[0]))
