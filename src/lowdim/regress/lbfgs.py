"""L-BFGS: many smooth functions minimized side by side, each with its own steps and its own end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Minimum", "minimize"]

MEMORY = 10
"""Pairs of steps and gradient changes that are remembered."""

ARMIJO, WOLFE = 1e-4, 0.9
TRIALS = 30
"""Points that one line search looks at, at most."""

Function = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Parameters (C, P) and which problems these are (C,) -> values (C,), gradients (C, P)."""


@dataclass(frozen=True, eq=False)
class Minimum:
    """Where the search has ended, problem by problem.

    Parameters
    ----------
    theta : Tensor of shape (C, P)
    value : Tensor of shape (C,)
    steps : Tensor of int of shape (C,)
    converged : Tensor of bool of shape (C,)
    history : list of list of float
        Values after every step.
    """

    theta: Tensor
    value: Tensor
    steps: Tensor
    converged: Tensor
    history: list[list[float]]


def minimize(function: Function, theta: Tensor, *, tol: float, flat: float, max_iter: int) -> Minimum:
    """Minimize C functions of P parameters by L-BFGS with a weak Wolfe line search.

    The direction is that of the compact form ([1]_ theorem 2.2): two products with the remembered pairs in
    place of a recursion, so that the batch costs few calls. The line search bisects ([2]_ algorithm 2.6).

    Parameters
    ----------
    function : callable
        ``function(theta, at)`` with the numbers ``at`` of the problems whose parameters are given: those at
        rest are asked no more.
    theta : Tensor of shape (C, P)
        Where to start.
    tol : float
        Rest: no entry of the gradient is larger.
    flat : float
        Rest, too: five steps have lowered the value by no more than this fraction of it. So is a point from
        which the line search finds no lower one.
    max_iter : int
        Most steps.

    Returns
    -------
    Minimum

    References
    ----------
    .. [1] R. Byrd, J. Nocedal, R. Schnabel, "Representations of quasi-Newton matrices and their use in
    limited
       memory methods", Math. Program. 63, 1994.
    .. [2] A. Lewis, M. Overton, "Nonsmooth optimization via quasi-Newton methods", Math. Program. 141, 2013.

    Examples
    --------
    >>> found = minimize(lambda x, at: (x.square().sum(1), 2 * x), torch.ones(1, 2).double(),
    ...                  tol=1e-8, flat=0.0, max_iter=50)
    >>> bool(found.converged), bool(found.value < 1e-12)
    (True, True)
    """
    C, P = theta.shape
    at = torch.arange(C, device=theta.device)
    value, gradient = function(theta, at)
    final, values = theta.clone(), value.clone()
    steps, converged = at.new_zeros(C), at.new_zeros(C, dtype=torch.bool)
    history = [[float(v)] for v in value]
    S, Y = theta.new_zeros(C, 0, P), theta.new_zeros(C, 0, P)
    stuck = torch.zeros_like(converged)
    for step in range(max_iter + 1):
        rest = gradient.abs().amax(1) <= tol
        if step >= 5:
            before = torch.tensor(
                [history[i][-6] for i in at.tolist()], dtype=value.dtype, device=value.device
            )
            rest = rest | (before - value <= flat * value.abs())
        rest = rest | stuck  # no lower point was found: rounding errors are all that is left
        ended = rest if step < max_iter else torch.ones_like(rest)
        if bool(ended.any()):
            done = at[ended]
            final[done], values[done] = theta[ended], value[ended]
            steps[done], converged[done] = step, rest[ended]
            left = ~ended
            if not bool(left.any()):
                break
            at, theta, value, gradient, S, Y = (x[left] for x in (at, theta, value, gradient, S, Y))
        direction = -_inverse_hessian(S, Y, gradient)
        slope = (direction * gradient).sum(1)
        lost = slope >= 0
        if bool(lost.any()):  # rounding errors: begin anew from the steepest descent
            direction = torch.where(lost[:, None], -gradient, direction)
            S, Y = S * ~lost[:, None, None], Y * ~lost[:, None, None]
            slope = (direction * gradient).sum(1)
        first = 1 / gradient.norm(dim=1).clamp_min(1) if step == 0 else torch.ones_like(value)
        moved, now, turned, stuck = _search(function, at, theta, value, direction, slope, first)
        s, y = moved - theta, turned - gradient
        fit = (s * y).sum(1) > 1e-12 * s.norm(dim=1) * y.norm(dim=1)
        S = torch.cat([S[:, -MEMORY + 1 :], (s * fit[:, None])[:, None]], 1)
        Y = torch.cat([Y[:, -MEMORY + 1 :], (y * fit[:, None])[:, None]], 1)
        theta, value, gradient = moved, now, turned
        for problem, reached in zip(at.tolist(), value.tolist(), strict=True):
            history[problem].append(reached)
    return Minimum(final, values, steps, converged, history)


