"""Rows of prompts from files, Hub data sets and lists."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lowdim.errors import DataError, MissingExtra

__all__ = ["library", "rows_of"]

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


def library() -> Any:
    """Return the package datasets, or say which extra brings it."""
    try:
        import datasets
    except ImportError:
        raise MissingExtra("datasets", extra="transformers", purpose="hold prompts") from None
    return datasets


def rows_of(
    source: Any, *, split: str | None = None, limit: int | None = None
) -> tuple[list[dict[str, Any]], str]:
    """Return the rows of any source as dictionaries, and its name.

    Parameters
    ----------
    source : str, Path, datasets.Dataset, sequence of mappings or of str
        As in `read_prompts`.
    split : str, optional
        Of a Hub data set; "train" by default.
    limit : int, optional
        The first so many rows only.

    Returns
    -------
    rows : list of dict
    name : str
        Without folders.

    Raises
    ------
    DataError
        If the source cannot be read.

    Examples
    --------
    >>> rows_of(["2 + 3?"])
    ([{'prompt': '2 + 3?'}], 'list')
    """
    if isinstance(source, (str, Path)):
        path = Path(source)
        if path.is_file():
            return _read_file(path)[:limit], path.name
        if path.suffix.lower() in SUFFIXES or path.exists():
            raise DataError(f"read_prompts: there is no file {path}. Give one of {', '.join(SUFFIXES)}.")
        return _read_hub(str(source), split or "train", limit), str(source)
    if hasattr(source, "column_names") and hasattr(source, "select"):
        return [dict(row) for row in source.select(range(min(len(source), limit or len(source))))], "data set"
    if not isinstance(source, Iterable):
        raise DataError(
            f"read_prompts: got {type(source).__name__}, expected a file, the name of a Hub data set, a "
            "datasets.Dataset or a list of rows."
        )
    rows = []
    for number, row in enumerate(source, start=1):
        if not isinstance(row, (str, Mapping)):
            raise DataError(
                f"read_prompts: row {number} is {type(row).__name__}, expected a text or a dictionary with a "
                "prompt."
            )
        rows.append({"prompt": row} if isinstance(row, str) else dict(row))
        if limit is not None and len(rows) == limit:
            break
    return rows, "list"


def _read_file(path: Path) -> list[dict[str, Any]]:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"read_prompts: {path.name} is not a format read here. Use {', '.join(SUFFIXES)}.")
    try:
        if suffix in (".csv", ".parquet"):
            return _read_table(path, suffix)
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"read_prompts: {path.name} is not UTF-8 text (byte {error.start}). Save it as UTF-8."
        ) from None
    if suffix == ".json":
        return _objects([(1, text)], path.name, whole=True)
    return _objects(
        [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()], path.name
    )


def _read_table(path: Path, suffix: str) -> list[dict[str, Any]]:
    import pandas as pd

    try:
        # Text as it stands: "007" and "1,234" are answers, "NA" is a word.
        frame = (
            pd.read_csv(path, dtype=str, keep_default_na=False) if suffix == ".csv" else pd.read_parquet(path)
        )
    except UnicodeDecodeError:
        raise
    except ImportError:
        raise MissingExtra("pyarrow", extra="compress", purpose=f"read {path.name}") from None
    except Exception as error:  # pandas hands on what its engines raise
        raise DataError(f"read_prompts: {path.name} cannot be read ({error}).") from error
    return [{key: _of_array(value) for key, value in row.items()} for row in frame.to_dict("records")]


def _of_array(value: Any) -> Any:
    return [_of_array(entry) for entry in value] if isinstance(value, np.ndarray) else value


def _objects(texts: list[tuple[int, str]], name: str, *, whole: bool = False) -> list[dict[str, Any]]:
    rows: list[Any] = []
    for number, text in texts:
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"read_prompts: line {number} of {name} is not JSON ({error}).") from None
        rows += found if whole and isinstance(found, list) else [found]
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(
                f"read_prompts: row {number} of {name} is {type(row).__name__}, expected an object with a "
                "prompt."
            )
    return rows


def _read_hub(name: str, split: str, limit: int | None) -> list[dict[str, Any]]:
    identity, _, configuration = name.partition("@")
    try:
        loaded = library().load_dataset(identity, configuration or None, split=split)
    except Exception as error:  # the loader raises what its transport raises: one answer for all
        raise DataError(
            f"read_prompts: {name!r} is neither a file here nor a Hub data set with a split {split!r} that "
            f"can be reached ({type(error).__name__}: {error}). Check the name, the split (split=) and the "
            "network."
        ) from error
    return [dict(row) for row in loaded.select(range(min(len(loaded), limit or len(loaded))))]
