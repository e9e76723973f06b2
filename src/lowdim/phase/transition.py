"""Transition: how many measurements a method needs, by trying."""

from __future__ import annotations

import io
import math
import os
import time as clock
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lowdim.errors import DataError, LowdimWarning, RunError
from lowdim.phase.alignment import relative_error
from lowdim.phase.methods import METHODS, Settings, fit
from lowdim.phase.simulate import Kind, simulate
from lowdim.runs import Run, atomic_json, atomic_write, digest, plain, read_json, versions

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Transition", "transition"]

FORMAT = 1

GRID = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Measurements per pixel that are tried where a map may have fewer than pixels."""

OVERLAPS = (1.0, 1.5, 2.0, 3.0, 4.0)
"""The same for ptychography, which has to light up every pixel."""

Progress = Callable[[str, int, int, str], None]


@dataclass(frozen=True, eq=False)
class Transition:
    """Errors of methods over the number of measurements.

    Parameters
    ----------
    table : DataFrame
        One row per method, measurements per pixel and seed, with ``error`` (`relative_error`) and
        ``unexplained`` (of the magnitudes) and ``seconds``.
    report : dict
        The contents of report.json: the rows, and how they were made.

    Examples
    --------
    >>> found = transition(np.ones((8, 4, 4)), ranks=(1, 1, 1), methods=["tucker"], grid=[0.5, 1.0])
    >>> found.medians().round(3)
    method        tucker
    measurements
    0.5              0.0
    1.0              0.0
    """

    table: pd.DataFrame
    report: dict[str, Any]

    def medians(self) -> pd.DataFrame:
        """Return the median error over seeds, measurements per pixel in rows and methods in columns."""
        wide = self.table.pivot_table(
            index="measurements", columns="method", values="error", aggfunc="median"
        )
        return wide[[name for name in METHODS if name in wide.columns]]

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write transition.csv and report.json.

        Parameters
        ----------
        directory : path
            Made if it is missing. Read it back with `load`.

        Raises
        ------
        RunError
            If it cannot be written.
        """
        folder = Path(directory)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{folder} cannot be made: {error.strerror}. Choose another folder.") from error
        buffer = io.StringIO()
        self.table.to_csv(buffer, index=False)
        atomic_write(folder / "transition.csv", buffer.getvalue())
        atomic_json(folder / "report.json", self.report)

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Transition:
        """Read a folder that `save` or ``lowdim phase transition`` has written.

        Parameters
        ----------
        directory : path

        Returns
        -------
        Transition

        Raises
        ------
        RunError
            If it holds no such report, or one of an unknown format.
        """
        path = Path(directory) / "report.json"
        report = read_json(path)
        if not isinstance(report, dict) or report.get("format") != FORMAT or "rows" not in report:
            raise RunError(
                f"{path} is no report of `lowdim phase transition` in format {FORMAT}. Use the lowdim that "
                "wrote it, or run it again."
            )
        return cls(_table(report["rows"]), report)


