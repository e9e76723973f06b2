"""Metrics: how near images are to the truth, of every image by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from lowdim.errors import ShapeError

__all__ = ["psnr", "ssim"]


def psnr(image: Tensor, truth: Tensor, *, value_range: tuple[float, float] = (-1.0, 1.0)) -> Tensor:
    """Return the peak signal-to-noise ratio in dB, after clamping to the range of values.

    Parameters
    ----------
    image, truth : Tensor, shape (B, C, H, W)
    value_range : (float, float)
        Its width is the peak.

    Returns
    -------
    Tensor, shape (B,)

    Raises
    ------
    ShapeError

    Examples
    --------
    >>> psnr(torch.full((1, 1, 4, 4), 0.1), torch.zeros(1, 1, 4, 4), value_range=(0, 1)).round()
    tensor([20.])
    """
    _alike("psnr", image, truth)
    low, high = value_range
    error = (image.clamp(low, high) - truth).square().flatten(1).mean(1)
    return 10 * torch.log10((high - low) ** 2 / error.clamp(min=1e-20))


def ssim(image: Tensor, truth: Tensor, *, value_range: tuple[float, float] = (-1.0, 1.0)) -> Tensor:
    """Return the structural similarity, in windows of 7 x 7 pixels (all of smaller images).

    Parameters
    ----------
    image, truth : Tensor, shape (B, C, H, W)
    value_range : (float, float)
        Of the images.

    Returns
    -------
    Tensor, shape (B,)
        1 of equal images.

    Raises
    ------
    ShapeError

    References
    ----------
    Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment: from error visibility to structural
    similarity", IEEE Trans. Image Processing 13, 2004, equation 13, with uniform windows and unbiased
    variances.

    Examples
    --------
    >>> x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    >>> ssim(x, x, value_range=(0, 1))
    tensor([1., 1.])
    """
    _alike("ssim", image, truth)
    low, high = value_range
    x, y = image.clamp(low, high).double() - low, truth.double() - low
    side = [min(7, n) for n in x.shape[-2:]]
    pixels = side[0] * side[1]

    def mean(u: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(u, side, stride=1)

    unbiased = pixels / max(pixels - 1, 1)
    mx, my = mean(x), mean(y)
    vx, vy = unbiased * (mean(x * x) - mx * mx), unbiased * (mean(y * y) - my * my)
    both = unbiased * (mean(x * y) - mx * my)
    c1, c2 = (0.01 * (high - low)) ** 2, (0.03 * (high - low)) ** 2
    found = ((2 * mx * my + c1) * (2 * both + c2)) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return found.flatten(1).mean(1).to(image.dtype)


def _alike(where: str, image: Tensor, truth: Tensor) -> None:
    if image.shape != truth.shape or image.ndim != 4:
        raise ShapeError(
            f"{where}: images {tuple(image.shape)} and truth {tuple(truth.shape)}, expected the same (B, "
            "C, H, W)."
        )
