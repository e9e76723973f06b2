"""PETRELS: recursive least squares for every row of the basis, with forgetting."""

from __future__ import annotations

from typing import Any

import numpy as np

from lowdim.errors import DataError
from lowdim.track.coefficients import fit_row, orthonormal, usable_ridge
from lowdim.track.streaming import StreamingSubspace

__all__ = ["Petrels", "gain"]

_WINDUP = 1e8
"""A row that is told nothing about some direction forgets it down to this share, not further."""


class Petrels(StreamingSubspace):
    """Track a subspace by exponentially forgetting least squares, row by row of its basis.

    With the coefficients ``w_t`` of every frame held as they were found,
    row m of D minimizes ``sum_t f^(n - t) |x_tm - D_m w_t|^2`` over the
    frames that show entry m. The inverse ``P_m`` of its Gram matrix
    ``sum_t f^(n - t) w_t w_t^H`` is kept, so that a frame costs
    ``O(|Omega| k^2)``:

        ``P <- P / f``,  ``v = P w / (1 + w^H P w)``,
        ``D_m += (x_m - D_m w) v^H``,  ``P -= (1 + w^H P w) v v^H``

    P is kept as a root, ``P = T^H T`` with Potter's update, for the formula
    above loses its positive eigenvalues to rounding when frames leave the
    subspace quickly. As long as all frames are complete, all rows have the
    same P and one is kept, which is faster.

    Only rows that are seen are changed, and only they forget: f counts
    the observations of a row (in [1] all rows forget at every frame, so
    that P grows without bound where nothing is seen).

    Parameters
    ----------
    n_components : int
        Dimension k of the subspace.
    forgetting : float
        f in (0, 1]; about ``1 / (1 - f)`` observations of an entry count. 0.9 is unstable with many gaps.
    prior : float
        ``P = prior I`` at the start, with coefficients of about size 1: the larger it is, the sooner the
        random start is forgotten.
    ridge : float
        Share of the mean diagonal that is added to the k x k systems for the coefficients.
    init : array-like of shape (d, k), optional
        Spans the subspace to start from. A random one without it.
    random_state : int, RandomState or None
        For the random start.

    Attributes
    ----------
    basis_ : ndarray of shape (d, k)
        Orthonormal columns that span D, as of the last frame.
    n_features_in_ : int
        d.
    n_seen_ : int
        Number of frames of which something was seen.

    References
    ----------
    .. [1] Y. Chi, Y. Eldar, R. Calderbank, "PETRELS: Parallel subspace estimation and tracking by recursive
       least squares from partial observations", IEEE Trans. Signal Process. 61, 2013, algorithm 1.
    .. [2] P. Kaminski, A. Bryson, S. Schmidt, "Discrete square root filtering: a survey of current
       techniques", IEEE Trans. Automatic Control 16, 1971 (Potter's root).

    Examples
    --------
    >>> draw = np.random.default_rng(0)
    >>> X = draw.standard_normal((200, 2)) @ draw.standard_normal((2, 10))
    >>> gaps = np.where(draw.random(X.shape) < 0.3, np.nan, X)
    >>> U = Petrels(2, random_state=0).fit(gaps).basis_
    >>> bool(np.linalg.norm(X - X @ U @ U.T) < 0.01 * np.linalg.norm(X))
    True
    """

    _state = ("_D", "_T")
    _D: np.ndarray
    _T: np.ndarray
    _joined: np.ndarray | None = None

    def __init__(
        self,
        n_components: int = 1,
        *,
        forgetting: float = 0.98,
        prior: float = 100.0,
        ridge: float = 1e-8,
        init: Any = None,
        random_state: Any = None,
    ) -> None:
        super().__init__(n_components, ridge=ridge, init=init, random_state=random_state)
        self.forgetting = forgetting
        self.prior = prior

    def _check_options(self) -> None:
        super()._check_options()
        if not 0 < self.forgetting <= 1:
            raise DataError(
                f"Petrels: forgetting={self.forgetting!r} must be in (0, 1]. 0.98 remembers about 50 "
                "observations of an entry, 1 all."
            )
        if not 0 < self.prior < np.inf:
            raise DataError(f"Petrels: prior={self.prior!r} must be a positive number.")

    def _start(self, U: np.ndarray) -> None:
        k = U.shape[1]
        # Features come last in both arrays, (k, d) and (k, k, d): then all loops over them are contiguous.
        self._D = np.ascontiguousarray(U.T)
        # One root for all features, as long as every frame is complete.
        self._T = self.prior**0.5 * np.eye(k, dtype=U.dtype)[:, :, None]

    def _basis(self) -> np.ndarray:
        return orthonormal(self._D.T)[0]

    def _step(self, x: np.ndarray, places: np.ndarray | None) -> None:
        D, T, f = self._D, self._T, self.forgetting
        if self.n_seen_ == 0:
            D *= _size(x, places)
        ridge = usable_ridge(self.ridge, D.dtype)
        if places is None:
            w = fit_row(D.T, x, ridge=ridge)
            D += (x - w @ D) * gain(T, w, forgetting=f)
            return
        joined, k = self._join(), len(D)
        seen, x_seen = joined.take(places, axis=1), x.take(places)
        D_seen, T_seen = seen[:k], seen[k:].reshape(k, k, -1)
        w = fit_row(D_seen.T, x_seen, ridge=ridge)
        D_seen += (x_seen - w @ D_seen) * gain(T_seen, w, forgetting=f)
        joined[:, places] = seen

    def _join(self) -> np.ndarray:
        """Return D above the roots of all features in one array, of which both are views.

        Picking what is seen, and putting it back, is a fifth of a step; of one array it takes half of that.
        """
        joined = self._joined
        if joined is None or self._D.base is not joined or self._T.base is not joined:
            k, d = self._D.shape
            roots = np.broadcast_to(self._T, (k, k, d)).reshape(k * k, d)
            self._joined = joined = np.concatenate([self._D, roots])
            self._D, self._T = joined[:k], joined[k:].reshape(k, k, d)
        return joined

    def _refresh(self) -> None:
        """Choose orthogonal columns of one length for the same span, and bound P."""
        k = len(self._D)
        size = np.linalg.norm(self._D) / k**0.5
        Q, R = orthonormal(self._D.T / (size or 1))
        length = R.diagonal().real
        if length.min() > 1e-6 * length.max():
            # D w = (size Q) (R w), and P of R w is R^-H P R^-1.
            self._D = np.ascontiguousarray(size * Q.T)
            self._T = np.matmul(np.linalg.inv(R).T, self._T)
        excess = (np.abs(self._T) ** 2).sum((0, 1)) / (_WINDUP * self.prior * k)
        self._T /= np.sqrt(np.maximum(excess, 1))


