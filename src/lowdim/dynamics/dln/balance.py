r"""Balance: how equally the layers share the product, and what one step of gradient descent does to it.

With ``G_l = W_{l+1}^T W_{l+1} - W_l W_l^T``, gradient flow keeps every G_l; one step of gradient descent
changes it only in second order, by ``eta^2 (g_{l+1}^T g_{l+1} - g_l g_l^T)`` with g_l the gradient of layer
l. Of single numbers, ``b = d_a^2 - d_c^2`` becomes ``b (1 - eta^2 (pi - s)^2 pi^2 / (d_a d_c)^2)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lowdim.dynamics.dln.descent import gradients
from lowdim.dynamics.dln.door import as_layers, as_rate, as_rates, as_target
from lowdim.errors import DataError, ShapeError

__all__ = ["balance_contraction", "balancing_gap", "balancing_matrices", "balancing_step"]


def balancing_matrices(layers: Sequence[Any]) -> list[Tensor]:
    """``G_l = W_{l+1}^T W_{l+1} - W_l W_l^T`` between each layer and the next; all 0 if balanced.

    Parameters
    ----------
    layers : sequence of array-like, shapes (..., w_l, w_{l-1})
        W_1, ..., W_L, first layer first.

    Returns
    -------
    list of Tensor
        L - 1 matrices, shapes (..., w_l, w_l).

    Raises
    ------
    ShapeError
        If the shapes do not chain.

    Examples
    --------
    >>> balancing_matrices([[[1.0]], [[3.0]]])
    [tensor([[8.]], dtype=torch.float64)]
    """
    Ws = as_layers(layers, "balancing_matrices")
    return [after.mT @ after - before @ before.mT for before, after in pairwise(Ws)]


def balancing_gap(layers: Sequence[Any], *, relative: bool = False) -> Tensor:
    """Largest Frobenius norm of the balancing matrices.

    Parameters
    ----------
    layers : sequence of array-like, shapes (..., w_l, w_{l-1})
        W_1, ..., W_L, first layer first.
    relative : bool, default False
        Divide by the largest ``||W_l||_F^2``.

    Returns
    -------
    Tensor of float64, shape (...)
        0 for balanced layers and for a single one.

    Raises
    ------
    ShapeError
        If the shapes do not chain.

    References
    ----------
    arXiv 2502.20531, proposition 2.

    Examples
    --------
    >>> float(balancing_gap([[[1.0]], [[3.0]]]))
    8.0
    """
    Ws = as_layers(layers, "balancing_gap")
    gaps = [G.square().sum((-2, -1)).sqrt() for G in balancing_matrices(Ws)]
    if not gaps:
        return Ws[0].new_zeros(Ws[0].shape[:-2])
    gap = torch.stack(gaps).amax(0)
    if not relative:
        return gap
    size = torch.stack([W.square().sum((-2, -1)) for W in Ws]).amax(0)
    return gap / size.clamp_min(torch.finfo(size.dtype).tiny)


def balancing_step(layers: Sequence[Any], *, target: Any, lr: float) -> list[Tensor]:
    """Balancing matrices after one step of gradient descent, without making the step.

    Parameters
    ----------
    layers : sequence of array-like, shapes (..., w_l, w_{l-1})
        W_1, ..., W_L, first layer first.
    target : array-like, shape (m, n) or (d,)
        M of the loss ``1/2 ||W_L ... W_1 - M||_F^2``.
    lr : float
        Learning rate.

    Returns
    -------
    list of Tensor
        ``G_l + lr^2 (g_{l+1}^T g_{l+1} - g_l g_l^T)``; exact.

    Raises
    ------
    ShapeError
        If layers and target do not fit.

    References
    ----------
    Derived here; of single numbers it is proposition 2 of arXiv 2502.20531.

    Examples
    --------
    >>> balancing_step([[[1.5]], [[2.25]]], target=[[5.0]], lr=0.2)[0].round(decimals=6)
    tensor([[2.5154]], dtype=torch.float64)
    """
    Ws = as_layers(layers, "balancing_step")
    M = as_target(target, "balancing_step")
    M = M.diag() if M.ndim == 1 else M
    eta = as_rate(lr, "balancing_step")
    if M.shape != (Ws[-1].shape[-2], Ws[0].shape[-1]):
        raise ShapeError(
            f"balancing_step: target of shape {tuple(M.shape)}, but the layers multiply to "
            f"{(Ws[-1].shape[-2], Ws[0].shape[-1])}."
        )
    _, g = gradients(Ws, lambda P: P - M)
    return [
        G + eta**2 * (after.mT @ after - before @ before.mT)
        for G, (before, after) in zip(balancing_matrices(Ws), pairwise(g), strict=True)
    ]


def balance_contraction(factors: Any, *, s: Any, lr: Any) -> Tensor:
    """Factor by which one step multiplies ``d_a^2 - d_c^2``, for each two layers of a scalar network.

    Parameters
    ----------
    factors : array-like, shape (..., L)
        The numbers d_1, ..., d_L of one singular direction.
    s : array-like, shape (...)
        Its singular value in the target.
    lr : float
        Learning rate.

    Returns
    -------
    Tensor of float64, shape (..., L, L)
        ``1 - lr^2 (pi - s)^2 pi^2 / (d_a d_c)^2`` with pi the product of all; 1 on the diagonal.

    Raises
    ------
    DataError
        If factors are not finite.

    References
    ----------
    arXiv 2502.20531, proposition 2.

    Examples
    --------
    >>> float(balance_contraction([1.5, 2.25], s=5.0, lr=0.2)[0, 1].round(decimals=4))
    0.8944
    """
    d = torch.as_tensor(factors, dtype=torch.float64)
    if not bool(torch.isfinite(d).all()):
        raise DataError("balance_contraction: factors hold NaN or infinite numbers.")
    eta = as_rates(lr, "balance_contraction")[..., None, None]
    L = d.shape[-1]
    miss = (d.prod(-1) - torch.as_tensor(s, dtype=torch.float64))[..., None, None]
    # pi / (d_a d_c), without dividing.
    rest = torch.stack(
        [
            torch.stack([d[..., [m for m in range(L) if m not in (a, c)]].prod(-1) for c in range(L)], -1)
            for a in range(L)
        ],
        -2,
    )
    off = 1 - torch.eye(L, dtype=d.dtype, device=d.device)
    return 1 - off * (eta * miss * rest) ** 2
