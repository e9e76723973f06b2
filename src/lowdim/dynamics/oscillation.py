"""Does a training oscillate: alternation, period and rank, from a few numbers per step and no Hessian.

Beyond the edge of stability the parameters jump to and fro across a valley. That is seen in the states
``x_t`` of the training, or in linear sketches of them, since sketches keep angles and recurrences. With
``d_t = x_{t+1} - x_t``::

    alternation   a_t = -<d_t, d_{t-1}> / (|d_t| |d_{t-1}|)         1 flips every step, -1 goes straight on
                  of order 2: the same of d_t - d_{t-1}, which a steady drift does not enter
    recurrence    residual_p = max_t |x_{t+p} - x_t| / max_st |x_s - x_t|        small: period p
    rank          of the stack of (-1)^t (d_t - d_{t-1}) / 2        directions that alternate
"""

from __future__ import annotations

from collections import deque
from math import isnan, nan
from typing import Literal

import torch
from torch import Tensor

from lowdim.errors import DataError, ShapeError

__all__ = ["PERIODS", "WINDOW", "EdgeDetector", "alternation", "oscillation_rank", "period"]

PERIODS = (1, 2, 4, 8)
"""Periods that are looked for: the cascade of period doubling."""

WINDOW = 17
"""States that are kept by default: two of the longest period, and one."""

STILL = 1e-8
"""Movement below this share of the states' norm is rounding, for states in float64."""


def _states(where: str, states: Tensor, *, least: int) -> Tensor:
    """Check states, flatten each one, and return them in float64."""
    states = torch.as_tensor(states)
    if states.ndim < 2 or len(states) < least:
        raise ShapeError(
            f"{where}: got states of shape {tuple(states.shape)}, expected (T, ...) with T >= {least} "
            f"consecutive states. Collect more steps."
        )
    return states.detach().double().flatten(1)


def alternation(
    states: Tensor, *, order: Literal[1, 2] = 1, average: int = 1, still: float = STILL
) -> Tensor:
    """How exactly every step undoes the one before: the cheapest alarm for the edge of stability.

    Parameters
    ----------
    states : Tensor, shape (T, ...)
        Consecutive states, or their sketches.
    order : {1, 2}
        Of the differences that are compared. Steps (1) show an oscillation once it is larger than the
        drift, which momentum and Adam make ten times as long. Differences of steps (2) show it before,
        but noise that is independent from step to step then has the score 1/2, not 0.
    average : int
        Against the noise of small batches. With n > 1 the inner products of n consecutive pairs are
        averaged, and they are measured against those two steps apart, in which independent noise cancels
        too, or a fifth of the squared step if that is more. (An average of the steps
        themselves would cancel what alternates.)
    still : float
        A step smaller than this share of the states' norm is rounding noise, and has no score.

    Returns
    -------
    Tensor of float64, shape (T - order - average,)
        In [-1, 1]: 1 for a perfect flip, 0 for random directions, -1 for going straight on; NaN at rest.

    Raises
    ------
    ShapeError
        If there are fewer than ``order + average + 1`` states.
    DataError
        If `order` is neither 1 nor 2, or `average` no positive integer.

    Examples
    --------
    >>> import torch
    >>> valley = torch.tensor([1.0, -1.0]).repeat(4)
    >>> alternation(torch.stack([valley, 0.1 * torch.arange(8)], dim=1)).round(decimals=2)
    tensor([1., 1., 1., 1., 1., 1.], dtype=torch.float64)
    >>> alternation(torch.arange(4.0)[:, None])
    tensor([-1., -1.], dtype=torch.float64)
    """
    if isinstance(average, bool) or not isinstance(average, int) or average < 1:
        raise DataError(f"alternation: average={average!r} is no number of steps. Use 1, 2, 3, ...")
    if order not in (1, 2):
        raise DataError(f"alternation: order={order!r}, expected 1 (steps) or 2 (differences of steps).")
    x = _states("alternation", states, least=order + average + 1)
    d = x.diff(n=order, dim=0)
    sizes = d.norm(dim=1)
    moving = sizes > order * still * x.norm(dim=1)[order:]
    moving = moving[1:] & moving[:-1]
    flips = -(d[1:] * d[:-1]).sum(1)
    scale = sizes[1:] * sizes[:-1]
    if average > 1:
        # Two steps apart a flip has come back: what is left of the squared step there is signal.
        back = (d[2:] * d[:-2]).sum(1)
        back = torch.cat([back[:1], back])  # the first pair has none before it
        flips, scale, back = (v.unfold(0, average, 1).mean(1) for v in (flips, scale, back))
        moving = moving.unfold(0, average, 1).all(1)
        scale = torch.maximum(back, 0.2 * scale)
    score = (flips / torch.where(moving, scale, torch.ones_like(scale))).clamp(-1, 1)
    return torch.where(moving, score, torch.full_like(score, nan))


