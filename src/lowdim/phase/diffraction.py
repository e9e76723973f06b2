"""Diffraction: measurements by Fourier transforms, without forming A."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from lowdim.errors import ShapeError
from lowdim.phase.measurement import Measurement

__all__ = ["CodedDiffraction", "Ptychography"]


class CodedDiffraction(Measurement):
    """Fourier transforms behind masks: ``A x = (FFT2(d_1 x), FFT2(d_2 x), ...)``.

    Parameters
    ----------
    masks : Tensor, shape (L, h, w) or (q, L, h, w)
        Complex masks d_l, the same for all frames or each frame's own.
    kept : Tensor of int64, shape (m,) or (q, m), optional
        Which of the L h w coefficients are measured; all otherwise.

    Raises
    ------
    ShapeError
        If shapes do not fit, or `kept` names coefficients that do not exist.

    Notes
    -----
    Transforms are unitary, scaled by ``sqrt(h w)``: entries of A have modulus 1, as those of a Gaussian A
    have on average.

    References
    ----------
    .. [1] E. Candes, X. Li, M. Soltanolkotabi, "Phase retrieval from coded diffraction patterns", Appl.
       Comput. Harmon. Anal. 39, 2015, eq. 1.1.

    Examples
    --------
    >>> A = CodedDiffraction(torch.ones(2, 4, 4, dtype=torch.complex64))
    >>> A.samples, A.magnitudes(torch.ones(3, 4, 4)).shape
    (32, torch.Size([3, 32]))
    """

    def __init__(self, masks: Tensor, *, kept: Tensor | None = None) -> None:
        if masks.ndim not in (3, 4):
            raise ShapeError(
                f"CodedDiffraction: masks have shape {tuple(masks.shape)}, expected (masks, height, width) "
                "or (frames, masks, height, width)."
            )
        if not masks.is_complex():
            masks = masks.to(torch.complex128 if masks.dtype == torch.float64 else torch.complex64)
        total = prod(masks.shape[-3:])
        if kept is not None and (
            kept.ndim not in (1, 2) or kept.is_floating_point() or not kept.numel() or _outside(kept, total)
        ):
            raise ShapeError(
                f"CodedDiffraction: kept of shape {tuple(kept.shape)} must hold whole numbers from 0 to "
                f"{total - 1}, (m,) or (frames, m)."
            )
        counts = {len(x) for x, axes in ((masks, 4), (kept, 2)) if x is not None and x.ndim == axes}
        if len(counts) > 1:
            raise ShapeError(
                f"CodedDiffraction: masks are of {len(masks)} frames, kept of "
                f"{0 if kept is None else len(kept)}. Give one of each per frame."
            )
        super().__init__(
            frames=counts.pop() if counts else None,
            samples=total if kept is None else kept.shape[-1],
            image_shape=masks.shape[-2:],
            dtype=masks.dtype,
            device=masks.device,
        )
        self.masks = masks
        self.kept = None if kept is None else kept.to(masks.device)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``A_k x_k``, shape (..., q, m)."""
        coefficients = torch.fft.fft2(self.masks * x.unsqueeze(-3)).flatten(-3)
        if self.kept is None:
            return coefficients
        return coefficients.gather(-1, self.kept.expand(*coefficients.shape[:-1], -1))

    def adjoint(self, c: Tensor) -> Tensor:
        """Return ``A_k^H c_k``, frames of shape (..., q, h, w)."""
        c = c.to(self.dtype)
        if self.kept is not None:
            full = c.new_zeros(*c.shape[:-1], prod(self.masks.shape[-3:]))
            c = full.scatter_add(-1, self.kept.expand(c.shape), c)
        waves = torch.fft.ifft2(c.unflatten(-1, self.masks.shape[-3:]), norm="forward")
        return (self.masks.conj() * waves).sum(-3)


class Ptychography(Measurement):
    """Fourier transforms of what a probe sees from each of its positions.

    Parameters
    ----------
    probe : Tensor, shape (a, b)
        Complex illumination.
    positions : Tensor of int64, shape (P, 2)
        Row and column of its upper left corner at each position.
    image_shape : sequence of int
        (h, w) of the object.

    Raises
    ------
    ShapeError
        If the probe leaves the image.

    Notes
    -----
    The same for all frames. Pixels that no position lights up are not measured: what is recovered there is
    what rows and columns of the model say.

    Examples
    --------
    >>> corners = torch.tensor([[0, 0], [0, 2], [2, 0], [2, 2]])
    >>> A = Ptychography(torch.ones(4, 4), corners, image_shape=(6, 6))
    >>> A.samples, A.adjoint(A.forward(torch.ones(2, 6, 6))).shape
    (64, torch.Size([2, 6, 6]))
    """

    def __init__(self, probe: Tensor, positions: Tensor, *, image_shape: Sequence[int]) -> None:
        shape = tuple(image_shape)
        if probe.ndim != 2 or positions.ndim != 2 or positions.shape[-1] != 2 or len(shape) != 2:
            raise ShapeError(
                f"Ptychography: probe {tuple(probe.shape)}, positions {tuple(positions.shape)}, image_shape "
                f"{shape}; expected (a, b), (positions, 2) and (height, width)."
            )
        last = [size - side for size, side in zip(shape, probe.shape, strict=True)]
        if (
            min(last) < 0
            or bool((positions < 0).any())
            or bool((positions > positions.new_tensor(last)).any())
        ):
            raise ShapeError(
                f"Ptychography: a probe of {tuple(probe.shape)} leaves an image of {shape} at some "
                f"position. Keep rows within 0 to {last[0]} and columns within 0 to {last[1]}."
            )
        if not probe.is_complex():
            probe = probe.to(torch.complex128 if probe.dtype == torch.float64 else torch.complex64)
        super().__init__(
            frames=None,
            samples=len(positions) * probe.numel(),
            image_shape=shape,
            dtype=probe.dtype,
            device=probe.device,
        )
        self.probe, self.positions = probe, positions.to(probe.device)
        rows = self.positions[:, :1, None] + torch.arange(probe.shape[0], device=probe.device)[:, None]
        columns = self.positions[:, 1:, None] + torch.arange(probe.shape[1], device=probe.device)
        self.pixels_seen = (rows * shape[1] + columns).flatten()

    def forward(self, x: Tensor) -> Tensor:
        """Return ``A_k x_k``, shape (..., q, m)."""
        seen = x.flatten(-2)[..., self.pixels_seen].unflatten(-1, (-1, *self.probe.shape))
        return torch.fft.fft2(self.probe * seen).flatten(-3)

    def adjoint(self, c: Tensor) -> Tensor:
        """Return ``A_k^H c_k``, frames of shape (..., q, h, w)."""
        waves = torch.fft.ifft2(c.to(self.dtype).unflatten(-1, (-1, *self.probe.shape)), norm="forward")
        lit = (self.probe.conj() * waves).flatten(-3)
        image = lit.new_zeros(*lit.shape[:-1], self.pixels)
        return image.index_add(-1, self.pixels_seen, lit).unflatten(-1, self.image_shape)


def _outside(kept: Tensor, total: int) -> bool:
    return bool((kept < 0).any()) or bool((kept >= total).any())
