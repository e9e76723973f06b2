"""Watch a run for the ways in which it is known to go wrong, and say what to do."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lowdim.errors import LowdimWarning
from lowdim.policy.diagnostics import GroupShares, PooledSampleSize

__all__ = ["Guards"]

LEAST_ROWS = 512  # fewer rows estimate the effective sample size too high
FAR_APART, FAR_STEPS = 0.1, 20
ALL_ZERO = 0.4
FIRST_BATCHES = 5
TRUNCATED = 0.5
FALL = 1 / 3


@dataclass
class Guards:
    """What a run is watched for; every warning is given once.

    Parameters
    ----------
    ratios : bool
        Warn if the pooled effective sample size stays below 0.1 for 20 steps: the policies are far apart.
    weak : bool
        Warn if more than 40 % of the groups of the run's first batches have no success at all.
    flat : bool
        Warn if all rewards of the first five batches are equal, or more than half the rollouts are cut off.
    falling : bool
        Warn if the small policy's mean reward falls by more than a third below its best (running means).
    stop : bool
        Stop the run if the large policy's evaluation falls by more than a third below its first value.
    pool : PooledSampleSize
        The rows from which the effective sample size is estimated.
    stopped : str or None
        Why the run was stopped.
    silent : bool
        Warn of nothing: for all processes but the first.

    Examples
    --------
    >>> guards = Guards()
    >>> guards.evaluated(0.6), guards.evaluated(0.39)
    (False, True)
    >>> print(guards.stopped)
    the large model's evaluation fell from 0.600 to 0.390
    """

    ratios: bool = True
    weak: bool = True
    flat: bool = True
    falling: bool = True
    stop: bool = True
    pool: PooledSampleSize = field(default_factory=PooledSampleSize)
    stopped: str | None = None
    silent: bool = False
    _said: set[str] = field(default_factory=set, init=False, repr=False)
    _far: int = field(default=0, init=False, repr=False)
    _batches: int = field(default=0, init=False, repr=False)
    _rewards: tuple[float, float] = field(default=(math.inf, -math.inf), init=False, repr=False)
    _zero: float = field(default=0.0, init=False, repr=False)
    _mean: float | None = field(default=None, init=False, repr=False)
    _best: float = field(default=-math.inf, init=False, repr=False)
    _start: float | None = field(default=None, init=False, repr=False)
    _truncated: float | None = field(default=None, init=False, repr=False)

    def watch(
        self, rewards: Tensor, shares: GroupShares, *, truncated: float, log_weight: Tensor | None = None
    ) -> None:
        """Look at one batch of rollouts of all processes.

        Parameters
        ----------
        rewards : Tensor
            Shape ``(rows,)``; NaN where there is none.
        shares : GroupShares
            Of these rewards.
        truncated : float
            Share of the rollouts without an end of sequence.
        log_weight : Tensor or None
            Logarithm of the large policy's importance weight of each rollout, shape ``(rows,)``.
        """
        self._batches += 1
        there = rewards[~rewards.isnan()].double()
        if there.numel():
            self._watch_rewards(there, shares)
        before = truncated if self._truncated is None else self._truncated
        self._truncated = 0.9 * before + 0.1 * truncated
        if self.flat and self._batches >= FIRST_BATCHES and self._truncated > TRUNCATED:
            self._say(
                "truncated",
                f"{self._truncated:.0%} of the rollouts were cut off at max_completion_length before their "
                "end. Raise max_completion_length, or ask for shorter answers in the prompt.",
            )
        if log_weight is not None:
            self.pool.update(log_weight[log_weight.isfinite()])
            self._watch_ratios()

    def _watch_rewards(self, rewards: Tensor, shares: GroupShares) -> None:
        low, high = self._rewards
        self._rewards = low, high = min(low, float(rewards.min())), max(high, float(rewards.max()))
        self._zero += shares.groups_all_zero
        if self.flat and self._batches == FIRST_BATCHES and low == high:
            self._say(
                "flat",
                f"all rewards of the first {FIRST_BATCHES} batches are {low:g}: there is nothing to learn "
                "from. The reward function may be broken, or the task too hard; look at some completions.",
            )
        elif self.weak and self._batches == FIRST_BATCHES and self._zero / FIRST_BATCHES > ALL_ZERO:
            self._say(
                "weak",
                f"{self._zero / FIRST_BATCHES:.0%} of the prompts of the first {FIRST_BATCHES} batches had "
                "no success among all candidates. A small model this weak does not learn, and damages the "
                "large one: start from a better small model (a compressed, healed copy of the large one), "
                "easier prompts, or more candidates.",
            )
        mean = float(rewards.mean())
        self._mean = mean if self._mean is None else 0.9 * self._mean + 0.1 * mean
        if self._batches >= FIRST_BATCHES:
            self._best = max(self._best, self._mean)
        if self.falling and self._best > 0 and self._mean < (1 - FALL) * self._best:
            self._say(
                "falling",
                f"the small model's mean reward fell from {self._best:.3f} to {self._mean:.3f}, by more than "
                "a third. Stop the hints (hint_epochs), or lower the learning rates.",
            )

    def _watch_ratios(self) -> None:
        if self.pool.rows < min(LEAST_ROWS, self.pool.capacity):
            return
        self._far = self._far + 1 if self.pool.fraction() < FAR_APART else 0
        if self.ratios and self._far >= FAR_STEPS:
            self._say(
                "ratios",
                f"the effective sample size of the large model's ratios was below {FAR_APART:.0%} for "
                f"{FAR_STEPS} steps ({self.pool.fraction():.1%} of {self.pool.rows} rows): the policies are "
                "far apart and the large model's update is not an ascent direction. Raise alpha, or start "
                "from a closer small model (a compressed copy of the large one, healed on its samples).",
            )

    def evaluated(self, large: float) -> bool:
        """Judge an evaluation of the large policy.

        Parameters
        ----------
        large : float
            Its accuracy or mean reward; the first value given is the start.

        Returns
        -------
        bool
            Whether the run should stop.
        """
        if self._start is None:
            self._start = large
            return False
        if not self.stop or self._start <= 0 or large >= (1 - FALL) * self._start:
            return False
        self.stopped = f"the large model's evaluation fell from {self._start:.3f} to {large:.3f}"
        self._say(
            "stop",
            f"{self.stopped}, by more than a third: the run stops. The small model's rollouts damage the "
            "large model; start from a better or closer small model, or lower large_learning_rate.",
        )
        return True

    def _say(self, key: str, text: str) -> None:
        if key in self._said:
            return
        self._said.add(key)
        if not self.silent:
            warnings.warn(f"Hybrid-GRPO: {text}", LowdimWarning, stacklevel=4)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs, as plain values."""
        return {
            "pool": self.pool.state_dict(),
            "stopped": self.stopped,
            "said": sorted(self._said),
            "far": self._far,
            "batches": self._batches,
            "rewards": [None if math.isinf(bound) else bound for bound in self._rewards],
            "zero": self._zero,
            "mean": self._mean,
            "best": None if math.isinf(self._best) else self._best,
            "start": self._start,
            "truncated": self._truncated,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a checkpoint."""
        self.pool.load_state_dict(state["pool"])
        self.stopped, self._said = state["stopped"], set(state["said"])
        self._far, self._batches, self._zero = state["far"], state["batches"], state["zero"]
        low, high = state["rewards"]
        self._rewards = (math.inf if low is None else low, -math.inf if high is None else high)
        self._mean, self._start, self._truncated = state["mean"], state["start"], state["truncated"]
        self._best = -math.inf if state["best"] is None else state["best"]
