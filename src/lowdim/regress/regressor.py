"""TensorRegressor: least squares with coefficients of low CP or Tucker rank."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils import check_random_state
from torch import Tensor

from lowdim.errors import DataError
from lowdim.regress.door import check_numbers, enter, weights_of
from lowdim.regress.grid import Grid, Ranks, check_ranks
from lowdim.regress.model import TensorModel
from lowdim.regress.samples import Samples
from lowdim.regress.squared import fit_squared

__all__ = ["TensorRegressor", "check_determined"]


class TensorRegressor(RegressorMixin, TensorModel):
    r"""Regression on images, volumes and other arrays, with coefficients of low tensor rank.

    Minimizes ``sum_i s_i (y_i - b - <W, X_i>)^2 + alpha pen(W)`` over coefficients ``W = sum_r w1_r o ... o
    wd_r`` (CP) or ``W = G x1 F1 ... xd Fd`` (Tucker): R (n1 + ... + nd) numbers in place of n1 n2 ... nd.
    ``s_i`` are the sample weights, scaled to sum 1. The penalty is ``||W||^2``; for CP forms of three and
    more modes ``sum_r ||w1_r o ... o wd_r||^2``, which keeps terms from growing against one another.

    All factors move at once, by Gauss-Newton steps on the tangent space of the tensors of their rank (after
    [2]_), with curvature near the end where the coefficients are a matrix; a step that does not help is
    replaced by factors relaxed in turn, each by exact least squares ([1]_ section 3.2), as all are with
    ``alpha=0``.

    Parameters
    ----------
    rank : int or tuple of int, default 2
        R of a CP form; of a Tucker form one number for all modes, or one per mode. Plain vectors have none.
    decomposition : {"cp", "tucker"}
        Form of the coefficients.
    shape : tuple of int, optional
        (n1, ..., nd), for X whose samples are laid flat. Without it X (N, n1, ..., nd) tells; X (N, p) are
        plain vectors, and the model is ridge regression.
    mask : array-like of bool of shape (n1, ..., nd), optional
        Places that are looked at: X may hold these only, (N, mask.sum()), as maskers of nilearn give them.
        Coefficients elsewhere are shown as 0, and X may hold NaN there.
    alpha : float, default 1e-3
        Penalty, in units of the mean squared feature (scikit-learn's Ridge: alpha times the number of
        samples).
    fit_intercept : bool
        Whether there is an unpenalized b.
    n_init : int, default 1
        Starts: the first from the singular vectors of the moment tensor ``sum_i s_i y_i X_i``, others
        Gaussian, all in one batch. The best is kept.
    max_iter : int, default 100
        Most sweeps over the factors.
    tol : float, default 1e-5
        Stop when a sweep lowers the objective by no more than this fraction of it.
    random_state : int, RandomState or None
        For Gaussian starts, and for columns of the start beyond the size of a mode.

    Attributes
    ----------
    coef_ : ndarray of shape (n1, ..., nd) or (T, n1, ..., nd)
        W; compare this, not the factors, which are determined up to scale and order only.
    intercept_ : float or ndarray of shape (T,)
    factors_ : list of ndarray of shape (n_k, r_k)
        For several targets a list of such lists: every target has factors of its own.
    core_ : ndarray or None
        Of a Tucker form.
    n_iter_, objective_, n_parameters_, shape_, n_features_in_
        Sweeps, final objective, numbers in the form, its modes, columns of X.

    Notes
    -----
    float32 samples are read in float32; the small systems are always solved in double precision. Tensors of
    torch are computed with on their device, and predictions are tensors there. A memory map is read in pieces
    of at most a quarter of scikit-learn's ``working_memory`` and never held whole.

    References
    ----------
    .. [1] H. Zhou, L. Li, H. Zhu, "Tensor regression with applications in neuroimaging data analysis",
       JASA 108, 2013.
    .. [2] Y. Luo, W. Huang, X. Li, A. Zhang, "Recursive importance sketching for rank constrained least
       squares", Oper. Res. 72, 2024.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> W = np.outer([0, 1, 1, 0, 0], [1, 1, 0, 0])
    >>> X = rng.normal(size=(60, 5, 4))
    >>> y = 3 + np.tensordot(X, W, 2)
    >>> model = TensorRegressor(rank=1, alpha=1e-6).fit(X, y)
    >>> round(model.intercept_, 3), bool(np.abs(model.coef_ - W).max() < 1e-3)
    (3.0, True)
    """

    def __init__(
        self,
        rank: Any = 2,
        *,
        decomposition: str = "cp",
        shape: Any = None,
        mask: Any = None,
        alpha: float = 1e-3,
        fit_intercept: bool = True,
        n_init: int = 1,
        max_iter: int = 100,
        tol: float = 1e-5,
        random_state: Any = None,
    ) -> None:
        self.rank = rank
        self.decomposition = decomposition
        self.shape = shape
        self.mask = mask
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit the coefficients.

        Parameters
        ----------
        X : array-like or Tensor of shape (N, n1, ..., nd) or (N, p)
        y : array-like of shape (N,) or (N, T)
            Several targets are fitted side by side, each with factors of its own.
        sample_weight : array-like of shape (N,), optional
            An integer weight is the same as so many copies.

        Returns
        -------
        TensorRegressor
        """
        check_numbers(self)
        X, given, y = enter(self, X, y, numeric=True, least=2, fit=True)
        grid = self._grid(given)
        ranks = check_ranks(self.rank, grid, decomposition=self.decomposition, where=type(self).__name__)
        check_determined(self, self.alpha, ranks, grid, len(y))
        samples, weights, targets = self._open(X, y, sample_weight, grid)
        self._learn(samples, weights, targets, self.alpha, ranks, flat=y.ndim == 1)
        return self

    def _open(self, X: Any, y: np.ndarray, sample_weight: Any, grid: Grid) -> tuple[Samples, Tensor, Tensor]:
        """Return centered samples, weights (N,) and targets (T, N), on the device."""
        weights = torch.as_tensor(weights_of(sample_weight, len(y), where=type(self).__name__))
        if isinstance(X, Tensor):
            weights = weights.to(X.device)
        samples = Samples(X, grid, weights, center=self.fit_intercept)
        targets = torch.as_tensor(np.ascontiguousarray(y.reshape(len(y), -1).T, dtype=np.float64))
        return samples, weights, targets.to(samples.device)

    def _learn(
        self, samples: Samples, weights: Tensor, targets: Tensor, alpha: float, ranks: Ranks, *, flat: bool
    ) -> None:
        """Fit all targets and take the result over."""
        T = len(targets)
        self.n_parameters_ = T * self._count(samples.grid.shape, ranks, 1, samples.count)
        fits = fit_squared(
            samples,
            weights.expand(T, -1),
            targets,
            torch.full((T,), float(alpha), dtype=torch.float64, device=samples.device),
            [ranks] * T,
            center=self.fit_intercept,
            n_init=self.n_init,
            tol=self.tol,
            max_iter=self.max_iter,
            random=check_random_state(self.random_state),
        )
        self._keep(samples.grid, fits, several=not flat)

    def predict(self, X: Any) -> Any:
        """Return ``b + <W, X_i>``, (N,) or (N, T): an array, or for a tensor X a tensor on its device."""
        scores, tensor = self._scores(X)
        found = scores[:, 0] if np.ndim(self.intercept_) == 0 else scores
        return found if tensor else found.cpu().numpy()

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the explained share of the variance of y, R^2, of samples X with weights sample_weight."""
        predicted = self.predict(X)
        if isinstance(predicted, Tensor):
            predicted = predicted.cpu().numpy()
        y = y.detach().cpu().numpy() if isinstance(y, Tensor) else y
        return float(r2_score(y, predicted, sample_weight=sample_weight))


def check_determined(estimator: Any, alpha: float, ranks: Ranks, grid: Grid, N: int) -> None:
    """Refuse a penalty of zero where a block has more unknowns than there are samples.

    Parameters
    ----------
    estimator : estimator
        Who asks.
    alpha : float
    ranks : tuple of int
    grid : Grid
    N : int
        Samples.

    Raises
    ------
    DataError
    """
    each = ranks if len(ranks) != 1 else ranks * len(grid.shape)
    most = max((n * r for n, r in zip(grid.shape, each, strict=True)), default=0) if ranks else grid.size
    if alpha == 0 and most > N - estimator.fit_intercept:
        raise DataError(
            f"{type(estimator).__name__}: alpha=0 leaves {most} unknowns of one factor undetermined by {N} "
            "samples. Use alpha > 0 (the default is 1e-3), or more samples."
        )
