"""How far apart two policies are, and how much the rewards of a batch can teach."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lowdim.errors import ShapeError
from lowdim.policy.effective import log_ratio

__all__ = [
    "GroupShares",
    "PooledSampleSize",
    "effective_sample_size",
    "group_shares",
    "kl_per_token",
    "log_weights",
]


def log_weights(logp: Tensor, logp_old: Tensor, mask: Tensor) -> Tensor:
    """Logarithm of the importance weight of each rollout, the sum of its tokens' log ratios.

    Parameters
    ----------
    logp, logp_old : Tensor
        Log-probabilities under the policy of interest and under the one that sampled, ``(rows, tokens)``.
    mask : Tensor
        One for tokens of the completion, shape ``(rows, tokens)``.

    Returns
    -------
    Tensor
        Shape ``(rows,)``.

    Examples
    --------
    >>> import torch
    >>> log_weights(torch.tensor([[-1.0, -1.0]]), torch.tensor([[-2.0, -1.5]]), torch.tensor([[1, 1]]))
    tensor([1.5000])
    """
    return log_ratio(logp, logp_old, mask).sum(-1)


def effective_sample_size(log_weight: Tensor) -> float:
    """Share of the rollouts that count: (sum W)^2 / (R sum W^2).

    Estimated from few rows it is too high, since the rare heavy weight is seldom among them: use 512 rows or
    more (:class:`PooledSampleSize`).

    Parameters
    ----------
    log_weight : Tensor
        Logarithms of the weights of the rollouts, shape ``(rows,)``.

    Returns
    -------
    float
        Between 1/R and 1; NaN without rows.

    Examples
    --------
    >>> import torch
    >>> effective_sample_size(torch.zeros(8))
    1.0
    >>> round(effective_sample_size(torch.tensor([100.0, 0.0, 0.0, 0.0])), 3)
    0.25
    """
    rows = log_weight.numel()
    if not rows:
        return math.nan
    log_weight = log_weight.detach().double()
    log_size = 2 * log_weight.logsumexp(0) - (2 * log_weight).logsumexp(0) - math.log(rows)
    return float(log_size.exp())


@dataclass
class PooledSampleSize:
    """Effective sample size over the last rows of a run.

    Parameters
    ----------
    capacity : int
        Rows that are remembered.

    Examples
    --------
    >>> import torch
    >>> pool = PooledSampleSize(capacity=4)
    >>> for _ in range(3):
    ...     pool.update(torch.zeros(2))
    >>> pool.fraction(), pool.rows
    (1.0, 4)
    """

    capacity: int = 1024
    _rows: deque[float] = field(default_factory=deque, init=False, repr=False)

    def update(self, log_weight: Tensor | Iterable[float]) -> None:
        """Add rows and forget the oldest ones beyond the capacity."""
        values = log_weight.detach().double().tolist() if isinstance(log_weight, Tensor) else list(log_weight)
        self._rows.extend(values)
        while len(self._rows) > self.capacity:
            self._rows.popleft()

    @property
    def rows(self) -> int:
        """Rows in memory."""
        return len(self._rows)

    def fraction(self) -> float:
        """Effective share of the rows in memory."""
        return effective_sample_size(torch.tensor(list(self._rows), dtype=torch.float64))

    def state_dict(self) -> dict[str, Any]:
        """Give what a checkpoint needs."""
        return {"capacity": self.capacity, "rows": list(self._rows)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a checkpoint's rows."""
        self.capacity = int(state["capacity"])
        self._rows = deque(float(row) for row in state["rows"])


def kl_per_token(logp_large: Tensor, logp_small: Tensor, mask: Tensor) -> float:
    """Estimate of KL(phi || theta) per token on rollouts of the small policy.

    Parameters
    ----------
    logp_large, logp_small : Tensor
        Log-probabilities of the sampled tokens, shape ``(rows, tokens)``.
    mask : Tensor
        One for tokens of the completion, shape ``(rows, tokens)``.

    Returns
    -------
    float
        Nats per token.

    Examples
    --------
    >>> import torch
    >>> kl_per_token(torch.tensor([[-2.0]]), torch.tensor([[-1.5]]), torch.tensor([[1]]))
    0.5
    """
    d = log_ratio(logp_large, logp_small, mask)
    return float(-d.sum() / mask.sum().clamp(min=1))


@dataclass(frozen=True)
class GroupShares:
    """How much the rewards of a batch can teach.

    Parameters
    ----------
    rollouts_zero : float
        Share of the rollouts with reward zero.
    groups_all_zero, groups_all_one : float
        Share of the prompts all of whose rollouts have reward zero, or the largest reward.
    groups_flat : float
        Share of the prompts whose rollouts have the same reward: plain GRPO learns nothing from them.

    Examples
    --------
    >>> import torch
    >>> group_shares(torch.tensor([0.0, 0.0, 1.0, 0.0]), group=2).groups_all_zero
    0.5
    """

    rollouts_zero: float
    groups_all_zero: float
    groups_all_one: float
    groups_flat: float


def group_shares(reward: Tensor, *, group: int, largest: float = 1.0) -> GroupShares:
    """Count rollouts and groups by what they can teach.

    Parameters
    ----------
    reward : Tensor
        Rewards, the rollouts of a prompt one after the other, shape ``(rows,)``; NaN where there is none.
    group : int
        Rollouts of each prompt.
    largest : float
        The largest reward.

    Returns
    -------
    GroupShares

    Raises
    ------
    ShapeError
        If the rewards are no groups of `group`.

    Examples
    --------
    >>> import torch
    >>> group_shares(torch.tensor([1.0, 1.0, 1.0, 0.0]), group=2).groups_flat
    0.5
    """
    if reward.dim() != 1 or group < 1 or reward.shape[0] % group:
        raise ShapeError(f"group_shares: {tuple(reward.shape)} rewards are no groups of {group}.")
    groups = reward.detach().float().cpu().view(-1, group)
    there = ~groups.isnan()
    some = there.any(-1)

    def all_rows(condition: Tensor) -> float:
        share = ((condition | ~there).all(-1) & some).float().mean()
        return float(share)

    first = groups.nan_to_num(-math.inf).amax(-1, keepdim=True)
    zero = (groups == 0) & there
    return GroupShares(
        rollouts_zero=float(zero.sum() / there.sum().clamp(min=1)),
        groups_all_zero=all_rows(groups == 0),
        groups_all_one=all_rows(groups >= largest),
        groups_flat=all_rows((groups - first).abs() < 1e-6),
    )
