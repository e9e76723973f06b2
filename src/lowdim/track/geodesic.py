"""GeodesicSubspace: one geodesic through all frames."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from lowdim.algebra import Subspace
from lowdim.errors import DataError, LowdimWarning, ShapeError
from lowdim.store import read_model, write_model
from lowdim.threads import few_threads
from lowdim.track.curve import Curve
from lowdim.track.majorize import Fit, coefficients, descend
from lowdim.track.observations import Masked, Observations, Sampled
from lowdim.track.panel import SMALL, Clock, check_frames, check_rank, tensor_of, times_of
from lowdim.track.posterior import average
from lowdim.track.static import start_curve

__all__ = ["GeodesicSubspace"]

Start = Literal["static", "svd", "random"]

BEYOND = 0.1
"""Share of the fitted interval up to which the curve is followed outside it without a warning."""


class GeodesicSubspace(TransformerMixin, BaseEstimator):
    r"""A subspace that turns steadily with time, fitted to frames with or without gaps.

    Every frame is ``x_i = U(t_i) g_i`` plus noise, with ``U(t) = H cos(theta t)
    + Y sin(theta t)`` a geodesic of the Grassmannian: about twice the
    parameters of one subspace at rest, however many frames there are.

    Parameters
    ----------
    n_components : int
        Dimension k of the subspace; 2 k <= d.
    max_iter : int
        Largest number of iterations.
    tol : float
        Stop when the loss falls by less than this fraction.
    init : {"static", "svd", "random"}
        Start: the best subspace at rest, set in motion by what it leaves (default); singular vectors of the
        zero-filled frames; or anything.
    ridge : float
        Holds the coefficients of frames with few entries down, as a fraction of the share of a frame that is
        seen; about the noise's variance over the signal's. Small, for it holds all components alike: where
        one is much larger than the others (data that are not centered), more of it bends the fit. Complete
        frames need none and get none.
    n_init : int
        Number of starts (all but the first are random turns); the smallest loss is kept.
    accelerate : bool
        Extrapolate between iterations.
    draws : int
        Curves drawn from their distribution given the data, over which the fit is averaged; 0 for none. For
        frames of which very little is seen, where the curve that explains the entries best explains noise,
        too: with 90 % missing the error falls by a tenth. Takes ten sweeps a draw; 60 are enough. For real
        frames with gaps.
    random_state : int, RandomState or None
        For random starts and draws.
    device : str
        Where to compute, such as "cpu" or "cuda".

    Attributes
    ----------
    H_, Y_ : ndarray of shape (d, k)
        Basis at the first time, and the directions of travel.
    theta_ : ndarray of shape (k,)
        Angles traveled from the first time to the last, in radians, largest first.
    coefficients_ : ndarray of shape (T, k)
        g of the frames that were fitted.
    loss_ : float
        Sum of squared errors on what was observed.
    spread_ : float or None
        With several starts: distance (mean squared sine) of the two best curves, averaged over the frames.
    uncertainty_ : ndarray of shape (T,) or None
        With draws: mean squared sine of the angles between fitted and drawn subspaces at every frame, which
        is what the fit is expected to be off by.
    n_iter_ : int
    history_ : History

    References
    ----------
    Blocker, Raja, Fessler, Balzano, "Dynamic Subspace Estimation with
    Grassmannian Geodesics", arXiv 2303.14851 (model and complete data; gaps,
    the start and the acceleration are ours).

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> t = np.linspace(0, 1, 60)
    >>> Q = np.linalg.qr(rng.normal(size=(20, 2)))[0]
    >>> X = np.cos(t)[:, None] * Q[:, 0] + np.sin(t)[:, None] * Q[:, 1]
    >>> X *= rng.normal(size=(60, 1))
    >>> X[rng.random(X.shape) < 0.3] = np.nan
    >>> model = GeodesicSubspace(1).fit(X, t=t)
    >>> model.theta_.round(3), bool(np.isfinite(model.impute(X, t=t)).all())
    (array([1.]), True)
    """

    def __init__(
        self,
        n_components: int = 1,
        *,
        max_iter: int = 1000,
        tol: float = 1e-8,
        init: Start = "static",
        ridge: float = 1e-6,
        n_init: int = 1,
        accelerate: bool = True,
        draws: int = 0,
        random_state: Any = None,
        device: str = "cpu",
    ) -> None:
        self.n_components = n_components
        self.max_iter = max_iter
        self.tol = tol
        self.init = init
        self.ridge = ridge
        self.n_init = n_init
        self.accelerate = accelerate
        self.draws = draws
        self.random_state = random_state
        self.device = device

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    # ----- fit ----------------------------------------------------------------------------------------

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        t: Any = None,
        mask: Any = None,
        callback: Callable[[int, float], None] | None = None,
    ) -> GeodesicSubspace:
        """Fit the curve.

        Parameters
        ----------
        X : array-like of shape (T, d)
            Frames, NaN where nothing is seen; real or complex. Several rows may share a time.
        y : ignored
        t : array-like of shape (T,), optional
            Times: numbers or dates in any order, with any spacing; 0, 1, 2, ... by default.
        mask : array-like of bool of shape (T, d), optional
            Whether an entry is seen.
        callback : callable, optional
            Called with (iteration, relative error).

        Returns
        -------
        GeodesicSubspace
            Itself.

        Raises
        ------
        ShapeError, RankError, DataError
            If sizes, times or numbers cannot be used.
        """
        where = type(self).__name__
        frames, seen = check_frames(X, mask, where=where, least=2)
        validate_data(self, X, reset=True, skip_check_array=True)
        self._check(frames.shape[1], where)
        if seen is not None:
            self._warn_of_gaps(seen)
        data = Masked(tensor_of(frames, self.device), None if seen is None else tensor_of(seen, self.device))
        return self._fit(data, times_of(t, len(frames), where=where), callback)

    def fit_samples(
        self,
        y: Any,
        operators: Any,
        *,
        t: Any = None,
        n_features: int | None = None,
        callback: Callable[[int, float], None] | None = None,
    ) -> GeodesicSubspace:
        """Fit the curve to frames that are seen through linear maps, ``y_i = A_i x_i``.

        Parameters
        ----------
        y : array-like of shape (T, ...)
            Measurements.
        operators : array-like of shape (T, m, d), or (forward, adjoint)
            The matrices A_i; or two functions of tensors, ``(T, d) -> (T, ...)`` and back, which apply A_i
            and
            A_i^H to row i.
        t : array-like of shape (T,), optional
            Times, see `fit`.
        n_features : int, optional
            d, for functions.
        callback : callable, optional
            Called with (iteration, relative error).

        Returns
        -------
        GeodesicSubspace
            Itself.

        Raises
        ------
        ShapeError, RankError, DataError
            If sizes, times or numbers cannot be used.
        """
        where = f"{type(self).__name__}.fit_samples"
        measured = tensor_of(np.asarray(y), self.device)
        if measured.ndim < 2 or len(measured) < 2:
            raise ShapeError(f"{where}: y must be (T, ...) with T >= 2, got {tuple(measured.shape)}.")
        if not bool(torch.isfinite(measured).all()):
            raise DataError(f"{where}: y holds NaN or infinity. Leave such measurements out of the maps.")
        if isinstance(operators, tuple) and len(operators) == 2 and all(map(callable, operators)):
            if n_features is None:
                raise ShapeError(f"{where}: functions do not tell the number of features. Add n_features=...")
            forward, adjoint = operators
        else:
            A = tensor_of(np.asarray(operators), self.device)
            if A.ndim != 3 or A.shape[:2] != measured.shape:
                raise ShapeError(
                    f"{where}: operators must be (T, m, d) with y (T, m), or two functions; got "
                    f"{tuple(A.shape)} and {tuple(measured.shape)}."
                )
            dtype = torch.promote_types(A.dtype, measured.dtype)
            A, measured, n_features = A.to(dtype), measured.to(dtype), A.shape[2]

            def forward(x: Tensor) -> Tensor:
                return torch.einsum("tmd,td->tm", A, x)

            def adjoint(x: Tensor) -> Tensor:
                return torch.einsum("tmd,tm->td", A.conj(), x)

        self._check(n_features, where)
        self.n_features_in_ = n_features
        data = Sampled(measured, forward, adjoint, n_features)
        return self._fit(data, times_of(t, len(measured), where=where), callback)

    def _check(self, d: int, where: str) -> None:
        why = f"n_features={d}, and a curve needs two directions per component" + (
            f" (got 1 feature(s), n_features = {d})" if d == 1 else ""
        )
        check_rank(self.n_components, largest=d // 2, where=where, why=why)
        for name, low in {"max_iter": 1, "n_init": 1, "ridge": 0, "tol": 0, "draws": 0}.items():
            if not getattr(self, name) >= low:
                raise DataError(f"{where}: {name}={getattr(self, name)!r} must be at least {low}.")
        if self.init not in ("static", "svd", "random"):
            raise DataError(f"{where}: init={self.init!r} is unknown. Use 'static', 'svd' or 'random'.")

    def _warn_of_gaps(self, seen: np.ndarray) -> None:
        d, k = seen.shape[1], self.n_components
        counts = seen.sum(1)
        unknowns = 2 * k * (d - k) + k + k * int((counts > 0).sum())
        if counts.sum() < unknowns:
            text = (
                f"GeodesicSubspace: {counts.sum()} observed entries for {unknowns} unknowns "
                f"(2 k (d - k) + k of the curve and k per frame, with k={k}, d={d}): the fit is not "
                "determined. "
                "Use fewer components or more data."
            )
        elif int(np.median(counts)) < 3 * k and self.ridge < 1e-2:
            text = (
                f"GeodesicSubspace: half of the frames have fewer than {3 * k} observed entries, three per "
                f"component, so what is filled in may be far off. Use a larger ridge, such as 1e-2 "
                f"(now {self.ridge:g})."
            )
        else:
            return
        warnings.warn(text, LowdimWarning, stacklevel=3)

    def _fit(
        self, data: Observations, times: np.ndarray, callback: Callable[[int, float], None] | None
    ) -> GeodesicSubspace:
        if np.ptp(times) == 0:
            raise DataError(
                "GeodesicSubspace: all frames have the same time, so nothing can move. Use "
                "sklearn.decomposition.PCA or TruncatedSVD."
            )
        self.clock_ = Clock(float(times.min()), float(times.max()))
        unit = tensor_of(self.clock_.unit(times), self.device).to(data.y.real.dtype)
        with few_threads(len(unit) * self.n_features_in_, small=SMALL):
            fits = self._starts(data, unit, callback)
        best = min(fits, key=lambda fit: fit.loss)
        self.uncertainty_: np.ndarray | None = None
        self._keep(self._averaged(best, data, unit) if self.draws else best, unit)
        self.spread_ = None
        if len(fits) > 1:
            second = min((fit for fit in fits if fit is not best), key=lambda fit: fit.loss)
            self.spread_ = float(_apart(best.curve, second.curve, unit).mean())
            if second.loss > 1.1 * best.loss + 1e-12 * float(data.energy()):
                warnings.warn(
                    f"GeodesicSubspace: the two best of {len(fits)} starts end with losses {best.loss:.4g} "
                    "and "
                    f"{second.loss:.4g}; there are local optima. Use more starts (n_init).",
                    LowdimWarning,
                    stacklevel=3,
                )
        gap = float(np.diff(np.unique(unit.cpu().numpy())).max())
        if float(best.curve.theta.abs().max()) * gap > math.pi / 2:
            warnings.warn(
                "GeodesicSubspace: the subspace turns by more than 90 degrees between two neighboring times, "
                "so that its way there is ambiguous. Take frames more often.",
                LowdimWarning,
                stacklevel=3,
            )
        return self

    def _starts(
        self, data: Observations, t: Tensor, callback: Callable[[int, float], None] | None
    ) -> list[Fit]:
        state = check_random_state(self.random_state)
        found = []
        for number in range(self.n_init):
            source = torch.Generator().manual_seed(int(state.randint(2**31 - 1)))
            kind = self.init if number == 0 else "svd"
            start = start_curve(data, t, self.n_components, kind=kind, source=source, ridge=self.ridge)
            found.append(
                descend(
                    data,
                    t,
                    start,
                    ridge=self.ridge,
                    steps=self.max_iter,
                    tol=self.tol,
                    accelerate=self.accelerate,
                    callback=callback,
                )
            )
        return found

    def _averaged(self, fit: Fit, data: Observations, t: Tensor) -> Fit:
        """Return the geodesic in the middle of those that the data leave possible."""
        if not isinstance(data, Masked) or data.y.is_complex():
            raise DataError(
                f"{type(self).__name__}: draws={self.draws} are for real frames with gaps. Use draws=0."
            )
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        with few_threads(len(t) * self.n_features_in_, small=SMALL):
            middle = average(
                data, t, fit.curve, draws=int(self.draws), source=torch.Generator().manual_seed(seed)
            )
        self.uncertainty_ = middle.spread.cpu().numpy()
        g = coefficients(middle.curve, data, t, self.ridge * data.share().clamp_min(1e-12))
        _, loss = data.complete(_frames(middle.curve, t, g))
        return Fit(middle.curve, g, float(loss), fit.history)

    def _keep(self, fit: Fit, unit: Tensor) -> None:
        # The coefficients belong to the basis: the same order and signs.
        curve = fit.curve.sorted()
        frame = curve.basis(unit).mH @ fit.curve.basis(unit)
        self.coefficients_ = (frame @ fit.g[..., None]).squeeze(-1).cpu().numpy()
        self.H_, self.Y_ = curve.H.cpu().numpy(), curve.Y.cpu().numpy()
        self.theta_ = curve.theta.cpu().numpy()
        self.unit_times_ = unit.cpu().numpy()
        self.loss_, self.history_ = fit.loss, fit.history
        self.n_iter_ = max(fit.history.steps, 1)

    # ----- use ----------------------------------------------------------------------------------------

    @property
    def curve_(self) -> Curve:
        """The fitted curve, as tensors."""
        check_is_fitted(self, "theta_")
        Q = tensor_of(np.concatenate([self.H_, self.Y_], axis=1), self.device)
        return Curve(Q, tensor_of(self.theta_, self.device))

    def _unit(self, t: Any, rows: int | None, where: str) -> Tensor:
        """Return times of the caller on the fitted scale; the fitted ones if none are given."""
        if t is None:
            if rows is not None and rows != len(self.unit_times_):
                raise ShapeError(
                    f"{where}: {rows} rows, but the model was fitted to {len(self.unit_times_)}. Say when "
                    "they "
                    "were taken: t=..."
                )
            unit = self.unit_times_
        else:
            flat = np.asarray(t)
            unit = self.clock_.unit(
                times_of(flat.reshape(-1), flat.size if rows is None else rows, where=where)
            )
        if unit.min() < -BEYOND or unit.max() > 1 + BEYOND:
            warnings.warn(
                f"{where}: a time lies outside the fitted interval by more than a tenth of it. The curve "
                "goes "
                "on there, the data may not.",
                LowdimWarning,
                stacklevel=3,
            )
        return tensor_of(unit, self.device).to(tensor_of(self.theta_, self.device))

    def basis(self, t: Any = None) -> np.ndarray:
        """Return the basis at given times.

        Parameters
        ----------
        t : float, date or array-like of these, optional
            By default the times of the fit.

        Returns
        -------
        ndarray of shape (..., d, k)
            Orthonormal columns.
        """
        check_is_fitted(self, "theta_")
        found = self.curve_.basis(self._unit(t, None, "GeodesicSubspace.basis")).cpu().numpy()
        return found if t is None else found.reshape(*np.shape(t), *found.shape[1:])

    def subspace(self, t: Any = None) -> Subspace:
        """Return the subspaces at given times as points of the Grassmannian; see `basis`."""
        return Subspace(torch.as_tensor(self.basis(t)))

    def transform(self, X: Any, *, t: Any = None, mask: Any = None) -> np.ndarray:
        """Return the coefficients of frames.

        Parameters
        ----------
        X : array-like of shape (T, d)
            NaN where nothing is seen.
        t : array-like of shape (T,), optional
            Their times; by default those of the fit, if there are as many.
        mask : array-like of bool of shape (T, d), optional

        Returns
        -------
        ndarray of shape (T, k)
        """
        return self._explain(X, t, mask)[0].cpu().numpy()

    def impute(self, X: Any, *, t: Any = None, mask: Any = None) -> np.ndarray:
        """Return frames with their gaps filled in; what was observed stays.

        Parameters
        ----------
        X, t, mask
            As in `transform`.

        Returns
        -------
        ndarray of shape (T, d)
        """
        g, data, unit = self._explain(X, t, mask)
        return data.complete(_frames(self.curve_, unit, g))[0].cpu().numpy()

    def inverse_transform(self, X: Any, *, t: Any = None) -> np.ndarray:
        """Return the frames ``U(t_i) g_i`` of coefficients.

        Parameters
        ----------
        X : array-like of shape (T, k)
            Coefficients.
        t : array-like of shape (T,), optional
            Their times; by default those of the fit.

        Returns
        -------
        ndarray of shape (T, d)
        """
        check_is_fitted(self, "theta_")
        g = tensor_of(np.asarray(X), self.device)
        if g.ndim != 2 or g.shape[1] != len(self.theta_):
            raise ShapeError(
                f"GeodesicSubspace.inverse_transform: expected (T, {len(self.theta_)}) coefficients, got "
                f"{tuple(g.shape)}."
            )
        curve = self.curve_
        unit = self._unit(t, len(g), "GeodesicSubspace.inverse_transform")
        return _frames(curve, unit, g.to(curve.Q.dtype)).cpu().numpy()

    def _explain(self, X: Any, t: Any, mask: Any) -> tuple[Tensor, Masked, Tensor]:
        check_is_fitted(self, "theta_")
        frames, seen = check_frames(X, mask, where="GeodesicSubspace")
        validate_data(self, X, reset=False, skip_check_array=True)
        unit = self._unit(t, len(frames), "GeodesicSubspace")
        curve = self.curve_
        values = tensor_of(frames, self.device).to(curve.Q.dtype)
        data = Masked(values, None if seen is None else tensor_of(seen, self.device))
        ridge = self.ridge * data.share().clamp_min(1e-12) * (data.mask is not None)
        return coefficients(curve, data, unit, ridge), data, unit

    # ----- keep ---------------------------------------------------------------------------------------

    def save(self, directory: str | Path) -> None:
        """Write the model into a folder (safetensors and JSON).

        Parameters
        ----------
        directory : path
        """
        check_is_fitted(self, "theta_")
        arrays = {
            name: getattr(self, f"{name}_") for name in ("H", "Y", "theta", "coefficients", "unit_times")
        }
        if self.uncertainty_ is not None:
            arrays["uncertainty"] = self.uncertainty_
        facts = {
            "loss": self.loss_,
            "n_iter": self.n_iter_,
            "spread": self.spread_,
            "clock": [self.clock_.start, self.clock_.end],
        }
        write_model(self, directory, arrays, facts)

    @classmethod
    def load(cls, directory: str | Path) -> GeodesicSubspace:
        """Read a model from a folder that `save` has written.

        Parameters
        ----------
        directory : path

        Returns
        -------
        GeodesicSubspace

        Raises
        ------
        RunError
            If the folder holds no such model, or one of an unknown version.
        """
        model, arrays, facts = read_model(cls, directory)
        model.uncertainty_ = None
        for name, array in arrays.items():
            setattr(model, f"{name}_", array)
        model.clock_ = Clock(*facts["clock"])
        model.loss_, model.n_iter_, model.spread_ = facts["loss"], facts["n_iter"], facts["spread"]
        model.n_features_in_ = len(model.H_)
        return model


def _frames(curve: Curve, t: Tensor, g: Tensor) -> Tensor:
    """Return the rows ``U(t_i) g_i``, shape (T, d)."""
    cosine, sine = curve.turns(t)
    return torch.cat([cosine * g, sine * g], dim=1) @ curve.Q.mT


def _apart(a: Curve, b: Curve, t: Tensor) -> Tensor:
    """Return the mean squared sine of the angles between two curves at every time, shape (T,)."""
    return 1 - (a.basis(t).mH @ b.basis(t)).abs().square().sum((-2, -1)) / a.rank
