"""Assess: how well held-out samples are predicted, beside the same model with one coefficient per place."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegressionCV, RidgeCV
from sklearn.model_selection import KFold, StratifiedKFold

from lowdim.errors import DataError, LowdimWarning

__all__ = ["Assessment", "assess", "baseline", "check_folds"]

PENALTIES = np.logspace(-3, 5, 17)
"""Of ridge regression, as scikit-learn counts them, in units of the mean squared feature."""

INVERSE_PENALTIES = np.logspace(-4, 1, 6)
"""C of logistic regression."""


@dataclass(frozen=True, eq=False)
class Assessment:
    """Predictions of samples that the fits had not seen.

    Parameters
    ----------
    predicted, plain : ndarray of shape (N,)
        By the tensor model, and by the plain one on vectors.
    y : ndarray of shape (N,)
    classifier : bool

    Examples
    --------
    >>> found = Assessment(np.array([1, 0]), np.array([1, 1]), np.array([1, 1]), True)
    >>> found.score, found.plain_score
    (0.5, 1.0)
    """

    predicted: np.ndarray
    plain: np.ndarray
    y: np.ndarray
    classifier: bool

    @property
    def score(self) -> float:
        """Share of correct labels, or explained variance (R^2)."""
        return self._score(self.predicted)

    @property
    def plain_score(self) -> float:
        """The same of the plain model."""
        return self._score(self.plain)

    @property
    def gain(self) -> tuple[float, float]:
        """Mean difference of the losses per sample (wrong labels, squared errors), and its standard error."""
        each = self._losses(self.plain) - self._losses(self.predicted)
        return float(each.mean()), float(each.std(ddof=1) / len(each) ** 0.5)

    def _losses(self, predicted: np.ndarray) -> np.ndarray:
        if self.classifier:
            return (predicted != self.y).astype(np.float64)
        return (predicted - self.y) ** 2 / self.y.var()

    def _score(self, predicted: np.ndarray) -> float:
        return float(1 - self._losses(predicted).mean())


def assess(
    search: Any,
    X: np.ndarray,
    y: np.ndarray,
    *,
    classifier: bool,
    folds: int,
    seed: int,
    callback: Callable[[int], None] | None = None,
) -> Assessment:
    """Predict every sample by a search that has not seen it.

    Parameters
    ----------
    search : TensorRegressorCV or TensorClassifierCV
        Fitted anew in every fold, so that its choice is part of what is assessed.
    X : ndarray of shape (N, n1, ..., nd)
    y : ndarray of shape (N,)
    classifier : bool
        Whether folds are stratified.
    folds : int
    seed : int
        Of the order of the samples.
    callback : callable, optional
        Called with the number of folds done.

    Returns
    -------
    Assessment

    Raises
    ------
    DataError
        If there are too few samples (of a class) for so many folds.
    """
    check_folds(y, classifier=classifier, folds=folds)
    kind = StratifiedKFold if classifier else KFold
    splits = kind(folds, shuffle=True, random_state=seed)
    predicted, plain = np.empty_like(y), np.empty_like(y)
    for done, (train, test) in enumerate(splits.split(X, y)):
        if callback is not None:
            callback(done)
        with warnings.catch_warnings():
            # Of fits that are only tried nobody needs to hear that they took too long.
            warnings.simplefilter("ignore", ConvergenceWarning)
            warnings.simplefilter("ignore", LowdimWarning)
            # Of a rare class the folds within a fold cannot all have a sample.
            warnings.filterwarnings("ignore", message="The least populated class")
            predicted[test] = search.fit(X[train], y[train]).predict(X[test])
        plain[test] = baseline(X[train], y[train], X[test], classifier=classifier, seed=seed)
    return Assessment(predicted, plain, y, classifier)


def check_folds(y: np.ndarray, *, classifier: bool, folds: int) -> None:
    """Refuse more folds than there are samples, or samples of a class.

    Parameters
    ----------
    y : ndarray of shape (N,)
    classifier : bool
    folds : int

    Raises
    ------
    DataError
    """
    least, what = len(y), "samples"
    if classifier:
        labels, counts = np.unique(y, return_counts=True)
        least, what = int(counts.min()), "samples of the rarest class"
        if least < 2:
            rare = labels[counts.argmin()].item()
            raise DataError(
                f"regress: class {rare!r} has one sample, expected two or more, to fit one and predict the "
                "other. Drop it, or join it with another class."
            )
    if folds < 2 or least < folds:
        use = "2 folds" if least == 2 else f"2 to {least} folds"
        raise DataError(f"regress: {folds} folds cannot be made of {least} {what}. Use {use}.")


def baseline(X: np.ndarray, y: np.ndarray, new: np.ndarray, *, classifier: bool, seed: int = 0) -> np.ndarray:
    """Predict by ridge or logistic regression on vectors, its penalty chosen by cross-validation.

    Neither model changes when coordinates are turned, so with fewer samples than features both are fitted in
    the space that the samples span.

    Parameters
    ----------
    X : ndarray of shape (N, n1, ..., nd)
    y : ndarray of shape (N,)
    new : ndarray of shape (M, n1, ..., nd)
    classifier : bool
    seed : int
        Of the order of the samples.

    Returns
    -------
    ndarray of shape (M,)
    """
    flat, other = X.reshape(len(X), -1).astype(np.float64), new.reshape(len(new), -1).astype(np.float64)
    mean = flat.mean(0)
    flat, other = flat - mean, other - mean
    if flat.shape[1] > len(flat):
        _, _, V = np.linalg.svd(flat, full_matrices=False)
        flat, other = flat @ V.T, other @ V.T
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ConvergenceWarning of weak penalties, and of changing defaults
        if classifier:
            folds = int(min(5, np.unique(y, return_counts=True)[1].min()))
            if folds < 2:
                from sklearn.linear_model import LogisticRegression

                return LogisticRegression(C=0.01, max_iter=1000).fit(flat, y).predict(other)
            model = LogisticRegressionCV(
                Cs=INVERSE_PENALTIES,
                cv=StratifiedKFold(folds, shuffle=True, random_state=seed),
                max_iter=1000,
            )
            return model.fit(flat, y).predict(other)
        return RidgeCV(alphas=PENALTIES).fit(flat, y).predict(other)
