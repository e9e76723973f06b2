"""Images: the handwritten digits of scikit-learn, as a prior sees them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lowdim.errors import DataError

__all__ = ["digits"]

TRAIN = 1500


def digits(part: Literal["train", "test"] = "test") -> Tensor:
    """Return real 8 x 8 digits: the first 1,500 of scikit-learn, or the 297 held out.

    Parameters
    ----------
    part : {"train", "test"}

    Returns
    -------
    Tensor, shape (1500 or 297, 1, 8, 8)
        In [-1, 1], float32.

    Raises
    ------
    DataError

    Examples
    --------
    >>> digits("train").shape, len(digits("test")), float(digits().min())
    (torch.Size([1500, 1, 8, 8]), 297, -1.0)
    """
    from sklearn.datasets import load_digits

    if part not in ("train", "test"):
        raise DataError(f"digits: part={part!r} is unknown. Use 'train' or 'test'.")
    images = torch.as_tensor(load_digits().images, dtype=torch.float32)[:, None] / 8 - 1
    return images[:TRAIN] if part == "train" else images[TRAIN:]
