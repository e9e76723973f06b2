"""What every solver must obey, over one table of all solvers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowdim.algebra import solve

# Name -> (how its system is made from a square root, the solver).
SOLVERS = {
    "cg": (lambda root: root @ root.mH + torch.eye(root.shape[-1], dtype=root.dtype), solve.cg),
    "cgls": (lambda root: root + 3 * torch.eye(root.shape[-1], dtype=root.dtype), solve.cgls),
}
DTYPES = [torch.float64, torch.complex128]


@st.composite
def systems(draw):
    """A batch of systems that differ in their maps, sizes and scales."""
    n, items = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    dtype = draw(st.sampled_from(DTYPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    root = torch.randn(items, n, n, generator=generator, dtype=dtype) / max(n, 1) ** 0.5
    rhs = torch.randn(items, n, generator=generator, dtype=dtype)
    scale = draw(st.sampled_from([1e-6, 1.0, 1e6]))
    return root, scale * rhs, scale


@pytest.mark.parametrize("name", SOLVERS)
@settings(max_examples=40, deadline=None)
@given(systems())
def test_solves(name, system):
    root, rhs, _ = system
    make, solver = SOLVERS[name]
    A = make(root)
    solution = solver(A, rhs, tol=1e-11, steps=200)
    assert solution.converged.all()
    expected = torch.linalg.solve(A, rhs.unsqueeze(-1)).squeeze(-1)
    assert (solution.x - expected).norm() <= 1e-8 * expected.norm()
    torch.testing.assert_close(
        solution.misfit, (rhs - (A @ solution.x.unsqueeze(-1)).squeeze(-1)).norm(dim=-1)
    )


@pytest.mark.parametrize("name", SOLVERS)
@settings(max_examples=40, deadline=None)
@given(systems())
def test_an_item_does_not_depend_on_its_batch(name, system):
    root, rhs, _ = system
    make, solver = SOLVERS[name]
    A = make(root)
    # A loose tolerance, so that the items stop at different steps.
    together = solver(A, rhs, tol=1e-3)
    for i in range(len(rhs)):
        alone = solver(A[i], rhs[i], tol=1e-3)
        assert int(alone.steps) == int(together.steps[i])
        torch.testing.assert_close(alone.x, together.x[i], rtol=1e-9, atol=1e-12 * float(rhs.abs().max()))
        torch.testing.assert_close(alone.residual, together.residual[i], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", SOLVERS)
@settings(max_examples=25, deadline=None)
@given(systems(), st.integers(-20, 20))
def test_scaling_the_data_scales_the_solution(name, system, power):
    root, rhs, _ = system
    make, solver = SOLVERS[name]
    A = make(root)
    one, other = solver(A, rhs, tol=1e-6), solver(A, rhs * 2.0**power, tol=1e-6)
    assert one.steps.tolist() == other.steps.tolist()
    # Powers of two do not round.
    assert torch.equal(one.x * 2.0**power, other.x)


@pytest.mark.parametrize("name", SOLVERS)
@settings(max_examples=25, deadline=None)
@given(systems())
def test_objective_never_rises(name, system):
    root, rhs, scale = system
    make, solver = SOLVERS[name]
    objective = torch.tensor(solver(make(root), rhs, tol=1e-10).history.objective)
    assert (objective.diff() <= 1e-10 * scale**2 * len(rhs) * rhs.shape[-1]).all()


@pytest.mark.parametrize("name", SOLVERS)
def test_more_batch_axes_and_single_precision(name):
    make, solver = SOLVERS[name]
    root = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0)) / 5**0.5
    rhs = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1))
    solution = solver(make(root), rhs, tol=1e-5)
    assert solution.x.dtype == torch.float32
    assert solution.steps.shape == (2, 3)
    assert solution.converged.all()
    torch.testing.assert_close(
        solver(make(root[1, 2]), rhs[1, 2], tol=1e-5).x, solution.x[1, 2], rtol=1e-4, atol=1e-5
    )
