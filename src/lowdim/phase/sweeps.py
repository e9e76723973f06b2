"""Sweeps: from a start to a video, block after block (the loop of TSPR)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice, repeat
from math import prod

import torch
from torch import Tensor

from lowdim.algebra.history import Reason
from lowdim.algebra.seeds import Seed, gaussian
from lowdim.algebra.tensors import hosvd, mode_product
from lowdim.phase.blocks import Blocks, DenseBlocks, OperatorBlocks, Targets
from lowdim.phase.coefficients import coefficients
from lowdim.phase.initial import frame_spectrum, joint_spectrum, spectral_weights
from lowdim.phase.measurement import DenseMeasurement
from lowdim.phase.outliers import biweights
from lowdim.phase.problem import SMALL, Problem
from lowdim.phase.video import Video
from lowdim.threads import few_threads

__all__ = ["Options", "Outcome", "initial_video", "solve", "sweep"]

UNKNOWNS = 4000
"""Unknowns of a block up to which its normal equations are formed."""

FITTED = 1e-3
"""Loss below which no further start is tried: 3 % of the magnitudes are unexplained."""

NEAR = 1e-4
"""Loss below which coefficients only go on from where they are: fresh starts would end there, too."""

SPECTRAL = ("joint", "grow", "frame")
"""Starts from spectra, in the order in which they are tried."""

GROWING = 15
"""Sweeps at most with each of the smaller ranks of the start "grow"."""

AGREED = 0.01
"""Relative difference of two losses that count as the same end."""

Callback = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Options:
    """How to sweep.

    Parameters
    ----------
    max_iter : int
        Sweeps at most.
    tol : float
        Relative change of the loss at which to stop.
    n_refine : int
        Rounds of phases and least squares for the coefficients.
    fresh : int
        First sweeps in which coefficients also start anew.
    tries : int
        How often: from their spectrum, and then from random numbers.
    solver : {"auto", "direct", "cg", "gradient"}
        See `TuckerPhaseRetrieval`; "gradient" takes one step per sweep in the only image mode.
    robust : bool
        Whether outliers are weighted down.
    ridge : float
        Weight of a normal prior on pixels as strong as noise of the size of the misfit asks for.
    chunk_bytes : int
        Of the intermediate results of one part of the frames.
    """

    max_iter: int = 100
    tol: float = 1e-6
    n_refine: int = 10
    fresh: int = 30
    tries: int = 4
    solver: str = "auto"
    robust: bool = False
    ridge: float = 0.03
    chunk_bytes: int = 2**28


@dataclass(frozen=True)
class Outcome:
    """Where sweeps ended.

    Parameters
    ----------
    video : Video
        With orthonormal factors.
    loss : tuple of float
        ``sum w (|A x| - y)^2 / sum w y^2`` after every sweep.
    reason : {"tolerance", "steps"}
        Why they ended.
    weights : Tensor or None
        Of the measurements at the end, if robust.
    """

    video: Video
    loss: tuple[float, ...]
    reason: Reason
    weights: Tensor | None = None


def initial_video(problem: Problem, ranks: Sequence[int], *, kind: str = "joint", seed: Seed = 0) -> Video:
    """Return a start: factors and core; coefficients come with the first sweep.

    Parameters
    ----------
    problem : Problem
    ranks : sequence of int
        (r1, ..., rd, rf).
    kind : {"joint", "frame", "random"}
        The HOSVD of the top eigenvectors of all frames together, of those of each frame (the paper's), or
        Gaussian matrices.
    seed : int or torch.Generator
        Of the random start.

    Returns
    -------
    Video
    """
    A, q = problem.A, problem.frames
    order = len(A.image_shape)
    empty = torch.zeros(q, ranks[-1], dtype=problem.dtype, device=A.device)
    if kind == "random":
        draw = lambda *shape: gaussian(shape, seed=seed, dtype=problem.dtype, device=A.device)  # noqa: E731
        factors = [torch.linalg.qr(draw(n, r)).Q for n, r in zip(A.image_shape, ranks[:-1], strict=True)]
        video = Video(draw(*ranks), factors, empty)
        video.orthonormalize()
        return video
    weights = spectral_weights(problem.y, joint=kind == "joint")
    if problem.weights is not None:
        weights = weights * problem.weights
    if kind == "joint":
        count = min(ranks[-1], A.pixels)
        images = joint_spectrum(A, weights, count, real=problem.real, seed=seed)[1]
    else:
        images = frame_spectrum(A, weights, real=problem.real, seed=seed)
    form = hosvd(images.movedim(0, -1), (*ranks[:-1], min(ranks[-1], len(images))))
    core = mode_product(form.core, form.factors[-1], order) if kind == "joint" else form.core
    return Video(core, list(form.factors[:-1]), empty)


def solve(
    problem: Problem,
    ranks: Sequence[int],
    options: Options,
    *,
    init: str = "auto",
    n_init: int = 4,
    seed: Seed = 0,
    callback: Callback | None = None,
) -> Outcome:
    """Sweep from one start after another until one fits, and return the end with the smallest loss.

    Parameters
    ----------
    problem : Problem
    ranks : sequence of int
        (r1, ..., rd, rf).
    options : Options
    init : {"auto", "joint", "grow", "frame", "random"}
        The first start; see `TuckerPhaseRetrieval`.
    n_init : int
        Starts at most. None follows a loss below 1e-3, nor two ends at the same loss below 0.02: with too few
        measurements ends are good or bad, with little in between.
    seed : int or torch.Generator
        Of what is random.
    callback : callable, optional
        Called with (start, sweep, loss).

    Returns
    -------
    Outcome
    """
    with few_threads(problem.entries, small=SMALL):
        return _solve(problem, ranks, options, init=init, n_init=n_init, seed=seed, callback=callback)


def _solve(
    problem: Problem,
    ranks: Sequence[int],
    options: Options,
    *,
    init: str,
    n_init: int,
    seed: Seed,
    callback: Callback | None,
) -> Outcome:
    generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
    kinds = _kinds(init, ranks)
    best: Outcome | None = None
    for number, kind in enumerate(islice(kinds, n_init)):
        tell = None if callback is None else partial(callback, number)
        video = (
            _grown_video(problem, ranks, options, generator, tell)
            if kind == "grow"
            else initial_video(problem, ranks, kind=kind, seed=generator)
        )
        outcome = sweep(problem, video, options, seed=generator, callback=tell)
        agreed = best is not None and _same_end(best, outcome)
        best = outcome if best is None else min(best, outcome, key=lambda found: found.loss[-1])
        if best.loss[-1] < FITTED or agreed:
            break
    assert best is not None
    return best


def _kinds(init: str, ranks: Sequence[int]) -> Iterator[str]:
    """Yield the kinds of starts: the first, the other spectral ones, then growth anew and anew."""
    again = "grow" if init != "random" and _halved(ranks) else "random"
    first = [] if init == "auto" else [init]
    others = [kind for kind in SPECTRAL if kind not in first and (kind != "grow" or again == "grow")]
    return chain(first, others if init != "random" else (), repeat(again))


def _same_end(one: Outcome, other: Outcome) -> bool:
    a, b = one.loss[-1], other.loss[-1]
    return abs(a - b) <= AGREED * min(a, b) < AGREED * 0.02


def _halved(ranks: Sequence[int]) -> tuple[int, ...] | None:
    """Return about half of the ranks, none above the product of the others; None if these are small."""
    if max(ranks) <= 2:
        return None
    half = [-(-rank // 2) for rank in ranks]
    return tuple(min(rank, prod(half) // rank) for rank in half)


def _grown_video(
    problem: Problem,
    ranks: Sequence[int],
    options: Options,
    seed: Seed,
    callback: Callable[[int, float], None] | None,
) -> Video:
    """Fit half of the ranks first, by way of half of these: strong components before weak ones."""
    half = _halved(ranks)
    if half is None:
        return initial_video(problem, ranks, seed=seed)
    video = _grown_video(problem, half, options, seed, callback)
    short = replace(options, max_iter=min(GROWING, options.max_iter), tol=1e-2)
    return sweep(problem, video, short, seed=seed, callback=callback).video.grown(ranks, seed=seed)


def sweep(
    problem: Problem,
    video: Video,
    options: Options,
    *,
    seed: Seed = 0,
    callback: Callable[[int, float], None] | None = None,
) -> Outcome:
    """Sweep over coefficients, factors and core until the loss stands still.

    Parameters
    ----------
    problem : Problem
    video : Video
        The start, left as it is; coefficients of 0 are not used.
    options : Options
    seed : int or torch.Generator
        Of random starts of the coefficients.
    callback : callable, optional
        Called with (sweep, loss).

    Returns
    -------
    Outcome
    """
    generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
    video = video.copy()
    video.orthonormalize()
    known = bool((video.coef != 0).any())
    weights = problem.weights
    floor = 1e-12 if problem.y.dtype == torch.float32 else 1e-20
    losses: list[float] = []
    reason: Reason = "steps"
    ridge = 0.0
    blocks = _blocks(problem, video, Targets(problem.y, None, problem.real), options)
    for step in range(options.max_iter):
        targets = Targets(problem.y, None if weights is None else weights.sqrt(), problem.real, ridge)
        blocks.targets = targets
        refresh = _Refresh(targets, options, video.coef if known or step else None, None)
        if step < options.fresh and (not losses or losses[-1] > NEAR):
            shape = (options.tries - 1, *video.coef.shape)
            draws = gaussian(shape, seed=generator, dtype=problem.dtype, device=problem.A.device)
            refresh = replace(refresh, others=draws)
        found = blocks.sweep(video, refresh)
        video.orthonormalize()
        misfit = found.abs() - problem.y
        if options.robust:
            weights = biweights(misfit, problem.weights)
        losses.append(_loss(misfit, problem.y, weights))
        # Noise in a pixel's worth of measurements over the power of a pixel: what a normal prior asks for.
        gain = float(found.abs().square().sum()) / max(float(video.coef.abs().square().sum()), 1e-300)
        ridge = options.ridge * losses[-1] * gain * problem.A.pixels / problem.A.samples
        if callback is not None:
            callback(step + 1, losses[-1])
        settled = len(losses) > 1 and abs(losses[-2] - losses[-1]) <= options.tol * losses[-2]
        if losses[-1] <= floor or settled:
            reason = "tolerance"
            break
    return Outcome(video, tuple(losses), reason, weights if options.robust else None)


@dataclass(frozen=True)
class _Refresh:
    """New coefficients for a part of the frames, from the old ones and, if there are `others`, anew."""

    targets: Targets
    options: Options
    coef: Tensor | None
    others: Tensor | None

    def __call__(self, M: Tensor, part: slice) -> Tensor:
        targets = self.targets
        return coefficients(
            targets.scaled(M, part),
            targets.scaled(targets.y[part], part),
            start=None if self.coef is None else self.coef[part],
            fresh=self.others is not None,
            others=None if self.others is None else self.others[:, part],
            n_refine=self.options.n_refine,
            ridge=targets.ridge,
            real=targets.real,
        )


def _loss(misfit: Tensor, y: Tensor, weights: Tensor | None) -> float:
    w = torch.ones_like(y) if weights is None else weights
    total = float((w * y.square()).sum())
    return float((w * misfit.square()).sum()) / total if total > 0 else 0.0


def _blocks(problem: Problem, video: Video, targets: Targets, options: Options) -> Blocks:
    """Choose exact solves where there is a matrix and blocks are small."""
    A = problem.A
    unknowns = max(prod(video.ranks), *(n * r for n, r in zip(A.image_shape, video.ranks[:-1], strict=True)))
    direct = isinstance(A, DenseMeasurement) and unknowns <= UNKNOWNS
    if isinstance(A, DenseMeasurement) and (
        options.solver == "direct" or (options.solver == "auto" and direct)
    ):
        return DenseBlocks(A, targets, chunk_bytes=options.chunk_bytes)
    return OperatorBlocks(A, targets, gradient=options.solver == "gradient")
