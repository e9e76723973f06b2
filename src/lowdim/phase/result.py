"""Result: recovered frames as a value, and as a folder."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lowdim.errors import RunError
from lowdim.phase.lowrank import LowRankPhaseRetrieval
from lowdim.phase.tucker import TuckerPhaseRetrieval
from lowdim.runs import atomic_write, read_json, staged

__all__ = ["FORMAT", "MODELS", "PhaseResult"]

FORMAT = 1

PARTS = ("frames.npy", "frames.gif", "model")
"""What a saved result consists of, beside report.json."""

MODELS: dict[str, Any] = {"tucker": TuckerPhaseRetrieval, "lowrank": LowRankPhaseRetrieval, "rwf": None}
"""Estimators by method; the Wirtinger flow of single frames has none."""

_GIF_SIDE, _GIF_SECONDS = 192, 0.1


@dataclass(frozen=True, eq=False)
class PhaseResult:
    """What `recover` found.

    Parameters
    ----------
    frames : ndarray, shape (q, ...)
        Real or complex. Each is known up to a unit factor, which is chosen so that it is as near as can be to
        the frame before.
    model : estimator or None
        The fitted `TuckerPhaseRetrieval` or `LowRankPhaseRetrieval`; None of frames that were recovered
        one by one.
    report : dict
        The contents of report.json.

    Examples
    --------
    >>> import tempfile
    >>> from lowdim.phase import recover, simulate
    >>> result = recover(simulate(np.ones((8, 4, 4)), measurements=1), ranks=(1, 1, 1))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result.save(folder)
    ...     again = PhaseResult.load(folder)
    >>> bool((again.frames == result.frames).all()), type(again.model).__name__
    (True, 'TuckerPhaseRetrieval')
    """

    frames: np.ndarray
    model: Any
    report: dict[str, Any]

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write frames.npy, model/, report.json, and of real images frames.gif, where Pillow is installed.

        Parameters
        ----------
        directory : path
            Made if it is missing. Read it back with `load`.

        Raises
        ------
        RunError
            If it cannot be written; a folder with a report.json is complete.
        """
        with staged(directory, names=PARTS, report=self.report) as staging:
            buffer = io.BytesIO()
            np.save(buffer, self.frames, allow_pickle=False)
            atomic_write(staging / "frames.npy", buffer.getvalue())
            if (film := _gif(self.frames)) is not None:
                atomic_write(staging / "frames.gif", film)
            if self.model is not None:
                self.model.save(staging / "model")

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> PhaseResult:
        """Read a folder that `save` or ``lowdim phase recover`` has written.

        Parameters
        ----------
        directory : path

        Returns
        -------
        PhaseResult

        Raises
        ------
        RunError
            If a file is missing, damaged, or of an unknown format.
        """
        folder = Path(directory)
        if not (folder / "report.json").is_file():
            raise RunError(
                f"{folder} holds no report.json. Give a folder written by `lowdim phase recover` or save()."
            )
        report = read_json(folder / "report.json")
        if (
            not isinstance(report, dict)
            or report.get("format") != FORMAT
            or report.get("method") not in MODELS
        ):
            raise RunError(
                f"{folder / 'report.json'} is no report of `lowdim phase recover` in format {FORMAT}. Use "
                "the lowdim that wrote it, or recover again."
            )
        try:
            frames = np.load(folder / "frames.npy", allow_pickle=False)
            if list(frames.shape) != [report["frames"], *report["image_shape"]]:
                raise ValueError(f"frames.npy has shape {frames.shape}")
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise RunError(f"{folder} is incomplete or damaged ({error}). Recover again.") from error
        kind = MODELS[report["method"]]
        return cls(frames, None if kind is None else kind.load(folder / "model"), report)

    def summary(self) -> str:
        """Return the finding in a sentence or two.

        Returns
        -------
        str
        """
        return str(self.report["sentence"])


def _gif(frames: np.ndarray) -> bytes | None:
    """Return real images as an animation, large enough to be seen; None if that is not what they are."""
    if frames.ndim != 3 or np.iscomplexobj(frames):
        return None
    try:
        from PIL import Image
    except ImportError:
        return None
    low, high = np.percentile(frames, [0.5, 99.5])
    gray = np.clip((frames - low) / ((high - low) or 1.0), 0, 1)
    grown = max(1, round(_GIF_SIDE / max(frames.shape[1:])))
    levels = np.kron(np.rint(255 * gray).astype(np.uint8), np.ones((1, grown, grown), dtype=np.uint8))
    pictures = [Image.fromarray(level) for level in levels]
    buffer = io.BytesIO()
    pictures[0].save(
        buffer,
        "GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=round(1000 * _GIF_SECONDS),
        loop=0,
        optimize=False,
    )
    return buffer.getvalue()
