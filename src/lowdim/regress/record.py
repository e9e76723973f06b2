"""Record: what report.json says of a result, small enough for a page and without NaN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lowdim.regress.assess import Assessment
from lowdim.runs import plain

__all__ = ["assessment_record", "maps_record", "sentence_of", "table_notes"]

PIXELS = 96
"""Rows and columns of a coefficient map that are shown."""

POINTS = 400
"""Predictions that are shown."""

MAPS = 6
"""Maps that are shown."""


def maps_record(coef: np.ndarray, shape: tuple[int, ...], names: list[str]) -> list[dict[str, Any]]:
    """Return pictures of coefficients.

    Parameters
    ----------
    coef : ndarray of shape (n1, ..., nd) or (K, n1, ..., nd)
        For vectors, those with the largest magnitudes are taken.
    shape : tuple of int
        (n1, ..., nd).
    names : list of str
        Of the K classes or targets; of vectors the features.

    Returns
    -------
    list of dict
        ``title``, ``values`` (rows), ``axes`` (names of rows and columns).

    Examples
    --------
    >>> [each["title"] for each in maps_record(np.ones((4, 3, 2)), (4, 3, 2), [])]
    ['slice 0 of mode 1', 'slice 0 of mode 2', 'slice 0 of mode 3']
    """
    each = coef.reshape(-1, *shape)
    found: list[dict[str, Any]] = []
    for number, W in enumerate(each):
        label = names[number] if len(each) > 1 and number < len(names) else ""
        for title, picture, axes in _pictures(W):
            words = ": ".join(word for word in (label, title) if word) or "coefficients"
            found.append({"title": words, "values": _rounded(_thin(picture)), "axes": axes})
    return found[:MAPS]


def _pictures(W: np.ndarray) -> list[tuple[str, np.ndarray, list[str]]]:
    """Return titles, pictures and names of their axes: of a volume the strongest slice along every mode."""
    if W.ndim == 1:
        return [("", W[None], ["", "feature"])]
    if W.ndim == 2:
        return [("", W, ["mode 1", "mode 2"])]
    if W.ndim > 3:
        # That with the largest coefficient, over the last two modes.
        at = np.unravel_index(np.abs(W).argmax(), W.shape)[:-2]
        return [(f"slice {', '.join(map(str, at))}", W[at], [f"mode {W.ndim - 1}", f"mode {W.ndim}"])]
    found = []
    for mode in range(3):
        moved = np.moveaxis(W, mode, 0)
        place = int(np.square(moved.reshape(len(moved), -1)).sum(1).argmax())
        axes = [f"mode {k + 1}" for k in range(3) if k != mode]
        found.append((f"slice {place} of mode {mode + 1}", moved[place], axes))
    return found


def _thin(picture: np.ndarray) -> np.ndarray:
    places = [np.unique(np.linspace(0, n - 1, min(n, PIXELS)).round().astype(int)) for n in picture.shape]
    return picture[np.ix_(*places)]


def _rounded(picture: np.ndarray) -> list[list[float]]:
    """Return numbers with four digits: a color shows no more."""
    return [[float(f"{value:.4g}") for value in row] for row in picture.tolist()]


def assessment_record(found: Assessment, classes: list[Any] | None) -> dict[str, Any]:
    """Return how held-out samples were predicted, JSON-ready.

    Parameters
    ----------
    found : Assessment
    classes : list or None
        Labels of a classifier.

    Returns
    -------
    dict
        ``score``, ``plain_score``, ``gain``, ``gain_error``, and ``confusion`` (rows: true classes) or
        ``points`` (true and predicted numbers).
    """
    gain, error = found.gain
    record: dict[str, Any] = {
        "score": found.score,
        "plain_score": found.plain_score,
        "gain": gain,
        "gain_error": error,
    }
    if classes is not None:
        index = {label: place for place, label in enumerate(classes)}
        table = np.zeros((len(classes), len(classes)), dtype=int)
        for true, predicted in zip(found.y.tolist(), found.predicted.tolist(), strict=True):
            table[index[true], index[predicted]] += 1
        record["confusion"] = {"classes": [str(label) for label in classes], "counts": table.tolist()}
    else:
        rows = np.unique(np.linspace(0, len(found.y) - 1, min(len(found.y), POINTS)).round().astype(int))
        record["points"] = {"true": found.y[rows].tolist(), "predicted": found.predicted[rows].tolist()}
    return plain(record)


def sentence_of(found: Assessment, rank: Any, places: int) -> str:
    """Return the finding in one sentence.

    Parameters
    ----------
    found : Assessment
    rank : int, tuple of int or None
        Of the coefficients; None of plain vectors.
    places : int
        Coefficients of the plain model.

    Returns
    -------
    str

    Examples
    --------
    >>> y = np.arange(4.0)
    >>> sentence_of(Assessment(y, y, y, False), 1, 30)[:62]
    'Coefficients of rank 1 explain 100.0% of the variance of held-'
    """
    gain, error = found.gain
    form = "Plain coefficients" if rank is None else f"Coefficients of rank {rank}"
    if found.classifier:
        what = f"{form} classify {found.score:.1%} of the held-out samples correctly"
        other = "logistic"
    else:
        what = f"{form} explain {found.score:.1%} of the variance of held-out samples"
        other = "ridge"
    verdict = "no difference beyond chance"
    if abs(gain) > 2 * error:
        better = "try other penalties" if rank is None else "prefer the plain model"
        verdict = "better beyond chance" if gain > 0 else f"worse beyond chance: {better}"
    return f"{what}, {other} regression on all {places:,} places {found.plain_score:.1%}: {verdict}."


APART = 100
"""Sizes of columns that differ by more are remarked on."""


def table_notes(X: np.ndarray, features: Sequence[str]) -> list[str]:
    """Return what is odd about the columns of a table.

    Parameters
    ----------
    X : ndarray of shape (N, p)
    features : sequence of str
        Names of the columns.

    Returns
    -------
    list of str

    Examples
    --------
    >>> table_notes(np.array([[1, 0.5], [2, -0.5], [3, 1.0]]), ("id", "dose"))
    ["Column 'id' counts the samples, and is used as a feature. If it holds their names, take it out."]
    """
    notes = []
    if len(X) > 2 and (np.diff(X[:, 0]) == 1).all():
        notes.append(
            f"Column {features[0]!r} counts the samples, and is used as a feature. If it holds their names, "
            "take it out."
        )
    sizes = np.sqrt(np.mean(np.square(X, dtype=np.float64), axis=0))
    small, large = int(np.where(sizes > 0, sizes, np.inf).argmin()), int(sizes.argmax())
    if sizes[large] > APART * sizes[small]:
        notes.append(
            f"Columns differ in size by a factor of {sizes[large] / sizes[small]:,.0f} ({features[small]!r} "
            f"is the smallest, {features[large]!r} the largest), and one penalty is put on all. Divide each "
            "by its standard deviation; take out columns that hold names."
        )
    return notes
