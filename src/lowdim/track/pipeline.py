"""Pipeline: `track`, from frames with gaps to a model, filled-in frames and a report."""

from __future__ import annotations

import dataclasses
import os
import time as clock
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from lowdim.errors import DataError, LowdimWarning, RankError, RunError, ShapeError
from lowdim.runs import Run, atomic_json, plain, read_json, versions
from lowdim.track.choose import MODELS as COMPARED
from lowdim.track.choose import Comparison, compare, hide
from lowdim.track.files import Frames, frames_of
from lowdim.track.follow import MODELS, STREAMED, Followed, angles_from, follow
from lowdim.track.panel import check_frames, times_of
from lowdim.track.record import (
    comparison_of,
    comparison_record,
    panel_record,
    pictures_record,
    thinned,
    time_labels,
)
from lowdim.track.result import FORMAT, TrackResult

__all__ = ["Progress", "track"]

Progress = Callable[[str, int, int, str], None]
Model = Literal["auto", "static", "geodesic", "piecewise", "grouse", "petrels", "grasta", "window"]

MOST = 5
"""Components that are tried at most."""

POINTS = 400
"""Times at which the report tells the angles."""


def track(
    source: Any,
    *,
    n_components: int | Literal["auto"] = "auto",
    model: Model = "auto",
    time: str | None = None,
    columns: Sequence[str] | None = None,
    t: Any = None,
    held_out: float = 0.1,
    ridge: float = 1e-6,
    n_init: int = 1,
    draws: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
    output: str | os.PathLike[str] | None = None,
    resume: bool = False,
    restart: bool = False,
) -> TrackResult:
    """Find out whether the subspace of frames moves, follow it, and fill their gaps in.

    Parameters
    ----------
    source : path, DataFrame, or array-like of shape (T, d) or (T, height, width)
        Frames, NaN where nothing is seen; files as in `read_frames`.
    n_components : int or "auto"
        Dimension k of the subspace. "auto" tries 1 to 5 (at most d / 4, and a third of what the median frame
        shows) and takes that with the smallest error of the geodesic on hidden entries; for a model at rest,
        its own smallest one (where twice as many are tried).
    model : {"auto", "static", "geodesic", "piecewise", "grouse", "petrels", "grasta", "window"}
        "auto" is the geodesic if it beats every subspace at rest beyond chance, else the best of these, with
        k or 2 k components: a geodesic of k lives in 2 k dimensions.
    time : str, optional
        Column of the times, of files and tables.
    columns : sequence of str, optional
        Columns to read, of files and tables.
    t : array-like of shape (T,), optional
        Times in place of those of the file: numbers or dates in any order.
    held_out : float
        Fraction of the observed entries to hide for the comparison. The model of the result sees them.
    ridge : float
        Of all models: holds the coefficients of frames with few entries down.
    n_init : int
        Starts of the geodesics of the result; the best is kept.
    draws : int
        Where the model of the result is one geodesic through frames with gaps: average so many curves drawn
        given the data (60 are enough). Worth its time where few entries were seen.
    seed : int
        Which entries are hidden, and where searches start.
    progress : callable, optional
        Called with (phase, done, total, what is going on).
    output : path, optional
        Run directory: the comparison is kept there when it is done, and the result is written to it.
    resume, restart : bool
        Go on with the run in `output`, or throw it away.

    Returns
    -------
    TrackResult

    Raises
    ------
    DataError, ShapeError, RankError, MissingExtra
        If the file, its numbers or an option cannot be used.
    RunError
        If the output folder is in use, holds another run, or cannot be written.

    Notes
    -----
    Data are not centered: a mean that is far from zero takes one component. Streaming models are compared by
    what they say of a frame when they have seen it and none after it. They start from the subspace at rest
    of the first frames (10 per component).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> t = np.linspace(0, 1, 80)
    >>> Q = np.linalg.qr(rng.normal(size=(12, 2)))[0]
    >>> X = (np.cos(t)[:, None] * Q[:, 0] + np.sin(t)[:, None] * Q[:, 1]) * rng.normal(size=(80, 1))
    >>> X += 0.05 * rng.normal(size=X.shape)
    >>> X[rng.random(X.shape) < 0.3] = np.nan
    >>> result = track(X, n_components=1, t=t)
    >>> result.report["model"], round(result.report["turned"]), bool(np.isnan(result.imputed).any())
    ('geodesic', 57, False)
    """
    settings = Settings(n_components, model, held_out, ridge, n_init, draws, seed)
    settings.check()
    if output is None and (resume or restart):
        raise RunError("track: resume and restart need the output folder of the run. Add output=...")
    frames = frames_of(source, time=time, columns=columns)
    if t is not None:
        frames = dataclasses.replace(frames, times=np.asarray(t), time_name="time")
    job = Job(frames, settings, _name(source), progress)
    with ExitStack() as stack:
        if output is not None:
            arguments = {
                "source": job.name,
                "time": time,
                "columns": None if columns is None else list(columns),
            }
            job.run = stack.enter_context(
                Run.open(
                    output,
                    command="track",
                    arguments={**arguments, **settings.arguments()},
                    seed=seed,
                    inputs={"frames": frames.digest()},
                    resume=resume,
                    restart=restart,
                )
            )
            if job.run.finished:
                return TrackResult.load(job.run.path)
        job.compare()
        job.fit()
        result = job.result()
        if output is not None:
            job.tell("write", 0, 1, "")
            result.save(output)
            job.tell("write", 1, 1, "")
        return result


