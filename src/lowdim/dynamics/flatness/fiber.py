"""Fiber: all weights with one product, and how flat they can be.

The product stays the same if ``W_l -> exp(X_l) W_l exp(-X_{l-1})`` with X_0 = X_L = 0. Along this fiber the
largest eigenvalue of the Hessian is smallest at balanced layers. Its trace is not, from three layers on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lowdim.algebra.seeds import Seed, gaussian, generator
from lowdim.dynamics.dln.door import as_layers
from lowdim.dynamics.dln.minimum import sides
from lowdim.errors import ShapeError

__all__ = ["minimize_trace", "reparameterize"]


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

    Notes
    -----
    Where the product has not full rank the fiber is not closed, and the smallest trace may not be attained.

    Examples
    --------
    Three layers: less than at the balanced minimum, which is sharper in the trace.

    >>> from lowdim.dynamics import dln
    >>> balanced = dln.balanced_layers([2.0, 1.0, 0.5], depth=4)
    >>> found = minimize_trace(balanced)
    >>> round(float(dln.trace(found) / dln.trace(balanced)), 3)
    0.966
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
