"""How many dimensions: what a spectrum or a budget says about the rank.

Every function takes singular values in any order along the last axis, so that a
spectrum is computed once and judged in several ways; leading axes are a batch.
"""

from __future__ import annotations

from functools import lru_cache
from math import cos, pi, sin, sqrt

import torch
from scipy.integrate import quad
from scipy.optimize import brentq
from torch import Tensor

from lowdim.errors import BudgetError, DataError, ShapeError

__all__ = [
    "budget_rank",
    "effective_rank",
    "energy_rank",
    "hard_threshold",
    "numerical_rank",
    "participation_ratio",
    "stable_rank",
]


def _spectrum(where: str, singular_values: Tensor) -> Tensor:
    """Check singular values and sort them, largest first."""
    values = torch.as_tensor(singular_values)
    if values.ndim == 0:
        raise ShapeError(f"{where}: got one number, expected singular values of shape (..., k).")
    if values.is_complex():
        raise DataError(
            f"{where}: got {values.dtype}, but singular values are real. Use torch.linalg.svdvals."
        )
    if not values.is_floating_point() or values.dtype in (torch.float16, torch.bfloat16):
        values = values.float()
    if not bool((values >= 0).all()) or not bool(torch.isfinite(values).all()):
        raise DataError(
            f"{where}: singular values are finite and not negative. Use torch.linalg.svdvals(matrix); of a "
            f"symmetric matrix take the absolute eigenvalues."
        )
    return values.sort(dim=-1, descending=True).values


def _leading(values: Tensor) -> Tensor:
    """Scale a sorted spectrum by its largest value, so that squares and fourth powers stay finite."""
    if values.shape[-1] == 0:
        return values
    top = values[..., :1]
    return values / torch.where(top == 0, torch.ones_like(top), top)


def numerical_rank(singular_values: Tensor, *, shape: tuple[int, int], tol: float | None = None) -> Tensor:
    """Count the singular values that rounding errors cannot explain.

    Parameters
    ----------
    singular_values : Tensor, shape (..., k)
        Of a matrix.
    shape : tuple of int
        Rows and columns of the matrix.
    tol : float, optional
        Relative to the largest one; ``max(shape)`` times the machine epsilon otherwise.

    Returns
    -------
    Tensor of int64, shape (...)

    Examples
    --------
    >>> import torch
    >>> int(numerical_rank(torch.tensor([3.0, 1.0, 1e-9]), shape=(4, 3)))
    2
    """
    values = _spectrum("numerical_rank", singular_values)
    tol = max(shape) * torch.finfo(values.dtype).eps if tol is None else tol
    return (_leading(values) > tol).sum(-1)


def energy_rank(singular_values: Tensor, *, energy: float = 0.99) -> Tensor:
    """Smallest rank whose squared singular values hold a fraction of the total.

    Parameters
    ----------
    singular_values : Tensor, shape (..., k)
        Of a matrix.
    energy : float
        Fraction in (0, 1] of the squared Frobenius norm. 1 asks for every value
        that is not zero.

    Returns
    -------
    Tensor of int64, shape (...)
        Zero for a zero matrix.

    Raises
    ------
    DataError
        If `energy` is out of range.

    Examples
    --------
    >>> import torch
    >>> energy_rank(torch.tensor([[3.0, 1.0, 0.0], [1.0, 1.0, 1.0]]), energy=0.9)
    tensor([1, 3])
    """
    if not 0 < energy <= 1:
        raise DataError(f"energy_rank: energy={energy} is no fraction. Use a number in (0, 1], like 0.99.")
    values = _leading(_spectrum("energy_rank", singular_values).double())
    # The energy lost by keeping 0, 1, ... values: summed from the smallest up, it does not cancel.
    tail = values.square().flip(-1).cumsum(-1).flip(-1)
    total = tail[..., :1]
    # A rounding allowance keeps an energy that is met exactly (0.9 of 9 + 1) from asking for one value more.
    return (tail > (1 - energy) * total * (1 + 1e-12)).sum(-1)


def effective_rank(singular_values: Tensor) -> Tensor:
    """Exponential of the entropy of the normalized singular values.

    Parameters
    ----------
    singular_values : Tensor, shape (..., k)
        Of a matrix.

    Returns
    -------
    Tensor, shape (...)
        Between 1 and k; k for equal singular values, 0 for a zero matrix.

    References
    ----------
    .. [1] O. Roy, M. Vetterli, "The effective rank", EUSIPCO 2007, definition 1.

    Examples
    --------
    >>> import torch
    >>> float(effective_rank(torch.ones(5)).round(decimals=4))
    5.0
    """
    values = _leading(_spectrum("effective_rank", singular_values))
    total = values.sum(-1, keepdim=True)
    weights = values / torch.where(total == 0, torch.ones_like(total), total)
    entropy = -torch.special.xlogy(weights, weights).sum(-1)
    return torch.where(total.squeeze(-1) == 0, torch.zeros_like(entropy), entropy.exp())


def stable_rank(singular_values: Tensor) -> Tensor:
    """Squared Frobenius norm over squared spectral norm.

    Parameters
    ----------
    singular_values : Tensor, shape (..., k)
        Of a matrix.

    Returns
    -------
    Tensor, shape (...)
        Between 1 and the rank, and it does not jump when a tiny value vanishes;
        0 for a zero matrix.

    Examples
    --------
    >>> import torch
    >>> float(stable_rank(torch.tensor([2.0, 1.0])))
    1.25
    """
    return _leading(_spectrum("stable_rank", singular_values)).square().sum(-1)


