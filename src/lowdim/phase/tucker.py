"""Tucker: a video from too few magnitudes per frame, as one low-rank tensor (TSPR)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, Literal

import torch
from sklearn.base import BaseEstimator

from lowdim.algebra.history import History
from lowdim.algebra.tensors import Tucker
from lowdim.errors import RankError
from lowdim.phase.door import check_options, check_ranks, seed_of, warn_about
from lowdim.phase.problem import Problem
from lowdim.phase.ranks import RankChoice, choose_ranks
from lowdim.phase.sweeps import Options, Outcome, solve
from lowdim.phase.video import Video
from lowdim.store import read_model, write_model

__all__ = ["TuckerPhaseRetrieval"]


class TuckerPhaseRetrieval(BaseEstimator):
    """Recover frames from ``y_k = |A_k x_k|`` with fewer measurements than pixels.

    All frames together are one tensor of low Tucker rank, ``X_k = (G x_f f_k) x1 D x2 E``. A sweep renews the
    coefficients F of every frame by reshaped Wirtinger flow and, with the phases it finds, the factors D, E
    and the core G by least squares [1]_. Orthonormal factors, refinement after the flow, exact block solves
    in two passes over A, warm starts, the joint spectral start, growth of the ranks and the weights against
    outliers are ours.

    Parameters
    ----------
    ranks : sequence of int, or "auto"
        (r1, ..., rd, rf): one per axis of an image, and that of the frames. "auto" chooses them by held-out
        measurements (`choose_ranks`).
    init : {"auto", "joint", "grow", "frame", "random"}
        First start. "joint": the common spectrum of all frames, shaped by an HOSVD; "frame": that of each
        frame (the paper's); "grow": half of the ranks first, so that strong components are found before weak
        ones; "auto" begins with "joint".
    n_init : int
        Starts at most: "joint", "grow", "frame", and then "grow" with other random directions (all random,
        if the first is). The smallest loss wins, and a loss below 1e-3 (or two equal ends) is not tried
        again.
    max_iter : int
        Sweeps at most from each start.
    tol : float
        Relative change of the loss at which to stop.
    robust : bool
        Weigh measurements that fit nothing down (Tukey's biweight), for a few per cent of outliers.
    real : bool
        Frames are real although A is complex, as images before a Fourier transform.
    n_refine : int
        Rounds of "take the phases, solve the least squares" after the Wirtinger flow.
    solver : {"auto", "direct", "cg"}
        Block solves by normal equations, or by conjugate gradients, which only apply A. "auto" is "direct"
        for tensors and blocks of up to 4,000 unknowns.
    ridge : float
        Strength of a normal prior on pixels, relative to what the misfit says about the noise. It vanishes
        with the misfit, and keeps single frames from growing where measurements do not see them.
    chunk_bytes : int
        Memory for what is made of one part of the frames in a sweep.
    random_state : int or None
        Of what is random.

    Attributes
    ----------
    frames_ : Tensor or ndarray, shape (q, n1, ..., nd)
        Each is known up to its own unit factor (sign); see `smooth_phases` and `align`.
    core_, factors_ : the Tucker form
        ``factors_`` are D, E, ..., and F last; ``tucker()`` hands them over as one object.
    loss_ : list of float
        ``sum (|A x| - y)^2 / sum y^2`` after every sweep of the best start. A wrong end is about as far from
        the truth as 0 is, and its loss is not small: look at it.
    n_iter_ : int
        Sweeps of the best start.
    converged_ : bool
        Whether the loss stood still.
    weights_ : Tensor or ndarray, shape (q, m), or None
        Of the measurements, if robust.
    choice_ : RankChoice or None
        How the ranks were chosen, if they were.
    history_ : History

    Raises
    ------
    ShapeError, RankError, DataError
        If data or options do not fit, before anything is computed.

    References
    ----------
    .. [1] S. Kwon, X. Li, A. Sarwate, "Low-rank phase retrieval with structured tensor models", ICASSP 2022.

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    >>> X = torch.einsum("kc,ia,jb,abc->kij", draw(20, 2), draw(8, 2), draw(8, 2), draw(2, 2, 2))
    >>> A = draw(20, 48, 8, 8)
    >>> model = TuckerPhaseRetrieval((2, 2, 2)).fit(A, torch.einsum("kmij,kij->km", A, X).abs())
    >>> from lowdim.phase import relative_error
    >>> model.frames_.shape, relative_error(model.frames_, X) < 1e-8
    (torch.Size([20, 8, 8]), True)
    """

    def __init__(
        self,
        ranks: Sequence[int] | Literal["auto"] = "auto",
        *,
        init: Literal["auto", "joint", "grow", "frame", "random"] = "auto",
        n_init: int = 4,
        max_iter: int = 100,
        tol: float = 1e-6,
        robust: bool = False,
        real: bool = False,
        n_refine: int = 10,
        solver: Literal["auto", "direct", "cg"] = "auto",
        ridge: float = 0.03,
        chunk_bytes: int = 2**28,
        random_state: int | None = 0,
    ) -> None:
        self.ranks = ranks
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.robust = robust
        self.real = real
        self.n_refine = n_refine
        self.solver = solver
        self.ridge = ridge
        self.chunk_bytes = chunk_bytes
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
    ) -> TuckerPhaseRetrieval:
        """Find frames that explain the magnitudes.

        Parameters
        ----------
        A : array-like (q, m, n1, n2) or (q, m, n), Measurement, or a physics of deepinv
            Rows are the conjugated measurement vectors, so that ``A_k x_k`` is measured; without the axis of
            frames it is the same for all.
        y : array-like, shape (q, m)
            Magnitudes; from intensities they cannot be told, so say so.
        image_shape : sequence of int, optional
            Where A does not tell; any number of axes.
        intensity : bool
            Whether y holds squared magnitudes.
        sample_weight : array-like, shape (q, m), optional
            Weights >= 0 of the measurements; 0 for those that are missing.
        callback : callable, optional
            Called with (start, sweep, loss).

        Returns
        -------
        TuckerPhaseRetrieval
            Itself.
        """
        where = type(self).__name__
        check_options(self, where)
        problem = Problem.of(
            A,
            y,
            image_shape=image_shape,
            intensity=intensity,
            sample_weight=sample_weight,
            real=self.real,
            where=where,
        )
        begin, seed = perf_counter(), seed_of(self.random_state, where)
        self.choice_: RankChoice | None = None
        if isinstance(self.ranks, str):
            if self.ranks != "auto":
                raise RankError(
                    f"{where}: ranks={self.ranks!r} is no rank. Use 'auto' or one number per mode."
                )
            self.choice_ = choose_ranks(problem, self._options(), seed=seed, callback=callback)
            ranks = self.choice_.ranks
        else:
            ranks = check_ranks(self.ranks, problem, where)
        outcome = solve(
            problem,
            ranks,
            self._options(),
            init=self.init,
            n_init=self.n_init,
            seed=seed,
            callback=callback,
        )
        self._keep(outcome, problem, perf_counter() - begin)
        warn_about(outcome.loss[-1], problem, ranks, where)
        return self

    def tucker(self) -> Tucker:
        """Return core and factors as one Tucker form with modes (n1, ..., nd, q)."""
        as_tensor = torch.as_tensor
        return Tucker(as_tensor(self.core_), tuple(as_tensor(factor) for factor in self.factors_))

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write factors, core, loss and options to a folder, for `load`."""
        names = [f"factor_{i}" for i in range(len(self.factors_))]
        arrays = {"core": self.core_, **dict(zip(names, self.factors_, strict=True))}
        arrays = {name: torch.as_tensor(array).cpu().numpy() for name, array in arrays.items()}
        write_model(self, directory, arrays, {"loss": self.loss_, "converged": self.converged_})

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> TuckerPhaseRetrieval:
        """Read what `save` has written; frames are multiplied out anew, in tensors."""
        model, arrays, facts = read_model(cls, directory)
        factors = [torch.as_tensor(arrays[f"factor_{i}"]) for i in range(len(arrays) - 1)]
        video = Video(torch.as_tensor(arrays["core"]), factors[:-1], factors[-1])
        model.core_, model.factors_ = video.core, factors
        model.frames_ = video.frames()
        model.loss_, model.converged_ = facts["loss"], facts["converged"]
        model.n_iter_, model.weights_, model.choice_ = len(model.loss_), None, None
        return model

    def _options(self) -> Options:
        return Options(
            max_iter=self.max_iter,
            tol=self.tol,
            n_refine=self.n_refine,
            solver=self.solver,
            robust=self.robust,
            ridge=self.ridge,
            chunk_bytes=self.chunk_bytes,
        )

    def _keep(self, outcome: Outcome, problem: Problem, seconds: float) -> None:
        found = outcome.video
        video = Video(found.core * problem.unit, found.factors, found.coef)
        self.frames_: Any = problem.out(video.frames())
        self.core_: Any = problem.out(video.core)
        self.factors_ = [problem.out(factor) for factor in (*video.factors, video.coef)]
        self.loss_ = list(outcome.loss)
        self.n_iter_ = len(outcome.loss)
        self.converged_ = outcome.reason == "tolerance"
        self.weights_: Any = None if outcome.weights is None else problem.out(outcome.weights)
        residual = tuple(loss**0.5 for loss in outcome.loss)
        self.history_ = History(outcome.loss, residual, seconds, outcome.reason)
