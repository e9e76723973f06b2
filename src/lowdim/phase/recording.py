"""Recording: magnitudes and the map that they were measured by, as one value and as one NPZ file."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lowdim.errors import DataError, LowdimError, ShapeError
from lowdim.phase.diffraction import CodedDiffraction, Ptychography
from lowdim.phase.measurement import Measurement, measurement_of
from lowdim.runs import atomic_write, digest

__all__ = ["Recording", "read_recording"]

ARRAYS = ("A", "masks", "kept", "probe", "positions", "frames", "weights")
"""Arrays that a file may hold besides ``y`` or ``intensities`` and ``image_shape``."""

KINDS = {"A": "a matrix", "masks": "coded diffraction", "probe": "ptychography"}
"""What the array that tells the map stands for."""


@dataclass(frozen=True, eq=False)
class Recording:
    """What a detector saw of a sequence of frames, and how.

    One of `A`, `masks` (with `kept`) and `probe` (with `positions`) tells the map.

    Parameters
    ----------
    y : array-like, shape (q, m)
        Magnitudes, one row per frame.
    image_shape : sequence of int, optional
        Of one frame; needed where A ends in one axis of all pixels, and by a probe.
    A : array-like, shape (q, m, ...), (m, ...), (q, m, n) or (m, n), optional
        Rows are the conjugated measurement vectors; without the axis of frames, for all of them.
    masks : array-like, shape (L, h, w) or (q, L, h, w), optional
        Complex masks before a Fourier transform, see `CodedDiffraction`.
    kept : array-like of int, shape (m,) or (q, m), optional
        Which of the L h w coefficients were measured.
    probe : array-like, shape (a, b), optional
        Complex illumination, see `Ptychography`.
    positions : array-like of int, shape (P, 2), optional
        Of the probe's upper left corner.
    frames : array-like, shape (q, ...), optional
        The truth, where it is known: recovered frames are compared with it, and it is used for nothing else.
    weights : array-like, shape (q, m), optional
        Of the measurements, >= 0; 0 leaves one out.
    intensity : bool
        Whether y holds squared magnitudes.

    Raises
    ------
    ShapeError, DataError
        If arrays do not fit together or hold what they cannot.

    Examples
    --------
    >>> recording = Recording(np.ones((5, 3)), image_shape=(2, 2), A=np.ones((3, 4)))
    >>> recording.kind, recording.image_shape, recording.ratio
    ('a matrix', (2, 2), 0.75)
    """

    y: Any
    image_shape: Any = None
    A: Any = None
    masks: Any = None
    kept: Any = None
    probe: Any = None
    positions: Any = None
    frames: Any = None
    weights: Any = None
    intensity: bool = False

    def __post_init__(self) -> None:
        keep = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        for name in ("y", *ARRAYS):
            if getattr(self, name) is not None:
                keep(name, _numbers(name, getattr(self, name)))
        if self.image_shape is not None:
            keep("image_shape", _image_shape(self.image_shape))
        _check_map(self)
        measurement = self.measurement()
        keep("image_shape", measurement.image_shape)
        _check_data(self, measurement)

    @property
    def kind(self) -> str:
        """The map in words: a matrix, coded diffraction, or ptychography."""
        return next(words for name, words in KINDS.items() if getattr(self, name) is not None)

    @property
    def pixels(self) -> int:
        """Number n of pixels of a frame."""
        return prod(self.image_shape)

    @property
    def ratio(self) -> float:
        """Measurements per pixel, m / n."""
        return self.y.shape[1] / self.pixels

    def measurement(self) -> Measurement:
        """Return the map of all frames, in tensors that share the memory of the arrays."""
        if self.A is not None:
            return measurement_of(self.A, image_shape=self.image_shape, where="Recording")
        if self.masks is not None:
            kept = None if self.kept is None else torch.as_tensor(self.kept)
            found: Measurement = CodedDiffraction(torch.as_tensor(self.masks), kept=kept)
            if self.image_shape is not None and self.image_shape != found.image_shape:
                raise ShapeError(
                    f"Recording: image_shape is {self.image_shape}, masks are for images "
                    f"{found.image_shape}. Leave image_shape out."
                )
            return found
        return Ptychography(
            torch.as_tensor(self.probe), torch.as_tensor(self.positions), image_shape=self.image_shape
        )

    def digest(self) -> str:
        """Return the SHA-256 of all arrays."""
        held = {name: array for name in ("y", *ARRAYS) if (array := getattr(self, name)) is not None}
        tensors = [torch.as_tensor(np.ascontiguousarray(array)) for array in held.values()]
        return digest(list(held), list(self.image_shape), bool(self.intensity), *tensors)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an NPZ file for `read_recording`, whole or not at all.

        Parameters
        ----------
        path : path
            Ends in .npz; its folder must exist.

        Raises
        ------
        DataError
            If the name ends otherwise.
        RunError
            If it cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() != ".npz":
            raise DataError(f"Recording.save: {path.name} must end in .npz. Choose such a name.")
        held = {name: array for name in ARRAYS if (array := getattr(self, name)) is not None}
        held["intensities" if self.intensity else "y"] = self.y
        held["image_shape"] = np.array(self.image_shape, dtype=np.int64)
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **held)
        atomic_write(path, buffer.getvalue())


def read_recording(path: str | os.PathLike[str]) -> Recording:
    """Read a recording from an NPZ file.

    Parameters
    ----------
    path : path
        With arrays ``y`` (magnitudes) or ``intensities`` (squared ones), shape (q, m); the map as ``A``, as
        ``masks`` (and ``kept``), or as ``probe`` and ``positions``; and, where they are known or needed,
        ``image_shape``, ``frames`` (the truth) and ``weights``. See `Recording`.

    Returns
    -------
    Recording

    Raises
    ------
    DataError
        If the file is missing, damaged, holds pickled objects, or its arrays are unknown, missing or do not
        fit together.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "recording.npz"
    ...     np.savez(path, y=np.ones((5, 3)), A=np.ones((5, 3, 2, 2)))
    ...     recording = read_recording(path)
    >>> recording.y.shape, recording.image_shape
    ((5, 3), (2, 2))
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder, expected an NPZ file" if path.is_dir() else "does not exist"
        raise DataError(f"phase: {path} {what}. Check the name.")
    arrays = _load(path)
    seen = [name for name in ("y", "intensities") if name in arrays]
    known = ("y", "intensities", "image_shape", *ARRAYS)
    unknown = [name for name in arrays if name not in known]
    if unknown:
        raise DataError(
            f"phase: {path.name} holds an array {unknown[0]!r}, which says nothing here. Known are "
            f"{', '.join(known)}: rename it, or leave it out."
        )
    if len(seen) != 1:
        held = "both y and intensities" if seen else f"neither y nor intensities (it holds {_listed(arrays)})"
        raise DataError(
            f"phase: {path.name} holds {held}. Give magnitudes as y, or squared ones as intensities, of "
            "shape (frames, measurements)."
        )
    y = arrays.pop(seen[0])
    try:
        return Recording(y, intensity=seen[0] == "intensities", **arrays)
    except LowdimError as error:
        text = str(error).removeprefix("Recording: ")
        raise DataError(f"phase: {path.name} cannot be used: {text}") from error


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        held = np.load(path, allow_pickle=False)
        if isinstance(held, np.ndarray):
            raise DataError(
                f"phase: {path.name} holds one array without a name. Save y and A together with numpy.savez."
            )
        with held:
            return {name: held[name] for name in held.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, DataError):
            raise
        line = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        if "pickle" in line.lower():
            line = "it is no NPZ file of plain numbers, and nothing is unpickled"
        raise DataError(
            f"phase: {path.name} cannot be read ({line}). Save plain numeric arrays with numpy.savez."
        ) from error


