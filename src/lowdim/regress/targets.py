"""Targets: whether they are numbers or classes, and that they can be learned."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from lowdim.errors import DataError

__all__ = ["targets_of"]

FEW = 10
"""Whole numbers of at most so many values are classes, unless the task is named."""


def targets_of(
    y: np.ndarray | None, samples: Sequence[str], *, task: str, name: str
) -> tuple[np.ndarray, bool]:
    """Return targets as float64, or labels of one kind, and whether they are labels.

    Parameters
    ----------
    y : ndarray of shape (N,) or None
    samples : sequence of str
        Their names.
    task : {"auto", "regression", "classification"}
    name : str
        Of the source, for messages.

    Returns
    -------
    y : ndarray of shape (N,)
    classifier : bool

    Raises
    ------
    DataError
        If there are none, one is missing, or all are equal.

    Examples
    --------
    >>> targets_of(np.array(["a", "b"], dtype=object), ("1", "2"), task="auto", name="pets")
    (array(['a', 'b'], dtype='<U1'), True)
    """
    if y is None:
        raise DataError(
            f"regress: {name} has no targets. Name their column or array with target=..., or a table with "
            "labels=..., or keep one folder per class."
        )
    missing = pd.isna(y)
    if missing.any():
        first = samples[int(np.flatnonzero(missing)[0])]
        raise DataError(
            f"regress: some targets of {name} are missing or infinite, the first of sample {first}. Drop "
            "these samples."
        )
    y = _one_kind(y, name) if y.dtype.kind == "O" else y
    kind = y.dtype.kind
    if task == "auto":
        classifier = kind not in "fiu" or (kind in "iu" and len(np.unique(y)) <= FEW)
    else:
        classifier = task == "classification"
    if not classifier:
        return _numbers(y, name), False
    if kind == "f" and (y != np.floor(y)).any():
        raise DataError(
            f"regress: targets of {name} hold {y[y != np.floor(y)][0]:g}, which is no class. Write classes "
            "as words or whole numbers, or use task='regression'."
        )
    if len(np.unique(y)) < 2:
        raise DataError(
            f"regress: all targets of {name} are {y.tolist()[0]!r}. Classification needs two or more classes."
        )
    return y, True


def _one_kind(y: np.ndarray, name: str) -> np.ndarray:
    """Return an array of Python objects as numbers, truth values or words."""
    values = y.tolist()
    words = [isinstance(value, str) for value in values]
    if any(words) != all(words):
        other = values[words.index(False)]
        raise DataError(
            f"regress: targets of {name} hold words and {type(other).__name__} ({other!r}), expected one "
            "kind. Write all as words, or all as numbers."
        )
    try:
        plain = np.array(values)
    except ValueError:
        plain = y
    if plain.dtype.kind not in "fiubU" or plain.shape != y.shape:
        raise DataError(
            f"regress: targets of {name} hold {type(values[0]).__name__}, expected numbers or words. Give "
            "one number or label per sample."
        )
    return plain


def _numbers(y: np.ndarray, name: str) -> np.ndarray:
    try:
        found = y.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"regress: targets of {name} are no numbers ({error}). Use task='classification'."
        ) from error
    if not np.isfinite(found).all():
        raise DataError(f"regress: some targets of {name} are missing or infinite. Drop these samples.")
    if found.std() == 0:
        raise DataError(f"regress: all targets of {name} are {found[0]:g}: there is nothing to predict.")
    return found
