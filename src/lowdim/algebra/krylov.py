"""The block Lanczos method, on which the estimators of spectrum.py stand."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from time import perf_counter
from typing import Literal

import torch
from torch import Tensor

from lowdim.algebra.history import History, Reason
from lowdim.algebra.seeds import gaussian
from lowdim.errors import DataError, Diverged, ShapeError

__all__ = ["Stop", "first_block", "krylov", "rows"]

Stop = Literal["residual", "increment"]


def rows(forward: Callable[[Tensor], Tensor], columns: Tensor) -> Tensor:
    """Multiply a map that acts on the last axis with the columns of a matrix.

    Parameters
    ----------
    forward : callable
        ``(k, n) -> (k, m)``. It may track gradients of its own, as curvature maps do;
        they end here.
    columns : Tensor, shape (n, k)
        The vectors.

    Returns
    -------
    Tensor, shape (m, k)
    """
    return forward(columns.mT.contiguous()).detach().mT


def _orthonormal(block: Tensor, basis: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Orthogonalize a block against a basis, twice, and drop what is only rounding.

    Returns the new directions, and coefficients R with ``block = basis C + new R`` up to a rotation of
    the new directions, which is all that norms need.
    """
    for _ in range(2):
        block = block - basis @ (basis.mH @ block)
    left, singular, right = torch.linalg.svd(block, full_matrices=False)
    eps = torch.finfo(block.dtype).eps
    kept = int((singular > 10 * eps * sqrt(block.shape[0]) * scale).sum())
    new = left[:, :kept]
    new = new - basis @ (basis.mH @ new)
    return torch.linalg.qr(new).Q, singular[:kept, None] * right[:kept]


def first_block(
    where: str,
    start: Tensor | None,
    *,
    width: int,
    size: int,
    perturb: float,
    source: torch.Generator | None,
    dtype: torch.dtype,
    device: torch.device | str | None,
) -> Tensor:
    """Make the orthonormal vectors to begin with.

    Parameters
    ----------
    where : str
        Name of the caller, for messages.
    start : Tensor, shape (n,) or (n, block), or None
        Warm start.
    width : int
        Number of random vectors without `start`.
    size : int
        Length n of the vectors.
    perturb : float
        Random part added to `start`, relative to its norm.
    source : torch.Generator or None
        Of random numbers.
    dtype, device
        Of the vectors.

    Returns
    -------
    Tensor, shape (n, block)

    Raises
    ------
    ShapeError
        If `start` does not fit.
    DataError
        If `start` is zero or not finite.
    """
    if start is None:
        drawn = gaussian((width, size), seed=source, dtype=dtype, device=device).mT
    else:
        drawn = start.detach().to(dtype=dtype, device=device)
        drawn = drawn.unsqueeze(-1) if drawn.ndim == 1 else drawn
        if drawn.ndim != 2 or drawn.shape[0] != size or drawn.shape[1] < 1:
            raise ShapeError(
                f"{where}: start has shape {tuple(start.shape)}, expected ({size},) or ({size}, block)."
            )
        if not bool(torch.isfinite(drawn).all()) or not bool(drawn.any()):
            raise DataError(f"{where}: start is zero or not finite. Give other vectors, or None.")
        # A little of everything, so that a direction that start is blind to can come to the front.
        noise = gaussian((drawn.shape[1], size), seed=source, dtype=dtype, device=device).mT
        drawn = drawn + perturb * torch.linalg.vector_norm(drawn, dim=0) / sqrt(size) * noise
    first, _ = _orthonormal(drawn, drawn[:, :0], float(torch.linalg.matrix_norm(drawn)))
    return first