def participation_ratio(singular_values: Tensor) -> Tensor:
    """``(sum s^2)^2 / sum s^4``: how many directions share the energy.

    Parameters
    ----------
    singular_values : Tensor, shape (..., k)
        Of a matrix.

    Returns
    -------
    Tensor, shape (...)
        Between 1 and the rank; 0 for a zero matrix.

    Examples
    --------
    >>> import torch
    >>> float(participation_ratio(torch.tensor([1.0, 1.0, 0.0])))
    2.0
    """
    squares = _leading(_spectrum("participation_ratio", singular_values)).square()
    fourth = squares.square().sum(-1)
    return squares.sum(-1).square() / torch.where(fourth == 0, torch.ones_like(fourth), fourth)


def budget_rank(parameters: float, *, per_rank: int, fixed: int = 0, multiple: int = 8) -> int:
    """Largest rank that a budget of parameters pays for.

    Parameters
    ----------
    parameters : float
        How many numbers may be stored, for example ``keep * m * n``.
    per_rank : int
        Numbers that one more rank costs: m + n for low rank, m + n + b1 b2 for BLAST.
    fixed : int
        Numbers that are stored whatever the rank.
    multiple : int
        Round down to a multiple of this, when the rank is at least that large:
        processors like ranks that are multiples of 8.

    Returns
    -------
    int
        At least 1.

    Raises
    ------
    BudgetError
        If the budget does not pay for rank 1.

    Examples
    --------
    >>> budget_rank(0.5 * 384 * 384, per_rank=384 + 384)
    96
    """
    if per_rank < 1 or multiple < 1 or fixed < 0:
        raise DataError(
            f"budget_rank: got per_rank={per_rank}, fixed={fixed}, multiple={multiple}, expected "
            f"per_rank >= 1, fixed >= 0, multiple >= 1."
        )
    # keep * m * n comes from a product of floats: 0.1 * 30 must pay for 3.
    rank = int((parameters - fixed) * (1 + 1e-12) // per_rank)
    if rank < 1:
        raise BudgetError(
            f"budget_rank: {parameters:g} parameters do not pay for rank 1, which needs {per_rank + fixed}. "
            f"Raise the budget (keep)."
        )
    return rank - rank % multiple if rank >= multiple else rank


@lru_cache(maxsize=256)
def _marchenko_pastur_median(beta: float) -> float:
    """Median of the Marchenko-Pastur law with aspect ratio `beta` <= 1."""

    # x = 1 + beta + 2 sqrt(beta) cos(phi) turns the density into a smooth function of phi, largest x first.
    def above(phi: float) -> float:
        smooth = lambda a: sin(a) ** 2 / (1 + beta + 2 * sqrt(beta) * cos(a)) if a < pi else 0.0  # noqa: E731
        return 2 / pi * quad(smooth, 0.0, phi)[0]

    phi = brentq(lambda a: above(a) - 0.5, 1e-9, pi, xtol=1e-13)
    return 1 + beta + 2 * sqrt(beta) * cos(phi)


def hard_threshold(singular_values: Tensor, *, shape: tuple[int, int], noise: float | None = None) -> Tensor:
    """Threshold below which singular values are noise, optimal for white noise.

    Keep the singular values above it: among all hard thresholds this one gives
    the smallest asymptotic mean squared error of a low-rank matrix in noise.

    Parameters
    ----------
    singular_values : Tensor, shape (..., min(m, n))
        All singular values of the noisy matrix.
    shape : tuple of int
        Its rows m and columns n.
    noise : float, optional
        Standard deviation of the noise in each entry. Unknown otherwise, and
        taken from the median singular value.

    Returns
    -------
    Tensor, shape (...)
        ``lambda(beta) sqrt(max(m, n)) noise`` ([1]_, eq. 10 and 11) or
        ``omega(beta) median`` with ``beta = min(m, n) / max(m, n)``; omega from the
        exact median of the Marchenko-Pastur law, not the paper's polynomial fit.

    Raises
    ------
    ShapeError
        If there are not min(m, n) singular values.

    References
    ----------
    .. [1] M. Gavish, D. Donoho, "The optimal hard threshold for singular values
       is 4/sqrt(3)", IEEE Trans. Inf. Theory 60, 2014.

    Examples
    --------
    >>> import torch
    >>> clean = torch.outer(torch.ones(100), torch.ones(100))
    >>> noisy = clean + 0.5 * torch.randn(100, 100, generator=torch.Generator().manual_seed(0))
    >>> values = torch.linalg.svdvals(noisy)
    >>> int((values > hard_threshold(values, shape=(100, 100))).sum())
    1
    """
    values = _spectrum("hard_threshold", singular_values)
    short, long = sorted(shape)
    if short < 1 or values.shape[-1] != short:
        raise ShapeError(
            f"hard_threshold: got {values.shape[-1]} singular values for a {shape[0]} x {shape[1]} matrix, "
            f"expected all {short}. The median of a truncated spectrum says nothing about the noise."
        )
    if noise is not None and not noise >= 0:
        raise DataError(f"hard_threshold: noise={noise} is no standard deviation. Give one >= 0, or None.")
    beta = short / long
    factor = sqrt(2 * (beta + 1) + 8 * beta / (beta + 1 + sqrt(beta**2 + 14 * beta + 1)))
    if noise is not None:
        return torch.full_like(values[..., 0], factor * sqrt(long) * noise)
    return factor / sqrt(_marchenko_pastur_median(beta)) * values.quantile(0.5, dim=-1)
