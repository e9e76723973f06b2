"""The top of a spectrum that moves slowly: Lanczos from what was known a moment ago, stopped early."""

from __future__ import annotations

from dataclasses import dataclass, replace
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
    floor: float = 0.0,
    steps: int = 30,
    basis_size: int | None = None,
) -> Top:
    """Grow a Krylov space from one vector until its top Ritz values settle.

    A Lanczos process with full reorthogonalization, whose projected matrix is kept whole, so that a
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
    floor : float
        Increment to stop at in any case, in the unit of the values.
    steps : int
        At most this many products.
    basis_size : int, optional
        At most this many vectors are held before a restart: by default 32, and 8 of more than 16 million
        numbers.

    Returns
    -------
    Top
    """
    layout, size = curvature.layout, curvature.shape[0]
    if basis_size is None:
        basis_size = 32 if size <= 1 << 24 else 8
    room = max(min(basis_size, steps), count + 2)
    # Products become the basis where they lie: memory for a copy takes longer than all else here.
    basis = [start / _norm(layout, start)]
    projected = start.new_zeros(0, 0)
    total: float | None = None
    found: Top | None = None
    finite = True
    for product in range(1, steps + 1):
        image = curvature @ basis[-1]
        finite = bool(torch.isfinite(layout.total(image.sum())))
        if not finite:
            break
        held = len(basis)
        # Most of it lies along the last two vectors; what is left is made orthogonal to all.
        first = _project_out(layout, basis[-2:], image)
        column = _project_out(layout, basis, image)
        column[-len(first) :] += first
        projected = torch.nn.functional.pad(projected, (0, 1, 0, 1))
        projected[:, -1] = projected[-1, :] = column
        beta = float(_norm(layout, image))
        # On the host: a matrix of a few rows, and decisions are made there anyway.
        ritz, rotation = torch.linalg.eigh(projected.double().cpu())
        wanted = torch.arange(held - 1, max(held - 1 - count, -1), -1)
        values, turns = ritz[wanted], rotation[:, wanted]
        now = float(values.sum())
        added = float("inf") if total is None else abs(now - total)
        increment = added / abs(now) if now else 0.0
        # The sum grows by a whole value while there are fewer than count.
        total = now if len(values) == count else None
        exhausted = beta <= 10 * torch.finfo(start.dtype).eps * float(ritz.abs().max())
        settled = layout.agree(increment <= tol or added <= floor or exhausted, device=start.device)
        found = Top(
            values=values,
            vectors=turns,
            residual=beta * abs(float(turns[-1, 0])),
            increment=increment,
            ritz=ritz,
            products=product,
            converged=settled,
            finite=True,
        )
        if settled or product == steps:
            break
        if held == room:
            # Thick restart: the best vectors stay, and their matrix is diagonal.
            best = min(count + 1, held - 1)
            basis = list(_combined(basis, rotation[:, -best:]))
            projected = torch.diag(ritz[-best:]).to(start)
        basis.append(image.div_(beta))
    if found is None:
        nothing = start.new_full((count,), float("nan")).double().cpu()
        return Top(nothing, start[:, None], float("nan"), float("nan"), nothing, 1, False, False)
    return replace(
        found,
        vectors=_combined(basis[: len(found.vectors)], found.vectors).mT,
        products=found.products + (not finite),
        converged=found.converged and finite,
        finite=finite,
    )


def _project_out(layout: Any, basis: list[Tensor], image: Tensor) -> Tensor:
    """Take the part along each vector out of an image, in place, and return how long the parts are."""
    parts: Tensor = layout.total(torch.stack([vector @ image for vector in basis]))
    for vector, part in zip(basis, parts.tolist(), strict=True):
        image.sub_(vector, alpha=part)
    return parts


def _combined(basis: list[Tensor], turns: Tensor) -> Tensor:
    """Return the combinations of vectors whose coefficients are the columns of `turns`, as rows."""
    rows = basis[0].new_zeros(turns.shape[1], len(basis[0]))
    for row, column in zip(rows, turns.mT.tolist(), strict=True):
        for vector, part in zip(basis, column, strict=True):
            row.add_(vector, alpha=part)
    return rows


def _norm(layout: Any, vector: Tensor) -> Tensor:
    return layout.total(vector @ vector).sqrt()
