"""Sizes: images as large as those that a prior knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch

from lowdim.errors import DataError, ShapeError
from lowdim.inverse.pictures import Picture

__all__ = ["Fit", "fitted"]

Fit = Literal["resize", "crop"]


def fitted(
    pictures: Sequence[Picture], shape: tuple[int, ...] | None, *, fit: Fit | None = None
) -> list[Picture]:
    """Return images of the size that a prior knows.

    Parameters
    ----------
    pictures : sequence of Picture
    shape : (C, H, W), or None
        What the prior knows; with None, every size is taken.
    fit : {"resize", "crop"}, optional
        "resize" scales an image, its sides alike, until it covers H x W, and cuts off what hangs over;
        "crop" takes the middle as it is. Without it, another size is refused.

    Returns
    -------
    list of Picture

    Raises
    ------
    DataError
        If `fit` is unknown.
    ShapeError
        If an image has another size and nothing is to be done about it, or is smaller than what is cut out.

    Examples
    --------
    >>> photo = Picture("photo", torch.rand(1, 12, 20, generator=torch.Generator().manual_seed(0)))
    >>> fitted([photo], (1, 8, 8), fit="resize")[0].image.shape
    torch.Size([1, 8, 8])
    """
    if fit is not None and fit not in get_args(Fit):
        raise DataError(f"inverse: fit={fit!r} is unknown. Use one of {', '.join(get_args(Fit))}.")
    if shape is None:
        return list(pictures)
    H, W = shape[-2:]
    return [p if tuple(p.image.shape[-2:]) == (H, W) else _fitted(p, H, W, fit) for p in pictures]


def _fitted(picture: Picture, H: int, W: int, fit: Fit | None) -> Picture:
    image = picture.image
    h, w = image.shape[-2:]
    if fit is None:
        raise ShapeError(
            f"{picture.name}: {h} x {w} pixels, but the prior knows only images of {H} x {W}. Scale it down "
            "by --fit resize, cut out its middle by --fit crop (in Python fit='resize' or 'crop'), or give a "
            f"prior of {h} x {w}."
        )
    if fit == "resize":
        scale = max(H / h, W / w)
        h, w = max(H, round(scale * h)), max(W, round(scale * w))
        image = torch.nn.functional.interpolate(
            image[None], size=(h, w), mode="bilinear", antialias=True, align_corners=False
        )[0]
    elif h < H or w < W:
        raise ShapeError(
            f"{picture.name}: {H} x {W} pixels cannot be cut out of {h} x {w}. Scale it by --fit resize (in "
            "Python fit='resize')."
        )
    top, left = (h - H) // 2, (w - W) // 2
    return Picture(picture.name, image[:, top : top + H, left : left + W].contiguous())
