"""Pipeline: `recover`, from a recording to frames, a model and a report."""

from __future__ import annotations

import dataclasses
import os
import time as clock
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lowdim.errors import DataError, LowdimWarning, RunError
from lowdim.phase.alignment import smooth_phases
from lowdim.phase.methods import Fitted, Method, Settings, choose, fit
from lowdim.phase.problem import count_unknowns
from lowdim.phase.ranks import RankChoice
from lowdim.phase.record import (
    errors_of,
    film_record,
    pictures_record,
    singular_values,
    unexplained,
)
from lowdim.phase.recording import Recording, read_recording
from lowdim.phase.result import FORMAT, PhaseResult
from lowdim.runs import Run, atomic_json, plain, read_json, versions

__all__ = ["Progress", "recover"]

Progress = Callable[[str, int, int, str], None]


def recover(
    source: Any,
    *,
    method: Method = "tucker",
    ranks: int | Sequence[int] | Literal["auto"] = "auto",
    init: Literal["auto", "joint", "grow", "frame", "random"] = "auto",
    n_init: int = 4,
    max_iter: int | None = None,
    robust: bool = False,
    real: bool | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    output: str | os.PathLike[str] | None = None,
    resume: bool = False,
    restart: bool = False,
) -> PhaseResult:
    """Recover frames from the magnitudes of their measurements.

    Parameters
    ----------
    source : path or Recording
        Files as in `read_recording`.
    method : {"tucker", "lowrank", "rwf"}
        `TuckerPhaseRetrieval`, `LowRankPhaseRetrieval`, or every frame by itself by `rwf`, which needs
        several measurements per pixel.
    ranks : "auto", sequence of int, or int
        Of "tucker": (r1, r2, rf), one per axis of an image and that of the frames, or "auto" to choose them
        by held-out measurements. Of "lowrank": the dimension of the space that frames lie in.
    init, n_init : str, int
        First start, and starts at most; see `TuckerPhaseRetrieval`.
    max_iter : int, optional
        Sweeps at most from each start, 100 by default; of "rwf" gradient steps, 300 by default.
    robust : bool
        Weigh measurements that fit nothing down, for a few per cent of outliers.
    real : bool, optional
        Whether frames are real. By default they are what the map is; of a complex map real frames have half
        the unknowns, so say so where they are.
    seed : int
        Of the held-out measurements and the random starts.
    progress : callable, optional
        Called with (phase, done, total, what is going on).
    output : path, optional
        Run directory: chosen ranks are kept there when they are known, and the result is written to it.
    resume, restart : bool
        Go on with the run in `output`, or throw it away.

    Returns
    -------
    PhaseResult

    Raises
    ------
    DataError, ShapeError, RankError
        If the file, its numbers or an option cannot be used.
    RunError
        If the output folder is in use, holds another run, or cannot be written.

    Notes
    -----
    The truth in a recording is used to measure the error, and for nothing else. A wrong end is about as far
    from the truth as frames of 0 are, but leaves much of the magnitudes unexplained: look at
    ``report["unexplained"]``, which needs no truth.

    Examples
    --------
    >>> from lowdim.phase import simulate
    >>> rng = np.random.default_rng(0)
    >>> film = np.einsum("kc,ic,jc->kij", *(rng.normal(size=(n, 2)) for n in (20, 8, 8)))
    >>> result = recover(simulate(film, measurements=1), ranks=(2, 2, 2))
    >>> result.frames.shape, result.report["error"]["total"] < 1e-6
    ((20, 8, 8), True)
    """
    settings = Settings(method, ranks, init, n_init, max_iter, robust, real, seed)
    settings.check("phase")
    if output is None and (resume or restart):
        raise RunError("phase: resume and restart need the output folder of the run. Add output=...")
    if not isinstance(source, (Recording, str, os.PathLike)):
        raise DataError(
            f"phase: got a {type(source).__name__}, expected a Recording or the path of one. Make one: "
            "Recording(y, A=A)."
        )
    recording = source if isinstance(source, Recording) else read_recording(source)
    name = "recording" if isinstance(source, Recording) else Path(source).name
    job = Job(recording, settings, name, progress)
    with ExitStack() as stack:
        if output is not None:
            job.run = stack.enter_context(
                Run.open(
                    output,
                    command="phase recover",
                    arguments={"source": name, **job.arguments()},
                    seed=seed,
                    inputs={"recording": recording.digest()},
                    resume=resume,
                    restart=restart,
                )
            )
            if job.run.finished:
                return PhaseResult.load(job.run.path)
        job.choose()
        job.fit()
        result = job.result()
        if output is not None:
            job.tell("write", 0, 1, "")
            result.save(output)
            job.tell("write", 1, 1, "")
        return result


