"""Forgetting: what staged rollouts may cause, and the guard that pauses them."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from typing import Any

from torch import Tensor

__all__ = ["ForgettingGuard"]


class ForgettingGuard:
    """Switch staging off for a while when the policy forgets what it could do.

    A prompt whose group was stopped shows no failures, so nothing protects it while a shared network learns
    other prompts. The guard watches the prompts that were solved at their last visit: the success of their
    first rollouts, which are made for every group and therefore an honest sample of the policy. When the
    mean over the last `window` such groups falls more than `fall` below the best mean seen, and by more than
    four standard errors of that difference (the best of many means is a lucky one), staging pauses for
    `cooldown` cycles and the best is found anew. On steady policies that is one alarm in 4,000 cycles of 16
    prompts; a sudden fall by a tenth is seen after about 8.

    Until prompts come back (the first epoch, a stream without end) there is nothing to watch.

    Parameters
    ----------
    fall : float
        Tolerated fall of the success rate.
    window : int
        Groups in the mean.
    cooldown : int
        Cycles without staging after an alarm.

    Examples
    --------
    >>> import torch
    >>> guard = ForgettingGuard(window=4, cooldown=2)
    >>> four = torch.ones(4, dtype=torch.bool)
    >>> guard.observe([1, 2, 3, 4], torch.ones(4), four)     # solved
    False
    >>> guard.observe([1, 2, 3, 4], torch.ones(4), four)     # and still solved: the best
    False
    >>> guard.observe([1, 2, 3, 4], torch.zeros(4), ~four)   # forgotten
    True
    >>> guard.active
    False
    """

    def __init__(self, *, fall: float = 0.05, window: int = 128, cooldown: int = 20) -> None:
        self.fall, self.window, self.cooldown = fall, window, cooldown
        self.left = 0
        self.alarms = 0
        self._solved: set[int] = set()
        self._recent: deque[float] = deque(maxlen=window)
        self._best: tuple[float, float] | None = None

    @property
    def active(self) -> bool:
        """Whether staging may be used now."""
        return self.left == 0

    @property
    def success(self) -> float:
        """Mean success on prompts solved at their last visit, NaN until the window is full."""
        return statistics.fmean(self._recent) if len(self._recent) == self.window else math.nan

    def observe(self, keys: Sequence[int], success: Tensor, solved: Tensor) -> bool:
        """Take note of a cycle's first stages and say whether staging pauses from now on.

        Parameters
        ----------
        keys : sequence of int
            A number for each prompt, the same at each visit.
        success : Tensor
            Share of right answers among the first rollouts, shape ``(prompts,)``; NaN where none was scored.
        solved : Tensor
            Boolean, shape ``(prompts,)``.

        Returns
        -------
        bool
            True in the cycle of an alarm.
        """
        self.left = max(0, self.left - 1)
        for key, share, now in zip(keys, success.tolist(), solved.tolist(), strict=True):
            if key in self._solved and not math.isnan(share):
                self._recent.append(share)
            if now:
                self._solved.add(key)
            else:
                self._solved.discard(key)
        if len(self._recent) < self.window or not self.active:
            return False
        mean, error = self.success, statistics.stdev(self._recent) / math.sqrt(self.window)
        if self._best is None or mean > self._best[0]:
            self._best = (mean, error)
        lost = self._best[0] - mean
        if lost <= self.fall or lost <= 4 * math.hypot(error, self._best[1]):
            return False
        self.left, self.alarms = self.cooldown, self.alarms + 1
        self._recent.clear()
        self._best = None
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, JSON-ready."""
        return {
            "solved": sorted(self._solved),
            "recent": list(self._recent),
            "best": self._best,
            "left": self.left,
            "alarms": self.alarms,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned, given as `state`."""
        self._solved = set(state["solved"])
        self._recent = deque(state["recent"], maxlen=self.window)
        self._best = None if state["best"] is None else (state["best"][0], state["best"][1])
        self.left, self.alarms = int(state["left"]), int(state["alarms"])
