"""Patches: small pieces of the photographs that scikit-image and scikit-learn come with."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lowdim.errors import DataError, MissingExtra

__all__ = ["patches"]

PHOTOGRAPHS = {
    "train": (
        *("astronaut.png", "chelsea.png", "rocket.jpg", "motorcycle_left.png", "brick.png", "grass.png"),
        *("gravel.png", "coins.png", "ihc.png", "retina.jpg", "moon.png", "page.png", "clock_motion.png"),
        *("hubble_deep_field.jpg", "china.jpg"),
    ),
    "test": ("camera.png", "coffee.png", "flower.jpg"),
}
"""Files inside the packages: no patch of a test photograph is in the training set."""

FLAT, FLAT_KEPT = 0.06, 0.2
"""Patches whose standard deviation (of values in [0, 1]) is less are kept with this probability."""


def patches(part: Literal["train", "test"] = "test", *, count: int, side: int = 16, seed: int = 0) -> Tensor:
    """Return patches of gray photographs at a half, a third and a quarter of their size.

    Parameters
    ----------
    part : {"train", "test"}
        Fifteen photographs (patches are mirrored at random), or three others.
    count : int
        How many, the same number of each photograph and size.
    side : int
        Pixels.
    seed : int
        Of the places.

    Returns
    -------
    Tensor, shape (count, 1, side, side)
        In [-1, 1], float32. Of flat patches most are left out.

    Raises
    ------
    DataError
        If there is no such part.
    MissingExtra
        If scikit-image is not installed.

    Examples
    --------
    >>> patches("test", count=8).shape
    torch.Size([8, 1, 16, 16])
    """
    if part not in PHOTOGRAPHS:
        raise DataError(f"patches: part={part!r} is unknown. Use 'train' or 'test'.")
    scaled = [image for name in PHOTOGRAPHS[part] for image in _scaled(name) if min(image.shape) >= side]
    rng = np.random.default_rng(seed)
    each = -(-count // len(scaled))
    found: list[np.ndarray] = []
    for image in scaled:
        wanted = len(found) + each
        while len(found) < wanted:
            row, column = (rng.integers(size - side + 1) for size in image.shape)
            patch = image[row : row + side, column : column + side]
            if patch.std() < FLAT and rng.random() > FLAT_KEPT:
                continue
            if part == "train":
                patch = patch[:: rng.choice([-1, 1]), :: rng.choice([-1, 1])]
            found.append(patch)
    chosen = np.stack(found)[rng.permutation(len(found))[:count]]
    return torch.as_tensor(2 * chosen - 1, dtype=torch.float32)[:, None]


def _scaled(name: str) -> list[np.ndarray]:
    """Return a photograph as gray values in [0, 1], at a half, a third and a quarter of its size."""
    try:
        import skimage
        from skimage.color import rgb2gray
        from skimage.io import imread
        from skimage.transform import rescale
    except ImportError as error:
        raise MissingExtra("scikit-image", extra="peers", purpose="read its photographs") from error
    import sklearn.datasets

    of_sklearn = Path(sklearn.datasets.__file__).parent / "images" / name
    inside = of_sklearn if of_sklearn.is_file() else Path(skimage.__file__).parent / "data" / name
    image = np.asarray(imread(inside))
    gray = rgb2gray(image[..., :3]) if image.ndim == 3 else image / 255
    return [rescale(gray, 1 / factor, anti_aliasing=True) for factor in (2, 3, 4)]
