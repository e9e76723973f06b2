"""The one door to all ways of computing a Blast product."""

from __future__ import annotations

from torch import Tensor

from lowdim.algebra.kernels.product import Path, choose_path, feature_major, token_major

__all__ = ["blast_product"]

_PATHS = {"feature": feature_major, "token": token_major}


def blast_product(x: Tensor, U: Tensor, S: Tensor, V: Tensor, *, path: Path | None = None) -> Tensor:
    """Return ``y_i = U_i sum_j S[:, i, j] * (V_j x_j)`` on the last axis.

    Parameters
    ----------
    x : Tensor of shape (..., b2 q)
    U, S, V : Tensor of shape (b1, p, r), (r, b1, b2), (b2, r, q)
    path : {"feature", "token"}, optional
        How; by default the order measured to be faster.

    Returns
    -------
    Tensor of shape (..., b1 p), contiguous

    Examples
    --------
    >>> import torch
    >>> U, S, V = torch.ones(2, 3, 4), torch.ones(4, 2, 5), torch.ones(5, 4, 1)
    >>> blast_product(torch.ones(7, 5), U, S, V).shape
    torch.Size([7, 6])
    """
    tokens = x.reshape(-1, x.shape[-1])
    chosen = path or choose_path(tokens.shape[0], U.shape[0], V.shape[0])
    y = _PATHS[chosen](tokens, U, S, V)
    return y.reshape(*x.shape[:-1], y.shape[-1])