def period(states: Tensor, *, tol: float = 1e-2, still: float = STILL) -> int:
    """Smallest period with which the states come back.

    Parameters
    ----------
    states : Tensor, shape (T, ...)
        Consecutive states, or their sketches; 17 or more are enough for period 8. A period needs
        2 p + 1 states.
    tol : float
        States have come back if they differ by less than this share of the largest distance between any
        two of them.
    still : float
        The training is at rest, which is period 1, if no two states differ by this share of their norm.

    Returns
    -------
    int
        1, 2, 4 or 8; 0 for none of them: still on its way, noisy, or aperiodic.

    Raises
    ------
    ShapeError
        If there are fewer than 3 states.

    Examples
    --------
    >>> import torch
    >>> period(torch.tensor([0.0, 1.0, 0.0, 2.0]).repeat(5)[:, None])
    4
    >>> period(torch.arange(17.0)[:, None])
    0
    """
    x = _states("period", states, least=3)
    if not bool(torch.isfinite(x).all()):
        return 0
    # Direct differences: those from inner products would lose half of the digits.
    widest = max(float((x[j:] - x[:-j]).norm(dim=1).max()) for j in range(1, len(x)))
    if widest <= still * float(x.norm(dim=1).max()):
        return 1
    for p in PERIODS[1:]:
        if len(x) >= 2 * p + 1 and float((x[p:] - x[:-p]).norm(dim=1).max()) < tol * widest:
            return p
    return 0


def oscillation_rank(states: Tensor, *, tol: float = 1e-3, still: float = STILL) -> int:
    """In how many directions the states alternate.

    Parameters
    ----------
    states : Tensor, shape (T, k) or (T, m, n)
        Consecutive states, or sketches of them: then the rank of the stack of
        ``(-1)^t (x_{t+1} - 2 x_t + x_{t-1}) / 2``, which leaves out a drift. Of matrices,
        such as the product of the layers of a linear network, the rank of
        their last difference: an orbit of period 2 has one alternating
        vector, but a matrix may alternate in several singular directions.
    tol : float
        Singular values below this share of the largest one do not count.
    still : float
        Nor do those below this share of the states' norm, which are rounding noise.

    Returns
    -------
    int

    Raises
    ------
    ShapeError
        If there are fewer than 3 states.

    Examples
    --------
    >>> import torch
    >>> signs = torch.tensor([1.0, -1.0]).repeat(8)[:, None]
    >>> oscillation_rank(signs * torch.tensor([1.0, 2.0, 0.0]))
    1
    >>> oscillation_rank(signs[:, :, None] * torch.diag(torch.tensor([1.0, 2.0, 0.0])))
    2
    """
    x = _states("oscillation_rank", states, least=3)
    if not bool(torch.isfinite(x).all()):
        return 0
    if torch.as_tensor(states).ndim > 2:
        moved = (x[-1] - x[-2]).reshape(states.shape[1], -1)
    else:
        # The sign (-1)^t of a row does not change the rank.
        moved = (x[2:] - 2 * x[1:-1] + x[:-2]) / 2
    values = torch.linalg.svdvals(moved)
    return int((values > torch.maximum(tol * values[:1], still * x.norm(dim=1).max())).sum())


