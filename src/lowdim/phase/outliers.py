"""Outliers: measurements that fit nothing, weighted down."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["biweights"]

CUT = 4.685
"""Residuals, in standard deviations, from which on a weight is 0: 95 % efficient for normal noise."""


def biweights(residual: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return Tukey's biweights of residuals, their scale from the median absolute one.

    Parameters
    ----------
    residual : Tensor, shape (q, m)
        ``|A x| - y``.
    weights : Tensor, shape (q, m), optional
        Own weights of the measurements, multiplied in; those of 0 do not enter the median.

    Returns
    -------
    Tensor, shape (q, m)
        Between 0 and 1 (times `weights`).

    References
    ----------
    .. [1] P. Huber, E. Ronchetti, "Robust statistics", Wiley 2009, section 4.8.

    Examples
    --------
    >>> biweights(torch.tensor([[0.1, -0.1, 0.1, 50.0]]))[0, 3].item()
    0.0
    """
    size = residual.abs()
    counted = size if weights is None else size.where(weights > 0, torch.nan)
    # By frame: with one scale for all, frames that do not fit yet would lose all their measurements.
    scale = 1.4826 * counted.nanmedian(-1, keepdim=True).values.nan_to_num()
    # A fit that is exact for more than half leaves no scale: only what rounding explains is kept then.
    scale = scale.clamp(min=1e-10 * float(size.max()) + torch.finfo(size.dtype).tiny)
    found = (1 - (size / (CUT * scale)).square()).clamp(min=0).square()
    return found if weights is None else found * weights
