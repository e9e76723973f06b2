"""Evaluate: several solvers on one set of images, in a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from lowdim.errors import DataError
from lowdim.inverse.metrics import psnr, ssim
from lowdim.inverse.noise import ImageNoise, Seeds
from lowdim.inverse.operators import as_operator
from lowdim.inverse.result import Reconstruction

__all__ = ["evaluate"]


def evaluate(
    solvers: Mapping[str, Callable[..., Reconstruction]],
    operator: Any,
    images: Tensor,
    *,
    sigma: float | None = None,
    seed: Seeds = 0,
    batch: int = 64,
) -> pd.DataFrame:
    """Measure images, let every solver reconstruct them, and compare with the truth.

    Parameters
    ----------
    solvers : mapping of str to solver
        Called as ``solver(y, operator, sigma=, seed=)``.
    operator : object with A(x), or function
        See `as_operator`.
    images : Tensor, shape (N, C, H, W)
        In the operator's range of values.
    sigma : float, optional
        Standard deviation of the noise that is added; the operator's, or none, otherwise.
    seed : int, sequence of int, or None
        Of noise and solvers, one per image.
    batch : int
        Images at a time.

    Returns
    -------
    pandas.DataFrame
        One row per solver: mean PSNR (dB) and SSIM of the images, PSNR of their pooled mean square error,
        mean squared residual over sigma^2, network and decoder calls per image, steps of optimizers, seconds
        per image.

    Raises
    ------
    DataError
        If there is no solver or no image.

    Examples
    --------
    >>> from lowdim.inverse import DCDP, DPS, GMMPrior, Pooling
    >>> images = torch.randn(300, 1, 4, 4, generator=torch.Generator().manual_seed(0)) / 4
    >>> prior = GMMPrior.fit(images, components=2)
    >>> solvers = {"dcdp": DCDP(prior, steps=10), "dps": DPS(prior, steps=50)}
    >>> evaluate(solvers, Pooling(2), images[:5], sigma=0.02)["network calls"].tolist()
    [10, 50]
    """
    if not solvers or images.ndim != 4 or len(images) == 0 or batch < 1:
        raise DataError(
            f"evaluate: got {len(solvers)} solvers, images {tuple(images.shape)} and batch={batch}; "
            "expected at least one solver, images (N, C, H, W) and a batch of 1 or more."
        )
    A = as_operator(operator)
    sigma = A.noise_sigma if sigma is None else sigma
    seeds = ImageNoise(seed, batch=len(images)).seeds
    rows = []
    for name, solver in solvers.items():
        found = []
        for start in range(0, len(images), batch):
            part = slice(start, start + batch)
            y = A.measure(images[part], sigma=sigma, seed=seeds[part])
            found.append(solver(y, A, sigma=sigma, seed=seeds[part]))
        rows.append({"solver": name, **_figures(found, images, A.value_range)})
    return pd.DataFrame(rows).set_index("solver")


def _figures(
    found: list[Reconstruction], images: Tensor, value_range: tuple[float, float]
) -> dict[str, float | int]:
    low, high = value_range
    image = torch.cat([part.image.detach() for part in found]).to(images.device)
    pooled = (image.clamp(low, high) - images).square().mean() / (high - low) ** 2
    return {
        "psnr": float(psnr(image, images, value_range=value_range).mean()),
        "ssim": float(ssim(image, images, value_range=value_range).mean()),
        "pooled psnr": float(-10 * torch.log10(pooled.clamp(min=1e-20))),
        "residual": float(torch.cat([part.residual for part in found]).mean()),
        "network calls": found[0].network_calls,
        "decoder calls": found[0].decoder_calls,
        "iterations": float(torch.cat([part.iterations.float() for part in found]).mean()),
        "seconds": sum(part.seconds for part in found) / len(images),
    }