@dataclass
class Job:
    """One call of `recover` at work.

    Parameters
    ----------
    recording : Recording
    settings : Settings
    name : str
        Of the source, as people call it.
    progress : callable or None
    run : Run or None
    """

    recording: Recording
    settings: Settings
    name: str
    progress: Progress | None
    run: Run | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    choice: RankChoice | None = None
    fitted: Fitted = field(init=False)

    def __post_init__(self) -> None:
        self.real = self.settings.is_real(self.recording)
        self.settings.problem(self.recording, "phase")  # what it refuses is refused before a run begins

    def tell(self, phase: str, done: int, total: int, text: str) -> None:
        """Report progress."""
        if self.progress is not None:
            self.progress(phase, done, total, text)

    def arguments(self) -> dict[str, Any]:
        """Return the options, JSON-ready, without the seed."""
        found = plain(dataclasses.asdict(self.settings))
        del found["seed"]
        return found

    def choose(self) -> None:
        """Choose ranks, where they are not told; a resumed run reads them again."""
        if self.settings.method != "tucker" or self.settings.ranks != "auto":
            return
        begin = clock.perf_counter()
        kept = None if self.run is None else self.run.work / "ranks.json"
        if kept is not None and kept.exists():
            record = read_json(kept)
            self.choice = _choice_of(record)
            self.seconds["choose"] = record["seconds"]
            self.tell("choose", 1, 1, "done before")
        else:
            tried = 0

            def tell(start: int, sweep: int, loss: float) -> None:
                nonlocal tried
                tried += sweep == 1
                self.tell("choose", 0, 1, f"fit {tried}, {loss**0.5:.2%} unexplained")

            # Of fits that are only tried, nobody needs to hear what they lack.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", LowdimWarning)
                self.choice = choose(self.recording, self.settings, where="phase", callback=tell)
            self.seconds["choose"] = clock.perf_counter() - begin
            if kept is not None:
                record = {**_choice_record(self.choice), "seconds": self.seconds["choose"]}
                atomic_json(kept, record)
            self.tell("choose", 1, 1, f"ranks {', '.join(map(str, self.choice.ranks))}")
        self.settings = dataclasses.replace(self.settings, ranks=self.choice.ranks)

    def fit(self) -> None:
        """Recover the frames; what the fit warns of is noted."""
        begin, steps = clock.perf_counter(), self.settings.steps
        total = len(self.recording.y) if self.settings.method == "rwf" else steps
        self.tell("recover", 0, total, "")

        def tell(start: int, sweep: int, loss: float) -> None:
            told = "one by one" if loss != loss else f"start {start + 1}, {loss**0.5:.2%} unexplained"
            self.tell("recover", sweep, total, told)

        with _noted(self.notes):
            self.fitted = fit(self.recording, self.settings, where="phase", callback=tell)
        if self.choice is not None and self.fitted.model is not None:
            self.fitted.model.choice_ = self.choice
        self.seconds["recover"] = clock.perf_counter() - begin
        self.tell("recover", total, total, "")

    def result(self) -> PhaseResult:
        """Return what was found."""
        frames = np.asarray(smooth_phases(self.fitted.frames))
        if not self.real and self.settings.real is None:
            self.notes.append(
                "Frames were taken to be complex, as the map is. If they are real, say so with real=True "
                "(--real): half the unknowns."
            )
        return PhaseResult(frames, self.fitted.model, self._report(frames))

    def _report(self, frames: np.ndarray) -> dict[str, Any]:
        recording, settings, fitted = self.recording, self.settings, self.fitted
        (q, m), shape = recording.y.shape, recording.image_shape
        magnitudes = np.sqrt(recording.y) if recording.intensity else recording.y
        left = unexplained(recording.measurement(), frames, magnitudes, fitted.weights)
        error = None if recording.frames is None else errors_of(frames, recording.frames)
        ranks = None if settings.method == "rwf" else np.atleast_1d(settings.ranks).tolist()
        report = {
            "format": FORMAT,
            "source": self.name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "method": settings.method,
            "ranks": ranks,
            "choice": None if self.choice is None else _choice_record(self.choice),
            "map": recording.kind,
            "intensity": recording.intensity,
            "real": self.real,
            "frames": q,
            "image_shape": list(shape),
            "measurements": m,
            "ratio": recording.ratio,
            "unknowns": count_unknowns(ranks, shape, q, is_complex=np.iscomplexobj(frames)),
            "left_out": None if fitted.weights is None else float((fitted.weights == 0).mean()),
            "loss": fitted.loss,
            "converged": fitted.converged,
            "unexplained": left,
            "error": error,
            "singular_values": singular_values(frames),
            "sentence": self._sentence(left["total"], error),
            "settings": self.arguments(),
            "seed": settings.seed,
            "notes": self.notes,
            "seconds": self.seconds,
            "versions": versions("scipy", "scikit-learn"),
        }
        if len(shape) == 2:
            report["pictures"] = pictures_record(frames, recording.frames)
            report["film"] = film_record(frames, recording.frames)
        return plain(report)

    def _sentence(self, left: float, error: dict[str, Any] | None) -> str:
        (q, m), n = self.recording.y.shape, self.recording.pixels
        many = f"{q} frames of {n:,} pixels were" if q > 1 else f"One frame of {n:,} pixels was"
        told = (
            f"{many} recovered from {m:,} magnitudes{' each' * (q > 1)} ({m / n:.0%} of the pixels); "
            f"{left:.2%} of the magnitudes stay unexplained"
        )
        return (
            f"{told}."
            if error is None
            else f"{told}, and the error is {error['total']:.2%} of the norm of the true frames."
        )


@contextmanager
def _noted(notes: list[str]) -> Iterator[None]:
    """Note warnings of ours, and hand them on when all is done."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", LowdimWarning)
        yield
    for entry in caught:
        if issubclass(entry.category, LowdimWarning):
            notes.append(str(entry.message))
        warnings.warn(entry.message, entry.category, stacklevel=4)


def _choice_record(choice: RankChoice) -> dict[str, Any]:
    return plain({"ranks": choice.ranks, "candidates": list(choice.candidates), "held_out": choice.held_out})


def _choice_of(record: dict[str, Any]) -> RankChoice:
    candidates = tuple({**row, "ranks": tuple(row["ranks"])} for row in record["candidates"])
    return RankChoice(tuple(record["ranks"]), candidates, record["held_out"])
