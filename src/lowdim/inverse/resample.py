"""Stochastic resampling: from a clean latent that fits the data back to a noisy one near the present sample.

With ``z0`` the latent that data consistency returned and ``zt`` the sample before it, the new sample is drawn
from the product of two densities, ``N(sqrt(abar) z0, (1 - abar) I)``, what noise makes of ``z0``, and
``N(zt, s2 I)``, which holds on to the present sample.
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from lowdim.errors import DataError, ShapeError

__all__ = ["SCHEDULES", "Schedule", "resample", "resample_moments", "resample_variance"]

Schedule = Literal["ddpm", "paper"]

SCHEDULES = ("ddpm", "paper")


def resample_variance(
    alpha_bar: float, *, next_alpha_bar: float, gamma: float = 40.0, schedule: Schedule = "ddpm"
) -> float:
    """Return the variance ``s2`` that the present sample is held with.

    Parameters
    ----------
    alpha_bar : float
        ``abar_t``, cumulative alpha of the time that a DDIM step came from.
    next_alpha_bar : float
        ``abar_{t-1}``, of the less noisy time that it went to, where the resampling happens.
    gamma : float
        Factor; infinity forgets the present sample (stochastic encoding).
    schedule : {"ddpm", "paper"}
        ``gamma (1 - abar_{t-1}) / (1 - abar_t) (1 - abar_t / abar_{t-1})``, gamma times the posterior
        variance of DDPM, as in the authors' code; "paper" divides by ``abar_t`` instead of ``1 - abar_t``.

    Returns
    -------
    float

    Raises
    ------
    DataError
        If the times are in the wrong order, gamma is negative, or the schedule is unknown.

    Notes
    -----
    It grows with the spacing of the times, so like ``1 / steps``: what gamma = 40 is at 500 steps,
    ``40 * steps / 500`` is at another number of them.

    References
    ----------
    .. [1] Song et al., "Solving Inverse Problems with Latent Diffusion Models via Hard Data Consistency",
       ICLR 2024, arXiv 2307.08123, and its code.

    Examples
    --------
    >>> round(resample_variance(0.5, next_alpha_bar=0.6, gamma=1.0), 4)
    0.1333
    """
    if schedule not in SCHEDULES:
        raise DataError(
            f"resample_variance: schedule={schedule!r} is unknown. Use one of {', '.join(SCHEDULES)}."
        )
    if not gamma >= 0:
        raise DataError(f"resample_variance: gamma={gamma} must be 0 or more (infinity is encoding).")
    if not 0 < alpha_bar <= next_alpha_bar <= 1:
        raise DataError(
            f"resample_variance: alpha_bar={alpha_bar} and next_alpha_bar={next_alpha_bar} are no step "
            "towards less noise: expected 0 < alpha_bar <= next_alpha_bar <= 1."
        )
    if math.isinf(gamma):
        return math.inf
    left = 1 - next_alpha_bar
    if left == 0:
        return 0.0
    below = 1 - alpha_bar if schedule == "ddpm" else alpha_bar
    return gamma * (left / below) * (1 - alpha_bar / next_alpha_bar)


def resample_moments(z0: Tensor, zt: Tensor, *, alpha_bar: float, s2: float) -> tuple[Tensor, float]:
    """Return the mean and the variance of the resampled latent.

    Parameters
    ----------
    z0 : Tensor, shape (batch, ...)
        Clean latents that fit the data.
    zt : Tensor, shape (batch, ...)
        Present samples at the time of ``alpha_bar``.
    alpha_bar : float
        Cumulative alpha of that time.
    s2 : float
        See `resample_variance`; 0 returns ``zt`` itself, infinity is stochastic encoding.

    Returns
    -------
    mean : Tensor, shape (batch, ...)
        ``(s2 sqrt(abar) z0 + (1 - abar) zt) / (s2 + 1 - abar)``.
    variance : float
        ``s2 (1 - abar) / (s2 + 1 - abar)`` of each number, less than ``1 - abar``. Where ``abar = 1`` nothing
        is left to draw: the mean is ``z0``.

    Raises
    ------
    ShapeError, DataError

    Examples
    --------
    >>> import torch
    >>> mean, variance = resample_moments(torch.ones(1, 2), torch.zeros(1, 2), alpha_bar=0.64, s2=0.36)
    >>> mean, round(variance, 2)
    (tensor([[0.4000, 0.4000]]), 0.18)
    """
    if z0.shape != zt.shape:
        raise ShapeError(
            f"resample_moments: z0 has shape {tuple(z0.shape)} and zt {tuple(zt.shape)}. Give latents of "
            "the same images."
        )
    if not 0 < alpha_bar <= 1 or not s2 >= 0:
        raise DataError(
            f"resample_moments: got alpha_bar={alpha_bar}, s2={s2}, expected 0 < alpha_bar <= 1 and s2 >= 0."
        )
    noise = 1 - alpha_bar
    # Share of the clean latent; written so that s2 = infinity and 0 / 0 at the last step need no other
    # branch.
    share = 1.0 if noise == 0 or math.isinf(s2) else s2 / (s2 + noise)
    return share * math.sqrt(alpha_bar) * z0 + (1 - share) * zt, share * noise


def resample(z0: Tensor, zt: Tensor, *, alpha_bar: float, s2: float, noise: Tensor) -> Tensor:
    """Draw the resampled latent from given standard normal numbers.

    Parameters
    ----------
    z0, zt, alpha_bar, s2
        As in `resample_moments`.
    noise : Tensor, shape (batch, ...)
        Standard normal.

    Returns
    -------
    Tensor, shape (batch, ...)

    References
    ----------
    .. [1] Song et al., arXiv 2307.08123; derivation from the product of two Gaussians.

    Examples
    --------
    >>> import torch
    >>> z0, zt, n = torch.ones(1, 2), torch.zeros(1, 2), torch.zeros(1, 2)
    >>> resample(z0, zt, alpha_bar=0.25, s2=float("inf"), noise=n)
    tensor([[0.5000, 0.5000]])
    """
    mean, variance = resample_moments(z0, zt, alpha_bar=alpha_bar, s2=s2)
    return mean + math.sqrt(variance) * noise.to(mean)
