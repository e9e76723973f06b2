"""GRASTA: a robust GROUSE, which fits every frame by least absolute deviations."""

from __future__ import annotations

from math import exp, pi, sqrt
from typing import Any

import numpy as np

from lowdim.errors import DataError
from lowdim.track.coefficients import regressor, usable_ridge
from lowdim.track.grouse import tidy
from lowdim.track.streaming import StreamingSubspace

__all__ = ["Grasta", "least_deviations"]

# Of the adaptive step: bounds and start of mu, highest level, range and slope of the sigmoid.
_MU_LEAST, _MU_MOST, _MU_START = 1.0, 5.0, 3.0
_LEVELS = 40
_SLOPE = 0.1
_WIDEST = pi / 3


class Grasta(StreamingSubspace):
    """Track a subspace although some of what is seen is grossly wrong.

    Every frame is split into ``x = U w + s + noise`` with sparse s by least
    absolute deviations on the seen entries,

        ``min |s|_1  subject to  U w + s = x``,

    solved by ADMM with the multiplier y. The subspace then turns against
    the gradient ``Gamma w^H`` of the augmented Lagrangian, where ``Gamma``
    is y without its part in the subspace:

        ``U += [(cos a - 1) U w / |w| - sin a Gamma / |Gamma|] w^H / |w|``

    An outlier counts by its sign, not by its size. The angle
    ``a = eta |Gamma| |w|`` has the step ``eta = C 2^-level / (1 + mu)``: mu
    grows while successive gradients disagree and falls while they agree,
    and the level follows mu when it reaches a bound. Every frame is scaled
    to a mean absolute value of 1, and C makes the first angle pi / 4, so
    that the units of the data do not matter.

    Parameters
    ----------
    n_components : int
        Dimension k of the subspace.
    step : float, optional
        A constant eta instead, for frames of mean absolute value 1; angles are at most about ``eta d``, so
        try ``0.1 / d``.
    rho : float
        Penalty of ADMM.
    admm_steps : int
        Steps of ADMM per frame; always as many, so that close frames have close results.
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

    Notes
    -----
    `transform` and `impute` are least squares, as for all trackers. With the adaptive step the first angles
    are wide and an outlier's sign decides, so that rounding errors grow over the first hundred frames: two
    machines may differ in the way, not in where it leads.

    References
    ----------
    .. [1] J. He, L. Balzano, A. Szlam, "Incremental gradient on the Grassmannian for online foreground and
       background separation in subsampled video", CVPR 2012.
    .. [2] J. He, L. Balzano, J. Lui, "Online robust subspace tracking from partial information",
       arXiv 1109.3827: algorithms 1 (GRASTA), 2 (ADMM), 3 (step size). The scaling of frames and
       of C is ours, and mu is at most 5 (15 in [2]): measured, it converges several times sooner.

    Examples
    --------
    >>> draw = np.random.default_rng(0)
    >>> X = draw.standard_normal((600, 1)) @ np.ones((1, 8))
    >>> X[np.arange(600), draw.integers(0, 8, 600)] += 50
    >>> basis = Grasta(1, random_state=0).fit(X).basis_
    >>> bool(abs(basis.sum()) / 8**0.5 > 0.99)
    True
    """

    _state = ("_U", "_gamma", "_w", "_pace")
    _U: np.ndarray
    _gamma: np.ndarray
    _w: np.ndarray
    _pace: np.ndarray

    def __init__(
        self,
        n_components: int = 1,
        *,
        step: float | None = None,
        rho: float = 1.8,
        admm_steps: int = 20,
        ridge: float = 1e-8,
        init: Any = None,
        random_state: Any = None,
    ) -> None:
        super().__init__(n_components, ridge=ridge, init=init, random_state=random_state)
        self.step = step
        self.rho = rho
        self.admm_steps = admm_steps

    def _check_options(self) -> None:
        super()._check_options()
        for name in ("step", "rho", "admm_steps"):
            value = getattr(self, name)
            if not (name == "step" and value is None) and not 0 < value < np.inf:
                raise DataError(f"Grasta: {name}={value!r} must be a positive number.")

    def _start(self, U: np.ndarray) -> None:
        d, k = U.shape
        self._U = U
        # The last gradient is gamma w^H; the pace is (C, mu, level), C = 0 until the first gradient.
        self._gamma, self._w = np.zeros(d, dtype=U.dtype), np.zeros(k, dtype=U.dtype)
        self._pace = np.array([0.0, _MU_START, 0.0])

    def _step(self, x: np.ndarray, places: np.ndarray | None) -> None:
        U = self._U
        seen_U, seen_x = (U, x) if places is None else (U.take(places, axis=0), x.take(places))
        scale = float(np.abs(seen_x).mean())
        if not scale:
            return
        w, dual = least_deviations(
            seen_U,
            seen_x / scale,
            rho=self.rho,
            admm_steps=self.admm_steps,
            ridge=usable_ridge(self.ridge, U.dtype),
        )
        gamma = -U @ (seen_U.conj().T @ dual)
        if places is None:
            gamma += dual
        else:
            gamma[places] += dual
        self._turn(gamma, w)

    def _turn(self, gamma: np.ndarray, w: np.ndarray) -> None:
        """Move against the gradient ``gamma w^H`` by the adaptive step."""
        length, slope = _norm(w), _norm(gamma)
        if not (length and slope):
            return
        angle = min(self._rate(gamma, w, slope * length) * slope * length, _WIDEST)
        direction = (self._U @ w) * ((np.cos(angle) - 1) / length) - gamma * (np.sin(angle) / slope)
        self._U += direction[:, None] * (w.conj() / length)
        self._gamma, self._w = gamma, w

    def _rate(self, gamma: np.ndarray, w: np.ndarray, size: float) -> float:
        """Return eta, after mu and the level have followed the angle between the last two gradients."""
        if self.step is not None:
            return self.step
        C, mu, level = self._pace.tolist()
        if not C:
            C = (1 + mu) * (pi / 4) / size
        else:
            last = _norm(self._gamma) * _norm(self._w)
            overlap = (np.vdot(self._gamma, gamma) * np.vdot(w, self._w)).real / (last * size)
            mu += _sigmoid(-float(overlap))
            if mu >= _MU_MOST:
                mu, level = _MU_START, min(level + 1, _LEVELS)
            elif mu <= _MU_LEAST:
                mu, level = _MU_START, max(level - 1, 0)
        self._pace = np.array([C, mu, level])
        return C * 2.0**-level / (1 + mu)

    def _refresh(self) -> None:
        self._U = tidy(self._U)


