"""deepinv: our solvers in its benchmarks, its solvers as baselines beside ours, and its tomography.

Its images are in [0, 1], and so are the measurements that its solvers are given here.
"""

from __future__ import annotations

import copy
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from lowdim.errors import DataError, MissingExtra
from lowdim.inverse.consistency import prox, pseudo_inverse
from lowdim.inverse.degradations import Inpainting
from lowdim.inverse.noise import ImageNoise, Seeds
from lowdim.inverse.operators import ForwardOperator, as_operator
from lowdim.inverse.priors import Prior
from lowdim.inverse.problem import Problem
from lowdim.inverse.result import Reconstruction
from lowdim.inverse.schedule import noise_levels

__all__ = [
    "DDRM",
    "DiffPIR",
    "PseudoInverse",
    "TotalVariation",
    "as_denoiser",
    "as_reconstructor",
    "tomography",
]


def _deepinv() -> Any:
    try:
        return importlib.import_module("deepinv")
    except ImportError as error:
        raise MissingExtra("deepinv", extra="diffusion", purpose="use its operators and solvers") from error


def as_reconstructor(solver: Callable[..., Reconstruction], *, seed: Seeds = 0) -> Any:
    """Return a solver as a Reconstructor, which ``deepinv.test`` and ``deepinv.Trainer`` take.

    Parameters
    ----------
    solver : DCDP, DPS or any solver of this room
        Called with measurements and physics.
    seed : int, sequence of int, or None
        For every batch.

    Returns
    -------
    deepinv.models.Reconstructor
        ``model(y, physics)`` gives images in [0, 1].
    """

    class Solver(_deepinv().models.Reconstructor):  # type: ignore[misc]
        def forward(self, y: Any, physics: Any, **options: Any) -> Tensor:
            return solver(y, physics, seed=seed).image

    return Solver()


def as_denoiser(prior: Prior) -> Any:
    """Return a prior as a Denoiser: ``model(x, sigma)`` with images in [0, 1] and their noise.

    Parameters
    ----------
    prior : Prior
        Asked at the time whose noise is nearest to sigma.

    Returns
    -------
    deepinv.models.Denoiser
    """
    levels = noise_levels(prior.alphas_cumprod)

    class Network(_deepinv().models.Denoiser):  # type: ignore[misc]
        def forward(self, x: Tensor, sigma: Any, **options: Any) -> Tensor:
            wanted = 2 * float(torch.as_tensor(sigma).flatten()[0])
            t = int((levels - wanted).abs().argmin())
            noisy = prior.abar(t, x).sqrt() * (2 * x - 1)
            return (prior.clip(prior.x0(noisy, t)) + 1) / 2

    return Network()


def tomography(
    shape: tuple[int, ...], *, angles: int = 30, noise_sigma: float | None = None
) -> ForwardOperator:
    """Return parallel-beam tomography of square images in [0, 1], with ``||A|| = 1``.

    Parameters
    ----------
    shape : tuple of int
        (C, H, W), H = W.
    angles : int
        Directions over half a turn; few of them make it sparse-view.
    noise_sigma : float, optional
        Of the noise in measurements.

    Returns
    -------
    ForwardOperator

    Raises
    ------
    DataError
        If images are not square.
    """
    if shape[-1] != shape[-2]:
        raise DataError(f"tomography: images of {tuple(shape[-2:])} are not square. Crop or pad them.")
    physics = _deepinv().physics.Tomography(
        angles=angles, img_width=shape[-1], circle=False, normalize=True, device="cpu"
    )
    return as_operator(physics, image_shape=tuple(shape), value_range=(0, 1), noise_sigma=noise_sigma)


class _Baseline(ABC):
    """A solver of deepinv in our convention: images of a batch share one seed, unlike in our solvers."""

    def __init__(self, prior: Prior | None, **settings: Any) -> None:
        _deepinv()
        self.prior, self.settings = prior, {"solver": type(self).__name__.lower(), **settings}

    @abstractmethod
    def _solve(self, problem: Problem) -> Tensor:
        """Return images in [-1, 1]."""

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
        """Reconstruct a batch; arguments as of `DCDP`, of which `callback` is called at the end."""
        started = perf_counter()
        before = self.prior.calls.images if self.prior is not None else 0
        name = type(self).__name__
        problem = Problem.of(y, operator, sigma=sigma, prior=self.prior, x_init=x_init, where=name)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(ImageNoise(seed, batch=problem.shape[0]).seeds[0])
            image = self._solve(problem).to(problem.dtype)
            residual = problem.residual(image)
        calls = (self.prior.calls.images - before) // len(image) if self.prior is not None else 0
        found = problem.to_operator(image)
        if callback is not None:
            callback(1, 1, found)
        return Reconstruction(
            image=found,
            residual=residual,
            network_calls=calls,
            iterations=torch.zeros(len(image), dtype=torch.int64),
            seconds=perf_counter() - started,
            settings={**self.settings, "sigma": sigma, "seed": seed},
        )


