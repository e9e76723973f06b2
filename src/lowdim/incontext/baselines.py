"""Baselines: predictors that are fitted to each prompt anew, to compare models with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lowdim.errors import DataError
from lowdim.incontext.tasks import Prompt, SubspaceTasks

__all__ = ["BASELINES", "baseline_errors", "least_squares", "oracle", "ridge", "zero"]

_JITTER = 1e-8
"""Ridge that keeps a kernel matrix positive definite where labels have no noise, relative to its diagonal."""


def zero(prompt: Prompt, tasks: SubspaceTasks) -> Tensor:
    """Predict 0.

    Parameters
    ----------
    prompt : Prompt
    tasks : SubspaceTasks
        That it is from.

    Returns
    -------
    Tensor, shape (batch,)
    """
    return torch.zeros_like(prompt.yq)


def least_squares(prompt: Prompt, tasks: SubspaceTasks) -> Tensor:
    """Predict by the linear function of least squares (of least norm, where the context is short).

    Parameters
    ----------
    prompt : Prompt
    tasks : SubspaceTasks

    Returns
    -------
    Tensor, shape (batch,)
    """
    return _linear_regression(prompt.X, prompt.y, prompt.xq, 0.0)


def ridge(prompt: Prompt, tasks: SubspaceTasks) -> Tensor:
    """Predict by ridge regression in all d dimensions.

    Of labels with variance v a linear function of x explains the share s; the rest counts as noise. The best
    penalty for coefficients with variance v s / d is then (sigma^2 + v (1 - s)) d / (v s), which is
    sigma^2 d / r for linear functions.

    Parameters
    ----------
    prompt : Prompt
    tasks : SubspaceTasks

    Returns
    -------
    Tensor, shape (batch,)
    """
    v, share = tasks.variance, tasks.family.linear_share(tasks.r)
    if share < _JITTER:  # nothing linear is there: the best linear function is 0
        return zero(prompt, tasks)
    penalty = (tasks.noise**2 + v * (1 - share)) * tasks.d / (v * share)
    return _linear_regression(prompt.X, prompt.y, prompt.xq, penalty)


def oracle(prompt: Prompt, tasks: SubspaceTasks) -> Tensor:
    """Predict from coordinates in the true subspace, by the best predictor that is linear in the labels.

    That is Gaussian-process regression with the family's kernel: for linear functions ridge regression in the
    subspace with penalty sigma^2 (least squares, if there is no noise).

    Parameters
    ----------
    prompt : Prompt
    tasks : SubspaceTasks

    Returns
    -------
    Tensor, shape (batch,)
    """
    bases = tasks.bases[prompt.which]
    u, uq = prompt.X @ bases, (prompt.xq.unsqueeze(1) @ bases).squeeze(1)
    if tasks.family.name == "linear":
        return _linear_regression(u, prompt.y, uq, tasks.noise**2)
    u, uq = u.double(), uq.double()
    K, k = tasks.family.kernel(u, u), tasks.family.kernel(uq.unsqueeze(1), u)
    size = K.diagonal(dim1=-2, dim2=-1).mean(-1)
    penalty = tasks.noise**2 + _JITTER * size
    factor = torch.linalg.cholesky(K + torch.diag_embed(penalty.unsqueeze(-1).expand(-1, K.shape[-1])))
    return (k @ torch.cholesky_solve(prompt.y.double().unsqueeze(-1), factor)).flatten().to(prompt.yq)


def _linear_regression(X: Tensor, y: Tensor, xq: Tensor, penalty: float) -> Tensor:
    """Return x_q^T (X^T X + penalty I)^-1 X^T y; of penalty 0 the solution of least norm."""
    X, y = X.double(), y.double().unsqueeze(-1)
    n, d = X.shape[-2:]
    if penalty:
        factor = torch.linalg.cholesky(X.mT @ X + penalty * torch.eye(d, dtype=X.dtype, device=X.device))
        b = torch.cholesky_solve(X.mT @ y, factor)
    elif n < d:
        b = torch.linalg.pinv(X) @ y
    else:
        Q, R = torch.linalg.qr(X)
        b = torch.linalg.solve_triangular(R, Q.mT @ y, upper=True)
    return (xq.double() * b.squeeze(-1)).sum(-1).to(xq)


BASELINES: dict[str, Callable[[Prompt, SubspaceTasks], Tensor]] = {
    "zero": zero,
    "ridge": ridge,
    "least squares": least_squares,
    "oracle": oracle,
}
"""Baselines by name."""


def baseline_errors(name: str, prompt: Prompt, tasks: SubspaceTasks) -> Tensor:
    """Return squared errors of a baseline at the queries.

    Parameters
    ----------
    name : {"zero", "ridge", "least squares", "oracle"}
    prompt : Prompt
    tasks : SubspaceTasks
        That the prompt is from.

    Returns
    -------
    Tensor, shape (batch,)

    Raises
    ------
    DataError
        If the name is unknown.
    """
    if name not in BASELINES:
        raise DataError(f"incontext: baseline={name!r} is unknown. Use one of {', '.join(BASELINES)}.")
    return (BASELINES[name](prompt, tasks) - prompt.yq).square()
