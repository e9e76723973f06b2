"""How columns lie on a grid, and every refusal of shapes, masks and ranks by its message."""

import numpy as np
import pytest
import torch

from lowdim.errors import DataError, RankError, ShapeError
from lowdim.regress.grid import Grid, check_ranks, grid_of, parameters

MASK = np.arange(12).reshape(3, 4) % 2 == 0


def grid(given, shape=None, mask=None):
    return grid_of(given, shape=shape, mask=mask, where="fit")


def ranks(rank, shape, decomposition="cp"):
    return check_ranks(rank, Grid(shape, int(np.prod(shape))), decomposition=decomposition, where="fit")


def test_the_shape_is_that_of_the_samples_or_of_the_user():
    assert grid((3, 4)).shape == (3, 4)
    assert grid((12,)).shape == (12,)
    assert grid((12,), (3, 4)).shape == (3, 4)
    assert grid((3, 4), (3, 4)).size == 12
    assert grid((12,), np.array([3, 4])).shape == (3, 4)


def test_masked_columns_are_put_in_their_places():
    rows = torch.arange(12.0).reshape(2, 6)
    full = grid((6,), mask=MASK).spread(rows)
    assert full.shape == (2, 12)
    np.testing.assert_array_equal(full[:, MASK.ravel()], rows)
    assert not full[:, ~MASK.ravel()].any()
    whole = torch.arange(24.0).reshape(2, 12)
    np.testing.assert_array_equal(
        grid((3, 4), mask=MASK).spread(whole), whole * torch.as_tensor(MASK.ravel())
    )


@pytest.mark.parametrize(
    ("given", "shape", "mask", "error", "text"),
    [
        ((12,), (3, 5), None, ShapeError, r"shape=\(3, 5\) needs 15 features per sample, X has 12"),
        ((7,), (3, 4), MASK, ShapeError, r"needs 12 features per sample, or 6 inside the mask, X has 7"),
        ((3, 4), (4, 3), None, ShapeError, r"samples of X have shape \(3, 4\), shape=\(4, 3\)"),
        ((12,), (3, 0), None, ShapeError, "must be positive integers"),
        ((12,), (3.0, 4), None, ShapeError, "must be positive integers"),
        ((12,), (), None, ShapeError, "must be positive integers"),
        ((12,), (4, 3), MASK, ShapeError, r"mask has shape \(3, 4\), shape=\(4, 3\)"),
        ((12,), None, MASK.astype(int), DataError, "mask holds int64, expected bool"),
        ((12,), None, np.zeros((3, 4), bool), DataError, "mask hides every place"),
    ],
)
def test_shapes_that_do_not_fit(given, shape, mask, error, text):
    with pytest.raises(error, match=text):
        grid(given, shape, mask)


def test_ranks_that_fit():
    assert ranks(3, (4, 5)) == (3,)
    assert ranks(6, (4, 2, 3)) == (6,)
    assert ranks(2, (9,)) == ranks((2,), (9,), "tucker") == ()
    assert ranks(2, (4, 5, 6), "tucker") == (2, 2, 2)
    assert ranks((4, 2, 2), (4, 5, 6), "tucker") == (4, 2, 2)


@pytest.mark.parametrize(
    ("rank", "shape", "form", "error", "text"),
    [
        (0, (4, 5), "cp", RankError, "rank=0 must be a positive integer"),
        (1.5, (4, 5), "cp", RankError, "rank=1.5 must be a positive integer"),
        (True, (4, 5), "cp", RankError, "rank=True must be"),
        ((), (4, 5), "tucker", RankError, r"rank=\(\) must be"),
        ((2, 2), (4, 5), "cp", RankError, r"rank=\(2, 2\), but a CP form has one rank"),
        (5, (4, 5), "cp", RankError, "rank=5 is too large.*Use at most 4"),
        (13, (4, 5, 3), "cp", RankError, "Use at most 12"),
        ((2, 2), (4, 5, 3), "tucker", RankError, r"has 2 Tucker ranks, 3 are needed"),
        ((2, 2, 4), (4, 5, 3), "tucker", RankError, "rank 4 of mode 2 is too large: the mode has size 3"),
        ((4, 1, 2), (4, 5, 3), "tucker", RankError, "rank 4 of mode 0.*other ranks have the product 2"),
        (2, (4, 5), "train", DataError, "decomposition='train' is unknown. Use 'cp' or 'tucker'"),
    ],
)
def test_ranks_that_do_not_fit(rank, shape, form, error, text):
    with pytest.raises(error, match=text):
        ranks(rank, shape, form)


def test_the_cut_makes_the_most_square_matrix():
    assert [Grid(s, 1).cut for s in ((7,), (3, 4), (12, 12, 12), (2, 3, 100), (100, 2, 3), (2, 2, 2, 2))] == [
        *(1, 1, 2, 2, 1, 2)
    ]


def test_parameters_are_counted():
    assert parameters((4, 5, 6), (2,)) == 2 * 15
    assert parameters((4, 5, 6), (2, 1, 3)) == 6 + 8 + 5 + 18
    assert parameters((9,), ()) == 9
