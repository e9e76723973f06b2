"""A sliding window: the subspace that fits the last frames best."""

from __future__ import annotations

from typing import Any

import numpy as np

from lowdim.errors import DataError
from lowdim.track.coefficients import fit_rows, orthonormal, usable_ridge
from lowdim.track.streaming import StreamingSubspace

__all__ = ["WindowSubspace", "refit"]


class WindowSubspace(StreamingSubspace):
    """Track a subspace by fitting it to the last frames, again after every frame.

    Minimizes ``sum over i in window, m seen in i of |x_im - U_m w_i|^2`` by
    alternating least squares (masked principal components), from the last
    basis on. No frame counts beyond the window, so that a subspace which
    moves is seen as it was about half a window ago; a window needs enough
    frames, more so with gaps, to determine ``d k`` numbers.

    Parameters
    ----------
    n_components : int
        Dimension k of the subspace.
    window : int
        Number of frames that count; those without any seen entry are left out.
    sweeps : int
        Number of sweeps per frame, each one regression for all frames and one for all entries.
    damping : float
        Share of the mean diagonal by which every sweep is pulled towards the basis before it. That does not
        bias the fit; without it, few frames with many gaps lead it astray.
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
    .. [1] H. Kiers, "Weighted least squares fitting using ordinary least squares algorithms",
       Psychometrika 62, 1997; the alternation itself is classical.

    Examples
    --------
    >>> X = np.outer(np.arange(1.0, 21.0), [1.0, 2.0, 2.0])
    >>> X[::2, 0] = np.nan
    >>> tracker = WindowSubspace(1, window=10, random_state=0).fit(X)
    >>> tracker.impute(np.array([[np.nan, 4.0, 4.0]])).round(4)
    array([[2., 4., 4.]])
    """

    _state = ("_U", "_rows", "_seen")
    _U: np.ndarray
    _rows: np.ndarray
    _seen: np.ndarray

    def __init__(
        self,
        n_components: int = 1,
        *,
        window: int = 30,
        sweeps: int = 3,
        damping: float = 0.1,
        ridge: float = 1e-8,
        init: Any = None,
        random_state: Any = None,
    ) -> None:
        super().__init__(n_components, ridge=ridge, init=init, random_state=random_state)
        self.window = window
        self.sweeps = sweeps
        self.damping = damping

    def _check_options(self) -> None:
        super()._check_options()
        for name in ("window", "sweeps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
                raise DataError(f"WindowSubspace: {name}={value!r} must be a positive integer.")
        if not 0 < self.damping < np.inf:
            raise DataError(
                f"WindowSubspace: damping={self.damping!r} must be a positive number, such as 0.1."
            )
        if hasattr(self, "n_seen_") and self.n_seen_ and len(self._rows) > self.window:
            # The window was made shorter since.
            self._rows, self._seen = self._rows[-self.window :], self._seen[-self.window :]

    def _start(self, U: np.ndarray) -> None:
        self._U = U
        self._rows = np.zeros((0, len(U)), dtype=U.dtype)
        self._seen = np.zeros((0, len(U)), dtype=bool)

    def _step(self, x: np.ndarray, places: np.ndarray | None) -> None:
        here = np.zeros((1, len(x)), dtype=bool)
        here[0, slice(None) if places is None else places] = True
        self._rows = np.concatenate([self._rows[1 - self.window or len(self._rows) :], x[None]])
        self._seen = np.concatenate([self._seen[1 - self.window or len(self._seen) :], here])
        seen = None if self._seen.all() else self._seen
        ridge = usable_ridge(self.ridge, self._U.dtype)
        for _ in range(self.sweeps):
            self._U = refit(self._U, self._rows, seen, ridge=ridge, damping=self.damping)


def refit(
    U: np.ndarray, rows: np.ndarray, seen: np.ndarray | None, *, ridge: float, damping: float
) -> np.ndarray:
    """Return an orthonormal basis after one sweep of alternating least squares.

    Parameters
    ----------
    U : ndarray of shape (d, k)
        Orthonormal columns.
    rows : ndarray of shape (n, d)
        Frames, zero in their gaps.
    seen : ndarray of bool of shape (n, d) or None
        None if all is seen.
    ridge : float
        Share of the mean diagonal, in the systems for the coefficients.
    damping : float
        Share of the mean diagonal, in those for the basis, with which U pulls.

    Returns
    -------
    ndarray of shape (d, k)
    """
    k = U.shape[1]
    W = fit_rows(U, rows, seen, ridge=ridge)
    conjugate = W.conj()
    # Row m of the basis: U_m (sum_i w_i w_i^H + c I) = sum_i x_im w_i^H + c U_m, sums over i that show m.
    right = rows.T @ conjugate
    if seen is None:
        gram = (W.T @ conjugate)[None]
    else:
        pairs = (W[:, :, None] * conjugate[:, None, :]).reshape(len(W), k * k)
        gram = (seen.T.astype(U.real.dtype) @ pairs).reshape(-1, k, k)
    pull = damping * np.trace(gram, axis1=1, axis2=2).real.mean() / k
    if not pull:
        return U
    gram = gram + pull * np.eye(k, dtype=U.dtype)
    right = right + pull * U
    if seen is None:
        return orthonormal(np.linalg.solve(gram[0].T, right.T).T)[0]
    return orthonormal(np.linalg.solve(gram.mT, right[..., None])[..., 0])[0]
