"""Interleaved timing, ratios with spread, tables and machine description."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lowdim.claims.machine import describe
from lowdim.runs import atomic_json, atomic_write

__all__ = ["Options", "Ratio", "Row", "Skipped", "Table", "Timing", "curve", "interleave", "ratio", "write"]

#: One measured sample is the median of as many calls as fit into this many seconds.
SAMPLE_SECONDS = 0.05


class Skipped(Exception):
    """A benchmark (or a peer) cannot run here; the text is the reason shown in the table."""


@dataclass(frozen=True)
class Options:
    """What the command line asks of every benchmark."""

    quick: bool = False

    def repeats(self, full: int) -> int:
        """Return the repetitions to take: `full`, or a third of it (at least 3) for --quick."""
        return max(3, full // 3) if self.quick else full


@dataclass(frozen=True)
class Timing:
    """Seconds per call, one entry per repetition."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Ratio:
    """How many times faster ours is than another: median over the paired repetitions, and quartiles."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


def interleave(calls: Mapping[str, Callable[[], Any]], *, repeats: int) -> dict[str, Timing]:
    """Time callables in turn, repetition by repetition, so that a slow minute hits all of them alike.

    The order alternates between forward and backward, and every callable is
    called often enough per repetition that the clock's grain does not matter.

    Parameters
    ----------
    calls : mapping of str to callable
        What to time. Each is called once before, to warm up.
    repeats : int
        Number of repetitions.

    Returns
    -------
    dict of str to Timing
        Seconds per call.
    """
    names = list(calls)
    number = {}
    for name in names:
        calls[name]()
        number[name] = max(1, int(SAMPLE_SECONDS / max(_seconds(calls[name]), 1e-9)))
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repetition in range(repeats):
        for name in names if repetition % 2 == 0 else reversed(names):
            # The median call of the sample: a call in which the machine looked elsewhere does not count.
            seconds[name].append(statistics.median(_seconds(calls[name]) for _ in range(number[name])))
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def ratio(ours: Timing, *, other: Timing) -> Ratio:
    """Return how many times faster ours is, pairing the repetitions.

    Parameters
    ----------
    ours, other : Timing
        From one call of :func:`interleave`.

    Returns
    -------
    Ratio
        Above 1 when ours is faster.
    """
    pairs = [slow / fast for fast, slow in zip(ours.seconds, other.seconds, strict=True)]
    if len(pairs) < 2:
        return Ratio(pairs[0], pairs[0], pairs[0])
    low, _, high = statistics.quantiles(pairs, n=4, method="inclusive")
    return Ratio(statistics.median(pairs), low, high)


@dataclass(frozen=True)
class Row:
    """One line of a benchmark: a case, its cells, and whether the thresholds on it are met.

    Parameters
    ----------
    case : str
        What was timed.
    cells : dict of str to str or None
        Column to text; None is shown as a dash.
    figures : dict
        JSON-ready numbers behind the cells.
    met : bool, optional
        Whether the thresholds hold; None where there is none.
    """

    case: str
    cells: dict[str, str | None]
    figures: dict[str, Any] = field(default_factory=dict)
    met: bool | None = None


@dataclass(frozen=True)
class Table:
    """What a benchmark measured.

    Parameters
    ----------
    name, description : str
        Of the benchmark.
    rows : tuple of Row
        Its lines.
    notes : tuple of str
        Thresholds, peers that were skipped and why.
    skipped : str
        Why nothing was measured, or empty.
    seconds : float
        Wall-clock time of the benchmark.
    quick : bool
        Whether fewer repetitions were taken.
    machine : dict
        Where.
    """

    name: str
    description: str
    rows: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()
    skipped: str = ""
    seconds: float = 0.0
    quick: bool = False
    machine: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool:
        return all(row.met is not False for row in self.rows)

    def markdown(self) -> str:
        """Return the table as a Markdown page."""
        lines = [f"# {self.name}", "", self.description, ""]
        if self.skipped:
            lines += [f"Skipped: {self.skipped}.", ""]
        if self.rows:
            columns = list(dict.fromkeys(column for row in self.rows for column in row.cells))
            judged = any(row.met is not None for row in self.rows)
            head = ["case", *columns, *(["thresholds"] if judged else [])]
            lines += [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
            for row in self.rows:
                verdict = {True: "met", False: "**short**", None: "-"}[row.met]
                cells = [row.case, *(row.cells.get(column) or "-" for column in columns)]
                lines.append(f"| {' | '.join([*cells, *([verdict] if judged else [])])} |")
            lines.append("")
        lines += [f"- {note}" for note in self.notes]
        quick = " Quick run: few repetitions." if self.quick else ""
        lines += ["", f"Measured in {self.seconds:.0f} s.{quick} {describe(self.machine)}.", ""]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the table as a JSON-ready dictionary."""
        return {**asdict(self), "met": self.met}


def write(table: Table, *, folder: Path) -> None:
    """Write ``<name>.json`` and ``<name>.md`` into a folder.

    Parameters
    ----------
    table : Table
        What was measured.
    folder : Path
        Created if need be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    document = json.loads(json.dumps(table.to_dict()))
    atomic_json(folder / f"{table.name}.json", document)
    atomic_write(folder / f"{table.name}.md", table.markdown())


def curve(case: str, sizes: Sequence[int], prepare: Callable[[int], Callable[[], Any]]) -> Row:
    """Time a call over growing sizes, and fit the exponent of its growth.

    Parameters
    ----------
    case : str
        What grows.
    sizes : sequence of int
        At least two.
    prepare : callable
        Given a size, returns the call to time.

    Returns
    -------
    Row
        With figures ``sizes``, ``seconds`` and ``exponent``.
    """
    seconds = []
    for size in sizes:
        call = prepare(size)
        seconds.append(min(_seconds(call) for _ in range(3)))
    exponent = statistics.linear_regression(
        [math.log(x) for x in sizes], [math.log(y) for y in seconds]
    ).slope
    shown = ", ".join(f"{size:,}: {1e3 * spent:.3g}" for size, spent in zip(sizes, seconds, strict=True))
    return Row(
        case,
        {"ms": shown, "exponent": f"{exponent:.2f}"},
        {"sizes": list(sizes), "seconds": seconds, "exponent": exponent},
    )
