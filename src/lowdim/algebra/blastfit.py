"""The rule that factorizes into Blast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lowdim.algebra.als import alternating_least_squares, start_factors
from lowdim.algebra.blast import Blast
from lowdim.algebra.blocks import check_blocks
from lowdim.algebra.history import History
from lowdim.algebra.lowrank import check_rank
from lowdim.algebra.precgd import fit as descend
from lowdim.algebra.problem import Problem, register
from lowdim.algebra.seeds import Seed
from lowdim.algebra.sweeps import Factors, product
from lowdim.errors import DataError

__all__ = ["fit_blast"]


@register(Blast, stacked=True)
def fit_blast(
    problems: Sequence[Problem],
    *,
    keep: float | None,
    rank: int | None,
    blocks: Any,
    method: str | None,
    sweeps: int | None,
    tol: float,
    seed: Seed,
    callback: Callable[[int, float], Any] | None,
    pad: bool = False,
    start: str | Factors | None = None,
    noise: float = 0.1,
    momentum: bool = True,
    **options: Any,
) -> list[tuple[Blast, History]]:
    """Factorize matrices of one shape into :class:`Blast`.

    Parameters
    ----------
    problems : sequence of Problem
        Of one shape. "als" sweeps over all of them at once, the other methods take them in turn.
    keep, rank, blocks, method, sweeps, tol, seed, callback
        As in :func:`lowdim.algebra.factorize`.
    pad : bool
        Pad sizes that the blocks do not divide with zeros; implied by ``blocks="auto"``.
    start : str or (U, S, V), optional
        See :func:`lowdim.algebra.als.start_factors`. "svd" for "als", a small random one for
        "precgd" (the preset's) and "gd" (the paper's) otherwise.
    noise : float
        Of "als" from the SVD: standard deviation of the noise in the couplings.
    momentum : bool
        Of "als": extrapolate between sweeps.
    **options
        Of "precgd" and "gd"; see :func:`lowdim.algebra.precgd.gradient_descent`.
    """
    m, n = problems[0].matrix.shape
    automatic = isinstance(blocks, str)
    if automatic and blocks != "auto":
        raise DataError(f"factorize: blocks={blocks!r} is unknown. Use 'auto', an integer or a pair.")
    b1, b2 = check_blocks(
        Blast.blocks_for(m, n) if automatic else blocks, m, n, "Blast", pad=pad or automatic
    )
    r = check_rank(
        Blast.rank_for(keep, m, n, (b1, b2)) if rank is None and keep is not None else rank, "Blast"
    )
    problems = [_padded(problem, -m % b1, -n % b2) for problem in problems]
    method = method or "als"
    if method == "als":
        if options:
            raise DataError(f"factorize: unknown options for 'als': {', '.join(sorted(options))}.")
        # One block is the low-rank matrix, which the SVD solves.
        closed = (b1, b2) == (1, 1) and start is None and r <= min(m, n)
        starts = [
            start_factors(
                problem, r, (b1, b2), start=start or "svd", noise=0.0 if closed else noise, seed=seed
            )
            for problem in problems
        ]
        if closed:
            found = [(factors, _direct(one, factors)) for one, factors in zip(problems, starts, strict=True)]
        else:
            found = alternating_least_squares(
                problems, starts, sweeps=sweeps or 20, tol=tol, momentum=momentum, callback=callback
            )
    elif method in ("precgd", "gd"):
        found = [
            descend(
                problem, r, (b1, b2), method=method, steps=sweeps or 300, tol=tol, seed=seed,
                callback=callback, start=start, **options,
            )
            for problem in problems
        ]  # fmt: skip
    else:
        raise DataError(f"factorize: method={method!r} is unknown for Blast. Use 'als', 'precgd' or 'gd'.")
    return [
        (Blast.from_factors(*factors, in_features=n, out_features=m), history) for factors, history in found
    ]


def _direct(problem: Problem, factors: Factors) -> History:
    error = problem.error(product(factors))
    return History((error**2,), (error,), 0.0, "direct", tuple(problem.notes))


def _padded(problem: Problem, rows: int, columns: int) -> Problem:
    """Return the problem with zero rows and columns added; padded inputs are independent of the others."""
    if not rows and not columns:
        return problem
    A = torch.nn.functional.pad(problem.matrix, (0, columns, 0, rows))
    H: Tensor | None = problem.second_moment
    if H is not None:
        mean = H.diagonal().mean()
        H = torch.nn.functional.pad(H, (0, columns, 0, columns))
        H.diagonal()[len(H) - columns :] = mean
    return Problem(matrix=A, second_moment=H, notes=problem.notes)
