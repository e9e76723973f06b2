"""Methods: one way to call all of them, on a recording."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from lowdim.errors import DataError, RankError
from lowdim.phase.door import warn_about
from lowdim.phase.lowrank import LowRankPhaseRetrieval
from lowdim.phase.problem import Problem
from lowdim.phase.ranks import RankChoice, choose_ranks
from lowdim.phase.recording import Recording
from lowdim.phase.single import frame_by_frame
from lowdim.phase.sweeps import Options
from lowdim.phase.tucker import TuckerPhaseRetrieval

__all__ = ["METHODS", "STEPS", "Fitted", "Method", "Settings", "choose", "fit"]

Method = Literal["tucker", "lowrank", "rwf"]

METHODS = ("tucker", "lowrank", "rwf")

STEPS = {"tucker": 100, "lowrank": 100, "rwf": 300}
"""Sweeps (of frames one by one: gradient steps) at most, unless told otherwise."""


@dataclass(frozen=True)
class Settings:
    """How to recover, see `recover`.

    Parameters
    ----------
    method, ranks, init, n_init, max_iter, robust, real, seed
        As in `recover`.
    """

    method: str = "tucker"
    ranks: Any = "auto"
    init: str = "auto"
    n_init: int = 4
    max_iter: int | None = None
    robust: bool = False
    real: bool | None = None
    seed: int = 0

    def check(self, where: str) -> None:
        """Refuse what can be refused before anything is read; the estimators refuse the rest.

        Parameters
        ----------
        where : str
            Who asks.

        Raises
        ------
        DataError, RankError
        """
        if isinstance(self.ranks, np.ndarray):
            object.__setattr__(self, "ranks", tuple(self.ranks.tolist()))
        if self.method not in METHODS:
            raise DataError(f"{where}: method={self.method!r} is unknown. Use one of {', '.join(METHODS)}.")
        if isinstance(self.ranks, str) and self.ranks != "auto":
            raise RankError(f"{where}: ranks={self.ranks!r} is no rank. Use 'auto' or numbers.")
        if self.method == "lowrank" and not _is_whole(self.ranks):
            raise RankError(
                f"{where}: method='lowrank' needs one rank, the dimension of the space that frames lie in, "
                f"not {self.ranks!r}. Give a number such as 3."
            )
        if self.method == "tucker" and not isinstance(self.ranks, (str, Sequence)):
            raise RankError(
                f"{where}: method='tucker' needs one rank per axis of an image and that of the frames, such "
                f"as (8, 8, 3), or 'auto'; not {self.ranks!r}."
            )
        if self.method == "rwf" and (self.ranks != "auto" or self.init != "auto" or self.robust):
            raise DataError(
                f"{where}: method='rwf' recovers frames one by one and has no ranks, starts or robust "
                "weights. Leave them out, or use 'tucker'."
            )
        if self.max_iter is not None and (not _is_whole(self.max_iter) or self.max_iter < 1):
            raise DataError(f"{where}: max_iter={self.max_iter!r} must be a whole number of 1 or more.")

    @property
    def coefficients(self) -> int:
        """Coefficients of a frame, which its measurements must determine; 0 if they are chosen or none."""
        if isinstance(self.ranks, str):
            return 0
        return int(self.ranks[-1] if isinstance(self.ranks, Sequence) else self.ranks)

    @property
    def steps(self) -> int:
        """Sweeps at most."""
        return STEPS[self.method] if self.max_iter is None else self.max_iter

    def is_real(self, recording: Recording) -> bool:
        """Whether frames are real: as told, or as the map is."""
        return not recording.measurement().dtype.is_complex if self.real is None else self.real

    def problem(self, recording: Recording, where: str) -> Problem:
        """Return a recording as the solvers see it; `where` names who asks."""
        measurement = recording.measurement()
        if self.real is False and not measurement.dtype.is_complex:
            raise DataError(
                f"{where}: a real A cannot tell a complex frame from two real ones. Leave real=False out."
            )
        return Problem.of(
            measurement,
            recording.y,
            intensity=recording.intensity,
            sample_weight=recording.weights,
            real=bool(self.real) and measurement.dtype.is_complex,
            where=where,
        )


@dataclass(frozen=True, eq=False)
class Fitted:
    """Frames and how they were found.

    Parameters
    ----------
    frames : ndarray, shape (q, n1, ..., nd)
        Each up to its unit factor.
    model : estimator or None
    loss : list of float
        After every sweep; of frames one by one, at the end.
    converged : bool or None
    weights : ndarray, shape (q, m), or None
        Of the measurements, as the fit used them at the end.
    """

    frames: np.ndarray
    model: Any
    loss: list[float]
    converged: bool | None
    weights: np.ndarray | None


Callback = Callable[[int, int, float], None]


def choose(
    recording: Recording, settings: Settings, *, where: str, callback: Callback | None = None
) -> RankChoice:
    """Choose Tucker ranks by held-out measurements, as `TuckerPhaseRetrieval` does with ``ranks="auto"``.

    Parameters
    ----------
    recording : Recording
    settings : Settings
    where : str
        Who asks.
    callback : callable, optional
        Called with (start, sweep, loss).

    Returns
    -------
    RankChoice
    """
    options = Options(max_iter=settings.steps, robust=settings.robust)
    problem = settings.problem(recording, where)
    return choose_ranks(problem, options, seed=settings.seed, callback=callback)


def fit(recording: Recording, settings: Settings, *, where: str, callback: Callback | None = None) -> Fitted:
    """Recover the frames of a recording by one of the methods.

    Parameters
    ----------
    recording : Recording
    settings : Settings
    where : str
        Who asks.
    callback : callable, optional
        Called with (start, sweep, loss); of frames one by one with (0, frame, NaN).

    Returns
    -------
    Fitted
    """
    problem = settings.problem(recording, where)
    if settings.method == "rwf":
        return _single(problem, settings, callback)
    return _fitted(problem, recording, settings, callback)


def _fitted(problem: Problem, recording: Recording, settings: Settings, callback: Callback | None) -> Fitted:
    options: dict[str, Any] = {
        "init": settings.init,
        "n_init": settings.n_init,
        "max_iter": settings.steps,
        "robust": settings.robust,
        "real": problem.real,
        "random_state": settings.seed,
    }
    model: Any
    if settings.method == "tucker":
        ranks: Any = settings.ranks if isinstance(settings.ranks, str) else tuple(settings.ranks)
        model = TuckerPhaseRetrieval(ranks, **options)
    else:
        model = LowRankPhaseRetrieval(settings.ranks, **options)
    model.fit(
        problem.A,
        recording.y,
        intensity=recording.intensity,
        sample_weight=recording.weights,
        callback=callback,
    )
    weights = recording.weights if model.weights_ is None else np.asarray(model.weights_)
    return Fitted(np.asarray(model.frames_), model, list(model.loss_), bool(model.converged_), weights)


def _single(problem: Problem, settings: Settings, callback: Callback | None) -> Fitted:
    def tell(done: int, total: int) -> None:
        if callback is not None:
            callback(0, done, float("nan"))

    frames = frame_by_frame(problem, max_iter=settings.steps, callback=tell)
    y = problem.y
    w = torch.ones_like(y) if problem.weights is None else problem.weights
    misfit = problem.A.magnitudes(frames) - y
    loss = float((w * misfit.square()).sum() / (w * y.square()).sum().clamp(min=torch.finfo(y.dtype).tiny))
    warn_about(loss, problem, None, "rwf")
    weights = None if problem.weights is None else problem.weights.numpy()
    return Fitted((frames * problem.unit).numpy(), None, [loss], None, weights)


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
