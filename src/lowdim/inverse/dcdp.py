"""DCDP: data consistency and purification by a diffusion model, in turn."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any, Literal

import torch
from torch import Tensor

from lowdim.errors import DataError
from lowdim.inverse.consistency import (
    Consistent,
    adam,
    gauss_newton,
    norm_squared,
    prox,
    sgd,
    solver_for,
    warn_unmet,
)
from lowdim.inverse.latent import LatentPrior
from lowdim.inverse.noise import ImageNoise, Seeds
from lowdim.inverse.priors import Prior
from lowdim.inverse.problem import Problem
from lowdim.inverse.result import Reconstruction
from lowdim.inverse.schedule import ddim_times, noise_levels, purification_times

__all__ = ["DCDP", "Purify"]

Purify = Literal["tweedie", "ddim"] | Callable[[Tensor, Tensor], Tensor]

Callback = Callable[[int, int, Tensor], None]

RHO_MIN = 1e-6
"""Weight of the proximal term where there is no noise."""

FINALS = ("auto", "purified", "consistent", "before")


class DCDP:
    """Reconstruct images by data consistency and purification in turn.

    Each of K steps brings the image into agreement with the data, starting where it is, and purifies it: it
    is noised to time T_k and denoised by the prior. No gradient goes through the network, and with the
    default purification there are K network calls in all. The defaults are those of the paper but for the
    data consistency; for the smallest error in fewer calls use `without_noise`.

    Parameters
    ----------
    prior : Prior
        A pixel prior or a mixture. Of a latent prior use `LatentDCDP`.
    steps : int
        K.
    t0, t_end : float
        First and last time of purification, as fractions of the network's T.
    schedule : str
        How the times fall, see `purification_times`.
    purify : {"tweedie", "ddim"} or callable
        One call of the network (version II of the paper); a deterministic DDIM path (version I); or a
        consistency model ``f(x, sigma)``, which maps ``x = x_0 + sigma n``, sigma (B,), to x_0 (version III).
    ddim_steps : int
        Network calls at most in each purification by DDIM.
    solver : {"auto", "prox", "sgd", "adam", "gn"}
        Of the data consistency; "auto" is the proximal map for a linear operator, else Adam.
    tau : float
        "sgd", "adam" and "gn" stop an image when its mean squared residual is at most tau^2 sigma^2.
    max_iter : int, optional
        Steps of the data consistency at most: 60 of conjugate gradients, 100 of "sgd" and "adam", 6 of "gn".
    weight : float
        c: an image purified at time t is trusted up to an error ``s = c sqrt((1 - abar_t) / abar_t)``, at
        most 1.
    final : {"auto", "purified", "consistent", "before"}
        What is returned: the last purified image, that image after one more data consistency, or the
        data-consistent image before it. "auto" is "consistent" for "prox" and "gn"; for "sgd" and "adam"
        it is "purified" of noisy data, else "before".
    noise : float
        Share of the noise of time T_k that is added before purification, from 0 to 1.
    momentum : float
        A data-consistent image moves on by this share of its last step before it is purified, from 0 to 1.
    average : int
        Mean over so many runs with independent noise: a larger PSNR for as many times the network calls.

    Raises
    ------
    DataError
        If an option is out of range.

    References
    ----------
    Li et al., arXiv 2403.06054. The paper's data consistency is a few steps of gradient descent; the proximal
    map is the problem which those approximate, and is better where measurements are noisy: our default.

    Examples
    --------
    >>> from lowdim.inverse import GMMPrior, Pooling
    >>> images = torch.randn(300, 1, 4, 4, generator=torch.Generator().manual_seed(0)) / 4
    >>> prior = GMMPrior.fit(images, components=2)
    >>> y = Pooling(2).measure(images[:3], sigma=0.02, seed=0)
    >>> found = DCDP(prior, steps=10)(y, Pooling(2), sigma=0.02, seed=0)
    >>> found.image.shape, found.network_calls
    (torch.Size([3, 1, 4, 4]), 10)
    """

    def __init__(
        self,
        prior: Prior,
        *,
        steps: int = 20,
        t0: float = 0.4,
        t_end: float = 0.0,
        schedule: str = "linear",
        purify: Purify = "tweedie",
        ddim_steps: int = 20,
        solver: str = "auto",
        tau: float = 1.0,
        max_iter: int | None = None,
        weight: float = 1.0,
        final: str = "auto",
        noise: float = 1.0,
        momentum: float = 0.0,
        average: int = 1,
    ) -> None:
        if isinstance(prior, LatentPrior):
            raise DataError("DCDP: the prior is one of latents. Use LatentDCDP, or ReSample.")
        self.times = purification_times(
            steps, t0=t0, t_end=t_end, schedule=schedule, alphas_cumprod=prior.alphas_cumprod
        )
        if not callable(purify) and purify not in ("tweedie", "ddim"):
            raise DataError(
                f"DCDP: purify={purify!r} is unknown. Use 'tweedie', 'ddim' or a function f(x, sigma)."
            )
        if final not in FINALS:
            raise DataError(f"DCDP: final={final!r} is unknown. Use one of {', '.join(FINALS)}.")
        for name, value in (("tau", tau), ("weight", weight)):
            if not value > 0:
                raise DataError(f"DCDP: {name}={value!r} must be a number > 0.")
        for name, share in (("noise", noise), ("momentum", momentum)):
            if not 0 <= share <= 1:
                raise DataError(f"DCDP: {name}={share!r} must be a number from 0 to 1.")
        for name, count in (("ddim_steps", ddim_steps), ("average", average), ("max_iter", max_iter or 1)):
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise DataError(f"DCDP: {name}={count!r} must be a whole number of 1 or more.")
        self.prior, self.purify, self.ddim_steps = prior, purify, ddim_steps
        self.solver, self.tau, self.max_iter, self.weight = solver, tau, max_iter, weight
        self.final, self.noise, self.momentum, self.average = final, noise, momentum, average
        self.settings: dict[str, Any] = {
            "solver": "dcdp",
            "steps": steps,
            "t0": t0,
            "t_end": t_end,
            "schedule": schedule,
            "purify": purify if isinstance(purify, str) else "consistency",
            "ddim_steps": ddim_steps,
            "consistency": solver,
            "tau": tau,
            "max_iter": max_iter,
            "weight": weight,
            "final": final,
            "noise": noise,
            "momentum": momentum,
            "average": average,
        }

    @classmethod
    def without_noise(cls, prior: Prior, *, steps: int = 10, **options: Any) -> DCDP:
        """Return the variant that comes nearest to the posterior mean in few network calls.

        Noise that is added before purification makes images likely samples; the mean square error does not
        need it. Without it, with noise levels that fall from 0.5 to 0.05 by a constant factor, and with
        momentum, ten calls are enough.

        Parameters
        ----------
        prior : Prior
            As of the class.
        steps : int
            Network calls.
        options
            Further options of the class, which replace those above.

        Returns
        -------
        DCDP

        References
        ----------
        Own measurement. It is plug-and-play half-quadratic splitting (Zhang et al., "Plug-and-play image
        restoration with deep denoiser prior", 2021) with the network of a diffusion as the denoiser, plus the
        momentum.

        Examples
        --------
        >>> from lowdim.inverse import CallablePrior, linear_alphas_cumprod
        >>> solver = DCDP.without_noise(CallablePrior(lambda x, t: x, linear_alphas_cumprod()), steps=4)
        >>> solver.times
        [145, 68, 29, 11]
        """
        levels = noise_levels(prior.alphas_cumprod)
        high, low = (int(torch.searchsorted(levels, level)) + 1 for level in (0.5, 0.05))
        usual: dict[str, Any] = {
            "t0": high / len(levels),
            "t_end": low / len(levels),
            "schedule": "geometric",
            "noise": 0.0,
            "momentum": 0.5,
        }
        return cls(prior, steps=steps, **{**usual, **options})

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
            Where to start, in the operator's range; the middle of the prior's range otherwise.
        seed : int, sequence of int, or None
            One per image; of a number s, image b gets s + b.
        callback : callable, optional
            Called with (step, steps, images) after every step.

        Returns
        -------
        Reconstruction
        """
        started, before = perf_counter(), self.prior.calls.images
        problem = Problem.of(y, operator, sigma=sigma, prior=self.prior, x_init=x_init, where="DCDP")
        curves = []
        total = torch.zeros(problem.shape, dtype=problem.dtype, device=problem.y.device)
        iterations = torch.zeros(problem.shape[0], dtype=torch.int64, device=problem.y.device)
        with torch.no_grad():
            start = self._start(problem, x_init)
            solve = self._data_consistency(problem)
            for repeat in range(self.average):
                noise = ImageNoise(seed, batch=problem.shape[0], repeat=repeat)
                tell = _counted(callback, problem, repeat * len(self.times), self.average * len(self.times))
                image, taken, each = self._run(problem, start, x_init is not None, solve, noise, tell)
                total, iterations = total + image, iterations + taken
                curves.append(each)
            mean = total / self.average
            residual = problem.residual(mean)
            curve = torch.stack(curves).mean(0)
            # The last data-consistent image: what is purified after it may leave the data a little.
            warn_unmet(problem, torch.minimum(curve[-1], residual), tau=max(self.tau, 1.0))
        return Reconstruction(
            image=problem.to_operator(mean),
            residual=residual,
            network_calls=(self.prior.calls.images - before) // problem.shape[0],
            iterations=iterations,
            seconds=perf_counter() - started,
            curve=curve,
            settings={**self.settings, "sigma": sigma, "seed": seed},
        )

    def _start(self, problem: Problem, x_init: Tensor | None) -> Tensor:
        if x_init is None:
            middle = sum(self.prior.value_range) / 2
            x = torch.full(problem.shape, middle, dtype=problem.dtype, device=problem.y.device)
        else:
            x = problem.from_operator(x_init.to(dtype=problem.dtype, device=problem.y.device))
            x = x.expand(problem.shape)
        if not bool(torch.isfinite(problem.operator.A(x)).all()):
            given = "x_init" if x_init is not None else "a gray image"
            raise DataError(f"DCDP: A of {given} is not finite. Give an x_init at which A is defined.")
        return x

    def _data_consistency(self, problem: Problem) -> Callable[[Tensor, float], Consistent]:
        """Return the chosen solver as a function of images and the error s that they are trusted to have."""
        solver = solver_for(problem, self.solver)
        tau = self.tau if problem.sigma is not None else None
        if solver in ("prox", "gn"):
            sigma = problem.needed_sigma()
            if solver == "prox":
                most = self.max_iter or 60
                return lambda x, s: prox(problem, x, rho=max(sigma**2 / s**2, RHO_MIN), max_iter=most)
            most = self.max_iter or 6
            return lambda x, s: gauss_newton(
                problem, x, rho=max(sigma**2 / s**2, RHO_MIN), max_iter=most, tau=tau
            )
        most = self.max_iter or 100
        if solver == "adam":
            return lambda x, s: adam(problem, x, max_iter=most, tau=tau)
        norm = norm_squared(problem)
        return lambda x, s: sgd(problem, x, max_iter=most, tau=tau, norm=norm)

    def _run(
        self,
        problem: Problem,
        x: Tensor,
        warm: bool,
        solve: Callable[[Tensor, float], Consistent],
        noise: ImageNoise,
        tell: Callable[[int, Tensor], None],
    ) -> tuple[Tensor, Tensor, Tensor]:
        final = self.final
        if final == "auto":
            closed = solver_for(problem, self.solver) in ("prox", "gn")
            final = "consistent" if closed else ("purified" if problem.sigma != 0 else "before")
        s = self._trust(self.times[0]) if warm else 1.0
        v, taken = solve(x, s)
        before, curve = v, []
        for step, t in enumerate(self.times):
            curve.append(problem.residual(v))
            last = step == len(self.times) - 1
            if last and final == "before":
                break
            ahead, before = v + self.momentum * (v - before), v
            x = self._purified(ahead, t, noise)
            if last and final == "purified":
                v = x
            else:
                v, more = solve(x, self._trust(t))
                taken = taken + more
            tell(step, v)
        return v, taken, torch.stack(curve)

    def _trust(self, t: int) -> float:
        abar = float(self.prior.alphas_cumprod[t])
        return min(1.0, self.weight * ((1 - abar) / max(abar, 1e-12)) ** 0.5)

    def _purified(self, v: Tensor, t: int, noise: ImageNoise) -> Tensor:
        """Return P(sqrt(abar_t) v + sqrt(1 - abar_t) n, t)."""
        prior = self.prior
        x = prior.add_noise(v, t, self.noise * noise.like(v) if self.noise else torch.zeros_like(v))
        if self.purify == "tweedie":
            return prior.clip(prior.x0(x, t))
        abar = prior.abar(t, x)
        if self.purify != "ddim":
            sigma = ((1 - abar) / abar).sqrt()
            prior.calls.add(len(x))
            return prior.clip(self.purify(x / abar.sqrt(), sigma.flatten()))
        return ddim(prior, x, ddim_times(t, self.ddim_steps))


def ddim(prior: Prior, x: Tensor, times: list[int]) -> Tensor:
    """Follow the deterministic DDIM path of a pixel prior to the clean image.

    Parameters
    ----------
    prior : Prior
    x : Tensor, shape (B, C, H, W)
        At the first time.
    times : list of int
        Falling indices into ``alphas_cumprod``.

    Returns
    -------
    Tensor, shape (B, C, H, W)

    References
    ----------
    Song, Meng, Ermon, "Denoising diffusion implicit models", ICLR 2021, equation 12 with eta = 0.
    """
    clean = x
    for t, following in zip(times, [*times[1:], None], strict=True):
        clean = prior.clip(prior.x0(x, t))
        if following is not None:
            abar = prior.abar(t, x)
            eps = (x - abar.sqrt() * clean) / (1 - abar).sqrt()
            x = prior.add_noise(clean, following, eps)
    return clean


def _counted(
    callback: Callback | None, problem: Problem, done: int, total: int
) -> Callable[[int, Tensor], None]:
    def tell(step: int, image: Tensor) -> None:
        if callback is not None:
            callback(done + step + 1, total, problem.to_operator(image))

    return tell
