"""Schedules: how noisy an image is at each time of a diffusion, and which times a solver visits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lowdim.errors import DataError

__all__ = [
    "SCHEDULES",
    "alphas_cumprod_of",
    "ddim_times",
    "linear_alphas_cumprod",
    "noise_levels",
    "purification_times",
]

SCHEDULES = ("linear", "constant", "cosine", "reverse-cosine", "slow-start", "slow-end", "geometric")
"""How purification times fall from the first to the last; the paper's results use "linear"."""


def linear_alphas_cumprod(steps: int = 1000, *, start: float = 1e-4, end: float = 0.02) -> Tensor:
    """Return the cumulative products of ``1 - beta_t`` for betas on a line.

    Parameters
    ----------
    steps : int
        Number T of times.
    start, end : float
        First and last beta.

    Returns
    -------
    Tensor, shape (T,)
        abar_t, falling from almost 1, in float32.

    Examples
    --------
    >>> abar = linear_alphas_cumprod(1000)
    >>> round(float(abar[0]), 4), round(float(abar[400]), 3)
    (0.9999, 0.194)
    """
    betas = torch.linspace(start, end, steps, dtype=torch.float64)
    return torch.cumprod(1 - betas, 0).float()


def alphas_cumprod_of(scheduler: Any) -> Tensor:
    """Read abar_t of a scheduler of diffusers, and refuse one that has none.

    Schedulers of the variance-preserving kind (DDPM, DDIM, PNDM, DPM-Solver, UniPC, Euler and others) hold
    the same table. Flow matching, EDM and consistency schedulers count time otherwise.

    Parameters
    ----------
    scheduler : scheduler of diffusers
        Anything with ``alphas_cumprod``.

    Returns
    -------
    Tensor, shape (T,)

    Raises
    ------
    DataError
        If there is no table, or it is no table of falling numbers in [0, 1].

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> alphas_cumprod_of(SimpleNamespace(alphas_cumprod=torch.tensor([0.9, 0.5]))).tolist()
    [0.8999999761581421, 0.5]
    """
    name, table = type(scheduler).__name__, getattr(scheduler, "alphas_cumprod", None)
    if table is None:
        raise DataError(
            f"scheduler: {name} has no alphas_cumprod; it counts noise in another way than the network's "
            "training on 0..T-1. Use the DDPM, DDIM, PNDM or Euler scheduler of the same checkpoint."
        )
    table = torch.as_tensor(table, dtype=torch.float32).detach().cpu().clone()
    falling = table.ndim == 1 and len(table) >= 2 and bool((table[1:] <= table[:-1]).all())
    if not falling or not 0 <= float(table[-1]) <= float(table[0]) <= 1:
        raise DataError(
            f"scheduler: alphas_cumprod of {name} must fall within [0, 1], one number per time; got shape "
            f"{tuple(table.shape)}."
        )
    return table


def noise_levels(alphas_cumprod: Tensor) -> Tensor:
    """Return ``sqrt((1 - abar_t) / abar_t)``, the noise beside a clean image of size one.

    Parameters
    ----------
    alphas_cumprod : Tensor, shape (T,)
        abar_t.

    Returns
    -------
    Tensor, shape (T,)
        In float64, on the CPU.
    """
    abar = alphas_cumprod.detach().cpu().double().clamp(min=1e-24)
    return ((1 - abar) / abar).sqrt()


def purification_times(
    steps: int,
    *,
    t0: float,
    t_end: float = 0.0,
    schedule: str = "linear",
    alphas_cumprod: Tensor | None = None,
) -> list[int]:
    """Return the times at which a solver purifies.

    Parameters
    ----------
    steps : int
        Number K of outer iterations.
    t0, t_end : float
        First and last time as fractions of the network's T, with ``0 <= t_end < t0 <= 1``.
    schedule : {"linear", "constant", "cosine", "reverse-cosine", "slow-start", "slow-end", "geometric"}
        How the times fall. "constant" stays at `t0`; with "geometric" noise levels fall by a constant factor.
    alphas_cumprod : Tensor, shape (T,), optional
        abar_t of the network; that of `linear_alphas_cumprod` otherwise.

    Returns
    -------
    list of int
        K indices into ``alphas_cumprod``. The smallest is 1: at 0 hardly any noise is there to remove.

    Raises
    ------
    DataError
        If a number is out of range, or there are more outer iterations than times.

    References
    ----------
    Li et al., arXiv 2403.06054, section on the time schedule; the index is ``T_k - 1``, as in their code.

    Examples
    --------
    >>> purification_times(5, t0=0.4)
    [399, 299, 199, 99, 1]
    """
    levels = noise_levels(linear_alphas_cumprod() if alphas_cumprod is None else alphas_cumprod)
    train_steps = len(levels)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise DataError(f"DCDP: steps={steps!r} must be a whole number of 1 or more.")
    if not 0 < t0 <= 1 or not 0 <= t_end < t0:
        raise DataError(
            f"DCDP: t0={t0} and t_end={t_end} must satisfy 0 <= t_end < t0 <= 1; they are fractions of the "
            f"network's {train_steps} times. For 400 of 1000 give t0=0.4."
        )
    if schedule not in SCHEDULES:
        raise DataError(f"DCDP: schedule={schedule!r} is unknown. Use one of {', '.join(SCHEDULES)}.")
    if steps > round(t0 * train_steps):
        raise DataError(
            f"DCDP: {steps} outer iterations are more than the {round(t0 * train_steps)} times below "
            f"t0={t0}. Lower steps or raise t0."
        )
    u = torch.linspace(0, 1, steps, dtype=torch.float64)
    if schedule == "geometric":
        first, last = (max(round(t * train_steps) - 1, 1) for t in (t0, t_end))
        wanted = levels[first].log() + u * (levels[last] / levels[first]).log()
        nearest = torch.searchsorted(levels.log(), wanted).clamp(1, train_steps - 1)
        return [int(t) for t in nearest]
    fallen = {
        "linear": u,
        "constant": torch.zeros_like(u),
        "cosine": (1 - torch.cos(torch.pi * u)) / 2,
        "reverse-cosine": torch.arccos(1 - 2 * u) / torch.pi,
        "slow-start": 1 - torch.cos(torch.pi * u / 2),
        "slow-end": torch.sin(torch.pi * u / 2),
    }[schedule]
    times = train_steps * (t0 + (t_end - t0) * fallen)
    return [max(round(float(time)) - 1, 1) for time in times]


def ddim_times(t: int, steps: int) -> list[int]:
    """Return the times of a deterministic DDIM path from `t` down to the clean image.

    Parameters
    ----------
    t : int
        Where it starts, an index into ``alphas_cumprod``.
    steps : int
        Network calls at most; fewer where t is smaller.

    Returns
    -------
    list of int
        ``min(t, steps)`` times, the first is t; after the last the clean image is taken.

    Examples
    --------
    >>> ddim_times(100, 4), ddim_times(2, 20)
    ([100, 75, 50, 25], [2, 1])
    """
    count = max(min(t, steps), 1)
    return [round(t * (count - i) / count) for i in range(count)]
