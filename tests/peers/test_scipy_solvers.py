"""cg and cgls against scipy.sparse.linalg."""

import numpy as np
import pytest
import scipy.sparse.linalg as peer
import torch

from lowdim.algebra.solve import cg, cgls


def laplacian(n):
    return 2.1 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
def test_cg_takes_the_steps_of_scipy(dtype):
    rng = np.random.default_rng(0)
    A = laplacian(80).astype(dtype)
    b = rng.standard_normal(80).astype(dtype)
    if dtype is np.complex128:
        phase = np.exp(1j * rng.uniform(0, 6, 80))
        A, b = phase[:, None] * A * phase.conj(), b * np.exp(1j * rng.uniform(0, 6, 80))
    steps = []
    theirs, status = peer.cg(A, b, rtol=1e-8, callback=lambda x: steps.append(1))
    ours = cg(torch.from_numpy(A), torch.from_numpy(b), tol=1e-8)
    assert status == 0
    assert abs(int(ours.steps) - len(steps)) <= 1
    np.testing.assert_allclose(ours.x.numpy(), theirs, rtol=0, atol=1e-7 * np.abs(theirs).max())


@pytest.mark.parametrize("shape", [(60, 40), (40, 60)])
@pytest.mark.parametrize("damp", [0.0, 0.7])
def test_cgls_equals_lsqr(shape, damp):
    rng = np.random.default_rng(1)
    A, b = rng.standard_normal(shape), rng.standard_normal(shape[0])
    theirs = peer.lsqr(A, b, damp=damp, atol=1e-13, btol=1e-13, iter_lim=1000)[0]
    ours = cgls(torch.from_numpy(A), torch.from_numpy(b), damping=damp**2, tol=1e-12)
    np.testing.assert_allclose(ours.x.numpy(), theirs, rtol=0, atol=1e-8 * np.abs(theirs).max())


def test_truncated_cgls_equals_truncated_lsqr():
    # In exact arithmetic both take the same Krylov iterates.
    rng = np.random.default_rng(2)
    A, b = rng.standard_normal((50, 30)), rng.standard_normal(50)
    theirs = peer.lsqr(A, b, iter_lim=6, atol=0, btol=0, conlim=0)[0]
    ours = cgls(torch.from_numpy(A), torch.from_numpy(b), steps=6, tol=0.0)
    np.testing.assert_allclose(ours.x.numpy(), theirs, rtol=0, atol=1e-12)
