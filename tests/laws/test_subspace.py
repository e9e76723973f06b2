"""What must hold for every pair of subspaces."""

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowdim.algebra.subspace import Distance, Subspace

KINDS = get_args(Distance)
DTYPES = [torch.float64, torch.complex128]


@st.composite
def triples(draw):
    """Three subspaces of one Grassmannian, the second near to or far from the first."""
    n = draw(st.integers(1, 9))
    r = draw(st.integers(1, n))
    dtype = draw(st.sampled_from(DTYPES))
    seed = draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    a = Subspace.random(n, r, seed=generator, dtype=dtype)
    far = draw(st.booleans())
    step = draw(st.sampled_from([0.0, 1e-10, 1e-5, 0.1]))
    b = (
        Subspace.random(n, r, seed=generator, dtype=dtype)
        if far
        else a.move(torch.randn(n, r, generator=generator, dtype=dtype), step=step)
    )
    c = Subspace.random(n, r, seed=generator, dtype=dtype)
    rotation = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=dtype)).Q
    mixing = torch.linalg.qr(torch.randn(r, r, generator=generator, dtype=dtype)).Q
    return a, b, c, rotation, mixing


@settings(max_examples=60, deadline=None)
@given(triples())
def test_metric_axioms_and_invariance(triple):
    a, b, c, rotation, mixing = triple
    for kind in KINDS:
        d = a.distance(b, kind=kind)
        assert float(a.distance(a, kind=kind)) < 1e-14
        torch.testing.assert_close(b.distance(a, kind=kind), d, atol=1e-14, rtol=1e-12)
        assert float(d) <= float(a.distance(c, kind=kind) + c.distance(b, kind=kind)) + 1e-13
        # Rotating the whole space, or choosing other bases, changes nothing.
        rotated = Subspace(rotation @ a.basis @ mixing).distance(Subspace(rotation @ b.basis), kind=kind)
        torch.testing.assert_close(rotated, d, atol=2e-14, rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(triples(), st.floats(-0.5, 1.0))
def test_geodesic_has_constant_speed_and_reaches_its_end(triple, t):
    a, b, *_ = triple
    curve = a.geodesic(b)
    torch.testing.assert_close(curve.length, a.distance(b), atol=3e-14, rtol=1e-12)
    assert float(curve(0.0).distance(a)) < 3e-14
    assert float(curve(1.0).distance(b)) < 3e-14
    point = curve(t)
    Subspace(point.basis)
    # Distance is |t| times the length as long as no angle passes pi / 2.
    torch.testing.assert_close(a.distance(point), abs(t) * curve.length, atol=1e-13, rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(triples())
def test_move_undoes_log(triple):
    a, b, *_ = triple
    tangent = a.log(b)
    assert float((a.basis.mH @ tangent).abs().max()) < 1e-13
    assert float(a.move(tangent).distance(b)) < 3e-14
    torch.testing.assert_close(torch.linalg.matrix_norm(tangent), a.distance(b), atol=3e-14, rtol=1e-12)
    torch.testing.assert_close(a.move(tangent, step=0.5).basis, a.geodesic(b)(0.5).basis, atol=1e-12, rtol=0)


@settings(max_examples=60, deadline=None)
@given(triples())
def test_projection_laws(triple):
    a, b, _, rotation, mixing = triple
    x = rotation  # n vectors, as rows
    once = a.project(x)
    torch.testing.assert_close(a.project(once), once, atol=1e-13, rtol=0)
    torch.testing.assert_close(Subspace(a.basis @ mixing).project(x), once, atol=1e-13, rtol=0)
    torch.testing.assert_close(once + a.complement().project(x), x, atol=1e-13, rtol=0)
    y = b.project(x)
    inner = lambda u, v: (u.conj() * v).sum()  # noqa: E731
    torch.testing.assert_close(inner(a.project(x), y), inner(x, a.project(y)), atol=1e-12, rtol=0)
    # The spectral norm of the difference of the projections is the "projection" distance.
    difference = a.basis @ a.basis.mH - b.basis @ b.basis.mH
    torch.testing.assert_close(
        torch.linalg.matrix_norm(difference, 2), a.distance(b, kind="projection"), atol=1e-13, rtol=0
    )


@settings(max_examples=40, deadline=None)
@given(triples())
def test_alignment_is_the_nearest_basis(triple):
    a, b, _, _, mixing = triple
    aligned = a.align(b)
    assert float(aligned.distance(a)) < 1e-13
    gap = torch.linalg.matrix_norm(aligned.basis - b.basis)
    torch.testing.assert_close(gap, a.distance(b, kind="procrustes"), atol=1e-13, rtol=1e-12)
    assert float(gap) <= float(torch.linalg.matrix_norm(a.basis @ mixing - b.basis)) + 1e-13


@pytest.mark.parametrize("dtype", [torch.float32, *DTYPES])
def test_batch_is_a_loop(dtype):
    tol = {"atol": 50 * torch.finfo(dtype).eps, "rtol": 0}
    a, b = (Subspace.random(7, 3, batch=(2, 2), seed=seed, dtype=dtype) for seed in (0, 1))
    curve, x = a.geodesic(b), torch.randn(2, 2, 7, generator=torch.Generator().manual_seed(2)).to(dtype)
    spread = a.basis @ torch.tensor([[3.0, 0, 0], [0, 2, 0], [0, 0, 0.1]]).to(dtype)
    for i in range(2):
        for j in range(2):
            one, two = Subspace(a.basis[i, j]), Subspace(b.basis[i, j])
            torch.testing.assert_close(a.angles(b)[i, j], one.angles(two), **tol)
            torch.testing.assert_close(a.project(x)[i, j], one.project(x[i, j]), **tol)
            torch.testing.assert_close(curve(0.3).basis[i, j], one.geodesic(two)(0.3).basis, **tol)
            torch.testing.assert_close(a.log(b)[i, j], one.log(two), **tol)
            whole = Subspace.span(spread, energy=0.99)
            assert (
                float(Subspace(whole.basis[i, j]).distance(Subspace.span(spread[i, j], energy=0.99))) < 1e-5
            )
    assert curve(torch.linspace(0, 1, 5)).basis.shape == (5, 2, 2, 7, 3)
    # One subspace against a batch of them.
    one = Subspace(a.basis[0, 0])
    torch.testing.assert_close(one.distance(b)[1, 1], one.distance(Subspace(b.basis[1, 1])), **tol)