def _inverse_hessian(S: Tensor, Y: Tensor, g: Tensor) -> Tensor:
    """Return H g of the compact form; pairs of zeros do nothing."""
    if S.shape[1] == 0:
        return g
    SY = S @ Y.mT
    D = SY.diagonal(dim1=1, dim2=2)
    used = D > 0
    R = torch.triu(SY) + torch.diag_embed((~used).to(SY.dtype))
    YY = Y @ Y.mT
    size = YY.diagonal(dim1=1, dim2=2)
    # The scale of the latest pair in use.
    order = torch.arange(1, S.shape[1] + 1, device=S.device) * used
    latest = order.argmax(1, keepdim=True)
    gamma = torch.where(
        used.any(1, keepdim=True), D.gather(1, latest) / size.gather(1, latest).clamp_min(1e-300), 1
    )
    a, b = S @ g.unsqueeze(-1), Y @ g.unsqueeze(-1)
    u = torch.linalg.solve_triangular(R, a, upper=True)
    inner = D.unsqueeze(-1) * u + gamma.unsqueeze(-1) * (YY @ u - b)
    t = torch.linalg.solve_triangular(R.mT, inner, upper=False)
    return gamma * g + (S.mT @ t - gamma.unsqueeze(-1) * (Y.mT @ u)).squeeze(-1)


def _search(
    function: Function,
    at: Tensor,
    theta: Tensor,
    value: Tensor,
    direction: Tensor,
    slope: Tensor,
    first: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the points of a weak Wolfe line search, values and gradients there, and who found none."""
    low, high, step = torch.zeros_like(value), torch.full_like(value, torch.inf), first.clone()
    found, reached, turned = theta.clone(), value.clone(), torch.zeros_like(theta)
    open_ = torch.arange(len(value), device=value.device)
    stuck = torch.ones_like(value, dtype=torch.bool)
    noise = 4 * torch.finfo(value.dtype).eps * value.abs()
    for _ in range(TRIALS):
        point = theta[open_] + step[open_, None] * direction[open_]
        now, gradient = function(point, at[open_])
        high_enough = now > value[open_] + ARMIJO * step[open_] * slope[open_] + noise[open_]
        fell = ~high_enough & now.isfinite()
        flat = (gradient * direction[open_]).sum(1) >= WOLFE * slope[open_]
        good = fell & flat
        # A point that fell is kept in any case; a better one may replace it.
        keep = open_[fell]
        found[keep], reached[keep], turned[keep] = point[fell], now[fell], gradient[fell]
        stuck[keep] = False
        high[open_[~fell]] = step[open_[~fell]]
        low[keep] = step[keep]
        open_ = open_[~good]
        if not len(open_):
            break
        wide = high[open_].isinf()
        step[open_] = torch.where(wide, 2 * low[open_], (low[open_] + high[open_]) / 2)
    if bool(stuck.any()):
        _, gradient = function(theta[stuck], at[stuck])
        turned[stuck] = gradient
    return found, reached, turned, stuck
