"""Panel: what a user gives as time series with gaps, checked and turned into tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowdim.errors import DataError, RankError, ShapeError

__all__ = ["SMALL", "Clock", "check_frames", "check_rank", "numbers", "tensor_of", "times_of"]

SMALL = 500_000
"""Entries of the frames from which on several threads gain."""


def check_frames(
    X: Any, mask: Any = None, *, where: str, least: int = 1, empty: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return frames with zeros in their gaps, and where they are seen.

    Parameters
    ----------
    X : array-like of shape (T, d)
        Rows in the order of time; real or complex; NaN where nothing is seen. Table, array or tensor.
    mask : array-like of bool of shape (T, d), optional
        Whether an entry is seen; what it hides is never looked at.
    where : str
        Name of the caller, for messages.
    least : int
        Smallest number of rows.
    empty : bool
        Whether all may be missing, as in a stream that pauses.

    Returns
    -------
    y : ndarray of shape (T, d)
        float64 or complex128 (float32, complex64 stay).
    mask : ndarray of bool or None
        None if all is seen.

    Raises
    ------
    ShapeError
        If there are too few rows or the shapes do not fit.
    DataError
        If it holds no numbers, infinite ones, NaN where the mask says seen, or nothing at all.
    """
    y = numbers(X, where=where)
    if y.ndim != 2:
        raise ShapeError(
            f"{where}: expected a 2D array (times, features), got shape {y.shape}. Reshape your data: one "
            "row "
            "per time (several rows may share a time, see t=...)."
        )
    if len(y) < least:
        raise ShapeError(f"{where}: got n_samples={len(y)} rows, expected at least {least} times.")
    if y.shape[1] == 0:
        raise ShapeError(f"{where}: 0 feature(s) (shape={y.shape}) while a minimum of 1 is required.")
    missing = np.isnan(y)
    if mask is not None:
        seen = np.asarray(mask)
        if seen.shape != y.shape or seen.dtype != np.bool_:
            raise ShapeError(
                f"{where}: mask must be a boolean array of shape {y.shape}, got {seen.dtype} {seen.shape}."
            )
        if (missing & seen).any():
            i, j = np.argwhere(missing & seen)[0]
            raise DataError(
                f"{where}: X[{i}, {j}] is NaN where the mask says it was seen. Set mask to False there."
            )
        missing = ~seen
    if not np.isfinite(y[~missing]).all():
        i, j = np.argwhere(~np.isfinite(y) & ~missing)[0]
        raise DataError(f"{where}: X[{i}, {j}] is infinity. Only NaN stands for a missing entry.")
    if not missing.any():
        return y, None
    if missing.all() and not empty:
        raise DataError(f"{where}: every entry is missing. Give at least some observed numbers.")
    return np.where(missing, 0, y), ~missing


def numbers(X: Any, *, where: str) -> np.ndarray:
    """Return what a user gives as an array of real or complex floating-point numbers.

    Parameters
    ----------
    X : array-like
    where : str
        Name of the caller, for messages.

    Returns
    -------
    ndarray

    Raises
    ------
    DataError
        If it does not hold numbers, or is sparse.
    """
    if isinstance(X, Tensor):
        X = X.detach().cpu().numpy()
    if hasattr(X, "toarray") and hasattr(X, "tocsr"):
        raise DataError(
            f"{where}: sparse input is not supported, for its zeros may be gaps or numbers. Give a dense "
            "array "
            "with NaN for gaps: X.toarray()."
        )
    y = np.asarray(X)
    if y.dtype.kind in "Obiu":
        try:
            y = y.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise DataError(f"{where}: X does not hold numbers ({error}).") from error
    if y.dtype.kind not in "fc":
        raise DataError(f"{where}: X does not hold numbers, but {y.dtype}. Leave other columns out.")
    return y.astype(np.float64) if y.dtype == np.float16 else y


def check_rank(k: Any, *, largest: int, where: str, why: str) -> int:
    """Return a number of components, or refuse it.

    Parameters
    ----------
    k : int
    largest : int
        The most that is possible.
    where, why : str
        For the message: who asks, and what limits it.

    Returns
    -------
    int

    Raises
    ------
    RankError
    """
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise RankError(f"{where}: n_components={k!r} must be a positive integer.")
    if k > largest:
        raise RankError(f"{where}: n_components={k} is too large: {why}. Use at most {largest}.")
    return int(k)


@dataclass(frozen=True)
class Clock:
    """The user's time, of which the unit interval is made.

    Parameters
    ----------
    start, end : float
        First and last time of the data.

    Examples
    --------
    >>> Clock(1990.0, 2000.0).unit(np.array([1995.0])).tolist()
    [0.5]
    """

    start: float
    end: float

    def unit(self, t: np.ndarray) -> np.ndarray:
        """Return times in units of the fitted interval: 0 is its start, 1 its end."""
        return (t - self.start) / (self.end - self.start)


def times_of(t: Any, rows: int, *, where: str) -> np.ndarray:
    """Return times as numbers.

    Parameters
    ----------
    t : array-like of shape (rows,) or None
        Numbers or dates, in any order, with any spacing; None means 0, 1, 2, ...
    rows : int
        How many are expected.
    where : str
        Name of the caller, for messages.

    Returns
    -------
    ndarray of float64
        Dates become days since 1970.

    Raises
    ------
    ShapeError
        If there are not as many times as rows.
    DataError
        If they are no finite numbers or dates.
    """
    if t is None:
        return np.arange(rows, dtype=np.float64)
    if isinstance(t, Tensor):
        t = t.detach().cpu().numpy()
    given = np.asarray(t)
    if given.ndim != 1 or len(given) != rows:
        raise ShapeError(
            f"{where}: {rows} rows need as many times, got an array of shape {given.shape}. Give one time "
            "per row."
        )
    if given.dtype.kind == "M":
        missing = np.isnat(given)
        given = given.astype("datetime64[ns]").astype(np.int64) / 86_400e9
        given = np.where(missing, np.nan, given)
    try:
        given = given.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: times must be numbers or dates ({error}).") from error
    if not np.isfinite(given).all():
        place = int(np.argwhere(~np.isfinite(given))[0, 0])
        raise DataError(f"{where}: the time of row {place} is missing or infinite. Drop the row, or date it.")
    return given


def tensor_of(array: np.ndarray, device: str | torch.device) -> Tensor:
    """Return a tensor of the same numbers on a device."""
    return torch.as_tensor(np.ascontiguousarray(array)).to(device)
