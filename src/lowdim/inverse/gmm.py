"""GMM: a Gaussian mixture as a prior, with an exact denoiser and an exact posterior mean."""

from __future__ import annotations

import os
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowdim.errors import DataError, RunError, ShapeError
from lowdim.inverse.priors import Prior
from lowdim.inverse.schedule import linear_alphas_cumprod

__all__ = ["GMMPrior"]

FORMAT = 2
"""1 held covariances, whose axes had to be found again; it is still read."""


class GMMPrior(Prior):
    """Images from a mixture ``sum_j pi_j N(mu_j, U_j diag(l_j) U_j^T)``.

    Its denoiser is exact, so that a solver's error is its own and not the network's, and
    `posterior_mean` is the best estimate that exists on images drawn from it.

    Parameters
    ----------
    weights : Tensor, shape (J,)
        pi_j.
    means : Tensor, shape (J, C, H, W)
        mu_j, in [-1, 1].
    covariances : Tensor, shape (J, n, n)
        Of the n = C H W values of an image.
    alphas_cumprod : Tensor, shape (T,), optional
        Of the diffusion; 1000 steps with betas from 1e-4 to 0.02 otherwise.

    Raises
    ------
    ShapeError
        If sizes do not fit.

    References
    ----------
    The denoiser is the posterior mean of a mixture under Gaussian noise: with ``v_j = abar l_j + 1 - abar``
    and ``r_j = U_j^T (x_t - sqrt(abar) mu_j)``, ``log w_j = log pi_j - (sum log v_j + sum r_j^2 / v_j) / 2``
    and ``E[x_0 | x_t] = sum_j w_j (mu_j + sqrt(abar) U_j (l_j / v_j) r_j)``.

    Examples
    --------
    >>> images = torch.randn(200, 1, 2, 2, generator=torch.Generator().manual_seed(0)) / 4
    >>> prior = GMMPrior.fit(images, components=2)
    >>> prior.shape, prior.x0(images[:3], 50).shape
    ((1, 2, 2), torch.Size([3, 1, 2, 2]))
    """

    def __init__(
        self, weights: Tensor, means: Tensor, covariances: Tensor, *, alphas_cumprod: Any = None
    ) -> None:
        n = prod(means.shape[1:])
        if weights.shape != means.shape[:1] or covariances.shape != (len(means), n, n):
            raise ShapeError(
                f"GMMPrior: weights {tuple(weights.shape)}, means {tuple(means.shape)} and covariances "
                f"{tuple(covariances.shape)} do not fit; expected (J,), (J, C, H, W), (J, n, n)."
            )
        variances, axes = torch.linalg.eigh(covariances.detach().double())
        self._settle(weights, means, variances, axes, alphas_cumprod)

    def _settle(
        self, weights: Tensor, means: Tensor, variances: Tensor, axes: Tensor, alphas_cumprod: Any
    ) -> None:
        """Keep what a mixture is: l_j, shape (J, n), and U_j, shape (J, n, n), are in double precision."""
        shape, n = tuple(means.shape[1:]), prod(means.shape[1:])
        table = linear_alphas_cumprod() if alphas_cumprod is None else alphas_cumprod
        super().__init__(table, prediction="sample", shape=shape)
        self.weights, self.means = weights.detach().double(), means.detach().double().reshape(-1, n)
        self.variances, self.axes = variances.clamp(min=0), axes.contiguous()
        turned = torch.einsum("jnk,jn->jk", self.axes, self.means)
        # (n, J n): one product turns an image into the axes of all components.
        self._axes = self.axes.movedim(1, 0).reshape(n, -1).float()
        self._variances, self._turned = self.variances.float(), turned.float()

    @property
    def covariances(self) -> Tensor:
        """``U_j diag(l_j) U_j^T``, shape (J, n, n), made anew."""
        return (self.axes * self.variances.unsqueeze(1)) @ self.axes.mT

    @classmethod
    def fit(
        cls,
        x: Any,
        *,
        components: int = 20,
        regularization: float = 1e-3,
        max_iter: int = 100,
        seed: int | None = 0,
        alphas_cumprod: Any = None,
    ) -> GMMPrior:
        """Fit to images by expectation maximization (scikit-learn).

        Parameters
        ----------
        x : array-like, shape (N, C, H, W)
            Images in [-1, 1].
        components : int
            Number J of Gaussians.
        regularization : float
            Added to all variances.
        max_iter : int
            Iterations of the fit; few are enough for a prior.
        seed : int or None
            Of the start.
        alphas_cumprod : Tensor, shape (T,), optional
            Of the diffusion.

        Returns
        -------
        GMMPrior
        """
        import warnings

        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture

        images = torch.as_tensor(np.asarray(x)) if not isinstance(x, Tensor) else x.detach().cpu()
        if images.ndim != 4 or len(images) <= components or not bool(torch.isfinite(images).all()):
            raise DataError(
                f"GMMPrior.fit: got images of shape {tuple(images.shape)}, expected finite (N, C, H, W) with "
                f"N > components={components}."
            )
        model = GaussianMixture(components, reg_covar=regularization, max_iter=max_iter, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a fixed number of iterations is meant
            model.fit(images.flatten(1).double().numpy())
        means = torch.as_tensor(model.means_).reshape(-1, *images.shape[1:])
        return cls(
            torch.as_tensor(model.weights_),
            means,
            torch.as_tensor(model.covariances_),
            alphas_cumprod=alphas_cumprod,
        )

    def _output(self, x: Tensor, t: Tensor, abar: Tensor) -> Tensor:
        B, J = len(x), len(self.weights)
        signal = abar.reshape(B, 1, 1)
        axes, variances = self._axes.to(x), self._variances.to(x)
        v = signal * variances + (1 - signal)
        r = (x.reshape(B, -1) @ axes).reshape(B, J, -1) - signal.sqrt() * self._turned.to(x)
        evidence = -(v.log().sum(-1) + (r.square() / v).sum(-1)) / 2
        w = torch.softmax(self.weights.log().to(x) + evidence, -1)
        inside = w.unsqueeze(-1) * signal.sqrt() * variances / v * r
        clean = w @ self.means.to(x) + inside.reshape(B, -1) @ axes.mT
        return clean.reshape(x.shape)

    def to(self, device: torch.device | str) -> GMMPrior:
        """Move to a `device`, in place, and return itself."""
        super().to(device)
        for name in ("weights", "means", "variances", "axes", "_axes", "_variances", "_turned"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def sample(self, count: int, *, seed: int | None = None) -> Tensor:
        """Draw clean images.

        Parameters
        ----------
        count : int
            How many.
        seed : int or None
            Of the draw.

        Returns
        -------
        Tensor, shape (count, C, H, W), in float32
            Not clipped: exactly from the mixture.
        """
        generator = torch.Generator().manual_seed(seed) if seed is not None else None
        chosen = torch.multinomial(self.weights.cpu(), count, replacement=True, generator=generator)
        z = torch.randn(count, self.means.shape[1], generator=generator, dtype=torch.float64)
        drawn = torch.einsum("bnk,bk->bn", self.axes.cpu()[chosen], self.variances.cpu().sqrt()[chosen] * z)
        return (self.means.cpu()[chosen] + drawn).reshape(count, *(self.shape or ())).float().to(self.device)

    def posterior_mean(self, y: Any, operator: Any, *, sigma: float | None = None) -> Tensor:
        """Return ``E[x | y]`` for a linear operator: no estimate has a smaller mean square error.

        Parameters
        ----------
        y : Tensor, shape (B, ...)
            Measurements.
        operator : object with A(x)
            Linear, see `as_operator`.
        sigma : float, optional
            Standard deviation of the noise in y, > 0; the operator's otherwise.

        Returns
        -------
        Tensor, shape (B, C, H, W)
            In the operator's range of values, not clipped.

        References
        ----------
        Per component the Kalman gain ``C_j A^T (A C_j A^T + sigma^2 I)^-1``, weighted by the evidence of y.
        """
        from lowdim.inverse.problem import Problem

        problem = Problem.of(y, operator, sigma=sigma, prior=self, where="GMMPrior.posterior_mean")
        if not problem.operator.linear or problem.needed_sigma() <= 0:
            raise DataError(
                "GMMPrior.posterior_mean: it is known for linear operators and sigma > 0 only. Use DCDP or "
                "DPS."
            )
        n, J = self.means.shape[1], len(self.weights)
        basis = torch.eye(n, device=problem.y.device).reshape(n, *(self.shape or ()))
        try:
            rows = problem.operator.A(basis)
        except RuntimeError as error:
            raise DataError(
                "GMMPrior.posterior_mean: the operator differs from image to image. Give images one by one."
            ) from error
        # Rows are measured images of the basis: A^T.
        At = (torch.view_as_real(rows) if rows.is_complex() else rows).reshape(n, -1).double()
        data = torch.view_as_real(problem.y) if problem.y.is_complex() else problem.y
        data = data.reshape(len(problem.y), -1).double()
        evidence, means = [], []
        for j in range(J):
            U, mu = self.axes[j].to(At.device), self.means[j].to(At.device)
            CAt = U @ (self.variances[j].to(At.device).unsqueeze(1) * (U.mT @ At))
            S = At.mT @ CAt
            S.diagonal().add_(problem.needed_sigma() ** 2)
            L = torch.linalg.cholesky(S)
            misfit = (data - mu @ At).mT
            white = torch.linalg.solve_triangular(L, misfit, upper=False)
            evidence.append(
                self.weights[j].log().to(At.device) - L.diagonal().log().sum() - white.square().sum(0) / 2
            )
            means.append(mu + (CAt @ torch.cholesky_solve(misfit, L)).mT)
        w = torch.softmax(torch.stack(evidence, -1), -1)
        mean = torch.einsum("bj,jbn->bn", w, torch.stack(means))
        return problem.to_operator(mean.reshape(len(mean), *(self.shape or ())).to(problem.dtype))

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write to a `directory`, made if need be, as safetensors and JSON."""
        from lowdim.runs import atomic_json, atomic_tensors

        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        kept = {name: getattr(self, name).cpu() for name in ("weights", "means", "variances", "axes")}
        kept["alphas_cumprod"] = self.alphas_cumprod.cpu()
        atomic_tensors(folder / "prior.safetensors", {k: v.contiguous() for k, v in kept.items()}, {})
        atomic_json(folder / "prior.json", {"format": FORMAT, "prior": "GMMPrior", "shape": self.shape})

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> GMMPrior:
        """Read what `save` has written to a `directory`."""
        from lowdim.runs import read_json, read_tensors

        folder = Path(directory)
        if not (folder / "prior.json").is_file():
            raise RunError(f"GMMPrior.load: {folder} holds no prior.json. Give a folder written by save().")
        header = read_json(folder / "prior.json")
        if header.get("format") not in (1, FORMAT) or header.get("prior") != "GMMPrior":
            raise RunError(
                f"GMMPrior.load: {folder} holds a {header.get('prior')} of format {header.get('format')}, "
                f"expected a GMMPrior of format {FORMAT}. Write it again with this version of lowdim."
            )
        kept, _ = read_tensors(folder / "prior.safetensors")
        weights, abar = kept["weights"], kept["alphas_cumprod"]
        means = kept["means"].reshape(-1, *header["shape"])
        if header["format"] == 1:
            return cls(weights, means, kept["covariances"], alphas_cumprod=abar)
        prior = cls.__new__(cls)
        prior._settle(weights, means, kept["variances"], kept["axes"], abar)
        return prior
