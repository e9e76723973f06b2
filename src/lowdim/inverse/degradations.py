"""Degradations: masks, blurs and small images as operators with closed-form proximal maps.

All of them have an ``A A^T`` that is diagonal in some basis, so that ``(A A^T + rho)^-1`` costs one pass,
and ``argmin ||A x - y||^2 + rho ||x - z||^2 = z + A^T (A A^T + rho)^-1 (y - A z)``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lowdim.errors import DataError, ShapeError
from lowdim.inverse.operators import ForwardOperator

__all__ = ["BlurDecimation", "CircularBlur", "Inpainting", "Pooling", "gaussian_kernel"]


def gaussian_kernel(std: float, *, size: int | None = None) -> Tensor:
    """Return a Gaussian blur kernel that sums to one.

    Parameters
    ----------
    std : float
        Standard deviation in pixels.
    size : int, optional
        Side, odd; six standard deviations otherwise.

    Returns
    -------
    Tensor, shape (size, size)

    Raises
    ------
    DataError
        If the deviation is not > 0 or the side is even.

    Examples
    --------
    >>> gaussian_kernel(1.5).shape
    torch.Size([11, 11])
    """
    size = 2 * math.ceil(3 * std) + 1 if size is None else size
    if not std > 0 or size < 1 or size % 2 == 0:
        raise DataError(f"gaussian_kernel: std={std} must be > 0 and size={size} odd.")
    u = torch.arange(size) - size // 2
    line = torch.exp(-(u.double() ** 2) / (2 * std**2))
    return (line[:, None] * line / line.sum() ** 2).float()


class _Closed(ForwardOperator):
    closed_form = True

    def _gram_inverse(self, r: Tensor, rho: float) -> Tensor:
        """Return ``(A A^T + rho)^-1 r``."""
        raise NotImplementedError

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float) -> Tensor:
        """Return ``argmin_x gamma ||A x - y||^2 + ||x - z||^2``: at images `z`, data `y`, weight `gamma`."""
        return z + self.A_adjoint(self._gram_inverse(y - self.A(z), 1 / gamma))

    def A_dagger(self, y: Tensor) -> Tensor:
        """Return the pseudo-inverse at `y`, with the slightest of ridges."""
        return self.A_adjoint(self._gram_inverse(y, 1e-8))


class Inpainting(_Closed):
    """Pixels under a mask: ``y = mask * x``.

    Parameters
    ----------
    mask : Tensor, shape (H, W), (C, H, W) or (B, C, H, W)
        One (or True) where a pixel is seen, zero elsewhere.
    options
        value_range and noise_sigma of `ForwardOperator`.

    Raises
    ------
    DataError
        If the mask holds something else, or nothing is seen.

    Examples
    --------
    >>> Inpainting(torch.eye(2)).A(torch.full((1, 1, 2, 2), 3.0))
    tensor([[[[3., 0.],
              [0., 3.]]]])
    """

    def __init__(self, mask: Any, **options: Any) -> None:
        super().__init__(**options)
        mask = torch.as_tensor(mask)
        if mask.ndim < 2 or not bool(((mask == 0) | (mask == 1)).all()) or not bool(mask.any()):
            raise DataError("Inpainting: the mask must be (H, W) or more axes, of zeros and some ones.")
        self.mask = mask.bool()

    @classmethod
    def random(cls, shape: tuple[int, ...], *, missing: float, seed: int = 0, **options: Any) -> Inpainting:
        """Hide a share of the pixels at random.

        Parameters
        ----------
        shape : tuple of int
            (H, W), (C, H, W) or (B, C, H, W) of the mask.
        missing : float
            Share hidden, in [0, 1).
        seed : int
            Of the draw.
        options
            As of the class.

        Returns
        -------
        Inpainting
        """
        if not 0 <= missing < 1:
            raise DataError(f"Inpainting.random: missing={missing} must be in [0, 1).")
        # Not the numbers that the same seed gives to noise, with which the mask would go together.
        generator = torch.Generator().manual_seed(seed + 2**31)
        kept = torch.rand(shape, generator=generator) >= missing
        return cls(kept, **options)

    def A(self, x: Tensor) -> Tensor:
        """Return `x` where it is seen, zero elsewhere."""
        if self.mask.shape[-2:] != x.shape[-2:]:
            raise ShapeError(
                f"Inpainting: a mask of {tuple(self.mask.shape[-2:])} does not fit images of "
                f"{tuple(x.shape[-2:])}. Cut or resize one of them."
            )
        return x * self.mask.to(x.device)

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Return `y` where it is seen, zero elsewhere."""
        return y * self.mask.to(y.device)

    def _gram_inverse(self, r: Tensor, rho: float) -> Tensor:
        return r / (self.mask.to(r) + rho)

    def _seen(self, y: Tensor) -> Tensor:
        return self.mask.to(y.device).expand_as(y)

    def count(self, y: Tensor) -> Tensor:
        """Return the number of pixels seen in every item of `y`."""
        return self._seen(y).flatten(1).sum(1).to(torch.float32)


