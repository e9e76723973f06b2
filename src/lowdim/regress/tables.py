"""Tables: samples and targets from CSV files and tables of pandas."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lowdim.errors import DataError, ShapeError

if TYPE_CHECKING:
    import pandas

__all__ = ["columns_of", "plain_targets", "read_table", "target_of", "targets_in_order"]

SEPARATORS = ",;\t"
TARGETS = ("y", "target", "label")
"""Names of a target that is found without being named."""

GENERAL = (*TARGETS, "folder")
"""Names of a target that do not tell what it is, so that others of these may stand for it."""


def read_table(path: Path, *, words: bool = False) -> pandas.DataFrame:
    """Read a table with column names, separated by commas, semicolons or tabs.

    Parameters
    ----------
    path : Path
    words : bool
        Whether all cells are kept as they are written: 001 is not 1, and NA is a word.

    Returns
    -------
    DataFrame

    Raises
    ------
    DataError
        If it is missing, damaged, or has no names.
    """
    import pandas

    if not path.exists():
        raise DataError(f"regress: there is no file {path}. Check the name.")
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            first = file.readline()
        separator = max(SEPARATORS, key=first.count)
        heads = next(csv.reader([first], delimiter=separator), [])
        if heads and all(map(_is_number, heads)):
            raise DataError(
                f"regress: {path.name} begins with numbers, expected a line of column names. Add one, so "
                "that the target can be named."
            )
        options: dict[str, Any] = {"dtype": str, "keep_default_na": False} if words else {}
        table = pandas.read_csv(
            path, sep=separator, float_precision="round_trip", encoding="utf-8-sig", **options
        )
    except DataError:
        raise
    except (OSError, ValueError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise DataError(
            f"regress: {path.name} cannot be read as a table ({said}). Give comma separated text in UTF-8, "
            "with one row per sample."
        ) from error
    table.columns = [str(name).strip() for name in table.columns]
    return table


def _target_column(table: pandas.DataFrame, target: str | None, name: str) -> str | None:
    if target is not None:
        if target not in table.columns:
            raise DataError(f"regress: {name} has no column {target!r}. Columns: {_listed(table.columns)}.")
        return target
    return next((column for column in table.columns if column.lower() in TARGETS), None)


def columns_of(
    table: pandas.DataFrame,
    name: str,
    target: str | None,
    features: Sequence[str] | None,
    *,
    new: bool = False,
) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...], tuple[str, ...], str]:
    """Return samples, targets, names of the samples and of the features, and what the target is called.

    Parameters
    ----------
    table : DataFrame
    name : str
        Of the table, for messages.
    target : str, optional
        Column to predict.
    features : sequence of str, optional
        Columns to use; then the target may be missing.
    new : bool
        Whether targets may be missing, see `plain_targets`.

    Returns
    -------
    X : ndarray of shape (N, p)
    y : ndarray of shape (N,) or None
    samples, features : tuple of str
    target : str

    Raises
    ------
    DataError
        If a column is unknown or holds no numbers.
    """
    import pandas

    named: str | None = None
    if target in table.columns or (features is None and not new):
        named = _target_column(table, target, name)
    elif not new or target is None or target.lower() in GENERAL:  # tables to predict from may lack it
        named = _target_column(table, None, name)
    chosen = list(features) if features is not None else [c for c in table.columns if c != named]
    missing = [column for column in chosen if column not in table.columns]
    if missing:
        raise DataError(f"regress: {name} has no column {missing[0]!r}. Columns: {_listed(table.columns)}.")
    samples: tuple[str, ...] = ()
    numeric = {c for c in table.columns if pandas.api.types.is_numeric_dtype(table[c])}
    if features is None and chosen and chosen[0] not in numeric:
        samples = tuple(map(str, table[chosen.pop(0)]))  # a first column of names
    elif features is not None:
        others = [c for c in table.columns if c not in numeric and c not in chosen and c != named]
        samples = tuple(map(str, table[others[0]])) if others else ()
    for column in chosen:
        if column not in numeric:
            raise DataError(
                f"regress: column {column!r} of {name} holds {str(table[column].iloc[0])[:30]!r}, expected "
                f"numbers. If it is the target, say --target {column!r}; else take it out."
            )
    if not chosen or not len(table):
        raise DataError(f"regress: {name} holds no numbers beside the target. Give one column per feature.")
    y = None if named is None else plain_targets(table[named], new=new)
    X = table[chosen].to_numpy(dtype=np.float64, na_value=np.nan)
    return X, y, samples, tuple(chosen), named or "y"


def plain_targets(
    column: pandas.Series, *, new: bool = False, places: Sequence[int] | None = None
) -> np.ndarray | None:
    """Return a column of targets.

    Parameters
    ----------
    column : Series
    new : bool
        Whether targets may be missing: then they are NaN or None, and None is returned if all are. Else
        missing ones are refused.
    places : sequence of int, optional
        Rows of the file, for messages.

    Returns
    -------
    ndarray or None

    Raises
    ------
    DataError
        If a target is missing that must not be.
    """
    missing = column.isna().to_numpy()
    if missing.any() and not new:
        row = int(np.flatnonzero(missing)[0])
        row = row if places is None else places[row]
        raise DataError(f"regress: the target {column.name!r} is missing in row {row + 1}. Drop the row.")
    if len(missing) and missing.all():
        return None
    values = column.to_numpy()
    if values.dtype.kind in "fiub":
        return values
    if missing.any():
        return np.array([None if gone else str(v) for v, gone in zip(values, missing, strict=True)], object)
    return values.astype(str)


def targets_in_order(
    table: pandas.DataFrame | None, target: str | None, N: int, *, new: bool = False
) -> np.ndarray | None:
    """Return the targets of a table with one row per sample."""
    if table is None:
        return None
    if len(table) != N:
        raise ShapeError(
            f"regress: the labels have {len(table)} rows for {N} samples. Give one row per sample."
        )
    named = target_of(table, target, new=new)
    return None if named is None else plain_targets(table[named], new=new)


def target_of(table: pandas.DataFrame | None, target: str | None, *, new: bool = False) -> str | None:
    """Return the name of the target column: as named, "y" or the like, or the last one.

    Of `new` samples the column need not be there: if it has a name of its own, no other is taken for it.
    """
    if table is None:
        return target or "y"
    if new and target is not None and target not in table.columns:
        if target.lower() not in GENERAL:
            return None
        target = None
    return _target_column(table, target, "the table of labels") or str(table.columns[-1])


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def _is_number(text: Any) -> bool:
    try:
        float(text)
    except (TypeError, ValueError):
        return False
    return True
