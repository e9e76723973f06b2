"""Ranks: how many directions a video has, judged by measurements that are left out of the fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lowdim.algebra.tensors import hosvd, unfold
from lowdim.phase.problem import SMALL, Problem, count_unknowns
from lowdim.phase.sweeps import Options, Outcome, solve, sweep
from lowdim.phase.video import Video
from lowdim.threads import few_threads

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["RankChoice", "choose_ranks"]

HELD_OUT = 0.1
"""Fraction of the measurements that judge."""

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Equal ranks of all modes that are tried, one after another."""

EXACT = 1e-12
"""Held-out loss at which nothing is left to gain."""

BETTER = 0.9
"""A larger size goes on if it brings the held-out loss below this fraction."""


@dataclass(frozen=True)
class RankChoice:
    """Ranks, and the candidates that they were chosen from.

    Parameters
    ----------
    ranks : tuple of int
        (r1, ..., rd, rf).
    candidates : tuple of dict
        Of each: ranks, unknowns, and the loss on held-out measurements.
    held_out : int
        Number of held-out measurements.

    Examples
    --------
    >>> RankChoice((2, 2, 1), ({"ranks": (2, 2, 1), "unknowns": 40, "held_out": 0.01},), 90).table().shape
    (1, 3)
    """

    ranks: tuple[int, ...]
    candidates: tuple[dict[str, object], ...]
    held_out: int

    def table(self) -> pd.DataFrame:
        """Return the candidates as a table."""
        import pandas as pd

        return pd.DataFrame(list(self.candidates))


def choose_ranks(
    problem: Problem,
    options: Options,
    *,
    seed: int = 0,
    callback: Callable[[int, int, float], None] | None = None,
) -> RankChoice:
    """Choose the ranks by the loss on a tenth of the measurements.

    Equal ranks in all modes grow until the held-out loss does not. The singular values of the frames so found
    offer smaller ranks in each mode; each offer is fitted from there, and the one with the fewest unknowns
    whose held-out loss is within one standard error of the smallest wins.

    Parameters
    ----------
    problem : Problem
    options : Options
    seed : int
        Which measurements are held out.
    callback : callable, optional
        Called with (start, sweep, loss).

    Returns
    -------
    RankChoice
    """
    with few_threads(problem.entries, small=SMALL):
        return _choose(problem, options, seed=seed, callback=callback)


def _choose(
    problem: Problem, options: Options, *, seed: int, callback: Callable[[int, int, float], None] | None
) -> RankChoice:
    rng = torch.Generator().manual_seed(seed)
    drawn = (torch.rand(problem.y.shape, generator=rng) < HELD_OUT).to(problem.y.device)
    hidden = drawn if problem.weights is None else drawn & (problem.weights > 0)
    weights = torch.ones_like(problem.y) if problem.weights is None else problem.weights
    training = replace(problem, weights=torch.where(hidden, torch.zeros_like(weights), weights))
    short = replace(options, max_iter=min(options.max_iter, 40), tol=max(options.tol, 1e-3))

    tried: list[_Offer] = []
    for size in SIZES:
        ranks = _fitting(size, problem)
        if tried and (ranks == tried[-1].ranks or _unknowns(ranks, problem) * 2 > problem.y.numel()):
            break
        outcome = solve(training, ranks, short, n_init=2, seed=seed, callback=callback)
        tried.append(_judged(outcome.video, problem, hidden))
        if tried[-1].mean < EXACT or (len(tried) > 2 and tried[-1].mean > BETTER * tried[-2].mean < 0.1):
            break
    largest = min(tried, key=lambda offer: offer.mean)
    offers = list(tried)
    for ranks in _smaller(largest.video):
        if all(ranks != offer.ranks for offer in offers):
            outcome = _refitted(training, largest.video, ranks, short)
            offers.append(_judged(outcome.video, problem, hidden))
    best = min(offers, key=lambda offer: offer.mean)
    good = [offer for offer in offers if offer.as_good_as(best)]
    chosen = min(good, key=lambda offer: _unknowns(offer.ranks, problem))
    candidates = tuple(
        {"ranks": offer.ranks, "unknowns": _unknowns(offer.ranks, problem), "held_out": offer.mean}
        for offer in sorted(offers, key=lambda offer: _unknowns(offer.ranks, problem))
    )
    return RankChoice(chosen.ranks, candidates, int(hidden.sum()))


@dataclass(frozen=True, eq=False)
class _Offer:
    """A fit, and its squared misfits on held-out measurements, relative to their mean square."""

    video: Video
    losses: np.ndarray

    @property
    def ranks(self) -> tuple[int, ...]:
        return self.video.ranks

    @property
    def mean(self) -> float:
        return float(self.losses.mean())

    def as_good_as(self, best: _Offer) -> bool:
        gap = self.losses - best.losses
        error = gap.std(ddof=1) / np.sqrt(len(gap)) if len(gap) > 1 else 0.0
        return self.mean < EXACT or gap.mean() <= error


def _judged(video: Video, problem: Problem, hidden: Tensor) -> _Offer:
    misfit = problem.A.forward(video.frames()).abs() - problem.y
    scale = problem.y[hidden].square().mean().clamp(min=torch.finfo(problem.y.dtype).tiny)
    return _Offer(video, (misfit[hidden].square() / scale).cpu().numpy())


def _fitting(size: int, problem: Problem) -> tuple[int, ...]:
    """Return equal ranks, cut to what images, frames and measurements allow."""
    image = [min(size, n) for n in problem.A.image_shape]
    frames = min(size, problem.frames, prod(image), problem.A.samples)
    return (*(min(r, prod(image) // r * frames) for r in image), frames)


def _unknowns(ranks: Sequence[int], problem: Problem) -> int:
    return count_unknowns(ranks, problem.A.image_shape, problem.frames, is_complex=problem.dtype.is_complex)


def _smaller(video: Video) -> list[tuple[int, ...]]:
    """Return the ranks that keep all singular values above one level, for a ladder of levels."""
    # Factors are orthonormal, so the unfoldings of the core (with F in it) have the singular values of X.
    form = video.core @ torch.linalg.qr(video.coef).R.mT
    values = [torch.linalg.svdvals(unfold(form, mode)) for mode in range(form.ndim)]
    total = float(values[0].square().sum()) or 1.0
    ladder = []
    for level in np.logspace(-14, -1, 27):
        ranks = [max(1, int((v.square() / total > level).sum())) for v in values]
        ranks = [min(rank, prod(ranks) // rank) for rank in ranks]
        if tuple(ranks) not in ladder:
            ladder.append(tuple(ranks))
    return ladder


def _refitted(problem: Problem, video: Video, ranks: tuple[int, ...], options: Options) -> Outcome:
    """Cut a video down to smaller ranks, and sweep from there."""
    R = torch.linalg.qr(video.coef)
    form = hosvd(video.core @ R.R.mT, ranks)
    factors = [factor @ turn for factor, turn in zip(video.factors, form.factors[:-1], strict=True)]
    start = Video(form.core, factors, R.Q @ form.factors[-1])
    return sweep(problem, start, replace(options, fresh=5))
