"""The top of a spectrum that moves slowly: Lanczos from what was known a moment ago, stopped early."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Top", "climb"]


@dataclass(frozen=True, eq=False)
class Top:
    """What a climb to the top of a spectrum found.

    Parameters
    ----------
    values : Tensor, shape (count,)
        Ritz values, largest first; fewer where the space is smaller.
    vectors : Tensor, shape (size, count)
        Ritz vectors, of unit length.
    residual : float
        ``||H v - value v||`` of the first pair.
    increment : float
        What the last product added to the sum of the values, relative to its size.
    ritz : Tensor
        All Ritz values, ascending.
    products : int
        Products spent.
    converged : bool
        Whether the stopping rule was met.
    finite : bool
        Whether all products were finite; if not, the rest is of the last good one.
    """

    values: Tensor
    vectors: Tensor
    residual: float
    increment: float
    ritz: Tensor
    products: int
    converged: bool
    finite: bool


def climb(
    curvature: Any,
    start: Tensor,
    *,
    count: int = 1,
    tol: float = 1e-3,
    steps: int = 30,
    basis_size: int = 32,
) -> Top:
    """Grow a Krylov space from one vector until its top Ritz values settle.

    A Lanczos process with full reorthogonalization, twice, whose projected matrix is kept whole, so that a
    restart may put the best Ritz vectors in place of the basis. It stops when one more product adds no more
    than `tol` to the sum of the values. Residuals say less: near the edge of stability the top values
    cluster, and bounds by residual and gap stopped with errors of up to a third there.

    Parameters
    ----------
    curvature : Curvature
        The map: ``@``, `shape` and `layout`.
    start : Tensor, shape (size,)
        Not zero; the same in all processes that hold replicas.
    count : int
        How many values.
    tol : float
        Relative increment to stop at.
    steps : int
        At most this many products.
    basis_size : int
        At most this many vectors are held before a restart.

    Returns
    -------
    Top
    """
    layout, size = curvature.layout, curvature.shape[0]

    def dots(vectors: Tensor, with_: Tensor) -> Tensor:
        return layout.total(vectors @ with_)

    def norm(vector: Tensor) -> Tensor:
        return dots(vector, vector).sqrt()

    basis = start.new_empty(0, size)
    projected = start.new_zeros(0, 0)
    following = start / norm(start)
    total: float | None = None
    found: Top | None = None
    room = max(min(basis_size, steps), count + 2)
    for product in range(1, steps + 1):
        image = curvature @ following
        finite = bool(torch.isfinite(layout.total(image.sum())))
        if not finite:
            break
        basis = torch.cat([basis, following[None]])
        column = dots(basis, image)
        rest = image - column @ basis
        again = dots(basis, rest)
        rest = rest - again @ basis
        projected = torch.nn.functional.pad(projected, (0, 1, 0, 1))
        projected[:, -1] = projected[-1, :] = column + again
        beta = norm(rest)
        # On the host: a matrix of a few rows, and decisions are made there anyway.
        ritz, rotation = torch.linalg.eigh(projected.double().cpu())
        wanted = torch.arange(len(ritz) - 1, max(len(ritz) - 1 - count, -1), -1)
        values, turns = ritz[wanted], rotation[:, wanted]
        scale = float(values.sum().abs())
        now = float(values.sum())
        increment = (
            abs(now - total) / scale if total is not None and scale else float("inf") if scale else 0.0
        )
        # The sum grows by a whole value while there are fewer than count.
        total = now if len(values) == count else None
        exhausted = float(beta) <= 10 * torch.finfo(start.dtype).eps * float(ritz.abs().max())
        settled = layout.agree(increment <= tol or exhausted, device=start.device)
        last = settled or product == steps
        found = Top(
            values=values,
            vectors=start.new_empty(size, 0),
            residual=float(beta) * abs(float(turns[-1, 0])),
            increment=increment,
            ritz=ritz,
            products=product,
            converged=settled,
            finite=True,
        )
        if last:
            break
        following = rest / beta
        if basis.shape[0] == room:
            # Thick restart: the best vectors stay, and their matrix is diagonal.
            kept = rotation[:, -(count + 2) :].to(basis)
            basis = kept.mT @ basis
            projected = torch.diag(ritz[-(count + 2) :]).to(basis)
    if found is None:
        nothing = start.new_full((count,), float("nan")).double().cpu()
        return Top(nothing, start[:, None], float("nan"), float("nan"), nothing, 1, False, False)
    return _with_vectors(found, basis, rotation, wanted, finite=finite)


def _with_vectors(found: Top, basis: Tensor, rotation: Tensor, wanted: Tensor, *, finite: bool) -> Top:
    turns = rotation[:, wanted].to(basis)
    vectors = (turns.mT @ basis[: len(turns)]).mT
    return Top(
        found.values,
        vectors,
        found.residual,
        found.increment,
        found.ritz,
        found.products + (not finite),
        found.converged and finite,
        finite,
    )
