"""ReSample: diffusion sampling of latents with hard data consistency and stochastic resampling."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from lowdim.errors import DataError
from lowdim.inverse.consistency import adam, gauss_newton, prox, solver_for
from lowdim.inverse.latent import LatentPrior
from lowdim.inverse.latent_consistency import METHODS, LatentMethod, fit_latents
from lowdim.inverse.latent_dps import check_steps, ddim_step, guided_step, next_abars
from lowdim.inverse.latent_run import Callback, LatentRun
from lowdim.inverse.noise import Seeds
from lowdim.inverse.resample import SCHEDULES, Schedule, resample, resample_variance
from lowdim.inverse.result import Reconstruction
from lowdim.inverse.schedule import ddim_times

__all__ = ["ReSample"]

REENCODE = ("resample", "encode", "ddim")

CONSISTENCY = ("both", "pixel", "latent")

PIXEL_SOLVERS = ("auto", "prox", "adam", "gn")

RHO_MIN = 1e-6
"""Weight of the proximal term where there is no noise."""


class ReSample:
    """Reconstruct images with a latent diffusion model, hard data consistency and stochastic resampling.

    The latent follows DDIM. In the noisiest third nothing else happens; then, every `skip` steps, the clean
    image that the latent stands for is made to fit the data and noised again, near to where the latent was.
    In the middle third the image itself is fitted and encoded, in the last one its latent.

    Parameters
    ----------
    prior : LatentPrior
    steps : int
        N of DDIM.
    skip : int
        Steps between two fits to the data.
    lookahead : int
        Steps that DDIM goes ahead before a fit, to see a cleaner image; they are taken back.
    gamma : float
        How freely the latent is drawn again, see `resample_variance`; the effect depends on `steps`, and
        ``40 * steps / 500`` is what 40 is at 500 steps.
    schedule : {"ddpm", "paper"}
        Of that variance: as in the authors' code, or as in the paper.
    reencode : {"resample", "encode", "ddim"}
        Stochastic resampling, fresh noise on the fitted latent, or the noise that the network saw.
    consistency : {"both", "pixel", "latent"}
        Where images are fitted; "pixel" needs no gradient of the decoder, and is fastest with ``guidance=0``.
    guidance : float
        Strength of the pull towards the data in every step; 0 leaves it out, with all gradients of the
        network.
    tau : float
        An image fits when its mean squared residual is at most ``tau^2 sigma^2``. Latents that are many
        beside the measurements fit a part of the noise, too, so that less than 1 may be better: 0.8 is by 0.4
        dB on digits behind a nonlinear operator, for twice the calls of the decoder.
    pixel_solver : {"auto", "prox", "adam", "gn"}
        "auto" is the proximal map of a linear operator, else Adam.
    latent_solver : {"adam", "gn"}
        Adam as in the authors' code, or Gauss-Newton with conjugate gradients, see `fit_latents`. On held-out
        digits behind a nonlinear operator Gauss-Newton is 0.8 dB above Adam at the same noise level for as
        many calls of the decoder; with ``tau=0.6, skip=10`` it is as good as the authors' schedule at about a
        quarter of its calls. It needs second derivatives of the decoder, and the memory for them.
    max_iter : (int, int)
        Steps of the optimizers at most, in pixels and in latents.
    lr : (float, float)
        Rates of Adam, in pixels and in latents.
    start_fraction, latent_fraction : float
        Share of steps before the first fit, and share of the last ones where latents are fitted.
    final : bool
        Whether latents are fitted once more at the end.

    Raises
    ------
    DataError
        If an option is unknown or a number out of range.

    References
    ----------
    .. [1] Song, Kwon, Zhang, Hu, Qu, Shen, "Solving Inverse Problems with Latent Diffusion Models via Hard
       Data Consistency", ICLR 2024, arXiv 2307.08123, and its code. Different here: each image stops at its
       noise level, not a batch at 1e-3; Adam has no weight decay, which would shrink images; a linear
       operator is fitted by its proximal map; the steps ahead use the alphas of their own times.

    Examples
    --------
    >>> from lowdim.inverse import Pooling
    >>> from lowdim.inverse.digits import digits, latent_digits_prior
    >>> x, A = digits("test")[:2], Pooling(2)
    >>> y = A.measure(x, sigma=0.02, seed=0)
    >>> quick = {"steps": 30, "skip": 5, "lookahead": 2, "max_iter": (100, 100), "lr": (1e-2, 2e-2)}
    >>> solver = ReSample(latent_digits_prior(), **quick)
    >>> found = solver(y, A, sigma=0.02, seed=0)
    >>> found.image.shape, found.latent.shape, found.network_calls
    (torch.Size([2, 1, 8, 8]), torch.Size([2, 2, 4, 4]), 38)
    """

    def __init__(
        self,
        prior: LatentPrior,
        *,
        steps: int = 500,
        skip: int = 10,
        lookahead: int = 5,
        gamma: float = 40.0,
        schedule: Schedule = "ddpm",
        reencode: Literal["resample", "encode", "ddim"] = "resample",
        consistency: Literal["both", "pixel", "latent"] = "both",
        guidance: float = 0.5,
        tau: float = 1.0,
        pixel_solver: Literal["auto", "prox", "adam", "gn"] = "auto",
        latent_solver: LatentMethod = "adam",
        max_iter: tuple[int, int] = (2000, 500),
        lr: tuple[float, float] = (1e-2, 5e-3),
        start_fraction: float = 1 / 3,
        latent_fraction: float = 1 / 3,
        final: bool = True,
    ) -> None:
        check_steps("ReSample", steps, prior)
        known = {
            "schedule": (schedule, SCHEDULES),
            "reencode": (reencode, REENCODE),
            "consistency": (consistency, CONSISTENCY),
            "pixel_solver": (pixel_solver, PIXEL_SOLVERS),
            "latent_solver": (latent_solver, METHODS),
        }
        for name, (word, words) in known.items():
            if word not in words:
                raise DataError(f"ReSample: {name}={word!r} is unknown. Use one of {', '.join(words)}.")
        for name, least, number in (("skip", 1, skip), ("lookahead", 0, lookahead)):
            if isinstance(number, bool) or not isinstance(number, int) or number < least:
                raise DataError(f"ReSample: {name}={number!r} must be a whole number of {least} or more.")
        ranges: dict[str, tuple[Any, bool]] = {
            "gamma": (gamma, gamma >= 0),
            "guidance": (guidance, 0 <= guidance < math.inf),
            "tau": (tau, 0 < tau < math.inf),
            "start_fraction": (start_fraction, 0 <= start_fraction < 1),
            "latent_fraction": (latent_fraction, 0 <= latent_fraction <= 1),
            "lr": (lr, len(lr) == 2 and min(lr) > 0),
            "max_iter": (max_iter, len(max_iter) == 2 and min(max_iter) >= 1),
        }
        for name, (value, good) in ranges.items():
            if not good:
                raise DataError(f"ReSample: {name}={value!r} is out of range; see help(ReSample).")
        self.prior, self.steps, self.skip, self.lookahead = prior, steps, skip, lookahead
        self.gamma, self.schedule, self.reencode = gamma, schedule, reencode
        self.consistency, self.guidance, self.tau = consistency, guidance, tau
        self.pixel_solver, self.latent_solver = pixel_solver, latent_solver
        self.max_iter, self.lr, self.final = max_iter, lr, final
        self.start_fraction, self.latent_fraction = start_fraction, latent_fraction
        own = {name: value for name, value in vars(self).items() if name != "prior"}
        self.settings: dict[str, Any] = {"solver": "resample", **own}

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
            Standard deviation of the noise in y; the operator's otherwise.
        x_init : Tensor, shape (B, C, H, W), optional
            In the operator's range: encoded and made noisy, the start; noise otherwise.
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
        prior, N = self.prior, self.steps
        run = LatentRun.open(prior, y, operator, sigma=sigma, x_init=x_init, seed=seed, where="ReSample")
        target = run.target(self.tau)
        pixel_solver = solver_for(run.problem, self.pixel_solver)
        times = ddim_times(prior.train_steps - 1, N)
        abars = next_abars(prior, times)
        z = run.start(x_init, times[0])
        for i, t in enumerate(times):
            z, z0 = guided_step(z, t, abars[i], problem=run.problem, prior=prior, strength=self.guidance)
            run.count(int(self.guidance > 0))
            index = N - 1 - i
            if index > 0 and index % self.skip == 0 and index <= N - int(N * self.start_fraction):
                z0, eps = self._ahead(z, z0, times[i + 1 :], abars[i + 1 :])
                latent = self.consistency == "latent" or (
                    self.consistency == "both" and index < int(N * self.latent_fraction)
                )
                if latent:
                    z0 = self._fit_latents(run, z0, target)
                else:
                    z0 = self._fit_images(run, z0, abars[i], pixel_solver)
                s2 = self._variance(float(prior.alphas_cumprod[t]), abars[i])
                noise = run.noise.like(z)
                if self.reencode == "ddim":
                    z = ddim_step(z, eps, z0, abars[i])
                else:
                    z = resample(z0, z, alpha_bar=abars[i], s2=s2, noise=noise)
            run.tell(callback, i + 1, N, z0)
        if self.final:
            z = self._fit_latents(run, z, target)
        return run.finish(z, settings={**self.settings, "sigma": sigma, "seed": seed}, tau=self.tau)

    def _variance(self, abar: float, next_abar: float) -> float:
        gamma = self.gamma if self.reencode == "resample" else math.inf
        return resample_variance(abar, next_alpha_bar=next_abar, gamma=gamma, schedule=self.schedule)

    @torch.no_grad()
    def _ahead(self, z: Tensor, z0: Tensor, times: list[int], abars: list[float]) -> tuple[Tensor, Tensor]:
        """Return the clean latent after some steps of DDIM ahead, and the noise in `z` itself."""
        first: Tensor | None = None
        steps = max(self.lookahead, self.reencode == "ddim")  # whose noise must be seen
        for t, abar in zip(times[:steps], abars, strict=False):
            eps, z0 = self.prior.predict(z, t)
            first = eps if first is None else first
            z = ddim_step(z, eps, z0, abar)
        return z0, torch.zeros_like(z) if first is None else first

    @torch.no_grad()
    def _fit_images(self, run: LatentRun, z0: Tensor, abar: float, solver: str) -> Tensor:
        """Return the latent of the image that fits, near the image of `z0`."""
        problem = run.problem
        x = run.prior.decode(z0)
        run.count(1)
        if solver == "adam":
            fitted = adam(problem, x, max_iter=self.max_iter[0], lr=self.lr[0], tau=self.tau)
        else:
            rho = self._weight(run, abar)
            fitted = (prox if solver == "prox" else gauss_newton)(problem, x, rho=rho)
        run.count(0, fitted.iterations)
        run.note(problem.mean_misfit(fitted.x))
        return run.prior.encode(fitted.x)

    def _weight(self, run: LatentRun, abar: float) -> float:
        """Return ``sigma^2 / s^2`` for images that are trusted as far as their noise level lets them."""
        s2 = min(1.0, (1 - abar) / abar)
        return max(run.problem.needed_sigma() ** 2 / s2, RHO_MIN) if s2 > 0 else 1.0

    def _fit_latents(self, run: LatentRun, z0: Tensor, target: float) -> Tensor:
        fitted = fit_latents(
            z0,
            run.problem,
            run.prior,
            target=target,
            method=self.latent_solver,
            max_iter=self.max_iter[1],
            lr=self.lr[1],
        )
        run.count(fitted.decoded, fitted.iterations)
        run.note(fitted.misfit)
        return fitted.z
