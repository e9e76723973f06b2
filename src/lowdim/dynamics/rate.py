"""Which learning rate a training should have, from a short probe of a few percent of its cost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import nn

from lowdim.dynamics.frozen import SHARE
from lowdim.dynamics.gradients import LossFn
from lowdim.dynamics.parameters import FlatParameters
from lowdim.dynamics.thresholds import stability
from lowdim.dynamics.tracker import SharpnessTracker
from lowdim.dynamics.trials import FORWARD, Trials
from lowdim.errors import DataError

__all__ = ["RateAdvice", "recommend_rate"]

Factory = Callable[[float], torch.optim.Optimizer]

PRODUCTS = 10
"""Products with the Hessian at most: the sharpness has to be right to a tenth only."""

PLATEAU = 0.1
"""Rates whose trials lack no more than this part of the best decrease are as good as the best."""

LINEAR = 1.75
"""Rises that grow with a lower power of the rate than this lie nearer to its first power than its second."""

SEARCH = 0.4
"""Part of the budget for the search by factors of four."""

MARGIN = 1 / math.sqrt(2)
"""What is left of twice the threshold, beyond which the sharpness of the start is unstable for good."""

LOWEST, HIGHEST = 1e-9, 1e4
"""No learning rate is looked for beyond these."""


@dataclass(frozen=True, eq=False)
class RateAdvice:
    """A learning rate, and what it rests on.

    Parameters
    ----------
    lr : float
        The recommended learning rate: the peak of the schedule, of the parameter group with the largest.
    trials : pandas.DataFrame
        One row per trial training: ``lr``, ``steps``, ``loss`` (infinite where it diverged), ``cost``.
    sharpness : float or None
        Largest curvature at the start, where it was used: full batches and an optimizer whose threshold
        does not depend on gradients.
    threshold : float or None
        Learning rate at which that sharpness is just stable.
    noise : float
        Share of the mean squared gradient that is noise of the batches, from 0 (full batches) to 1.
    cost : float
        What was spent, in gradients of one batch of the training; a product with the Hessian is two.
    sentence : str
        The same for people.

    Examples
    --------
    >>> import torch
    >>> layer = torch.nn.Linear(3, 1)
    >>> loss = lambda: (layer(torch.eye(3)) - 1).square().mean()
    >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    >>> advice = recommend_rate(layer, loss, optimizer=optimizer, steps=2_000)
    >>> 0.1 < advice.lr < 10, advice.cost <= 100
    (True, True)
    """

    lr: float
    trials: pd.DataFrame
    sharpness: float | None
    threshold: float | None
    noise: float
    cost: float
    sentence: str


def recommend_rate(
    model: nn.Module,
    loss_fn: LossFn,
    *,
    optimizer: torch.optim.Optimizer | Factory,
    steps: int,
    batches: Iterable[Any] | None = None,
    lr: float | None = None,
    schedule: Callable[[float], float] | None = None,
    share: float = SHARE,
    budget: float = 0.05,
    callback: Callable[[dict[str, float]], None] | None = None,
    seed: int = 0,
) -> RateAdvice:
    """Recommend a learning rate for a training, from a probe that costs a small part of it.

    Short trainings, with the schedule compressed and the same small batches for all, find the rates that
    are best for them: by factors of four from `lr` on, then by factors of two with more steps. What is best
    for few steps is not best for many:

    - Where much of a gradient is noise, the rate falls with the root of the length of the training [1]_, [2]_
      and rises with the size of the batches [3]_. The lower end of the plateau of the trials is taken.
    - With full batches the limit is stability, and the upper end of the plateau is taken. For SGD no search
      is needed: the sharpness at the start tells the rate that is just stable. Up to twice that a network
      may escape to flatter places, beyond it diverges [4]_. The geometric mean of both is taken if a trial
      bears it, else halves of it: the first one lies below the stable rate by the same margin.

    The network, the optimizer and the random numbers are left as they were.

    Parameters
    ----------
    model : nn.Module
        The network, where the training is to begin.
    loss_fn : callable
        ``loss_fn(batch)``, or ``loss_fn()`` for full batches; a scalar.
    optimizer : torch.optim.Optimizer or callable
        The optimizer of the training, with its state; or a function of the learning rate that makes one.
    steps : int
        Length of the training.
    batches : iterable, optional
        Batches of the training, such as its data loader; taken again from the start if they run out.
        None for full batches.
    lr : float, optional
        Where to begin to look; by default the learning rate of the optimizer. A function needs it.
    schedule : callable, optional
        Factor of the learning rate by the progress of the training, 0 to 1; by default 1.
    share : float
        Part of each batch that trial trainings see.
    budget : float
        Part of the cost of the training that may be spent.
    callback : callable, optional
        Called with each row of `RateAdvice.trials`.
    seed : int
        Of dropout and the like.

    Returns
    -------
    RateAdvice

    Raises
    ------
    DataError
        If an argument makes no sense, the budget is too small, or every trial diverges.

    References
    ----------
    .. [1] A. Defazio et al., "Optimal linear decay learning rate schedules and further refinements",
       arXiv 2310.07831.
    .. [2] J. Bjorck et al., "Scaling optimal LR across token horizons", arXiv 2409.19913.
    .. [3] S. McCandlish et al., "An empirical model of large-batch training", arXiv 1812.06162.
    .. [4] A. Lewkowycz et al., "The large learning rate phase of deep learning: the catapult mechanism",
       arXiv 2003.02218.

    Examples
    --------
    >>> import torch
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> scales = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    >>> loss = lambda: (layer(scales) - 1).square().sum()
    >>> advice = recommend_rate(layer, loss, optimizer=optimizer, steps=2_000)
    >>> 0.05 < advice.lr <= 0.16, advice.noise
    (True, 0.0)
    """
    begin = _checked(model, loss_fn, optimizer, steps=steps, lr=lr, share=share, budget=budget)
    trials = Trials(
        model,
        loss_fn,
        begin,
        batches=batches,
        schedule=schedule or (lambda progress: 1.0),
        share=1.0 if batches is None else share,
        seed=seed,
    )
    lr = trials.lr if lr is None else lr
    allowed = budget * steps
    with trials.untraced():
        ladder = _Ladder(trials, callback=callback)
        limit = _limit(trials, loss_fn, at_most=allowed / 4, seed=seed) if batches is None else None
        noise = trials.noise(relative=not isinstance(begin, torch.optim.SGD))
        if limit is not None:
            # The middle between what is stable at the start and what is too much even to escape; then below.
            length = _length(allowed - trials.cost, trials.share, rounds=6, steps=steps, budget=budget)
            best = advised = ladder.descend(MARGIN * 2 * limit[1], steps=length, until=allowed)
        else:
            pull = min(2 * noise, 1.0)
            first = max(int((SEARCH * allowed / 7 - FORWARD) / trials.share), 1)
            best = ladder.search(lr, factor=4.0, steps=first, until=0.5 * allowed)
            length = _length(
                allowed - trials.cost - FORWARD, trials.share, rounds=5, steps=steps, budget=budget
            )
            best *= min(first / length, 1.0) ** (pull / 2)
            best = ladder.search(best, factor=2.0, steps=length, until=allowed, pull=pull)
            advised = ladder.advised(length, pull=pull, of=steps)
            # From a share to whole batches: the root of how much of a squared gradient is signal [3].
            advised /= math.sqrt(1 - noise * (1 - trials.share))
    return RateAdvice(
        lr=advised,
        trials=pd.DataFrame(ladder.rows),
        sharpness=None if limit is None else limit[0],
        threshold=None if limit is None else limit[1],
        noise=noise,
        cost=trials.cost,
        sentence=_sentence(advised, best, length, steps, noise, limit),
    )


class _Ladder:
    """Trials at learning rates that are a factor apart.

    Parameters
    ----------
    trials : Trials
        Runs them.
    callback : callable, optional
        Hears of each.
    """

    def __init__(self, trials: Trials, *, callback: Callable[[dict[str, float]], None] | None) -> None:
        self._trials, self._callback = trials, callback
        self.rows: list[dict[str, float]] = []
        self._losses: dict[float, float] = {}
        self._start = math.nan

    def search(
        self, lr: float, *, factor: float, steps: int, until: float, pull: float | None = None
    ) -> float:
        """Walk downhill from a rate until both neighbors of the best are worse; return the best.

        With `pull` until the lower end of the plateau is found, too, or its upper end, or both.
        """
        self._losses = {}
        self._start = self._trials.start(steps=steps)
        per_trial = steps * self._trials.share + FORWARD
        wanted: float | None = lr
        while wanted is not None and self._trials.cost + per_trial <= until + 1e-9:
            self._try(wanted, steps)
            wanted = self._next(factor, pull)
        best = self._best()
        return best if self._losses[best] < self._start else self._harmless() or best

    def descend(self, lr: float, *, steps: int, until: float) -> float:
        """Halve a rate until a trial lowers the loss; return it."""
        self._losses = {}
        self._start = self._trials.start(steps=steps)
        while self._trials.cost + steps * self._trials.share + FORWARD <= until + 1e-9:
            if self._try(lr, steps) < self._start:
                return lr
            lr /= 2
        raise self._lost(steps)

    def _lost(self, steps: int) -> DataError:
        return DataError(
            f"recommend_rate: no trial of {steps} steps lowered the loss, which is {self._start:.4g}, at "
            f"learning rates from {min(self._losses):.3g} to {max(self._losses):.3g}. Begin elsewhere with "
            f"lr=, or raise the budget."
        )

    def _try(self, lr: float, steps: int) -> float:
        before = self._trials.cost
        self._losses[lr] = loss = self._trials.run(lr, steps=steps)
        row = {"lr": lr, "steps": steps, "loss": loss, "cost": self._trials.cost - before}
        self.rows.append(row)
        if self._callback is not None:
            self._callback(dict(row))
        return loss

    def _best(self) -> float:
        return min(self._losses, key=lambda lr: (self._losses[lr], lr))

    def _next(self, factor: float, pull: float | None) -> float | None:
        best, low, high = self._best(), min(self._losses), max(self._losses)
        harmless = self._harmless()
        if harmless is not None and not self._losses[best] < self._start:
            return high * factor if harmless == high and high < HIGHEST else None
        down = best == low or (pull is not None and pull > 0 and self._losses[low] <= self._level())
        up = best == high or (pull is not None and pull < 1 and self._losses[high] <= self._level())
        if down and low > LOWEST:
            return low / factor
        return high * factor if up and high < HIGHEST else None

    def _level(self) -> float:
        """Return the loss that still lies on the plateau of the best trial."""
        best = self._losses[self._best()]
        return best + PLATEAU * max(self._start - best, 0.0)

    def _harmless(self) -> float | None:
        """Return the highest rate whose rise the samples are to blame for; None if there is none.

        To first order a step against the true gradient lowers the loss, and too large a rate raises it with
        the square of the rate. A few noisy samples may have it rise in proportion to the rate: then no rate
        is low enough, and the rate is not what is wrong. Rises of more than a part of the loss level off,
        which looks alike, and do not count.
        """
        if self._trials.full:
            return None
        rises = sorted((lr, loss - self._start) for lr, loss in self._losses.items())
        found = [
            high
            for (low, less), (high, more) in itertools.pairwise(rises)
            if 0 < more <= min(PLATEAU * abs(self._start), less * (high / low) ** LINEAR)
        ]
        return max(found, default=None)

    def advised(self, steps: int, *, pull: float, of: int) -> float:
        """Return the rate for the whole training: see recommend_rate."""
        best, harmless = self._best(), self._harmless()
        if self._losses[best] < self._start:
            up, down = self._edge(best, up=True), self._edge(best, up=False)
        elif harmless is not None:
            up = down = harmless
        else:
            raise self._lost(steps)
        inner = (1 - pull) * math.log(up) + pull * math.log(down)
        return math.exp(inner - pull / 2 * math.log(of / steps))

    def _edge(self, best: float, *, up: bool) -> float:
        """Return an end of the plateau, between two rates by interpolation in log lr."""
        level, inside = self._level(), best
        beyond = sorted((lr for lr in self._losses if (lr > best if up else lr < best)), reverse=not up)
        for lr in beyond:
            if self._losses[lr] > level:
                if not math.isfinite(self._losses[lr]):
                    return inside
                part = (level - self._losses[inside]) / (self._losses[lr] - self._losses[inside])
                return inside * (lr / inside) ** part
            inside = lr
        return inside


def _limit(trials: Trials, loss_fn: LossFn, *, at_most: float, seed: int) -> tuple[float, float] | None:
    """Return the sharpness and the learning rate that is just stable, where the optimizer's rule is known."""
    products = min(PRODUCTS, int((at_most - 2 * FORWARD) / 2))
    if products < 3:
        return None
    try:
        known = stability(trials.optimizer, FlatParameters.of(trials.model))
    except DataError:  # another optimizer, or one that needs a step first
        return None
    if known.label != "sharpness":
        return None
    tracker = SharpnessTracker(
        trials.model, loss_fn, optimizer=trials.optimizer, tol=0.01, steps=products, seed=seed
    )
    look = tracker.measure()
    trials.cost += 2 * look.products + 2 * FORWARD
    if not look.value > 0 or not look.ratio:
        return None
    return look.value, trials.lr / look.ratio


