"""Curvatures and matrices of other libraries, as maps of flat vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowdim.dynamics.distributed import Layout
from lowdim.errors import DataError

__all__ = ["Foreign"]


class Foreign:
    """A map of another library, on one process.

    Parameters
    ----------
    given : object with ``shape`` and ``@``
        A matrix of torch or numpy, a curvature of curvlinops, an operator of scipy.

    Raises
    ------
    DataError
        If its numbers are integers or complex.
    """

    def __init__(self, given: Any) -> None:
        self._given = given
        self.layout = Layout()
        self.shape = tuple(given.shape)
        dtype = getattr(given, "dtype", None) or torch.get_default_dtype()
        # Of numpy and scipy: vectors go there and back.
        self._foreign = not isinstance(dtype, torch.dtype)
        if self._foreign:
            dtype = torch.from_numpy(np.empty(0, dtype)).dtype
        if not dtype.is_floating_point:
            raise DataError(f"sharpness: got a map of {dtype}, expected real floating-point numbers.")
        self.dtype = dtype
        self.device = torch.device(getattr(given, "device", "cpu"))

    def __matmul__(self, vector: Tensor) -> Tensor:
        if self._foreign:
            return torch.as_tensor(np.asarray(self._given @ vector.numpy())).to(vector)
        return (self._given @ vector).detach()
