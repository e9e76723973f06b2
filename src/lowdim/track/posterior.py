"""Draws of the curve given the data, and their average, for frames of which very little is seen.

With few entries per frame the curve that explains them best explains noise, too. A Gibbs sampler draws
curves as probable as the data leave them, and the geodesic nearest to all of them is kept. The model: rows
of [H Y] are normal with variance 1/d, coefficients normal with one variance per component, noise normal; the
variances are drawn as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowdim.track.curve import Curve
from lowdim.track.majorize import descend
from lowdim.track.observations import Masked

__all__ = ["Average", "average", "draw_curves"]

THIN = 10
"""Sweeps of the sampler from one kept draw to the next."""

FIRST = 20
"""Draws that are thrown away, and in which the steps of the angles are fitted."""


@dataclass(frozen=True, eq=False)
class Average:
    """The geodesic in the middle of many.

    Parameters
    ----------
    curve : Curve
    spread : Tensor of shape (T,)
        Mean squared sine of the angles between it and the drawn subspaces: what it is off by, on average.
    """

    curve: Curve
    spread: Tensor


def average(data: Masked, t: Tensor, start: Curve, *, draws: int, source: torch.Generator) -> Average:
    """Return the geodesic nearest to curves that are drawn given the data.

    The one that the projections onto the drawn subspaces are nearest to in the mean: the Bayes estimate for
    the squared sine of the angles.

    Parameters
    ----------
    data : Masked
        Real frames.
    t : Tensor of shape (T,)
        Times in [0, 1].
    start : Curve
        Where to begin, such as the best fit.
    draws : int
        Curves that are kept.
    source : Generator

    Returns
    -------
    Average
    """
    k, T = start.rank, len(t)
    bases = torch.stack([curve.basis(t) for curve in draw_curves(data, t, start, draws=draws, source=source)])
    # All drawn bases of a time side by side, (T, d, draws * k).
    drawn = torch.linalg.qr(bases).Q.permute(1, 2, 0, 3).reshape(T, -1, draws * k)
    left, sizes, _ = torch.linalg.svd(drawn, full_matrices=False)
    # Of complete frames, the best geodesic is nearest to their projections: k such frames for every time.
    frames = (left[..., :k] * sizes[:, None, :k]).mT.reshape(T * k, -1) / draws**0.5
    curve = descend(Masked(frames), t.repeat_interleave(k), start).curve
    overlap = (curve.basis(t).mT @ drawn).square().sum((1, 2)) / (draws * k)
    return Average(curve, 1 - overlap)


def draw_curves(data: Masked, t: Tensor, start: Curve, *, draws: int, source: torch.Generator) -> list[Curve]:
    """Return curves drawn from their distribution given the data, by Gibbs sampling.

    With the rows q_j of [H Y] ~ N(0, 1/d) and coefficients g_i ~ N(0, diag(size)), seen with noise: given
    the others, g_i ~ N(m_i, S_i) with ``S_i^-1 = Z_i^T (sum_j q_j q_j^T) Z_i / noise + 1 / size`` over the
    entries j that are seen, and ``q_j ~ N`` with precision ``d + sum_i (Z_i g_i) (Z_i g_i)^T / noise``.

    Coefficients, rows of [H Y] and variances are drawn from their conditional distributions (normal, normal,
    inverse gamma), the angles by Metropolis steps with the coefficients integrated out. The columns of [H Y]
    of a draw are nearly, not exactly, orthonormal; what counts are the spans.

    Parameters
    ----------
    data, t, start, draws, source
        As in `average`.

    Returns
    -------
    list of Curve
    """
    y, seen = data.y, data.y.new_ones(data.y.shape) if data.weight is None else data.weight
    d, c = start.Q.shape
    k, T, count = start.rank, len(t), float(seen.sum())

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=y.dtype).to(y.device)

    def variance(squares: Tensor, number: float) -> Tensor:
        """Draw a variance given a sum of so many squares (prior 1 / variance), by Wilson and Hilferty."""
        cube = 1 - 2 / (9 * number) + normal(*squares.shape, 1).squeeze(-1) * (2 / (9 * number)) ** 0.5
        return squares / (number * cube.clamp_min(0.1) ** 3)

    def spread(theta: Tensor) -> Tensor:
        """Return Z_i (T, 2k, k): U(t_i) = Q Z_i."""
        angle = t[:, None] * theta
        return torch.cat([torch.diag_embed(angle.cos()), torch.diag_embed(angle.sin())], 1)

    def coefficients_of(theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean of the coefficients, a factor of their precision, and the evidence."""
        Z = spread(theta)
        precision = Z.mT @ gram @ Z / noise + torch.diag(1 / size)
        right = (Z.mT @ seen_by.unsqueeze(2)) / noise
        factor = torch.linalg.cholesky(precision)
        half = torch.linalg.solve_triangular(factor, right, upper=False)
        evidence = half.square().sum() / 2 - factor.diagonal(dim1=1, dim2=2).log().sum()
        return torch.linalg.solve_triangular(factor.mT, half, upper=True), factor, evidence

    Q, theta = start.Q, start.theta
    power = y.square().sum() / count
    size, noise = (power * d / k).expand(k), power / 100
    step = torch.full_like(theta, 0.02)
    kept: list[Curve] = []
    for sweep in range((FIRST + draws) * THIN):
        gram, seen_by = data.normal(Q)
        if data.weight is None:
            gram = Q.mT @ Q
        evidence = coefficients_of(theta)[2]
        for j in range(k):
            other = theta.clone()
            other[j] += step[j] * normal(1)[0]
            there = coefficients_of(other)[2]
            taken = bool(torch.rand(1, generator=source).to(y) < (there - evidence).exp())
            if taken:
                theta, evidence = other, there
            if sweep < FIRST * THIN:
                step[j] *= 1.05 if taken else 0.97
        mean, factor, _ = coefficients_of(theta)
        g = mean + torch.linalg.solve_triangular(factor.mT, normal(T, k, 1), upper=True)
        size = variance(g.square().sum((0, 2)), T)
        turned = (spread(theta) @ g).squeeze(2)  # (T, 2k)
        pairs = (turned.unsqueeze(2) * turned.unsqueeze(1)).reshape(T, c * c)
        precision = (seen.mT @ pairs).view(d, c, c) / noise + d * torch.eye(c, dtype=y.dtype, device=y.device)
        factor = torch.linalg.cholesky(precision)
        rows = torch.cholesky_solve((y.mT @ turned / noise).unsqueeze(2), factor)
        Q = (rows + torch.linalg.solve_triangular(factor.mT, normal(d, c, 1), upper=True)).squeeze(2)
        noise = variance((seen * (y - turned @ Q.mT)).square().sum(), count)
        if sweep >= FIRST * THIN and sweep % THIN == THIN - 1:
            kept.append(Curve(Q, theta))
    return kept
