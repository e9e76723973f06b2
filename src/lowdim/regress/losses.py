"""Losses: what a classifier pays per sample, and the slope of it in the scores."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import softplus

__all__ = ["LOSSES", "Loss", "logistic", "multinomial", "squared_hinge"]

Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Scores (m, C, K) and targets (m, C or 1, K) -> loss (m, C) and slope (m, C, K)."""


def logistic(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``log(1 + exp(-t f))`` and its slope, for targets -1 and 1.

    Examples
    --------
    >>> import torch
    >>> loss, slope = logistic(torch.zeros(1, 1, 1), torch.ones(1, 1, 1))
    >>> round(float(loss), 4), float(slope)
    (0.6931, -0.5)
    """
    margin = -targets * scores
    return softplus(margin).sum(-1), -targets * margin.sigmoid()


def multinomial(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``log sum_k exp(f_k) - f_class`` and its slope, for targets that are 1 at the class, else 0.

    Examples
    --------
    >>> import torch
    >>> loss, slope = multinomial(torch.zeros(1, 1, 2), torch.tensor([[[1.0, 0.0]]]))
    >>> round(float(loss), 4), slope.flatten().tolist()
    (0.6931, [-0.5, 0.5])
    """
    return scores.logsumexp(-1) - (targets * scores).sum(-1), scores.softmax(-1) - targets


def squared_hinge(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``max(0, 1 - t f)^2`` and its slope, for targets -1 and 1.

    Examples
    --------
    >>> import torch
    >>> loss, slope = squared_hinge(torch.zeros(1, 1, 1), torch.ones(1, 1, 1))
    >>> float(loss), float(slope)
    (1.0, -2.0)
    """
    short = (1 - targets * scores).clamp_min(0)
    return short.square().sum(-1), -2 * targets * short


LOSSES: dict[str, Loss] = {"logistic": logistic, "multinomial": multinomial, "squared_hinge": squared_hinge}
