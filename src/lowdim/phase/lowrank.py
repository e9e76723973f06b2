"""Low rank: a video as a matrix ``X = U B^T``, one column per frame (LRPR)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any, Literal

import torch
from sklearn.base import BaseEstimator
from torch import Tensor

from lowdim.algebra.history import History
from lowdim.errors import DataError
from lowdim.phase.door import check_options, check_ranks, seed_of, warn_about
from lowdim.phase.measurement import DenseMeasurement, Measurement
from lowdim.phase.problem import Problem
from lowdim.phase.sweeps import Options, solve
from lowdim.store import read_model, write_model

__all__ = ["LowRankPhaseRetrieval"]

METHODS = ("altmin", "lrpr2", "altgdmin")


class LowRankPhaseRetrieval(BaseEstimator):
    """Recover frames in a common subspace, ``y_k = |A_k U b_k|``.

    The models that Tucker-structured phase retrieval is compared with; better where frames have much in
    common and pixels little, and measurements are plenty.

    Parameters
    ----------
    rank : int
        Dimension of the subspace.
    method : {"altmin", "lrpr2", "altgdmin"}
        "altmin" (AltMinLowRaP [1]_): coefficients by reshaped Wirtinger flow, then U by least squares.
        "lrpr2" [2]_: coefficients by one least squares with the phases so far. "altgdmin" [3]_: as "altmin",
        with one step of steepest descent in place of the least squares in U; cheap sweeps, more of them.
    init, n_init, max_iter, tol, robust, real, ridge, random_state
        As in `TuckerPhaseRetrieval`. The papers' start is "joint", and the only one (``n_init=1``).

    Attributes
    ----------
    frames_ : Tensor or ndarray, shape (q, n1, ..., nd)
        Each up to its own unit factor.
    basis_ : Tensor or ndarray, shape (r, n1, ..., nd)
        Orthonormal images.
    coef_ : Tensor or ndarray, shape (q, r)
        Of every frame.
    loss_, n_iter_, converged_, weights_, history_
        As in `TuckerPhaseRetrieval`.

    Raises
    ------
    ShapeError, RankError, DataError
        If data or options do not fit, before anything is computed.

    References
    ----------
    .. [1] S. Nayer, P. Narayanamurthy, N. Vaswani, "Provable low rank phase retrieval", IEEE Trans. Inf.
       Theory 66, 2020.
    .. [2] N. Vaswani, S. Nayer, Y. Eldar, "Low-rank phase retrieval", IEEE Trans. Signal Process. 65, 2017.
    .. [3] S. Nayer, N. Vaswani, "Fast and sample-efficient federated low rank matrix recovery from
       column-wise linear and quadratic projections", IEEE Trans. Inf. Theory 69, 2023.

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    >>> X = (draw(30, 2) @ draw(2, 20)).reshape(30, 4, 5)
    >>> A = draw(30, 25, 4, 5)
    >>> model = LowRankPhaseRetrieval(2).fit(A, torch.einsum("kmij,kij->km", A, X).abs())
    >>> from lowdim.phase import relative_error
    >>> relative_error(model.frames_, X) < 1e-6
    True
    """

    def __init__(
        self,
        rank: int = 3,
        *,
        method: Literal["altmin", "lrpr2", "altgdmin"] = "altmin",
        init: Literal["auto", "joint", "grow", "frame", "random"] = "auto",
        n_init: int = 4,
        max_iter: int = 100,
        tol: float = 1e-6,
        robust: bool = False,
        real: bool = False,
        ridge: float = 0.03,
        random_state: int | None = 0,
    ) -> None:
        self.rank = rank
        self.method = method
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.robust = robust
        self.real = real
        self.ridge = ridge
        self.random_state = random_state

    def fit(
        self,
        A: Any,
        y: Any,
        *,
        image_shape: Sequence[int] | None = None,
        intensity: bool = False,
        sample_weight: Any = None,
        callback: Callable[[int, int, float], None] | None = None,
    ) -> LowRankPhaseRetrieval:
        """Find frames that explain the magnitudes.

        Parameters
        ----------
        A, y, image_shape, intensity, sample_weight, callback
            As in `TuckerPhaseRetrieval.fit`.

        Returns
        -------
        LowRankPhaseRetrieval
            Itself.
        """
        where = type(self).__name__
        check_options(self, where)
        if self.method not in METHODS:
            raise DataError(f"{where}: method={self.method!r} is unknown. Use one of {', '.join(METHODS)}.")
        problem = Problem.of(
            A,
            y,
            image_shape=image_shape,
            intensity=intensity,
            sample_weight=sample_weight,
            real=self.real,
            where=where,
        )
        images = problem.A.image_shape
        flat = replace(problem, A=_flattened(problem.A))
        begin, seed = perf_counter(), seed_of(self.random_state, where)
        ranks = check_ranks((self.rank, self.rank), flat, where)
        outcome = solve(
            flat, ranks, self._options(), init=self.init, n_init=self.n_init, seed=seed, callback=callback
        )
        video = outcome.video
        basis, coef = video.basis().reshape(-1, *images), video.coef * problem.unit
        self.basis_: Any = problem.out(basis)
        self.coef_: Any = problem.out(coef)
        self.frames_: Any = problem.out(torch.tensordot(coef, basis, dims=1))
        self.loss_ = list(outcome.loss)
        self.n_iter_ = len(outcome.loss)
        self.converged_ = outcome.reason == "tolerance"
        self.weights_: Any = None if outcome.weights is None else problem.out(outcome.weights)
        residual = tuple(loss**0.5 for loss in outcome.loss)
        self.history_ = History(outcome.loss, residual, perf_counter() - begin, outcome.reason)
        warn_about(outcome.loss[-1], flat, ranks, where)
        return self

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write basis, coefficients, loss and options to a folder, for `load`."""
        arrays = {"basis": self.basis_, "coef": self.coef_}
        arrays = {name: torch.as_tensor(array).cpu().numpy() for name, array in arrays.items()}
        write_model(self, directory, arrays, {"loss": self.loss_, "converged": self.converged_})

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> LowRankPhaseRetrieval:
        """Read what `save` has written; frames are multiplied out anew, in tensors."""
        model, arrays, facts = read_model(cls, directory)
        model.basis_, model.coef_ = (torch.as_tensor(arrays[name]) for name in ("basis", "coef"))
        model.frames_ = torch.tensordot(model.coef_, model.basis_, dims=1)
        model.loss_, model.converged_ = facts["loss"], facts["converged"]
        model.n_iter_, model.weights_ = len(model.loss_), None
        return model

    def _options(self) -> Options:
        plain = Options(
            max_iter=self.max_iter, tol=self.tol, robust=self.robust, ridge=self.ridge, solver="cg"
        )
        if self.method == "lrpr2":
            return replace(plain, fresh=1, n_refine=1)
        return replace(plain, solver="gradient") if self.method == "altgdmin" else plain


class _Flat(Measurement):
    """The same measurement of images whose pixels stand in one row."""

    def __init__(self, A: Measurement) -> None:
        super().__init__(
            frames=A.frames, samples=A.samples, image_shape=(A.pixels,), dtype=A.dtype, device=A.device
        )
        self.A = A

    def forward(self, x: Tensor) -> Tensor:
        return self.A.forward(x.unflatten(-1, self.A.image_shape))

    def adjoint(self, c: Tensor) -> Tensor:
        return self.A.adjoint(c).flatten(c.ndim - 1)


def _flattened(A: Measurement) -> Measurement:
    if not isinstance(A, DenseMeasurement):
        return _Flat(A)
    return DenseMeasurement(A.matrix if A.frames else A.matrix[0], image_shape=(A.pixels,))
