"""Problem: measurement and magnitudes, checked at the door."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowdim.errors import DataError, ShapeError
from lowdim.phase.measurement import Measurement, measurement_of

__all__ = ["SMALL", "Problem", "count_unknowns"]

SMALL = 10_000_000
"""Entries of all matrices A_k from which on several threads gain."""


@dataclass(frozen=True, eq=False)
class Problem:
    """What a solver needs to know.

    Parameters
    ----------
    A : Measurement
        The linear map of every frame.
    y : Tensor, shape (q, m)
        Magnitudes, in the real type of A and in units of their root mean square: squares stay in range.
    weights : Tensor, shape (q, m), or None
        Of the measurements; None stands for ones.
    real : bool
        Whether frames are real although A is complex.
    numpy : bool
        Whether the user works with numpy.
    unit : float
        The root mean square of the magnitudes, by which frames are multiplied at the end.

    Examples
    --------
    >>> problem = Problem.of(np.ones((2, 3, 4)), np.ones((2, 3)), image_shape=(2, 2))
    >>> problem.frames, problem.dtype
    (2, torch.float64)
    """

    A: Measurement
    y: Tensor
    weights: Tensor | None
    real: bool
    numpy: bool
    unit: float = 1.0

    @classmethod
    def of(
        cls,
        A: Any,
        y: Any,
        *,
        image_shape: Sequence[int] | None = None,
        intensity: bool = False,
        sample_weight: Any = None,
        real: bool = False,
        where: str = "phase",
    ) -> Problem:
        """Check what a user gives.

        Parameters
        ----------
        A : Measurement, Tensor, ndarray, or a physics of deepinv
            See `measurement_of`.
        y : array-like, shape (q, m)
            Magnitudes or intensities.
        image_shape : sequence of int, optional
            Of one frame, where A does not tell.
        intensity : bool
            Whether y holds squares.
        sample_weight : array-like, shape (q, m), optional
            Weights >= 0; 0 leaves a measurement out.
        real : bool
            Whether frames are real although A is complex.
        where : str
            Who asks, for messages.

        Returns
        -------
        Problem

        Raises
        ------
        ShapeError, DataError
            If anything does not fit.
        """
        numpy = not isinstance(y, Tensor) and not isinstance(A, Tensor)
        measurement = measurement_of(A, image_shape=image_shape, where=where)
        dtype = torch.empty((), dtype=measurement.dtype).real.dtype
        data = _numbers(y, "y", where).to(device=measurement.device, dtype=dtype)
        if data.ndim != 2 or data.shape[1] != measurement.samples:
            raise ShapeError(
                f"{where}: y has shape {tuple(data.shape)}, expected (frames, {measurement.samples}), one "
                f"row of {measurement.samples} magnitudes per frame."
            )
        if measurement.frames is not None and len(data) != measurement.frames:
            raise ShapeError(
                f"{where}: y has {len(data)} frames, A has {measurement.frames}. Give one row of y per "
                "frame of A."
            )
        if not bool(torch.isfinite(data).all()):
            raise DataError(
                f"{where}: y holds NaN or infinite numbers. Set them to 0 and give them weight 0 "
                "(sample_weight)."
            )
        if bool((data < 0).any()):
            raise DataError(
                f"{where}: y holds negative numbers, such as {float(data.min()):g}; magnitudes are >= 0. "
                "Clip what noise has made negative."
            )
        weights = None
        if sample_weight is not None:
            weights = _numbers(sample_weight, "sample_weight", where).to(device=data.device, dtype=dtype)
            if weights.shape != data.shape:
                raise ShapeError(
                    f"{where}: sample_weight has shape {tuple(weights.shape)}, expected that of y, "
                    f"{tuple(data.shape)}."
                )
            if not bool((weights >= 0).all()) or not bool(torch.isfinite(weights).all()):
                raise DataError(f"{where}: sample_weight must be finite and >= 0 everywhere.")
        data = data.sqrt() if intensity else data
        largest = float(data.max())
        unit = largest * float((data / largest).double().square().mean().sqrt()) if largest > 0 else 1.0
        return cls(measurement, data / unit, weights, real, numpy, unit)

    @property
    def frames(self) -> int:
        """Number q of frames."""
        return len(self.y)

    @property
    def entries(self) -> int:
        """Frames times measurements times pixels: entries of all matrices A_k, formed or not."""
        return self.y.numel() * self.A.pixels

    @property
    def dtype(self) -> torch.dtype:
        """Of the frames."""
        return self.y.dtype if self.real else self.A.dtype

    def out(self, x: Tensor) -> Any:
        """Return a tensor in the user's kind of array."""
        return x.cpu().numpy() if self.numpy else x


def count_unknowns(
    ranks: Sequence[int] | None, image_shape: Sequence[int], frames: int, *, is_complex: bool
) -> int:
    """Return how many real numbers frames are made of.

    Parameters
    ----------
    ranks : sequence of int or None
        (r1, ..., rd, rf) of a Tucker form; (r,), or (r, r) of images with one axis, of a matrix; None of
        frames with nothing in common.
    image_shape : sequence of int
        Of one frame.
    frames : int
        q.
    is_complex : bool
        Whether frames are: a complex number counts twice.

    Returns
    -------
    int

    Examples
    --------
    >>> count_unknowns((2, 2, 3), (8, 9), 10, is_complex=False)
    76
    """
    each = 2 if is_complex else 1
    if ranks is None:
        return each * frames * prod(image_shape)
    if len(ranks) == 1 or len(image_shape) == 1:
        return each * ranks[0] * (prod(image_shape) + frames)
    factors = sum(n * r for n, r in zip((*image_shape, frames), ranks, strict=True))
    return each * (prod(ranks) + factors)


def _numbers(values: Any, name: str, where: str) -> Tensor:
    try:
        tensor = values if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: {name} holds no numbers ({type(values).__name__}).") from error
    if tensor.is_complex():
        raise DataError(f"{where}: {name} is complex, expected magnitudes. Give its absolute values.")
    return tensor
