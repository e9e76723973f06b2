"""Latent run: what every latent solver does before its first step and after its last."""

from __future__ import annotations

import time as clock
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lowdim.errors import DataError, LowdimWarning
from lowdim.inverse.consistency import warn_unmet
from lowdim.inverse.latent import LatentPrior
from lowdim.inverse.metrics import psnr
from lowdim.inverse.noise import ImageNoise, Seeds
from lowdim.inverse.problem import Problem
from lowdim.inverse.result import Reconstruction

__all__ = ["Callback", "LatentRun"]

Callback = Callable[[int, int, Tensor], None]

CEILING = 15.0
"""An autoencoder that returns images at less dB is warned of."""

NOISE_FREE = 1e-6
"""Mean squared residual that is small enough where there is no noise: 1e-3 squared, as in ReSample's code."""


@dataclass
class LatentRun:
    """One call of a latent solver at work.

    Parameters
    ----------
    prior : LatentPrior
    problem : Problem
        In the units of the decoder's images.
    noise : ImageNoise
    latent_shape : tuple of int
        (B, c, h, w).
    where : str
        Name of the solver.
    """

    prior: LatentPrior
    problem: Problem
    noise: ImageNoise
    latent_shape: tuple[int, ...]
    where: str
    network: int = field(init=False)
    begun: float = field(init=False)

    def __post_init__(self) -> None:
        B = len(self.problem.y)
        self.network = self.prior.calls.images
        self.begun = clock.perf_counter()
        self.decoded, self.iterations = torch.zeros(2, B, dtype=torch.int64)
        self.curve: list[Tensor] = []

    @classmethod
    def open(
        cls,
        prior: Any,
        y: Any,
        operator: Any,
        *,
        sigma: float | None,
        x_init: Tensor | None,
        seed: Seeds,
        where: str,
    ) -> LatentRun:
        """Check what a user gives, and begin to count.

        Parameters
        ----------
        prior : LatentPrior
        y, operator, sigma, x_init, seed
            As of every solver.
        where : str

        Returns
        -------
        LatentRun

        Raises
        ------
        DataError, ShapeError
        """
        if not isinstance(prior, LatentPrior):
            raise DataError(
                f"{where}: got a {type(prior).__name__}, expected a LatentPrior (a diffusion of latents "
                "with the encoder and decoder). Of priors of images use DCDP or DPS."
            )
        problem = Problem.of(
            y, operator, sigma=sigma, prior=prior, image_shape=prior.image_shape, x_init=x_init, where=where
        )
        latent = prior.latent_shape(torch.zeros(problem.shape, device=prior.device))
        B = problem.shape[0]
        return cls(prior, problem, ImageNoise(seed, batch=B), (B, *latent), where)

    def start(self, x_init: Tensor | None, t: int) -> Tensor:
        """Return latents at time `t`: pure noise, or images encoded and made noisy, shape (B, c, h, w)."""
        noise = self.noise(self.latent_shape, dtype=self.problem.dtype, device=self.prior.device)
        if x_init is None:
            return noise
        with torch.no_grad():
            return self.prior.add_noise(self.prior.encode(self.in_prior_range(x_init)), t, noise)

    def in_prior_range(self, x: Tensor) -> Tensor:
        """Return images of the operator's range in the prior's, on its device."""
        return self.problem.from_operator(x.to(device=self.prior.device, dtype=self.problem.dtype))

    def target(self, tau: float) -> float:
        """Return the mean squared residual at which an image fits: ``tau^2 sigma^2``."""
        sigma = self.problem.needed_sigma()
        return tau**2 * sigma**2 if sigma > 0 else NOISE_FREE

    def note(self, misfit: Tensor) -> None:
        """Add the mean squared residuals of consistent images, shape (B,), to the curve."""
        sigma = self.problem.sigma
        self.curve.append(misfit.detach() / (sigma**2 if sigma else 1.0))

    def count(self, decoded: Tensor | int, iterations: Tensor | int = 0) -> None:
        """Add evaluations of the decoder and steps of an optimizer, per image."""
        self.decoded += decoded.cpu() if isinstance(decoded, Tensor) else decoded
        self.iterations += iterations.cpu() if isinstance(iterations, Tensor) else iterations

    @torch.no_grad()
    def finish(self, z: Tensor, *, settings: dict[str, Any], tau: float | None = None) -> Reconstruction:
        """Return the result of latents `z`, and warn where it does not fit its measurements.

        Parameters
        ----------
        z : Tensor, shape (B, c, h, w)
        settings : dict
            Of the solver.
        tau : float, optional
            Times sigma the residual that was wanted.

        Returns
        -------
        Reconstruction
        """
        x = self.prior.clip(self.prior.decode(z))
        self.count(1)
        residual = self.problem.residual(x)
        if tau is not None:
            warn_unmet(self.problem, residual, tau=tau)
        seconds = clock.perf_counter() - self.begun
        settings = {**settings, "autoencoder_psnr": self._ceiling(x)}
        return Reconstruction(
            image=self.problem.to_operator(x),
            residual=residual,
            network_calls=(self.prior.calls.images - self.network) // len(z),
            iterations=self.iterations,
            seconds=seconds,
            latent=z,
            decoder_calls=round(float(self.decoded.double().mean())),
            curve=torch.stack(self.curve) if self.curve else torch.zeros(0, len(z)),
            settings=settings,
        )

    def _ceiling(self, x: Tensor) -> float:
        """Return how well the autoencoder returns its own images, in dB, and warn where it does not."""
        again = self.prior.decode(self.prior.encode(x))
        found = float(psnr(again, x, value_range=self.prior.value_range).mean())
        if found < CEILING:
            warnings.warn(
                LowdimWarning(
                    f"{self.where}: encoding and decoding a reconstruction leaves {found:.1f} dB of it, so "
                    "the autoencoder limits what can be found. Check its scaling and the range of its "
                    "images; else use a prior of images."
                ),
                stacklevel=4,
            )
        return found

    def tell(self, callback: Callback | None, step: int, steps: int, z0: Tensor) -> None:
        """Show the images of clean latents; a callback with ``images = False`` is given the latents instead.

        The decoder's call is not counted, as the solver has no need of it.
        """
        if callback is None:
            return
        if not getattr(callback, "images", True):
            callback(step, steps, z0)
            return
        with torch.no_grad():
            callback(step, steps, self.problem.to_operator(self.prior.clip(self.prior.decode(z0))))
