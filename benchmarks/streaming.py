"""Streaming trackers: microseconds per column."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.harness import Options, Row, Table
from lowdim.track import Grasta, Grouse, Petrels, WindowSubspace

NAME = "streaming"
DESCRIPTION = (
    "A stream of columns with d = 100, k = 3, float64, one stream, through `partial_fit`. Median and "
    "quartiles"
    " over repetitions. There is no peer on the registries that takes missing entries."
)
LIMIT = 50.0
TRACKERS: dict[str, Callable[..., Any]] = {
    "Grouse": Grouse,
    "Petrels": Petrels,
    "Grasta": Grasta,
    "WindowSubspace": WindowSubspace,
}


def run(options: Options) -> Table:
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(100, 3)))[0]
    columns = rng.normal(size=(2000, 3)) @ basis.T + 0.02 * rng.normal(size=(2000, 100))
    rows = []
    for missing in (0.0, 0.5):
        X = np.where(rng.random(columns.shape) < missing, np.nan, columns)
        for name, tracker in TRACKERS.items():
            part = X[:100] if name == "WindowSubspace" else X
            spent = [_seconds(tracker, part) for _ in range(options.repeats(9))]
            low, middle, high = np.quantile(np.array(spent) * 1e6 / len(part), [0.25, 0.5, 0.75])
            limited = name in ("Grouse", "Petrels")
            rows.append(
                Row(
                    case=f"{name}, {missing:.0%} missing",
                    cells={"us per column": f"{middle:.1f} ({low:.1f}-{high:.1f})"},
                    figures={"us": [low, middle, high]},
                    met=bool(middle <= LIMIT) if limited else None,
                )
            )
    return Table(NAME, DESCRIPTION, tuple(rows), (f"Limit of Grouse and Petrels: {LIMIT:g} us.",))


def _seconds(tracker: Callable[..., Any], X: np.ndarray) -> float:
    model = tracker(3, random_state=0)
    start = time.perf_counter()
    model.partial_fit(X)
    return time.perf_counter() - start
