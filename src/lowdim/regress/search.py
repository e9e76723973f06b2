"""Search: rank and penalty chosen by cross-validation, all fits of it over shared reads of X."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from sklearn.model_selection import check_cv
from sklearn.utils import check_random_state
from torch import Tensor

from lowdim.errors import DataError, RankError
from lowdim.regress.classifier import TensorClassifier
from lowdim.regress.door import check_numbers, enter
from lowdim.regress.grid import Grid, Ranks, check_ranks
from lowdim.regress.losses import LOSSES
from lowdim.regress.regressor import TensorRegressor, check_determined
from lowdim.regress.samples import Samples
from lowdim.regress.smooth import fit_smooth
from lowdim.regress.squared import Fit, fit_squared

__all__ = ["TensorClassifierCV", "TensorRegressorCV"]

RANKS = (1, 2, 3)
"""Ranks that are tried, as far as they fit, if none are named."""


class _Search:
    """What both searches share: candidates, folds, the choice."""

    def _candidates(self, grid: Grid, N: int) -> tuple[list[Any], list[Ranks], list[float]]:
        """Return ranks as the user gave them, as the grid has them, and penalties."""
        where, me = type(self).__name__, self
        decomposition: str = me.decomposition  # type: ignore[attr-defined]
        named, alphas = me.ranks, list(np.atleast_1d(me.alphas))  # type: ignore[attr-defined]
        if not alphas or not all(0 <= alpha < np.inf for alpha in alphas):
            raise DataError(f"{where}: alphas={me.alphas!r} must be finite numbers, 0 or more.")  # type: ignore[attr-defined]
        given: list[Any] = list(RANKS if named is None else named)
        if not given:
            raise RankError(f"{where}: ranks={named!r} names none. Give some, such as (1, 2, 3).")
        kept, found = [], []
        for rank in given:
            try:
                ranks = check_ranks(rank, grid, decomposition=decomposition, where=where)
            except RankError:
                if named is not None or rank == given[0]:
                    raise
                continue
            if ranks not in found:
                kept.append(rank)
                found.append(ranks)
        for ranks in found:
            check_determined(self, min(alphas), ranks, grid, N)
        return kept, found, [float(alpha) for alpha in alphas]

    def _folds(self, X: Any, y: np.ndarray, *, classifier: bool) -> list[tuple[np.ndarray, np.ndarray]]:
        try:
            splits = check_cv(self.cv, y, classifier=classifier)  # type: ignore[attr-defined]
            return [(np.asarray(a), np.asarray(b)) for a, b in splits.split(np.zeros(len(y)), y)]
        except ValueError as error:
            raise DataError(f"{type(self).__name__}: {error}") from error

    def _options(self) -> dict[str, Any]:
        """Return the options of the chosen model: it is stored without the search."""
        options = super()._options()  # type: ignore[misc]
        for name in ("ranks", "alphas", "cv"):
            del options[name]
        return {"rank": self.rank_, "alpha": self.alpha_, **options}

    def _choose(self, table: list[dict[str, Any]]) -> dict[str, Any]:
        """Keep the table of candidates and return that with the smallest mean loss."""
        self.cv_results_ = {key: [row[key] for row in table] for key in table[0]}
        best = min(table, key=lambda row: row["mean_loss"])
        self.rank_, self.alpha_ = best["rank"], best["alpha"]
        self.best_loss_, self.best_score_ = best["mean_loss"], best["mean_score"]
        return best


def _seen(weights: Tensor, folds: Sequence[tuple[np.ndarray, np.ndarray]]) -> Tensor:
    """Return the weights of the samples that the folds train on, (F, N), with sum 1."""
    chosen = torch.zeros(len(folds), len(weights), dtype=torch.float64, device=weights.device)
    for fold, (train, _) in enumerate(folds):
        chosen[fold, torch.as_tensor(train, device=weights.device)] = 1
    return _scaled(chosen * weights)


def _hidden(weights: Tensor, folds: Sequence[tuple[np.ndarray, np.ndarray]]) -> Tensor:
    return _seen(weights, [(test, train) for train, test in folds])


def _scaled(weights: Tensor) -> Tensor:
    total = weights.sum(1, keepdim=True)
    if bool((total == 0).any()):
        raise DataError(
            "cross-validation: all samples of a fold have weight 0. Use fewer folds, or other weights."
        )
    return weights / total


def _scores(samples: Samples, fits: Sequence[Fit], K: int) -> Tensor:
    """Return the scores of all samples, (N, fits, K), in one read of X."""
    flat = [fit.coefficients().reshape(K, -1) for fit in fits]
    offset = torch.stack(
        [fit.intercept.reshape(-1) + W @ samples.mean.double() for fit, W in zip(fits, flat, strict=True)]
    )
    return samples.against(torch.cat(flat).T).reshape(samples.count, len(fits), K) + offset


class TensorRegressorCV(_Search, TensorRegressor):
    """`TensorRegressor` with rank and alpha chosen by cross-validation.

    Fits over penalties, targets and starts are swept together, with one read of the samples that they train
    on; of a memory map one read serves those of all folds and ranks. Fits that have come to rest leave the
    batch. The candidate with the
    smallest mean squared error on held-out samples is fitted again to all samples.

    Parameters
    ----------
    ranks : sequence of int or of tuple of int, optional
        Ranks to try; 1, 2 and 3, as far as the shape admits them, by default.
    alphas : sequence of float
        Penalties to try.
    cv : int, splitter or iterable of (train, test)
        Folds, as in scikit-learn.
    decomposition, shape, mask, fit_intercept, n_init, max_iter, tol, random_state
        As in `TensorRegressor`.

    Attributes
    ----------
    rank_, alpha_ : int or tuple, float
        What was chosen.
    cv_results_ : dict of list
        ``rank``, ``alpha``, ``mean_loss`` (squared error), ``std_loss`` over the folds, ``mean_score`` (R^2).
    best_loss_, best_score_ : float
        Of the chosen candidate.
    coef_, intercept_, factors_, core_, n_iter_, objective_, n_parameters_, shape_, n_features_in_
        As in `TensorRegressor`, as which `save` writes the model.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(80, 5, 4))
    >>> y = X[:, 1, 1] + X[:, 2, 2] + 0.1 * rng.normal(size=80)
    >>> TensorRegressorCV((1, 2)).fit(X, y).rank_
    2
    """

    def __init__(
        self,
        ranks: Any = None,
        *,
        alphas: Any = (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
        cv: Any = 5,
        decomposition: str = "cp",
        shape: Any = None,
        mask: Any = None,
        fit_intercept: bool = True,
        n_init: int = 1,
        max_iter: int = 100,
        tol: float = 1e-5,
        random_state: Any = None,
    ) -> None:
        self.ranks = ranks
        self.alphas = alphas
        self.cv = cv
        self.decomposition = decomposition
        self.shape = shape
        self.mask = mask
        self.fit_intercept = fit_intercept
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    @classmethod
    def _plain_kind(cls) -> type[Any]:
        return TensorRegressor

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Choose rank and alpha, and fit the coefficients to all samples.

        Parameters
        ----------
        X, y, sample_weight
            As in `TensorRegressor.fit`.

        Returns
        -------
        TensorRegressorCV
        """
        check_numbers(self, alpha=False)
        X, given, y = enter(self, X, y, numeric=True, least=2, fit=True)
        grid = self._grid(given)
        folds = self._folds(X, y, classifier=False)
        named, ranks, alphas = self._candidates(grid, min(len(train) for train, _ in folds))
        samples, weights, targets = self._open(X, y, sample_weight, grid)
        best = self._choose(self._compare(samples, weights, targets, folds, named, ranks, alphas))
        self._learn(
            samples, weights, targets, best["alpha"], ranks[named.index(best["rank"])], flat=y.ndim == 1
        )
        return self

    def _compare(
        self,
        samples: Samples,
        weights: Tensor,
        targets: Tensor,
        folds: list[tuple[np.ndarray, np.ndarray]],
        named: list[Any],
        ranks: list[Ranks],
        alphas: list[float],
    ) -> list[dict[str, Any]]:
        """Return loss and score of every candidate."""
        F, T = len(folds), len(targets)
        seen, hidden = _seen(weights, folds), _hidden(weights, folds)
        pairs = list(itertools.product(range(len(ranks)), alphas))
        C = len(pairs)
        alpha = torch.tensor([a for _, a in pairs], dtype=torch.float64, device=samples.device)

        def fitted(own: Samples, weights: Tensor, targets: Tensor) -> list[Fit]:
            """Return the fits of all candidates for some folds, (C, folds, T)."""
            folds = len(weights)
            return fit_squared(
                own,
                weights.repeat_interleave(T, 0).repeat(C, 1),
                targets.repeat(C * folds, 1),
                alpha.repeat_interleave(folds * T),
                [ranks[r] for r, _ in pairs for _ in range(folds * T)],
                center=self.fit_intercept,
                n_init=self.n_init,
                tol=self.tol,
                max_iter=self.max_iter,
                random=check_random_state(self.random_state),
            )

        if samples.streamed:
            fits = fitted(samples, seen, targets)
        else:
            # In memory reading is cheap: it pays more that no fit computes with samples that it does not see.
            each = []
            for train in seen:
                own, rows = samples.seen(train, center=self.fit_intercept)
                each.append(fitted(own, train[rows].unsqueeze(0), targets[:, rows]))
            fits = [each[f][c * T + t] for c in range(C) for f in range(F) for t in range(T)]
        scores = _scores(samples, fits, 1)[..., 0].reshape(-1, C, F, T)
        wrong = (scores - targets.T[:, None, None]).square()
        loss = torch.einsum("fn,ncft->cft", hidden, wrong)
        mean = hidden @ targets.T
        spread = torch.einsum("fn,nft->ft", hidden, (targets.T[:, None] - mean).square())
        score = 1 - loss / spread.clamp_min(1e-300)
        loss, score = loss.mean(2), score.mean(2)
        return _table(named, pairs, loss, score)


