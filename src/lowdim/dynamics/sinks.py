"""Where the numbers of a Monitor go: a function, a file of JSON lines, memory, or the logger you have.

A sink is anything that is called as ``sink(step, metrics)``. One that has ``open(header)`` is told what is
trained before the first report, and one that has ``close()`` is closed at the end.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import IO, TYPE_CHECKING, Any

from lowdim.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["JsonLines", "Memory", "RunLog", "Sink", "as_sinks"]

FORMAT = 1
"""Version of the file format."""

Sink = Callable[[int, dict[str, float]], Any]
"""Takes the step and the metrics by name."""


class Memory:
    """Keep all reports.

    Attributes
    ----------
    header : dict
        What was trained.
    reports : list of (int, dict)
        Step and metrics.

    Examples
    --------
    >>> memory = Memory()
    >>> memory(100, {"dyn/loss": 0.5})
    >>> memory(200, {"dyn/loss": 0.4})
    >>> memory.series("dyn/loss")
    [0.5, 0.4]
    >>> memory.table().loc[200, "dyn/loss"]
    np.float64(0.4)
    """

    def __init__(self) -> None:
        self.header: dict[str, Any] = {}
        self.reports: list[tuple[int, dict[str, float]]] = []

    def open(self, header: Mapping[str, Any]) -> None:
        """Take the header."""
        self.header = dict(header)

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        """Take a report."""
        self.reports.append((step, dict(metrics)))

    def series(self, name: str) -> list[float]:
        """Return one metric by its name, of the reports that have it."""
        return [metrics[name] for _, metrics in self.reports if name in metrics]

    def table(self) -> pd.DataFrame:
        """Return all reports as a table, one row per step."""
        import pandas as pd

        return pd.DataFrame(
            [metrics for _, metrics in self.reports],
            index=pd.Index([step for step, _ in self.reports], name="step"),
        )


class JsonLines:
    """Write reports to a file that ``lowdim dynamics watch`` shows while it grows.

    The first line is the header; then one line per report with ``step``, ``time`` (seconds since the start)
    and ``metrics``, in which what is not finite is null. Each line is flushed. An existing file is appended
    to, beginning with another header: the training was resumed.

    Parameters
    ----------
    path : str or path
        Missing folders are made.

    Raises
    ------
    DataError
        If the file exists and is something else.

    Examples
    --------
    >>> sink = JsonLines("run.jsonl")
    >>> sink.open({"every": 100})
    >>> sink(100, {"dyn/loss": 0.5, "dyn/sharpness": float("nan")})
    >>> sink.close()
    >>> print(Path("run.jsonl").read_text().splitlines()[0])
    {"lowdim": "dynamics", "format": 1, "every": 100}
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise DataError(f"JsonLines: {path} is a folder. Give a file, such as {self.path / 'run.jsonl'}.")
        if self.path.exists() and self.path.stat().st_size and not _is_ours(self.path):
            raise DataError(
                f"JsonLines: {path} exists and is no record of a training. Give another name, or remove it."
            )
        self._file: IO[str] | None = None
        self._start = perf_counter()

    def open(self, header: Mapping[str, Any]) -> None:
        """Begin with a header."""
        self._start = perf_counter()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torn = self.path.exists() and self.path.stat().st_size and not _ends_with_newline(self.path)
        self._file = self.path.open("a", encoding="utf-8")
        if torn:
            self._file.write("\n")
        self._write({"lowdim": "dynamics", "format": FORMAT, **header})

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        """Write a report."""
        if self._file is None:
            self.open({})
        values = {name: value if isfinite(value) else None for name, value in metrics.items()}
        self._write({"step": step, "time": round(perf_counter() - self._start, 4), "metrics": values})

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, entry: dict[str, Any]) -> None:
        assert self._file is not None  # for the type checker
        # One write per line: whoever reads meanwhile sees whole lines.
        self._file.write(json.dumps(entry, allow_nan=False) + "\n")
        self._file.flush()


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return file.readline(1 << 20).lstrip().startswith(b'{"lowdim": "dynamics"')


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


class RunLog:
    """Hand reports to an object with ``log(dict, step=)``, such as a run of W&B.

    Parameters
    ----------
    run : object
        The run.

    Examples
    --------
    >>> class Run:
    ...     def log(self, values, step):
    ...         print(step, values)
    >>> RunLog(Run())(100, {"dyn/loss": 0.5})
    100 {'dyn/loss': 0.5}
    """

    def __init__(self, run: Any) -> None:
        self._run = run

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        """Log a report."""
        self._run.log(dict(metrics), step=step)


def as_sinks(given: Any) -> list[Sink]:
    """Turn what a user gives as `sink` into a list of sinks.

    Parameters
    ----------
    given : None, callable, path, object with ``log`` or ``add_scalar``, or a sequence of these
        A path becomes :class:`JsonLines`, a TensorBoard SummaryWriter is recognized by ``add_scalar``.

    Returns
    -------
    list of callable

    Raises
    ------
    DataError
        If it is something else.

    Examples
    --------
    >>> as_sinks(print) == [print]
    True
    """
    if given is None:
        return []
    if isinstance(given, list | tuple):
        if isinstance(given, list) and not given:
            raise DataError(
                "Monitor: sink=[] holds no sink. Use lowdim.dynamics.Memory() to collect reports."
            )
        return [sink for one in given for sink in as_sinks(one)]
    if isinstance(given, str | os.PathLike):
        return [JsonLines(given)]
    if hasattr(given, "add_scalar"):
        from lowdim.dynamics.tensorboard import TensorBoard

        return [TensorBoard(given)]
    # A module such as wandb has log, too; what can be called is a function.
    if not callable(given) and callable(getattr(given, "log", None)):
        return [RunLog(given)]
    if not callable(given):
        raise DataError(
            f"Monitor: sink is a {type(given).__name__}. Give a function sink(step, metrics), a path for "
            f"JSON lines, an object with log(dict, step=), a SummaryWriter, or a list of these."
        )
    return [given]
