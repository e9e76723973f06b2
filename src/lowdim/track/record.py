"""Record: what report.json says of a result, small enough for a page and without NaN."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from lowdim.runs import plain
from lowdim.track.choose import Comparison

__all__ = [
    "comparison_of",
    "comparison_record",
    "panel_record",
    "pictures_record",
    "thinned",
    "time_labels",
]

CELLS = 160
"""Rows and columns of the panel that are shown."""

PIXELS = 80
"""Rows and columns of a shown image."""

PICTURES = 4
"""Images that are shown."""


def comparison_record(found: Comparison) -> dict[str, Any]:
    """Return a comparison, JSON-ready; `comparison_of` reads it."""
    return plain(
        {
            "table": found.table.to_dict("records"),
            "best": found.best,
            "moving": bool(found.moving),
            "gain": found.gain,
            "held_out": found.held_out,
            "sentence": found.sentence(),
        }
    )


def comparison_of(record: dict[str, Any]) -> Comparison:
    """Return the comparison of a record."""
    low = [math.nan if value is None else value for value in record["gain"]]
    return Comparison(
        pd.DataFrame(record["table"]),
        record["best"],
        record["moving"],
        (low[0], low[1], low[2]),
        record["held_out"],
    )


def thinned(count: int, most: int) -> np.ndarray:
    """Return at most so many evenly spaced places of a sequence, with its ends.

    Parameters
    ----------
    count, most : int
        Length of the sequence, and of the result.

    Returns
    -------
    ndarray of int

    Examples
    --------
    >>> thinned(10, 4).tolist()
    [0, 3, 6, 9]
    """
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def time_labels(times: np.ndarray | None, rows: np.ndarray) -> list[Any]:
    """Return the times of some rows as people read them: dates as text, numbers, or places."""
    if times is None:
        return rows.tolist()
    chosen = np.asarray(times)[rows]
    if chosen.dtype.kind != "M":
        return plain(chosen)
    days = (chosen == chosen.astype("datetime64[D]")).all()
    return [str(moment) for moment in chosen.astype("datetime64[D]" if days else "datetime64[s]")]


def panel_record(
    imputed: np.ndarray, seen: np.ndarray, order: np.ndarray, times: np.ndarray | None, names: tuple[str, ...]
) -> dict[str, Any]:
    """Return rows and columns of a panel, picked evenly.

    Parameters
    ----------
    imputed : ndarray of shape (T, d)
    seen : ndarray of bool of shape (T, d)
    order : ndarray of int of shape (T,)
        Rows in the order of time.
    times : ndarray of shape (T,) or None
    names : tuple of str
        Of the columns; empty for numbers.

    Returns
    -------
    dict
        ``values`` (list of rows), ``seen`` (a string of 0 and 1 per row), ``times``, ``names``.
    """
    rows, columns = order[thinned(len(order), CELLS)], thinned(imputed.shape[1], CELLS)
    return {
        "values": _rounded(imputed[np.ix_(rows, columns)]),
        "seen": _marks(seen[np.ix_(rows, columns)]),
        "times": time_labels(times, rows),
        "names": [names[column] if names else str(column) for column in columns],
    }


def pictures_record(
    imputed: np.ndarray,
    seen: np.ndarray,
    order: np.ndarray,
    times: np.ndarray | None,
    shape: tuple[int, ...],
) -> list[dict[str, Any]]:
    """Return some images of a stack, made small: those with gaps, where there are gaps.

    Parameters
    ----------
    imputed : ndarray of shape (T, height * width)
    seen : ndarray of bool of shape (T, height * width)
    order : ndarray of int of shape (T,)
        Frames in the order of time.
    times : ndarray of shape (T,) or None
    shape : tuple of int
        (T, height, width).

    Returns
    -------
    list of dict
        ``values``, ``seen`` and ``time`` of every image.
    """
    gaps = order[~seen[order].all(1)]
    offered = gaps if len(gaps) else order
    corner = np.ix_(thinned(shape[1], PIXELS), thinned(shape[2], PIXELS))
    return [
        {
            "values": _rounded(imputed[frame].reshape(shape[1:])[corner]),
            "seen": _marks(seen[frame].reshape(shape[1:])[corner]),
            "time": time_labels(times, np.array([frame]))[0],
        }
        for frame in offered[thinned(len(offered), PICTURES)]
    ]


def _rounded(values: np.ndarray) -> list[list[float | None]]:
    """Return numbers with four digits (of complex ones the magnitude): a color shows no more."""
    values = np.abs(values) if np.iscomplexobj(values) else values
    return [
        [float(f"{value:.4g}") if math.isfinite(value) else None for value in row] for row in values.tolist()
    ]


def _marks(seen: np.ndarray) -> list[str]:
    return ["".join("1" if here else "0" for here in row) for row in seen.tolist()]
