"""Reconstructions with mixtures as priors, whose denoiser is exact: what the claims about DCDP share."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from lowdim.claims.declare import Trial

if TYPE_CHECKING:
    from torch import Tensor

    from lowdim.inverse import GMMPrior, Reconstruction

__all__ = [
    "PATCHES",
    "exact",
    "figures",
    "natural",
    "phantoms",
    "pooled_psnr",
    "problem_of",
    "sampled",
    "solvers_of",
    "tomography",
]

PATCHES = (
    "80 patches of 16 x 16 pixels of three photographs, prior: a mixture of 20 Gaussians fitted to 12000 "
    "patches "
    "of fifteen others, whose denoiser is exact. 1000 times, betas from 1e-4 to 0.02 on a line; values in "
    "[-1, 1]."
)


@lru_cache(maxsize=2)
def natural(quick: bool) -> GMMPrior:
    """Fit the mixture that all these claims share."""
    from lowdim.inverse import GMMPrior
    from lowdim.inverse.patches import patches

    images = patches("train", count=3000 if quick else 12000)
    return GMMPrior.fit(images, components=8 if quick else 20, regularization=1e-3, max_iter=8)


def problem_of(task: str) -> tuple[Any, float]:
    """Return operator and noise of a task."""
    from lowdim.inverse import CircularBlur, Inpainting, Pooling, gaussian_kernel

    operators: dict[str, Callable[[], Any]] = {
        "sr2": lambda: Pooling(2),
        "sr4": lambda: Pooling(4),
        "blur": lambda: CircularBlur(gaussian_kernel(1.5)),
        "inpainting": lambda: Inpainting.random((16, 16), missing=0.7, seed=1),
    }
    return operators[task](), 0.01 if task == "inpainting" else 0.02


def exact(prior: GMMPrior) -> Callable[..., Reconstruction]:
    """Return the posterior mean as a solver."""
    import torch

    from lowdim.inverse import Reconstruction

    def solve(y: Tensor, operator: Any, *, sigma: float, seed: Any) -> Reconstruction:
        mean = prior.posterior_mean(y, operator, sigma=sigma)
        return Reconstruction(mean, torch.ones(len(mean)), 0, torch.zeros(len(mean)), 0.0)

    return solve


def solvers_of(task: str, prior: GMMPrior) -> dict[str, Any]:
    """Return the solvers of a task by name."""
    from lowdim.inverse import DCDP, DPS
    from lowdim.inverse.deepinv import PseudoInverse

    solvers: dict[str, Any] = {
        "exact": exact(prior),
        "DPS 100": DPS(prior, steps=100, zeta=1.0),
        "DPS 250": DPS(prior, steps=250, zeta=0.5),
        "K=20": DCDP(prior, steps=20),
        "K=10": DCDP(prior, steps=10),
        "version I": DCDP(prior, steps=20, purify="ddim", ddim_steps=5),
        "without noise, 10": DCDP.without_noise(prior, steps=10),
        "without noise, 20": DCDP.without_noise(prior, steps=20),
    }
    if task != "inpainting":
        solvers["pseudo-inverse"] = PseudoInverse()
    if task in ("blur", "sr4"):
        solvers["SGD 100"] = DCDP(prior, steps=10, solver="sgd", tau=1e-9)
        solvers["SGD 100, stopped"] = DCDP(prior, steps=10, solver="sgd")
    if task == "inpainting":
        solvers["K=20, from 200"] = DCDP(prior, steps=20, t0=0.2)
        solvers["K=20, mean of 4"] = DCDP(prior, steps=20, t0=0.2, average=4)
    return solvers


def figures(trial: Trial, task: str) -> dict[str, dict[str, float]]:
    """Let all solvers of a task reconstruct the test patches, once per run."""

    def compute() -> dict[str, dict[str, float]]:
        from lowdim.inverse import evaluate
        from lowdim.inverse.patches import patches

        prior = natural(trial.quick)
        images = patches("test", count=16 if trial.quick else 80)
        operator, sigma = problem_of(task)
        table = evaluate(solvers_of(task, prior), operator, images, sigma=sigma, seed=trial.seed)
        kept = table[["psnr", "pooled psnr", "ssim", "network calls", "seconds"]]
        return {str(name): row for name, row in kept.to_dict("index").items()}

    return dict(trial.share(f"dcdp-{task}", compute))


def sampled(trial: Trial, task: str) -> dict[str, dict[str, Any]]:
    """Let solvers reconstruct images that the mixture itself has drawn, where no estimate beats its mean.

    The mixture draws 3 % of its values outside [-1, 1]. What holds of means and samples holds of squared
    errors as they are: nothing is clamped here, as estimates of photographs are.
    """

    def compute() -> dict[str, dict[str, Any]]:
        from lowdim.inverse import DCDP, DPS

        prior = natural(trial.quick)
        images = prior.sample(16 if trial.quick else 64, seed=trial.seed)
        operator, sigma = problem_of(task)
        y = operator.measure(images, sigma=sigma, seed=trial.seed)
        solvers: dict[str, Any] = {
            "exact": exact(prior),
            "DPS 200": DPS(prior, steps=200, zeta=0.5),
            "K=20": DCDP(prior, steps=20),
            "without noise, 10": DCDP.without_noise(prior, steps=10),
            "without noise, 20": DCDP.without_noise(prior, steps=20),
        }
        found = {}
        for name, solver in solvers.items():
            image = solver(y, operator, sigma=sigma, seed=trial.seed).image
            errors = (image - images).square().flatten(1).mean(1).double().numpy()
            psnr = float(np.mean([pooled_psnr(error) for error in errors]))
            found[name] = {"psnr": psnr, "pooled psnr": pooled_psnr(errors), "errors": errors.tolist()}
        return found

    return dict(trial.share(f"dcdp-sampled-{task}", compute))


def pooled_psnr(errors: Any) -> float:
    """Return the PSNR of the mean of squared errors, for values in [-1, 1]."""
    return float(10 * np.log10(4 / np.mean(errors)))


def phantoms(count: int, seed: int) -> Tensor:
    """Return 16 x 16 images in [0, 1]: an elliptic body with two to five ellipses of more or less in it."""
    import torch

    g = torch.Generator().manual_seed(seed)
    grid = torch.linspace(-1, 1, 64)
    v, u = torch.meshgrid(grid, grid, indexing="ij")
    images = torch.zeros(count, 64, 64)
    number = torch.randint(3, 7, (count,), generator=g)
    for k in range(6):
        draw = torch.rand(count, 6, generator=g)[..., None, None]
        reach, small, large = (0.1, 0.6, 0.9) if k == 0 else (0.9, 0.1, 0.45)
        cx, cy = reach * (draw[:, 0] - 0.5), reach * (draw[:, 1] - 0.5)
        a, b = (small + (large - small) * draw[:, n] for n in (2, 3))
        angle = torch.pi * draw[:, 4]
        x = (u - cx) * angle.cos() + (v - cy) * angle.sin()
        y = (v - cy) * angle.cos() - (u - cx) * angle.sin()
        inside = ((x / a) ** 2 + (y / b) ** 2 < 1) & (number > k)[:, None, None]
        value = 0.4 + 0.2 * draw[:, 5] if k == 0 else 0.6 * (draw[:, 5] - 0.5)
        images = images + inside * value
    return torch.nn.functional.avg_pool2d(images.clamp(0, 1)[:, None], 4)


def tomography(trial: Trial) -> dict[str, float]:
    """Reconstruct phantoms from six directions."""

    def compute() -> dict[str, float]:
        from lowdim.inverse import DCDP, DPS, GMMPrior, evaluate
        from lowdim.inverse.deepinv import PseudoInverse, TotalVariation
        from lowdim.inverse.deepinv import tomography as projections

        train = 2 * phantoms(1500 if trial.quick else 6000, 1) - 1
        prior = GMMPrior.fit(train, components=8 if trial.quick else 20, regularization=1e-3, max_iter=8)
        operator, images = projections((1, 16, 16), angles=6), phantoms(10 if trial.quick else 40, 2)
        solvers: dict[str, Any] = {
            "pseudo-inverse": PseudoInverse(max_iter=60),
            "TV": TotalVariation(weight=0.001, steps=100),
            "exact": exact(prior),
            "DPS 250": DPS(prior, steps=250, zeta=0.5),
            "K=20": DCDP(prior, t0=0.7),
            "without noise, 20": DCDP.without_noise(prior, steps=20),
        }
        return dict(evaluate(solvers, operator, images, sigma=0.005, seed=trial.seed)["psnr"])

    return dict(trial.share("dcdp-tomography", compute))
