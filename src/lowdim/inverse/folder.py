"""Folder: reconstructions of many images by several solvers, as a value and on disk."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lowdim.errors import RunError
from lowdim.inverse.pictures import write_picture
from lowdim.runs import atomic_write, read_json, staged

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FORMAT", "InverseResult"]

FORMAT = 1

PARTS = ("images", "measurements", "truth")
"""What a saved result consists of, beside report.json."""


@dataclass(frozen=True, eq=False)
class InverseResult:
    """What `reconstruct` found.

    Parameters
    ----------
    images : dict of str to tuple of Tensor
        By solver, one (C, H, W) per image, in the operator's range (of named operators [0, 1]).
    measurements : tuple of Tensor
        One per image.
    truth : tuple of Tensor, or None
        True images, where they are known.
    report : dict
        The contents of report.json: settings, a row per image and solver, means per solver, residual curves.

    Examples
    --------
    >>> import tempfile
    >>> from lowdim.inverse import GMMPrior, reconstruct
    >>> x = torch.rand(60, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    >>> prior = GMMPrior.fit(2 * x - 1, components=2)
    >>> sr = {"name": "sr", "factor": 2}
    >>> result = reconstruct(x[:2], operator=sr, sigma=0.02, prior=prior, solvers="dcdp")
    >>> result.table()[["image", "solver", "network_calls"]].values.tolist()
    [['image-00000', 'dcdp', 20], ['image-00001', 'dcdp', 20]]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result.save(folder)
    ...     again = InverseResult.load(folder)
    >>> bool((again.images["dcdp"][1] == result.images["dcdp"][1]).all())
    True
    """

    images: dict[str, tuple[Tensor, ...]]
    measurements: tuple[Tensor, ...]
    truth: tuple[Tensor, ...] | None
    report: dict[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the images."""
        return tuple(self.report["names"])

    def table(self) -> pd.DataFrame:
        """Return one row per image and solver: PSNR, SSIM, residual, calls, iterations, seconds.

        Returns
        -------
        DataFrame
        """
        import pandas as pd

        return pd.DataFrame(self.report["rows"])

    def summary(self) -> str:
        """Return the finding in a sentence or two.

        Returns
        -------
        str
        """
        return str(self.report["sentence"])

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write images/SOLVER/NAME.npy and .png, measurements/, truth/ and report.json.

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
            span = self.report["value_range"]
            for solver, images in self.images.items():
                _write(staging / "images" / solver, self.names, images, span)
            if self.truth is not None:
                _write(staging / "truth", self.names, self.truth, span)
            (staging / "measurements").mkdir()
            for name, y in zip(self.names, self.measurements, strict=True):
                buffer = io.BytesIO()
                np.save(buffer, y.detach().cpu().numpy(), allow_pickle=False)
                atomic_write(staging / "measurements" / f"{name}.npy", buffer.getvalue())

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> InverseResult:
        """Read a folder that `save` or ``lowdim inverse reconstruct`` has written.

        Parameters
        ----------
        directory : path

        Returns
        -------
        InverseResult

        Raises
        ------
        RunError
            If a file is missing, damaged, or of an unknown format.
        """
        folder = Path(directory)
        if not (folder / "report.json").is_file():
            raise RunError(
                f"{folder} holds no report.json. Give a folder written by `lowdim inverse reconstruct` or "
                "save()."
            )
        report = read_json(folder / "report.json")
        if not isinstance(report, dict) or report.get("format") != FORMAT or "solvers" not in report:
            raise RunError(
                f"{folder / 'report.json'} is no report of `lowdim inverse reconstruct` in format "
                f"{FORMAT}. Use the lowdim that wrote it, or reconstruct again."
            )
        try:
            names = report["names"]
            images = {
                entry["name"]: _read(folder / "images" / entry["name"], names) for entry in report["solvers"]
            }
            truth = _read(folder / "truth", names) if (folder / "truth").is_dir() else None
            measurements = _read(folder / "measurements", names)
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise RunError(f"{folder} is incomplete or damaged ({error}). Reconstruct again.") from error
        return cls(images, measurements, truth, report)


def _write(folder: Path, names: tuple[str, ...], images: tuple[Tensor, ...], span: Any) -> None:
    folder.mkdir(parents=True)
    for name, image in zip(names, images, strict=True):
        write_picture(folder, name, image, value_range=span)


def _read(folder: Path, names: list[str]) -> tuple[Tensor, ...]:
    return tuple(torch.as_tensor(np.load(folder / f"{name}.npy", allow_pickle=False)) for name in names)
