"""Coefficients: where a frame lies in a subspace, from the entries of it that are seen."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg.lapack import cposv, dposv, sposv, zposv

__all__ = ["fill", "fit_row", "fit_rows", "orthonormal", "regressor", "usable_ridge"]

# The solvers for Hermitian positive definite systems, fetched once: a search by dtype for every row of a
# stream would take longer than the solution.
_POSV: dict[str, Any] = {"f": sposv, "d": dposv, "F": cposv, "D": zposv}
_TINY = {kind: float(np.finfo(kind).tiny) for kind in _POSV}
_LEAST = {kind: float(np.finfo(kind).eps) ** (2 / 3) for kind in _POSV}


def usable_ridge(ridge: float, dtype: np.dtype) -> float:
    """Return the ridge, or the smallest one that keeps a Gram matrix of this precision positive definite."""
    return max(ridge, _LEAST[dtype.char])


def fit_row(A: np.ndarray, x: np.ndarray, *, ridge: float) -> np.ndarray:
    """Solve ``(A^H A + ridge m I) w = A^H x``, m the mean diagonal of ``A^H A``.

    Parameters
    ----------
    A : ndarray of shape (m, k)
        The seen rows of a basis.
    x : ndarray of shape (m,)
        The seen entries of a frame, of the same dtype.
    ridge : float
        Share of the mean diagonal.

    Returns
    -------
    ndarray of shape (k,)
    """
    left = _adjoint(A)
    return _solve(left @ A, left @ x, ridge)


def regressor(A: np.ndarray, *, ridge: float) -> np.ndarray:
    """Return the matrix that takes x to the solution of `fit_row`, shape (k, m).

    Parameters
    ----------
    A : ndarray of shape (m, k)
        The seen rows of a basis.
    ridge : float
        Share of the mean diagonal.

    Returns
    -------
    ndarray of shape (k, m)
    """
    left = _adjoint(A)
    return _solve(left @ A, left, ridge)


def _adjoint(A: np.ndarray) -> np.ndarray:
    # The conjugate of real numbers would be a copy, and copies are most of the time of a short frame.
    return A.conj().T if A.dtype.kind == "c" else A.T


def _solve(gram: np.ndarray, right: np.ndarray, ridge: float) -> np.ndarray:
    k = len(gram)
    diagonal = gram.reshape(-1)[:: k + 1]
    # The smallest normal number: a basis that vanishes on what is seen has coefficients zero.
    diagonal += diagonal.sum().real * (ridge / k) + _TINY[gram.dtype.char]
    return _POSV[gram.dtype.char](gram, right)[1]


def fit_rows(U: np.ndarray, rows: np.ndarray, seen: np.ndarray | None, *, ridge: float) -> np.ndarray:
    """Solve `fit_row` for many frames.

    Parameters
    ----------
    U : ndarray of shape (d, k)
        Orthonormal columns.
    rows : ndarray of shape (T, d)
        Zero where nothing is seen.
    seen : ndarray of bool of shape (T, d) or None
        None if all is seen: then no system is left to solve.
    ridge : float
        Share of the mean diagonal.

    Returns
    -------
    ndarray of shape (T, k)
    """
    right = rows @ U.conj()
    if seen is None:
        return right
    d, k = U.shape
    # One matrix product with the mask gives the Gram matrices of all frames.
    pairs = (U.conj()[:, :, None] * U[:, None, :]).reshape(d, k * k)
    gram = (seen.astype(U.real.dtype) @ pairs).reshape(-1, k, k)
    size = np.trace(gram, axis1=1, axis2=2).real / k
    gram += (ridge * size + _TINY[U.dtype.char])[:, None, None] * np.eye(k, dtype=U.dtype)
    return np.linalg.solve(gram, right[..., None])[..., 0]


def fill(U: np.ndarray, x: np.ndarray, places: np.ndarray | None, *, ridge: float) -> np.ndarray:
    """Return one frame with its gaps filled from a subspace; what is seen stays.

    Parameters
    ----------
    U : ndarray of shape (d, k)
        Orthonormal columns.
    x : ndarray of shape (d,)
        The frame.
    places : ndarray of int or None
        Which entries are seen; None if all are.
    ridge : float
        Share of the mean diagonal.

    Returns
    -------
    ndarray of shape (d,)
    """
    if places is None:
        return x.copy()
    filled = U @ fit_row(U[places], x[places], ridge=ridge)
    filled[places] = x[places]
    return filled


def orthonormal(D: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ``D = Q R`` with orthonormal Q and a positive diagonal of R.

    Parameters
    ----------
    D : ndarray of shape (d, k)

    Returns
    -------
    Q : ndarray of shape (d, k)
        Depends continuously on D, as far as its columns are independent.
    R : ndarray of shape (k, k)
    """
    Q, R = np.linalg.qr(D)
    diagonal = R.diagonal()
    size = np.abs(diagonal)
    phase = np.where(size > 0, diagonal / np.where(size > 0, size, 1), 1)
    return Q * phase, R * phase.conj()[:, None]
