"""The record of a watched training: JSON lines, one per report, read whole or while they are written.

The first line is a header that says what was trained; every further line is one report,
``{"step": 100, "time": 3.2, "metrics": {"dyn/loss": 0.41, ...}}``. A training that was resumed writes its
header once more. The process that writes may die at any moment, so the last line may be half of one.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowdim.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["DynamicsRun", "RunFile", "read_run"]

FORMAT = 1
_LONGEST_HEADER = 1 << 20  # bytes; without a line break up to here it is no file of lines
_NUMBERS = ("every", "lr", "parameters")
_TEXTS = ("optimizer", "label", "threshold_rule", "started")
_REMEDY = "Give the JSONL file of a lowdim.dynamics.Monitor, written by its sink."


@dataclass(frozen=True)
class DynamicsRun:
    """A watched training, as far as it has been written.

    Parameters
    ----------
    name : str
        Name of the file.
    headers : tuple of mapping
        What was trained: ``optimizer``, ``lr``, ``every`` (steps between reports), ``label`` (what the
        sharpness is), ``threshold_rule``, ``parameters`` (how many), ``probes``, ``started``. One entry per
        start of the process; several if the training was resumed.
    table : pandas.DataFrame
        Indexed by ``step``: the column ``time`` (seconds of training, without what lies between an end and a
        resumption) and one per metric (``dyn/loss``, ``dyn/sharpness``, ...); NaN where nothing was measured.
    torn : int
        Lines that were cut off when a process died.
    lost : bool
        The last report says that the loss is not finite.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"time": [1.0], "dyn/erank/fc.weight": [8.0]}, index=[100])
    >>> run = DynamicsRun("run.jsonl", ({"optimizer": "SGD"},), table)
    >>> run.family("dyn/erank").columns.to_list()
    ['fc.weight']
    """

    name: str
    headers: tuple[Mapping[str, Any], ...]
    table: pd.DataFrame
    torn: int = 0
    lost: bool = False

    @property
    def header(self) -> Mapping[str, Any]:
        """The header of the process that wrote last."""
        return self.headers[-1] if self.headers else {}

    def series(self, metric: str) -> pd.Series:
        """Return the values of a metric by step, without the steps at which it was not measured.

        Parameters
        ----------
        metric : str
            Such as ``dyn/loss``; a name that the run does not have gives an empty series.

        Returns
        -------
        pandas.Series
        """
        import pandas as pd

        if metric not in self.table.columns:
            return pd.Series(dtype=float, name=metric)
        return self.table[metric].dropna()

    def family(self, prefix: str) -> pd.DataFrame:
        """Return the metrics of one kind, a column for each parameter or chain.

        Parameters
        ----------
        prefix : str
            Such as ``dyn/erank``.

        Returns
        -------
        pandas.DataFrame
            Indexed by step; columns in the order of the file, without those that were never measured.
        """
        start = f"{prefix}/"
        found = self.table[[name for name in self.table.columns if name.startswith(start)]]
        return found.rename(columns=lambda name: name.removeprefix(start)).dropna(axis=1, how="all")


def read_run(path: str | os.PathLike[str]) -> DynamicsRun:
    r"""Read the record of a watched training.

    Parameters
    ----------
    path : path
        The JSONL file of a Monitor; it may still be growing.

    Returns
    -------
    DynamicsRun

    Raises
    ------
    DataError
        If there is no such file, if it is empty, or if it is none of a Monitor; the line is named.

    Examples
    --------
    >>> from pathlib import Path
    >>> header = '{"lowdim": "dynamics", "format": 1, "optimizer": "SGD", "lr": 0.2}'
    >>> report = '{"step": 100, "time": 1.5, "metrics": {"dyn/loss": 0.4, "dyn/sharpness": null}}'
    >>> _ = Path("run.jsonl").write_text(f"{header}\n{report}\n" + '{"step": 200, "ti')
    >>> run = read_run("run.jsonl")
    >>> run.table["dyn/loss"].to_dict(), run.header["lr"]
    ({100: 0.4}, 0.2)
    """
    file = RunFile(path)
    file.read()
    if not file.headers:
        raise DataError(f"{file.path.name} is empty so far, expected a header. Wait for the first report.")
    return file.run()


class RunFile:
    """The file of a training that may still run: `read` takes in what was added since the last call.

    Parameters
    ----------
    path : path
        The JSONL file of a Monitor.

    Raises
    ------
    DataError
        If there is no such file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise DataError(
                f"{path} is a folder, expected a file such as {self.path / 'run.jsonl'}. {_REMEDY}"
            )
        if not self.path.exists():
            raise DataError(
                f"{path}: there is no such file. Check the name; it appears when the training begins."
            )
        self._begin()

    def _begin(self) -> None:
        self.headers: list[dict[str, Any]] = []
        self.torn = 0
        self._reports: list[tuple[int, float, dict[str, float]]] = []
        self._before = 0.0  # seconds of the processes before this one
        self._elapsed = 0.0
        self._at = 0  # bytes taken in
        self._line = 1
        self._faulty: str | None = None  # why the last line is none, which is forgiven before a header
        self._identity: tuple[int, int] | None = None

    def read(self) -> bool:
        """Take in the lines that were completed since the last call.

        Returns
        -------
        bool
            Whether there were any. A file that was replaced by another, or became shorter, is read anew.

        Raises
        ------
        DataError
            If a line is none of a Monitor, or the file has gone.
        """
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                identity = (status.st_dev, status.st_ino)
                if status.st_size < self._at or self._identity not in (None, identity):
                    self._begin()
                self._identity = identity
                file.seek(self._at)
                head = file.read(_LONGEST_HEADER)
                if not self._at:
                    self._check_beginning(head)
                data = head + file.read()
        except FileNotFoundError:
            raise DataError(f"{self.path} has gone while it was watched. Check what removed it.") from None
        end = data.rfind(b"\n") + 1
        # No beginning of an object is one: what parses is whole, though its line break is still to come.
        whole = data[:end] if _parsed(data[end:]) is None else data
        self._at += len(whole)
        for number, line in enumerate(whole.split(b"\n")):
            self._line += number > 0
            if line.strip():
                self._take(line)
        return bool(whole.strip())

    def run(self) -> DynamicsRun:
        """Return what has been read so far.

        Returns
        -------
        DynamicsRun
        """
        import pandas as pd

        steps = [step for step, _, _ in self._reports]
        columns = list(dict.fromkeys(name for *_, metrics in self._reports for name in metrics))
        table = pd.DataFrame(
            [metrics for *_, metrics in self._reports],
            index=pd.Index(steps, name="step", dtype="int64"),
            columns=pd.Index(columns, dtype=object),
            dtype=float,
        )
        table.insert(0, "time", [time for _, time, _ in self._reports])
        torn = self.torn + (self._faulty is not None)
        # A loss that is null is not finite; one that was not handed over is not there.
        lost = bool(self._reports) and math.isnan(self._reports[-1][2].get("dyn/loss", 0.0))
        return DynamicsRun(self.path.name, tuple(self.headers), table.astype({"time": float}), torn, lost)

    def _check_beginning(self, head: bytes) -> None:
        """Refuse what can be no file of a Monitor before all of it is read."""
        endless = len(head) == _LONGEST_HEADER and b"\n" not in head
        if endless or not (head.lstrip() or b"{").startswith(b"{"):
            raise DataError(f"{self.path.name} is no text with one JSON object per line. {_REMEDY}")

    def _take(self, line: bytes) -> None:
        found = _parsed(line)
        if found is None and (at := line.rfind(b'{"lowdim"')) > 0:
            # The process died within a line, and the one that resumed wrote its header behind it.
            self.torn, found = self.torn + 1, _parsed(line[at:])
        if found is None:
            if not self.headers:
                raise self._fault("holds no JSON object")
            self._forgive(None)
            self._faulty = f"line {self._line} holds no JSON object"
            return
        if "lowdim" in found or not self.headers:
            self._check_header(found)
            self._forgive(found)
            self.headers.append(found)
            self._before += self._elapsed
            self._elapsed = 0.0
            return
        self._forgive(None)
        self._add(found)

    def _forgive(self, header: dict[str, Any] | None) -> None:
        """Let a line that is none stand at the end, or before the header of a resumed training."""
        if self._faulty is not None and header is None:
            raise DataError(f"{self.path.name}: {self._faulty}, expected a report. {_REMEDY}")
        self.torn += self._faulty is not None
        self._faulty = None

    def _check_header(self, found: Mapping[str, Any]) -> None:
        if found.get("lowdim") != "dynamics":
            got = f"lowdim = {found['lowdim']!r}" if "lowdim" in found else "other fields"
            raise self._fault(f"has {got}, expected the header of a watched training")
        if found.get("format") != FORMAT:
            raise DataError(
                f"{self.path.name} has format {found.get('format')!r}; this lowdim reads {FORMAT}. Use the "
                "lowdim that wrote it."
            )
        for name in _NUMBERS:
            if name in found and not (found[name] is None or _is_number(found[name])):
                raise self._fault(f"has {name} = {found[name]!r}, expected a number")
        for name in _TEXTS:
            if not isinstance(found.get(name), str | None):
                raise self._fault(f"has {name} = {found[name]!r}, expected text")
        probes = found.get("probes", [])
        if not isinstance(probes, list) or not all(isinstance(probe, str) for probe in probes):
            raise self._fault(f"has probes = {probes!r}, expected a list of names")

    def _add(self, found: Mapping[str, Any]) -> None:
        step, time, metrics = found.get("step"), found.get("time"), found.get("metrics")
        if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < 1 << 63:
            raise self._fault(f"has step = {step!r}, expected a whole number")
        if not isinstance(metrics, dict):
            raise self._fault(f"has metrics = {metrics!r}, expected an object")
        if time is not None and not _is_number(time):
            raise self._fault(f"has time = {time!r}, expected seconds")
        values = {}
        for name, value in metrics.items():
            if value is not None and not _is_number(value) and not isinstance(value, bool):
                raise self._fault(f"has {name} = {value!r}, expected a number or null")
            values[name] = _finite(value)
        elapsed = _finite(time)
        if elapsed == elapsed:
            self._elapsed = elapsed
        # Resumed at an earlier step: what was reported beyond it was trained again.
        while self._reports and self._reports[-1][0] >= step:
            self._reports.pop()
        self._reports.append((step, self._before + elapsed, values))

    def _fault(self, what: str) -> DataError:
        return DataError(f"{self.path.name}: line {self._line} {what}. {_REMEDY}")


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Return the object of a line, or None if it holds none."""
    try:
        found = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _finite(value: float | None) -> float:
    """Return a float; NaN for what is none, or none that a float can hold."""
    try:
        number = math.nan if value is None else float(value)
    except OverflowError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
