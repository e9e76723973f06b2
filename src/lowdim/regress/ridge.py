"""Ridge: many small weighted least-squares problems at once, each with a free intercept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["Ridge", "gram", "positive_factor", "product", "ridge", "scaled", "solve_positive"]


@dataclass(frozen=True, eq=False)
class Ridge:
    """Solutions of ridge problems.

    Parameters
    ----------
    solution : Tensor of shape (C, q)
        v.
    offset : Tensor of shape (C,)
        Weighted mean of Z v, which the intercept takes off.
    misfit : Tensor of shape (C,)
        Weighted sum of squared residuals.
    """

    solution: Tensor
    offset: Tensor
    misfit: Tensor


def ridge(Z: Tensor, y: Tensor, weights: Tensor | float, alpha: Tensor, *, center: bool = True) -> Ridge:
    """Minimize ``sum_i s_i (y_i - <z_i - z, v>)^2 + alpha ||v||^2`` with z the weighted mean of the z_i.

    The normal equations are set up in q or in N unknowns, whichever are fewer:
    ``v = (A^T A + alpha)^-1 A^T b = A^T (A A^T + alpha)^-1 b`` with ``A = sqrt(s) (Z - z)``, ``b = sqrt(s)
    y``.

    Parameters
    ----------
    Z : Tensor of shape (C, N, q)
        In double precision.
    y : Tensor of shape (C, N)
        Of weighted mean zero (with `center`).
    weights : Tensor of shape (C, N), or float
        s, non-negative with sum 1; a number if all are equal.
    alpha : Tensor of shape (C,)
        Non-negative.
    center : bool
        Whether z is taken off.

    Returns
    -------
    Ridge

    Examples
    --------
    >>> one = torch.ones(1, 2, dtype=torch.float64) / 2
    >>> Z = torch.tensor([[[1.0], [-1.0]]], dtype=torch.float64)
    >>> y = torch.tensor([[2.0, -2.0]]).double()
    >>> round(float(ridge(Z, y, one, torch.ones(1).double()).solution), 6)
    1.0
    """
    rows, mean = scaled(Z, weights, center=center)
    b = y.unsqueeze(-1)
    # Equal weights are put into the penalty instead of into every row.
    size = weights if isinstance(weights, float) else 1.0
    if not isinstance(weights, float):
        b = b * weights.sqrt().unsqueeze(-1)
    if rows.shape[2] <= rows.shape[1]:
        v = solve_positive(gram(rows), rows.mT @ b, alpha / size)
    else:
        v = rows.mT @ solve_positive(gram(rows.mT), b, alpha / size)
    misfit = size * (b - rows @ v).square().sum((1, 2))
    offset = torch.zeros_like(misfit) if mean is None else (mean @ v).flatten()
    return Ridge(v.squeeze(-1), offset, misfit)


def scaled(Z: Tensor, weights: Tensor | float, *, center: bool) -> tuple[Tensor, Tensor | None]:
    """Return regressors less their weighted mean (C, 1, q), times the roots of weights that are not equal.

    Parameters
    ----------
    Z : Tensor of shape (C, N, q)
    weights : Tensor of shape (C, N), or float
    center : bool

    Returns
    -------
    rows : Tensor of shape (C, N, q)
    mean : Tensor of shape (C, 1, q) or None
        None without `center`.
    """
    mean = None
    if center:
        mean = Z.mean(1, keepdim=True) if isinstance(weights, float) else weights.unsqueeze(1) @ Z
        Z = Z - mean
    return (Z if isinstance(weights, float) else Z * weights.sqrt().unsqueeze(-1)), mean


def product(A: Tensor, B: Tensor) -> Tensor:
    """Return A B. On the CPU NumPy's library is about twice as fast at products with one short side.

    Parameters
    ----------
    A, B : Tensor
        Matrices, or batches of them.

    Returns
    -------
    Tensor
    """
    if A.device.type != "cpu":
        return A @ B
    return torch.from_numpy(np.matmul(A.numpy(), B.numpy()))


def gram(A: Tensor) -> Tensor:
    """Return A^T A. On the CPU NumPy notices that the product is symmetric, and computes half of it.

    Parameters
    ----------
    A : Tensor of shape (C, N, q)

    Returns
    -------
    Tensor of shape (C, q, q)
    """
    if A.device.type != "cpu":
        return A.mT @ A
    held = A.numpy()
    return torch.from_numpy(np.matmul(held.swapaxes(1, 2), held))


def positive_factor(G: Tensor, alpha: Tensor) -> Tensor:
    """Return the lower Cholesky factor of ``G + alpha``, with a little more on a diagonal that needs it.

    Parameters
    ----------
    G : Tensor of shape (C, q, q)
        Gram matrices; overwritten.
    alpha : Tensor of shape (C,)

    Returns
    -------
    Tensor of shape (C, q, q)
    """
    diagonal = G.diagonal(dim1=1, dim2=2)
    diagonal.add_(alpha.unsqueeze(-1))
    factor, info = torch.linalg.cholesky_ex(G)
    if bool(info.any()):
        eps = torch.finfo(G.dtype).eps
        diagonal.add_(
            (8 * eps * G.shape[-1] * diagonal.amax(-1).clamp_min(1e-300) * (info > 0)).unsqueeze(-1)
        )
        factor, _ = torch.linalg.cholesky_ex(G)
    return factor


def solve_positive(G: Tensor, right: Tensor, alpha: Tensor) -> Tensor:
    """Solve ``(G + alpha) x = right`` for Gram matrices G; a singular one gives the shortest solution.

    Parameters
    ----------
    G : Tensor of shape (C, q, q)
        Overwritten.
    right : Tensor of shape (C, q, 1)
    alpha : Tensor of shape (C,)

    Returns
    -------
    Tensor of shape (C, q, 1)
    """
    G.diagonal(dim1=1, dim2=2).add_(alpha.unsqueeze(-1))
    factor, info = torch.linalg.cholesky_ex(G)
    if not bool(info.any()):
        return torch.cholesky_solve(right, factor)
    values, vectors = torch.linalg.eigh(G)
    kept = values > values[:, -1:].clamp_min(1e-300) * G.shape[-1] * torch.finfo(G.dtype).eps
    inverse = torch.where(kept, 1 / values.where(kept, values.new_ones(())), 0)
    return vectors @ (inverse.unsqueeze(-1) * (vectors.mT @ right))