class EdgeDetector:
    """Say when a training has crossed the edge of stability, from its alternation of order 2 alone.

    Below the edge what alternates dies out, and the differences of successive steps bend slowly; beyond it,
    an alternation grows until nothing else is left of them. The alarm rings when `window` scores in a row
    are above `threshold`, and the mean of the last `memory` scores, each with its weight, is above `level`:
    independent noise, of small batches for instance, has scores about 1/2, and a kink of ReLU that is crossed
    to and fro a few times has high scores between low ones of the same size. A large alternation that dies
    out (after a jump of the learning rate) rings, too.

    Parameters
    ----------
    window : int
        Number of scores in a row.
    threshold : float
        What each of them has to exceed.
    memory : int
        Number of scores that the mean is taken of; of those there are, at the beginning.
    level : float
        What the mean has to exceed.

    Attributes
    ----------
    crossed_at : int or None
        Number of the update, from 1, at which the alarm first rang.

    Raises
    ------
    DataError
        If the window is empty, the memory shorter than it, or the threshold or level not in (-1, 1).

    Notes
    -----
    The defaults were chosen on trainings of one seed: a perceptron by gradient descent, heavy ball and Adam,
    where they found all crossings within 100 steps, and small networks of ReLU. The claims measure other
    seeds.

    Between ReLU units, steps cross kinks to and fro far below the edge, which alternates as well. Of 23
    trainings of perceptrons (8-16-2) by gradient descent on 64, 256 and 1,024 samples that stayed below the
    edge, on seeds that nothing was chosen on, 6 rang; without the mean, 22.

    Examples
    --------
    >>> detector = EdgeDetector(window=2, memory=3)
    >>> [detector.update(a) for a in (-1.0, 0.4, 0.9, 1.0, 1.0)]
    [False, False, False, False, True]
    >>> detector.crossed_at
    5
    """

    def __init__(
        self, *, window: int = 4, threshold: float = 0.7, memory: int = 24, level: float = 0.85
    ) -> None:
        if isinstance(window, bool) or not isinstance(window, int) or window < 1:
            raise DataError(f"EdgeDetector: window={window!r} is no number of steps. Use 4, or 1 and more.")
        if isinstance(memory, bool) or not isinstance(memory, int) or memory < window:
            raise DataError(
                f"EdgeDetector: memory={memory!r} is no number of steps, or fewer than window={window}. Use "
                f"{max(24, window)}."
            )
        for name, value in (("threshold", threshold), ("level", level)):
            if not -1 < value < 1:
                raise DataError(f"EdgeDetector: {name}={value!r} is out of range. Use one in (-1, 1).")
        self.window = window
        self.threshold = threshold
        self.memory = memory
        self.level = level
        self.crossed_at: int | None = None
        self._recent: deque[tuple[float, float]] = deque(maxlen=memory)
        self._row = 0
        self._updates = 0

    def update(self, alternation: float, *, weight: float = 1.0) -> bool:
        """Take the score of one more step, and return whether the alarm rings.

        A step at rest (NaN) breaks the row: rest is no oscillation.

        Parameters
        ----------
        alternation : float
            The score of order 2.
        weight : float
            How much it counts in the mean: the product of the lengths of the differences that it compares,
            so that an oscillation that grows is heard at once.

        Returns
        -------
        bool
        """
        self._updates += 1
        rests = isnan(alternation)
        self._recent.append((0.0, 0.0) if rests else (weight * alternation, weight))
        self._row = 0 if rests or not alternation > self.threshold else self._row + 1
        scores, weights = (sum(values) for values in zip(*self._recent, strict=True))
        rings = self._row >= self.window and scores > self.level * weights
        if rings and self.crossed_at is None:
            self.crossed_at = self._updates
        return rings
