"""The Blast product in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["blast_product", "feature_major"]


def blast_product(x: Tensor, U: Tensor, S: Tensor, V: Tensor) -> Tensor:
    """Return ``y_i = U_i sum_j S[:, i, j] * (V_j x_j)`` on the last axis.

    Parameters
    ----------
    x : Tensor of shape (..., b2 q)
    U, S, V : Tensor of shape (b1, p, r), (r, b1, b2), (b2, r, q)

    Returns
    -------
    Tensor of shape (..., b1 p)
    """
    b1, p, _ = U.shape
    y = feature_major(x.reshape(-1, x.shape[-1]), U, S, V)
    return y.reshape(*x.shape[:-1], b1 * p)


def feature_major(x: Tensor, U: Tensor, S: Tensor, V: Tensor) -> Tensor:
    """Compute the product with features before tokens: three batched matrix products."""
    b1, p, _ = U.shape
    b2, _, q = V.shape
    z = torch.bmm(V, x.view(-1, b2, q).permute(1, 2, 0))
    w = torch.bmm(S, z.transpose(0, 1))
    y = torch.bmm(U, w.transpose(0, 1))
    return y.permute(2, 0, 1).reshape(-1, b1 * p)
