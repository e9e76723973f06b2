"""The clipped objective that both policies maximize, and what its ratios look like."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lowdim.errors import DataError, ShapeError
from lowdim.policy.effective import EXPONENT, log_ratio

__all__ = ["RatioLevel", "RatioStatistics", "clipped_surrogate", "truncated_surrogate"]

RatioLevel = Literal["token", "sequence"]


@dataclass(frozen=True)
class RatioStatistics:
    """What the probability ratios of an update look like.

    Parameters
    ----------
    mean, maximum, p99 : float
        Mean, largest and 99th percentile of the ratios of the tokens (of the sequences with sequence ratios).
    clipped_low, clipped_high : float
        Share of the tokens whose gradient is cut because the ratio left the interval below (with a negative
        advantage) or above (with a positive one).
    outside : float
        Share of the ratios outside the interval, whatever the advantage.
    tokens : int
        Number of ratios.

    Examples
    --------
    >>> import torch
    >>> one = torch.ones(1, 1)
    >>> loss, ratios = clipped_surrogate((one / 2).log(), (one / 4).log(), one[0], one, max_length=1)
    >>> round(ratios.maximum, 3), ratios.clipped_high
    (2.0, 1.0)
    """

    mean: float
    maximum: float
    p99: float
    clipped_low: float
    clipped_high: float
    outside: float
    tokens: int


def clipped_surrogate(
    logp: Tensor,
    logp_old: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    max_length: int,
    clip: float | tuple[float, float] = 0.2,
    ratio_cap: float | None = None,
    level: RatioLevel = "token",
    rows: float | None = None,
) -> tuple[Tensor, RatioStatistics]:
    """Compute minus the clipped objective, 1/G sum_i 1/N sum_t min(w A, clip(w) A), a policy's loss.

    For the small policy `logp_old` are its own log-probabilities at generation (equation 7), for the large
    one they are the small policy's too (equation 15): its ratios are not one even in the first update.

    Parameters
    ----------
    logp : Tensor
        Log-probabilities under the policy in training, with gradient, shape ``(rows, tokens)``.
    logp_old : Tensor
        Log-probabilities under the policy that sampled, shape ``(rows, tokens)``; constants.
    advantage : Tensor
        Shape ``(rows,)``; constants.
    mask : Tensor
        One for tokens of the completion, shape ``(rows, tokens)``.
    max_length : int
        N, the largest number of completion tokens of the run.
    clip : float or tuple of float
        Width eps of the interval 1 - eps to 1 + eps; two numbers give its lower and upper width.
    ratio_cap : float or None
        Bounds the ratio where the minimum keeps it (negative advantages); None leaves it unbounded, as in the
        paper. Larger than 1 + eps.
    level : {"token", "sequence"}
        "token" as in the paper; "sequence" takes the geometric mean of a rollout's ratios for all its tokens
        (Zheng et al., "Group Sequence Policy Optimization", 2025).
    rows : float or None
        The number of rows to divide by, where rows without advantage were left out; None counts those given.

    Returns
    -------
    loss : Tensor
        A scalar.
    statistics : RatioStatistics

    Raises
    ------
    DataError
        If an interval or a cap is impossible.
    ShapeError
        If shapes differ.

    References
    ----------
    Kwon et al., "CoDistill-GRPO", 2026, equations 7 and 15.

    Examples
    --------
    >>> import torch
    >>> logp = torch.log(torch.tensor([[0.5], [0.5]])).requires_grad_()
    >>> loss, ratios = clipped_surrogate(logp, logp.detach(), torch.tensor([1.0, -1.0]), torch.ones(2, 1),
    ...                                  max_length=2)
    >>> loss.backward()
    >>> logp.grad.flatten()
    tensor([-0.2500,  0.2500])
    """
    low, high = (clip, clip) if isinstance(clip, int | float) else clip
    if not (low > 0 and high > 0):
        raise DataError(f"clipped_surrogate: clip={clip}. Give positive widths, such as 0.2.")
    if ratio_cap is not None and not ratio_cap > 1 + high:
        raise DataError(
            f"clipped_surrogate: ratio_cap={ratio_cap} is not above 1 + {high}. Give 3 to 10, or None."
        )
    if level not in ("token", "sequence"):
        raise DataError(f"clipped_surrogate: level={level!r}. Give 'token' or 'sequence'.")
    if advantage.shape != logp.shape[:1]:
        raise ShapeError(
            f"clipped_surrogate: {tuple(advantage.shape)} advantages for {logp.shape[0]} rollouts."
        )
    log_weight = log_ratio(logp, logp_old.detach(), mask)
    if level == "sequence":
        log_weight = log_weight.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
    A = advantage.detach().to(log_weight.dtype)[:, None]
    w = torch.exp(log_weight.clamp(-EXPONENT, EXPONENT))
    clipped = w.clamp(1 - low, 1 + high)
    capped = w if ratio_cap is None else w.clamp(max=ratio_cap)
    objective = torch.minimum(capped * A, clipped * A)
    loss = -(objective * mask).sum() / ((rows or logp.shape[0]) * max_length)
    return loss, _statistics(w.detach(), A, mask, low, high)


def truncated_surrogate(
    logp: Tensor, logp_old: Tensor, advantage: Tensor, mask: Tensor, *, max_length: int, cap: float
) -> tuple[Tensor, RatioStatistics]:
    """Compute minus 1/G sum_i 1/N sum_t sg(min(w, cap)) A log pi, the loss with truncated ratios (ours).

    Clipping takes the gradient away from every token that the large policy finds 1 + eps times likelier than
    the small one: it can hardly come to know more than the policy that samples. Here such tokens keep their
    gradient, and no weight exceeds the cap, whatever the sign of the advantage.

    Parameters
    ----------
    logp, logp_old, advantage, mask, max_length
        See :func:`clipped_surrogate`.
    cap : float
        Largest weight of a token, positive.

    Returns
    -------
    loss : Tensor
        A scalar. Its value is no objective; its gradient is what is meant.
    statistics : RatioStatistics
        Tokens above the cap stand under `clipped_high`.

    Raises
    ------
    DataError
        If the cap is not positive.
    ShapeError
        If shapes differ.

    References
    ----------
    Ionides, "Truncated Importance Sampling", 2008; MiniMax, "MiniMax-M1" (CISPO), 2025.

    Examples
    --------
    >>> import torch
    >>> logp = torch.log(torch.tensor([[0.5], [0.5]])).requires_grad_()
    >>> old = torch.log(torch.tensor([[0.1], [0.5]]))
    >>> loss, _ = truncated_surrogate(logp, old, torch.tensor([1.0, -1.0]), torch.ones(2, 1), max_length=1,
    ...                               cap=2.0)
    >>> loss.backward()
    >>> logp.grad.flatten()
    tensor([-1.0000,  0.5000])
    """
    if not cap > 0:
        raise DataError(f"truncated_surrogate: cap={cap} is not positive. Give 1 to 3.")
    if advantage.shape != logp.shape[:1]:
        raise ShapeError(
            f"truncated_surrogate: {tuple(advantage.shape)} advantages for {logp.shape[0]} rollouts."
        )
    log_weight = log_ratio(logp, logp_old.detach(), mask)
    A = advantage.detach().to(log_weight.dtype)[:, None]
    w = torch.exp(log_weight.detach().clamp(-EXPONENT, EXPONENT))
    # log_weight has the gradient of log pi, and is 0 at padding.
    loss = -(w.clamp(max=cap) * A * log_weight).sum() / (logp.shape[0] * max_length)
    return loss, _statistics(w, A, mask, math.inf, cap - 1)


@torch.no_grad()
def _statistics(w: Tensor, A: Tensor, mask: Tensor, low: float, high: float) -> RatioStatistics:
    inside = (mask.sum(-1, keepdim=True) > 0) if w.shape[-1] == 1 else mask.bool()
    ratios, A = w[inside], A.expand_as(w)[inside]
    if not ratios.numel():
        return RatioStatistics(math.nan, math.nan, math.nan, 0.0, 0.0, 0.0, 0)
    below, above = ratios < 1 - low, ratios > 1 + high
    count = ratios.numel()
    p99 = ratios.float().kthvalue(max(1, math.ceil(0.99 * count))).values
    figures = torch.stack(
        [
            ratios.float().mean(),
            ratios.float().max(),
            p99,
            (below & (A < 0)).float().mean(),
            (above & (A > 0)).float().mean(),
            (below | above).float().mean(),
        ]
    ).tolist()  # one transfer from the device
    mean, maximum, p99, low_share, high_share, outside = figures
    return RatioStatistics(mean, maximum, p99, low_share, high_share, outside, count)
