"""Low-rank approximations in closed form: SVD, whitened SVD, and diagonal scaling."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from lowdim.algebra.history import History
from lowdim.algebra.lowrank import LowRank, check_rank
from lowdim.algebra.problem import Problem, register
from lowdim.errors import DataError, RankError

__all__ = ["low_rank_factors"]


def low_rank_factors(problem: Problem, rank: int, *, method: str = "svd") -> tuple[Tensor, Tensor]:
    """Return the best factors ``U (m, r)``, ``V (r, n)`` with balanced norms.

    Parameters
    ----------
    problem : Problem
        Matrix A and, for "svd" optionally, the second moment H.
    rank : int
        Number of components, at most min(m, n).
    method : {"svd", "asvd"}
        With "svd" and H = L L^T, the SVD of A L, its right factor mapped back
        through L^-T (whitened SVD): optimal in the output norm. With "asvd"
        only the diagonal of H is used, to the power 1/2.

    Returns
    -------
    U, V : Tensor
        In the dtype of the matrix.
    """
    A, H = problem.matrix, problem.second_moment
    if H is None:
        left, values, right = _truncated(A, rank)
    elif method == "asvd":
        scale = H.diagonal().sqrt()
        left, values, right = _truncated(A * scale, rank)
        right = right / scale
    else:
        L = problem.root
        assert L is not None  # for the type checker: H is given
        left, values, right = _truncated((A.double() @ L).to(A.dtype), rank)
        right = torch.linalg.solve_triangular(L, right.double(), upper=False, left=False).to(A.dtype)
    root = values.sqrt()
    return left * root, root[:, None] * right


def _truncated(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left[:, :rank], values[:rank], right[:rank]


@register(LowRank)
def fit_low_rank(
    problem: Problem,
    *,
    keep: float | None,
    rank: int | None,
    method: str | None,
    blocks: Any = None,
    sweeps: Any = None,
    tol: Any = None,
    seed: Any = None,
    callback: Any = None,
    **options: Any,
) -> tuple[LowRank, History]:
    """Factorize into :class:`LowRank` (methods "svd" and "asvd"); what only iterations need is ignored."""
    m, n = problem.matrix.shape
    method = method or "svd"
    if method not in ("svd", "asvd"):
        raise DataError(f"factorize: method={method!r} is unknown for LowRank. Use 'svd' or 'asvd'.")
    if method == "asvd" and problem.second_moment is None:
        raise DataError("factorize: method='asvd' scales by the inputs. Give second_moment, or use 'svd'.")
    if options:
        raise DataError(f"factorize: unknown options for LowRank: {', '.join(sorted(options))}.")
    r = LowRank.rank_for(keep, m, n, None) if rank is None and keep is not None else rank
    r = check_rank(r, "LowRank")
    if r > min(m, n):
        raise RankError(
            f"LowRank: rank={r} exceeds min(m, n)={min(m, n)} of a {m}x{n} matrix. Use at most {min(m, n)}."
        )
    clock = time.perf_counter()
    U, V = low_rank_factors(problem, r, method=method)
    error = problem.error(U @ V)
    seconds = time.perf_counter() - clock
    history = History(
        objective=(error**2,), residual=(error,), seconds=seconds, reason="direct", notes=tuple(problem.notes)
    )
    return LowRank.from_factors(U, V), history