class TensorClassifierCV(_Search, TensorClassifier):
    """`TensorClassifier` with rank and alpha chosen by cross-validation.

    Fits over folds, penalties and starts share their reads of X. The chosen candidate, that with the smallest
    mean loss on held-out samples (the loss of the model: with few samples it is steadier than the share of
    correct labels), is fitted again to all samples.

    Parameters
    ----------
    ranks : sequence of int or of tuple of int, optional
        Ranks to try; 1, 2 and 3, as far as the shape admits them, by default.
    alphas : sequence of float
        Penalties to try.
    cv : int, splitter or iterable of (train, test)
        Folds, as in scikit-learn: stratified if it is a number.
    loss, decomposition, shape, mask, fit_intercept, class_weight, n_init, max_iter, tol, random_state
        As in `TensorClassifier`.

    Attributes
    ----------
    rank_, alpha_ : int or tuple, float
        What was chosen.
    cv_results_ : dict of list
        ``rank``, ``alpha``, ``mean_loss``, ``std_loss`` over the folds, ``mean_score`` (correct labels).
    best_loss_, best_score_ : float
        Of the chosen candidate.
    coef_, intercept_, classes_, factors_, core_, n_iter_, objective_, n_parameters_, shape_, n_features_in_
        As in `TensorClassifier`, as which `save` writes the model.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(120, 5, 4))
    >>> y = X[:, 1:3, 1:3].sum((1, 2)) > 0
    >>> TensorClassifierCV(alphas=(0.01, 0.1)).fit(X, y).rank_
    1
    """

    def __init__(
        self,
        ranks: Any = None,
        *,
        alphas: Any = (1e-3, 1e-2, 3e-2, 1e-1, 3e-1),
        cv: Any = 5,
        loss: str = "logistic",
        decomposition: str = "cp",
        shape: Any = None,
        mask: Any = None,
        fit_intercept: bool = True,
        class_weight: Any = None,
        n_init: int = 1,
        max_iter: int = 200,
        tol: float = 1e-5,
        random_state: Any = None,
    ) -> None:
        self.ranks = ranks
        self.alphas = alphas
        self.cv = cv
        self.loss = loss
        self.decomposition = decomposition
        self.shape = shape
        self.mask = mask
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    @classmethod
    def _plain_kind(cls) -> type[Any]:
        return TensorClassifier

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Choose rank and alpha, and fit the coefficients to all samples.

        Parameters
        ----------
        X, y, sample_weight
            As in `TensorClassifier.fit`.

        Returns
        -------
        TensorClassifierCV
        """
        check_numbers(self, alpha=False)
        X, grid, codes = self._labeled(X, y)
        folds = self._folds(X, codes, classifier=True)
        named, ranks, alphas = self._candidates(grid, min(len(train) for train, _ in folds))
        samples, weights = self._open(X, codes, sample_weight, grid)
        best = self._choose(self._compare(samples, weights, codes, folds, named, ranks, alphas))
        self._learn(samples, weights, codes, best["alpha"], ranks[named.index(best["rank"])])
        return self

    def _compare(
        self,
        samples: Samples,
        weights: Tensor,
        codes: np.ndarray,
        folds: list[tuple[np.ndarray, np.ndarray]],
        named: list[Any],
        ranks: list[Ranks],
        alphas: list[float],
    ) -> list[dict[str, Any]]:
        """Return loss and score of every candidate."""
        targets = self._targets(codes, samples.device)
        forms, N, K = targets.shape
        seen, hidden = _seen(weights, folds), _hidden(weights, folds)
        F = len(folds)
        pairs = list(itertools.product(range(len(ranks)), alphas))
        C = len(pairs)
        alpha = torch.tensor([a for _, a in pairs], dtype=torch.float64, device=samples.device)
        fits = fit_smooth(
            samples,
            seen.repeat_interleave(forms, 0).repeat(C, 1),
            targets if forms == 1 else targets.repeat(C * F, 1, 1),
            alpha.repeat_interleave(F * forms),
            [ranks[r] for r, _ in pairs for _ in range(F * forms)],
            loss=self._kind,
            center=self.fit_intercept,
            n_init=self.n_init,
            tol=self.tol,
            max_iter=self.max_iter,
            random=check_random_state(self.random_state),
        )
        scores = _scores(samples, fits, K).reshape(N, C * F, forms * K)
        wanted = targets.transpose(0, 1).reshape(N, 1, forms * K)
        each, _ = LOSSES[self._kind](scores, wanted)
        loss = torch.einsum("fn,ncf->cf", hidden, each.reshape(N, C, F))
        best = (scores[..., 0] > 0).long() if forms * K == 1 else scores.argmax(2)
        right = (
            best.reshape(N, C, F) == torch.as_tensor(codes, device=samples.device)[:, None, None]
        ).double()
        return _table(named, pairs, loss, torch.einsum("fn,ncf->cf", hidden, right))


def _table(
    named: list[Any], pairs: list[tuple[int, float]], loss: Tensor, score: Tensor
) -> list[dict[str, Any]]:
    """Return one row per candidate from losses and scores of shape (C, F)."""
    spread = loss.std(1, correction=0)
    return [
        {
            "rank": named[rank],
            "alpha": alpha,
            "mean_loss": float(loss[i].mean()),
            "std_loss": float(spread[i]),
            "mean_score": float(score[i].mean()),
        }
        for i, (rank, alpha) in enumerate(pairs)
    ]
