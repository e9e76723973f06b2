"""Optimal: the best one-layer linear attention, and its risk on any tasks, in closed form.

Everywhere `noise` is the standard deviation sigma of label noise, and `covariance` the second moment S of the
task vectors.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lowdim.errors import DataError, ShapeError
from lowdim.incontext.door import (
    check_angles,
    check_count,
    check_covariance,
    check_matrix,
    check_noise,
    check_room,
)

__all__ = ["moment_covariance", "optimal_weights", "risk", "risk_vs_angle"]


def moment_covariance(
    covariance: Tensor, *, n: int, noise: float = 0.0, inputs: Tensor | None = None
) -> Tensor:
    """Return G_n(S) = E b_hat b_hat^T of the moment b_hat = X^T y / n.

    G_n(S) = (1 + 1/n) S + ((tr S + sigma^2) / n) I for standard normal inputs; with covariance S_x of inputs
    G = (1 + 1/n) S_x S S_x + ((tr S S_x + sigma^2) / n) S_x.

    Parameters
    ----------
    covariance : Tensor, shape (d, d)
        Second moment S of the task vectors.
    n : int
        Examples in the context.
    noise : float
        Standard deviation of label noise.
    inputs : Tensor of shape (d, d), optional
        Covariance of x; the identity by default.

    Returns
    -------
    Tensor, shape (d, d)

    Raises
    ------
    DataError, ShapeError
        If a matrix is no covariance, n < 1, or noise < 0.

    Examples
    --------
    >>> moment_covariance(torch.diag(torch.tensor([1.0, 0.0])), n=2)
    tensor([[2.0000, 0.0000],
            [0.0000, 0.5000]])
    """
    where = "moment_covariance"
    S, Sx = _checked(covariance, inputs, n, noise, where)
    G = (1 + 1 / n) * (Sx @ S @ Sx) + (float((S * Sx).sum()) + noise**2) / n * Sx
    return (G + G.mT) / 2


def optimal_weights(
    covariance: Tensor, *, n: int, noise: float = 0.0, inputs: Tensor | None = None
) -> Tensor:
    """Return the weights of least risk of linear attention, W* = S S_x G_n(S)^-1.

    For S = U U^T and standard normal inputs that is c U U^T with c = n / (n + 1 + r + sigma^2).

    Parameters
    ----------
    covariance, n, noise, inputs
        See `moment_covariance`.

    Returns
    -------
    Tensor, shape (d, d)
        Predictions are x_q^T W X^T y / n.

    Raises
    ------
    DataError, ShapeError
        As `moment_covariance`, or if G is singular: labels are 0 (noise = 0 and S = 0), or `inputs` singular.

    References
    ----------
    .. [1] S. M. Kwon et al., "Out-of-distribution generalization of in-context learning: a low-dimensional
       subspace perspective", AISTATS 2026 (arXiv 2505.14808).

    Examples
    --------
    >>> optimal_weights(torch.diag(torch.tensor([1.0, 0.0])), n=8)
    tensor([[0.8000, 0.0000],
            [0.0000, 0.0000]])
    """
    where = "optimal_weights"
    S, Sx = _checked(covariance, inputs, n, noise, where)
    G = moment_covariance(S, n=n, noise=noise, inputs=inputs)
    factor, info = torch.linalg.cholesky_ex(G)
    if int(info) or not bool(torch.isfinite(factor).all()):
        raise DataError(
            f"{where}: the second moment of X^T y / n is singular (labels are always 0, or inputs lie in a "
            "subspace), so that no weights are best. Give noise > 0, a covariance other than 0, or "
            "positive definite inputs."
        )
    return torch.cholesky_solve(Sx @ S, factor).mT


def risk(W: Tensor, *, covariance: Tensor, n: int, noise: float = 0.0, inputs: Tensor | None = None) -> float:
    """Return the risk E (x_q^T W X^T y / n - b.x_q)^2 of linear attention with weights W.

    R = tr S S_x - 2 tr S_x W S_x S + tr S_x W G_n(S) W^T. Noise on the query's label would add sigma^2.

    Parameters
    ----------
    W : Tensor, shape (d, d)
    covariance : Tensor, shape (d, d)
        Second moment S of the task vectors that W is tested on.
    n : int
        Examples in the context at test, which may be other than in training.
    noise, inputs
        See `moment_covariance`.

    Returns
    -------
    float

    Raises
    ------
    DataError, ShapeError
        If W is no matrix of finite numbers of the size of `covariance`, or as `moment_covariance`.

    Examples
    --------
    >>> S = torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64))
    >>> round(risk(optimal_weights(S, n=8), covariance=S, n=8), 12)
    0.2
    """
    where = "risk"
    S, Sx = _checked(covariance, inputs, n, noise, where)
    W = check_matrix("W", W, where=where, d=len(S)).to(S)
    G = moment_covariance(S, n=n, noise=noise, inputs=inputs)
    return float((S * Sx).sum() - 2 * torch.trace(Sx @ W @ Sx @ S) + torch.trace(Sx @ W @ G @ W.mT))


def risk_vs_angle(W: Tensor, *, U: Tensor, V: Tensor, angles_deg: Any, n: int, noise: float = 0.0) -> Tensor:
    """Return the risk of linear attention on tasks in U cos t + V sin t, for every angle.

    For W = c U U^T that is r - 2 c r cos^2 t + c^2 ((1 + 1/n) r cos^2 t + r (r + sigma^2) / n), which tends
    to r sin^2 t as contexts grow: more examples do not help.

    Parameters
    ----------
    W : Tensor, shape (d, d)
    U, V : Tensor, shape (d, r)
        Orthonormal, and orthogonal to each other.
    angles_deg : sequence of float
        In degrees, in [0, 90].
    n : int
        Examples in the context at test.
    noise : float
        Standard deviation of label noise.

    Returns
    -------
    Tensor, shape (angles,), float64

    Raises
    ------
    RankError
        If 2 r > d.
    DataError, ShapeError
        If U and V are not orthonormal and orthogonal, or an argument is out of range.

    Examples
    --------
    >>> I = torch.eye(4, dtype=torch.float64)
    >>> U, V = I[:, :1], I[:, 1:2]
    >>> risk_vs_angle(optimal_weights(U @ U.mT, n=100), U=U, V=V, angles_deg=[0, 90], n=100)
    tensor([0.0196, 1.0096], dtype=torch.float64)
    """
    where = "risk_vs_angle"
    angles = check_angles(angles_deg, where=where).reshape(-1)
    if not all(isinstance(part, Tensor) and part.ndim == 2 for part in (U, V)) or U.shape != V.shape:
        raise ShapeError(f"{where}: U and V must be tensors of one shape (d, r).")
    check_room(*U.shape, where=where)
    both = torch.cat([U, V], dim=1).double()
    if float((both.mT @ both - torch.eye(both.shape[1]).to(both)).abs().max()) > 1e-6:
        raise DataError(
            f"{where}: the columns of U and V together must be orthonormal. Take them from one "
            "torch.linalg.qr(...).Q."
        )
    W = check_matrix("W", W, where=where, d=len(U)).double()
    U, V = U.double(), V.double()
    risks = []
    for t in angles.deg2rad().tolist():
        turned = math.cos(t) * U + math.sin(t) * V
        risks.append(risk(W, covariance=turned @ turned.mT, n=n, noise=noise))
    return torch.tensor(risks, dtype=torch.float64)


def _checked(
    covariance: Tensor, inputs: Tensor | None, n: int, noise: float, where: str
) -> tuple[Tensor, Tensor]:
    check_count("n", n, where=where)
    check_noise(noise, where=where)
    S = check_covariance("covariance", covariance, where=where)
    if inputs is None:
        return S, torch.eye(len(S), dtype=S.dtype, device=S.device)
    return S, check_covariance("inputs", inputs, where=where, d=len(S)).to(S)
