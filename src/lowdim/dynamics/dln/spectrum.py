"""Spectrum: Hessian eigenvalues of a deep linear network on its aligned set, in closed form.

The loss is ``f(W_1, ..., W_L) = 1/2 ||W_L ... W_1 - M||_F^2`` with the half. A loss that is a mean over N
entries is 2 f / N: every eigenvalue is then smaller by N / 2, and every critical learning rate larger.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lowdim.dynamics.dln.door import as_depth, as_rates, as_singular_values
from lowdim.errors import DataError, ShapeError

__all__ = ["aligned_hessian_eigenvalues", "balanced_sharpness", "hessian_eigenvalues"]


def balanced_sharpness(target: Any, *, depth: int) -> Tensor:
    """Sharpness that each singular value brings at the balanced minimum: ``S_i = L s_i^(2 - 2/L)``.

    The first is the largest eigenvalue of the Hessian there, and the smallest sharpness of all minima.

    Parameters
    ----------
    target : array-like, shape (m, n) or (d,)
        The matrix M, or its singular values.
    depth : int
        Number of layers L >= 1.

    Returns
    -------
    Tensor of float64, shape (d,)
        Descending, in units of loss over parameter squared; 0 for a singular value 0 (1 if L = 1).

    References
    ----------
    Ghosh, Kwon, Wang, Ravishankar, Qu, "Learning Dynamics of Deep Linear Networks Beyond the Edge of
    Stability", arXiv 2502.20531, lemmas 1 and 4.

    Examples
    --------
    >>> balanced_sharpness([9.0, 1.0], depth=2)
    tensor([18.,  2.], dtype=torch.float64)
    """
    L = as_depth(depth, "balanced_sharpness")
    s = as_singular_values(target, "balanced_sharpness")
    return L * s ** (2 - 2 / L)


def hessian_eigenvalues(target: Any, *, depth: int, shape: tuple[int, int] | None = None) -> Tensor:
    r"""Nonzero part of the Hessian's spectrum at the balanced minimum.

    For every pair of singular directions, zeros of s included,
    ``lambda_ij = sum_{l=0}^{L-1} (s_i^((L-1-l)/L) s_j^(l/L))^2`` with ``0^0 = 1``;
    all other eigenvalues are 0.

    Parameters
    ----------
    target : array-like, shape (m, n) or (d,)
        The matrix M, or its singular values.
    depth : int
        Number of layers L >= 1.
    shape : (int, int), optional
        Rows and columns of M where `target` is a vector; (d, d) otherwise.

    Returns
    -------
    Tensor of float64, shape (m n,)
        Descending.

    Raises
    ------
    ShapeError
        If a matrix of `shape` has not as many singular values.

    References
    ----------
    Derived here; ``lambda_ii = S_i`` is lemma 1 of arXiv 2502.20531.

    Examples
    --------
    >>> hessian_eigenvalues([2.0, 1.0], depth=2)
    tensor([4., 3., 3., 2.], dtype=torch.float64)
    """
    L = as_depth(depth, "hessian_eigenvalues")
    s = as_singular_values(target, "hessian_eigenvalues")
    if shape is None:
        given = torch.as_tensor(target).shape
        shape = (given[0], given[1]) if len(given) == 2 else (len(s), len(s))
    if min(shape) < len(s):
        raise ShapeError(
            f"hessian_eigenvalues: {len(s)} singular values are too many for a matrix of shape {shape}."
        )
    s_i, s_j = (torch.cat([s, s.new_zeros(size - len(s))]) for size in shape)
    powers = torch.arange(L, dtype=s.dtype, device=s.device)[:, None] / L  # l / L
    left, right = s_i ** (2 * powers.flip(0)), s_j ** (2 * powers)  # 0 ** 0 is 1, as it should be
    return torch.einsum("li,lj->ij", left, right).flatten().sort(descending=True).values


def aligned_hessian_eigenvalues(factors: Any, *, target: Any) -> Tensor:
    """All eigenvalues of the Hessian at any aligned weights, minimum or not.

    Weights are aligned with M if in its singular basis all layers are diagonal, ``W_l = diag(d_l)``. Then
    the Hessian falls apart into one block of L numbers for each index, and one of 2 L for each pair.

    Parameters
    ----------
    factors : array-like, shape (..., L, d)
        Diagonals of the layers, first layer first.
    target : array-like, shape (d,)
        Singular values, in the order of the factors.

    Returns
    -------
    Tensor of float64, shape (..., L * d * d)
        Descending.

    Raises
    ------
    ShapeError
        If there are not as many singular values as entries of a diagonal.

    Examples
    --------
    At the balanced minimum of depth 2 (compare `hessian_eigenvalues`):

    >>> factors = torch.tensor([[2.0, 1.0], [2.0, 1.0]], dtype=torch.float64).sqrt()
    >>> aligned_hessian_eigenvalues(factors, target=[2.0, 1.0])[:4]
    tensor([4.0000, 3.0000, 3.0000, 2.0000], dtype=torch.float64)
    """
    where = "aligned_hessian_eigenvalues"
    d = torch.as_tensor(factors, dtype=torch.float64)
    if not bool(torch.isfinite(d).all()):
        raise DataError(f"{where}: factors hold NaN or infinite numbers. Did the training diverge?")
    s = as_rates(target, where, name="target", zero=True).to(d.device)
    if d.ndim < 2 or s.shape != d.shape[-1:]:
        raise ShapeError(
            f"{where}: factors of shape {tuple(d.shape)} and {tuple(s.shape)} singular values do not fit. "
            "Give (..., L, d) and (d,)."
        )
    i, j = torch.triu_indices(len(s), len(s), offset=1, device=d.device)
    own = torch.linalg.eigvalsh(index_blocks(d, s)).flatten(-2)
    mixed = torch.linalg.eigvalsh(pair_blocks(d[..., i], d[..., j], s[i], s[j])).flatten(-2)
    return torch.cat([own, mixed], dim=-1).sort(descending=True).values


def index_blocks(d: Tensor, s: Tensor) -> Tensor:
    """Hessian in the diagonal entries (i, i) of all layers, for every index i.

    Parameters
    ----------
    d : Tensor, shape (..., L, k)
        Diagonals of the layers.
    s : Tensor, shape (..., k) or (k,)

    Returns
    -------
    Tensor, shape (..., k, L, L)
        ``(pi / d_l) (pi / d_m)``, and ``(pi - s) pi / (d_l d_m)`` off the diagonal, without dividing.
    """
    L = d.shape[-2]
    pi = d.prod(-2)
    without = [d[..., [m for m in range(L) if m != k], :].prod(-2) for k in range(L)]
    H = torch.stack([torch.stack([a * b for b in without], -1) for a in without], -2)
    for a in range(L):
        for b in range(L):
            if a != b:
                rest = d[..., [m for m in range(L) if m not in (a, b)], :].prod(-2)
                H[..., a, b] += (pi - s) * rest
    return H


def pair_blocks(d_i: Tensor, d_j: Tensor, s_i: Tensor, s_j: Tensor) -> Tensor:
    """Hessian in the entries (i, j) and (j, i) of all layers, at aligned weights.

    With u_l and v_l the entries (i, j) and (j, i) of a change of W_l, the loss changes by ``1/2 (a . u)^2 +
    1/2 (b . v)^2`` and, where the residual R is not zero, by R_i times the paths i -> j -> i and R_j times
    the paths j -> i -> j.

    Parameters
    ----------
    d_i, d_j : Tensor, shape (..., L, k)
        Diagonals of the layers at the first and second index of k pairs.
    s_i, s_j : Tensor, shape (k,)

    Returns
    -------
    Tensor, shape (..., k, 2 L, 2 L)
        u first, then v.
    """
    L = d_i.shape[-2]
    R_i, R_j = d_i.prod(-2) - s_i, d_j.prod(-2) - s_j

    def path(d: Tensor, first: int, last: int) -> Tensor:
        return d[..., first:last, :].prod(-2)  # an empty product is 1

    a = torch.stack([path(d_j, 0, k) * path(d_i, k + 1, L) for k in range(L)], -1)
    b = torch.stack([path(d_i, 0, k) * path(d_j, k + 1, L) for k in range(L)], -1)
    H = a.new_zeros(*a.shape[:-1], 2 * L, 2 * L)
    H[..., :L, :L] = a[..., :, None] * a[..., None, :]
    H[..., L:, L:] = b[..., :, None] * b[..., None, :]
    for low in range(L):
        for high in range(low + 1, L):
            # Index i outside and j between the two layers that were changed, and the other way round.
            i_j_i = R_i * path(d_i, 0, low) * path(d_j, low + 1, high) * path(d_i, high + 1, L)
            j_i_j = R_j * path(d_j, 0, low) * path(d_i, low + 1, high) * path(d_j, high + 1, L)
            H[..., high, L + low] = H[..., L + low, high] = i_j_i
            H[..., low, L + high] = H[..., L + high, low] = j_i_j
    return H