@dataclass(frozen=True)
class Settings:
    """Options of a run that decide its result, see `track`.

    Parameters
    ----------
    n_components, model, held_out, ridge, n_init, draws, seed
        As in `track`.
    """

    n_components: Any
    model: str
    held_out: float
    ridge: float
    n_init: int
    draws: int
    seed: int

    def check(self) -> None:
        """Refuse what can be refused before anything is read.

        Raises
        ------
        DataError, RankError
        """
        k = self.n_components
        if k != "auto" and (isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1):
            raise RankError(f"track: n_components={k!r} must be 'auto' or a positive integer.")
        if self.model != "auto" and self.model not in MODELS:
            raise DataError(f"track: model={self.model!r} is unknown. Use 'auto', {', '.join(MODELS)}.")
        if not 0 < self.held_out < 1:
            raise DataError(f"track: held_out={self.held_out:g} must be between 0 and 1. The default is 0.1.")
        if not 0 < self.ridge < np.inf:
            raise DataError(f"track: ridge={self.ridge:g} must be a positive number. The default is 1e-6.")
        if self.n_init < 1:
            raise DataError(f"track: n_init={self.n_init} starts are too few. Use 1 or more.")
        if self.draws < 0:
            raise DataError(f"track: draws={self.draws} must not be negative. Use 0, or 60.")

    def arguments(self) -> dict[str, Any]:
        """Return the options, JSON-ready, without the seed."""
        found = plain(dataclasses.asdict(self))
        del found["seed"]
        return found


