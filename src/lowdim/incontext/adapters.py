"""Adapters: the best low-rank update of linear attention for new tasks, in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowdim.algebra.seeds import Seed, gaussian
from lowdim.errors import DataError
from lowdim.incontext.door import check_count, check_matrix, check_rank
from lowdim.incontext.optimal import moment_covariance, risk

__all__ = ["LowRankUpdate", "best_low_rank_update", "train_low_rank_update"]


@dataclass(frozen=True, eq=False)
class LowRankUpdate:
    """Weights W0 + B A.

    Parameters
    ----------
    B, A : Tensor, shapes (d, rank) and (rank, d)
        The update is B A.
    risk : float
        Of the updated weights.

    Examples
    --------
    >>> update = best_low_rank_update(torch.zeros(2, 2), covariance=torch.eye(2), n=8, rank=1)
    >>> update.weights(torch.zeros(2, 2)).shape
    torch.Size([2, 2])
    """

    B: Tensor
    A: Tensor
    risk: float

    def weights(self, W0: Tensor) -> Tensor:
        """Return W0 + B A."""
        return W0 + (self.B @ self.A).to(W0)


def best_low_rank_update(
    W0: Tensor,
    *,
    covariance: Tensor,
    n: int,
    rank: int,
    noise: float = 0.0,
    inputs: Tensor | None = None,
) -> LowRankUpdate:
    """Return the update of rank at most `rank` that brings linear attention to the least risk.

    With G = C C^T and S_x = L L^T the risk of W0 + D is that of the best weights W* plus
    ``|L^T (W0 + D - W*) C|_F^2``. Hence D = L^-T [T]_rank C^-1, with the truncated singular value
    decomposition of T = L^T (W* - W0) C = L^-1 (S_x S S_x - S_x W0 G) C^-T, and each singular value it keeps
    lowers the risk by its square.

    Parameters
    ----------
    W0 : Tensor, shape (d, d)
        Weights to be adapted.
    covariance : Tensor, shape (d, d)
        Second moment of the task vectors to adapt to.
    n : int
        Examples in the context.
    rank : int
        From 0 to d.
    noise : float
        Standard deviation of label noise.
    inputs : Tensor of shape (d, d), optional
        Covariance of x; the identity by default.

    Returns
    -------
    LowRankUpdate

    Raises
    ------
    RankError
        If `rank` is outside of [0, d].
    DataError, ShapeError
        As `optimal_weights`.

    References
    ----------
    .. [1] Y. Li, A. S. Rawat, S. Oymak, "Fine-grained analysis of in-context linear estimation: data,
       architecture, and beyond", NeurIPS 2024 (arXiv 2407.10005), for low-rank attention.

    Examples
    --------
    >>> I = torch.eye(4, dtype=torch.float64)
    >>> update = best_low_rank_update(torch.zeros_like(I), covariance=I, n=8, rank=4)
    >>> torch.allclose(update.B @ update.A, 8 / 13 * I)  # n / (n + 1 + d)
    True
    """
    where = "best_low_rank_update"
    G = moment_covariance(covariance, n=n, noise=noise, inputs=inputs)
    d = len(G)
    W0 = check_matrix("W0", W0, where=where, d=d).to(G)
    check_rank(rank, d, where=where)
    Sx = torch.eye(d, dtype=G.dtype, device=G.device) if inputs is None else inputs.to(G)
    (C, singular), (L, flat) = torch.linalg.cholesky_ex(G), torch.linalg.cholesky_ex(Sx)
    if int(singular) or int(flat):
        raise DataError(
            f"{where}: the second moment of X^T y / n is singular. Give noise > 0, a covariance other "
            "than 0, or positive definite inputs."
        )
    gap = Sx @ covariance.to(G) @ Sx - Sx @ W0 @ G
    T = torch.linalg.solve_triangular(L, gap, upper=False)
    T = torch.linalg.solve_triangular(C, T.mT, upper=False).mT
    left, sizes, right = torch.linalg.svd(T)
    root = sizes[:rank].sqrt()
    B = torch.linalg.solve_triangular(L.mT, left[:, :rank] * root, upper=True)
    A = torch.linalg.solve_triangular(C.mT, (right[:rank].mT * root), upper=True).mT
    before = risk(W0, covariance=covariance, n=n, noise=noise, inputs=inputs)
    return LowRankUpdate(B, A, before - float(sizes[:rank].square().sum()))


def train_low_rank_update(
    W0: Tensor,
    *,
    covariance: Tensor,
    n: int,
    rank: int,
    noise: float = 0.0,
    inputs: Tensor | None = None,
    steps: int = 2000,
    lr: float = 2e-2,
    seed: Seed = 0,
) -> LowRankUpdate:
    """Return the update that Adam finds for B and A on the exact risk, from B = 0 and A ~ N(0, 1/d).

    It is what low-rank adaptation does where prompts are unlimited; `best_low_rank_update` says how good it
    can become.

    Parameters
    ----------
    W0, covariance, n, rank, noise, inputs
        See `best_low_rank_update`.
    steps : int
        Of Adam, whose learning rate falls to 0 along a cosine.
    lr : float
        Learning rate at the start.
    seed : int, torch.Generator or None
        Of A.

    Returns
    -------
    LowRankUpdate

    Raises
    ------
    RankError
        If `rank` is outside of [0, d].
    DataError, ShapeError
        As `risk`, or if `steps` or `lr` is not positive.

    Examples
    --------
    >>> I = torch.eye(4, dtype=torch.float64)
    >>> best = best_low_rank_update(0 * I, covariance=I, n=8, rank=2)
    >>> found = train_low_rank_update(0 * I, covariance=I, n=8, rank=2, steps=500)
    >>> abs(found.risk - best.risk) < 1e-4
    True
    """
    where = "train_low_rank_update"
    check_count("steps", steps, where=where)
    if not lr > 0:
        raise DataError(f"{where}: lr={lr!r} must be positive.")
    G = moment_covariance(covariance, n=n, noise=noise, inputs=inputs)
    d = len(G)
    W0 = check_matrix("W0", W0, where=where, d=d).to(G).detach()
    check_rank(rank, d, where=where)
    Sx = torch.eye(d, dtype=G.dtype, device=G.device) if inputs is None else inputs.to(G)
    cross = Sx @ covariance.to(G) @ Sx
    B = torch.zeros(d, rank, dtype=G.dtype, device=G.device, requires_grad=True)
    A = (gaussian((rank, d), seed=seed, dtype=G.dtype, device=G.device) / d**0.5).requires_grad_(True)
    optimizer = torch.optim.Adam([B, A], lr=lr)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps if rank else 0):
        W = W0 + B @ A
        # The risk up to tr S S_x, which does not depend on W.
        loss = ((Sx @ W @ G) * W).sum() - 2 * (W * cross).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        falling.step()
    B, A = B.detach(), A.detach()
    reached = risk(W0 + B @ A, covariance=covariance, n=n, noise=noise, inputs=inputs)
    return LowRankUpdate(B, A, reached)
