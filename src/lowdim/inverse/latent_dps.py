"""Latent DPS: every step of DDIM is pulled towards the measurements through network and decoder.

The soft guidance of ReSample, and by itself the baseline that its hard consistency is measured against.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lowdim.errors import DataError, Diverged
from lowdim.inverse.latent import LatentPrior
from lowdim.inverse.latent_run import Callback, LatentRun
from lowdim.inverse.noise import Seeds
from lowdim.inverse.problem import Problem
from lowdim.inverse.result import Reconstruction
from lowdim.inverse.schedule import ddim_times

__all__ = ["LatentDPS", "check_steps", "ddim_step", "guided_step", "next_abars"]


def ddim_step(z: Tensor, eps: Tensor, z0: Tensor, next_abar: float) -> Tensor:
    """Return the deterministic step to the time of `next_abar`, from noise and clean latent at this one.

    Parameters
    ----------
    z, eps, z0 : Tensor, shape (B, c, h, w)
        Latent, and noise and clean latent that the network sees in it.
    next_abar : float
        Cumulative alpha there; 1 is the end.

    Returns
    -------
    Tensor, shape (B, c, h, w)
        ``sqrt(abar') z0 + sqrt(1 - abar') eps``.
    """
    return next_abar**0.5 * z0 + (1 - next_abar) ** 0.5 * eps if next_abar < 1 else z0


def guided_step(
    z: Tensor, t: int, next_abar: float, *, problem: Problem, prior: LatentPrior, strength: float
) -> tuple[Tensor, Tensor]:
    """Return a step of DDIM minus ``strength abar_t grad_z ||y - A(D(z0(z)))||``, one norm per image.

    Parameters
    ----------
    z : Tensor, shape (B, c, h, w)
        Latents at time `t`.
    t : int
        Index into ``alphas_cumprod``.
    next_abar : float
        Cumulative alpha of the next time.
    problem : Problem
    prior : LatentPrior
    strength : float
        0 leaves the gradient out, and with it all that it costs.

    Returns
    -------
    z, z0 : Tensor, shape (B, c, h, w)
        Latents at the next time, and the clean ones that the network saw in those at this one.

    Raises
    ------
    DataError
        If there is no gradient.
    Diverged
        If a gradient is no number.
    """
    if strength == 0:
        with torch.no_grad():
            eps, z0 = prior.predict(z, t)
        return ddim_step(z, eps, z0, next_abar), z0
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        eps, z0 = prior.predict(z, t)
        misfit = problem.misfit(prior.decode(z0))
        # The norm has no gradient at 0; there, nothing is to be gained either.
        norms = torch.where(misfit > 0, misfit, 1).sqrt() * (misfit > 0)
        gradient: Tensor | None = None
        if norms.requires_grad:
            (gradient,) = torch.autograd.grad(norms.sum(), z, allow_unused=True)
    if gradient is None:
        raise DataError(
            f"{problem.where}: y - A(D(z)) has no gradient, so A or the decoder is not differentiable. "
            "Write it in differentiable operations of torch, or leave guidance out (guidance=0)."
        )
    if not bool(torch.isfinite(gradient).all()):
        raise Diverged(
            f"{problem.where}: the gradient of ||y - A(D(z))|| at time {t} is no number. Check that A and "
            "the decoder stay finite, or lower the guidance.",
            step=t,
        )
    step = ddim_step(z.detach(), eps.detach(), z0.detach(), next_abar)
    return step - strength * float(prior.alphas_cumprod[t]) * gradient, z0.detach()


def next_abars(prior: LatentPrior, times: list[int]) -> list[float]:
    """Return the cumulative alpha of the time after each; 1, no noise, after the last.

    Parameters
    ----------
    prior : LatentPrior
    times : list of int

    Returns
    -------
    list of float
    """
    return [*(float(prior.alphas_cumprod[t]) for t in times[1:]), 1.0]


class LatentDPS:
    """Sample latents by DDIM, every step pulled towards the measurements.

    Parameters
    ----------
    prior : LatentPrior
        Network and decoder must be differentiable.
    steps : int
        Network calls, forward and backward.
    guidance : float
        Strength of the pull, times ``abar_t``.

    Raises
    ------
    DataError
        If a number is out of range.

    References
    ----------
    The soft guidance in the code of Song et al., arXiv 2307.08123, with norms per image: a norm over the
    batch makes results depend on the batch.

    Examples
    --------
    >>> from lowdim.inverse import Pooling
    >>> from lowdim.inverse.digits import digits, latent_digits_prior
    >>> x, A = digits("test")[:2], Pooling(2)
    >>> y = A.measure(x, sigma=0.02, seed=0)
    >>> found = LatentDPS(latent_digits_prior(), steps=20)(y, A, sigma=0.02, seed=0)
    >>> found.image.shape, found.latent.shape, found.network_calls, found.decoder_calls
    (torch.Size([2, 1, 8, 8]), torch.Size([2, 2, 4, 4]), 20, 21)
    """

    def __init__(self, prior: LatentPrior, *, steps: int = 500, guidance: float = 0.5) -> None:
        check_steps("LatentDPS", steps, prior)
        if not guidance > 0:
            raise DataError(f"LatentDPS: guidance={guidance!r} must be a number > 0.")
        self.prior, self.steps, self.guidance = prior, steps, guidance
        self.settings: dict[str, Any] = {"solver": "latent-dps", "steps": steps, "guidance": guidance}

    def __call__(
        self,
        y: Any,
        operator: Any,
        *,
        sigma: float | None = None,
        x_init: Tensor | None = None,
        seed: Seeds = None,
        callback: Callback | None = None,
    ) -> Reconstruction:
        """Reconstruct a batch.

        Parameters
        ----------
        y : Tensor, shape (B, ...)
            Measurements.
        operator : object with A(x), or function
            See `as_operator`.
        sigma : float, optional
            Of the noise in y; needed for the reported residual only.
        x_init : Tensor, shape (B, C, H, W), optional
            Tells the shape of images; the sampling starts from noise.
        seed : int, sequence of int, or None
            One per image; of a number s, image b gets s + b.
        callback : callable, optional
            Called with (step, steps, images) after every step; it costs a call of the decoder.

        Returns
        -------
        Reconstruction

        Raises
        ------
        DataError, ShapeError, Diverged
        """
        run = LatentRun.open(
            self.prior, y, operator, sigma=sigma, x_init=x_init, seed=seed, where="LatentDPS"
        )
        times = ddim_times(self.prior.train_steps - 1, self.steps)
        z = run.start(None, times[0])
        for step, (t, abar) in enumerate(zip(times, next_abars(self.prior, times), strict=True), start=1):
            z, z0 = guided_step(z, t, abar, problem=run.problem, prior=self.prior, strength=self.guidance)
            run.count(1)
            run.tell(callback, step, len(times), z0)
        return run.finish(z, settings={**self.settings, "sigma": sigma, "seed": seed})


def check_steps(where: str, steps: int, prior: Any) -> None:
    """Refuse a number of DDIM steps that the network has no times for."""
    most = prior.train_steps - 1 if isinstance(prior, LatentPrior) else None
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1 or (most and steps > most):
        raise DataError(f"{where}: steps={steps!r} must be a whole number of 1 to {most or 999}.")
