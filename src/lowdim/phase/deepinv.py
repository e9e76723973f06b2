"""deepinv: its phase-retrieval physics as measurements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lowdim.errors import ShapeError
from lowdim.phase.measurement import Measurement

__all__ = ["DeepinvMeasurement"]


class DeepinvMeasurement(Measurement):
    """The linear part of a ``deepinv.physics.PhaseRetrieval``, the same for all frames.

    Parameters
    ----------
    physics : deepinv.physics.PhaseRetrieval
        Its ``B`` and ``B_adjoint`` are used. Its own measurements are intensities ``|B x|^2``: fit them with
        ``intensity=True``.
    image_shape : sequence of int
        (h, w), or (channels, h, w) as it takes images; one channel is added to (h, w).

    Raises
    ------
    ShapeError
        If the physics does not take such images.

    Examples
    --------
    >>> class Transform:  # stands for deepinv.physics.PhaseRetrieval
    ...     def B(self, x):
    ...         return torch.fft.fft2(x, norm="ortho")
    ...     def B_adjoint(self, y):
    ...         return torch.fft.ifft2(y, norm="ortho")
    >>> A = DeepinvMeasurement(Transform(), image_shape=(4, 4))
    >>> A.samples, A.magnitudes(torch.ones(3, 4, 4)).shape
    (16, torch.Size([3, 16]))
    """

    def __init__(self, physics: Any, *, image_shape: Sequence[int]) -> None:
        shape = tuple(image_shape)
        self.physics = physics
        self._channel = len(shape) == 2
        probe = torch.zeros(1, *((1,) if self._channel else ()), *shape, dtype=torch.complex64)
        held = [*physics.parameters(), *physics.buffers()] if hasattr(physics, "buffers") else []
        device = held[0].device if held else torch.device("cpu")
        try:
            with torch.no_grad():
                measured = physics.B(probe.to(device))
        except Exception as error:  # whatever it does with images that it was not made for
            raise ShapeError(
                f"deepinv's {type(physics).__name__} does not take images of {shape} ({error}). Give the "
                "image_shape that it was made with."
            ) from error
        self._measured = tuple(measured.shape[1:])
        super().__init__(
            frames=None,
            samples=measured[0].numel(),
            image_shape=shape,
            dtype=measured.dtype,
            device=device,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return ``B x_k``, shape (..., q, m)."""
        lead = x.shape[: x.ndim - len(self.image_shape)]
        images = x.reshape(-1, *((1,) if self._channel else ()), *self.image_shape).to(self.dtype)
        return self.physics.B(images).reshape(*lead, self.samples)

    def adjoint(self, c: Tensor) -> Tensor:
        """Return ``B^H c_k``, frames of shape (..., q, n1, ..., nd)."""
        images = self.physics.B_adjoint(c.reshape(-1, *self._measured).to(self.dtype))
        return images.reshape(*c.shape[:-1], *self.image_shape)