def _listed(arrays: dict[str, np.ndarray]) -> str:
    return ", ".join(arrays) or "nothing"


def _numbers(name: str, value: Any) -> np.ndarray:
    array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    whole = name in ("kept", "positions")
    kinds = {"kept": "iu", "positions": "iu"}.get(name, "fiub" if name in ("y", "weights") else "fciub")
    if array.dtype.kind not in kinds:
        expected = "whole numbers" if whole else "real numbers" if "c" not in kinds else "numbers"
        raise DataError(f"Recording: {name} holds {array.dtype}, expected {expected}.")
    if whole:
        return array.astype(np.int64)
    # What has no precision of its own is computed with in double.
    array = array.astype(np.float64) if array.dtype.kind in "iub" or array.dtype == np.float16 else array
    if name != "A" and not np.isfinite(array).all():  # A is looked at when it becomes a measurement
        hint = " Set them to 0, and their weights to 0." if name == "y" else " Take them out."
        raise DataError(f"Recording: {name} holds NaN or infinite numbers.{hint}")
    return array


def _image_shape(given: Any) -> tuple[int, ...]:
    sizes = np.atleast_1d(np.asarray(given))
    if sizes.ndim != 1 or sizes.dtype.kind not in "iu" or not len(sizes) or (sizes < 1).any():
        raise DataError(
            f"Recording: image_shape is {str(np.asarray(given).tolist())[:60]}, expected positive whole "
            "numbers such as (64, 64)."
        )
    return tuple(int(size) for size in sizes)