def _length(left: float, share: float, *, rounds: int, steps: int, budget: float) -> int:
    """Return how many steps so many trials can have."""
    length = min(int((left / rounds - FORWARD) / share), steps)
    if length < 2:
        raise DataError(
            f"recommend_rate: budget={budget} of steps={steps} is {budget * steps:.3g} gradients: too few. "
            f"Raise the budget."
        )
    return length


def _sentence(
    lr: float, best: float, length: int, steps: int, noise: float, limit: tuple[float, float] | None
) -> str:
    told = f"Use a learning rate of {lr:.2g}"
    if limit is not None:
        return (
            f"{told}: {lr / limit[1]:.2f} of what is just stable at the start; a trial of {length} steps "
            f"bears it."
        )
    told = f"{told}. Of trials of {length} steps the one at {best:.2g} did best"
    if noise > 0:
        return f"{told}; {noise:.0%} of the squared gradient is noise, so that {steps:,} steps bear less."
    return f"{told}; without noise more steps bear a little more."


def _checked(
    model: Any, loss_fn: Any, optimizer: Any, *, steps: Any, lr: Any, share: Any, budget: Any
) -> torch.optim.Optimizer:
    """Refuse what makes no sense, and return the optimizer, made if need be."""
    where = "recommend_rate"
    if not isinstance(model, nn.Module):
        raise DataError(f"{where}: got a {type(model).__name__}, expected a torch.nn.Module.")
    if not callable(loss_fn):
        raise DataError(f"{where}: loss_fn is a {type(loss_fn).__name__}, expected a function of a batch.")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise DataError(f"{where}: steps={steps!r}, expected the length of the training, a positive int.")
    for name, value, top in (("lr", lr, math.inf), ("share", share, 1.0), ("budget", budget, 1.0)):
        if value is None:
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value <= top or not math.isfinite(value):
            bound = "a positive number" if top == math.inf else "a number in (0, 1]"
            raise DataError(f"{where}: {name}={value!r}, expected {bound}.")
    if isinstance(model, nn.parallel.DistributedDataParallel) or FlatParameters.of(model).sharded:
        raise DataError(f"{where}: the network is spread over processes. Probe it on one, without wrapper.")
    if not isinstance(optimizer, torch.optim.Optimizer) and callable(optimizer):
        if lr is None:
            raise DataError(f"{where}: lr= is missing: where a function of the learning rate begins to look.")
        optimizer = optimizer(lr)
    optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise DataError(
            f"{where}: optimizer is a {type(optimizer).__name__}, expected a torch optimizer, or a function "
            f"of the learning rate that returns one."
        )
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    if not all(map(math.isfinite, rates)) or min(rates) < 0 or max(rates) == 0:
        raise DataError(f"{where}: the optimizer has the learning rates {rates}, expected positive ones.")
    return optimizer
