"""Preconditioned and plain gradient descent for Blast."""

import pytest
import torch

from lowdim.algebra import Blast, factorize
from lowdim.algebra.precgd import gradient_descent, small_start
from lowdim.algebra.problem import Problem

WIDE = torch.float64


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=WIDE)


def dense(U, S, V):
    return Blast.from_factors(U, S, V).dense()


def reference(A, factors, *, steps, rates, doubled, delta=0.1):
    """The same descent, written block by block with gradients by automatic differentiation."""

    def loss(U, S, V):
        rows = [
            torch.cat([U[i] @ torch.diag(S[:, i, j]) @ V[j] for j in range(len(V))], 1) for i in range(len(U))
        ]
        return (A - torch.cat(rows)).square().sum() * (1.0 if doubled else 0.5)

    U, S, V = factors
    r = len(S)
    eye = torch.eye(r, dtype=A.dtype)
    for step in range(steps):
        value, gradient = loss(U, S, V), torch.func.grad(loss)(U, S, V)
        moved = []
        for i in range(len(U)):
            Z = torch.cat([torch.diag(S[:, i, j]) @ V[j] for j in range(len(V))], 1)
            moved.append(
                U[i] - rates[step] * gradient[i] @ torch.linalg.inv(Z @ Z.T + delta * value.sqrt() * eye)
            )
        U = torch.stack(moved)
        value, gradient = loss(U, S, V), torch.func.grad(loss, 2)(U, S, V)
        moved = []
        for j in range(len(V)):
            Y = torch.cat([U[i] @ torch.diag(S[:, i, j]) for i in range(len(U))])
            moved.append(
                V[j] - rates[step] * torch.linalg.inv(Y.T @ Y + delta * value.sqrt() * eye) @ gradient[j]
            )
        V = torch.stack(moved)
        value, gradient = loss(U, S, V), torch.func.grad(loss, 1)(U, S, V)
        S = S.clone()
        for i in range(len(U)):
            for j in range(len(V)):
                W = (U[i].T @ U[i]) * (V[j] @ V[j].T) + delta * value.sqrt() * eye
                S[:, i, j] -= rates[step] * torch.linalg.inv(W) @ gradient[:, i, j]
    return U, S, V


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_the_steps_are_those_of_the_equations(preset):
    A = random(12, 8)
    A = A / A.std()
    problem = Problem(matrix=A)
    start = small_start(problem, 3, (3, 2), preset=preset, seed=0)
    start = (start[0] * 30, start[1], start[2] * 30)  # away from the saddle, where steps would be tiny
    steps = 5
    # The official loss lacks the 1/2: rate 1 (falling to 0.01) on a doubled gradient.
    first, last = (1.0, 0.01) if preset == "official" else (1.0, 0.0)
    rates = [first + (last - first) * step / steps for step in range(steps)]
    expected = reference(A, start, steps=steps, rates=rates, doubled=preset == "official")
    found, history = gradient_descent(problem, start, steps=steps, tol=0, preset=preset)
    torch.testing.assert_close(dense(*found), dense(*expected), rtol=1e-8, atol=1e-10)
    assert history.steps == steps
    assert history.residual[-1] == pytest.approx(
        float((A - dense(*expected).detach()).norm() / A.norm()), rel=1e-8
    )


def blast_target(n=96, b=6, r=4):
    p = n // b
    return dense(random(b, p, r, seed=1), random(r, b, b, seed=2), random(b, r, p, seed=3)).detach()


@pytest.mark.parametrize(("preset", "bound"), [("paper", 1e-4), ("official", 1e-8)])
def test_a_blast_matrix_is_recovered(preset, bound):
    result = factorize(blast_target(), rank=4, blocks=6, method="precgd", preset=preset, sweeps=100)
    assert result.weight_error < bound


def test_overparametrized_recovery_beats_plain_descent():
    A = random(96, 4) @ random(4, 96, seed=1)
    options = {"rank": 16, "blocks": 6, "sweeps": 100, "tol": 0}
    fast = factorize(A, method="precgd", preset="paper", **options).weight_error
    slow = factorize(A, method="gd", **options).weight_error
    assert fast < slow / 5


def test_plain_descent_never_grows():
    history = factorize(random(24, 32), rank=6, blocks=4, method="gd", sweeps=40, tol=0).history
    assert all(b <= a * (1 + 1e-12) for a, b in zip(history.objective, history.objective[1:], strict=False))
    assert history.steps == 40
    assert history.residual[-1] < 0.95


def test_scale_does_not_matter():
    A = random(24, 32)
    options = {"rank": 6, "blocks": 4, "method": "precgd", "sweeps": 20}
    small = factorize(A, **options)
    large = factorize(1000 * A, **options)
    torch.testing.assert_close(large.operator.dense(), 1000 * small.operator.dense(), rtol=1e-6, atol=1e-6)


def test_start_can_be_given():
    A = random(24, 32)
    warm = factorize(A, rank=6, blocks=4, method="precgd", start="svd", rate=1.0, end=1.0, sweeps=30)
    assert warm.weight_error < 1.05 * factorize(A, rank=6, blocks=4, sweeps=30).weight_error


def test_normalized_factors():
    operator = factorize(
        random(24, 32), rank=6, blocks=4, method="precgd", normalize=True, sweeps=30
    ).operator
    torch.testing.assert_close(operator.U.norm(dim=1), torch.ones(4, 6, dtype=WIDE))
    torch.testing.assert_close(operator.V.norm(dim=2), torch.ones(4, 6, dtype=WIDE))


def test_nonnegative_couplings():
    A = random(24, 32)
    free = factorize(A, rank=6, blocks=4, method="precgd", sweeps=60)
    bound = factorize(A, rank=6, blocks=4, method="precgd", nonnegative=True, sweeps=60)
    assert float(free.operator.S.detach().min()) < 0
    assert float(bound.operator.S.detach().min()) >= 0
    assert bound.weight_error < 1


def test_group_sparse_couplings_drop_components():
    A = blast_target()
    options = {"rank": 12, "blocks": 6, "method": "precgd", "sweeps": 150}

    def used(shrink):
        S = factorize(A, shrink=shrink, **options).operator.S
        return int((S.norm(dim=(1, 2)) > 0).sum())

    assert used(0.0) == 12
    assert 4 <= used(0.1) < 12
