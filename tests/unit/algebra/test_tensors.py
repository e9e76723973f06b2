"""CP and Tucker forms: unfolding, products, densities and the truncated HOSVD, batched and complex."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowdim.algebra.tensors import CP, Tucker, fold, hosvd, khatri_rao, mode_product, unfold
from lowdim.errors import RankError, ShapeError

KINDS = [torch.float64, torch.complex128]
of_kinds = pytest.mark.parametrize("kind", KINDS)


def draw(*shape, kind=torch.float64, seed=0):
    return torch.randn(*shape, dtype=kind, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 2), st.data())
def test_fold_undoes_unfold_and_rows_hold_their_index(shape, batch, data):
    mode = data.draw(st.integers(0, len(shape) - 1))
    X = draw(*[2] * batch, *shape)
    flat = unfold(X, mode, order=len(shape))
    assert flat.shape == (*[2] * batch, shape[mode], int(np.prod(shape)) // shape[mode])
    assert torch.equal(fold(flat, mode, shape), X)
    rest = [range(n) for k, n in enumerate(shape) if k != mode]
    for column, places in enumerate(itertools.product(*rest)):
        at = [*places[:mode], slice(None), *places[mode:]]
        assert torch.equal(flat[..., column], X[(..., *at)])


@of_kinds
@pytest.mark.parametrize("mode", [0, 1, 2])
def test_a_mode_product_multiplies_the_fibers(kind, mode):
    X, M = draw(2, 3, 4, 5, kind=kind), draw(2, 6, (3, 4, 5)[mode], kind=kind, seed=1)
    found = mode_product(X, M, mode, order=3)
    letters = "abc"
    kept = letters.replace(letters[mode], "z")
    torch.testing.assert_close(found, torch.einsum(f"nabc,nz{letters[mode]}->n{kept}", X, M))
    torch.testing.assert_close(unfold(found, mode, order=3), M @ unfold(X, mode, order=3))
    # One matrix for the whole batch.
    torch.testing.assert_close(mode_product(X, M[0], mode, order=3)[0], found[0])


@of_kinds
def test_khatri_rao_columns_are_kronecker_products(kind):
    A, B, C = (draw(2, n, 3, kind=kind, seed=n) for n in (2, 4, 3))
    found = khatri_rao([A, B, C])
    for item, column in itertools.product(range(2), range(3)):
        expected = torch.kron(torch.kron(A[item, :, column], B[item, :, column]), C[item, :, column])
        torch.testing.assert_close(found[item, :, column], expected)
    assert torch.equal(khatri_rao([A]), A)


@of_kinds
@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4), (2, 2, 3, 2)])
def test_a_cp_form_is_a_sum_of_outer_products(kind, shape):
    form = CP(tuple(draw(2, n, 3, kind=kind, seed=k) for k, n in enumerate(shape)))
    letters = "abcd"[: len(shape)]
    terms = ",".join(f"n{letter}r" for letter in letters)
    torch.testing.assert_close(form.dense(), torch.einsum(f"{terms}->n{letters}", *form.factors))
    assert (form.shape, form.rank, form.parameters) == (shape, 3, 3 * sum(shape))
    for mode in range(len(shape)):
        others = [factor for k, factor in enumerate(form.factors) if k != mode]
        if others:
            product = form.factors[mode] @ khatri_rao(others).mT
            torch.testing.assert_close(unfold(form.dense(), mode, order=len(shape)), product)


@of_kinds
def test_a_tucker_form_is_its_core_in_other_coordinates(kind):
    form = Tucker(
        draw(2, 2, 1, 3, kind=kind),
        tuple(draw(2, n, r, kind=kind, seed=n) for n, r in ((4, 2), (3, 1), (5, 3))),
    )
    expected = torch.einsum("npqr,nap,nbq,ncr->nabc", form.core, *form.factors)
    torch.testing.assert_close(form.dense(), expected)
    assert (form.shape, form.ranks, form.parameters) == ((4, 3, 5), (2, 1, 3), 6 + 8 + 3 + 15)
    turned = form.orthonormal()
    torch.testing.assert_close(turned.dense(), expected)
    for factor in turned.factors:
        eye = torch.eye(factor.shape[-1], dtype=kind).expand(2, -1, -1)
        torch.testing.assert_close(factor.mH @ factor, eye)


@of_kinds
def test_hosvd_of_full_ranks_is_exact_and_of_true_ranks_too(kind):
    X = draw(2, 3, 4, 5, kind=kind)
    torch.testing.assert_close(hosvd(X, (3, 4, 5)).dense(), X)
    low = Tucker(draw(2, 2, 2, kind=kind), tuple(draw(n, 2, kind=kind, seed=n) for n in (6, 5, 4))).dense()
    torch.testing.assert_close(hosvd(low, (2, 2, 2)).dense(), low)
    one = hosvd(X[:1], (2, 2, 2))
    torch.testing.assert_close(hosvd(X, (2, 2, 2)).dense()[:1], one.dense())


def test_hosvd_is_within_its_bound_of_the_best():
    X = draw(6, 5, 4)
    ranks = (2, 3, 2)
    tails = [torch.linalg.svdvals(unfold(X, k))[r:].square().sum() for k, r in enumerate(ranks)]
    error = (X - hosvd(X, ranks).dense()).square().sum()
    assert max(tails) <= error <= sum(tails)


def test_hosvd_of_a_matrix_is_the_truncated_svd():
    X = draw(7, 5)
    U, S, Vh = torch.linalg.svd(X, full_matrices=False)
    torch.testing.assert_close(hosvd(X, (2, 2)).dense(), U[:, :2] * S[:2] @ Vh[:2])


def test_ranks_beyond_what_is_left_are_filled_with_orthonormal_columns():
    # Two modes cut to 1 leave one column for a rank of 3.
    form = hosvd(draw(4, 5, 6), (1, 1, 3))
    factor = form.factors[2]
    torch.testing.assert_close(factor.mT @ factor, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(form.dense(), hosvd(draw(4, 5, 6), (1, 1, 1)).dense())


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: unfold(torch.ones(2, 3), 2), ShapeError, "no mode 2 in 2 modes"),
        (lambda: unfold(torch.ones(2, 3), 0, order=3), ShapeError, "in 3 modes of a tensor with 2 axes"),
        (lambda: fold(torch.ones(3, 5), 0, (3, 4)), ShapeError, "expected 3 x 4 for mode 0"),
        (lambda: mode_product(torch.ones(2, 3), torch.ones(4, 2), 1), ShapeError, "mode 1 of size 3"),
        (lambda: khatri_rao([]), ShapeError, "at least one"),
        (lambda: khatri_rao([torch.ones(2, 3), torch.ones(2, 2)]), ShapeError, "same number of columns"),
        (lambda: CP((torch.ones(2, 3), torch.ones(2, 2))), ShapeError, "same number of columns"),
        (lambda: CP(()), ShapeError, "at least one"),
        (lambda: Tucker(torch.ones(2, 2), (torch.ones(3, 2), torch.ones(3, 1))), ShapeError, "does not fit"),
        (lambda: hosvd(torch.ones(3, 4), (4, 1)), RankError, "do not fit a tensor of shape"),
        (lambda: hosvd(torch.ones(3, 4), ()), RankError, "one rank per mode"),
        (lambda: hosvd(torch.ones(3), (1, 1)), RankError, "one rank per mode"),
    ],
)
def test_refusals(call, error, text):
    with pytest.raises(error, match=text):
        call()
