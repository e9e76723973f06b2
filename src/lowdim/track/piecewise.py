"""PiecewiseGeodesicSubspace: one geodesic after another, with knots where the motion changes."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from lowdim.errors import DataError, RunError, ShapeError
from lowdim.runs import atomic_json, read_json
from lowdim.track.geodesic import GeodesicSubspace, Start
from lowdim.track.panel import check_frames, times_of

__all__ = ["PiecewiseGeodesicSubspace"]

FORMAT = 1

SCOUT = {"max_iter": 150, "tol": 1e-6}
"""How far a piece is fitted while knots are compared; those that are taken are fitted to the end."""


class PiecewiseGeodesicSubspace(TransformerMixin, BaseEstimator):
    """A subspace that turns along several geodesics, one after the other.

    Parameters
    ----------
    n_components : int
        Dimension k of the subspace.
    knots : "auto", or sequence of times
        Where one geodesic ends and the next begins. "auto" compares up to `max_segments` pieces, cut at any
        of `n_candidates` times that share the frames out evenly, by the Bayesian information criterion.
    max_segments, n_candidates : int
        For automatic knots.
    max_iter, tol, init, ridge, n_init, accelerate, random_state, device
        Of every piece, see :class:`GeodesicSubspace`.

    Attributes
    ----------
    knots_ : ndarray
        Times between the pieces.
    pieces_ : list of GeodesicSubspace
    loss_ : float
        Sum over the pieces.
    criterion_ : dict of int to float
        With automatic knots: the criterion of the best cut into so many pieces; the smallest was taken.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(40, 6))
    >>> model = PiecewiseGeodesicSubspace(1, knots=[20]).fit(X)
    >>> len(model.pieces_), model.basis([5, 30]).shape
    (2, (2, 6, 1))
    """

    def __init__(
        self,
        n_components: int = 1,
        *,
        knots: Literal["auto"] | Sequence[Any] = "auto",
        max_segments: int = 4,
        n_candidates: int = 7,
        max_iter: int = 1000,
        tol: float = 1e-8,
        init: Start = "static",
        ridge: float = 1e-6,
        n_init: int = 1,
        accelerate: bool = True,
        random_state: Any = None,
        device: str = "cpu",
    ) -> None:
        self.n_components = n_components
        self.knots = knots
        self.max_segments = max_segments
        self.n_candidates = n_candidates
        self.max_iter = max_iter
        self.tol = tol
        self.init = init
        self.ridge = ridge
        self.n_init = n_init
        self.accelerate = accelerate
        self.random_state = random_state
        self.device = device

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        t: Any = None,
        mask: Any = None,
        callback: Callable[[int, float], None] | None = None,
    ) -> PiecewiseGeodesicSubspace:
        """Fit the pieces.

        Parameters
        ----------
        X, y, t, mask, callback
            As in :meth:`GeodesicSubspace.fit`.

        Returns
        -------
        PiecewiseGeodesicSubspace
            Itself.

        Raises
        ------
        ShapeError, RankError, DataError
            If sizes, times or numbers cannot be used, or a piece would hold fewer than two times.
        """
        where = "PiecewiseGeodesicSubspace"
        frames, seen = check_frames(X, mask, where=where, least=2)
        validate_data(self, X, reset=True, skip_check_array=True)
        times = times_of(t, len(frames), where=where)
        seen = np.ones(frames.shape, dtype=bool) if seen is None else seen

        def piece(low: float, high: float, **options: Any) -> GeodesicSubspace:
            inside = (times >= low) & (times < high)
            model = self._piece().set_params(**options)
            return model.fit(frames[inside], t=times[inside], mask=seen[inside], callback=callback)

        self.criterion_: dict[int, float] = {}
        if isinstance(self.knots, str):
            if self.knots != "auto":
                raise DataError(f"{where}: knots={self.knots!r} is unknown. Use 'auto' or a list of times.")
            self.knots_ = self._choose(
                times, seen, functools.cache(lambda low, high: piece(low, high, **SCOUT).loss_)
            )
        else:
            self.knots_ = np.unique(times_of(self.knots, len(self.knots), where=where))
            self._check_knots(self.knots_, times)
        self.pieces_ = [piece(*ends) for ends in _intervals(self.knots_)]
        self.times_ = times
        self.loss_ = float(sum(model.loss_ for model in self.pieces_))
        self.n_iter_ = max(model.n_iter_ for model in self.pieces_)
        return self

    def _piece(self) -> GeodesicSubspace:
        names = ("n_components", "max_iter", "tol", "init", "ridge", "n_init", "accelerate")
        options = {name: getattr(self, name) for name in (*names, "random_state", "device")}
        return GeodesicSubspace(**options)

    def _check_knots(self, knots: np.ndarray, times: np.ndarray) -> None:
        for low, high in _intervals(knots):
            count = len(np.unique(times[(times >= low) & (times < high)]))
            if count < 2:
                raise DataError(
                    f"PiecewiseGeodesicSubspace: the piece from {low:g} to {high:g} holds {count} times, "
                    "at least "
                    "2 are needed. Move or drop a knot."
                )

    def _choose(
        self, times: np.ndarray, seen: np.ndarray, loss_of: Callable[[float, float], float]
    ) -> np.ndarray:
        """Return the knots with the smallest ``n log(loss / n) + unknowns log(n)``, n observed entries."""
        candidates = _candidates(times, self.n_candidates)
        d, k, n = seen.shape[1], self.n_components, int(seen.sum())
        energy_floor = np.finfo(float).tiny
        best: dict[int, tuple[float, tuple[float, ...]]] = {}
        for count in range(1, self.max_segments + 1):
            for cut in itertools.combinations(candidates, count - 1):
                ends = _intervals(np.array(cut))
                inside = [(times >= low) & (times < high) for low, high in ends]
                # A piece needs more numbers than it has unknowns.
                if any(
                    seen[rows].sum() < 2 * k * (d - k) + k + k * rows.sum() or len(np.unique(times[rows])) < 2
                    for rows in inside
                ):
                    continue
                loss = sum(loss_of(*pair) for pair in ends)
                unknowns = count * (2 * k * (d - k) + k) + k * len(times)
                value = n * math.log(max(loss, energy_floor) / n) + unknowns * math.log(n)
                if count not in best or value < best[count][0]:
                    best[count] = (value, cut)
        if not best:  # too little data even for one piece: it warns of that
            return np.array([])
        self.criterion_ = {count: value for count, (value, _) in best.items()}
        return np.array(min(best.values())[1])

    def _at(self, t: Any, rows: int | None) -> np.ndarray:
        if t is not None:
            flat = np.asarray(t).reshape(-1)
            return times_of(flat, flat.size if rows is None else rows, where="PiecewiseGeodesicSubspace")
        if rows is not None and rows != len(self.times_):
            raise ShapeError(
                f"PiecewiseGeodesicSubspace: {rows} rows, but the model was fitted to "
                f"{len(self.times_)}. "
                "Say when they were taken: t=..."
            )
        return self.times_

    def _each(
        self, times: np.ndarray, compute: Callable[[GeodesicSubspace, np.ndarray], np.ndarray]
    ) -> np.ndarray:
        """Let every piece answer for the rows of its time, and put the answers together."""
        place = np.searchsorted(self.knots_, times, side="right")
        found: np.ndarray | None = None
        for number, model in enumerate(self.pieces_):
            rows = np.flatnonzero(place == number)
            if len(rows):
                part = compute(model, rows)
                if found is None:
                    found = np.empty((len(times), *part.shape[1:]), dtype=part.dtype)
                found[rows] = part
        assert found is not None
        return found

    def basis(self, t: Any = None) -> np.ndarray:
        """Return the basis at given times, shape (..., d, k); by default those of the fit."""
        check_is_fitted(self, "knots_")
        times = self._at(t, None)
        found = self._each(times, lambda model, rows: model.basis(times[rows]))
        return found if t is None else found.reshape(*np.shape(t), *found.shape[1:])

    def transform(self, X: Any, *, t: Any = None, mask: Any = None) -> np.ndarray:
        """Return the coefficients of frames, each in the basis of its time.

        Parameters
        ----------
        X : array-like of shape (T, d)
            NaN where nothing is seen.
        t : array-like of shape (T,), optional
            Their times; by default those of the fit, if there are as many.
        mask : array-like of bool of shape (T, d), optional
            Whether an entry is seen.

        Returns
        -------
        ndarray of shape (T, k)
        """
        return self._rows(
            X, t, mask, lambda model, *given: model.transform(given[0], t=given[1], mask=given[2])
        )

    def impute(self, X: Any, *, t: Any = None, mask: Any = None) -> np.ndarray:
        """Return frames with their gaps filled in; what was observed stays.

        Parameters
        ----------
        X : array-like of shape (T, d)
            NaN where nothing is seen.
        t : array-like of shape (T,), optional
            Their times; by default those of the fit, if there are as many.
        mask : array-like of bool of shape (T, d), optional
            Whether an entry is seen.

        Returns
        -------
        ndarray of shape (T, d)
        """
        return self._rows(X, t, mask, lambda model, *given: model.impute(given[0], t=given[1], mask=given[2]))

    def _rows(self, X: Any, t: Any, mask: Any, compute: Callable[..., np.ndarray]) -> np.ndarray:
        check_is_fitted(self, "knots_")
        frames, seen = check_frames(X, mask, where="PiecewiseGeodesicSubspace")
        validate_data(self, X, reset=False, skip_check_array=True)
        times = self._at(t, len(frames))
        seen = np.ones(frames.shape, dtype=bool) if seen is None else seen
        return self._each(times, lambda model, rows: compute(model, frames[rows], times[rows], seen[rows]))

    def save(self, directory: str | Path) -> None:
        """Write the model into a folder, one folder within it per piece."""
        check_is_fitted(self, "knots_")
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        for number, model in enumerate(self.pieces_):
            model.save(folder / f"piece-{number}")
        options = {n: v for n, v in self.get_params(deep=False).items() if n not in ("random_state", "knots")}
        atomic_json(
            folder / "model.json",
            {
                "format": FORMAT,
                "model": "PiecewiseGeodesicSubspace",
                "options": options,
                "knots": self.knots_.tolist(),
                "times": self.times_.tolist(),
            },
        )

    @classmethod
    def load(cls, directory: str | Path) -> PiecewiseGeodesicSubspace:
        """Read a model from a folder that `save` has written.

        Parameters
        ----------
        directory : path

        Returns
        -------
        PiecewiseGeodesicSubspace

        Raises
        ------
        RunError
            If the folder holds no such model, or one of an unknown version.
        """
        folder = Path(directory)
        if not (folder / "model.json").is_file():
            raise RunError(
                f"{cls.__name__}.load: {folder} holds no model.json. Give a folder written by save()."
            )
        header = read_json(folder / "model.json")
        if (header.get("format"), header.get("model")) != (FORMAT, cls.__name__):
            raise RunError(
                f"{cls.__name__}.load: {folder} holds a {header.get('model')} of format "
                f"{header.get('format')}; "
                f"expected a {cls.__name__} of format {FORMAT}."
            )
        model = cls(knots=header["knots"], **header["options"])
        model.knots_ = np.array(header["knots"])
        model.pieces_ = [
            GeodesicSubspace.load(folder / f"piece-{number}") for number in range(len(header["knots"]) + 1)
        ]
        model.times_ = np.array(header["times"])
        model.loss_ = float(sum(piece.loss_ for piece in model.pieces_))
        model.n_iter_ = max(piece.n_iter_ for piece in model.pieces_)
        model.criterion_ = {}
        model.n_features_in_ = model.pieces_[0].n_features_in_
        return model


def _intervals(knots: np.ndarray) -> list[tuple[float, float]]:
    """Return the half-open intervals between knots, the outer ones without end."""
    ends = [-math.inf, *map(float, knots), math.inf]
    return list(itertools.pairwise(ends))


def _candidates(times: np.ndarray, count: int) -> list[float]:
    """Return up to `count` times that cut the frames into parts of equal number."""
    distinct = np.unique(times)
    shares = np.arange(1, count + 1) / (count + 1)
    return sorted({float(distinct[min(round(share * len(distinct)), len(distinct) - 1)]) for share in shares})
