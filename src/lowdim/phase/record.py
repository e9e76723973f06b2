"""Record: what report.json says of recovered frames, small enough for a page and without NaN."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import torch

from lowdim.algebra.tensors import unfold
from lowdim.phase.alignment import align, phase_distance
from lowdim.phase.measurement import Measurement

__all__ = [
    "errors_of",
    "film_record",
    "pictures_record",
    "singular_values",
    "thinned",
    "unexplained",
]

PIXELS = 64
"""Rows and columns of a shown image."""

PICTURES = 4
"""Images that are shown beside each other."""

SHOWN = 40
"""Images of the film."""

VALUES = 40
"""Singular values per mode."""


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


def unexplained(
    A: Measurement, frames: np.ndarray, y: np.ndarray, weights: np.ndarray | None
) -> dict[str, Any]:
    """Return how much of the magnitudes frames leave unexplained.

    Parameters
    ----------
    A : Measurement
    frames : ndarray, shape (q, n1, ..., nd)
    y : ndarray, shape (q, m)
        Magnitudes.
    weights : ndarray, shape (q, m), or None
        Of the measurements.

    Returns
    -------
    dict
        ``per_frame``, ``|| |A_k x_k| - y_k || / || y_k ||``, and ``total``.
    """
    unit = float(np.max(y)) or 1.0  # squares of very large or small numbers leave the range
    misfit = ((A.magnitudes(torch.as_tensor(frames)).numpy() - y) / unit) ** 2
    size = (y / unit) ** 2
    if weights is not None:
        misfit, size = weights * misfit, weights * size
    return {
        "total": _share(misfit.sum(), size.sum()),
        "per_frame": [_share(a, b) for a, b in zip(misfit.sum(1), size.sum(1), strict=True)],
    }


def errors_of(frames: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """Return how far frames are from the truth, up to a unit factor each.

    Parameters
    ----------
    frames, truth : ndarray, shape (q, n1, ..., nd)

    Returns
    -------
    dict
        ``per_frame``, ``min ||c x_k - z_k|| / ||z_k||``, and ``total``, as `relative_error`.
    """
    kind = np.result_type(frames, truth)
    unit = float(np.abs(truth).max()) or 1.0
    x, z = (array.reshape(len(array), -1).astype(kind) / unit for array in (frames, truth))
    distance, size = np.asarray(phase_distance(x, z)) ** 2, (np.abs(z) ** 2).sum(1)
    return {
        "total": _share(distance.sum(), size.sum()),
        "per_frame": [_share(a, b) for a, b in zip(distance, size, strict=True)],
    }


def singular_values(frames: np.ndarray) -> list[dict[str, Any]]:
    """Return the largest singular values of the unfolding in each mode; phases of frames do not change them.

    Parameters
    ----------
    frames : ndarray, shape (q, n1, ..., nd)

    Returns
    -------
    list of dict
        ``mode`` and ``values``, relative to the norm of all frames: of the axes of an image, then of the
        frames.
    """
    X = torch.as_tensor(frames)
    norm = float(torch.linalg.vector_norm(X)) or 1.0
    names = ["rows", "columns"] if X.ndim == 3 else [f"axis {axis}" for axis in range(1, X.ndim)]
    found = []
    for mode, name in [*enumerate(names, start=1), (0, "frames")]:
        values = torch.linalg.svdvals(unfold(X, mode))[:VALUES] / norm
        found.append({"mode": name, "values": [float(f"{value:.4g}") for value in values.tolist()]})
    return found


def pictures_record(frames: np.ndarray, truth: np.ndarray | None) -> list[dict[str, Any]]:
    """Return some of the images, made small: recovered, and true and their difference where it is known.

    Parameters
    ----------
    frames : ndarray, shape (q, h, w)
    truth : ndarray, shape (q, h, w), or None

    Returns
    -------
    list of dict
        ``frame``, ``recovered``, ``truth``, ``difference``; complex images by their magnitudes.
    """
    found = []
    for k in thinned(len(frames), PICTURES):
        image: dict[str, Any] = {"frame": int(k), "recovered": _rounded(frames[k])}
        if truth is not None:
            aligned = _aligned(frames[k : k + 1], truth[k : k + 1])[0]
            image["recovered"] = _rounded(aligned)
            true = truth[k].astype(
                aligned.dtype
            )  # of complex frames magnitudes are shown, so of the truth, too
            image |= {"truth": _rounded(true), "difference": _rounded(aligned - true)}
        found.append(image)
    return found


def film_record(frames: np.ndarray, truth: np.ndarray | None) -> dict[str, Any]:
    """Return the film in 256 levels of gray, at most 40 frames of 64 x 64 pixels.

    Parameters
    ----------
    frames : ndarray, shape (q, h, w)
    truth : ndarray, shape (q, h, w), or None

    Returns
    -------
    dict
        ``frames`` (which), ``shape`` (h, w), and ``recovered`` and ``truth`` as bytes in base64.
    """
    chosen = thinned(len(frames), SHOWN)
    place = np.ix_(chosen, thinned(frames.shape[1], PIXELS), thinned(frames.shape[2], PIXELS))
    aligned = frames if truth is None else _aligned(frames, truth)
    films = {"recovered": _shown(aligned[place])}
    if truth is not None:
        films["truth"] = _shown(truth[place].astype(aligned.dtype))
    low, high = np.percentile(np.concatenate(list(films.values())), [0.5, 99.5])
    levels = {
        name: np.rint(255 * np.clip((film - low) / ((high - low) or 1.0), 0, 1)).astype(np.uint8)
        for name, film in films.items()
    }
    record = {"frames": chosen.tolist(), "shape": list(films["recovered"].shape[1:])}
    return record | {
        name: base64.b64encode(level.tobytes()).decode("ascii") for name, level in levels.items()
    }


def _aligned(frames: np.ndarray, truth: np.ndarray) -> np.ndarray:
    kind = np.result_type(frames, truth)
    return np.asarray(align(frames.astype(kind), truth.astype(kind), dim=tuple(range(1, frames.ndim))))


def _share(misfit: float, size: float) -> float:
    """Return a root of a ratio; of nothing, nothing is left, or all."""
    if size > 0:
        return float(np.sqrt(misfit / size))
    return 0.0 if misfit <= 0 else 1.0


def _shown(values: np.ndarray) -> np.ndarray:
    return np.abs(values) if np.iscomplexobj(values) else values


def _rounded(image: np.ndarray) -> list[list[float]]:
    """Return numbers with four digits, of at most 64 rows and columns: a color shows no more."""
    corner = _shown(image)[np.ix_(thinned(image.shape[0], PIXELS), thinned(image.shape[1], PIXELS))]
    return [[float(f"{value:.4g}") for value in row] for row in corner.tolist()]
