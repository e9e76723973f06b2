"""Fiber: all weights with one product, and how flat they can be.

The product stays the same if ``W_l -> exp(X_l) W_l exp(-X_{l-1})`` with X_0 = X_L = 0. Along this fiber the
largest eigenvalue of the Hessian is smallest at balanced layers. Its trace is not, from three layers on: it
is smallest elsewhere, and that value depends on the sum of the singular values alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lowdim.algebra.seeds import Seed, gaussian, generator
from lowdim.dynamics.dln.door import as_depth, as_layers, as_singular_values, as_target
from lowdim.dynamics.dln.minimum import sides
from lowdim.errors import ShapeError

__all__ = ["minimize_trace", "reparameterize", "smallest_trace"]


def reparameterize(layers: Sequence[Any], generators: Sequence[Any]) -> list[Tensor]:
    """Change the weights without changing their product.

    Parameters
    ----------
    layers : sequence of array-like, shapes (..., w_l, w_{l-1})
        W_1, ..., W_L, first layer first.
    generators : sequence of array-like, shapes (..., w_l, w_l)
        X_1, ..., X_{L-1}, any matrices; batch axes are broadcast.

    Returns
    -------
    list of Tensor
        ``exp(X_l) W_l exp(-X_{l-1})``.

    Raises
    ------
    ShapeError
        If there is not one generator between every two layers.

    Examples
    --------
    >>> import math
    >>> reparameterize([[[1.0]], [[1.0]]], [[[math.log(2.0)]]])
    [tensor([[2.]], dtype=torch.float64), tensor([[0.5000]], dtype=torch.float64)]
    """
    Ws = as_layers(layers, "reparameterize")
    Xs = [torch.as_tensor(X, dtype=torch.float64) for X in generators]
    widths = [W.shape[-2] for W in Ws[:-1]]
    if [tuple(X.shape[-2:]) for X in Xs] != [(width, width) for width in widths]:
        raise ShapeError(
            f"reparameterize: generators of shapes {[tuple(X.shape) for X in Xs]}, expected square ones of "
            f"sizes {widths}, one between every two layers."
        )
    return _turn(Ws, Xs)


def _turn(layers: list[Tensor], generators: list[Tensor]) -> list[Tensor]:
    turned = list(layers)
    for k, X in enumerate(generators):
        turned[k] = torch.linalg.matrix_exp(X) @ turned[k]
        turned[k + 1] = turned[k + 1] @ torch.linalg.matrix_exp(-X)
    return turned


def smallest_trace(target: Any, *, depth: int) -> Tensor:
    """Smallest trace of the Hessian of all weights with the product M.

    It is ``L (m n)^(1/L) (sum_i s_i)^(2 - 2/L)``.

    Parameters
    ----------
    target : array-like, shape (m, n) or (d,)
        The matrix M, or the singular values of a square one, zeros included.
    depth : int
        Number of layers L.

    Returns
    -------
    Tensor of float64, a scalar

    References
    ----------
    Gatmiry et al., "The Inductive Bias of Flatness Regularization for Deep Matrix Factorization", arXiv
    2306.13239 (small trace means small sum of singular values); derived here for aligned weights, and
    confirmed by `minimize_trace`.

    Examples
    --------
    >>> smallest_trace([4.0, 1.0], depth=2)
    tensor(20., dtype=torch.float64)
    """
    L = as_depth(depth, "smallest_trace")
    M = as_target(target, "smallest_trace")
    m, n = M.shape if M.ndim == 2 else (len(M), len(M))
    nuclear = as_singular_values(M, "smallest_trace").sum()
    return L * (m * n) ** (1 / L) * nuclear ** (2 - 2 / L)


def minimize_trace(layers: Sequence[Any], *, steps: int = 500, seed: Seed = 0) -> list[Tensor]:
    """Find the weights with the same product and the smallest trace of the Hessian.

    Parameters
    ----------
    layers : sequence of array-like, shapes (w_l, w_{l-1})
        W_1, ..., W_L, first layer first.
    steps : int, default 500
        Largest number of steps of L-BFGS.
    seed : int, generator or None, default 0
        Of the small turn to begin with, which leaves saddles.

    Returns
    -------
    list of Tensor

    Raises
    ------
    ShapeError
        If the layers are a batch.

    Examples
    --------
    From three layers on it is less than at the balanced minimum.

    >>> from lowdim.dynamics import dln
    >>> balanced = dln.balanced_layers([2.0, 1.0, 0.5], depth=4)
    >>> found = dln.trace(minimize_trace(balanced))
    >>> round(float(found / dln.trace(balanced)), 3), round(float(found), 3)
    (0.966, 45.365)
    >>> round(float(smallest_trace([2.0, 1.0, 0.5], depth=4)), 3)
    45.365
    """
    Ws = as_layers(layers, "minimize_trace")
    if Ws[0].ndim != 2:
        raise ShapeError("minimize_trace: got a batch of networks, expected one. Loop over the batch.")
    source = generator(seed)
    Xs = [
        (1e-3 * gaussian((W.shape[0],) * 2, seed=source, dtype=W.dtype, device=W.device)).requires_grad_()
        for W in Ws[:-1]
    ]
    if not Xs:
        return Ws
    search = torch.optim.LBFGS(
        Xs,
        max_iter=steps,
        history_size=50,
        tolerance_grad=1e-10,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        search.zero_grad()
        value = _trace(_turn(Ws, Xs))
        value.backward()
        return value

    with torch.enable_grad():
        search.step(closure)
    return [W.detach() for W in _turn(Ws, Xs)]


def _trace(layers: list[Tensor]) -> Tensor:
    """``sum_l tr(A_l) tr(B_l)``, differentiable."""
    ups, downs = sides(layers)
    terms = [up.square().sum() * down.square().sum() for up, down in zip(ups, downs, strict=True)]
    return torch.stack(terms).sum()
