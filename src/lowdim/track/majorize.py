"""Fit one geodesic to frames by block majorization and minimization.

    min over Q, theta, g of  sum_i ||y_i - A_i U(t_i) g_i||^2 + lambda_i ||g_i||^2

Completing the frames with what the present curve predicts gives a majorizer
with complete frames x_i. On it, Q has a closed form (a polar factor), every
angle is moved by a majorizer of its own, a parabola above a cosine, and g_i is
the solution of k equations. No step increases the objective.

The complete case is the algorithm of arXiv 2303.14851; gaps and linear maps
are our extension (we could not read the authors' one).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lowdim.algebra import History
from lowdim.algebra.history import Reason
from lowdim.errors import Diverged
from lowdim.track.curve import Curve, polar
from lowdim.track.observations import Masked, Observations

__all__ = ["Fit", "coefficients", "descend"]

ANGLE_STEPS = 3
"""Steps of the angles between two updates of Q; ten (or the official code's 200) save no update."""

SAFEGUARDS = (5, 15, 30)
"""Iterations at which complete frames are asked for a better angle anywhere in [0, pi]."""

GRID = 128
FIRST = 30
"""Iterations before the tolerance may stop."""


@dataclass(frozen=True, eq=False)
class Fit:
    """A curve, what it explains, and how it was found.

    Parameters
    ----------
    curve : Curve
    g : Tensor of shape (T, k)
        Coefficients.
    loss : float
        ``sum ||y_i - A_i U(t_i) g_i||^2``.
    history : History
        ``objective`` holds the loss with its ridge term, ``residual`` the relative error.
    """

    curve: Curve
    g: Tensor
    loss: float
    history: History


def _turned(curve: Curve, t: Tensor, values: Tensor) -> Tensor:
    """Return ``Z_i^T v_i`` of v_i (T, 2k): what [H Y] sees becomes what U(t_i) sees, (T, k)."""
    cosine, sine = curve.turns(t)
    k = curve.rank
    return cosine * values[:, :k] + sine * values[:, k:]


def _spread(curve: Curve, t: Tensor, g: Tensor) -> Tensor:
    """Return ``Z_i g_i``, the coefficients of [H Y], (T, 2k)."""
    cosine, sine = curve.turns(t)
    return torch.cat([cosine * g, sine * g], dim=1)


def coefficients(curve: Curve, data: Observations, t: Tensor, ridge: Tensor) -> Tensor:
    """Return ``g_i = (U_i^H A_i^H A_i U_i + ridge_i I)^-1 U_i^H A_i^H y_i``.

    Parameters
    ----------
    curve : Curve
    data : Observations
    t : Tensor of shape (T,)
    ridge : Tensor of shape (T,)

    Returns
    -------
    Tensor of shape (T, k)
    """
    gram, right = data.normal(curve.Q)
    right = _turned(curve, t, right)
    if isinstance(data, Masked) and data.mask is None:
        return right / (1 + ridge[:, None])
    cosine, sine = curve.turns(t)
    k = curve.rank
    C, S = cosine[:, :, None], sine[:, :, None]
    hh, hy, yh, yy = gram[:, :k, :k], gram[:, :k, k:], gram[:, k:, :k], gram[:, k:, k:]
    reduced = (
        C * hh * cosine[:, None] + C * hy * sine[:, None] + S * yh * cosine[:, None] + S * yy * sine[:, None]
    )
    reduced = reduced + torch.diag_embed(ridge[:, None].expand(-1, k)).to(reduced.dtype)
    return torch.linalg.solve(reduced, right)


def _angle_terms(curve: Curve, X: Tensor) -> tuple[Tensor, Tensor]:
    """Return r and phi (T, k) of ``||u_j(t_i)^H x_i||^2 = const + r cos(2 theta_j t_i - phi)``."""
    k = curve.rank
    seen = X @ curve.Q.conj()
    h, v = seen[:, :k], seen[:, k:]
    c = (h.abs().square() - v.abs().square()) / 2
    beta = (v * h.conj()).real
    return torch.hypot(c, beta), torch.atan2(beta, c)


def _move_angles(theta: Tensor, t: Tensor, r: Tensor, phi: Tensor) -> Tensor:
    """Maximize ``sum_i r_i cos(2 theta t_i - phi_i)`` by parabolas below the cosines."""
    time_ = t[:, None]
    for _ in range(ANGLE_STEPS):
        z = torch.remainder(2 * theta * time_ - phi + math.pi, 2 * math.pi) - math.pi
        slope = (r * time_ * z.sin()).sum(0)
        # sin(z) / z, which is 1 at 0.
        curvature = 2 * (r * time_.square() * torch.sinc(z / math.pi)).sum(0)
        theta = theta - torch.where(curvature > 0, slope / curvature.clamp_min(1e-300), 0)
    return theta


def _anywhere(theta: Tensor, t: Tensor, r: Tensor, phi: Tensor) -> Tensor:
    """Return the best angle of a grid over [0, pi] where it beats the present one."""
    grid = torch.linspace(0, math.pi, GRID, dtype=theta.dtype, device=theta.device)

    def gain(angle: Tensor) -> Tensor:
        return (r * (2 * angle * t[:, None] - phi).cos()).sum(-2)

    found = torch.stack([gain(angle) for angle in grid])  # (GRID, k)
    best, place = found.max(0)
    return torch.where(best > gain(theta), grid[place], theta)


def _sweep(curve: Curve, X: Tensor, g: Tensor, t: Tensor, weight: Tensor, *, anywhere: bool) -> Curve:
    """Move Q, then the angles, on complete frames."""
    Q = polar(X.mT @ _spread(curve, t, g).conj())
    curve = Curve(Q, curve.theta)
    r, phi = _angle_terms(curve, X)
    r = r * weight[:, None]
    theta = _anywhere(curve.theta, t, r, phi) if anywhere else curve.theta
    return Curve(Q, _move_angles(theta, t, r, phi))


def descend(
    data: Observations,
    t: Tensor,
    start: Curve,
    *,
    ridge: float = 1e-6,
    steps: int = 400,
    tol: float = 1e-8,
    accelerate: bool = True,
    callback: Callable[[int, float], None] | None = None,
) -> Fit:
    """Minimize over the curve and the coefficients.

    Parameters
    ----------
    data : Observations
    t : Tensor of shape (T,)
        Times in [0, 1].
    start : Curve
    ridge : float
        Of the coefficients, as a fraction of what a unit vector leaves in the observations of its frame.
    steps : int
        Largest number of iterations.
    tol : float
        Stop when the objective falls by less than this fraction (not before the 30th iteration).
    accelerate : bool
        Extrapolate Q and theta (Nesterov); a step that does not help is taken again without.
    callback : callable, optional
        Called with (iteration, relative error).

    Returns
    -------
    Fit

    Raises
    ------
    Diverged
        If the objective leaves the finite numbers.
    """
    clock = time.perf_counter()
    complete = isinstance(data, Masked) and data.mask is None
    # Complete frames determine their coefficients, however few they are.
    lam = ridge * data.share().clamp_min(1e-12) * (not complete)
    weight = 1 / (1 + lam)
    energy = float(data.energy())

    def look(curve: Curve) -> tuple[Tensor, Tensor, float, float]:
        """Return coefficients, completed frames, objective and loss at a curve."""
        g = coefficients(curve, data, t, lam)
        X, loss = data.complete(_spread(curve, t, g) @ curve.Q.mT)
        return g, X, float(loss + (lam[:, None] * g.abs().square()).sum()), float(loss)

    best, best_look = start, look(start)
    objective, residual = [best_look[2]], [best_look[3]]
    previous, age = start, 1.0
    reason: Reason = "steps"
    for step in range(1, steps + 1):
        at, seen = best, best_look
        after = (1 + math.sqrt(1 + 4 * age * age)) / 2
        weight_back = (age - 1) / after
        if accelerate and weight_back > 0:
            there = Curve(
                polar(best.Q + weight_back * (best.Q - previous.Q)),
                best.theta + weight_back * (best.theta - previous.theta),
            )
            ahead = look(there)
            if ahead[2] <= objective[-1]:
                at, seen, age = there, ahead, after
            else:
                age = 1.0  # too far: go on from the best curve, slowly again
        else:
            age = after
        found = _sweep(at, seen[1], seen[0], t, weight, anywhere=complete and step in SAFEGUARDS)
        result = look(found)
        if not math.isfinite(result[2]):
            raise Diverged(
                f"descend: iteration {step} left the finite numbers (last objective {objective[-1]:.4g}). "
                "Look for huge entries, or use float64.",
                step=step,
                last=objective[-1],
            )
        previous, best, best_look = best, found, result
        objective.append(result[2])
        residual.append(result[3])
        if callback is not None:
            callback(step, math.sqrt(max(result[3], 0.0) / energy) if energy else 0.0)
        floor = torch.finfo(t.dtype).eps ** 2 * energy
        if objective[-1] <= floor or (step >= FIRST and objective[-2] - objective[-1] < tol * objective[-2]):
            reason = "tolerance"
            break
    history = History(
        objective=tuple(objective),
        residual=tuple(math.sqrt(max(value, 0.0) / energy) if energy else 0.0 for value in residual),
        seconds=time.perf_counter() - clock,
        reason=reason,
    )
    return Fit(best, best_look[0], best_look[3], history)
