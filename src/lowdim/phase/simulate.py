"""Simulate: what a detector would have seen of frames that are known."""

from __future__ import annotations

from math import ceil, sqrt
from typing import Any, Literal

import numpy as np
import torch

from lowdim.errors import BudgetError, DataError, ShapeError
from lowdim.phase.diffraction import CodedDiffraction, Ptychography
from lowdim.phase.measurement import Measurement
from lowdim.phase.recording import Recording

__all__ = ["KINDS", "simulate"]

Kind = Literal["gaussian", "complex-gaussian", "coded-diffraction", "ptychography"]

KINDS = ("gaussian", "complex-gaussian", "coded-diffraction", "ptychography")

MASKS = ("octanary", "uniform")

DENSE_BYTES = 4 * 2**30
"""Size of a matrix that is not drawn: the file would be as large."""

PROBE = 2 / 3
"""Side of the probe, relative to the smaller side of the image."""


def simulate(
    frames: Any,
    *,
    kind: Kind = "gaussian",
    measurements: float = 0.5,
    noise: float = 0.0,
    outliers: float = 0.0,
    masks: Literal["octanary", "uniform"] = "octanary",
    seed: int = 0,
) -> Recording:
    """Measure frames by a random map, and keep the magnitudes only.

    Parameters
    ----------
    frames : array-like, shape (q, h, w)
        Real or complex. Gaussian maps take images of any number of axes.
    kind : {"gaussian", "complex-gaussian", "coded-diffraction", "ptychography"}
        A matrix per frame of independent normal entries (complex ones of mean square 1); Fourier transforms
        behind random masks, of which every frame has its own, two or more, and keeps a random part; or
        Fourier transforms of what a diffuse probe sees from the places of a jittered grid, the same for all
        frames.
    measurements : float
        Per pixel, m / n. Ptychography needs about 4: the places must overlap.
    noise : float
        Standard deviation of normal noise, relative to the root mean square of the magnitudes; what it makes
        negative becomes 0.
    outliers : float
        Fraction of the magnitudes that are replaced by numbers drawn evenly from 0 to 3 root mean squares.
    masks : {"octanary", "uniform"}
        Of coded diffraction: eight values of two moduli [1]_, or phases drawn evenly.
    seed : int
        Of all that is random.

    Returns
    -------
    Recording
        With the frames as its truth.

    Raises
    ------
    DataError, ShapeError
        If frames or options cannot be used.
    BudgetError
        If the matrix would be larger than 4 GiB.

    References
    ----------
    .. [1] E. Candes, X. Li, M. Soltanolkotabi, "Phase retrieval from coded diffraction patterns", Appl.
       Comput. Harmon. Anal. 39, 2015, eq. 1.8.

    Examples
    --------
    >>> recording = simulate(np.ones((10, 8, 8)), measurements=0.25)
    >>> recording.y.shape, recording.A.shape
    ((10, 16), (10, 16, 8, 8))
    """
    X = _frames(frames, kind)
    _check(kind, measurements, noise, outliers, masks)
    rng = np.random.default_rng(seed)
    parts: dict[str, Any] = {}
    if kind == "coded-diffraction":
        parts = _diffraction(X, measurements, masks, rng)
    elif kind == "ptychography":
        parts = _ptychography(X, measurements, rng)
    else:
        parts = {"A": _gaussian(X, measurements, complex_=kind == "complex-gaussian", rng=rng)}
    y = _magnitudes(X, parts)
    rms = float(np.sqrt(np.mean(y**2)))
    if noise:
        y = np.maximum(y + noise * rms * rng.normal(size=y.shape), 0)
    if outliers:
        wrong = rng.random(y.shape) < outliers
        y = np.where(wrong, rng.uniform(0, 3 * rms, y.shape), y)
    return Recording(y, image_shape=X.shape[1:], frames=X, **parts)


def _frames(frames: Any, kind: str) -> np.ndarray:
    X = np.asarray(frames.detach().cpu() if hasattr(frames, "detach") else frames)
    if X.dtype.kind not in "fciub" or not X.size:
        raise DataError(f"simulate: frames hold {X.dtype} of shape {X.shape}, expected numbers.")
    if X.ndim < 3 or (X.ndim != 3 and kind not in ("gaussian", "complex-gaussian")):
        raise ShapeError(f"simulate: frames have shape {X.shape}, expected (frames, height, width).")
    X = X.astype(np.complex128 if np.iscomplexobj(X) else np.float64)
    if not np.isfinite(X).all():
        raise DataError("simulate: frames hold NaN or infinite numbers. Fill them in first.")
    if kind == "gaussian" and np.iscomplexobj(X):
        raise DataError(
            "simulate: a real matrix takes real and imaginary parts of complex frames for two signals. Use "
            "kind='complex-gaussian'."
        )
    return X


