"""GROUSE: one gradient step on the Grassmannian for every frame."""

from __future__ import annotations

from math import cos, hypot, sin, sqrt
from typing import Any

import numpy as np

from lowdim.errors import DataError
from lowdim.track.coefficients import fit_row, usable_ridge
from lowdim.track.streaming import StreamingSubspace

__all__ = ["Grouse", "rotate", "tidy"]


class Grouse(StreamingSubspace):
    """Track a subspace by turning it towards every frame, along a geodesic of the Grassmannian.

    On the seen entries Omega, ``w`` is the regression of the frame on the
    basis, ``p = U w`` and r the residual (zero where nothing is seen). Then

        ``U += [(cos a - 1) p / |p| + sin a r / |r|] w^H / |w|``

    with the angle ``a = atan(|r| / |p|)``: the basis afterwards contains
    ``p + r``. Costs ``O(|Omega| k^2 + d k)`` per frame.

    Parameters
    ----------
    n_components : int
        Dimension k of the subspace.
    step : float, optional
        Use the angle ``step |r| |p|`` instead: smaller steps average noise, and depend on the scale of the
        data.
    ridge : float
        Share of the mean diagonal that is added to the k x k systems for the coefficients.
    init : array-like of shape (d, k), optional
        Spans the subspace to start from. A random one without it.
    random_state : int, RandomState or None
        For the random start.

    Attributes
    ----------
    basis_ : ndarray of shape (d, k)
        Orthonormal columns, as of the last frame.
    n_features_in_ : int
        d.
    n_seen_ : int
        Number of frames of which something was seen.

    References
    ----------
    .. [1] L. Balzano, R. Nowak, B. Recht, "Online identification and tracking of subspaces from highly
       incomplete information", Allerton 2010, algorithm 1 (angle ``step |r| |p|``).
    .. [2] D. Zhang, L. Balzano, "Global convergence of a Grassmannian gradient descent algorithm for
       subspace estimation", AISTATS 2016 (the greedy angle, our default).

    Examples
    --------
    >>> line = np.array([[3.0, 0.0, 4.0]])
    >>> gaps = np.array([[3.0, np.nan, 4.0], [6.0, 0.0, np.nan], [np.nan, 0.0, 8.0]])
    >>> tracker = Grouse(1, random_state=0).fit(np.vstack([line, gaps]))
    >>> tracker.impute(np.array([[np.nan, 0.0, 12.0]])).round(6) + 0.0
    array([[ 9.,  0., 12.]])
    """

    _U: np.ndarray

    def __init__(
        self,
        n_components: int = 1,
        *,
        step: float | None = None,
        ridge: float = 1e-8,
        init: Any = None,
        random_state: Any = None,
    ) -> None:
        super().__init__(n_components, ridge=ridge, init=init, random_state=random_state)
        self.step = step

    def _check_options(self) -> None:
        super()._check_options()
        if self.step is not None and not 0 < self.step < np.inf:
            raise DataError(
                f"Grouse: step={self.step!r} must be a positive number. Leave it out for the greedy angle."
            )

    def _start(self, U: np.ndarray) -> None:
        self._U = U

    def _step(self, x: np.ndarray, places: np.ndarray | None) -> None:
        U = self._U
        if places is None:
            w = x @ U.conj()
            p = U @ w
            r = x - p
        else:
            w = fit_row(U.take(places, axis=0), x.take(places), ridge=usable_ridge(self.ridge, U.dtype))
            p = U @ w
            r = np.zeros_like(x)
            r[places] = x.take(places) - p.take(places)
            # The ridge leaves a trace of U in the residual, which would cost the columns their right angles.
            r -= U @ (r @ U.conj())
        rotate(U, w, p, r, step=self.step)

    def _refresh(self) -> None:
        self._U = tidy(self._U)


def rotate(U: np.ndarray, w: np.ndarray, p: np.ndarray, r: np.ndarray, *, step: float | None) -> None:
    """Turn a subspace, in place, from p in it towards the direction r orthogonal to it.

    Parameters
    ----------
    U : ndarray of shape (d, k)
        Orthonormal columns.
    w, p : ndarray of shape (k,), (d,)
        ``p = U w``.
    r : ndarray of shape (d,)
        Orthogonal to U.
    step : float or None
        The angle is ``step |r| |p|``; greedy, ``atan(|r| / |p|)``, without it.
    """
    length, residual = sqrt(np.vdot(w, w).real), sqrt(np.vdot(r, r).real)
    if not (length and residual):
        return
    if step is None:
        # The cosine and sine of atan(|r| / |p|).
        size = hypot(length, residual)
        cosine, sine = length / size, residual / size
    else:
        cosine, sine = cos(step * residual * length), sin(step * residual * length)
    direction = p * ((cosine - 1) / length)
    direction += r * (sine / residual)
    U += direction[:, None] * (w.conj() / length)


def tidy(U: np.ndarray) -> np.ndarray:
    """Return the nearest orthonormal columns: one Newton-Schulz step squares a small error."""
    return 1.5 * U - 0.5 * (U @ (U.conj().T @ U))