class CircularBlur(_Closed):
    """A blur that goes around the edges: ``y = h * x``.

    Parameters
    ----------
    kernel : Tensor, shape (kh, kw)
        h, centered; see `gaussian_kernel`.
    options
        value_range and noise_sigma of `ForwardOperator`.

    Raises
    ------
    DataError, ShapeError
        If the kernel is no matrix, or is larger than an image.

    Examples
    --------
    >>> CircularBlur(torch.ones(3, 3) / 9).A(torch.ones(1, 1, 8, 8)).mean().round(decimals=4)
    tensor(1.)
    """

    def __init__(self, kernel: Any, **options: Any) -> None:
        super().__init__(**options)
        self.kernel = torch.as_tensor(kernel, dtype=torch.float32)
        if (
            self.kernel.ndim != 2
            or not bool(torch.isfinite(self.kernel).all())
            or not bool(self.kernel.any())
        ):
            raise DataError(
                f"{type(self).__name__}: the kernel must be a matrix of finite numbers, not all 0."
            )
        self._spectra: dict[tuple[Any, ...], Tensor] = {}

    def spectrum(self, x: Tensor) -> Tensor:
        """Return the Fourier transform (H, W) of the kernel on the grid of the images `x`."""
        key = (*x.shape[-2:], x.dtype, x.device)
        if key not in self._spectra:
            (kh, kw), (H, W) = self.kernel.shape, x.shape[-2:]
            if kh > H or kw > W:
                raise ShapeError(f"{type(self).__name__}: a kernel of {kh} x {kw} is larger than {H} x {W}.")
            spread = functional.pad(self.kernel.double(), (0, W - kw, 0, H - kh))
            spread = spread.roll((-(kh // 2), -(kw // 2)), (0, 1))
            complex_type = torch.complex128 if x.dtype == torch.float64 else torch.complex64
            self._spectra[key] = torch.fft.fft2(spread).to(device=x.device, dtype=complex_type)
        return self._spectra[key]

    def A(self, x: Tensor) -> Tensor:
        """Return `x` blurred."""
        return torch.fft.ifft2(self.spectrum(x) * torch.fft.fft2(x)).real

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Return `y` blurred by the mirrored kernel."""
        return torch.fft.ifft2(self.spectrum(y).conj() * torch.fft.fft2(y)).real

    def _gram_inverse(self, r: Tensor, rho: float) -> Tensor:
        return torch.fft.ifft2(torch.fft.fft2(r) / (self.spectrum(r).abs().square() + rho)).real


class Pooling(_Closed):
    """Means of blocks: a detector with larger pixels.

    Parameters
    ----------
    factor : int
        Side of a block, which divides the sides of images.
    options
        value_range and noise_sigma of `ForwardOperator`.

    Raises
    ------
    DataError, ShapeError
        If the factor is no whole number of 1 or more, or does not divide the sides.

    Examples
    --------
    >>> Pooling(2).A(torch.ones(1, 1, 4, 4)).shape
    torch.Size([1, 1, 2, 2])
    """

    def __init__(self, factor: int, **options: Any) -> None:
        super().__init__(**options)
        self.factor = _checked_factor(factor, type(self).__name__)

    def A(self, x: Tensor) -> Tensor:
        """Return the means of the blocks of `x`."""
        _check_sides(x, self.factor, "Pooling")
        return functional.avg_pool2d(x, self.factor)

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Spread `y` over the blocks."""
        f = self.factor
        return y.repeat_interleave(f, -1).repeat_interleave(f, -2) / f**2

    def _gram_inverse(self, r: Tensor, rho: float) -> Tensor:
        return r / (self.factor**-2 + rho)


class BlurDecimation(CircularBlur):
    """A blur, and every f-th pixel of the result: the usual model of super-resolution.

    Parameters
    ----------
    kernel : Tensor, shape (kh, kw)
        As of `CircularBlur`.
    factor : int
        f, which divides the sides of images.
    options
        value_range and noise_sigma of `ForwardOperator`.

    Raises
    ------
    DataError, ShapeError
        As `CircularBlur` and `Pooling`.

    References
    ----------
    Zhao et al., "Fast single image super-resolution using a new analytical solution for l2-l2 problems",
    IEEE Trans. Image Process. 2016: ``A A^T`` is a convolution on the coarse grid, with the mean of the
    aliases of the squared spectrum.

    Examples
    --------
    >>> BlurDecimation(gaussian_kernel(1.0), 2).A(torch.ones(1, 1, 8, 8)).shape
    torch.Size([1, 1, 4, 4])
    """

    def __init__(self, kernel: Any, factor: int, **options: Any) -> None:
        super().__init__(kernel, **options)
        self.factor = _checked_factor(factor, type(self).__name__)

    def A(self, x: Tensor) -> Tensor:
        """Return `x` blurred and thinned out."""
        _check_sides(x, self.factor, "BlurDecimation")
        return super().A(x)[..., :: self.factor, :: self.factor]

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Return `y` between zeros, blurred by the mirrored kernel."""
        f = self.factor
        fine = y.new_zeros(*y.shape[:-2], f * y.shape[-2], f * y.shape[-1])
        fine[..., ::f, ::f] = y
        return super().A_adjoint(fine)

    def _gram_inverse(self, r: Tensor, rho: float) -> Tensor:
        f, (h, w) = self.factor, r.shape[-2:]
        power = self.spectrum(r.new_zeros(f * h, f * w)).abs().square()
        aliases = power.reshape(f, h, f, w).mean((0, 2))
        return torch.fft.ifft2(torch.fft.fft2(r) / (aliases + rho)).real


def _checked_factor(factor: int, where: str) -> int:
    if isinstance(factor, bool) or not isinstance(factor, int) or factor < 1:
        raise DataError(f"{where}: factor={factor!r} must be a whole number of 1 or more.")
    return factor


def _check_sides(x: Tensor, factor: int, where: str) -> None:
    if x.shape[-1] % factor or x.shape[-2] % factor:
        raise ShapeError(
            f"{where}: images of {tuple(x.shape[-2:])} cannot be cut into blocks of {factor}. Crop them to "
            f"multiples of {factor}."
        )
