"""Named operators: degradations that the command line and run directories know by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lowdim.errors import DataError, ShapeError
from lowdim.inverse.degradations import CircularBlur, Inpainting, Pooling, gaussian_kernel
from lowdim.inverse.operators import ForwardOperator
from lowdim.inverse.pictures import read_pictures

__all__ = ["OPERATORS", "named_operator"]


def inpaint(
    shape: tuple[int, ...], *, missing: float = 0.7, box: float = 0.0, mask: str | None = None, seed: int = 0
) -> ForwardOperator:
    """Hide a share of the pixels at random, a box in the middle, or what is dark in an image file."""
    if mask is not None:
        seen = _picture(mask) > 0.5
        if tuple(seen.shape) != tuple(shape[-2:]):
            raise ShapeError(
                f"inpaint: the mask {mask} has {seen.shape[0]} x {seen.shape[1]} pixels, and images have "
                f"{shape[-2]} x {shape[-1]}. Give one of that size."
            )
        return Inpainting(seen, value_range=(0, 1))
    if not box:
        return Inpainting.random(shape[-2:], missing=missing, seed=seed, value_range=(0, 1))
    if not 0 < box < 1:
        raise DataError(f"inpaint: box={box} must be in (0, 1), the share of each side that is hidden.")
    whole = torch.ones(shape[-2:])
    rows, columns = (slice(round(n * (1 - box) / 2), round(n * (1 + box) / 2)) for n in shape[-2:])
    whole[rows, columns] = 0
    return Inpainting(whole, value_range=(0, 1))


def blur(shape: tuple[int, ...], *, std: float = 1.5, kernel: str | None = None) -> ForwardOperator:
    """Blur by a Gaussian of so many pixels, or by the kernel of a file, with borders that wrap around."""
    if kernel is None:
        return CircularBlur(_kernel(shape, std), value_range=(0, 1))
    given = _picture(kernel)
    if not float(given.sum()) > 0:
        raise DataError(f"blur: the kernel {kernel} must have a sum > 0, to be divided by it.")
    return CircularBlur(given / given.sum(), value_range=(0, 1))


def sr(shape: tuple[int, ...], *, factor: int = 4) -> ForwardOperator:
    """Average blocks of pixels: what super-resolution has to undo."""
    return Pooling(factor, value_range=(0, 1))


def denoise(shape: tuple[int, ...]) -> ForwardOperator:
    """See every pixel, with the noise only."""
    return Inpainting(torch.ones(shape[-2:]), value_range=(0, 1))


def saturate(shape: tuple[int, ...], *, std: float = 0.8, gain: float = 2.0) -> ForwardOperator:
    """Blur, and saturate bright and dark: ``tanh(gain * blur(2 x - 1))``, nonlinear."""
    return _Saturated(_kernel(shape, std), gain)


def ct(shape: tuple[int, ...], *, angles: int = 30) -> ForwardOperator:
    """Project along so many directions (needs deepinv)."""
    from lowdim.inverse.deepinv import tomography

    return tomography(shape, angles=angles)


def _picture(file: str) -> Tensor:
    """Return the numbers (H, W) of a file, of colors their mean."""
    found = read_pictures(file)
    if len(found) > 1:
        raise DataError(f"{file} holds {len(found)} images. Give the file of one.")
    return found[0].image.mean(0)


def _kernel(shape: tuple[int, ...], std: float) -> Tensor:
    if not std > 0:
        raise DataError(f"blur: std={std} must be a number of pixels > 0.")
    most = min(shape[-2:])
    size = min(2 * round(3 * std) + 1, most - 1 + most % 2)
    return gaussian_kernel(std, size=size)


class _Saturated(ForwardOperator):
    """A blurred image whose bright and dark parts saturate."""

    def __init__(self, kernel: Tensor, gain: float) -> None:
        super().__init__(linear=False, value_range=(0, 1))
        self._blur, self._gain = CircularBlur(kernel), gain

    def A(self, x: Tensor) -> Tensor:
        """Return ``tanh(gain * blur(2 x - 1))``."""
        return torch.tanh(self._gain * self._blur.A(2 * x - 1))


OPERATORS: dict[str, Callable[..., ForwardOperator]] = {
    "blur": blur,
    "sr": sr,
    "inpaint": inpaint,
    "denoise": denoise,
    "saturate": saturate,
    "ct": ct,
}
"""Degradations by name; each takes the shape (C, H, W) of images in [0, 1] and its options."""


def named_operator(
    name: str, *, image_shape: tuple[int, ...], seed: int = 0, **options: Any
) -> ForwardOperator:
    """Return a degradation of images in [0, 1].

    Parameters
    ----------
    name : {"blur", "sr", "inpaint", "denoise", "saturate", "ct"}
    image_shape : tuple of int
        (C, H, W).
    seed : int
        Of what is random in it, the hidden pixels.
    **options
        ``std`` of "blur" and "saturate" and ``gain`` of the latter, ``factor`` of "sr", ``missing`` or
        ``box`` of "inpaint", ``angles`` of "ct"; of image files, ``kernel`` of "blur" (divided by its sum)
        and ``mask`` of "inpaint" (dark is hidden).

    Returns
    -------
    ForwardOperator

    Raises
    ------
    DataError
        If there is no such degradation, or it has no such option.

    Examples
    --------
    >>> named_operator("sr", image_shape=(1, 8, 8), factor=2).A(torch.ones(1, 1, 8, 8)).shape
    torch.Size([1, 1, 4, 4])
    """
    if name not in OPERATORS:
        raise DataError(f"operator: {name!r} is unknown. Use one of {', '.join(OPERATORS)}.")
    build = OPERATORS[name]
    known = [p for p in inspect.signature(build).parameters if p != "shape"]
    if unknown := sorted(set(options) - set(known)):
        told = ", ".join(option for option in known if option != "seed") or "none"
        raise DataError(f"operator {name}: {', '.join(unknown)} is no option of it. Its options: {told}.")
    if "seed" in known:
        options.setdefault("seed", seed)
    return build(tuple(image_shape), **options)