def gain(T: np.ndarray, w: np.ndarray, *, forgetting: float) -> np.ndarray:
    """Update ``P = T^H T`` for one frame, in place, and return ``v^H``.

    With ``a = T w`` and ``b = f + a^H a``, ``v = T^H a / b`` and Potter's
    ``T <- (T - a (T^H a)^H / (b + sqrt(f b))) / sqrt(f)``.

    Parameters
    ----------
    T : ndarray of shape (k, k, m)
        Roots of the matrices P of m features.
    w : ndarray of shape (k,)
        Coefficients of the frame.
    forgetting : float
        f.

    Returns
    -------
    ndarray of shape (k, m)
    """
    a = np.matmul(w, T)
    conjugate = a.conj() if a.dtype.kind == "c" else a
    b = np.add.reduce((a * conjugate).real) + forgetting
    row = np.add.reduce(conjugate[:, None, :] * T)
    T -= (a / (b + np.sqrt(forgetting * b)))[:, None, :] * row
    T *= forgetting**-0.5
    return row / b


def _size(x: np.ndarray, places: np.ndarray | None) -> float:
    """Return the length of a frame, were it seen as a whole; 1 for silence."""
    share = 1.0 if places is None else len(places) / len(x)
    return float(np.linalg.norm(x)) / share**0.5 or 1.0
