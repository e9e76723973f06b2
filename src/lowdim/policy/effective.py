"""The reward of the small policy: the task's reward plus what the large policy thinks of the rollout."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lowdim.errors import DataError, ShapeError

__all__ = ["Estimator", "distillation_loss", "distillation_term", "effective_reward", "log_ratio"]

Estimator = Literal["k1", "k2", "k3"]

# exp(20) is 5e8: beyond it a ratio says "absurd", and float32 sums of its square would overflow.
EXPONENT = 20.0


def log_ratio(logp: Tensor, logp_other: Tensor, mask: Tensor) -> Tensor:
    """Difference of two log-probabilities, exactly zero where the mask is zero.

    Parameters
    ----------
    logp, logp_other : Tensor
        Log-probabilities of the same tokens, shape ``(rows, tokens)``. Whatever stands at padding, infinities
        included, has no effect.
    mask : Tensor
        One for tokens of the completion, zero for padding, shape ``(rows, tokens)``.

    Returns
    -------
    Tensor
        Shape ``(rows, tokens)``, float32 (float64 stays float64).

    Raises
    ------
    ShapeError
        If the three shapes differ.

    Examples
    --------
    >>> import torch
    >>> inf = float("inf")
    >>> log_ratio(torch.tensor([[-1.0, -inf]]), torch.tensor([[-2.0, -inf]]), torch.tensor([[1, 0]]))
    tensor([[1., 0.]])
    """
    if not logp.shape == logp_other.shape == mask.shape:
        raise ShapeError(
            f"log_ratio: shapes {tuple(logp.shape)}, {tuple(logp_other.shape)} and mask {tuple(mask.shape)} "
            "differ. Give log-probabilities of the same tokens."
        )
    # Differences of bfloat16 numbers, summed over thousands of tokens, are noise: at least float32.
    exact = torch.promote_types(torch.promote_types(logp.dtype, logp_other.dtype), torch.float32)
    inside = mask.bool()
    left = torch.where(inside, logp, 0).to(exact)
    return left - torch.where(inside, logp_other, 0).to(exact)


def distillation_term(
    logp_large: Tensor, logp_small: Tensor, mask: Tensor, *, max_length: int, estimator: Estimator = "k1"
) -> Tensor:
    """How much likelier the large policy finds each rollout, per token of the longest rollout.

    With d = log pi_theta - log pi_phi the term is ``(1/N) sum_t d`` (k1) or ``-(1/N) sum_t (e^d - d - 1)``
    (k3). In the reward, k1 gives exactly the gradient of -KL(phi || theta) / N; k3 does not.

    Parameters
    ----------
    logp_large, logp_small : Tensor
        Log-probabilities of the sampled tokens under both policies, shape ``(rows, tokens)``.
    mask : Tensor
        One up to and including the first end of sequence, shape ``(rows, tokens)``.
    max_length : int
        N, the largest number of completion tokens of the run (never the padded length of a batch).
    estimator : {"k1", "k3"}
        The estimator of the divergence.

    Returns
    -------
    Tensor
        Shape ``(rows,)``, without gradient.

    Raises
    ------
    DataError
        If the estimator is unknown, or `max_length` is shorter than a rollout.
    ShapeError
        If shapes differ.

    References
    ----------
    Kwon et al., "CoDistill-GRPO", 2026, equation 8 and figure 9.

    Examples
    --------
    >>> import torch
    >>> distillation_term(torch.tensor([[-1.0, -1.0]]), torch.tensor([[-2.0, -1.5]]),
    ...                   torch.ones(1, 2), max_length=4)
    tensor([0.3750])
    """
    d = log_ratio(logp_large, logp_small, mask).detach()
    _check_length(mask, max_length)
    if estimator == "k1":
        return d.sum(-1) / max_length
    if estimator == "k3":
        return -(torch.exp(d.clamp(max=EXPONENT)) - d - 1).sum(-1) / max_length
    raise DataError(
        f"distillation_term: estimator={estimator!r}. In the reward it is 'k1' (the paper's) or 'k3'."
    )


def effective_reward(
    reward: Tensor,
    logp_large: Tensor,
    logp_small: Tensor,
    mask: Tensor,
    *,
    alpha: float,
    max_length: int,
    estimator: Estimator = "k1",
) -> Tensor:
    """Reward of the small policy: r + alpha * (1/N) sum_t (log pi_theta - log pi_phi).

    Its expected policy gradient is that of E[r] - (alpha/N) KL(phi || theta) (theorem 1, exact with k1 and
    one update per generation). It is a constant: no gradient flows through it.

    Parameters
    ----------
    reward : Tensor
        Reward of each rollout, shape ``(rows,)``.
    logp_large, logp_small : Tensor
        Log-probabilities of the sampled tokens, shape ``(rows, tokens)``.
    mask : Tensor
        One for tokens of the completion, shape ``(rows, tokens)``.
    alpha : float
        Weight of the distillation, not negative; 0 leaves the reward as it is.
    max_length : int
        N, the largest number of completion tokens of the run.
    estimator : {"k1", "k3"}
        See :func:`distillation_term`.

    Returns
    -------
    Tensor
        Shape ``(rows,)``.

    Raises
    ------
    DataError
        If `alpha` is negative or `estimator` unknown.
    ShapeError
        If shapes differ.

    References
    ----------
    Kwon et al., "CoDistill-GRPO", 2026, equation 8.

    Examples
    --------
    >>> import torch
    >>> effective_reward(torch.tensor([1.0]), torch.tensor([[-1.0]]), torch.tensor([[-3.0]]),
    ...                  torch.ones(1, 1), alpha=0.5, max_length=2)
    tensor([1.5000])
    """
    if not alpha >= 0:
        raise DataError(f"effective_reward: alpha={alpha} is negative. Give 0 (no distillation) or more.")
    if reward.shape != mask.shape[:1]:
        raise ShapeError(f"effective_reward: {tuple(reward.shape)} rewards for {mask.shape[0]} rollouts.")
    if alpha == 0:
        return reward  # bit for bit: the switch is off
    term = distillation_term(logp_large, logp_small, mask, max_length=max_length, estimator=estimator)
    return reward + alpha * term.to(reward.dtype)


def distillation_loss(
    logp: Tensor,
    logp_large: Tensor,
    mask: Tensor,
    *,
    max_length: int,
    estimator: Estimator = "k2",
    level: Literal["token", "sequence"] = "token",
) -> Tensor:
    """Distillation as a term of the loss instead of the reward.

    On rollouts of the small policy itself, ``0.5 (log pi_phi - log pi_theta)^2`` (k2) has the gradient of
    KL(phi || theta); ``e^d - d - 1`` with d = log pi_theta - log pi_phi (k3) has that of KL(theta || phi),
    the other direction. On the level of sequences both are exact; on the level of tokens they are the sums of
    the conditional divergences along the sampled prefixes, which does not overflow for long rollouts.
    The log ratio itself (k1) teaches nothing as a loss: its expected gradient is zero.

    Parameters
    ----------
    logp : Tensor
        Log-probabilities of the small policy, with gradient, shape ``(rows, tokens)``.
    logp_large : Tensor
        Those of the large one, shape ``(rows, tokens)``; constants.
    mask : Tensor
        One for tokens of the completion, shape ``(rows, tokens)``.
    max_length : int
        N, the largest number of completion tokens of the run.
    estimator : {"k2", "k3"}
        The divergence's direction, see above.
    level : {"token", "sequence"}
        Whether the estimator is applied to each token or to the sum over the rollout.

    Returns
    -------
    Tensor
        A scalar: mean over the rows of the sum over tokens, divided by N.

    Raises
    ------
    DataError
        If the estimator is k1 or unknown, or the level unknown.
    ShapeError
        If shapes differ.

    Examples
    --------
    >>> import torch
    >>> distillation_loss(torch.tensor([[-1.0]]), torch.tensor([[-3.0]]), torch.ones(1, 1), max_length=1)
    tensor(2.)
    """
    if estimator == "k1":
        raise DataError(
            "distillation_loss: the expected gradient of the log ratio (k1) is zero: it teaches "
            "nothing as a loss. Use estimator='k2' (the same divergence as k1 in the reward) or 'k3'."
        )
    if level not in ("token", "sequence"):
        raise DataError(f"distillation_loss: level={level!r}. Give 'token' or 'sequence'.")
    _check_length(mask, max_length)
    d = log_ratio(logp_large.detach(), logp, mask)
    if level == "sequence":
        d = d.sum(-1, keepdim=True)
    if estimator == "k2":
        each = 0.5 * d.square()
    elif estimator == "k3":
        each = torch.exp(d.clamp(max=EXPONENT)) - d - 1
    else:
        raise DataError(f"distillation_loss: estimator={estimator!r}. In the loss it is 'k2' or 'k3'.")
    return each.sum(-1).mean() / max_length


def _check_length(mask: Tensor, max_length: int) -> None:
    if max_length < 1:
        raise DataError(f"max_length={max_length}: give the largest number of completion tokens of the run.")
    if mask.shape[-1] > max_length and bool((mask.sum(-1) > max_length).any()):
        raise DataError(
            f"max_length={max_length}, but a rollout has {int(mask.sum(-1).max())} tokens. N is "
            "a constant of the run: the largest number of completion tokens that generation allows."
        )