def least_deviations(
    A: np.ndarray, x: np.ndarray, *, rho: float, admm_steps: int, ridge: float
) -> tuple[np.ndarray, np.ndarray]:
    """Minimize ``|x - A w|_1`` by ADMM.

    Parameters
    ----------
    A : ndarray of shape (m, k)
    x : ndarray of shape (m,)
    rho : float
        Penalty.
    admm_steps : int
        Number of steps.
    ridge : float
        Share of the mean diagonal.

    Returns
    -------
    w : ndarray of shape (k,)
    y : ndarray of shape (m,)
        Multiplier of ``A w + s = x``, the gradient by A w; its entries are at most 1 in absolute value.
    """
    # The regression is the same matrix in every iteration.
    solve = regressor(A, ridge=ridge)
    s, y = np.zeros_like(x), np.zeros_like(x)
    w = np.zeros(A.shape[1], dtype=x.dtype)
    for _ in range(admm_steps):
        w = solve @ (x - s - y / rho)
        # Soft threshold, which keeps the phase of complex numbers.
        target = x - A @ w - y / rho
        size = np.abs(target)
        s = target * (np.maximum(size - 1 / rho, 0) / np.where(size > 0, size, 1))
        y = y + rho * (A @ w + s - x)
    return w, y


def _norm(v: np.ndarray) -> float:
    return sqrt(np.vdot(v, v).real)


def _sigmoid(z: float) -> float:
    """Increase from -1 to 1 through 0."""
    return 2 / (1 + exp(-z / _SLOPE)) - 1
