"""Consistency: images near given ones that explain the measurements.

Every image of a batch takes its own steps and stops by itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lowdim.algebra.solve import cg, cgls
from lowdim.errors import DataError, Diverged, LowdimWarning
from lowdim.inverse.problem import Problem

__all__ = ["SOLVERS", "Consistent", "Solver", "adam", "gauss_newton", "prox", "pseudo_inverse", "sgd"]

Solver = Literal["auto", "prox", "sgd", "adam", "gn"]

SOLVERS = ("auto", "prox", "sgd", "adam", "gn")

_LOOK_EVERY = 5
"""Steps between two looks at which images are done; those stand still in between."""

_BLOWN_UP = 100.0
"""A mean squared residual so many times the first (10 times in the norm) means that a step is too long."""


_SMALL = 1e-3
"""Share of an image's first gradient below which Adam takes shorter steps: its whole ones would follow
rounding where a pixel has hardly any gradient, and rounding depends on the batch."""


class Consistent(NamedTuple):
    """Images and the steps they took.

    Parameters
    ----------
    x : Tensor, shape (B, C, H, W)
    iterations : Tensor of int, shape (B,)

    Examples
    --------
    >>> x, iterations = Consistent(torch.zeros(2, 1, 4, 4), torch.tensor([3, 5]))
    >>> iterations.tolist()
    [3, 5]
    """

    x: Tensor
    iterations: Tensor


def _spread(factor: Tensor, x: Tensor) -> Tensor:
    return factor.reshape(-1, *(1,) * (x.ndim - 1))


def _none(x: Tensor) -> Tensor:
    return torch.zeros(len(x), dtype=torch.int64, device=x.device)


def prox(problem: Problem, z: Tensor, *, rho: float, tol: float = 1e-4, max_iter: int = 60) -> Consistent:
    """Return ``argmin_x ||A x - y||^2 + rho ||x - z||^2`` for a linear A.

    Parameters
    ----------
    problem : Problem
    z : Tensor, shape (B, C, H, W)
        Where the images should stay near.
    rho : float
        ``sigma^2 / s^2`` for a z with errors of standard deviation s.
    tol : float
        Relative tolerance of the conjugate gradients, used where there is no closed form.
    max_iter : int
        Their steps at most.

    Returns
    -------
    Consistent

    Raises
    ------
    DataError
        If A is nonlinear or rho not > 0.

    Examples
    --------
    >>> from lowdim.inverse import Pooling
    >>> problem = Problem.of(torch.ones(1, 1, 1, 1), Pooling(2), sigma=0.1)
    >>> prox(problem, torch.zeros(1, 1, 2, 2), rho=0.25).x.flatten()
    tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """
    operator = problem.operator
    if not operator.linear:
        raise DataError(f"{problem.where}: 'prox' is for linear operators. Use solver='adam' or 'gn'.")
    if not rho > 0:
        raise DataError(f"{problem.where}: rho={rho} must be > 0.")
    if operator.closed_form:
        return Consistent(operator.prox_l2(z, problem.y, 1 / rho), _none(z))

    def normal(x: Tensor) -> Tensor:
        return operator.A_adjoint(operator.A(x)) + rho * x

    rhs = operator.A_adjoint(problem.y) + rho * z
    found = cg(normal, rhs, start=z, tol=tol, steps=max_iter, batch_axes=1)
    return Consistent(found.x, found.steps)


def pseudo_inverse(problem: Problem, *, tol: float = 1e-4, max_iter: int = 200) -> Tensor:
    """Return the image of smallest norm that explains the data best, shape (B, C, H, W), A linear.

    Parameters
    ----------
    problem : Problem
    tol, max_iter
        Of the conjugate gradients.

    Returns
    -------
    Tensor, shape (B, C, H, W)

    Raises
    ------
    DataError
        If A is nonlinear.

    Examples
    --------
    >>> from lowdim.inverse import Pooling
    >>> pseudo_inverse(Problem.of(torch.ones(1, 1, 1, 1), Pooling(2))).flatten().round(decimals=3)
    tensor([1., 1., 1., 1.])
    """
    operator = problem.operator
    if not operator.linear:
        raise DataError(f"{problem.where}: a nonlinear operator has no pseudo-inverse. Give x_init.")
    found = cgls(operator.A, problem.y, adjoint=operator.A_adjoint, tol=tol, steps=max_iter, batch_axes=1)
    return found.x


def norm_squared(problem: Problem, *, steps: int = 20) -> float:
    """Return ``||A||^2`` of a linear operator by power iteration, a little from below.

    Parameters
    ----------
    problem : Problem
    steps : int
        Of the iteration.

    Returns
    -------
    float
        The largest over the batch.
    """
    operator = problem.operator
    x = torch.randn(problem.shape[1:], generator=torch.Generator().manual_seed(0)).to(problem.y.device)
    x = x.to(problem.dtype).expand(problem.shape)
    size = torch.ones(len(x), device=x.device)
    for _ in range(steps):
        x = operator.A_adjoint(operator.A(x / _spread(size, x)))
        size = torch.linalg.vector_norm(x.flatten(1), dim=1).clamp(min=1e-30)
    return float(size.max())


def sgd(
    problem: Problem,
    x: Tensor,
    *,
    max_iter: int = 100,
    step: float = 1.0,
    momentum: float = 0.9,
    tau: float | None = 1.0,
    norm: float | None = None,
) -> Consistent:
    """Follow the gradient of ``||A x - y||^2 / 2`` with momentum from `x` for a few steps.

    Few steps stay near x; many fit the noise.

    Parameters
    ----------
    problem : Problem
        With a linear operator.
    x : Tensor, shape (B, C, H, W)
        The start.
    max_iter : int
        Steps at most.
    step : float
        Length of a step as a multiple of ``1 / ||A||^2``.
    momentum : float
        Share of the last step that is kept.
    tau : float or None
        An image stops when its mean squared residual is at most ``tau^2 sigma^2``; None never stops.
    norm : float, optional
        ``||A||^2``, where it is known.

    Returns
    -------
    Consistent

    Raises
    ------
    Diverged
        If the residual grows tenfold: the step is too long.

    References
    ----------
    Li et al., arXiv 2403.06054, algorithm 1: the released code gives the step as a rate on the mean squared
    error, which depends on the number of measurements.
    """
    operator = problem.operator
    if not operator.linear:
        raise DataError(f"{problem.where}: 'sgd' is for linear operators. Use solver='adam' or 'gn'.")
    norm = norm_squared(problem) if norm is None else norm
    velocity = torch.zeros_like(x)

    def advance(x: Tensor, active: Tensor) -> Tensor:
        nonlocal velocity
        velocity = momentum * velocity - step / norm * operator.A_adjoint(operator.A(x) - problem.y)
        return torch.where(active, x + velocity, x)

    text = (
        f"The step is {step:g} / ||A||^2 with ||A||^2 = {norm:.4g}, and steps above 2 / ||A||^2 diverge "
        "without momentum. Lower step."
    )
    return _descend(problem, x, advance, max_iter=max_iter, tau=tau, remedy=text)


def adam(
    problem: Problem,
    x: Tensor,
    *,
    max_iter: int = 100,
    lr: float = 0.02,
    tau: float | None = 1.0,
) -> Consistent:
    """Follow Adam on ``||A(x) - y||^2`` from `x`, for any differentiable A.

    Parameters
    ----------
    problem : Problem
    x : Tensor, shape (B, C, H, W)
        The start.
    max_iter : int
        Steps at most.
    lr : float
        Size of a step in the units of the image.
    tau : float or None
        As of `sgd`.

    Returns
    -------
    Consistent

    Raises
    ------
    DataError
        If A has no gradient.
    Diverged
        If the residual grows tenfold.
    """
    first, second, count = torch.zeros_like(x), torch.zeros_like(x), 0
    floor = torch.zeros(())

    def advance(x: Tensor, active: Tensor) -> Tensor:
        nonlocal first, second, count, floor
        count += 1
        gradient = _gradient(problem, x, check=count == 1)
        if count == 1:
            floor = _spread(_SMALL * gradient.square().flatten(1).mean(1).sqrt() + 1e-8, x)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient.square()
        size = (second / (1 - 0.999**count)).sqrt()
        return torch.where(active, x - lr * (first / (1 - 0.9**count)) / (size + floor), x)

    remedy = f"Adam's lr={lr:g} is too large for this operator. Lower it, or use solver='gn'."
    return _descend(problem, x, advance, max_iter=max_iter, tau=tau, remedy=remedy)


def _gradient(problem: Problem, x: Tensor, *, check: bool) -> Tensor:
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        objective = problem.misfit(leaf).sum()
        if not objective.requires_grad:
            raise DataError(
                f"{problem.where}: A(x) does not depend on x in a way that torch can follow. Use torch "
                "functions in A, without .detach() or numpy."
            )
        (gradient,) = torch.autograd.grad(objective, leaf, allow_unused=True)
    if gradient is None or (check and not bool(gradient.any()) and bool(objective > 0)):
        raise DataError(
            f"{problem.where}: the gradient of ||A(x) - y||^2 is zero everywhere although the data are not "
            "met. A rounds or thresholds its input, or x_init is a stationary point: give another x_init."
        )
    return gradient


def _descend(
    problem: Problem,
    x: Tensor,
    advance: Callable[[Tensor, Tensor], Tensor],
    *,
    max_iter: int,
    tau: float | None,
    remedy: str,
) -> Consistent:
    """Advance every image until it meets the data up to the noise."""
    goal = -1.0 if tau is None else tau**2 * problem.needed_sigma() ** 2
    with torch.no_grad():
        misfit = problem.mean_misfit(x)
        first, best = misfit, misfit
        iterations = _none(x)
        for count in range(max_iter):
            active = misfit > goal
            if count % _LOOK_EVERY == 0:
                _check_growth(problem, misfit, first, count, remedy)
                if not bool(active.any()):
                    break
            x = advance(x, _spread(active, x))
            iterations = iterations + active
            misfit = torch.where(active, problem.mean_misfit(x), misfit)
            best = torch.minimum(best, misfit)
        _check_growth(problem, misfit, first, max_iter, remedy)
    return Consistent(x, iterations)


def _check_growth(problem: Problem, misfit: Tensor, first: Tensor, step: int, remedy: str) -> None:
    floor = (problem.sigma or 0.0) ** 2
    if bool((misfit <= _BLOWN_UP * first.clamp(min=floor) + 1e-6).all()):
        return
    raise Diverged(
        f"{problem.where}: the residual of the data consistency grew more than tenfold by step {step}. "
        f"{remedy}",
        step=step,
        last=float(first.max()),
    )


def gauss_newton(
    problem: Problem,
    z: Tensor,
    *,
    rho: float,
    max_iter: int = 6,
    inner: int = 20,
    tau: float | None = 1.0,
) -> Consistent:
    """Minimize ``||A(x) - y||^2 + rho ||x - z||^2`` from `z` for any differentiable A.

    Every step solves the problem with A replaced by its tangent at x, by conjugate gradients on products
    with the Jacobian and its adjoint; a step that does not lower an image's objective is halved.

    Parameters
    ----------
    problem : Problem
    z : Tensor, shape (B, C, H, W)
        Start, and where the images should stay near.
    rho : float
        As of `prox`.
    max_iter : int
        Outer steps at most.
    inner : int
        Steps of the conjugate gradients in each.
    tau : float or None
        As of `sgd`; an image that meets its data takes no further step.

    Returns
    -------
    Consistent
        `iterations` counts the inner steps.
    """
    A, goal = problem.operator.A, -1.0 if tau is None else tau**2 * problem.needed_sigma() ** 2
    x, iterations = z, _none(z)

    def objective(x: Tensor) -> Tensor:
        return problem.misfit(x) + rho * (x - z).square().flatten(1).sum(1)

    value = objective(x)
    for _ in range(max_iter):
        active = problem.mean_misfit(x) > goal
        if not bool(active.any()):
            break
        there, pull = torch.func.vjp(A, x)[:2]

        def normal(u: Tensor, x: Tensor = x, pull: Callable[..., tuple[Tensor]] = pull) -> Tensor:
            return pull(torch.func.jvp(A, (x,), (u,))[1])[0] + rho * u

        rhs = pull(problem.y - there)[0] + rho * (z - x)
        found = cg(normal, torch.where(_spread(active, x), rhs, 0), tol=1e-5, steps=inner, batch_axes=1)
        iterations = iterations + found.steps
        x, value = _halved(objective, x, value, found.x)
    return Consistent(x, iterations)


def _halved(
    objective: Callable[[Tensor], Tensor], x: Tensor, value: Tensor, step: Tensor
) -> tuple[Tensor, Tensor]:
    """Take the longest of step, step/2, step/4, ... that lowers the objective of an image, or none."""
    length = torch.ones_like(value)
    for _ in range(5):
        tried = x + _spread(length, x) * step
        worse = ~(objective(tried) <= value)
        if not bool(worse.any()):
            break
        length = torch.where(worse, length / 2, length)
    tried = x + _spread(length, x) * step
    there = objective(tried)
    better = there <= value
    return torch.where(_spread(better, x), tried, x), torch.where(better, there, value)


def solver_for(problem: Problem, solver: str) -> str:
    """Return the solver that "auto" stands for: 'prox' for a linear operator, else 'adam'."""
    if solver not in SOLVERS:
        raise DataError(f"{problem.where}: solver={solver!r} is unknown. Use one of {', '.join(SOLVERS)}.")
    if solver == "auto":
        solver = "prox" if problem.operator.linear else "adam"
    if solver in ("prox", "gn"):
        problem.needed_sigma()
    return solver


def warn_unmet(problem: Problem, residual: Tensor, *, tau: float = 1.0, factor: float = 4.0) -> None:
    """Warn where the data stay unexplained: mean squared residuals above `factor` tau^2 sigma^2."""
    if not problem.sigma:
        return
    unmet = residual > factor * tau**2
    if bool(unmet.any()):
        warnings.warn(
            f"{problem.where}: {int(unmet.sum())} of {len(residual)} images do not meet their data (mean "
            "squared "
            f"residual up to {float(residual.max()):.3g} sigma^2). Check operator, sigma and the range of "
            "values; otherwise the prior does not know such images.",
            LowdimWarning,
            stacklevel=3,
        )
