"""Action: what a linear map does to vectors, however the map is given.

Solvers and spectral estimators need nothing of a map but its products. They
accept a matrix, an :class:`~lowdim.algebra.operator.Operator`, an object with
``shape`` and ``@`` (a curvature operator of another library), or a function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowdim.algebra.operator import Operator
from lowdim.errors import DataError, ShapeError

__all__ = ["Action"]


@dataclass(frozen=True)
class Action:
    """Products with a linear map, on the last axis of a tensor.

    Parameters
    ----------
    forward : callable
        ``(..., n) -> (..., m)``; a function of the user may take any shape.
    adjoint : callable or None
        ``(..., m) -> (..., n)``, if it is known.
    shape : (int, int) or None
        Rows m and columns n; unknown for a function.
    dtype : torch.dtype or None
        Of the map's numbers, where it has them.
    device : torch.device or None
        Where these are.

    Examples
    --------
    >>> import torch
    >>> Action.of(torch.tensor([[1.0, 2.0]])).forward(torch.ones(3, 2))
    tensor([[3.],
            [3.],
            [3.]])
    """

    forward: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor], Tensor] | None = None
    shape: tuple[int, int] | None = None
    dtype: torch.dtype | None = None
    device: torch.device | None = None

    @classmethod
    def of(cls, operator: Any, *, adjoint: Any = None, where: str = "Action.of") -> Action:
        """Take a map in any accepted form.

        Parameters
        ----------
        operator : Tensor, ndarray, Operator, object with shape and @, or callable
            A matrix (..., m, n) may have batch axes. An object is multiplied with
            columns (n, k) and offers its adjoint as ``adjoint()``, ``mH``, ``H`` or
            (if real) ``T``.
        adjoint : same forms, optional
            The adjoint map, where `operator` does not know its own.
        where : str
            Name of the caller, for messages.

        Returns
        -------
        Action

        Raises
        ------
        DataError
            If the object has none of the accepted forms.
        """
        if adjoint is not None:
            given = cls.of(operator, where=where)
            other = cls.of(adjoint, where=where).forward
            return cls(given.forward, other, given.shape, given.dtype, given.device)
        if isinstance(operator, np.ndarray):
            operator = torch.from_numpy(operator)
        if isinstance(operator, Tensor):
            return cls._of_matrix(operator, where)
        if isinstance(operator, Operator):
            parameter = next(operator.parameters(), None)
            return cls(
                operator,
                operator.adjoint_forward,
                (operator.out_features, operator.in_features),
                None if parameter is None else parameter.dtype,
                None if parameter is None else parameter.device,
            )
        if hasattr(operator, "shape") and hasattr(operator, "__matmul__"):
            return cls._of_protocol(operator, where)
        if callable(operator):
            return cls(operator)
        raise DataError(
            f"{where}: cannot multiply with a {type(operator).__name__}. Give a matrix, an Operator, "
            f"an object with shape and @, or a function."
        )

    @classmethod
    def _of_matrix(cls, matrix: Tensor, where: str) -> Action:
        if matrix.ndim < 2:
            raise ShapeError(f"{where}: got a matrix of shape {tuple(matrix.shape)}, expected (..., m, n).")
        shape = (matrix.shape[-2], matrix.shape[-1])
        if matrix.ndim == 2:
            return cls(
                lambda x: x @ matrix.mT, lambda y: y @ matrix.conj(), shape, matrix.dtype, matrix.device
            )

        def product(factors: Tensor, x: Tensor) -> Tensor:
            try:
                return (factors @ x.unsqueeze(-1)).squeeze(-1)
            except RuntimeError as error:
                raise ShapeError(
                    f"{where}: a batch of matrices {tuple(factors.shape)} does not fit vectors "
                    f"{tuple(x.shape)}. Give (batch, {factors.shape[-1]})."
                ) from error

        return cls(
            lambda x: product(matrix, x),
            lambda y: product(matrix.mH, y),
            shape,
            matrix.dtype,
            matrix.device,
        )

    @classmethod
    def _of_protocol(cls, operator: Any, where: str) -> Action:
        def columns(given: Any) -> Callable[[Tensor], Tensor]:
            def product(x: Tensor) -> Tensor:
                result = given @ x.reshape(-1, x.shape[-1]).mT
                if not isinstance(result, Tensor):
                    raise DataError(
                        f"{where}: {type(operator).__name__} @ tensor gave a {type(result).__name__}, "
                        f"expected a tensor. Wrap the map in a function that takes and returns tensors."
                    )
                return result.mT.reshape(*x.shape[:-1], -1)

            return product

        rows, width = (int(size) for size in tuple(operator.shape)[-2:])
        dtype, device = getattr(operator, "dtype", None), getattr(operator, "device", None)
        if not isinstance(dtype, torch.dtype):
            dtype = None
        transposed = None
        if callable(getattr(operator, "adjoint", None)):
            transposed = operator.adjoint()
        else:
            real = dtype is None or not dtype.is_complex
            for name in ("mH", "H", "T") if real else ("mH", "H"):
                if hasattr(operator, name):
                    transposed = getattr(operator, name)
                    break
        device = torch.device(device) if isinstance(device, str | torch.device) else None
        return cls(
            columns(operator),
            None if transposed is None else columns(transposed),
            (rows, width),
            dtype,
            device,
        )

    def require_square(self, where: str) -> None:
        """Refuse a map that is known not to be square.

        Parameters
        ----------
        where : str
            Name of the caller, for the message.

        Raises
        ------
        ShapeError
            If m and n differ.
        """
        if self.shape is not None and self.shape[0] != self.shape[1]:
            raise ShapeError(
                f"{where}: the map is {self.shape[0]} x {self.shape[1]}, expected a square one. For least "
                f"squares use cgls, for singular values truncated_svd."
            )

    def require_adjoint(self, where: str) -> Callable[[Tensor], Tensor]:
        """Return the adjoint product, or say how to give one.

        Parameters
        ----------
        where : str
            Name of the caller, for the message.

        Returns
        -------
        callable

        Raises
        ------
        DataError
            If the adjoint is unknown.
        """
        if self.adjoint is None:
            raise DataError(f"{where}: the adjoint of the map is unknown. Give it as adjoint=function.")
        return self.adjoint
