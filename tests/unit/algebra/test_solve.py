"""Exact small cases and refusals of cg and cgls."""

import numpy as np
import pytest
import torch

from lowdim.algebra.lowrank import LowRank
from lowdim.algebra.solve import cg, cgls
from lowdim.errors import DataError, Diverged, ShapeError


def positive(n, *, batch=(), seed=0, dtype=torch.float64):
    root = torch.randn(*batch, n, n, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return root @ root.mH / n + torch.eye(n, dtype=dtype)


def normal(*shape, seed=1, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Protocol:
    """The small protocol: shape and @ with columns."""

    def __init__(self, matrix):
        self.matrix, self.shape = matrix, matrix.shape

    def __matmul__(self, x):
        return self.matrix @ x

    def adjoint(self):
        return Protocol(self.matrix.mH)


def test_diagonal_system_takes_as_many_steps_as_there_are_eigenvalues():
    diagonal = torch.tensor([1.0, 1.0, 4.0, 4.0, 4.0], dtype=torch.float64)
    solution = cg(lambda x: diagonal * x, torch.ones(5, dtype=torch.float64), tol=1e-12)
    assert int(solution.steps) == 2
    torch.testing.assert_close(solution.x, 1 / diagonal)
    assert solution.history.reason == "tolerance"
    assert solution.history.steps == 2
    # The objective falls to -b^H A^-1 b / 2.
    assert solution.history.objective[-1] == pytest.approx(-float((1 / diagonal).sum()) / 2)


def test_every_form_of_a_map_gives_the_same_solution():
    A, b = positive(6), normal(3, 6)
    expected = torch.linalg.solve(A, b.mT).mT
    for form in (A, A.numpy(), Protocol(A), lambda x: x @ A.mT, A.expand(3, 6, 6)):
        torch.testing.assert_close(cg(form, b, tol=1e-12).x, expected)
    M, c = normal(8, 5), normal(3, 8)
    expected = torch.linalg.lstsq(M, c.mT).solution.mT
    for form in (M, M.numpy(), Protocol(M), M.expand(3, 8, 5)):
        torch.testing.assert_close(cgls(form, c, tol=1e-12).x, expected)
    torch.testing.assert_close(cgls(lambda x: x @ M.mT, c, adjoint=lambda y: y @ M, tol=1e-12).x, expected)
    operator = LowRank(5, 8, rank=5, dtype=torch.float64)
    found = cgls(operator, c, tol=1e-12).x.detach()
    torch.testing.assert_close(found, torch.linalg.lstsq(operator.dense().detach(), c.mT).solution.mT)


def test_zero_right_hand_side_and_exact_start_take_no_step():
    A, b = positive(4), normal(4)
    zero = cg(A, torch.zeros(2, 4, dtype=torch.float64))
    assert not zero.x.any()
    assert zero.steps.tolist() == [0, 0]
    assert zero.converged.all()
    assert zero.history.steps == 0
    exact = cg(A, b, start=torch.linalg.solve(A, b), tol=1e-10)
    assert int(exact.steps) == 0
    assert int(cgls(A, b, start=torch.linalg.solve(A, b), tol=1e-10).steps) == 0
    outside = cgls(torch.tensor([[1.0], [0.0]]), torch.tensor([0.0, 2.0]))
    assert float(outside.x) == 0
    assert float(outside.misfit) == 2


def test_a_good_start_saves_steps():
    A, b = positive(40), normal(40)
    solution = cg(A, b, tol=1e-8)
    again = cg(A, b, tol=1e-8, start=solution.x + 1e-6 * normal(40, seed=3))
    assert int(again.steps) < int(solution.steps) / 2


def test_preconditioner_saves_steps():
    scale = torch.logspace(0, 5, 50, dtype=torch.float64)
    A = scale.diag() + 0.1 * positive(50)
    b = normal(2, 50)
    plain, faster = (cg(A, b, tol=1e-10, preconditioner=M) for M in (None, lambda r: r / scale))
    assert int(faster.steps.max()) < int(plain.steps.min()) / 3
    torch.testing.assert_close(faster.x, torch.linalg.solve(A, b.mT).mT, rtol=1e-6, atol=1e-9)
    M = normal(60, 50) * scale.sqrt()
    c = normal(2, 60)
    inverse = torch.linalg.inv(M.mT @ M)
    assert cgls(M, c, preconditioner=inverse, tol=1e-8).steps.max() <= 2
    torch.testing.assert_close(
        cgls(M, c, preconditioner=inverse, tol=1e-8).x, torch.linalg.lstsq(M, c.mT).solution.mT
    )


def test_rank_deficient_least_squares_gets_the_smallest_solution():
    M = normal(8, 3) @ normal(3, 6, seed=2)
    b = normal(8)
    torch.testing.assert_close(cgls(M, b, tol=1e-12).x, torch.linalg.pinv(M, rtol=1e-10) @ b)


def test_damping_is_the_ridge_and_may_differ_by_item():
    M, b = normal(7, 5), normal(2, 7)
    weight = torch.tensor([0.0, 3.0], dtype=torch.float64)
    solution = cgls(M, b, damping=weight, tol=1e-12)
    for i in range(2):
        expected = torch.linalg.solve(M.mT @ M + weight[i] * torch.eye(5), M.mT @ b[i])
        torch.testing.assert_close(solution.x[i], expected)
    ridge = (M @ solution.x[1] - b[1]).square().sum() + 3 * solution.x[1].square().sum()
    plain = (M @ solution.x[0] - b[0]).square().sum()
    assert solution.history.objective[-1] == pytest.approx(float(ridge + plain))


@pytest.mark.parametrize("solver", [cg, cgls])
def test_discrepancy_stops_each_item_at_its_noise(solver):
    A, b = positive(30), normal(3, 30)
    target = torch.tensor([0.5, 0.05, 1e-9], dtype=torch.float64) * torch.linalg.vector_norm(b, dim=-1)
    solution = solver(A, b, discrepancy=target, tol=1e-14, steps=200)
    assert solution.history.reason == "discrepancy"
    assert (solution.misfit <= target * (1 + 1e-6)).all()
    assert solution.steps[0] < solution.steps[1] < solution.steps[2]
    for i in range(3):
        # One step fewer does not meet it: the item stops at the first chance.
        before = solver(A, b[i], discrepancy=0.0, tol=0.0, steps=int(solution.steps[i]) - 1)
        assert float(before.misfit) > float(target[i])


def test_running_out_of_steps_is_told():
    solution = cg(positive(50), normal(2, 50), steps=3, tol=1e-12)
    assert solution.history.reason == "steps"
    assert solution.steps.tolist() == [3, 3]
    assert not solution.converged.any()
    assert (solution.residual > 1e-12).all()
    assert cg(positive(5), normal(5), steps=0).history.reason == "steps"


def test_items_of_any_shape():
    kernel = torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64)

    def blur(x):
        return torch.nn.functional.conv1d(
            x.flatten(0, 1).flatten(0, 1)[:, None], kernel[None, None], padding=1
        ).reshape(x.shape)

    image = normal(2, 3, 4, 8)
    solution = cg(lambda x: blur(blur(x)) + 0.1 * x, image, batch_axes=1, tol=1e-12)
    assert solution.steps.shape == (2,)
    torch.testing.assert_close(blur(blur(solution.x)) + 0.1 * solution.x, image)
    # The data may have other axes than the unknown: every second pixel is seen.
    seen = image[..., ::2]
    lift = lambda y: torch.stack([y, torch.zeros_like(y)], dim=-1).flatten(-2)  # noqa: E731
    solution = cgls(lambda x: x[..., ::2], seen, adjoint=lift, batch_axes=1)
    torch.testing.assert_close(solution.x, lift(seen))


def test_reported_residual_is_the_true_one():
    A = torch.logspace(0, 7, 30, dtype=torch.float32).diag()
    b = torch.ones(30)
    solution = cg(A, b, tol=1e-7, steps=300)
    assert float(solution.residual) == pytest.approx(float((b - A @ solution.x).norm() / b.norm()), rel=1e-5)


@pytest.mark.parametrize("solver", [cg, cgls])
def test_looking_less_often_changes_nothing(solver, monkeypatch):
    A, b = positive(20, batch=(4,)), normal(4, 20) * torch.tensor([[0.0], [1.0], [1.0], [1.0]]).double()
    A[1] = torch.eye(20)
    every = solver(A, b, tol=1e-6)
    # As on an accelerator: converged items wait for the next look.
    monkeypatch.setattr("lowdim.algebra.solve._LOOK_EVERY", {"cpu": 7})
    seldom = solver(A, b, tol=1e-6)
    assert len(set(every.steps.tolist())) > 2
    assert torch.equal(every.x, seldom.x)
    assert torch.equal(every.steps, seldom.steps)
    assert torch.equal(every.residual, seldom.residual)
    assert every.history.objective == seldom.history.objective
    assert seldom.converged.all()


def test_gradients_flow_through_the_steps():
    A, b = positive(4).requires_grad_(), normal(2, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda A, b: cg(A @ A.mT, b, tol=1e-13).x, (A, b))
    M = normal(5, 4).requires_grad_()
    c = normal(5, seed=4).requires_grad_()
    assert torch.autograd.gradcheck(lambda M, c: cgls(M, c, tol=1e-13).x, (M, c))


def test_refusals():
    A, b = positive(4), normal(4)
    with pytest.raises(ShapeError, match=r"3 x 4, expected a square.*cgls"):
        cg(A[:3], b[:3])
    with pytest.raises(ShapeError, match=r"\(batch, 4\)"):
        cg(A, b[:3])
    with pytest.raises(DataError, match=r"float32, the right-hand side torch\.float64"):
        cg(A.float(), b)
    with pytest.raises(DataError, match="coarse"):
        cg(A.bfloat16(), b.bfloat16())
    with pytest.raises(DataError, match="int64"):
        cg(A, torch.ones(4, dtype=torch.int64))
    with pytest.raises(DataError, match=r"item \[1\] is not positive definite"):
        cg(torch.stack([A, -A]), torch.stack([b, b]))
    with pytest.raises(DataError, match="adjoint=function"):
        cgls(lambda x: x, b)
    with pytest.raises(DataError, match="damping=-1"):
        cgls(A, b, damping=-1.0)
    with pytest.raises(ShapeError, match="damping of shape"):
        cgls(A, b, damping=torch.ones(3))
    with pytest.raises(ShapeError, match="start"):
        cgls(A, b, start=torch.zeros(5))
    with pytest.raises(ShapeError, match="batch_axes=3"):
        cg(lambda x: x, b, batch_axes=3)
    with pytest.raises(ShapeError, match="right-hand side of shape"):
        cg(A, torch.zeros(0, 4, dtype=torch.float64))
    with pytest.raises(ShapeError, match="A x has shape"):
        cg(lambda x: x[..., :2], b, start=torch.zeros_like(b))
    with pytest.raises(ShapeError, match=r"batch of matrices \(2, 4, 4\)"):
        cg(torch.stack([A, A]), torch.stack([b, b, b]))
    with pytest.raises(ShapeError, match="A x has shape"):
        cg(torch.stack([A, A]), b)
    with pytest.raises(DataError, match="cannot multiply with a str"):
        cg("matrix", b)
    with pytest.raises(DataError, match="gave a ndarray"):
        cg(type("Foreign", (), {"shape": (4, 4), "__matmul__": lambda self, x: np.eye(4)})(), b)
    with pytest.raises(DataError, match="tol=-1"):
        cg(A, b, tol=-1)


def test_overflow_is_divergence_with_its_step():
    A, b = positive(4), normal(4)
    with pytest.raises(Diverged, match="no longer finite") as caught:
        cg(lambda x: x @ A * (float("nan") if torch.linalg.vector_norm(x - b) > 1e-12 else 1.0), b)
    assert caught.value.step == 2
    assert caught.value.last is not None
    with pytest.raises(Diverged):
        cgls(A, b * float("inf"))
