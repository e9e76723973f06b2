"""DPS: diffusion posterior sampling, the baseline with gradients through the network."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from lowdim.errors import DataError, Diverged
from lowdim.inverse.latent import LatentPrior
from lowdim.inverse.noise import ImageNoise, Seeds
from lowdim.inverse.priors import Prior
from lowdim.inverse.problem import Problem
from lowdim.inverse.result import Reconstruction

__all__ = ["DPS"]


class DPS:
    """Sample images along the reverse diffusion, pulled towards the data at every step.

    Parameters
    ----------
    prior : Prior
        A pixel prior or a mixture; its network must be differentiable.
    steps : int
        Network calls, forward and backward. Few more than 100 help on small images; 1000 is customary.
    zeta : float
        Length of the pull, in units of the gradient of an image's residual norm. The best is about
        ``100 / steps``: tune it for every task.

    Raises
    ------
    DataError
        If a number is out of range.

    References
    ----------
    Chung et al., "Diffusion posterior sampling for general noisy inverse problems", ICLR 2023, algorithm 1.
    The residual norm is that of each image; a norm over the batch, as in several codes, makes results depend
    on the batch.

    Examples
    --------
    >>> from lowdim.inverse import GMMPrior, Pooling
    >>> images = torch.randn(300, 1, 4, 4, generator=torch.Generator().manual_seed(0)) / 4
    >>> y = Pooling(2).measure(images[:3], sigma=0.02, seed=0)
    >>> found = DPS(GMMPrior.fit(images, components=2), steps=50)(y, Pooling(2), sigma=0.02, seed=0)
    >>> found.image.shape, found.network_calls
    (torch.Size([3, 1, 4, 4]), 50)
    """

    def __init__(self, prior: Prior, *, steps: int = 100, zeta: float = 1.0) -> None:
        if isinstance(prior, LatentPrior):
            raise DataError("DPS: the prior is one of latents. Use LatentDPS.")
        if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= prior.train_steps:
            raise DataError(f"DPS: steps={steps!r} must be a whole number of 1 to {prior.train_steps}.")
        if not zeta >= 0:
            raise DataError(f"DPS: zeta={zeta!r} must be a number >= 0.")
        self.prior, self.steps, self.zeta = prior, steps, zeta
        self.settings: dict[str, Any] = {"solver": "dps", "steps": steps, "zeta": zeta}

    def __call__(
        self,
        y: Any,
        operator: Any,
        *,
        sigma: float | None = None,
        x_init: Tensor | None = None,
        seed: Seeds = None,
        callback: Callable[[int, int, Tensor], None] | None = None,
    ) -> Reconstruction:
        """Reconstruct a batch.

        Parameters
        ----------
        y : Tensor, shape (B, ...)
            Measurements.
        operator : object with A(x), or function
            See `as_operator`.
        sigma : float, optional
            Of the noise in y; DPS needs it for the reported residual only.
        x_init : Tensor, shape (B, C, H, W), optional
            Tells the shape of images; DPS starts from noise.
        seed : int, sequence of int, or None
            One per image; of a number s, image b gets s + b.
        callback : callable, optional
            Called with (step, steps, images) after every step.

        Returns
        -------
        Reconstruction

        Raises
        ------
        Diverged
            If numbers leave the finite range.
        """
        prior, started, before = self.prior, perf_counter(), self.prior.calls.images
        problem = Problem.of(y, operator, sigma=sigma, prior=prior, x_init=x_init, where="DPS")
        noise = ImageNoise(seed, batch=problem.shape[0])
        x = noise(problem.shape, dtype=problem.dtype, device=problem.y.device)
        last = prior.train_steps - 1
        times = [round(last * (self.steps - i) / self.steps) for i in range(self.steps)]
        curve = []
        for step, t in enumerate(times):
            x, clean, misfit = self._step(problem, x, t, [*times, None][step + 1], noise)
            curve.append(misfit)
            if callback is not None:
                callback(step + 1, self.steps, problem.to_operator(clean))
        if not bool(torch.isfinite(x).all()):
            raise Diverged(
                f"DPS: images are no longer finite; zeta={self.zeta:g} is too large here. Lower it.",
                step=self.steps,
            )
        image = prior.clip(x)
        with torch.no_grad():
            residual = problem.residual(image)
        return Reconstruction(
            image=problem.to_operator(image),
            residual=residual,
            network_calls=(prior.calls.images - before) // problem.shape[0],
            iterations=torch.zeros(problem.shape[0], dtype=torch.int64),
            seconds=perf_counter() - started,
            curve=torch.stack(curve),
            settings={**self.settings, "sigma": sigma, "seed": seed},
        )

    def _step(
        self, problem: Problem, x: Tensor, t: int, following: int | None, noise: ImageNoise
    ) -> tuple[Tensor, Tensor, Tensor]:
        prior = self.prior
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            clean = prior.clip(prior.x0(leaf, t))
            misfit = problem.misfit(clean)
            # The sum over images of their norms: its gradient keeps them apart.
            (pull,) = torch.autograd.grad(misfit.clamp(min=1e-24).sqrt().sum(), leaf)
        clean, misfit = clean.detach(), misfit.detach() / problem.operator.count(problem.y)
        residual = misfit / (problem.sigma**2 if problem.sigma else 1.0)
        if following is None:
            return clean - self.zeta * pull, clean, residual
        # The posterior q(x_s | x_t, x_0) of the next time s, with abar_t = ratio abar_s.
        abar, target = prior.abar(t, x), prior.abar(following, x)
        ratio = abar / target
        mean = target.sqrt() * (1 - ratio) / (1 - abar) * clean + ratio.sqrt() * (1 - target) / (1 - abar) * x
        spread = ((1 - target) / (1 - abar) * (1 - ratio)).clamp(min=0).sqrt()
        return mean + spread * noise.like(x) - self.zeta * pull, clean, residual
