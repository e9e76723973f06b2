"""Model: what tensor-structured regressors and classifiers share: scores, export, files."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from lowdim.algebra.tensors import CP, Tucker
from lowdim.errors import LowdimWarning, ShapeError
from lowdim.regress.door import enter
from lowdim.regress.grid import Grid, Ranks, grid_of, parameters
from lowdim.regress.samples import Samples
from lowdim.regress.squared import Fit
from lowdim.regress.store import read_model, write_model

__all__ = ["TensorModel"]


class TensorModel(BaseEstimator):
    """Scores that are linear in X with coefficients of low tensor rank.

    Fitted attributes: ``coef_`` (n1, ..., nd), with a leading axis if there are several targets or classes;
    ``intercept_``; ``factors_`` and ``core_`` (lists of these where targets or classes have forms of their
    own); ``shape_``, ``n_iter_``, ``objective_``, ``n_parameters_``, ``n_features_in_``.
    """

    # ----- fitting ----------------------------------------------------------------------------------

    def _grid(self, given: Sequence[int]) -> Grid:
        return grid_of(given, shape=self.shape, mask=self.mask, where=type(self).__name__)

    def _count(self, shape: Sequence[int], ranks: Ranks, classes: int, N: int) -> int:
        """Return the number of parameters of one form, and warn if it has more than there are samples."""
        count = parameters(shape, ranks)
        if classes > 1:
            # The classes are one more mode of a CP form, and have cores of their own in a Tucker form.
            count += (
                classes * ranks[0] if len(ranks) == 1 else (classes - 1) * (prod(ranks) if ranks else count)
            )
        if ranks and count > N:
            warnings.warn(
                LowdimWarning(
                    f"{type(self).__name__}: {count} parameters (rank {_said(ranks)} of shape "
                    f"{tuple(shape)}) exceed the {N} samples. Lower rank, raise alpha, or take more samples."
                ),
                stacklevel=4,
            )
        return count

    def _keep(self, grid: Grid, fits: Sequence[Fit], *, several: bool, classes: int = 1) -> None:
        """Take over fitted forms; `several` of them get a leading axis, as have the classes of one form."""
        self.shape_ = grid.shape
        dense = [fit.coefficients().cpu().numpy().reshape(-1, *grid.shape) for fit in fits]
        coef = np.concatenate(dense)
        if grid.mask is not None:
            coef = coef * grid.mask
        intercept = np.concatenate([fit.intercept.reshape(-1).cpu().numpy() for fit in fits])
        single = not several and classes == 1
        self.coef_ = coef[0] if single else coef
        self.intercept_ = float(intercept[0]) if single else intercept
        factors = [[factor.cpu().numpy() for factor in fit.factors] for fit in fits]
        cores = [None if fit.core is None else fit.core.cpu().numpy() for fit in fits]
        self.factors_ = factors if several else factors[0]
        self.core_ = cores if several and cores[0] is not None else cores[0]
        self.n_iter_ = max(fit.steps for fit in fits)
        self.objective_ = sum(fit.objective for fit in fits)
        if not all(fit.converged for fit in fits):
            warnings.warn(
                ConvergenceWarning(
                    f"{type(self).__name__} stopped after max_iter={self.max_iter} steps before the "
                    "objective had come to rest. Raise max_iter or tol, or raise alpha."
                ),
                stacklevel=3,
            )

    # ----- using ------------------------------------------------------------------------------------

    def _scores(self, X: Any) -> tuple[Tensor, bool]:
        """Return ``b + <W, X_i>``, (N, K), and whether X was a tensor."""
        check_is_fitted(self, "coef_")
        given = isinstance(X, Tensor)
        X, shape, _ = enter(self, X)
        grid = grid_of(shape, shape=self.shape_, mask=self.mask, where=type(self).__name__)
        N = X.shape[0]
        weights = torch.full((N,), 1 / N, dtype=torch.float64)
        samples = Samples(X, grid, weights, center=False)
        W = torch.as_tensor(self.coef_.reshape(-1, prod(self.shape_)).T).to(samples.device)
        scores = samples.against(W) + torch.as_tensor(np.atleast_1d(self.intercept_)).to(samples.device)
        return scores.to(samples.dtype), given

    def to_tensorly(self) -> Any:
        """Return the coefficients as TensorLy's CPTensor or TuckerTensor, several forms as a list.

        The classes of one form are its first mode.
        """
        check_is_fitted(self, "coef_")
        if len(self.shape_) == 1:
            raise ShapeError(
                f"{type(self).__name__}.to_tensorly: coefficients of plain vectors have no tensor form. Fit "
                "with shape=..."
            )
        several = isinstance(self.factors_[0], list)
        forms = []
        for factors, core in zip(
            self.factors_ if several else [self.factors_],
            self.core_ if several and self.core_ is not None else [self.core_] * max(1, len(self.factors_)),
            strict=False,
        ):
            parts = tuple(torch.as_tensor(factor) for factor in factors)
            if core is None:
                forms.append(CP(parts).to_tensorly())
                continue
            inner = torch.as_tensor(core)
            if inner.ndim > len(parts):
                classes = inner.shape[0]
                if classes == 1:
                    inner = inner[0]
                else:
                    parts = (torch.eye(classes, dtype=inner.dtype), *parts)
            forms.append(Tucker(inner, parts).to_tensorly())
        return forms if several else forms[0]

    # ----- files ------------------------------------------------------------------------------------

    def save(self, directory: str | Path) -> None:
        """Write model.safetensors and model.json into `directory`, which is made if need be."""
        check_is_fitted(self, "coef_")
        write_model(self, self._plain_kind(), directory)

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """Return the model that `save` has written into `directory`."""
        return read_model(cls._plain_kind(), directory)

    @classmethod
    def _plain_kind(cls) -> type[Self]:
        """Return the class that a stored model is read as."""
        return cls

    def _options(self) -> dict[str, Any]:
        """Return the constructor's arguments that `save` writes, without mask and random state."""
        options = self.get_params(deep=False)
        return {name: value for name, value in options.items() if name not in ("random_state", "mask")}


def _said(ranks: Ranks) -> str:
    return str(ranks[0]) if len(ranks) == 1 else str(ranks)
