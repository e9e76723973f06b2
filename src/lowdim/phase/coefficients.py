"""Coefficients: each frame in a basis that is known for now, from its magnitudes."""

from __future__ import annotations

import torch
from torch import Tensor

from lowdim.phase.alignment import turned
from lowdim.phase.wirtinger import rwf

__all__ = ["coefficients", "ridge_of"]


def ridge_of(dtype: torch.dtype) -> float:
    """Return the ridge of normal equations, relative to their mean diagonal.

    Parameters
    ----------
    dtype : torch.dtype
        Real or complex.

    Returns
    -------
    float
        1e-6 in single precision, 1e-13 in double: below, the factorization may break down.
    """
    return 1e-6 if dtype in (torch.float32, torch.complex64) else 1e-13


def coefficients(
    M: Tensor,
    y: Tensor,
    *,
    start: Tensor | None = None,
    fresh: bool = True,
    others: Tensor | None = None,
    max_iter: int = 10,
    n_refine: int = 10,
    ridge: float = 0.0,
    real: bool = False,
) -> Tensor:
    """Minimize ``|| |M_k f_k| - y_k ||`` over the coefficients of all frames.

    From each start come rounds of "take the phases, solve the least squares"; every frame keeps its best end.

    Parameters
    ----------
    M : Tensor, shape (q, m, r) or (1, m, r)
        Measurements of the basis.
    y : Tensor, shape (q, m)
        Magnitudes.
    start : Tensor, shape (q, r), optional
        Where to go on.
    fresh : bool
        Whether to start from the end of the Wirtinger flow, too; always without `start`.
    others : Tensor, shape (k, q, r), optional
        Further starts, of any size: few measurements leave local minima.
    max_iter : int
        Steps of the Wirtinger flow; few, since what follows converges faster (50 found no more videos).
    n_refine : int
        Rounds from each start.
    ridge : float
        Weight of ``||f_k||^2`` in the least squares.
    real : bool
        Whether the coefficients are real although M is complex.

    Returns
    -------
    Tensor, shape (q, r)
    """
    gram = M.mH @ M
    gram = gram.real if real else gram
    level = gram.diagonal(dim1=-2, dim2=-1).real.mean(-1)
    # All-zero items (no basis yet, or weight 0) get the identity: their solution is 0.
    level = torch.where(level > 0, ridge + level * ridge_of(M.dtype), torch.ones_like(level))
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    chol = torch.linalg.cholesky(gram + level[:, None, None] * eye)

    starts = [] if start is None else [start]
    if fresh or start is None:
        starts.append(rwf(M, y, max_iter=max_iter, real=real))
    starts.extend([] if others is None else others)
    # One column per start, so that all of them share one product with M.
    f = torch.stack(starts, -1)
    data = y.unsqueeze(-1)
    for _ in range(n_refine):
        pull = M.mH @ turned(data, M @ f.to(M.dtype))
        f = torch.cholesky_solve(pull.real if real else pull, chol.expand(len(y), -1, -1))
    if f.shape[-1] == 1:
        return f[..., 0]
    misfit = ((M @ f.to(M.dtype)).abs() - data).square().sum(-2)
    return f.take_along_dim(misfit.argmin(-1)[:, None, None], -1)[..., 0]
