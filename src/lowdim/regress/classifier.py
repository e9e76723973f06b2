"""TensorClassifier: logistic, multinomial and support-vector models with coefficients of low tensor rank."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils import check_random_state, compute_sample_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d
from torch import Tensor

from lowdim.errors import DataError
from lowdim.regress.door import check_numbers, enter, weights_of
from lowdim.regress.grid import Grid, Ranks, check_ranks
from lowdim.regress.model import TensorModel
from lowdim.regress.samples import Samples
from lowdim.regress.smooth import fit_smooth

__all__ = ["TensorClassifier"]

KINDS = ("logistic", "squared_hinge")


def _has_probabilities(estimator: Any) -> bool:
    if estimator.loss != "logistic":
        raise AttributeError(f"predict_proba needs loss='logistic', this is loss={estimator.loss!r}")
    return True


class TensorClassifier(ClassifierMixin, TensorModel):
    r"""Classification of images, volumes and other arrays, with coefficients of low tensor rank.

    Minimizes ``sum_i s_i loss(t_i, b + <W, X_i>) + alpha / 2 (||W1||^2 + ... + ||Wd||^2)`` over the factors
    of a CP or Tucker form of W and the unpenalized b ([1]_; there by alternating minimization, here over all
    factors at once by L-BFGS with the analytic gradient). For matrices the penalty is, at the optimum, alpha
    times the nuclear norm of W.

    More than two classes: with ``loss="logistic"`` one multinomial model, in which the classes are one more
    mode of the CP form, or have cores of their own in a Tucker form with shared factors; with
    ``loss="squared_hinge"`` one class against the rest, each with factors of its own.

    Parameters
    ----------
    rank, decomposition, shape, mask
        As in `TensorRegressor`.
    loss : {"logistic", "squared_hinge"}
    alpha : float, default 0.01
        Penalty. The official code of [1]_ has 1, far too strong.
    fit_intercept : bool
        Whether there is a b.
    class_weight : dict, "balanced" or None
        Weights of the classes, as in scikit-learn.
    n_init : int, default 1
        Starts: the first from the moment tensor, others Gaussian. The best is kept.
    max_iter : int, default 200
        Most iterations.
    tol : float, default 1e-5
        Stop when no entry of the gradient is larger.
    random_state : int, RandomState or None
        For Gaussian starts.

    Attributes
    ----------
    coef_ : ndarray of shape (n1, ..., nd), or (K, n1, ..., nd) for K > 2 classes
    intercept_ : float or ndarray of shape (K,)
    classes_ : ndarray of shape (K,)
    factors_, core_, n_iter_, objective_, n_parameters_, shape_, n_features_in_
        As in `TensorRegressor`; of the multinomial CP form the first factor is that of the classes.

    References
    ----------
    .. [1] S. Kwon, A. Sarwate, "Learning Predictors from Multidimensional Data with Tensor Factorizations",
       Aresty Rutgers Undergraduate Research Journal 1(3), 2021.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> W = np.outer([0, 1, 1, 0, 0], [1, 1, 0, 0])
    >>> X = rng.normal(size=(200, 5, 4))
    >>> y = np.where(np.tensordot(X, W, 2) > 0, "up", "down")
    >>> model = TensorClassifier(rank=1).fit(X, y)
    >>> model.score(X, y) > 0.95, model.predict_proba(X[:3]).shape
    (True, (3, 2))
    """

    def __init__(
        self,
        rank: Any = 2,
        *,
        loss: str = "logistic",
        decomposition: str = "cp",
        shape: Any = None,
        mask: Any = None,
        alpha: float = 1e-2,
        fit_intercept: bool = True,
        class_weight: Any = None,
        n_init: int = 1,
        max_iter: int = 200,
        tol: float = 1e-5,
        random_state: Any = None,
    ) -> None:
        self.rank = rank
        self.loss = loss
        self.decomposition = decomposition
        self.shape = shape
        self.mask = mask
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit the coefficients.

        Parameters
        ----------
        X : array-like or Tensor of shape (N, n1, ..., nd) or (N, p)
        y : array-like of shape (N,)
            Labels of two or more classes.
        sample_weight : array-like of shape (N,), optional
            An integer weight is the same as so many copies.

        Returns
        -------
        TensorClassifier
        """
        check_numbers(self)
        X, grid, codes = self._labeled(X, y)
        ranks = check_ranks(self.rank, grid, decomposition=self.decomposition, where=type(self).__name__)
        samples, weights = self._open(X, codes, sample_weight, grid)
        self._learn(samples, weights, codes, self.alpha, ranks)
        return self

    def _labeled(self, X: Any, y: Any) -> tuple[Any, Grid, np.ndarray]:
        """Return X, its grid, and the number of the class of every sample."""
        where = type(self).__name__
        if self.loss not in KINDS:
            raise DataError(f"{where}: loss={self.loss!r} is unknown. Use 'logistic' or 'squared_hinge'.")
        X, given, y = enter(self, X, y, least=2, fit=True)
        y = np.asarray(y)
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        try:
            check_classification_targets(y)
        except ValueError as error:
            raise DataError(f"{where}: {error}") from error
        if y.ndim != 1:
            raise DataError(f"{where}: y has shape {y.shape}, expected one label per sample.")
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise DataError(
                f"{where}: y holds one class ({self.classes_.tolist()[0]!r}), classification needs samples "
                "of two or more classes."
            )
        return X, self._grid(given), codes

    def _open(self, X: Any, codes: np.ndarray, sample_weight: Any, grid: Grid) -> tuple[Samples, Tensor]:
        """Return centered samples and weights (N,), on the device."""
        s = weights_of(sample_weight, len(codes), where=type(self).__name__)
        if self.class_weight is not None:
            s = s * compute_sample_weight(self.class_weight, self.classes_[codes])
            s = s / s.sum()
        weights = torch.as_tensor(s)
        if isinstance(X, Tensor):
            weights = weights.to(X.device)
        return Samples(X, grid, weights, center=self.fit_intercept), weights

    @property
    def _kind(self) -> str:
        several = len(self.classes_) > 2
        return "multinomial" if several and self.loss == "logistic" else self.loss

    def _targets(self, codes: np.ndarray, device: torch.device) -> Tensor:
        """Return targets (forms, N, K): -1 and 1 for each form, or one column per class of one form."""
        labels = torch.as_tensor(codes, device=device)
        hot = torch.nn.functional.one_hot(labels, len(self.classes_)).double()
        if len(self.classes_) == 2:
            return (2 * hot[:, 1:] - 1)[None]
        if self._kind == "multinomial":
            return hot[None]
        return (2 * hot - 1).T.unsqueeze(-1)

    def _learn(
        self, samples: Samples, weights: Tensor, codes: np.ndarray, alpha: float, ranks: Ranks
    ) -> None:
        """Fit all forms and take the result over."""
        targets = self._targets(codes, samples.device)
        forms, _, K = targets.shape
        self.n_parameters_ = forms * self._count(samples.grid.shape, ranks, K, samples.count)
        fits = fit_smooth(
            samples,
            weights.expand(forms, -1),
            targets,
            torch.full((forms,), float(alpha), dtype=torch.float64, device=samples.device),
            [ranks] * forms,
            loss=self._kind,
            center=self.fit_intercept,
            n_init=self.n_init,
            tol=self.tol,
            max_iter=self.max_iter,
            random=check_random_state(self.random_state),
        )
        self._keep(samples.grid, fits, several=forms > 1, classes=K)

    def decision_function(self, X: Any) -> Any:
        """Return ``b + <W, X_i>``: (N,) for two classes, positive for the second, else (N, K)."""
        scores, tensor = self._scores(X)
        found = scores[:, 0] if len(self.classes_) == 2 else scores
        return found if tensor else found.cpu().numpy()

    def predict(self, X: Any) -> np.ndarray:
        """Return the labels, (N,)."""
        scores, _ = self._scores(X)
        best = (scores[:, 0] > 0).long() if len(self.classes_) == 2 else scores.argmax(1)
        return self.classes_[best.cpu().numpy()]

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the share of labels y that are predicted, of samples X with weights sample_weight."""
        y = y.detach().cpu().numpy() if isinstance(y, Tensor) else y
        return float(accuracy_score(y, self.predict(X), sample_weight=sample_weight))

    @available_if(_has_probabilities)
    def predict_proba(self, X: Any) -> Any:
        """Return the probability of every class, (N, K)."""
        scores, tensor = self._scores(X)
        if len(self.classes_) == 2:
            found = torch.cat([(-scores).sigmoid(), scores.sigmoid()], 1)
        else:
            found = scores.softmax(1)
        return found if tensor else found.cpu().numpy()

    @available_if(_has_probabilities)
    def predict_log_proba(self, X: Any) -> Any:
        """Return the logarithm of `predict_proba`."""
        found = self.predict_proba(X)
        return found.log() if isinstance(found, Tensor) else np.log(found)
