"""eigenpairs and truncated_svd against scipy.sparse.linalg (ARPACK)."""

import numpy as np
import pytest
import scipy.sparse as sparse
import scipy.sparse.linalg as peer
import torch

from lowdim.algebra.spectrum import eigenpairs, estimate_trace, truncated_svd


@pytest.fixture(scope="module")
def graph():
    """Laplacian of a 20 x 15 grid: many nearly equal eigenvalues."""
    line = lambda n: sparse.diags([np.full(n - 1, -1.0), np.full(n, 2.0), np.full(n - 1, -1.0)], [-1, 0, 1])  # noqa: E731
    return sparse.csr_array(sparse.kron(line(20), sparse.eye(15)) + sparse.kron(sparse.eye(20), line(15)))


@pytest.mark.parametrize(("which", "theirs"), [("largest", "LA"), ("smallest", "SA"), ("magnitude", "LM")])
@pytest.mark.parametrize("count", [1, 6])
def test_eigenpairs_equal_eigsh(graph, which, theirs, count):
    expected = peer.eigsh(
        graph, k=count, which=theirs, return_eigenvectors=False, tol=1e-12, v0=np.ones(300) + np.arange(300)
    )
    found = eigenpairs(
        lambda x: torch.from_numpy(graph @ x.numpy().T).mT,
        size=300,
        count=count,
        which=which,
        tol=1e-9,
        seed=0,
        dtype=torch.float64,
    )
    np.testing.assert_allclose(np.sort(found.values.numpy()), np.sort(expected), rtol=0, atol=1e-10)


def test_truncated_svd_equals_svds():
    rng = np.random.default_rng(0)
    A = rng.standard_normal((80, 120)) * 0.95 ** np.arange(120)
    expected = peer.svds(A, k=7, return_singular_vectors=False, random_state=0)
    found = truncated_svd(torch.from_numpy(A), rank=7, tol=1e-10, seed=0)
    np.testing.assert_allclose(np.sort(found.S.numpy()), np.sort(expected), rtol=1e-10)
    exact = np.linalg.svd(A, full_matrices=False)
    best = (exact.U[:, :7] * exact.S[:7]) @ exact.Vh[:7]
    np.testing.assert_allclose(((found.U * found.S) @ found.Vh).numpy(), best, atol=1e-6)


def test_trace_of_the_graph(graph):
    estimate = estimate_trace(
        lambda x: torch.from_numpy(graph @ x.numpy().T).mT, size=300, dtype=torch.float64, seed=0
    )
    assert abs(estimate.value - graph.trace()) < 4 * estimate.standard_error
