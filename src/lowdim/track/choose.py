"""Does the subspace move? Held-out entries decide between a model at rest and moving ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lowdim.errors import DataError
from lowdim.track.geodesic import GeodesicSubspace
from lowdim.track.panel import check_frames, check_rank, times_of
from lowdim.track.piecewise import PiecewiseGeodesicSubspace
from lowdim.track.static import StaticSubspace

__all__ = ["Comparison", "compare", "hide"]

MODELS = ("static", "geodesic", "piecewise")
RESAMPLES = 2000


@dataclass(frozen=True)
class Comparison:
    """What the held-out entries say.

    Parameters
    ----------
    table : DataFrame
        One row per model and number of components: ``model``, ``n_components``, ``error`` (root mean square
        on the held-out entries), ``relative`` (to the root mean square of these entries), ``unknowns``.
    best : dict
        The row with the smallest error.
    moving : bool
        Whether the best moving model beats the best one at rest beyond chance.
    gain : tuple of float
        Error at rest over error in motion: estimate, and the ends of a 95 % interval (paired bootstrap over
        the frames).
    held_out : int
        Number of entries that were hidden.

    Examples
    --------
    >>> Comparison(pd.DataFrame(), {}, True, (2.0, 1.5, 2.5), 100).sentence()[:18]
    'The subspace moves'
    """

    table: pd.DataFrame
    best: dict[str, Any]
    moving: bool
    gain: tuple[float, float, float]
    held_out: int

    def sentence(self) -> str:
        """Return the finding in words."""
        ratio, low, high = self.gain
        if self.moving:
            return (
                f"The subspace moves: with it, the error on {self.held_out} hidden entries is "
                f"{ratio:.2f} times smaller than with the best subspace at rest "
                f"(95 % interval {low:.2f} to {high:.2f})."
            )
        return (
            f"No motion is needed: on {self.held_out} hidden entries the error at rest over the error in "
            f"motion is {ratio:.2f} (95 % interval {low:.2f} to {high:.2f}). Use PCA with gaps (method "
            "'static')."
        )


def compare(
    X: Any,
    *,
    n_components: int | Sequence[int] = 1,
    t: Any = None,
    mask: Any = None,
    models: Sequence[str] = MODELS[:2],
    held_out: float = 0.1,
    ridge: float = 1e-6,
    random_state: int = 0,
    callback: Callable[[str, int], None] | None = None,
) -> Comparison:
    """Hide some observed entries, fill them in by several models, and compare the errors.

    Parameters
    ----------
    X : array-like of shape (T, d)
        Frames, NaN where nothing is seen.
    n_components : int or sequence of int
        Dimensions to try. A model at rest is tried with the double, too: a geodesic of k has the span of 2 k.
    t : array-like of shape (T,), optional
        Times.
    mask : array-like of bool of shape (T, d), optional
        Whether an entry is seen.
    models : sequence of {"static", "geodesic", "piecewise"}
        What to compare.
    held_out : float
        Fraction of the observed entries to hide; rows keep at least one entry more than components.
    ridge : float
        Of all models.
    random_state : int
        Which entries are hidden.
    callback : callable, optional
        Called with (model, n_components) before each fit.

    Returns
    -------
    Comparison

    Raises
    ------
    DataError
        If a model is unknown, or there is nothing to hide.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(50, 1)) @ rng.normal(size=(1, 8)) + 0.1 * rng.normal(size=(50, 8))
    >>> compare(X, n_components=1).moving
    False
    """
    where = "compare"
    if unknown := [name for name in models if name not in MODELS]:
        raise DataError(f"{where}: model {unknown[0]!r} is unknown. Use {', '.join(MODELS)}.")
    if not 0 < held_out < 1:
        raise DataError(f"{where}: held_out={held_out} must be between 0 and 1.")
    frames, seen = check_frames(X, mask, where=where, least=4)
    times = times_of(t, len(frames), where=where)
    T, d = frames.shape
    seen = np.ones((T, d), dtype=bool) if seen is None else seen
    ranks = [n_components] if isinstance(n_components, (int, np.integer)) else list(n_components)
    ranks = [check_rank(k, largest=d // 2, where=where, why=f"{d} features") for k in ranks]
    hidden = hide(seen, held_out, keep=max(ranks) + 1, random_state=random_state)
    if hidden.sum() < 10:
        raise DataError(
            f"{where}: only {hidden.sum()} entries can be hidden so that every row keeps {max(ranks) + 1}. "
            "Use "
            "fewer components, more data or a larger held_out."
        )
    left = seen & ~hidden
    found: list[tuple[dict[str, Any], np.ndarray]] = []
    size = float(np.sqrt(np.mean(np.abs(frames[hidden]) ** 2)))
    for name in models:
        tried = sorted({*ranks, *(2 * k for k in ranks)}) if name == "static" else ranks
        for k in tried:
            if callback is not None:
                callback(name, k)
            filled, unknowns = _filled(name, k, frames, left, times, ridge, random_state)
            squares = np.where(hidden, np.abs(filled - frames) ** 2, 0).sum(1)
            error = float(np.sqrt(squares.sum() / hidden.sum()))
            row = {"model": name, "n_components": k, "error": error, "relative": error / size}
            found.append(({**row, "unknowns": unknowns}, squares))
    table = pd.DataFrame([row for row, _ in found])
    best, _ = min(found, key=lambda entry: entry[0]["error"])
    gain = _gain(found, random_state)
    return Comparison(table, best, gain[1] > 1, gain, int(hidden.sum()))


def hide(seen: np.ndarray, fraction: float, *, keep: int, random_state: int) -> np.ndarray:
    """Choose observed entries to hide, leaving every row `keep` of its own (or all it has).

    Parameters
    ----------
    seen : ndarray of bool of shape (T, d)
    fraction : float
        Of the observed entries.
    keep : int
        Entries that a row keeps.
    random_state : int

    Returns
    -------
    ndarray of bool of shape (T, d)
    """
    rng = np.random.default_rng(random_state)
    # Random order within every row; the first ones of a row are never hidden.
    order = np.where(seen, rng.random(seen.shape), 2.0).argsort(1).argsort(1)
    free = seen & (order >= keep)
    places = np.argwhere(free)
    count = min(len(places), round(fraction * int(seen.sum())))
    chosen = places[rng.permutation(len(places))[:count]]
    hidden = np.zeros_like(seen)
    hidden[tuple(chosen.T)] = True
    return hidden


def _filled(
    name: str,
    k: int,
    frames: np.ndarray,
    seen: np.ndarray,
    times: np.ndarray,
    ridge: float,
    random_state: int,
) -> tuple[np.ndarray, int]:
    """Return every entry as a model sees it, and the model's number of unknowns."""
    T, d = frames.shape
    if name == "static":
        rest = StaticSubspace(k, ridge=ridge).fit(frames, mask=seen)
        return rest.impute(frames, mask=seen), k * (d - k) + k * T
    kind = GeodesicSubspace if name == "geodesic" else PiecewiseGeodesicSubspace
    model = kind(k, ridge=ridge, random_state=random_state).fit(frames, t=times, mask=seen)
    pieces = 1 if name == "geodesic" else len(model.pieces_)
    return model.impute(frames, t=times, mask=seen), pieces * (2 * k * (d - k) + k) + k * T


def _gain(found: list[tuple[dict[str, Any], np.ndarray]], random_state: int) -> tuple[float, float, float]:
    """Return error at rest over error in motion with its interval; NaN where one of them is not there."""
    rest = [entry for entry in found if entry[0]["model"] == "static"]
    move = [entry for entry in found if entry[0]["model"] != "static"]
    if not rest or not move:
        return (float("nan"),) * 3
    a = min(rest, key=lambda entry: entry[0]["error"])[1]
    b = min(move, key=lambda entry: entry[0]["error"])[1]
    rng = np.random.default_rng(random_state)
    drawn = rng.integers(0, len(a), (RESAMPLES, len(a)))
    tiny = np.finfo(float).tiny
    ratios = np.sqrt((a[drawn].sum(1) + tiny) / (b[drawn].sum(1) + tiny))
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(np.sqrt((a.sum() + tiny) / (b.sum() + tiny))), float(low), float(high)
