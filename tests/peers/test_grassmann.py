"""Subspace against pymanopt and SciPy."""

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles

from lowdim.algebra.subspace import Subspace

pymanopt = pytest.importorskip("pymanopt", reason="pymanopt (extra 'peers') is not installed")
from pymanopt.manifolds import ComplexGrassmann, Grassmann  # noqa: E402

CASES = [(8, 3, torch.float64), (5, 4, torch.float64), (20, 1, torch.float64), (8, 3, torch.complex128)]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}-{str(case[2])[6:]}")
def pair(request):
    n, r, dtype = request.param
    manifold = (ComplexGrassmann if dtype.is_complex else Grassmann)(n, r)
    return manifold, Subspace.random(n, r, seed=0, dtype=dtype), Subspace.random(n, r, seed=1, dtype=dtype)


def test_angles_equal_scipy(pair):
    _, a, b = pair
    # SciPy's arcsin form is good to about 1e-8 for angles near pi / 2 only; these are generic.
    np.testing.assert_allclose(
        a.angles(b).flip(-1).numpy(), subspace_angles(a.basis.numpy(), b.basis.numpy()), atol=1e-13
    )


def test_small_angles_equal_scipy():
    a = Subspace.random(30, 4, seed=0, dtype=torch.float64)
    b = a.move(torch.randn(30, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64), step=1e-9)
    np.testing.assert_allclose(
        a.angles(b).flip(-1).numpy(), subspace_angles(a.basis.numpy(), b.basis.numpy()), rtol=1e-5, atol=1e-16
    )


def test_distance_equals_pymanopt(pair):
    manifold, a, b = pair
    # pymanopt takes the arccosine, which loses digits only near zero: not for a random pair.
    assert float(a.distance(b)) == pytest.approx(manifold.dist(a.basis.numpy(), b.basis.numpy()), rel=1e-7)


def test_log_equals_pymanopt(pair):
    manifold, a, b = pair
    np.testing.assert_allclose(a.log(b).numpy(), manifold.log(a.basis.numpy(), b.basis.numpy()), atol=1e-12)


def test_move_equals_pymanopt(pair):
    manifold, a, b = pair
    tangent = 0.7 * a.log(b)
    theirs = Subspace(torch.from_numpy(manifold.exp(a.basis.numpy(), tangent.numpy())))
    assert float(a.move(tangent).distance(theirs)) < 1e-13