def krylov(
    where: str,
    product: Callable[[Tensor], Tensor],
    first: Tensor,
    *,
    count: int,
    order: Callable[[Tensor], Tensor],
    steps: int,
    tol: float,
    stop: Stop,
    source: torch.Generator | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, int, History]:
    """Block Lanczos with full reorthogonalization.

    With an orthonormal basis Q of the Krylov space and T = Q^H A Q, the Ritz pairs
    T s = theta s give A Q s - theta Q s = Q_next R s_last: the residual costs no product.

    Parameters
    ----------
    where : str
        Name of the caller, for messages.
    product : callable
        A symmetric map on columns, ``(n, k) -> (n, k)``.
    first : Tensor, shape (n, block)
        Orthonormal vectors to begin with.
    count : int
        Number of wanted pairs.
    order : callable
        Ascending Ritz values -> their indices, the wanted ones first.
    steps : int
        At most this many blocks, and at least one.
    tol : float
        See :func:`~lowdim.algebra.spectrum.eigenpairs`.
    stop : {"residual", "increment"}
        See there.
    source : torch.Generator or None
        Of random numbers.

    Returns
    -------
    values, vectors, residuals, ritz : Tensor
        Wanted values and vectors, their residual norms, and all Ritz values.
    products : int
        Products spent.
    history : History

    Raises
    ------
    ShapeError
        If the map changes the shape of the vectors.
    DataError
        If `steps` are too few for `count` values.
    Diverged
        If a product is not finite.
    """
    if steps < 1:
        raise DataError(f"{where}: steps={steps}, expected at least 1.")
    started = perf_counter()
    size = first.shape[0]
    basis, block = first[:, :0], first
    compression = first.new_zeros(0, 0)
    objective: list[float] = []
    residual: list[float] = []
    products = 0
    reason: Reason = "steps"
    for _ in range(steps):
        image = product(block)
        products += block.shape[1]
        if image.shape != block.shape:
            raise ShapeError(
                f"{where}: the map turned vectors of length {size} into {tuple(image.mT.shape)}, expected "
                f"{tuple(block.mT.shape)}."
            )
        if not bool(torch.isfinite(image).all()):
            raise Diverged(
                f"{where}: product {products} is not finite. Check the map for NaN and overflow.",
                step=len(objective),
                last=objective[-1] if objective else None,
            )
        basis = torch.cat([basis, block], dim=1)
        column = basis.mH @ image
        grown = basis.new_zeros(basis.shape[1], basis.shape[1])
        grown[: -block.shape[1], : -block.shape[1]] = compression
        grown[:, -block.shape[1] :] = column
        grown[-block.shape[1] :] = column.mH
        diagonal = column[-block.shape[1] :]
        grown[-block.shape[1] :, -block.shape[1] :] = (diagonal + diagonal.mH) / 2
        compression = grown
        ritz, rotation = torch.linalg.eigh(compression)
        wanted = order(ritz)[:count]
        scale = float(ritz.abs().max())
        following, coupling = _orthonormal(
            image - basis @ column, basis, max(scale, torch.finfo(ritz.dtype).tiny)
        )
        residuals = torch.linalg.vector_norm(coupling @ rotation[-block.shape[1] :, wanted], dim=0)
        objective.append(float(ritz[wanted].sum()))
        residual.append(float(residuals.max()) / scale if scale else 0.0)
        complete = len(wanted) == count
        if complete and (residual[-1] <= tol if stop == "residual" else _settled(objective, count, tol)):
            reason = "tolerance"
            break
        if basis.shape[1] == size:
            reason = "direct"
            break
        if following.shape[1] == 0:
            # An invariant subspace without enough eigenvalues (a multiple one hides): look outside it.
            fresh = gaussian((1, size), seed=source, dtype=basis.dtype, device=basis.device).mT
            following, _ = _orthonormal(fresh, basis, float(torch.linalg.vector_norm(fresh)))
        block = following[:, : size - basis.shape[1]]
    if len(wanted) < count:
        raise DataError(f"{where}: {steps} steps gave {len(wanted)} of {count} values. Raise steps.")
    history = History(tuple(objective), tuple(residual), perf_counter() - started, reason)
    return ritz[wanted], basis @ rotation[:, wanted], residuals, ritz, products, history


def _settled(objective: list[float], count: int, tol: float) -> bool:
    return len(objective) >= 2 and abs(objective[-1] - objective[-2]) <= tol * abs(objective[-1])
