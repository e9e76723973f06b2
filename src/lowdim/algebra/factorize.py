"""factorize: the best approximation of a matrix within a structure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# The rules register themselves.
from lowdim.algebra import blastfit, blockfit, svd  # noqa: F401
from lowdim.algebra.blast import Blast
from lowdim.algebra.history import History
from lowdim.algebra.operator import Operator
from lowdim.algebra.problem import Problem, damp, rule_for
from lowdim.algebra.seeds import Seed, generator
from lowdim.errors import BudgetError, DataError, ShapeError

__all__ = ["Factorization", "factorize"]


@dataclass(frozen=True)
class Factorization:
    """A structured approximation and how it was found.

    Parameters
    ----------
    operator : Operator
        The approximation, in the dtype and on the device of the matrix.
    history : History
        Errors per sweep, seconds, reason for stopping, notes.
    weight_error : float
        ``||A - X||_F / ||A||_F``.
    output_error : float or None
        ``sqrt(tr((A - X) H (A - X)^T) / tr(A H A^T))``; None without a second moment.

    Examples
    --------
    >>> import torch
    >>> found = factorize(torch.diag(torch.tensor([3.0, 4.0])), "lowrank", rank=1)
    >>> round(found.weight_error, 4), found.output_error, found.history.reason
    (0.6, None, 'direct')
    """

    operator: Operator
    history: History
    weight_error: float
    output_error: float | None


def factorize(
    matrix: Tensor,
    structure: type[Operator] | str = Blast,
    *,
    rank: int | None = None,
    keep: float | None = None,
    blocks: Any = "auto",
    second_moment: Tensor | None = None,
    method: str | None = None,
    sweeps: int | None = None,
    tol: float = 1e-4,
    seed: Seed = 0,
    callback: Callable[[int, float], Any] | None = None,
    **options: Any,
) -> Any:
    r"""Approximate a matrix within a structure.

    Minimizes ``||A - X||_F``, or, given the second moment H of the layer's
    inputs, the output error ``tr((A - X) H (A - X)^T)``, over all X of the
    structure.

    Parameters
    ----------
    matrix : Tensor of shape (m, n) or (k, m, n)
        The matrix A of ``y = A x``; float16 and bfloat16 are computed in float32.
        A stack gives a list of k results, those of k calls (within round-off); Blast's "als" sweeps
        over the whole stack at once, which fills a GPU with small matrices.
    structure : type or str
        ``Blast`` (default), ``LowRank``, ``BlockDiagonal``, ``Monarch`` or their names
        "blast", "lowrank", "blockdiag", "monarch".
    rank : int, optional
        The rank (of every block for Monarch). Give this or `keep`.
    keep : float, optional
        Fraction in (0, 1] of the m n parameters to keep.
    blocks : "auto", int or pair of int
        Block rows b1 and block columns b2.
    second_moment : Tensor of shape (n, n) or (k, n, n), optional
        Mean of x x^T over the inputs (not centered).
    method : str, optional
        Blast: "als" (default), "precgd", "gd". LowRank: "svd" (default; whitened when a
        second moment is given), "asvd" (diagonal scaling).
    sweeps : int, optional
        Sweeps of an iterative method: 20 for "als", 300 for "precgd" and "gd", 10 for Monarch.
    tol : float
        Stop when the squared error fell by less than this fraction over 5 sweeps.
    seed : int, torch.Generator or None
        For starts that need random numbers.
    callback : callable, optional
        Called as ``callback(sweep, relative_error)`` after every sweep (with the largest error where a
        stack is swept at once).
    **options
        Of the method; see :mod:`lowdim.algebra.blastfit` and :mod:`lowdim.algebra.precgd`.

    Returns
    -------
    Factorization or list of Factorization

    Raises
    ------
    ShapeError
        If sizes, blocks or the second moment do not fit.
    RankError, BudgetError
        If the rank or `keep` is impossible.
    DataError
        If A or H hold NaN or Inf, H is not symmetric, or an option is unknown.
    Diverged
        If an iteration leaves the finite numbers.

    Notes
    -----
    A second moment is damped by 1e-4 of its mean diagonal, 1e-2 when it is
    rank-deficient (then a LowdimWarning tells).

    References
    ----------
    Lee, Kwon, Qu, Kim, "BLAST", NeurIPS 2024, arXiv 2410.21262: format and
    preconditioned gradient descent. Our default for Blast is accelerated
    alternating least squares from the (whitened) SVD instead: it is more accurate
    after 20 sweeps than the published schedule after 300, and safe.

    Examples
    --------
    >>> import torch
    >>> from lowdim.algebra import Blast, factorize
    >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
    <torch...
    >>> matrix = torch.randn(32, 48)
    >>> result = factorize(matrix, Blast, keep=0.5, blocks=(4, 4))
    >>> result.operator.rank, result.weight_error < 0.6
    (8, True)
    """
    if not isinstance(matrix, Tensor) or not matrix.is_floating_point():
        kind = matrix.dtype if isinstance(matrix, Tensor) else type(matrix).__name__
        raise DataError(f"factorize: a real floating-point tensor is expected, got {kind}.")
    if matrix.ndim not in (2, 3) or 0 in matrix.shape:
        raise ShapeError(
            f"factorize: a matrix (m, n) or a stack (k, m, n) is expected, got shape {tuple(matrix.shape)}."
        )
    rule = rule_for(structure)
    if rank is None and keep is None:
        raise BudgetError("factorize: give rank=... or keep=... (a fraction of the parameters).")
    if rank is not None and keep is not None:
        raise BudgetError(
            f"factorize: rank={rank} and keep={keep} say the same thing twice. Give one of them."
        )
    if keep is not None and not 0 < keep <= 1:
        raise BudgetError(
            f"factorize: keep={keep} must be in (0, 1], the fraction of the parameters to keep."
        )
    if sweeps is not None and (isinstance(sweeps, bool) or not isinstance(sweeps, int) or sweeps < 1):
        raise DataError(f"factorize: sweeps={sweeps!r} must be a positive integer.")
    if not tol >= 0:
        raise DataError(f"factorize: tol={tol!r} must not be negative.")
    generator(seed)
    settings = dict(
        options, rank=rank, keep=keep, blocks=blocks, method=method, sweeps=sweeps, tol=tol, seed=seed,
        callback=callback,
    )  # fmt: skip
    if matrix.ndim == 2:
        return _factorize(rule, [matrix], [second_moment], settings)[0]
    moments = [second_moment] * len(matrix)
    if second_moment is not None and second_moment.ndim == 3:
        if len(second_moment) != len(matrix):
            raise ShapeError(
                f"factorize: {len(matrix)} matrices but {len(second_moment)} second moments. "
                "Give one for each, or one (n, n) for all."
            )
        moments = list(second_moment)
    return _factorize(rule, list(matrix), moments, settings)


@torch.no_grad()
def _factorize(
    rule: Any, matrices: list[Tensor], moments: list[Tensor | None], settings: dict[str, Any]
) -> list[Factorization]:
    problems = [_problem(*given) for given in zip(matrices, moments, strict=True)]
    found = rule(problems, **settings)
    return [
        _measured(problem.matrix, matrix.dtype, moment, *one)
        for problem, matrix, moment, one in zip(problems, matrices, moments, found, strict=True)
    ]


def _problem(matrix: Tensor, second_moment: Tensor | None) -> Problem:
    A = matrix.detach()
    A = A if A.dtype == torch.float64 else A.float()
    if not bool(torch.isfinite(A).all()):
        bad = int((~torch.isfinite(A)).sum())
        raise DataError(
            f"factorize: the {A.shape[0]}x{A.shape[1]} matrix holds {bad} entries that are NaN or infinite. "
            "Look at the checkpoint: this layer is broken before compression."
        )
    notes: list[str] = []
    H = None
    if second_moment is not None:
        H = damp(second_moment.to(A.device), size=A.shape[1], dtype=A.dtype, notes=notes)
    return Problem(matrix=A.contiguous(), second_moment=H, notes=notes)


def _measured(
    A: Tensor, stored: torch.dtype, second_moment: Tensor | None, operator: Operator, history: History
) -> Factorization:
    """Return the result with the errors of what is returned: stored dtype, undamped moment."""
    operator = operator.to(stored)
    approximation = operator.dense().to(A.dtype)
    weight_error = Problem(matrix=A).error(approximation)
    output_error = None
    if second_moment is not None:
        raw = second_moment.detach().to(A)
        output_error = Problem(matrix=A, second_moment=(raw + raw.mT) / 2).error(approximation)
    return Factorization(operator, history, weight_error, output_error)