def transition(
    frames: Any,
    *,
    ranks: Sequence[int],
    rank: int | None = None,
    methods: Sequence[str] = METHODS,
    grid: Sequence[float] | None = None,
    seeds: int | Sequence[int] = 1,
    kind: Kind = "gaussian",
    noise: float = 0.0,
    n_init: int = 4,
    max_iter: int | None = None,
    name: str = "frames",
    progress: Progress | None = None,
    output: str | os.PathLike[str] | None = None,
    resume: bool = False,
    restart: bool = False,
) -> Transition:
    """Measure frames more and less often, and see which methods recover them.

    Parameters
    ----------
    frames : array-like, shape (q, h, w)
        The truth. Real frames are recovered as real ones, also behind a complex map.
    ranks : sequence of int
        Of "tucker".
    rank : int, optional
        Of "lowrank"; that of the frames in `ranks` by default.
    methods : sequence of {"tucker", "lowrank", "rwf"}
        See `recover`.
    grid : sequence of float, optional
        Measurements per pixel, m / n: 0.3 to 1 by default, for ptychography 1 to 4.
    seeds : int or sequence of int
        Draws of the map, or how many (0, 1, ...).
    kind, noise
        See `simulate`.
    n_init, max_iter
        See `recover`.
    name : str
        What the frames are called in the report.
    progress : callable, optional
        Called with (phase, done, total, what is going on).
    output : path, optional
        Run directory: every error is kept there when it is known, and the result is written to it.
    resume, restart : bool
        Go on with the run in `output`, or throw it away.

    Returns
    -------
    Transition

    Raises
    ------
    DataError, ShapeError, RankError
        If frames or an option cannot be used.
    RunError
        If the output folder is in use, holds another run, or cannot be written.

    Examples
    --------
    >>> found = transition(np.ones((8, 4, 4)), ranks=(1, 1, 1), methods=["lowrank"], grid=[1.0], seeds=2)
    >>> len(found.table), bool((found.table["error"] < 1e-6).all())
    (2, True)
    """
    X = np.asarray(frames)
    X = X if np.iscomplexobj(X) else X.astype(np.float64)
    chosen = list(range(seeds)) if isinstance(seeds, (int, np.integer)) else [int(seed) for seed in seeds]
    if grid is None:
        grid = OVERLAPS if kind == "ptychography" else GRID
    _check(methods, grid, chosen)
    if output is None and (resume or restart):
        raise RunError("phase: resume and restart need the output folder of the run. Add output=...")
    of_method: dict[str, dict[str, Any]] = {
        "tucker": {"ranks": tuple(ranks)},
        "lowrank": {"ranks": tuple(ranks)[-1] if rank is None else rank},
        "rwf": {"ranks": "auto"},
    }
    complex_map = kind != "gaussian"
    real = True if complex_map and not np.iscomplexobj(X) else None
    settings = {
        method: Settings(method, n_init=n_init, max_iter=max_iter, real=real, **of_method[method])
        for method in methods
    }
    for given in settings.values():
        given.check("phase")
    arguments = plain(
        {
            "ranks": tuple(ranks),
            "rank": of_method["lowrank"]["ranks"],
            "methods": list(methods),
            "grid": list(grid),
            "seeds": chosen,
            "kind": kind,
            "noise": noise,
            "n_init": n_init,
            "max_iter": max_iter,
        }
    )
    with ExitStack() as stack:
        run: Run | None = None
        if output is not None:
            run = stack.enter_context(
                Run.open(
                    output,
                    command="phase transition",
                    arguments={"source": name, **arguments},
                    seed=None,
                    inputs={"frames": digest(np.ascontiguousarray(X).tobytes(), list(X.shape), str(X.dtype))},
                    resume=resume,
                    restart=restart,
                )
            )
            if run.finished:
                return Transition.load(run.path)
        cells = list(product(chosen, grid, methods))
        rows: list[dict[str, Any]] = []
        tell = progress if progress is not None else lambda *given: None
        for number, (seed, ratio, method) in enumerate(cells):
            tell("try", number, len(cells), f"{method}, m/n {ratio:g}, seed {seed}")
            kept = None if run is None else run.work / f"{number}.json"
            if kept is not None and kept.exists():
                rows.append(read_json(kept))
                continue
            row = _cell(X, settings[method], ratio, seed, kind=kind, noise=noise)
            rows.append(row)
            if kept is not None:
                atomic_json(kept, row)
        tell("try", len(cells), len(cells), "")
        report = {
            "format": FORMAT,
            "source": name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "frames": len(X),
            "image_shape": list(X.shape[1:]),
            "rows": rows,
            "settings": arguments,
            "seconds": {"try": sum(row["seconds"] for row in rows)},
            "versions": versions("scipy", "scikit-learn"),
        }
        result = Transition(_table(rows), plain(report))
        if output is not None:
            result.save(output)
        return result


def _check(methods: Sequence[str], grid: Sequence[float], seeds: Sequence[int]) -> None:
    unknown = [method for method in methods if method not in METHODS]
    if unknown or not len(methods):
        raise DataError(f"phase: methods={list(methods)!r} must be one or more of {', '.join(METHODS)}.")
    if not len(grid) or any(not 0 < ratio <= 100 for ratio in grid):
        raise DataError(f"phase: grid={list(grid)!r} must be measurements per pixel, such as 0.5.")
    if not seeds or min(seeds) < 0:
        raise DataError(f"phase: seeds={list(seeds)!r} must be one or more, 0 or larger.")


def _cell(
    X: np.ndarray, settings: Settings, ratio: float, seed: int, *, kind: Kind, noise: float
) -> dict[str, Any]:
    """Return one row of the table."""
    recording = simulate(X, kind=kind, measurements=ratio, noise=noise, seed=seed)
    row: dict[str, Any] = {"method": settings.method, "measurements": float(ratio), "seed": seed}
    begin = clock.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LowdimWarning)  # what fails is in the table
        if recording.y.shape[1] < settings.coefficients:  # a failure like others
            return {**row, "error": None, "unexplained": None, "seconds": 0.0}
        found = fit(recording, settings, where="phase")
    error = relative_error(found.frames, X)
    return {
        **row,
        "error": error if math.isfinite(error) else None,
        "unexplained": found.loss[-1] ** 0.5 if math.isfinite(found.loss[-1]) else None,
        "seconds": clock.perf_counter() - begin,
    }


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    table = pd.DataFrame(rows)
    return table.astype({"error": float, "unexplained": float})