def _check(kind: str, measurements: float, noise: float, outliers: float, masks: str) -> None:
    if kind not in KINDS:
        raise DataError(f"simulate: kind={kind!r} is unknown. Use one of {', '.join(KINDS)}.")
    if masks not in MASKS:
        raise DataError(f"simulate: masks={masks!r} is unknown. Use one of {', '.join(MASKS)}.")
    if not 0 < measurements <= 100:
        raise DataError(
            f"simulate: measurements={measurements:g} per pixel must be more than 0 and at most 100."
        )
    if kind == "ptychography" and measurements < 1:
        raise DataError(
            f"simulate: {measurements:g} measurements per pixel cannot light all pixels by ptychography. Use "
            "measurements=4: places must overlap."
        )
    if not 0 <= noise < np.inf:
        raise DataError(f"simulate: noise={noise:g} must be a number >= 0, such as 0.01.")
    if not 0 <= outliers < 1:
        raise DataError(f"simulate: outliers={outliers:g} must be a fraction from 0 to below 1.")


def _gaussian(X: np.ndarray, measurements: float, *, complex_: bool, rng: np.random.Generator) -> np.ndarray:
    q, n = len(X), X[0].size
    m = max(1, round(measurements * n))
    size = q * m * n * (16 if complex_ else 8)
    if size > DENSE_BYTES:
        raise BudgetError(
            f"simulate: a matrix of {q} x {m} x {n} takes {size / 1e9:.0f} GB. Make frames smaller or "
            "fewer, or use kind='coded-diffraction', which needs no matrix."
        )
    A = rng.normal(size=(q, m, *X.shape[1:]))
    return sqrt(0.5) * (A + 1j * rng.normal(size=A.shape)) if complex_ else A


def _diffraction(
    X: np.ndarray, measurements: float, masks: str, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    q, h, w = X.shape
    # Of one mask the moduli of a real frame's transform come in equal pairs: two tell more.
    count = max(2, ceil(measurements))
    shape = (q, count, h, w)
    if masks == "octanary":
        turn = rng.choice(np.array([1, -1, 1j, -1j]), shape)
        drawn = turn * np.where(rng.random(shape) < 0.8, sqrt(0.5), sqrt(3))
    else:
        drawn = np.exp(2j * np.pi * rng.random(shape))
    m, total = max(1, round(measurements * h * w)), count * h * w
    if m == total:
        return {"masks": drawn}
    kept = [np.sort(rng.choice(total, m, replace=False)) for _ in range(q)]
    return {"masks": drawn, "kept": np.stack(kept)}


def _ptychography(X: np.ndarray, measurements: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
    _, h, w = X.shape
    side = max(2, round(PROBE * min(h, w)))
    if side > min(h, w):
        raise ShapeError(f"simulate: images of {h} x {w} are too small for a probe. Use 2 x 2 or more.")
    r = (np.arange(side) - (side - 1) / 2) / (side / 2)
    probe = np.exp(-(r[:, None] ** 2) - r**2) * np.exp(2j * np.pi * rng.random((side, side)))
    probe /= np.sqrt(np.mean(np.abs(probe) ** 2))
    # A grid of as many places as the measurements allow, in the proportions of the image.
    places = measurements * h * w / side**2
    down = max(ceil(h / side), round(sqrt(places * h / w)))
    across = max(ceil(w / side), round(places / down))
    rows, columns = (np.linspace(0, n - side, k) for n, k in ((h, down), (w, across)))
    grid = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)
    jittered = grid.round().astype(np.int64) + rng.integers(-1, 2, grid.shape)
    return {"probe": probe, "positions": np.clip(jittered, 0, [h - side, w - side])}


def _magnitudes(X: np.ndarray, parts: dict[str, Any]) -> np.ndarray:
    """Return |A x|: by the map that the recovery will use."""
    if "A" in parts:
        A = parts["A"].reshape(*parts["A"].shape[:2], -1)
        return np.abs((A @ X.reshape(len(X), -1, 1))[..., 0])
    tensors = {name: torch.as_tensor(array) for name, array in parts.items()}
    if "masks" in tensors:
        measurement: Measurement = CodedDiffraction(tensors["masks"], kept=tensors.get("kept"))
    else:
        measurement = Ptychography(tensors["probe"], tensors["positions"], image_shape=X.shape[1:])
    return measurement.magnitudes(torch.as_tensor(X)).numpy()
