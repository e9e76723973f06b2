"""Door: X, y and sample weights as users give them, checked before work is spent."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_array, check_consistent_length
from sklearn.utils.validation import validate_data
from torch import Tensor

from lowdim.errors import DataError, ShapeError
from lowdim.regress.samples import rows_at_once

__all__ = ["check_numbers", "enter", "weights_of"]

SIZES = ("is expecting", "minimum of", "Expected 2D", "inconsistent")
"""Words of scikit-learn's messages about shapes."""


def enter(
    estimator: Any, X: Any, y: Any = None, *, numeric: bool = False, least: int = 1, fit: bool = False
) -> Any:
    """Return X (and y) that can be computed with, and the shape of one sample of X.

    Parameters
    ----------
    estimator : estimator
        Gets ``n_features_in_`` (and ``feature_names_in_``) when it is fitted; else X must agree with them.
    X : array-like or Tensor of shape (N, n1, ..., nd) or (N, p)
        A memory map stays one, a tensor stays on its device.
    y : array-like or Tensor, optional
        Of length N.
    numeric : bool
        Whether y holds numbers, in one or several columns.
    least : int
        Smallest N.
    fit : bool
        Whether the estimator is being fitted.

    Returns
    -------
    X : ndarray or Tensor
        Flat, (N, p), except for memory maps.
    given : tuple of int
        Shape of one sample, as given.
    y : ndarray or None

    Raises
    ------
    DataError
        With the message of scikit-learn: NaN or infinity (in a place that the mask of the estimator does not
        hide), complex numbers, sparse input.
    ShapeError
        Likewise: X is empty or has other features than it was fitted to, or y another length.
    """
    where = type(estimator).__name__
    given: tuple[int, ...]
    try:
        if isinstance(X, Tensor) or (isinstance(X, np.memmap) and X.ndim > 1 and X.dtype.kind in "fiu"):
            X, given = _large(estimator, X, where, least=least, fit=fit)
            y = y.detach().cpu().numpy() if isinstance(y, Tensor) else y
            if y is not None and numeric:
                y = check_array(y, ensure_2d=False, dtype=np.float64, ensure_min_samples=0)
            if y is not None:
                check_consistent_length(range(X.shape[0]), y)
            return X, given, y
        axes = np.ndim(X) if isinstance(X, (list, tuple)) else getattr(X, "ndim", 2)
        given = ()
        if axes > 2:
            X = np.asarray(X)
            given = tuple(X.shape[1:])
            X = X.reshape(len(X), prod(given))
        options: dict[str, Any] = {
            "dtype": [np.float64, np.float32],
            "ensure_min_samples": least,
            "ensure_all_finite": estimator.mask is None,
            "reset": fit,
        }
        y = y.detach().cpu().numpy() if isinstance(y, Tensor) else y
        if fit:
            X, y = validate_data(estimator, X, y, multi_output=numeric, y_numeric=numeric, **options)
        else:
            X = validate_data(estimator, X, **options)
        if estimator.mask is not None and not np.isfinite(_visible(estimator, X)).all():
            raise DataError(
                f"{where}: Input X contains NaN or infinity inside the mask. Impute or drop these samples."
            )
        return X, given or X.shape[1:], y
    except ValueError as error:
        if isinstance(error, (DataError, ShapeError)):
            raise
        sizes = any(words in str(error) for words in SIZES)
        raise (ShapeError if sizes else DataError)(f"{where}: {error}") from error


def _large(estimator: Any, X: Any, where: str, *, least: int, fit: bool) -> tuple[Any, tuple[int, ...]]:
    """Check what scikit-learn would copy: a tensor, or a memory map, which is read in pieces."""
    if X.ndim < 2:
        raise ShapeError(
            f"{where}: Expected 2D array, got 1D array instead. Reshape X to (samples, features)."
        )
    given = tuple(int(n) for n in X.shape[1:])
    if X.shape[0] < least or prod(given) == 0:
        raise ShapeError(
            f"{where}: Found array with {X.shape[0]} sample(s) of {prod(given)} feature(s) while a minimum "
            f"of {least} and 1 is required."
        )
    if isinstance(X, Tensor):
        if X.is_complex():
            raise DataError(
                f"{where}: Complex data not supported. Give real and imaginary parts as features."
            )
        if X.dtype not in (torch.float32, torch.float64):
            X = X.to(torch.float32 if X.dtype in (torch.float16, torch.bfloat16) else torch.float64)
        X = X.detach()
        finite = bool(_visible(estimator, X).isfinite().all())
    else:
        step = rows_at_once(prod(given))
        finite = all(np.isfinite(_visible(estimator, X[i : i + step])).all() for i in range(0, len(X), step))
    if not finite:
        raise DataError(f"{where}: Input X contains NaN or infinity. Impute or drop these samples.")
    if fit:
        estimator.n_features_in_ = prod(given)
    elif estimator.n_features_in_ != prod(given):
        raise ShapeError(
            f"{where}: X has {prod(given)} features, but {where} is expecting {estimator.n_features_in_} "
            "features as input."
        )
    return X.reshape(len(X), -1) if isinstance(X, Tensor) else X, given


def _visible(estimator: Any, X: Any) -> Any:
    """Return the rows (N, places) that the estimator looks at: what a mask hides may be anything."""
    mask, rows = estimator.mask, X.reshape(len(X), -1)
    if mask is None:
        return rows
    seen = np.asarray(mask).reshape(-1)
    return rows[:, seen] if seen.dtype == np.bool_ and seen.size == rows.shape[1] else rows


def weights_of(sample_weight: Any, N: int, *, where: str) -> np.ndarray:
    """Return sample weights with sum 1.

    Parameters
    ----------
    sample_weight : float, array-like of shape (N,), or None
    N : int
    where : str
        Name of the caller, for messages.

    Returns
    -------
    ndarray of shape (N,)

    Raises
    ------
    ShapeError
        If there are not as many as samples.
    DataError
        If one is negative or not finite, or all are zero.
    """
    if isinstance(sample_weight, Tensor):
        sample_weight = sample_weight.detach().cpu().numpy()
    s = np.ones(N) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
    s = np.full(N, s) if s.ndim == 0 else s
    if s.shape != (N,):
        raise ShapeError(
            f"{where}: sample_weight has shape {s.shape}, expected ({N},): one number per sample."
        )
    if not np.isfinite(s).all() or (s < 0).any() or s.sum() == 0:
        raise DataError(f"{where}: sample_weight must be finite, not negative, and not zero everywhere.")
    return s / s.sum()


def check_numbers(estimator: Any, *, alpha: bool = True) -> None:
    """Refuse options that no data could make sense of.

    Parameters
    ----------
    estimator : estimator
        With ``n_init``, ``max_iter``, ``tol`` and, unless it is chosen by cross-validation, ``alpha``.
    alpha : bool
        Whether it has a penalty of its own.

    Raises
    ------
    DataError
    """
    where = type(estimator).__name__
    if alpha and not (np.isreal(estimator.alpha) and 0 <= estimator.alpha < np.inf):
        raise DataError(f"{where}: alpha={estimator.alpha!r} must be a finite number, 0 or more.")
    for name in ("n_init", "max_iter"):
        value = getattr(estimator, name)
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise DataError(f"{where}: {name}={value!r} must be a positive integer.")
    if not (np.isreal(estimator.tol) and 0 <= estimator.tol < np.inf):
        raise DataError(
            f"{where}: tol={estimator.tol!r} must be a finite number, 0 or more. The default is 1e-5."
        )
