"""Advantages: rewards against the mean of the group."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from lowdim.errors import DataError, ShapeError

__all__ = ["Scale", "group_advantages"]

Scale = Literal["none", "group", "batch"]


def group_advantages(reward: Tensor, *, group: int, scale: Scale = "none") -> Tensor:
    """Reward minus the mean of its group, on request divided by a standard deviation.

    Parameters
    ----------
    reward : Tensor
        Rewards, the rollouts of a prompt one after the other, shape ``(rows,)``. A rollout without a reward
        (NaN) is left out of the mean and gets advantage zero.
    group : int
        G, rollouts of each prompt.
    scale : {"none", "group", "batch"}
        "none" as in the paper; "group" divides by the standard deviation of the group, "batch" by that of
        all rewards (both with a floor of 1e-4 added). Dividing makes the gradient biased.

    Returns
    -------
    Tensor
        Shape ``(rows,)``.

    Raises
    ------
    DataError
        If `scale` is unknown.
    ShapeError
        If the rewards are no groups of `group`.

    References
    ----------
    Kwon et al., "CoDistill-GRPO", 2026, section 3; Liu et al., "Understanding R1-Zero-Like Training", 2025,
    for the missing division.

    Examples
    --------
    >>> import torch
    >>> group_advantages(torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 1.0]), group=3)
    tensor([ 0.6667, -0.3333, -0.3333,  0.0000,  0.0000,  0.0000])
    """
    if reward.dim() != 1 or group < 1 or reward.shape[0] % group:
        raise ShapeError(f"group_advantages: {tuple(reward.shape)} rewards are no groups of {group}.")
    if scale not in ("none", "group", "batch"):
        raise DataError(f"group_advantages: scale={scale!r}. Give 'none', 'group' or 'batch'.")
    groups = reward.view(-1, group)
    advantage = groups - groups.nanmean(-1, keepdim=True)
    if scale == "group":
        advantage = advantage / (_deviation(groups, -1) + 1e-4)
    elif scale == "batch":
        advantage = advantage / (_deviation(reward, 0) + 1e-4)
    return advantage.nan_to_num(0.0).flatten()


def _deviation(reward: Tensor, axis: int) -> Tensor:
    """Sample standard deviation over the rewards that are there."""
    count = (~reward.isnan()).sum(axis, keepdim=True)
    squares = (reward - reward.nanmean(axis, keepdim=True)).square().nansum(axis, keepdim=True)
    return (squares / (count - 1).clamp(min=1)).sqrt()
