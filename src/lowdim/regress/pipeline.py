"""Pipeline: `regress`, from samples and targets to a model, its assessment and a report."""

from __future__ import annotations

import os
import time as clock
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from sklearn.exceptions import ConvergenceWarning

from lowdim.errors import DataError, LowdimWarning, RunError
from lowdim.regress.assess import Assessment, assess
from lowdim.regress.classifier import TensorClassifier
from lowdim.regress.files import Collection, collection_of, mask_of
from lowdim.regress.grid import Grid, check_ranks, grid_of
from lowdim.regress.record import assessment_record, maps_record, plain
from lowdim.regress.regressor import TensorRegressor
from lowdim.regress.result import FORMAT, RegressResult
from lowdim.regress.search import TensorClassifierCV, TensorRegressorCV
from lowdim.regress.settings import Settings
from lowdim.runs import Run, digest, versions

__all__ = ["Progress", "regress"]

Progress = Callable[[str, int, int, str], None]
Task = Literal["auto", "regression", "classification"]

FEW = 10
"""Whole numbers of at most so many values are classes, unless the task is named."""


def regress(
    source: Any,
    *,
    y: Any = None,
    target: str | None = None,
    labels: Any = None,
    mask: Any = None,
    shape: Sequence[int] | None = None,
    task: Task = "auto",
    ranks: Sequence[Any] | None = None,
    alphas: Sequence[float] | None = None,
    decomposition: str = "cp",
    loss: str = "logistic",
    folds: int = 5,
    n_init: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
    output: str | os.PathLike[str] | None = None,
    resume: bool = False,
    restart: bool = False,
) -> RegressResult:
    """Fit coefficients of low tensor rank, and find out how well they predict what they have not seen.

    Parameters
    ----------
    source : path, DataFrame, or array-like of shape (N, n1, ..., nd)
        Samples; files as in `read_collection`.
    y : array-like of shape (N,), optional
        Targets, in place of those of the source.
    target : str, optional
        What the targets are called, of files and tables.
    labels : path, optional
        Table of the targets, of folders and arrays.
    mask : path or array-like of shape (n1, ..., nd), optional
        Places that are looked at, not zero there.
    shape : sequence of int, optional
        (n1, ..., nd), for samples that are laid flat.
    task : {"auto", "regression", "classification"}
        "auto" takes words, and whole numbers of at most ten values, for classes.
    ranks : sequence of int or of tuple of int, optional
        Ranks to choose from; 1, 2 and 3 by default.
    alphas : sequence of float, optional
        Penalties to choose from, in units of the mean squared feature.
    decomposition : {"cp", "tucker"}
    loss : {"logistic", "squared_hinge"}
        Of classification.
    folds : int
        Parts of the samples, each predicted by a fit to the others, and within each of these fits again
        parts to choose rank and penalty on.
    n_init : int
        Starts of every fit; the best is kept.
    seed : int
        Of the folds and starts.
    progress : callable, optional
        Called with (phase, done, total, what is going on).
    output : path, optional
        Run directory that the result is written to.
    resume, restart : bool
        Read the finished run in `output` again, or throw it away.

    Returns
    -------
    RegressResult

    Raises
    ------
    DataError, ShapeError, RankError, MissingExtra
        If the source, its numbers or an option cannot be used.
    RunError
        If the output folder is in use, holds another run, or cannot be written.

    Notes
    -----
    Samples are divided by their common standard deviation, so that penalties mean the same whatever the
    unit; the model is given back in the unit of the samples.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(100, 8, 8))
    >>> result = regress(X, y=X[:, 2:5, 3:6].sum((1, 2)) + 0.1 * rng.normal(size=100))
    >>> result.report["rank"], result.report["assessment"]["score"] > 0.95
    (1, True)
    """
    settings = Settings(
        task,
        None if ranks is None else tuple(ranks),
        None if alphas is None else tuple(alphas),
        decomposition,
        loss,
        None if shape is None else tuple(shape),
        folds,
        n_init,
        seed,
    )
    if output is None and (resume or restart):
        raise RunError("regress: resume and restart need the output folder of the run. Add output=...")
    found = collection_of(source, y, target=target, labels=labels)
    job = Job(found, mask_of(mask), settings, _name(source), progress)
    with ExitStack() as stack:
        if output is not None:
            hidden = None if job.mask is None else digest(np.ascontiguousarray(job.mask).tobytes())
            run = stack.enter_context(
                Run.open(
                    output,
                    command="regress fit",
                    arguments={"source": job.name, "target": target, "mask": hidden, **settings.arguments()},
                    seed=seed,
                    inputs={"samples": found.digest()},
                    resume=resume,
                    restart=restart,
                )
            )
            if run.finished:
                return RegressResult.load(run.path)
        result = job.result()
        if output is not None:
            result.save(output)
        return result


