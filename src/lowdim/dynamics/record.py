"""What report.json says of a watched training: findings, series and layers, thinned to what a page shows."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from lowdim.dynamics.findings import findings
from lowdim.dynamics.runfile import DynamicsRun
from lowdim.dynamics.standing import crossing, flip, state
from lowdim.runs import plain, versions

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["record"]

SERIES = (
    *("loss", "lr", "sharpness", "sharpness_raw", "sharpness_ratio", "threshold"),
    *(
        "sharpness_residual",
        "lowest_curvature",
        "alternation",
        "edge",
        "period",
        "osc_rank",
        "hvps",
        "seconds",
    ),
)
FAMILIES = ("erank", "srank", "erank_grad", "erank_update", "drift_deg", "balance_gap")
POINTS, COLUMNS = 3000, 240
"""At most so many reports in a line, and in a map of layers over time."""


def record(run: DynamicsRun) -> dict[str, Any]:
    """Return the contents of report.json.

    Parameters
    ----------
    run : DynamicsRun

    Returns
    -------
    dict
        JSON-ready. ``series`` holds values by name over ``series["step"]``; ``families`` values of layers
        over steps, a row for each layer; ``layers`` one row per layer with first and last values. What was
        never measured is left out; None stands where a report lacks a value.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"time": [1.0, 2.0], "dyn/loss": [0.5, 0.25]}, index=[100, 200])
    >>> record(DynamicsRun("run.jsonl", ({"optimizer": "SGD"},), table))["series"]["loss"]
    [0.5, 0.25]
    """
    told = findings(run)
    return plain(
        {
            "system": "dynamics",
            "format": 1,
            "source": run.name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "headers": [dict(header) for header in run.headers],
            "reports": len(run.table),
            "torn": run.torn,
            "state": vars(state(run)),
            "findings": [vars(finding) for finding in told],
            "crossing": crossing(run),
            "flip": flip(run),
            "last": _newest(run),
            "series": _series(run),
            "families": {
                name: _family(run, name) for name in FAMILIES if len(run.family(f"dyn/{name}").columns)
            },
            "layers": _layers(run),
            "versions": versions(),
        }
    )


def _newest(run: DynamicsRun) -> dict[str, Any]:
    """Return the newest value of each metric of the whole model, with its step."""
    found = {name: run.series(f"dyn/{name}") for name in SERIES}
    return {
        name: {"value": float(values.iloc[-1]), "step": int(values.index[-1])}
        for name, values in found.items()
        if len(values)
    }


def _series(run: DynamicsRun) -> dict[str, list[Any]]:
    table = run.table.iloc[_evenly(len(run.table), POINTS)]
    found: dict[str, list[Any]] = {"step": table.index.tolist(), "time": _digits(table["time"], 6)}
    for name in SERIES:
        if f"dyn/{name}" in table.columns and run.table[f"dyn/{name}"].notna().any():
            found[name] = _digits(table[f"dyn/{name}"], 6)
    return found


def _family(run: DynamicsRun, name: str) -> dict[str, Any]:
    values = run.family(f"dyn/{name}").dropna(how="all")
    values = values.iloc[_evenly(len(values), COLUMNS)]
    return {
        "names": [str(column) for column in values.columns],
        "steps": values.index.tolist(),
        "values": [_digits(values[column], 4) for column in values.columns],
    }


def _layers(run: DynamicsRun) -> list[dict[str, Any]]:
    """Return one row per parameter: ranks at the first and the last report, and how far it has turned."""
    rows: dict[str, dict[str, Any]] = {}
    for name in ("erank", "srank", "drift_deg"):
        family = run.family(f"dyn/{name}")
        for layer in family.columns:
            values = family[layer].dropna()
            row = rows.setdefault(str(layer), {"layer": str(layer)})
            if name != "drift_deg":
                row[f"{name}_first"] = float(values.iloc[0])
            row[f"{name}_last"] = float(values.iloc[-1])
    return list(rows.values())


def _evenly(count: int, most: int) -> np.ndarray:
    """Return places in a table, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def _digits(values: pd.Series, digits: int) -> list[float | None]:
    return [float(f"{value:.{digits}g}") if value == value else None for value in values.tolist()]
