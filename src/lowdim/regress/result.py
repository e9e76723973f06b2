"""Result: a fitted model with its assessment as a value, and as a folder."""

from __future__ import annotations

import io
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lowdim.errors import DataError, RunError
from lowdim.regress.classifier import TensorClassifier
from lowdim.regress.files import collection_of
from lowdim.regress.nibabel import write_volume
from lowdim.regress.regressor import TensorRegressor
from lowdim.runs import atomic_json, atomic_write, read_json

__all__ = ["RegressResult"]

FORMAT = 1
_STAGING = ".writing"
_MODELS = {"regression": TensorRegressor, "classification": TensorClassifier}


@dataclass(frozen=True, eq=False)
class RegressResult:
    """What `regress` found.

    Parameters
    ----------
    model : TensorRegressor or TensorClassifier
        Fitted to all samples.
    predictions : DataFrame
        One row per sample: ``sample``, ``target``, ``predicted`` by a fit that had not seen it.
    report : dict
        The contents of report.json.

    Examples
    --------
    >>> import tempfile
    >>> from lowdim.regress import regress
    >>> X = np.random.default_rng(0).normal(size=(40, 4, 4))
    >>> result = regress(X, y=X[:, 1, 2])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result.save(folder)
    ...     again = RegressResult.load(folder)
    >>> bool((again.model.coef_ == result.model.coef_).all())
    True
    """

    model: Any
    predictions: pd.DataFrame
    report: dict[str, Any]

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write model/, coefficients.npy (of volumes also .nii.gz), predictions.csv and report.json.

        Parameters
        ----------
        directory : path
            Made if it is missing. Read it back with `load`.

        Raises
        ------
        RunError
            If it cannot be written; a folder with a report.json is complete.
        """
        folder = Path(directory)
        staging = folder / _STAGING
        try:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            self.model.save(staging / "model")
            buffer = io.BytesIO()
            np.save(buffer, self.model.coef_, allow_pickle=False)
            atomic_write(staging / "coefficients.npy", buffer.getvalue())
            atomic_write(staging / "predictions.csv", self.predictions.to_csv(index=False))
            if self.report.get("affine") is not None and len(self.model.shape_) == 3:
                coef = self.model.coef_
                series = np.moveaxis(coef, 0, -1) if coef.ndim == 4 else coef
                write_volume(staging / "coefficients.nii.gz", series, np.array(self.report["affine"]))
            (folder / "report.json").unlink(missing_ok=True)
            for name in ("model", "coefficients.npy", "coefficients.nii.gz", "predictions.csv"):
                if (folder / name).is_dir():
                    shutil.rmtree(folder / name)
                else:
                    (folder / name).unlink(missing_ok=True)
                if (staging / name).exists():
                    os.replace(staging / name, folder / name)
            staging.rmdir()
        except OSError as error:
            raise RunError(
                f"{folder} cannot be written: {error.strerror}. Check its permissions, or choose another "
                "folder."
            ) from error
        atomic_json(folder / "report.json", self.report)

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> RegressResult:
        """Read a folder that `save` or ``lowdim regress fit`` has written.

        Parameters
        ----------
        directory : path

        Returns
        -------
        RegressResult

        Raises
        ------
        RunError
            If a file is missing, damaged, or of an unknown format.
        """
        folder = Path(directory)
        if not (folder / "report.json").is_file():
            raise RunError(
                f"{folder} holds no report.json. Give a folder written by `lowdim regress fit` or save()."
            )
        report = read_json(folder / "report.json")
        if (
            not isinstance(report, dict)
            or report.get("format") != FORMAT
            or report.get("task") not in _MODELS
        ):
            raise RunError(
                f"{folder / 'report.json'} is no report of `lowdim regress fit` in format {FORMAT}. Use the "
                "lowdim that wrote it, or fit again."
            )
        try:
            predictions = pd.read_csv(
                folder / "predictions.csv", float_precision="round_trip", dtype={"sample": str}
            )
        except (OSError, ValueError) as error:
            raise RunError(f"{folder} is incomplete or damaged ({error}). Fit again.") from error
        return cls(_MODELS[report["task"]].load(folder / "model"), predictions, report)

    def predict(self, source: Any, *, target: str | None = None, labels: Any = None) -> pd.DataFrame:
        """Predict new samples.

        Parameters
        ----------
        source : path, DataFrame or array-like
            As in `regress`.
        target : str, optional
            What the targets are called, if they are known; by default as in the fit.
        labels : path, optional
            Table of the targets, if they are known.

        Returns
        -------
        DataFrame
            One row per sample: ``sample``, ``target`` if it is known, ``predicted``, and of a classifier with
            probabilities ``probability`` of the predicted class.

        Raises
        ------
        DataError, ShapeError
            If the source cannot be used, or its samples differ in shape.
        """
        names = self.report.get("features") or None
        # What was found by itself at the fit is found again; a named target must not be needed here.
        found = collection_of(
            source,
            target=target or (self.report.get("target") if names else None),
            labels=labels,
            features=names,
        )
        if not np.isfinite(found.X).all():
            raise DataError("predict: some samples hold NaN or infinity. Impute or drop them.")
        X = found.X.reshape(len(found.X), -1)
        table = pd.DataFrame({"sample": found.samples})
        if found.y is not None:
            table["target"] = found.y
        table["predicted"] = self.model.predict(X)
        if self.report["task"] == "classification" and self.model.loss == "logistic":
            table["probability"] = self.model.predict_proba(X).max(1)
        return table

    def score(self, table: pd.DataFrame) -> float | None:
        """Return the share of correct labels, or R^2, of a table of `predict`; None without targets.

        Parameters
        ----------
        table : DataFrame

        Returns
        -------
        float or None
        """
        if "target" not in table:
            return None
        if self.report["task"] == "classification":
            return float((table["target"].astype(str) == table["predicted"].astype(str)).mean())
        y = table["target"].to_numpy(dtype=np.float64)
        return float(1 - np.mean((table["predicted"] - y) ** 2) / max(y.var(), 1e-300))

    def summary(self) -> str:
        """Return the finding in a few sentences.

        Returns
        -------
        str
        """
        return (
            f"{self.report['sentence']}\nModel: {self.report['form']} of rank {self.report['rank']}, "
            f"{self.report['parameters']:,} parameters in place of {self.report['places']:,}."
        )
