"""Images: folders of pictures as a gray stack."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lowdim.errors import DataError, MissingExtra, ShapeError

__all__ = ["SUFFIXES", "read_images"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
GRAY = ("F", "I", "I;16", "I;16B", "I;16L", "L", "1")
"""Modes of Pillow whose numbers are kept as they are."""


def read_images(paths: Sequence[Path]) -> np.ndarray:
    """Read images of one size as gray ones.

    Parameters
    ----------
    paths : sequence of Path

    Returns
    -------
    ndarray of float64 of shape (N, height, width)

    Raises
    ------
    DataError
        If a file is no image.
    ShapeError
        If sizes differ.
    MissingExtra
        Without Pillow.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise MissingExtra("pillow", extra="images", purpose="read images") from None
    pictures: list[np.ndarray] = []
    for path in paths:
        try:
            with Image.open(path) as image:
                gray = image if image.mode in GRAY else image.convert("L")
                pictures.append(np.asarray(gray, dtype=np.float64))
        except (OSError, ValueError, SyntaxError, UnidentifiedImageError) as error:
            said = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
            raise DataError(
                f"regress: {path.name} cannot be read as an image ({said}). Take it out, or save it again."
            ) from error
        if pictures[-1].shape != pictures[0].shape:
            height, width = pictures[-1].shape
            raise ShapeError(
                f"regress: {path.name} has {width} x {height} pixels, {paths[0].name} has "
                f"{pictures[0].shape[1]} x {pictures[0].shape[0]}. Bring all to one size."
            )
    return np.stack(pictures)
