"""Observe: what is seen of the product of the layers: all of it, some entries, or measurements."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowdim.errors import DataError, ShapeError

__all__ = ["Observation", "observe"]


class Observation:
    """All entries of the product; and what other observations have to say instead.

    Parameters
    ----------
    rows, columns : int
        Shape of the product.

    Attributes
    ----------
    count : int
        Observed numbers.
    full : bool
        Whether all of the product is seen as it is.
    """

    def __init__(self, rows: int, columns: int) -> None:
        self.shape = (rows, columns)
        self.count = rows * columns
        self.full = True

    def of(self, P: Tensor) -> Tensor:
        """Return what is seen of P (..., m, n), as vectors (..., count)."""
        return P.flatten(-2)

    def back(self, y: Tensor) -> Tensor:
        """Return the adjoint: vectors y (..., count) to matrices (..., m, n)."""
        return y.unflatten(-1, self.shape)

    def gram(self, up: Tensor, down: Tensor) -> Tensor:
        """Gram matrix (..., count, count) of the gradients in a layer between the products up and down."""
        A, B = up @ up.mT, down.mT @ down
        return torch.einsum("...ik,...jl->...ijkl", A, B).flatten(-4, -3).flatten(-2)

    def energy(self, up: Tensor, down: Tensor) -> Tensor:
        """Trace (...) of that matrix."""
        return up.square().sum((-2, -1)) * down.square().sum((-2, -1))

    def jacobian(self, up: Tensor, down: Tensor) -> Tensor:
        """Gradients (..., count, w v) of what is seen in a layer (w, v) between up and down."""
        return torch.einsum("...ia,...bj->...ijab", up, down).flatten(-4, -3).flatten(-2)


class Measured(Observation):
    """Inner products with given matrices; a mask is one that takes single entries.

    Parameters
    ----------
    matrices : Tensor, shape (count, m, n)
    """

    def __init__(self, matrices: Tensor) -> None:
        super().__init__(*matrices.shape[1:])
        self.count, self.full = matrices.shape[0], False
        self.matrices = matrices
        self._flat = matrices.flatten(1)

    def of(self, P: Tensor) -> Tensor:
        """Return <A_k, P>."""
        return P.flatten(-2) @ self._flat.mT

    def back(self, y: Tensor) -> Tensor:
        """Return sum_k y_k A_k."""
        return (y @ self._flat).unflatten(-1, self.shape)

    def jacobian(self, up: Tensor, down: Tensor) -> Tensor:
        """Gradients ``up^T A_k down^T``, flat."""
        return (up.mT[..., None, :, :] @ self.matrices @ down.mT[..., None, :, :]).flatten(-2)

    def gram(self, up: Tensor, down: Tensor) -> Tensor:
        """Inner products of the gradients."""
        J = self.jacobian(up, down)
        return J @ J.mT

    def energy(self, up: Tensor, down: Tensor) -> Tensor:
        """Their squared norms."""
        return self.jacobian(up, down).square().sum((-2, -1))


def observe(measurements: Any, rows: int, columns: int, where: str) -> Observation:
    """Take what is seen of a product in any accepted form.

    Parameters
    ----------
    measurements : None, mask of bool (m, n) or array-like (k, m, n)
    rows, columns : int
        Shape (m, n) of the product.
    where : str
        Name of the caller, for messages.

    Returns
    -------
    Observation

    Raises
    ------
    ShapeError
        If they do not fit the product.
    DataError
        If they hold numbers that are not finite, or see nothing.
    """
    if measurements is None:
        return Observation(rows, columns)
    found = measurements if isinstance(measurements, Tensor) else torch.as_tensor(np.asarray(measurements))
    if found.dtype == torch.bool and found.ndim == 2:
        seen = found.flatten().nonzero().squeeze(1)
        found = torch.eye(found.numel(), dtype=torch.float64, device=found.device)[seen].unflatten(
            1, found.shape
        )
    if found.ndim != 3 or tuple(found.shape[1:]) != (rows, columns):
        raise ShapeError(
            f"{where}: measurements of shape {tuple(found.shape)}, expected (k, {rows}, {columns}), or a "
            f"mask of bool ({rows}, {columns})."
        )
    found = found.to(torch.float64)
    if found.shape[0] == 0 or not bool(torch.isfinite(found).all()):
        raise DataError(f"{where}: measurements see nothing, or hold NaN or infinite numbers.")
    return Measured(found)
