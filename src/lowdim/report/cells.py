"""Cells of a table: what they show, what they sort by, how long their bar is."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lowdim.report.wording import by

__all__ = ["Cell", "Format", "Head", "cell", "shown", "top"]

Format = str | Callable[[Any], str]
"""How a value is written: a format string or a function."""


class Head:
    """A column's heading.

    Parameters
    ----------
    name : str
        The column, and what the heading says.
    records : sequence of mapping
        All rows, to see whether the column holds numbers only.
    """

    def __init__(self, name: str, records: Sequence[Mapping[str, Any]]) -> None:
        given = [row[name] for row in records if not _absent(row.get(name))]
        self.name = name
        self.numeric = bool(given) and all(_is_number(value) for value in given)


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Parameters
    ----------
    shown : str
        What is read.
    key : str
        What it sorts by; empty cells stay last.
    bar : float, optional
        Length of the bar behind the number, in percent.
    long : bool
        Whether the text may wrap.
    """

    shown: str
    key: str
    bar: float | None = None
    long: bool = False


def cell(value: Any, form: Format | None, longest: float | None) -> Cell:
    """Return the cell of a value.

    Parameters
    ----------
    value : object
        None and NaN give an empty cell.
    form : str or callable, optional
        How it is written.
    longest : float, optional
        The value whose bar is full; None draws no bar.

    Returns
    -------
    Cell
    """
    if _absent(value):
        return Cell("", "")
    key = repr(float(value)) if _is_number(value) else shown(value, None)
    bar = None
    if longest and _is_number(value) and math.isfinite(value):
        bar = 100.0 * float(value) / longest
    text = shown(value, form)
    return Cell(text, key, bar, long=len(text) > 48 and " " in text)


def shown(value: Any, form: Format | None) -> str:
    """Return a value as text.

    Parameters
    ----------
    value : object
    form : str or callable, optional
        By default numbers get four digits, and lists are written as sizes.

    Returns
    -------
    str

    Examples
    --------
    >>> shown(0.123456, None), shown(0.5, "{:.0%}"), shown(7, None)
    ('0.1235', '50%', '7')
    """
    if callable(form):
        return form(value)
    if form is not None:
        return form.format(value)
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral):
        return f"{float(value):.4g}"
    return by(value) if isinstance(value, list | tuple) else str(value)


def top(records: Sequence[Mapping[str, Any]], name: str) -> float:
    """Return the largest finite number of a column, or 0.

    Parameters
    ----------
    records : sequence of mapping
    name : str

    Returns
    -------
    float
    """
    given = [float(row[name]) for row in records if _is_number(row.get(name)) and math.isfinite(row[name])]
    return max(given, default=0.0)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, numbers.Real) and math.isnan(value))
