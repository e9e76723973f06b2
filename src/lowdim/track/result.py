"""Result: a tracked panel as a value, and as a folder."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lowdim.errors import RunError
from lowdim.runs import atomic_write, read_json, staged
from lowdim.track.choose import Comparison
from lowdim.track.follow import MODELS
from lowdim.track.record import comparison_of

__all__ = ["TrackResult"]

FORMAT = 1

PARTS = ("imputed.csv", "imputed.npy", "angles.csv", "model")
"""What a saved result consists of, beside report.json."""


@dataclass(frozen=True, eq=False)
class TrackResult:
    """What `track` found.

    Parameters
    ----------
    model : estimator
        The fitted model.
    imputed : ndarray of shape (T, d)
        The frames with their gaps filled in; NaN in frames and features of which nothing was seen.
    angles : ndarray of shape (T, k)
        Principal angles between the subspace at the first time and at each, in radians, largest first.
    comparison : Comparison
        Errors on hidden entries.
    report : dict
        The contents of report.json.
    times : ndarray of shape (T,) or None
        Numbers or dates.

    Examples
    --------
    >>> import tempfile
    >>> from lowdim.track import track
    >>> result = track(np.random.default_rng(0).normal(size=(40, 8)), n_components=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result.save(folder)
    ...     again = TrackResult.load(folder)
    >>> bool((again.imputed == result.imputed).all()), again.angles.shape
    (True, (40, 1))
    """

    model: Any
    imputed: np.ndarray
    angles: np.ndarray
    comparison: Comparison
    report: dict[str, Any]
    times: np.ndarray | None = None

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write imputed.csv (imputed.npy for arrays and images), angles.csv, model/ and report.json.

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
            self._write_imputed(staging)
            atomic_write(staging / "angles.csv", self._angle_table().to_csv(index=False))
            self.model.save(staging / "model")

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> TrackResult:
        """Read a folder that `save` or ``lowdim track`` has written.

        Parameters
        ----------
        directory : path

        Returns
        -------
        TrackResult

        Raises
        ------
        RunError
            If a file is missing, damaged, or of an unknown format.
        """
        folder = Path(directory)
        if not (folder / "report.json").is_file():
            raise RunError(
                f"{folder} holds no report.json. Give a folder written by `lowdim track` or save()."
            )
        report = read_json(folder / "report.json")
        if (
            not isinstance(report, dict)
            or report.get("format") != FORMAT
            or report.get("model") not in MODELS
        ):
            raise RunError(
                f"{folder / 'report.json'} is no report of `lowdim track` in format {FORMAT}. Use the lowdim "
                "that wrote it, or track again."
            )
        try:
            angles = pd.read_csv(folder / "angles.csv", float_precision="round_trip")
            imputed = _read_imputed(folder, report)
            comparison = comparison_of(report["comparison"])
            kind = report["time"]["kind"]
        except (OSError, ValueError, KeyError) as error:
            raise RunError(f"{folder} is incomplete or damaged ({error}). Track again.") from error
        times = None
        if kind != "order":
            column = angles.iloc[:, 0]
            times = (pd.to_datetime(column) if kind == "dates" else column).to_numpy()
        model = MODELS[report["model"]].load(folder / "model")
        return cls(model, imputed, angles.iloc[:, 1:].to_numpy(), comparison, report, times)

    def summary(self) -> str:
        """Return the finding in a few sentences.

        Returns
        -------
        str
        """
        filled, turned = self.report["filled"], self.report["turned"]
        return (
            f"{self.comparison.sentence()}\nModel: {self.report['model']} with {self.report['n_components']} "
            f"components; turned by {turned:.1f} degrees; {filled:,} gaps filled in."
        )

    def _write_imputed(self, folder: Path) -> None:
        if not self.report["names"]:
            buffer = io.BytesIO()
            np.save(buffer, self.imputed.reshape(self.report["shape"]), allow_pickle=False)
            atomic_write(folder / "imputed.npy", buffer.getvalue())
            return
        table = pd.DataFrame(self.imputed, columns=self.report["names"])
        if self.times is not None:
            table.insert(0, self.report["time"]["name"], self.times, allow_duplicates=True)
        atomic_write(folder / "imputed.csv", table.to_csv(index=False))

    def _angle_table(self) -> pd.DataFrame:
        T, k = self.angles.shape
        table = pd.DataFrame(self.angles, columns=[f"angle_{number}" for number in range(1, k + 1)])
        table.insert(
            0, self.report["time"]["name"] or "frame", np.arange(T) if self.times is None else self.times
        )
        return table


def _read_imputed(folder: Path, report: dict[str, Any]) -> np.ndarray:
    if not report["names"]:
        found = np.load(folder / "imputed.npy", allow_pickle=False)
        return found.reshape(len(found), -1)
    table = pd.read_csv(folder / "imputed.csv", float_precision="round_trip")
    return table.iloc[:, int(report["time"]["kind"] != "order") :].to_numpy(dtype=np.float64)
