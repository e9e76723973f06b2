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


def read_table(path: Path) -> pandas.DataFrame:
    """Read a table with column names, separated by commas, semicolons or tabs.

    Parameters
    ----------
    path : Path

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
        table = pandas.read_csv(path, sep=separator, float_precision="round_trip", encoding="utf-8-sig")
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
    table: pandas.DataFrame, name: str, target: str | None, features: Sequence[str] | None
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

    if features is not None and target not in table.columns:
        target = None  # tables to predict from may lack it
    named = _target_column(table, target, name)
    chosen = list(features) if features is not None else [c for c in table.columns if c != named]
    missing = [column for column in chosen if column not in table.columns]
    if missing:
        raise DataError(f"regress: {name} has no column {missing[0]!r}. Columns: {_listed(table.columns)}.")
    samples: tuple[str, ...] = ()
    if features is None and chosen and not pandas.api.types.is_numeric_dtype(table[chosen[0]]):
        samples = tuple(map(str, table[chosen.pop(0)]))  # a first column of names
    for column in chosen:
        if not pandas.api.types.is_numeric_dtype(table[column]):
            raise DataError(
                f"regress: column {column!r} of {name} holds {str(table[column].iloc[0])[:30]!r}, expected "
                f"numbers. If it is the target, say --target {column!r}; else take it out."
            )
    if not chosen or not len(table):
        raise DataError(f"regress: {name} holds no numbers beside the target. Give one column per feature.")
    y = None if named is None else plain_targets(table[named])
    X = table[chosen].to_numpy(dtype=np.float64, na_value=np.nan)
    return X, y, samples, tuple(chosen), named or "y"


def plain_targets(column: pandas.Series) -> np.ndarray:
    """Return a column of targets; missing ones are refused."""
    if column.isna().any():
        row = int(np.flatnonzero(column.isna())[0])
        raise DataError(f"regress: the target {column.name!r} is missing in row {row + 1}. Drop the row.")
    values = column.to_numpy()
    return values.astype(str) if values.dtype.kind not in "fiub" else values


def targets_in_order(table: pandas.DataFrame | None, target: str | None, N: int) -> np.ndarray | None:
    """Return the targets of a table with one row per sample."""
    if table is None:
        return None
    if len(table) != N:
        raise ShapeError(
            f"regress: the labels have {len(table)} rows for {N} samples. Give one row per sample."
        )
    return plain_targets(table[target_of(table, target)])


def target_of(table: pandas.DataFrame | None, target: str | None) -> str:
    """Return the name of the target column: as named, "y" or the like, or the last one."""
    if table is None:
        return target or "y"
    return _target_column(table, target, "the table of labels") or str(table.columns[-1])


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def _is_number(text: Any) -> bool:
    try:
        float(text)
    except (TypeError, ValueError):
        return False
    return True