@dataclass
class Job:
    """One call of `track` at work.

    Parameters
    ----------
    frames : Frames
    settings : Settings
    name : str
        Of the source, as people call it.
    progress : callable or None
    run : Run or None
    """

    frames: Frames
    settings: Settings
    name: str
    progress: Progress | None
    run: Run | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    comparison: Comparison = field(init=False)
    followed: Followed = field(init=False)

    def __post_init__(self) -> None:
        self.values, seen = check_frames(self.frames.values, where="track", least=4)
        T, d = self.values.shape
        if d < 2:
            raise ShapeError(f"track: {self.name} has {d} feature, a subspace that moves needs 2 or more.")
        self.seen = np.ones((T, d), dtype=bool) if seen is None else seen
        self.times = times_of(self.frames.times, T, where="track")
        if np.ptp(self.times) == 0:
            raise DataError(
                f"track: all frames of {self.name} have the same time, so nothing can move. Give the times "
                "with time=..., or none at all."
            )

    def tell(self, phase: str, done: int, total: int, text: str) -> None:
        """Report progress."""
        if self.progress is not None:
            self.progress(phase, done, total, text)

    # ----- which model ------------------------------------------------------------------------------

    def compare(self) -> None:
        """Measure models on hidden entries, and choose model and number of components."""
        begin = clock.perf_counter()
        kept = None if self.run is None else self.run.work / "comparison.json"
        if kept is not None and kept.exists():
            record = read_json(kept)
            self.comparison, self.model, self.k = comparison_of(record), record["model"], record["k"]
            self.seconds["compare"] = record["seconds"]
            self.tell("compare", 1, 1, "done before")
            return
        # Of fits that are only tried, nobody needs to hear that they are not determined.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LowdimWarning)
            self._choose()
        self.seconds["compare"] = clock.perf_counter() - begin
        if kept is not None:
            record = comparison_record(self.comparison)
            record |= {"model": self.model, "k": self.k, "seconds": self.seconds["compare"]}
            atomic_json(kept, record)

    def _choose(self) -> None:
        asked = self.settings.model
        ranks = self._ranks()
        streamed = asked in STREAMED
        together = asked == "piecewise" and len(ranks) == 1
        models = COMPARED if together else COMPARED[:2]
        found = self._compare(ranks, models, more=streamed or (asked == "piecewise" and not together))
        self.model = asked if asked != "auto" else "geodesic" if found.moving else "static"
        own = "static" if self.model == "static" else "geodesic"
        rows = found.table[found.table["model"] == own]
        if self.settings.n_components != "auto" and (asked != "auto" or own == "geodesic"):
            rows = rows[rows["n_components"] == ranks[0]]
        self.k = int(rows.loc[rows["error"].idxmin(), "n_components"])
        if asked == "piecewise" and not together:
            # Pieces take many fits: they are compared at the chosen number only.
            found = self._compare([self.k], COMPARED, more=False)
        if streamed:
            found = self._with_streamed(found, keep=max(ranks) + 1)
        self.comparison = found

    def _ranks(self) -> list[int]:
        if self.settings.n_components != "auto":
            return [int(self.settings.n_components)]
        T, d = self.values.shape
        counts = self.seen.sum(1)
        shown = int(np.median(counts[counts > 0]))
        fitting = [
            k
            for k in range(1, min(MOST, d // 4, shown // 3) + 1)
            if counts.sum() >= 2 * k * (d - k) + k + k * T  # as many numbers as unknowns
        ]
        return fitting or [1]

    def _compare(self, ranks: list[int], models: Sequence[str], *, more: bool) -> Comparison:
        done = 0
        at_rest = len({*ranks, *(2 * k for k in ranks)})
        total = at_rest + len(ranks) * (len(models) - 1) + more

        def tell(name: str, k: int) -> None:
            nonlocal done
            self.tell("compare", done, total, f"{name}, {k} component{'s' * (k > 1)}")
            done += 1

        found = compare(
            np.where(self.seen, self.values, np.nan),
            n_components=ranks,
            t=self.times,
            models=models,
            held_out=self.settings.held_out,
            ridge=self.settings.ridge,
            random_state=self.settings.seed,
            callback=tell,
        )
        self.tell("compare", done, total, "")
        return found

    def _with_streamed(self, found: Comparison, *, keep: int) -> Comparison:
        """Add the error of a streaming model on the same hidden entries."""
        settings, (T, d), k = self.settings, self.values.shape, self.k
        hidden = hide(self.seen, settings.held_out, keep=keep, random_state=settings.seed)
        imputed = self._follow(self.seen & ~hidden).imputed
        size = np.sqrt(np.mean(np.abs(self.values[hidden]) ** 2))
        error = np.sqrt(np.mean(np.abs(imputed - self.values)[hidden] ** 2))
        row = {"model": self.model, "n_components": k, "error": float(error), "relative": float(error / size)}
        row["unknowns"] = k * (d - k) + k * T
        best = row if error < found.best["error"] else found.best
        table = pd.concat([found.table, pd.DataFrame([row])], ignore_index=True)
        self.tell("compare", 1, 1, "")
        return dataclasses.replace(found, table=table, best=best)

    # ----- the model --------------------------------------------------------------------------------

    def fit(self) -> None:
        """Fit the chosen model to everything that was seen; what it warns of is noted."""
        begin = clock.perf_counter()
        if self.settings.draws and not self._drawn():
            self.notes.append("Draws are for one geodesic through frames with gaps: none were taken.")
        self.tell("fit", 0, 1, f"{self.model}, {self.k} component{'s' * (self.k > 1)}")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", LowdimWarning)
            self.followed = self._follow(self.seen)
        for entry in caught:
            if issubclass(entry.category, LowdimWarning):
                self.notes.append(str(entry.message))
            warnings.warn(entry.message, entry.category, stacklevel=3)
        self.seconds["fit"] = clock.perf_counter() - begin
        self.tell("fit", 1, 1, "")

    def _follow(self, seen: np.ndarray) -> Followed:
        settings = self.settings
        return follow(
            self.model,
            np.where(seen, self.values, 0),
            seen,
            self.times,
            n_components=self.k,
            ridge=settings.ridge,
            n_init=settings.n_init,
            draws=settings.draws if self._drawn() else 0,
            seed=settings.seed,
        )

    def _drawn(self) -> bool:
        return self.model == "geodesic" and not self.seen.all()

    # ----- the result -------------------------------------------------------------------------------

    def result(self) -> TrackResult:
        """Return what was found."""
        # Of a frame or feature that was never seen a model says zero: a gap is more honest.
        blank = ~(self.seen.any(axis=1, keepdims=True) & self.seen.any(axis=0, keepdims=True))
        imputed = np.where(blank, np.nan, self.followed.imputed)
        order = np.argsort(self.times, kind="stable")
        angles = angles_from(self.followed.bases, int(order[0]))
        self._note_blanks()
        report = self._report(imputed, angles, order)
        return TrackResult(self.followed.model, imputed, angles, self.comparison, report, self.frames.times)

    def _note_blanks(self) -> None:
        for axis, noun in ((1, "frame"), (0, "feature")):
            count = int((~self.seen.any(axis)).sum())
            if count:
                some = (
                    f"{count} {noun}s nothing was seen: they stay"
                    if count > 1
                    else f"one {noun} nothing was seen: it stays"
                )
                self.notes.append(f"Of {some} empty, for no model can tell.")

    def _report(self, imputed: np.ndarray, angles: np.ndarray, order: np.ndarray) -> dict[str, Any]:
        frames, (T, d) = self.frames, self.values.shape
        empty = np.isnan(imputed)
        rows = order[thinned(T, POINTS)]
        table = self.comparison.table
        rest = table[table["model"] == "static"]
        chosen = table[(table["model"] == self.model) & (table["n_components"] == self.k)].iloc[0]
        report = {
            "format": FORMAT,
            "source": self.name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "model": self.model,
            "n_components": self.k,
            "frames": T,
            "features": d,
            "shape": list(frames.shape),
            "names": list(frames.names),
            "time": self._time(order),
            "missing": float(1 - self.seen.mean()),
            "filled": int((~self.seen & ~empty).sum()),
            "left_empty": int(empty.sum()),
            "turned": self._turned(angles, order),
            "error": float(chosen["relative"]),
            "error_at_rest": float(rest["relative"].min()),
            "comparison": comparison_record(self.comparison),
            "angles": {
                "times": time_labels(frames.times, rows),
                "degrees": np.degrees(angles[rows]).round(3),
            },
            "settings": self.settings.arguments(),
            "seed": self.settings.seed,
            "notes": self.notes,
            "seconds": self.seconds,
            "versions": versions("pandas", "scikit-learn"),
        }
        if frames.stack:
            report["pictures"] = pictures_record(imputed, self.seen, order, frames.times, frames.shape)
        else:
            report["panel"] = panel_record(imputed, self.seen, order, frames.times, frames.names)
        return plain(report)

    def _time(self, order: np.ndarray) -> dict[str, Any]:
        times = self.frames.times
        first, last = time_labels(times, order[[0, -1]])
        kind = "order" if times is None else "dates" if np.asarray(times).dtype.kind == "M" else "numbers"
        return {"kind": kind, "name": self.frames.time_name, "first": first, "last": last}

    def _turned(self, angles: np.ndarray, order: np.ndarray) -> float:
        """Return the largest angle between the first and the last time, in degrees.

        A geodesic tells how far it has turned on its way, also beyond a right angle.
        """
        if self.model == "geodesic":
            return float(np.degrees(self.followed.model.theta_.max()))
        return float(np.degrees(angles[order[-1]].max()))


def _name(source: Any) -> str:
    if isinstance(source, (str, os.PathLike)):
        return Path(source).name
    return "table" if hasattr(source, "columns") else "array"
