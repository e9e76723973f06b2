"""factorize: every refusal says where, what was given, and what to do."""

import pytest
import torch

from lowdim.algebra import Blast, BlockDiagonal, Dense, LowRank, Monarch, factorize
from lowdim.errors import BudgetError, DataError, Diverged, RankError, ShapeError

A = torch.randn(12, 18, generator=torch.Generator().manual_seed(0))
H = torch.eye(18)
BROKEN = A.clone()
BROKEN[3, 4] = torch.nan
LOPSIDED = torch.eye(18)
LOPSIDED[0, 1] = 0.5
INFINITE = torch.eye(18)
INFINITE[2, 2] = torch.inf

CASES = {
    "no budget": ({}, BudgetError, r"give rank=\.\.\. or keep="),
    "two budgets": ({"rank": 2, "keep": 0.5}, BudgetError, r"rank=2 and keep=0\.5 say the same thing twice"),
    "keep above one": ({"keep": 1.5}, BudgetError, r"keep=1\.5 must be in \(0, 1\]"),
    "keep zero": ({"keep": 0.0}, BudgetError, r"keep=0\.0 must be in \(0, 1\]"),
    "keep too small": ({"keep": 0.01, "blocks": 3}, BudgetError, "fewer than the 39 that rank 1 costs"),
    "rank zero": ({"rank": 0}, RankError, "rank=0 must be a positive integer"),
    "blocks": (
        {"rank": 2, "blocks": 5},
        ShapeError,
        r"out_features=12 cannot be cut into 5 blocks.*or pad=True",
    ),
    "blocks word": ({"rank": 2, "blocks": "best"}, DataError, "blocks='best' is unknown. Use 'auto'"),
    "structure": (
        {"rank": 2, "structure": "butterfly"},
        DataError,
        "no rule for structure='butterfly'.*blast",
    ),
    "structure without rule": ({"rank": 2, "structure": Dense}, DataError, "Known structures: blast"),
    "NaN": (
        {"rank": 2, "matrix": BROKEN},
        DataError,
        "12x18 matrix holds 1 entries that are NaN or infinite",
    ),
    "integers": (
        {"rank": 2, "matrix": torch.ones(4, 4, dtype=torch.int64)},
        DataError,
        "real floating-point",
    ),
    "complex": ({"rank": 2, "matrix": torch.ones(4, 4) * 1j}, DataError, "real floating-point"),
    "no tensor": (
        {"rank": 2, "matrix": [[1.0]]},
        DataError,
        "real floating-point tensor is expected, got list",
    ),
    "vector": ({"rank": 2, "matrix": A[0]}, ShapeError, r"matrix \(m, n\) or a stack.*got shape \(18,\)"),
    "empty": ({"rank": 2, "matrix": A[:0]}, ShapeError, r"got shape \(0, 18\)"),
    "H size": ({"rank": 2, "second_moment": torch.eye(12)}, ShapeError, r"shape \(12, 12\), but.*18 columns"),
    "H NaN": ({"rank": 2, "second_moment": INFINITE}, DataError, "holds 1 entries that are NaN or infinite"),
    "H lopsided": (
        {"rank": 2, "second_moment": LOPSIDED},
        DataError,
        r"not symmetric: entries differ by 0\.5",
    ),
    "H zero": ({"rank": 2, "second_moment": 0 * H}, DataError, "is zero or has a negative diagonal"),
    "H negative": ({"rank": 2, "second_moment": -H}, DataError, "is zero or has a negative diagonal"),
    "method": ({"rank": 2, "method": "magic"}, DataError, "method='magic' is unknown for Blast. Use 'als'"),
    "method lowrank": ({"rank": 2, "structure": LowRank, "method": "als"}, DataError, "Use 'svd' or 'asvd'"),
    "asvd blind": ({"rank": 2, "structure": LowRank, "method": "asvd"}, DataError, "Give second_moment"),
    "method monarch": ({"rank": 2, "structure": Monarch, "method": "als"}, DataError, "unknown for Monarch"),
    "rank lowrank": ({"rank": 13, "structure": LowRank}, RankError, r"rank=13 exceeds min\(m, n\)=12"),
    "rank monarch": ({"rank": 5, "structure": Monarch, "blocks": 3}, RankError, "4x6 cannot have rank 5"),
    "rank blockdiag": ({"rank": 5, "structure": BlockDiagonal}, RankError, "rank has no meaning"),
    "keep blockdiag": (
        {"keep": 0.1, "structure": BlockDiagonal, "blocks": 2},
        BudgetError,
        "more than keep=0.1",
    ),
    "option als": ({"rank": 2, "speed": 9}, DataError, "unknown options for 'als': speed"),
    "option precgd": ({"rank": 2, "method": "precgd", "speed": 9}, DataError, "options for 'precgd': speed"),
    "option gd": ({"rank": 2, "method": "gd", "delta": 1.0}, DataError, "unknown options for 'gd': delta"),
    "option monarch": (
        {"rank": 2, "structure": Monarch, "speed": 9},
        DataError,
        "options for Monarch: speed",
    ),
    "option svd": ({"rank": 2, "structure": LowRank, "speed": 9}, DataError, "options for LowRank: speed"),
    "preset": ({"rank": 2, "method": "precgd", "preset": "mine"}, DataError, "Use 'paper' or 'official'"),
    "precgd moment": (
        {"rank": 2, "method": "precgd", "second_moment": H},
        DataError,
        "cannot use second_moment",
    ),
    "precgd zero": ({"rank": 2, "method": "precgd", "matrix": 0 * A}, DataError, "matrix is zero"),
    "precgd flat": (
        {"rank": 2, "method": "precgd", "matrix": 0 * A + 1},
        DataError,
        "deviation of the entries",
    ),
    "start": ({"rank": 2, "start": "cold"}, DataError, "start='cold' is unknown"),
    "start shapes": ({"rank": 2, "blocks": 3, "start": (A, A, A)}, ShapeError, "start has shapes"),
    "start latin": (
        {"rank": 4, "blocks": 3, "start": "latin"},
        DataError,
        "rank=4 does not fit. Use a multiple of 3",
    ),
    "sweeps": ({"rank": 2, "sweeps": 0}, DataError, "sweeps=0 must be a positive integer"),
    "tol": ({"rank": 2, "tol": -1.0}, DataError, r"tol=-1\.0 must not be negative"),
    "seed": ({"rank": 2, "seed": "luck"}, DataError, "seed='luck' is no seed"),
}


@pytest.mark.parametrize("case", CASES)
def test_refusal(case):
    options, error, message = CASES[case]
    options = {"matrix": A, **options}
    with pytest.raises(error, match=f"(?s){message}"):
        factorize(options.pop("matrix"), options.pop("structure", Blast), **options)


def test_as_many_moments_as_matrices():
    with pytest.raises(ShapeError, match="3 matrices but 2 second moments"):
        factorize(torch.stack([A] * 3), rank=2, second_moment=torch.stack([H] * 2))


def test_divergence_tells_step_and_last_value():
    with pytest.raises(
        Diverged, match=r"step .* of gradient descent left the finite numbers.*larger delta"
    ) as caught:
        factorize(A, rank=4, blocks=3, method="precgd", rate=500.0, end=500.0, sweeps=300)
    assert caught.value.step >= 1
    assert 0 < caught.value.last < float("inf")


def test_overflow_is_divergence():
    with pytest.raises(Diverged, match=r"sweep 1 of alternating least squares.*Use float64"):
        factorize(A * 1e30, rank=4, blocks=3)
