"""Frames of a subspace that turns along a known geodesic."""

import math

import numpy as np
import torch

from lowdim.track import Curve


def planted(
    seed: int,
    *,
    d: int = 30,
    k: int = 2,
    frames: int = 60,
    missing: float = 0.0,
    noise: float = 0.02,
    dtype: torch.dtype = torch.float64,
    t: torch.Tensor | None = None,
) -> tuple[Curve, torch.Tensor, np.ndarray]:
    """Return the curve, the times in [0, 1], and the frames with NaN in their gaps."""
    source = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(d, 2 * k, generator=source, dtype=dtype))[0]
    theta = (0.3 + 0.7 * torch.rand(k, generator=source, dtype=torch.float64)) * math.pi / 2
    t = torch.linspace(0, 1, frames, dtype=torch.float64) if t is None else t
    curve = Curve(Q, theta)
    g = torch.randn(len(t), k, generator=source, dtype=dtype)
    X = torch.einsum("tdk,tk->td", curve.basis(t), g)
    X = X + noise * torch.randn(X.shape, generator=source, dtype=dtype)
    X = X.numpy()
    X[(torch.rand(X.shape, generator=source) < missing).numpy()] = np.nan
    return curve, t, X


def distance(basis: np.ndarray, curve: Curve, t: torch.Tensor) -> float:
    """Return the mean squared sine of the angles to the planted subspaces."""
    true = curve.basis(t).numpy()
    overlap = np.abs(np.einsum("tdk,tdl->tkl", basis.conj(), true)) ** 2
    return float(1 - (overlap.sum((1, 2)) / curve.rank).mean())
