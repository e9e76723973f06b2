"""Labels: which row of a table of targets belongs to which file."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

import numpy as np

from lowdim.errors import DataError
from lowdim.regress.tables import plain_targets

if TYPE_CHECKING:
    import pandas

__all__ = ["targets_by_name"]


def targets_by_name(
    table: pandas.DataFrame,
    words: pandas.DataFrame,
    named: str | None,
    samples: tuple[str, ...],
    *,
    new: bool = False,
) -> np.ndarray | None:
    """Return the targets of files, which one column of the table names.

    That column names every file: as ``folder/1.png``, ``1.png``, ``folder/1`` or ``1``. If several do, the
    one with the fuller names is taken.

    Parameters
    ----------
    table : DataFrame
        One row per file, in any order.
    words : DataFrame
        The same, its cells as they are written: 001 is not 1.
    named : str or None
        Column of the targets; without one there are none.
    samples : tuple of str
        Names of the files.
    new : bool
        Whether targets may be missing, see `plain_targets`.

    Returns
    -------
    ndarray of shape (N,) or None

    Raises
    ------
    DataError
        If no column names all files, several do in different ways, or a file has several rows.
    """
    if named is None:
        return None
    forms = _forms(samples)
    columns = {name: _rows(words[name].tolist(), forms) for name in table.columns if name != named}
    columns = {name: rows for name, rows in columns.items() if any(each for each, _ in rows)}
    if not columns:
        raise DataError(
            f"regress: no column of the labels holds the names of the files, such as {samples[0]}. Add one."
        )
    full = {name: rows for name, rows in columns.items() if all(each for each, _ in rows)}
    if not full:
        best = max(columns, key=lambda name: sum(bool(each) for each, _ in columns[name]))
        absent = next(s for s, (each, _) in zip(samples, columns[best], strict=True) if not each)
        raise DataError(
            f"regress: the labels name no {absent} in column {best!r}. Add its row, or take the file out."
        )
    level = min(max(depth for _, depth in rows) for rows in full.values())
    best_ones = {name: rows for name, rows in full.items() if max(depth for _, depth in rows) == level}
    single = {
        name: tuple(each[0] for each, _ in rows)
        for name, rows in best_ones.items()
        if all(len(each) == 1 for each, _ in rows)
    }
    if not single:
        name, rows = next(iter(best_ones.items()))
        sample, (each, _) = next(pair for pair in zip(samples, rows, strict=True) if len(pair[1][0]) > 1)
        raise DataError(
            f"regress: the labels name {sample} in column {name!r} in {len(each)} rows "
            f"({', '.join(str(row + 1) for row in each[:3])}). Keep one row per file."
        )
    if len(set(single.values())) > 1:
        said = " and ".join(repr(name) for name in list(single)[:2])
        raise DataError(
            f"regress: columns {said} of the labels both name all files, in different rows. Write the full "
            f"names, such as {samples[0]}, in one of them."
        )
    chosen = list(next(iter(single.values())))
    return plain_targets(table[named].iloc[chosen].reset_index(drop=True), new=new, places=chosen)


def _forms(samples: tuple[str, ...]) -> list[list[str]]:
    """Return the ways to write every file, fuller ones first, without those that several files share."""
    each = []
    for sample in samples:
        path = PurePath(sample)
        stem = path.name
        for suffix in (".gz", PurePath(stem.removesuffix(".gz")).suffix):
            stem = stem.removesuffix(suffix)
        each.append(
            (path.as_posix(), path.name, (path.parent / stem).as_posix(), stem, path.name.split(".")[0])
        )
    owners: dict[str, set[int]] = {}
    for number, names in enumerate(each):
        for name in names:
            owners.setdefault(name, set()).add(number)
    return [[name if owners[name] == {number} else "" for name in names] for number, names in enumerate(each)]


def _rows(cells: list[str], forms: list[list[str]]) -> list[tuple[list[int], int]]:
    """Return the rows of every file, and the place of the form that the first of them has."""
    places: dict[str, list[int]] = {}
    for row, cell in enumerate(cells):
        places.setdefault(cell.strip(), []).append(row)
    found: list[tuple[list[int], int]] = []
    for names in forms:
        known = [(depth, name) for depth, name in enumerate(names) if name and name in places]
        rows = sorted({row for _, name in known for row in places[name]})
        found.append((rows, known[0][0] if known else 0))
    return found
