"""Follow: fit any of the models by its name, and say where the subspace was at every frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lowdim.algebra import Subspace
from lowdim.track.geodesic import GeodesicSubspace
from lowdim.track.grasta import Grasta
from lowdim.track.grouse import Grouse
from lowdim.track.petrels import Petrels
from lowdim.track.piecewise import PiecewiseGeodesicSubspace
from lowdim.track.static import StaticSubspace
from lowdim.track.window import WindowSubspace

__all__ = ["FITTED", "MODELS", "STREAMED", "Followed", "angles_from", "follow"]

FITTED: dict[str, Any] = {
    "static": StaticSubspace,
    "geodesic": GeodesicSubspace,
    "piecewise": PiecewiseGeodesicSubspace,
}
"""Models that look at all frames at once."""

STREAMED: dict[str, Any] = {
    "grouse": Grouse,
    "petrels": Petrels,
    "grasta": Grasta,
    "window": WindowSubspace,
}
"""Models that see one frame after another: what they say of a frame looks at no later one."""

MODELS = {**FITTED, **STREAMED}

WARM = 10
"""A streaming model starts from the subspace at rest of so many frames per component."""


@dataclass(frozen=True, eq=False)
class Followed:
    """A fitted model and what it says of every frame.

    Parameters
    ----------
    model : estimator
    bases : ndarray of shape (T, d, k)
        Orthonormal columns.
    imputed : ndarray of shape (T, d)
        What was seen stays.
    """

    model: Any
    bases: np.ndarray
    imputed: np.ndarray


def follow(
    name: str,
    frames: np.ndarray,
    seen: np.ndarray,
    times: np.ndarray,
    *,
    n_components: int,
    ridge: float = 1e-6,
    n_init: int = 1,
    draws: int = 0,
    seed: int = 0,
) -> Followed:
    """Fit a model and fill in the frames.

    Parameters
    ----------
    name : str
        One of `MODELS`.
    frames : ndarray of shape (T, d)
    seen : ndarray of bool of shape (T, d)
        What may be looked at.
    times : ndarray of shape (T,)
        Streaming models see the frames in this order.
    n_components : int
    ridge : float
    n_init : int
        Starts of the geodesics.
    draws : int
        Curves drawn given the data for "geodesic", see `GeodesicSubspace`.
    seed : int

    Returns
    -------
    Followed
    """
    if name in STREAMED:
        return _stream(name, frames, seen, times, n_components, ridge, seed)
    options: dict[str, Any] = {} if name == "static" else {"n_init": n_init, "random_state": seed}
    if name == "geodesic":
        options["draws"] = draws
    model = FITTED[name](n_components, ridge=ridge, **options).fit(frames, t=times, mask=seen)
    return Followed(model, model.basis(), model.impute(frames, t=times, mask=seen))


def _stream(
    name: str, frames: np.ndarray, seen: np.ndarray, times: np.ndarray, k: int, ridge: float, seed: int
) -> Followed:
    order = np.argsort(times, kind="stable")
    rows, places = frames[order], seen[order]
    # From a random start the first angles would tell of the start, not of the data.
    first = slice(0, min(len(rows), WARM * k))
    init = None
    if places[first].any():
        init = StaticSubspace(k, ridge=ridge).fit(rows[first], mask=places[first]).U_
    tracker = STREAMED[name](k, ridge=ridge, init=init, random_state=seed)
    trail = tracker.track(rows, mask=places)
    back = np.argsort(order, kind="stable")
    return Followed(tracker, trail.bases[back], trail.imputed[back])


def angles_from(bases: np.ndarray, first: int) -> np.ndarray:
    """Return the principal angles between the subspace of one frame and those of all.

    Parameters
    ----------
    bases : ndarray of shape (T, d, k)
    first : int
        The frame to compare with.

    Returns
    -------
    ndarray of shape (T, k)
        In radians, in [0, pi / 2], largest first.
    """
    # A stream tidies its basis now and then only; and a subspace at rest repeats one in read-only memory.
    spans = torch.linalg.qr(torch.from_numpy(np.array(bases)))[0]
    return Subspace(spans).angles(Subspace(spans[first])).flip(-1).numpy()
