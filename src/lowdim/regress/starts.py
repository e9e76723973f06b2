"""Starts: where searches for the coefficients begin, from the moment tensor of samples and targets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lowdim.algebra.tensors import CP, Tucker, khatri_rao, mode_product, unfold
from lowdim.errors import DataError

__all__ = ["aligned_cp", "bounded", "dense", "gaussian", "leading", "orthonormal_tucker"]

ALIGNING = 20
"""Sweeps of alternating least squares on the moment tensor."""


LARGEST = 1e150
"""Size from which on squares leave the range of double precision."""


def bounded(M: Tensor) -> Tensor:
    """Return sums over samples as they are, if their squares can be computed with.

    Parameters
    ----------
    M : Tensor

    Returns
    -------
    Tensor

    Raises
    ------
    DataError
        If X or y hold numbers that are too large.
    """
    if not bool((M.abs() < LARGEST).all()):
        raise DataError(
            "fit: the numbers of X and y are so large that their squares overflow. Divide them by their size."
        )
    return M


def gaussian(shape: Sequence[int], random: np.random.RandomState, like: Tensor) -> Tensor:
    """Return standard normal numbers, drawn on the CPU whatever the device.

    Parameters
    ----------
    shape : sequence of int
    random : RandomState
    like : Tensor
        Whose device to use; double precision.

    Returns
    -------
    Tensor
    """
    return torch.as_tensor(random.standard_normal(tuple(shape))).to(like.device)


def leading(
    M: Tensor, ranks: Sequence[int], random: np.random.RandomState, *, modes: Sequence[int] | None = None
) -> list[Tensor]:
    """Return the leading left singular vectors of every unfolding.

    Parameters
    ----------
    M : Tensor of shape (C, n1, ..., nd)
        Moment tensors, ``sum_i s_i y_i X_i``.
    ranks : sequence of int
        Vectors per mode; those beyond n_k are Gaussian, the same for all of the batch.
    random : RandomState
    modes : sequence of int, optional
        Those whose vectors are wanted; all by default.

    Returns
    -------
    list of Tensor, each of shape (C, n_k, r_k)

    Examples
    --------
    >>> [U.shape[1:] for U in leading(torch.ones(1, 3, 2).double(), (1, 1), np.random.RandomState(0))]
    [torch.Size([3, 1]), torch.Size([2, 1])]
    """
    d = len(ranks)
    # A seed per mode, so that what one mode draws does not depend on the ranks of the others.
    seeds = random.randint(2**31 - 1, size=d)
    found = []
    for k in range(d) if modes is None else modes:
        r, flat = ranks[k], unfold(M, k, order=d)
        U = torch.linalg.eigh(flat @ flat.mT).eigenvectors.flip(-1)[..., :r]
        n, missing = U.shape[1], r - U.shape[2]
        if missing > 0:
            drawn = gaussian((missing, n), np.random.RandomState(seeds[k]), M).T / n**0.5
            U = torch.cat([U, drawn.expand(len(M), -1, -1)], -1)
        found.append(U)
    return found


def aligned_cp(M: Tensor, rank: int, random: np.random.RandomState) -> list[Tensor]:
    """Return balanced factors of a CP form near the moment tensors.

    With two modes these are singular vectors, each times the root of its singular value. With more, some
    sweeps of alternating least squares bring the singular vectors of the unfoldings into line.

    Parameters
    ----------
    M : Tensor of shape (C, n1, ..., nd)
    rank : int
    random : RandomState

    Returns
    -------
    list of Tensor, each of shape (C, n_k, rank)
    """
    d = M.ndim - 1
    factors = leading(M, (rank,) * d, random)
    for _ in range(ALIGNING if d > 2 else 1):
        for k in range(d) if d > 2 else (1,):
            others = [factor for j, factor in enumerate(factors) if j != k]
            gram = torch.stack([factor.mT @ factor for factor in others]).prod(0)
            size = gram.diagonal(dim1=1, dim2=2).mean(-1).clamp_min(1e-150)
            gram = gram + (1e-6 * size)[:, None, None] * torch.eye(rank, dtype=M.dtype, device=M.device)
            right = unfold(M, k, order=d) @ khatri_rao(others)
            factors[k] = torch.linalg.solve(gram, right.mT).mT
    norms = torch.stack([factor.norm(dim=-2, keepdim=True) for factor in factors])
    shared = norms.clamp_min(1e-150).log().mean(0).exp()
    return [factor / norm.clamp_min(1e-150) * shared for factor, norm in zip(factors, norms, strict=True)]


def orthonormal_tucker(
    M: Tensor, ranks: Sequence[int], random: np.random.RandomState
) -> tuple[Tensor, list[Tensor]]:
    """Return core and orthonormal factors of a Tucker form near the moment tensors (HOSVD).

    The leading parts are those of smaller ranks.

    Parameters
    ----------
    M : Tensor of shape (C, n1, ..., nd)
    ranks : sequence of int
        At most n_k.
    random : RandomState

    Returns
    -------
    core : Tensor of shape (C, r1, ..., rd)
    factors : list of Tensor, each of shape (C, n_k, r_k)
    """
    factors = leading(M, ranks, random)
    core = M
    for k, U in enumerate(factors):
        core = mode_product(core, U.mT, k, order=len(factors))
    return core, factors


def dense(factors: Sequence[Tensor], core: Tensor | None) -> Tensor:
    """Return the tensors of a batch of CP forms, or of Tucker forms with a core."""
    return CP(tuple(factors)).dense() if core is None else Tucker(core, tuple(factors)).dense()
