"""CP and Tucker forms, against TensorLy: the same unfoldings, products and tensors."""

import numpy as np
import pytest
import tensorly
import torch

from lowdim.algebra.tensors import CP, Tucker, fold, hosvd, khatri_rao, mode_product, unfold

SHAPE = (4, 3, 5)


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("mode", range(3))
def test_unfoldings_and_mode_products(mode):
    X, M = draw(*SHAPE), draw(2, SHAPE[mode], seed=1)
    np.testing.assert_array_equal(unfold(X, mode), tensorly.base.unfold(X.numpy(), mode))
    np.testing.assert_array_equal(
        fold(unfold(X, mode), mode, SHAPE), tensorly.base.fold(unfold(X, mode).numpy(), mode, SHAPE)
    )
    theirs = tensorly.tenalg.mode_dot(X.numpy(), M.numpy(), mode)
    np.testing.assert_allclose(mode_product(X, M, mode), theirs)


def test_khatri_rao():
    matrices = [draw(n, 2, seed=n) for n in SHAPE]
    theirs = tensorly.tenalg.khatri_rao([matrix.numpy() for matrix in matrices])
    np.testing.assert_allclose(khatri_rao(matrices), theirs)


def test_forms_are_handed_over():
    cp = CP(tuple(draw(n, 2, seed=n) for n in SHAPE))
    np.testing.assert_allclose(cp.to_tensorly().to_tensor(), cp.dense())
    tucker = Tucker(draw(2, 3, 2), tuple(draw(n, r, seed=n) for n, r in zip(SHAPE, (2, 3, 2), strict=True)))
    np.testing.assert_allclose(tucker.to_tensorly().to_tensor(), tucker.dense())


def test_hosvd_starts_where_theirs_does():
    # Without iterations TensorLy's Tucker is the HOSVD; the sequential one is as good a start.
    X = draw(6, 5, 4)
    theirs = tensorly.decomposition.tucker(X.numpy(), rank=(2, 2, 2), n_iter_max=1, tol=0)
    ours = np.linalg.norm((X - hosvd(X, (2, 2, 2)).dense()).numpy())
    assert ours < 1.05 * np.linalg.norm(X.numpy() - theirs.to_tensor())
