"""Reshaped Wirtinger flow: one signal from the magnitudes of its measurements, in batches."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from lowdim.errors import DataError, ShapeError
from lowdim.phase.alignment import turned

__all__ = ["rwf", "spectral_start"]

Array = TypeVar("Array", np.ndarray, Tensor)


def rwf(
    A: Array,
    y: Array,
    *,
    max_iter: int = 50,
    step: float = 0.8,
    trunc: tuple[float, float] = (1.0, 5.0),
    start: Array | None = None,
    real: bool = False,
) -> Array:
    """Find x from ``y = |A x|`` by reshaped Wirtinger flow [1]_, for a batch of signals.

    Parameters
    ----------
    A : Tensor or ndarray, shape (..., m, n)
        Measurement vectors in rows, real or complex; leading axes are a batch and broadcast against y.
    y : Tensor or ndarray, shape (..., m)
        Magnitudes, not intensities.
    max_iter : int
        Gradient steps.
    step : float
        Length of a step, relative to 1 over the squared spectral norm of ``A / sqrt(m)``.
    trunc : tuple of float
        Measurements between these multiples of the estimated norm enter the start.
    start : Tensor or ndarray, shape (..., n), optional
        First guess; the spectral start otherwise.
    real : bool
        Whether the signal is real although A is complex.

    Returns
    -------
    Tensor or ndarray, shape (..., n)
        In the type of A, up to a unit factor each; 0 for magnitudes that are all 0.

    Raises
    ------
    ShapeError, DataError
        If shapes do not fit or magnitudes are negative or not finite.

    Notes
    -----
    The official code divides by nothing, which diverges as soon as A is not nearly orthogonal (m < n).

    References
    ----------
    .. [1] H. Zhang, Y. Zhou, Y. Liang, Y. Chi, "A nonconvex approach for phase retrieval: reshaped Wirtinger
       flow and incremental algorithms", JMLR 18, 2017, algorithm 1.

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> A = torch.randn(120, 20, generator=generator, dtype=torch.float64)
    >>> x = torch.randn(20, generator=generator, dtype=torch.float64)
    >>> found = rwf(A, (A @ x).abs(), max_iter=200)
    >>> bool(torch.minimum((found - x).norm(), (found + x).norm()) < 1e-6)
    True
    """
    if not isinstance(A, Tensor):
        A = np.asarray(A)
        first = None if start is None else torch.as_tensor(start)
        options: dict[str, Any] = {"max_iter": max_iter, "step": step, "trunc": trunc, "real": real}
        return rwf(torch.as_tensor(A), torch.as_tensor(np.asarray(y)), start=first, **options).numpy()
    if A.ndim < 2 or y.ndim < 1 or A.shape[-2] != y.shape[-1]:
        raise ShapeError(
            f"rwf: A of shape {tuple(A.shape)} and y of shape {tuple(y.shape)} do not fit. Give (..., m, n) "
            "and (..., m)."
        )
    if not (A.is_floating_point() or A.is_complex()):
        A = A.to(torch.float64)
    if y.is_complex() or not bool(torch.isfinite(A.abs().sum())):
        raise DataError(
            "rwf: A must be finite, and y real: magnitudes |A x|. Take NaN and infinite rows out."
        )
    y = y.to(torch.empty((), dtype=A.dtype).real.dtype)
    if not bool(torch.isfinite(y).all()) or bool((y < 0).any()):
        raise DataError("rwf: y holds negative or infinite numbers or NaN. Give magnitudes |A x| >= 0.")
    m = A.shape[-2]
    gram = A.mH @ A / m
    rate = step / torch.linalg.eigvalsh(gram.real if real else gram)[..., -1:]
    z = spectral_start(A, y, trunc=trunc, real=real) if start is None else start
    for _ in range(max_iter):
        v = (A @ z.to(A.dtype).unsqueeze(-1)).squeeze(-1)
        pull = (A.mH @ (v - turned(y, v)).unsqueeze(-1)).squeeze(-1)
        z = z - rate / m * (pull.real if real else pull)
    return z


def spectral_start(
    A: Tensor, y: Tensor, *, trunc: tuple[float, float] = (1.0, 5.0), real: bool = False
) -> Tensor:
    """Return the top eigenvector of ``sum_i y_i a_i a_i^H`` over middling y_i, with the norm of the signal.

    Parameters
    ----------
    A : Tensor, shape (..., m, n)
        Measurement vectors in rows.
    y : Tensor, shape (..., m)
        Magnitudes.
    trunc, real
        As in `rwf`.

    Returns
    -------
    Tensor, shape (..., n)
    """
    m, n = A.shape[-2:]
    norm = m * n / A.abs().sum((-2, -1)) * y.mean(-1)
    low, high = trunc
    bound = norm.unsqueeze(-1)
    kept = y * ((y >= low * bound) & (y <= high * bound))
    S = A.mH @ (kept.unsqueeze(-1) * A) / m
    return norm.unsqueeze(-1) * torch.linalg.eigh(S.real if real else S).eigenvectors[..., -1]
