"""The rules that factorize into BlockDiagonal and Monarch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lowdim.algebra.blocks import BlockDiagonal, Monarch, check_blocks
from lowdim.algebra.history import History, Reason
from lowdim.algebra.lowrank import check_rank
from lowdim.algebra.problem import Problem, lower_root, register
from lowdim.errors import DataError, RankError

__all__ = ["fit_block_diagonal", "fit_monarch"]

_WINDOW = 5


def _refuse(structure: str, method: str | None, options: dict[str, Any]) -> None:
    if method is not None:
        raise DataError(f"factorize: method={method!r} is unknown for {structure}. Leave it out.")
    if options:
        raise DataError(f"factorize: unknown options for {structure}: {', '.join(sorted(options))}.")


@register(BlockDiagonal)
def fit_block_diagonal(
    problem: Problem,
    *,
    keep: float | None,
    rank: int | None,
    blocks: Any,
    method: str | None,
    sweeps: int | None,
    tol: float,
    seed: Any,
    callback: Any,
    **options: Any,
) -> tuple[BlockDiagonal, History]:
    """Factorize into :class:`BlockDiagonal`, in closed form.

    Output block i sees input block i only, so the best block is the regression
    ``W_i = (A_i H)_i H_ii^-1`` on it; without a second moment, the block itself.
    """
    _refuse("BlockDiagonal", method, options)
    m, n = problem.matrix.shape
    if rank is not None:
        raise RankError(
            "BlockDiagonal: the blocks are full, so rank has no meaning. Give blocks=... or keep=..."
        )
    assert keep is not None  # factorize has asked for one of the two
    if isinstance(blocks, str):
        blocks = BlockDiagonal.blocks_for(m, n, keep=keep)
    b, _ = check_blocks(blocks, m, n, "BlockDiagonal")
    BlockDiagonal.rank_for(keep, m, n, blocks)
    clock = time.perf_counter()
    p, q = m // b, n // b
    W = _diagonal_blocks(problem.weighted, b, p, q)
    if problem.second_moment is not None:
        corners = _diagonal_blocks(problem.second_moment, b, q, q)
        W = torch.cholesky_solve(W.mT, lower_root(corners).to(W.dtype)).mT.contiguous()
    operator = BlockDiagonal.from_factors(W)
    error = problem.error(operator.dense())
    seconds = time.perf_counter() - clock
    return operator, History((error**2,), (error,), seconds, "direct", tuple(problem.notes))


def _diagonal_blocks(matrix: Tensor, b: int, p: int, q: int) -> Tensor:
    return matrix.reshape(b, p, b, q).diagonal(dim1=0, dim2=2).permute(2, 0, 1).contiguous()


@register(Monarch)
def fit_monarch(
    problem: Problem,
    *,
    keep: float | None,
    rank: int | None,
    blocks: Any,
    method: str | None,
    sweeps: int | None,
    tol: float,
    seed: Any,
    callback: Callable[[int, float], Any] | None,
    **options: Any,
) -> tuple[Monarch, History]:
    """Factorize into :class:`Monarch`.

    Without a second moment the best rank-t approximation of every block is the
    solution. With one, block columns are visited in turn: given the others, the
    best block (i, j) is the whitened truncated SVD, in the norm of H_jj, of the
    present block plus the residual's regression on input block j. Every step is an
    exact minimizer, so the error never grows. The start is the rank-t truncation
    of the per-block regressions' sum, that is of A itself, whitened by H_jj.
    """
    _refuse("Monarch", method, options)
    m, n = problem.matrix.shape
    b1, b2 = check_blocks(Monarch.blocks_for(m, n) if isinstance(blocks, str) else blocks, m, n, "Monarch")
    t = check_rank(
        Monarch.rank_for(keep, m, n, (b1, b2)) if rank is None and keep is not None else rank, "Monarch"
    )
    p, q = m // b1, n // b2
    if t > min(p, q):
        raise RankError(f"Monarch: blocks of size {p}x{q} cannot have rank {t}. Use at most {min(p, q)}.")
    A, H = problem.matrix, problem.second_moment
    clock = time.perf_counter()
    blocks_of_a = A.reshape(b1, p, b2, q)
    L, R = A.new_empty(b1, p, b2, t), A.new_empty(b2, b1, t, q)
    if H is None:
        for j in range(b2):
            L[:, :, j], R[j] = _truncate(blocks_of_a[:, :, j], t, None)
        operator = Monarch.from_factors(L, R)
        error = problem.error(operator.dense())
        seconds = time.perf_counter() - clock
        return operator, History((error**2,), (error,), seconds, "direct", tuple(problem.notes))

    bands = H.reshape(b2, q, n)
    roots = [lower_root(bands[j][:, j * q : (j + 1) * q]).to(A.dtype) for j in range(b2)]
    for j in range(b2):
        L[:, :, j], R[j] = _truncate(blocks_of_a[:, :, j], t, roots[j])
    X = torch.einsum("ipjt,jitq->ipjq", L, R).reshape(m, n)
    P = (A - X) @ H
    objective = [problem.error(X) ** 2]
    reason: Reason = "steps"
    for sweep in range(1, (sweeps or 10) + 1):
        for j in range(b2):
            here = slice(j * q, (j + 1) * q)
            target = X[:, here] + torch.cholesky_solve(P[:, here].mT, roots[j]).mT
            L[:, :, j], R[j] = _truncate(target.reshape(b1, p, q), t, roots[j])
            change = torch.bmm(L[:, :, j], R[j]).reshape(m, q) - X[:, here]
            X[:, here] += change
            P.addmm_(change, bands[j], alpha=-1)
        squared = float(((A - X) * P).sum(dtype=torch.float64)) / problem.energy
        objective.append(min(max(squared, 0.0), objective[-1]))
        if callback is not None:
            callback(sweep, math.sqrt(objective[-1]))
        if sweep >= _WINDOW and objective[-1] >= (1 - tol) * objective[-1 - _WINDOW]:
            reason = "tolerance"
            break
    seconds = time.perf_counter() - clock
    errors = tuple(math.sqrt(value) for value in objective)
    return Monarch.from_factors(L, R), History(
        tuple(objective), errors, seconds, reason, tuple(problem.notes)
    )


def _truncate(block: Tensor, t: int, root: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the best rank-t factors of a batch of blocks in the norm of ``root root^T``, balanced."""
    weighted = block if root is None else block @ root
    left, values, right = torch.linalg.svd(weighted, full_matrices=False)
    scale = values[..., :t].sqrt()
    right = right[..., :t, :]
    if root is not None:
        right = torch.linalg.solve_triangular(root, right, upper=False, left=False)
    return left[..., :t] * scale[..., None, :], scale[..., None] * right
