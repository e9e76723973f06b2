"""Latent DCDP: data consistency and purification in turn, with a latent diffusion model."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from lowdim.errors import DataError
from lowdim.inverse.consistency import adam, gauss_newton, prox, solver_for
from lowdim.inverse.dcdp import Purify
from lowdim.inverse.latent import LatentPrior
from lowdim.inverse.latent_consistency import METHODS, LatentMethod, fit_latents
from lowdim.inverse.latent_dps import ddim_step, next_abars
from lowdim.inverse.latent_run import Callback, LatentRun
from lowdim.inverse.noise import Seeds
from lowdim.inverse.result import Reconstruction
from lowdim.inverse.schedule import ddim_times, purification_times

__all__ = ["LatentDCDP"]

RHO_MIN = 1e-6
"""Weight of the proximal term where there is no noise."""

PIXEL_SOLVERS = ("auto", "prox", "adam", "gn")


class LatentDCDP:
    """Reconstruct images by data consistency, and purification of their latents, in turn.

    With data consistency in pixels no gradient goes through network or decoder, which is fast; in latents the
    result is an image of the decoder that fits the data, which is better where the operator is nonlinear.

    Parameters
    ----------
    prior : LatentPrior
    steps : int
        K, times that both are done.
    t0, t_end : float
        First and last time of purification, as fractions of the network's T.
    schedule : str
        How times fall in between, see `purification_times`.
    purify : {"tweedie", "ddim"} or callable
        One network call; DDIM down to the clean latent; or a consistency model ``f(z, sigma)`` of latents,
        which maps ``z = z_0 + sigma n``, sigma (B,), to z_0.
    ddim_steps : int
        Network calls of the latter at most.
    consistency : {"pixel", "latent"}
        Where images are made to fit the data.
    pixel_solver : {"auto", "prox", "adam", "gn"}
        "auto" is the proximal map of a linear operator, else Adam.
    latent_solver : {"adam", "gn"}
        See `fit_latents`.
    tau : float
        An image fits when its mean squared residual is at most ``tau^2 sigma^2``.
    max_iter : int
        Steps of an optimizer at most, each time.
    lr : float
        Of Adam, in latents; in pixels 0.02 as in `DCDP`.
    reencode : bool
        Whether latents that fit are decoded and encoded before they are made noisy, which keeps them on the
        encoder's range; of ``consistency="latent"``.
    final : bool
        Whether latents are fitted once more after the last purification.

    Raises
    ------
    DataError
        If an option is unknown or a number out of range.

    References
    ----------
    .. [1] Li, Kwon, Liang, Alkhouri, Ravishankar, Qu, "Decoupled Data Consistency via Diffusion
       Purification", arXiv 2403.06054, and its code. Different here: each image stops at its noise level,
       and a linear operator is fitted by its proximal map.

    Examples
    --------
    >>> from lowdim.inverse import Pooling
    >>> from lowdim.inverse.digits import digits, latent_digits_prior
    >>> x, A = digits("test")[:2], Pooling(2)
    >>> y = A.measure(x, sigma=0.02, seed=0)
    >>> prior = latent_digits_prior()
    >>> found = LatentDCDP(prior, steps=10)(y, A, sigma=0.02, seed=0)
    >>> found.image.shape, found.network_calls, prior.decoder_gradients.batches
    (torch.Size([2, 1, 8, 8]), 10, 0)
    """

    def __init__(
        self,
        prior: LatentPrior,
        *,
        steps: int = 10,
        t0: float = 0.4,
        t_end: float = 0.0,
        schedule: str = "linear",
        purify: Purify = "tweedie",
        ddim_steps: int = 20,
        consistency: Literal["pixel", "latent"] = "pixel",
        pixel_solver: Literal["auto", "prox", "adam", "gn"] = "auto",
        latent_solver: LatentMethod = "adam",
        tau: float = 1.0,
        max_iter: int = 100,
        lr: float = 2e-2,
        reencode: bool = True,
        final: bool = False,
    ) -> None:
        if not callable(purify) and purify not in ("tweedie", "ddim"):
            raise DataError(
                f"LatentDCDP: purify={purify!r} is unknown. Use 'tweedie', 'ddim' or a function f(z, sigma)."
            )
        for name, value, known in (
            ("consistency", consistency, ("pixel", "latent")),
            ("pixel_solver", pixel_solver, PIXEL_SOLVERS),
            ("latent_solver", latent_solver, METHODS),
        ):
            if value not in known:
                raise DataError(f"LatentDCDP: {name}={value!r} is unknown. Use one of {', '.join(known)}.")
        for name, number in (("tau", tau), ("lr", lr)):
            if not number > 0:
                raise DataError(f"LatentDCDP: {name}={number!r} must be a number > 0.")
        for name, count in (("ddim_steps", ddim_steps), ("max_iter", max_iter)):
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise DataError(f"LatentDCDP: {name}={count!r} must be a whole number of 1 or more.")
        self.prior = prior
        levels = getattr(prior, "alphas_cumprod", None)
        self.times = purification_times(steps, t0=t0, t_end=t_end, schedule=schedule, alphas_cumprod=levels)
        self.purify, self.ddim_steps, self.consistency = purify, ddim_steps, consistency
        self.pixel_solver, self.latent_solver = pixel_solver, latent_solver
        self.tau, self.max_iter, self.lr = tau, max_iter, lr
        self.reencode, self.final = reencode, final
        own = {name: value for name, value in vars(self).items() if name not in ("prior", "times")}
        own["purify"] = purify if isinstance(purify, str) else "consistency"
        self.settings: dict[str, Any] = {
            "solver": "latent-dcdp",
            "steps": steps,
            "t0": t0,
            "t_end": t_end,
            "schedule": schedule,
            **own,
        }

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
            Where to start, in the operator's range; else a gray image, or of latents noise.
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
            self.prior, y, operator, sigma=sigma, x_init=x_init, seed=seed, where="LatentDCDP"
        )
        target = run.target(self.tau)
        solver = solver_for(run.problem, self.pixel_solver)
        with torch.no_grad():
            z = self._start(run, x_init)
            before: int | None = None
            for step, t in enumerate(self.times, start=1):
                if self.consistency == "latent":
                    z = self._fit_latents(run, z, target)
                    if self.reencode:
                        z = self.prior.encode(self.prior.decode(z))
                        run.count(1)
                else:
                    z = self._fit_images(run, z, x_init, before, solver)
                z = self._purified(self.prior.add_noise(z, t, run.noise.like(z)), t)
                before = t
                run.tell(callback, step, len(self.times), z)
            if self.final:
                z = self._fit_latents(run, z, target)
        return run.finish(z, settings={**self.settings, "sigma": sigma, "seed": seed}, tau=None)

    def _start(self, run: LatentRun, x_init: Tensor | None) -> Tensor:
        if x_init is not None:
            return self.prior.encode(run.in_prior_range(x_init))
        return run.noise(run.latent_shape, dtype=run.problem.dtype, device=self.prior.device)

    def _fit_images(
        self, run: LatentRun, z: Tensor, x_init: Tensor | None, before: int | None, solver: str
    ) -> Tensor:
        """Return the latent of an image that fits, near the last one."""
        problem, abar = run.problem, 0.5 if before is None else float(self.prior.alphas_cumprod[before])
        if before is not None:
            x = self.prior.decode(z)
            run.count(1)
        elif x_init is not None:
            x = run.in_prior_range(x_init)
        else:  # nothing is known: the middle of the range, wholly free
            x = torch.full(problem.shape, sum(self.prior.value_range) / 2).to(problem.y.device, problem.dtype)
        if solver == "adam":
            fitted = adam(problem, x, max_iter=self.max_iter, tau=self.tau)
        else:
            rho = problem.needed_sigma() ** 2 / min(1.0, (1 - abar) / abar)
            fitted = (prox if solver == "prox" else gauss_newton)(problem, x, rho=max(rho, RHO_MIN))
        run.count(0, fitted.iterations)
        run.note(problem.mean_misfit(fitted.x))
        return self.prior.encode(fitted.x)

    def _fit_latents(self, run: LatentRun, z: Tensor, target: float) -> Tensor:
        fitted = fit_latents(
            z,
            run.problem,
            run.prior,
            target=target,
            method=self.latent_solver,
            max_iter=self.max_iter,
            lr=self.lr,
        )
        run.count(fitted.decoded, fitted.iterations)
        run.note(fitted.misfit)
        return fitted.z

    def _purified(self, z: Tensor, t: int) -> Tensor:
        """Return the clean latent of one at time `t`; latents are not clamped."""
        if self.purify == "tweedie":
            return self.prior.x0(z, t)
        if callable(self.purify):
            there = self.prior.abar(t, z)
            self.prior.calls.add(len(z))
            return self.purify(z / there.sqrt(), ((1 - there) / there).sqrt().flatten())
        times = ddim_times(t, self.ddim_steps)
        for time, abar in zip(times, next_abars(self.prior, times), strict=True):
            eps, z0 = self.prior.predict(z, time)
            z = ddim_step(z, eps, z0, abar)
        return z