def _check_map(recording: Recording) -> None:
    """Refuse anything but one map with all of its parts."""
    told = [name for name in KINDS if getattr(recording, name) is not None]
    if len(told) != 1:
        held = f"{' and '.join(told)} at once" if told else "neither A, nor masks, nor a probe"
        raise DataError(
            f"Recording: it holds {held}. Tell how y was measured: as A, as masks (and kept), or as probe "
            "and positions."
        )
    for part, whole in (("kept", "masks"), ("positions", "probe")):
        if getattr(recording, part) is not None and told[0] != whole:
            raise DataError(f"Recording: {part} belongs to {whole}, which are not there. Leave it out.")
    if told[0] == "probe" and (recording.positions is None or recording.image_shape is None):
        lacking = "positions" if recording.positions is None else "image_shape"
        raise DataError(f"Recording: a probe needs positions and image_shape; {lacking} is missing.")


def _check_data(recording: Recording, measurement: Measurement) -> None:
    """Refuse magnitudes, weights and frames that do not fit the map."""
    y, m = recording.y, measurement.samples
    if y.ndim != 2 or y.shape[1] != m or not len(y):
        raise ShapeError(
            f"Recording: y has shape {y.shape}, expected (frames, {m}): {recording.kind} gives {m} "
            "measurements per frame."
        )
    if measurement.frames not in (None, len(y)):
        raise ShapeError(
            f"Recording: y has {len(y)} frames, the map is of {measurement.frames}. Give one row of y "
            "per frame."
        )
    if (y < 0).any():
        raise DataError(
            f"Recording: y holds negative numbers, such as {float(y.min()):g}; magnitudes and intensities "
            "are >= 0. Clip what noise has made negative."
        )
    weights, frames = recording.weights, recording.frames
    if weights is not None and (weights.shape != y.shape or (weights < 0).any()):
        raise ShapeError(
            f"Recording: weights of shape {weights.shape} must be >= 0 and of the shape of y, {y.shape}."
        )
    expected = (len(y), *measurement.image_shape)
    if frames is not None and frames.shape != expected:
        raise ShapeError(f"Recording: frames have shape {frames.shape}, expected {expected}.")
    if frames is not None and np.iscomplexobj(frames) and not measurement.dtype.is_complex:
        raise DataError(
            "Recording: frames are complex, but A is real. Give their real map, or leave frames out."
        )
