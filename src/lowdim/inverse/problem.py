"""Problem: measurement, operator and noise, checked at the door and in the prior's range of values."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowdim.errors import DataError, LowdimError, ShapeError
from lowdim.inverse.operators import ForwardOperator, adjoint_error, as_operator
from lowdim.inverse.priors import Prior

__all__ = ["Problem"]

ADJOINT_TOLERANCE = 1e-3


class _Shifted(ForwardOperator):
    """A nonlinear operator that takes images of another range: ``x -> A(scale x + shift)``."""

    def __init__(self, inner: ForwardOperator, scale: float, shift: float, value_range: Any) -> None:
        super().__init__(linear=False, image_shape=inner.image_shape, value_range=value_range)
        self._inner, self._scale, self._shift = inner, scale, shift

    def A(self, x: Tensor) -> Tensor:
        return self._inner.A(self._scale * x + self._shift)

    def count(self, y: Tensor) -> Tensor:
        return self._inner.count(y)


@dataclass(frozen=True, eq=False)
class Problem:
    """What a solver needs to know: everything in the prior's units.

    The operator takes images in [a, b], the prior knows images in [c, d]; with ``x_operator = scale x +
    shift``, a linear A keeps its form when y becomes ``(y - A(shift)) / scale`` and sigma ``sigma / scale``.
    This is the only place that converts.

    Parameters
    ----------
    operator : ForwardOperator
        Takes images in the prior's range.
    y : Tensor, shape (B, ...)
        Measurements of these.
    sigma : float or None
        Standard deviation of the noise in them.
    shape : tuple of int
        (B, C, H, W) of the images.
    scale, shift : float
        From the prior's range to the operator's.
    where : str
        Who asks, for messages.

    Examples
    --------
    >>> from lowdim.inverse import Inpainting
    >>> mask = Inpainting(torch.eye(2), value_range=(0, 1))
    >>> problem = Problem.of(torch.eye(2).reshape(1, 1, 2, 2) / 2, mask, sigma=0.1)
    >>> float(problem.y.abs().max()), problem.sigma, problem.shape
    (0.0, 0.2, (1, 1, 2, 2))
    """

    operator: ForwardOperator
    y: Tensor
    sigma: float | None
    shape: tuple[int, ...]
    scale: float = 1.0
    shift: float = 0.0
    where: str = "inverse"

    @classmethod
    def of(
        cls,
        y: Any,
        operator: Any,
        *,
        sigma: float | None = None,
        prior: Prior | None = None,
        image_shape: tuple[int, ...] | None = None,
        x_init: Tensor | None = None,
        where: str = "inverse",
    ) -> Problem:
        """Check what a user gives.

        Parameters
        ----------
        y : Tensor, shape (B, ...)
            Measurements.
        operator : object with A(x), or function
            See `as_operator`.
        sigma : float, optional
            Standard deviation of the noise in y; the operator's otherwise, if it knows.
        prior : Prior, optional
            Gives the range of values, the device, and where it can the shape of images.
        image_shape : tuple of int, optional
            (C, H, W), where the prior does not tell (a latent one tells by its decoder).
        x_init : Tensor, shape (B, C, H, W), optional
            Gives the shape of images, too.
        where : str
            Who asks.

        Returns
        -------
        Problem
        """
        A = as_operator(operator)
        data = A.pack(y)
        if not data.is_floating_point() and not data.is_complex():
            data = data.float()
        if data.ndim < 2 or len(data) == 0:
            raise ShapeError(
                f"{where}: y has shape {tuple(data.shape)}, expected (batch, ...). Give y[None] for one "
                "image."
            )
        if not bool(torch.isfinite(data).all()):
            raise DataError(
                f"{where}: y holds NaN or infinite numbers. Mask them (see Inpainting), or fill them."
            )
        if prior is not None:
            data = data.to(prior.device)
        sigma = A.noise_sigma if sigma is None else float(sigma)
        if sigma is not None and not (math.isfinite(sigma) and sigma >= 0):
            raise DataError(f"{where}: sigma={sigma} must be a number >= 0, in the units of y.")
        shape = (len(data), *_image_shape(A, data, prior, image_shape, x_init, where))
        if A.image_shape is None and not A.closed_form:
            A = copy.copy(A)  # the user's operator may meet images of another size later
            A.image_shape = shape[1:]  # to pull back through it
        zero = torch.zeros(shape, device=data.device, dtype=_real(data))
        _try(A, zero, data, where)
        if A.linear and (error := adjoint_error(A, zero)) > ADJOINT_TOLERANCE:
            raise DataError(
                f"{where}: A_adjoint of {type(operator).__name__} is not the adjoint of A (relative error "
                f"{error:.2g}, at most {ADJOINT_TOLERANCE:g} is rounding). Correct it, leave it out (it is "
                "found by automatic differentiation), or say linear=False."
            )
        ours = (-1.0, 1.0) if prior is None else prior.value_range
        scale = (A.value_range[1] - A.value_range[0]) / (ours[1] - ours[0])
        shift = A.value_range[0] - scale * ours[0]
        if (scale, shift) == (1.0, 0.0):
            return cls(A, data, sigma, shape, where=where)
        if not A.linear:
            return cls(_Shifted(A, scale, shift, ours), data, sigma, shape, scale, shift, where)
        moved = (data - A.A(torch.full_like(zero, shift))) / scale
        return cls(A, moved, None if sigma is None else sigma / scale, shape, scale, shift, where)

    @property
    def dtype(self) -> torch.dtype:
        """Of the images."""
        return _real(self.y)

    def needed_sigma(self) -> float:
        """Return sigma, or ask for it."""
        if self.sigma is None:
            raise DataError(
                f"{self.where}: the noise in y is unknown. Give sigma=, its standard deviation in the "
                "units of y (0 for none), or an operator with noise_sigma."
            )
        return self.sigma

    def misfit(self, x: Tensor) -> Tensor:
        """Return ``||y - A(x)||^2`` of every image of `x`, shape (B,)."""
        return (self.operator.A(x) - self.y).abs().square().flatten(1).sum(1)

    def mean_misfit(self, x: Tensor) -> Tensor:
        """Return the squared residual of `x` per measured number, shape (B,)."""
        return self.misfit(x) / self.operator.count(self.y)

    def residual(self, x: Tensor) -> Tensor:
        """Return the mean squared residual of `x` over sigma^2, or itself where sigma is 0 or unknown."""
        return self.mean_misfit(x) / (self.sigma**2 if self.sigma else 1.0)

    def to_operator(self, x: Tensor) -> Tensor:
        """Return images `x` of the prior's range in the operator's."""
        return self.scale * x + self.shift

    def from_operator(self, x: Tensor) -> Tensor:
        """Return images `x` of the operator's range in the prior's."""
        return (x - self.shift) / self.scale


def _real(y: Tensor) -> torch.dtype:
    return torch.empty((), dtype=y.dtype).real.dtype if y.is_complex() else y.dtype


def _image_shape(
    A: ForwardOperator,
    y: Tensor,
    prior: Prior | None,
    given: tuple[int, ...] | None,
    x_init: Tensor | None,
    where: str,
) -> tuple[int, ...]:
    """Return (C, H, W) from whoever knows it."""
    if x_init is not None:
        if x_init.ndim != 4 or len(x_init) not in (1, len(y)):
            raise ShapeError(
                f"{where}: x_init has shape {tuple(x_init.shape)}, expected ({len(y)}, C, H, W), one image "
                "per measurement."
            )
        return tuple(x_init.shape[1:])
    for known in (given, A.image_shape, None if prior is None else prior.shape):
        if known is not None:
            return tuple(known)
    if A.linear:
        try:
            return tuple(A.A_adjoint(y).shape[1:])
        except ShapeError:
            pass
    raise ShapeError(
        f"{where}: the size of the images is unknown. Give x_init, or as_operator(..., image_shape=(C, H, "
        "W))."
    )


def _try(A: ForwardOperator, zero: Tensor, y: Tensor, where: str) -> None:
    """Try the operator on black images."""
    try:
        with torch.no_grad():
            there = A.A(zero)
    except LowdimError:
        raise
    except Exception as error:  # whatever a user's operator does with images that it was not made for
        raise ShapeError(
            f"{where}: the operator does not take images of {tuple(zero.shape)} ({error}). Check the sizes "
            "of prior, operator and y."
        ) from error
    if there.shape != y.shape:
        raise ShapeError(
            f"{where}: y has shape {tuple(y.shape)}, but A gives {tuple(there.shape)} for images of "
            f"{tuple(zero.shape)}. Check the batch and the image size."
        )