@dataclass
class Job:
    """One call of `regress` at work.

    Parameters
    ----------
    found : Collection
    mask : ndarray of bool or None
    settings : Settings
    name : str
        Of the source, as people call it.
    progress : callable or None
    """

    found: Collection
    mask: np.ndarray | None
    settings: Settings
    name: str
    progress: Progress | None
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    grid: Grid = field(init=False)

    def __post_init__(self) -> None:
        X, y = self.found.X, self.found.y
        if y is None:
            raise DataError(
                f"regress: {self.name} has no targets. Name their column or array with target=..., or a "
                "table with labels=..., or keep one folder per class."
            )
        self.y: np.ndarray = y
        if len(X) < 4:
            raise DataError(f"regress: {self.name} has {len(X)} samples, expected 4 or more.")
        finite = np.isfinite(X.reshape(len(X), -1)).all(1)
        if not finite.all():
            first = self.found.samples[int(np.flatnonzero(~finite)[0])]
            raise DataError(
                f"regress: sample {first} of {self.name} holds NaN or infinity. Impute or drop it."
            )
        self.grid = grid_of(X.shape[1:], shape=self.settings.shape, mask=self.mask, where="regress")
        if self.settings.ranks is not None:
            for rank in self.settings.ranks:
                check_ranks(rank, self.grid, decomposition=self.settings.decomposition, where="regress")
        self.classifier = self._is_classification()
        if not self.classifier:
            self.y = self._numbers()
        elif len(np.unique(y)) < 2:
            raise DataError(
                f"regress: all targets of {self.name} are {y.tolist()[0]!r}. Classification needs two or "
                "more classes."
            )
        self.scale = self._scale()

    def _is_classification(self) -> bool:
        if self.settings.task != "auto":
            return self.settings.task == "classification"
        kind = self.y.dtype.kind
        return kind not in "fiu" or (kind in "iu" and len(np.unique(self.y)) <= FEW)

    def _numbers(self) -> np.ndarray:
        try:
            y = self.y.astype(np.float64)
        except ValueError as error:
            raise DataError(
                f"regress: targets of {self.name} are no numbers ({error}). Use task='classification'."
            ) from error
        if not np.isfinite(y).all():
            raise DataError(
                f"regress: some targets of {self.name} are missing or infinite. Drop these samples."
            )
        if y.std() == 0:
            raise DataError(f"regress: all targets of {self.name} are {y[0]:g}: there is nothing to predict.")
        return y

    def _scale(self) -> float:
        X = self.found.X
        scale = float(np.std(X, dtype=np.float64))
        if scale == 0:
            raise DataError(
                f"regress: all numbers of the samples of {self.name} are equal: nothing can be learned."
            )
        return scale

    def tell(self, phase: str, done: int, total: int, text: str) -> None:
        """Report progress."""
        if self.progress is not None:
            self.progress(phase, done, total, text)

    def _search(self) -> Any:
        settings = self.settings
        options: dict[str, Any] = {
            "decomposition": settings.decomposition,
            "shape": self.grid.shape,
            "mask": self.mask,
            "n_init": settings.n_init,
            "random_state": settings.seed,
        }
        if settings.alphas is not None:
            options["alphas"] = settings.alphas
        if self.classifier:
            rarest = int(np.unique(self.y, return_counts=True)[1].min())
            # Within a fold of the assessment a class has lost some of its samples.
            inner = max(2, min(settings.folds, rarest - -(-rarest // settings.folds)))
            return TensorClassifierCV(settings.ranks, loss=settings.loss, cv=inner, **options)
        return TensorRegressorCV(settings.ranks, cv=settings.folds, **options)

    def result(self) -> RegressResult:
        """Assess, fit, and return what was found."""
        X = self.found.X.reshape(len(self.y), -1)
        X = X / (np.float32(self.scale) if X.dtype == np.float32 else self.scale)
        begin, folds = clock.perf_counter(), self.settings.folds
        self.tell("assess", 0, folds, "")
        told = lambda done: self.tell("assess", done, folds, f"fold {done + 1}")  # noqa: E731
        found = assess(
            self._search(),
            X,
            self.y,
            classifier=self.classifier,
            folds=folds,
            seed=self.settings.seed,
            callback=told,
        )
        self.tell("assess", folds, folds, "")
        self.seconds["assess"] = clock.perf_counter() - begin
        begin = clock.perf_counter()
        self.tell("fit", 0, 1, "all samples")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", LowdimWarning)
            warnings.simplefilter("always", ConvergenceWarning)
            search = self._search().fit(X, self.y)
        for entry in caught:
            if issubclass(entry.category, (LowdimWarning, ConvergenceWarning)):
                self.notes.append(str(entry.message))
            if issubclass(entry.category, LowdimWarning):
                warnings.warn(entry.message, entry.category, stacklevel=3)
        self.seconds["fit"] = clock.perf_counter() - begin
        self.tell("fit", 1, 1, "")
        model = unscaled(search, self.scale)
        table = pd.DataFrame({"sample": self.found.samples, "target": self.y, "predicted": found.predicted})
        return RegressResult(model, table, self._report(search, model, found))

    def _report(self, search: Any, model: Any, found: Assessment) -> dict[str, Any]:
        settings, classes = self.settings, model.classes_.tolist() if self.classifier else None
        affine = self.found.affine
        report = {
            "format": FORMAT,
            "source": self.name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "task": "classification" if self.classifier else "regression",
            "target": self.found.target,
            "kind": self.found.kind,
            "samples": len(self.y),
            "shape": list(self.grid.shape),
            "places": self.grid.columns if self.mask is None else int(self.mask.sum()),
            "masked": self.mask is not None,
            "features": list(self.found.features),
            "affine": None if affine is None else affine.tolist(),
            "classes": None if classes is None else [str(label) for label in classes],
            "form": "vector" if len(self.grid.shape) == 1 else settings.decomposition,
            "rank": search.rank_ if len(self.grid.shape) > 1 else None,
            "alpha": search.alpha_,
            "parameters": model.n_parameters_,
            "steps": model.n_iter_,
            "assessment": assessment_record(found, classes),
            "sentence": self._sentence(search, found),
            "comparison": {key: list(values) for key, values in search.cv_results_.items()},
            "maps": maps_record(
                model.coef_, self.grid.shape, [] if classes is None else [str(c) for c in classes]
            ),
            "settings": settings.arguments(),
            "scale": self.scale,
            "seed": settings.seed,
            "notes": self.notes,
            "seconds": self.seconds,
            "versions": versions("pandas", "scikit-learn"),
        }
        return plain(report)

    def _sentence(self, search: Any, found: Assessment) -> str:
        score, other, (gain, error) = found.score, found.plain_score, found.gain
        form = "Plain coefficients" if len(self.grid.shape) == 1 else f"Coefficients of rank {search.rank_}"
        if self.classifier:
            what = f"{form} classify {score:.1%} of the held-out samples correctly"
            which = f"logistic regression on all {prod(self.grid.shape):,} places {other:.1%}"
        else:
            what = f"{form} explain {score:.1%} of the variance of held-out samples"
            which = f"ridge regression on all {prod(self.grid.shape):,} places {other:.1%}"
        verdict = "no difference beyond chance"
        if abs(gain) > 2 * error:
            verdict = "better beyond chance" if gain > 0 else "worse beyond chance: prefer the plain model"
        return f"{what}, {which}: {verdict}."


def unscaled(search: Any, scale: float) -> Any:
    """Return the model that a search has chosen for X / scale, for X.

    Parameters
    ----------
    search : TensorRegressorCV or TensorClassifierCV
        Fitted.
    scale : float

    Returns
    -------
    TensorRegressor or TensorClassifier
    """
    kind = TensorClassifier if isinstance(search, TensorClassifierCV) else TensorRegressor
    options = {name: search.get_params()[name] for name in kind().get_params() if name in search.get_params()}
    model = kind(**{**options, "rank": search.rank_, "alpha": search.alpha_})
    for name, value in vars(search).items():
        if name.endswith("_") and name not in ("rank_", "alpha_", "cv_results_", "best_loss_", "best_score_"):
            setattr(model, name, value)
    model.coef_ = search.coef_ / scale
    # One factor takes the scale; the last, for the first may be that of the classes.
    factors: list[Any] = search.factors_
    if isinstance(factors[0], list):
        model.factors_ = [[*form[:-1], form[-1] / scale] for form in factors]
    else:
        model.factors_ = [*factors[:-1], factors[-1] / scale]
    return model


def _name(source: Any) -> str:
    if isinstance(source, (str, os.PathLike)):
        return Path(source).resolve().name
    return "table" if hasattr(source, "columns") else "array"
