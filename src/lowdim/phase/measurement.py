"""Measurement: the linear map of every frame, as a tensor or without one."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowdim.errors import DataError, ShapeError

__all__ = ["DenseMeasurement", "Measurement", "measurement_of"]


class Measurement(ABC):
    """The linear part of ``y_k = |A_k x_k|`` for all frames at once.

    Subclasses give `forward` and `adjoint`, which are batched over leading axes and over frames; the solvers
    ask for nothing else. See `CodedDiffraction` and `Ptychography` for maps by Fourier transforms.

    Parameters
    ----------
    frames : int or None
        Number q of frames; None for a map that is the same for all, and serves any number.
    samples : int
        Measurements m per frame.
    image_shape : sequence of int
        Of one frame.
    dtype : torch.dtype
        Of ``A x``.
    device : torch.device or str
        Where it computes.

    Raises
    ------
    ShapeError
        If a size is not positive.
    """

    def __init__(
        self,
        *,
        frames: int | None,
        samples: int,
        image_shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        self.frames, self.samples = frames, samples
        self.image_shape = tuple(int(size) for size in image_shape)
        self.dtype, self.device = dtype, torch.device(device)
        if samples < 1 or not self.image_shape or min(self.image_shape) < 1:
            raise ShapeError(
                f"{type(self).__name__}: {samples} measurements of images {self.image_shape}. Both must be "
                "at least 1."
            )

    @property
    def pixels(self) -> int:
        """Unknowns per frame."""
        return prod(self.image_shape)

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Return ``A_k x_k``: of frames (..., q, n1, ..., nd), shape (..., q, m)."""

    @abstractmethod
    def adjoint(self, c: Tensor) -> Tensor:
        """Return ``A_k^H c_k``: of (..., q, m), frames of shape (..., q, n1, ..., nd)."""

    def magnitudes(self, x: Tensor) -> Tensor:
        """Return ``|A_k x_k|``, shape (..., q, m): what a detector without noise would see."""
        return self.forward(x).abs()


class DenseMeasurement(Measurement):
    """Measurements by a matrix per frame, or by one for all.

    Parameters
    ----------
    A : Tensor, shape (q, m, n1, ..., nd) or (m, n1, ..., nd)
        Rows are the conjugated measurement vectors, so that ``A x`` is measured.
    image_shape : sequence of int, optional
        Needed where A ends in one axis of all pixels.

    Raises
    ------
    ShapeError
        If A does not end in the shape of an image or its number of pixels.

    Examples
    --------
    >>> A = DenseMeasurement(torch.ones(5, 3, 4), image_shape=(2, 2))
    >>> A.frames, A.samples, A.magnitudes(torch.ones(5, 2, 2)).shape
    (5, 3, torch.Size([5, 3]))
    """

    def __init__(self, A: Tensor, *, image_shape: Sequence[int] | None = None) -> None:
        shape = _image_shape(A, image_shape)
        lead = A.shape[: A.ndim - len(shape)] if tuple(A.shape[-len(shape) :]) == shape else A.shape[:-1]
        if len(lead) not in (1, 2):
            raise ShapeError(
                f"A of shape {tuple(A.shape)} is no map of images {shape}. Give (q, m, n1, ..., nd) with a "
                "matrix per frame, or (m, n1, ..., nd) for all; or image_shape, if its last axis holds all "
                "pixels."
            )
        super().__init__(
            frames=lead[0] if len(lead) == 2 else None,
            samples=lead[-1],
            image_shape=shape,
            dtype=A.dtype,
            device=A.device,
        )
        self.A = A.reshape(lead[0] if len(lead) == 2 else 1, lead[-1], *shape)

    @property
    def matrix(self) -> Tensor:
        """A as matrices (q or 1, m, n)."""
        return self.A.flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``A_k x_k``, shape (..., q, m)."""
        flat = x.flatten(x.ndim - len(self.image_shape)).to(self.dtype)
        # Columns of all leading axes go through one product per frame.
        lead = flat.shape[:-2]
        columns = flat.reshape(-1, *flat.shape[-2:]).permute(1, 2, 0)
        return (self.matrix @ columns).permute(2, 0, 1).reshape(*lead, flat.shape[-2], self.samples)

    def adjoint(self, c: Tensor) -> Tensor:
        """Return ``A_k^H c_k``, frames of shape (..., q, n1, ..., nd)."""
        lead = c.shape[:-2]
        columns = c.reshape(-1, *c.shape[-2:]).permute(1, 2, 0)
        flat = (self.matrix.mH @ columns).permute(2, 0, 1)
        return flat.reshape(*lead, c.shape[-2], *self.image_shape)


def measurement_of(A: Any, *, image_shape: Sequence[int] | None, where: str) -> Measurement:
    """Take a measurement in any of the forms that users have.

    Parameters
    ----------
    A : Measurement, Tensor, ndarray, or a physics of deepinv
        Integers are promoted.
    image_shape : sequence of int or None
        Needed where A does not tell.
    where : str
        Who asks, for messages.

    Returns
    -------
    Measurement

    Raises
    ------
    ShapeError, DataError
        If it is none of these, or holds NaN or infinite numbers.
    """
    if isinstance(A, Measurement):
        if image_shape is not None and tuple(image_shape) != A.image_shape:
            raise ShapeError(
                f"{where}: image_shape={tuple(image_shape)}, but the measurement is of images "
                f"{A.image_shape}. Leave it out."
            )
        return A
    if hasattr(A, "B") and hasattr(A, "B_adjoint"):
        from lowdim.phase.deepinv import DeepinvMeasurement

        if image_shape is None:
            raise ShapeError(f"{where}: of a physics of deepinv, image_shape must be given.")
        return DeepinvMeasurement(A, image_shape=image_shape)
    if not isinstance(A, Tensor):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a memory map that cannot be written is not written to
                A = torch.as_tensor(np.asarray(A))
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{where}: A is a {type(A).__name__}, expected a tensor (q, m, n1, ..., nd), a Measurement "
                "or a physics of deepinv."
            ) from error
    A = A.detach()
    if not (A.is_floating_point() or A.is_complex()) or A.dtype in (torch.float16, torch.bfloat16):
        A = A.to(torch.float64 if not A.is_floating_point() else torch.float32)
    measurement = DenseMeasurement(A, image_shape=image_shape)
    # The sum notices NaN and infinity in one pass and without a second tensor of that size.
    if not bool(torch.isfinite(A.sum().abs())) and not bool(torch.isfinite(A).all()):
        raise DataError(f"{where}: A holds NaN or infinite numbers. Take those measurements out.")
    return measurement


def _image_shape(A: Tensor, given: Sequence[int] | None) -> tuple[int, ...]:
    if given is None:
        if A.ndim < 4:
            raise ShapeError(
                f"A of shape {tuple(A.shape)} does not tell the shape of an image. Give image_shape=(height, "
                "width)."
            )
        return tuple(A.shape[2:])
    shape = tuple(int(size) for size in given)
    if not shape or (tuple(A.shape[-len(shape) :]) != shape and A.shape[-1] != prod(shape)):
        raise ShapeError(
            f"A of shape {tuple(A.shape)} does not fit image_shape={shape}: its last axes must be the image, "
            f"or its last axis {prod(shape) if shape else 'all'} pixels."
        )
    return shape
