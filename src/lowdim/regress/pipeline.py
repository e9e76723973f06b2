"""Pipeline: `regress`, from samples and targets to a model, its assessment and a report."""

from __future__ import annotations

import os
import time as clock
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import KFold, StratifiedKFold

from lowdim.errors import DataError, LowdimWarning, RunError
from lowdim.regress.assess import Assessment, assess, check_folds
from lowdim.regress.classifier import TensorClassifier
from lowdim.regress.files import Collection, collection_of, mask_of
from lowdim.regress.grid import Grid, check_ranks, grid_of
from lowdim.regress.record import assessment_record, maps_record, sentence_of, table_notes
from lowdim.regress.regressor import TensorRegressor
from lowdim.regress.result import FORMAT, RegressResult
from lowdim.regress.search import TensorClassifierCV, TensorRegressorCV
from lowdim.regress.settings import Settings
from lowdim.regress.targets import targets_of
from lowdim.runs import Run, digest, plain, versions

__all__ = ["Progress", "regress"]

Progress = Callable[[str, int, int, str], None]
Task = Literal["auto", "regression", "classification"]


def regress(
    source: Any,
    *,
    y: Any = None,
    target: str | None = None,
    labels: Any = None,
    mask: Any = None,
    shape: Sequence[int] | None = None,
    task: Task = "auto",
    ranks: int | Sequence[Any] | None = None,
    alphas: float | Sequence[float] | None = None,
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
        Places that are looked at, not zero there. Samples may hold NaN elsewhere.
    shape : sequence of int, optional
        (n1, ..., nd), for samples that are laid flat.
    task : {"auto", "regression", "classification"}
        "auto" takes words, and whole numbers of at most ten values, for classes.
    ranks : int, or sequence of int or of tuple of int, optional
        Ranks to choose from; 1, 2 and 3 by default.
    alphas : float or sequence of float, optional
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
        ranks,
        alphas,
        decomposition,
        loss,
        shape,
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
                    seed=settings.seed,
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
    X: np.ndarray = field(init=False)
    y: np.ndarray = field(init=False)
    classifier: bool = field(init=False)
    scale: float = field(init=False)

    def __post_init__(self) -> None:
        found, settings = self.found, self.settings
        self.y, self.classifier = targets_of(found.y, found.samples, task=settings.task, name=self.name)
        if len(self.y) < 4:
            raise DataError(f"regress: {self.name} has {len(self.y)} samples, expected 4 or more.")
        self.grid = grid_of(found.X.shape[1:], shape=settings.shape, mask=self.mask, where="regress")
        # What the mask hides counts for nothing: not for the unit, nor for the plain model.
        self.X = self.grid.visible(found.X)
        finite = np.isfinite(self.X).all(1)
        if not finite.all():
            first = found.samples[int(np.flatnonzero(~finite)[0])]
            raise DataError(
                f"regress: sample {first} of {self.name} holds NaN or infinity. Impute or drop it."
            )
        for rank in settings.ranks or ():
            check_ranks(rank, self.grid, decomposition=settings.decomposition, where="regress")
        check_folds(self.y, classifier=self.classifier, folds=settings.folds)
        self.scale = float(np.std(self.X, dtype=np.float64))
        if self.scale == 0:
            raise DataError(
                f"regress: all numbers of the samples of {self.name} are equal: nothing can be learned."
            )
        if found.kind == "table":
            self.notes += table_notes(self.X, found.features)

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
        # Samples may lie in order: every fold gets some of all.
        folds: dict[str, Any] = {"shuffle": True, "random_state": settings.seed}
        # Within a fold of the assessment there are fewer samples, of all or of a class.
        least = int(np.unique(self.y, return_counts=True)[1].min()) if self.classifier else len(self.y)
        inner = max(2, min(settings.folds, least - -(-least // settings.folds)))
        if self.classifier:
            splits = StratifiedKFold(inner, **folds)
            return TensorClassifierCV(settings.ranks, loss=settings.loss, cv=splits, **options)
        return TensorRegressorCV(settings.ranks, cv=KFold(inner, **folds), **options)

    def result(self) -> RegressResult:
        """Assess, fit, and return what was found."""
        X = self.X / (np.float32(self.scale) if self.X.dtype == np.float32 else self.scale)
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
        model.n_features_in_ = self.grid.columns  # it takes samples as they were given
        table = pd.DataFrame({"sample": self.found.samples, "target": self.y, "predicted": found.predicted})
        return RegressResult(model, table, self._report(search, model, found))

    def _report(self, search: Any, model: Any, found: Assessment) -> dict[str, Any]:
        settings, classes = self.settings, model.classes_.tolist() if self.classifier else None
        affine = self.found.affine
        rank = search.rank_ if len(self.grid.shape) > 1 else None
        report = {
            "format": FORMAT,
            "source": self.name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "task": "classification" if self.classifier else "regression",
            "target": self.found.target,
            "kind": self.found.kind,
            "samples": len(self.y),
            "shape": list(self.grid.shape),
            "flat": self.found.X.ndim == 2,
            "places": self.X.shape[1],
            "masked": self.mask is not None,
            "features": list(self.found.features),
            "affine": None if affine is None else affine.tolist(),
            "classes": None if classes is None else [str(label) for label in classes],
            "form": "vector" if len(self.grid.shape) == 1 else settings.decomposition,
            "rank": rank,
            "alpha": search.alpha_,
            "parameters": model.n_parameters_,
            "plain_parameters": self.X.shape[1] * (len(classes) if classes and len(classes) > 2 else 1),
            "steps": model.n_iter_,
            "assessment": assessment_record(found, classes),
            "sentence": sentence_of(found, rank, self.X.shape[1]),
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