def _in_unit_range(problem: Problem) -> tuple[Any, Tensor]:
    """Return a physics of deepinv and its measurements of images in [0, 1]."""
    package, operator = _deepinv(), problem.operator
    if not operator.linear:
        raise DataError(f"{problem.where}: it takes linear operators only. Use DCDP or DPS.")
    one = torch.ones(problem.shape, dtype=problem.dtype, device=problem.y.device)
    y = (problem.y + operator.A(one)) / 2
    given = getattr(operator, "thing", None)
    if isinstance(given, package.physics.Physics):
        physics = copy.deepcopy(given)
    elif isinstance(operator, Inpainting):
        mask = operator.mask.expand(problem.shape[1:]).float().to(y.device)
        physics = package.physics.Inpainting(img_size=problem.shape[1:], mask=mask, device=y.device)
    else:
        physics = package.physics.LinearPhysics(A=operator.A, A_adjoint=operator.A_adjoint)
    physics.noise_model = package.physics.GaussianNoise(sigma=max(problem.needed_sigma() / 2, 1e-6))
    return physics, y


class DDRM(_Baseline):
    """Denoising diffusion restoration (Kawar et al. 2022).

    For operators with a known singular value decomposition: deepinv's decomposable physics, our `Inpainting`.

    Parameters
    ----------
    prior : Prior
    steps : int
        Network calls.
    eta, etab : float
        Share of new noise where nothing was measured, and weight of the data.
    largest : float
        First noise level, of images in [0, 1].
    """

    def __init__(
        self, prior: Prior, *, steps: int = 100, eta: float = 0.85, etab: float = 1.0, largest: float = 1.0
    ) -> None:
        super().__init__(prior, steps=steps, eta=eta, etab=etab, largest=largest)
        self.steps, self.eta, self.etab, self.largest = steps, eta, etab, largest

    def _solve(self, problem: Problem) -> Tensor:
        package = _deepinv()
        physics, y = _in_unit_range(problem)
        if not isinstance(physics, package.physics.DecomposablePhysics):
            raise DataError(
                "DDRM: the operator has no known singular value decomposition. Use DiffPIR or DCDP."
            )
        assert self.prior is not None
        sigmas = torch.linspace(self.largest, 0, self.steps + 1)[:-1].tolist()
        solver = package.sampling.DDRM(
            denoiser=as_denoiser(self.prior), sigmas=sigmas, eta=self.eta, etab=self.etab
        )
        return 2 * solver(y, physics) - 1


class DiffPIR(_Baseline):
    """Plug-and-play restoration along a diffusion (Zhu et al. 2023).

    Parameters
    ----------
    prior : Prior
        With the usual 1000 betas on a line, which deepinv has built in.
    steps : int
        Network calls.
    zeta : float
        Share of new noise.
    strength : float
        lambda, how much the prior counts against the data. Tune it for every task.
    """

    def __init__(self, prior: Prior, *, steps: int = 100, zeta: float = 0.1, strength: float = 7.0) -> None:
        super().__init__(prior, steps=steps, zeta=zeta, strength=strength)
        self.steps, self.zeta, self.strength = steps, zeta, strength

    def _solve(self, problem: Problem) -> Tensor:
        package = _deepinv()
        physics, y = _in_unit_range(problem)
        assert self.prior is not None
        solver = package.sampling.DiffPIR(
            model=as_denoiser(self.prior),
            data_fidelity=package.optim.data_fidelity.L2(),
            sigma=max(problem.needed_sigma() / 2, 1e-6),
            max_iter=self.steps,
            zeta=self.zeta,
            lambda_=self.strength,
            device=y.device,
        )
        return 2 * solver(y, physics) - 1


class TotalVariation(_Baseline):
    """The image of least total variation that explains the data, ``||A x - y||^2 / 2 + weight TV(x)``.

    It is the one to beat on piecewise-constant images. ADMM with the denoiser of deepinv.

    Parameters
    ----------
    weight : float
        For images in [-1, 1]. Tune it for every task.
    steps : int
        Of ADMM.
    penalty : float
        Of ADMM; it changes the speed, not the result.
    """

    def __init__(self, *, weight: float, steps: int = 100, penalty: float = 0.05) -> None:
        super().__init__(None, weight=weight, steps=steps, penalty=penalty)
        self.weight, self.steps, self.penalty = weight, steps, penalty

    def _solve(self, problem: Problem) -> Tensor:
        denoise = _deepinv().models.TVDenoiser(n_it_max=20, crit=0.0)
        z = pseudo_inverse(problem, max_iter=20)
        u = torch.zeros_like(z)
        for _ in range(self.steps):
            x = prox(problem, z - u, rho=self.penalty).x
            z = denoise(x + u, ths=self.weight / self.penalty)
            u = u + x - z
        return z


class PseudoInverse(_Baseline):
    """The image of smallest norm that explains the data best; it knows nothing of images.

    Parameters
    ----------
    max_iter : int
        Steps of conjugate gradients.
    """

    def __init__(self, *, max_iter: int = 200) -> None:
        super().__init__(None, max_iter=max_iter)
        self.max_iter = max_iter

    def _solve(self, problem: Problem) -> Tensor:
        return pseudo_inverse(problem, max_iter=self.max_iter)
