"""Result: a fitted model with its assessment as a value, and as a folder."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lowdim.errors import DataError, RunError, ShapeError
from lowdim.regress.classifier import TensorClassifier
from lowdim.regress.files import Collection, collection_of
from lowdim.regress.grid import grid_of
from lowdim.regress.nibabel import write_volume
from lowdim.regress.regressor import TensorRegressor
from lowdim.runs import atomic_write, read_json, staged

__all__ = ["RegressResult"]

FORMAT = 1

PARTS = ("model", "coefficients.npy", "coefficients.nii.gz", "predictions.csv")
"""What a saved result consists of, beside report.json."""
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
        with staged(
            directory,
            names=PARTS,
            report=self.report,
        ) as staging:
            self.model.save(staging / "model")
            buffer = io.BytesIO()
            np.save(buffer, self.model.coef_, allow_pickle=False)
            atomic_write(staging / "coefficients.npy", buffer.getvalue())
            atomic_write(staging / "predictions.csv", self.predictions.to_csv(index=False))
            if self.report.get("affine") is not None and len(self.model.shape_) == 3:
                coef = self.model.coef_
                series = np.moveaxis(coef, 0, -1) if coef.ndim == 4 else coef
                write_volume(staging / "coefficients.nii.gz", series, np.array(self.report["affine"]))

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
        model: Any = _MODELS[report["task"]].load(folder / "model")
        kind = model.classes_.dtype if report["task"] == "classification" else np.dtype(np.float64)
        try:
            # As written: a label 01 is not 1, and NA is a name like any other.
            predictions = pd.read_csv(folder / "predictions.csv", dtype=str, keep_default_na=False)
            for column in ("target", "predicted"):
                predictions[column] = _as_kind(predictions[column], kind)
        except (OSError, ValueError, KeyError) as error:
            raise RunError(f"{folder} is incomplete or damaged ({error}). Fit again.") from error
        return cls(model, predictions, report)

    def predict(self, source: Any, *, target: str | None = None, labels: Any = None) -> pd.DataFrame:
        """Predict new samples.

        Parameters
        ----------
        source : path, DataFrame or array-like
            As in `regress`.
        target : str, optional
            What the targets are called, if they are known; by default as in the fit, where there is such a
            column or array. Some or all may be missing.
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
            If the source cannot be used, or its samples differ in shape or in their place in space from
            those of the fit.
        """
        names = self.report.get("features") or None
        wanted = target or self.report.get("target")
        found = collection_of(source, target=wanted, labels=labels, features=names, new=True)
        if target is not None and found.target != target:
            raise DataError(
                f"predict: there is no target {target!r} in the source. Check the name, or leave it out."
            )
        self._check_place(found)
        X = found.X.reshape(len(found.X), -1)
        table = pd.DataFrame({"sample": found.samples})
        if found.y is not None:
            table["target"] = found.y
            if self.report["task"] == "classification" and pd.isna(table["target"]).any():
                table["target"] = self._labels(table["target"])
        table["predicted"] = self.model.predict(X)
        if self.report["task"] == "classification" and self.model.loss == "logistic":
            table["probability"] = self.model.predict_proba(X).max(1)
        return table

    def score(self, table: pd.DataFrame) -> float | None:
        """Return the share of correct labels, or R^2, of a table of `predict`.

        Parameters
        ----------
        table : DataFrame

        Returns
        -------
        float or None
            Over the samples whose target is known; None if there are none, or for R^2 fewer than two or all
            equal.
        """
        if "target" not in table:
            return None
        if self.report["task"] == "classification":
            known = table["target"].notna().to_numpy()
            right = self._labels(table["target"]) == self._labels(table["predicted"])
            return float(right[known].mean()) if known.any() else None
        y = pd.to_numeric(table["target"], errors="coerce").to_numpy(dtype=np.float64)
        known = np.isfinite(y)
        y, predicted = y[known], table["predicted"].to_numpy(dtype=np.float64)[known]
        if len(y) < 2 or y.var() == 0:
            return None
        return float(1 - np.mean((predicted - y) ** 2) / y.var())

    def _check_place(self, found: Collection) -> None:
        """Refuse samples that lie otherwise than those of the fit, or hold NaN where the model looks."""
        given, shape = found.X.shape[1:], tuple(self.report["shape"])
        settings = self.report.get("settings") or {}
        loose = self.report["kind"] == "table" or settings.get("shape") is not None
        flat = self.report.get("flat", loose or bool(self.report.get("masked")))
        if given != shape and not (flat and len(given) == 1):
            raise ShapeError(
                f"predict: samples have shape {given}, expected {shape} as in the fit. Bring them to that "
                "shape, or check the order of their axes."
            )
        grid = grid_of(given, shape=shape, mask=self.model.mask, where="predict")
        affine = self.report.get("affine")
        moved = affine is not None and found.affine is not None
        if moved and not np.allclose(found.affine, np.array(affine), atol=1e-3):  # type: ignore[arg-type]
            raise DataError(
                "predict: the volumes lie elsewhere in space than those of the fit (other affine). Resample "
                "them to its grid."
            )
        finite = np.isfinite(grid.visible(found.X)).all(1)
        if not finite.all():
            first = found.samples[int(np.flatnonzero(~finite)[0])]
            raise DataError(f"predict: sample {first} holds NaN or infinity. Impute or drop it.")

    def _labels(self, column: pd.Series) -> pd.Series:
        """Return labels as words, None where unknown: 1.0 of a column of numbers with gaps is 1."""
        kind = self.model.classes_.dtype.kind

        def said(value: Any) -> str | None:
            if pd.isna(value):
                return None
            if kind in "iuf" and isinstance(value, (int, float, np.number)):
                return str(int(value)) if float(value).is_integer() else str(float(value))
            return str(value)

        return pd.Series([said(value) for value in column], index=column.index, dtype=object)

    def summary(self) -> str:
        """Return the finding in a few sentences.

        Returns
        -------
        str
        """
        report = self.report
        model = f"Model: {report['form']}, {report['parameters']:,} parameters"
        if report["rank"] is not None:
            plain = report.get("plain_parameters", report["places"])
            model = (
                f"Model: {report['form']} of rank {report['rank']}, {report['parameters']:,} parameters in "
                f"place of {plain:,}"
            )
        return f"{report['sentence']}\n{model}."


def _as_kind(words: pd.Series, kind: np.dtype) -> Any:
    """Return words as what they stand for: labels of that kind, or numbers."""
    if kind.kind == "b":
        return words.map({"True": True, "False": False}).astype(bool)
    return words.astype(kind) if kind.kind in "iuf" else words
