"""Batched linear systems and least squares, with a stopping rule for every item.

Leading axes are a batch of independent problems: each item takes its own steps
and stops by itself, so its result is the one it would have alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from lowdim.algebra.action import Action
from lowdim.algebra.history import History, Reason
from lowdim.errors import DataError, Diverged, ShapeError

__all__ = ["Solution", "cg", "cgls"]


@dataclass(frozen=True, eq=False)
class Solution:
    """Solution of a batch of systems.

    Parameters
    ----------
    x : Tensor, shape (batch, ...)
        The unknowns.
    steps : Tensor of int64, shape (batch)
        Steps that each item took.
    converged : Tensor of bool, shape (batch)
        Whether the item met the tolerance or the discrepancy.
    residual : Tensor, shape (batch)
        The relative residual that the tolerance refers to, computed anew from x
        at the end (not from the recursion, which flatters).
    misfit : Tensor, shape (batch)
        ``||b - A x||``.
    history : History
        Objective summed, residual maximized over the items.
    """

    x: Tensor
    steps: Tensor
    converged: Tensor
    residual: Tensor
    misfit: Tensor
    history: History


# Steps between two looks at the convergence flags, by device; 5 where it is not named. Items that have
# converged stand still in between, so that this changes the time and nothing else.
_LOOK_EVERY = {"cpu": 1}


class _Watch:
    """Which items still run, and what happened so far."""

    def __init__(self, where: str, *, scale: Tensor, tol: float, discrepancy: Tensor | float | None) -> None:
        self.where, self.tol, self.started = where, tol, perf_counter()
        self.scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        self.discrepancy = discrepancy
        self.active = torch.ones_like(scale, dtype=torch.bool)
        self.noise_met = torch.zeros_like(self.active)
        self.indefinite = torch.zeros_like(self.active)
        self.steps = torch.zeros_like(scale, dtype=torch.int64)
        self.objective: list[Tensor] = []
        self.residual: list[Tensor] = []

    @torch.no_grad()
    def observe(self, residual: Tensor, misfit: Tensor, objective: Tensor) -> None:
        relative = residual / self.scale
        self.steps = torch.where(self.active, len(self.residual), self.steps)
        self.objective.append(objective.sum())
        self.residual.append(relative.amax())
        if self.discrepancy is not None:
            self.noise_met = self.noise_met | (self.active & (misfit <= self.discrepancy))
        self.active = self.active & ~(relative <= self.tol) & ~self.noise_met

    def finished(self, *, now: bool = False) -> bool:
        """Look at the numbers, which on an accelerator is done only now and then, since it has to wait."""
        step = len(self.residual) - 1
        if step % _LOOK_EVERY.get(self.active.device.type, 5) and not now:
            return False
        if not bool(torch.isfinite(self.residual[-1])):
            values = [float(value) for value in self.objective]
            last = next((value for value in reversed(values) if abs(value) < float("inf")), None)
            raise Diverged(
                f"{self.where}: step {step} is no longer finite. Check the map and the right-hand side for "
                f"NaN and overflow; scale the problem or use float64.",
                step=step,
                last=last,
            )
        if bool(self.indefinite.any()):
            item = self.indefinite.nonzero()[0].tolist()
            raise DataError(
                f"{self.where}: the map{f' of item {item}' if item else ''} is not positive definite "
                f"(p^H A p <= 0 by step {step}). Use cgls for a least-squares problem, add a multiple of the "
                f"identity, or use float64 if rounding errors are to blame."
            )
        return not bool(self.active.any())

    def history(self) -> History:
        taken = int(self.steps.max())
        reason: Reason = "tolerance"
        if bool(self.active.any()):
            reason = "steps"
        elif bool(self.noise_met.all()):
            reason = "discrepancy"
        return History(
            objective=tuple(torch.stack(self.objective).tolist()[: taken + 1]),
            residual=tuple(torch.stack(self.residual).tolist()[: taken + 1]),
            seconds=perf_counter() - self.started,
            reason=reason,
        )


class _Items:
    """Arithmetic per item: inner products over the item axes, factors spread over them."""

    def __init__(self, batch_axes: int) -> None:
        self.batch_axes = batch_axes

    def dot(self, u: Tensor, v: Tensor) -> Tensor:
        return (u.conj() * v).real.flatten(self.batch_axes).sum(-1)

    def norm(self, u: Tensor) -> Tensor:
        return torch.linalg.vector_norm(u.detach().flatten(self.batch_axes), dim=-1)

    def times(self, factor: Tensor, u: Tensor) -> Tensor:
        return factor.reshape(factor.shape + (1,) * (u.ndim - factor.ndim)) * u

    def choose(self, active: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return torch.where(active.reshape(active.shape + (1,) * (u.ndim - active.ndim)), u, v)


def _quotient(active: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide where active, give 0 elsewhere, and divide by zero nowhere on the way."""
    safe = active & (denominator != 0)
    ratio = numerator / torch.where(safe, denominator, torch.ones_like(denominator))
    return torch.where(safe, ratio, torch.zeros_like(ratio))


def _enter(
    where: str, rhs: Tensor, action: Action, batch_axes: int | None, tol: float, steps: int | None
) -> int:
    """Check what both solvers take; return the number of batch axes."""
    if not isinstance(rhs, Tensor) or not (rhs.is_floating_point() or rhs.is_complex()):
        kind = rhs.dtype if isinstance(rhs, Tensor) else type(rhs).__name__
        raise DataError(f"{where}: the right-hand side is {kind}, expected a real or complex tensor.")
    if rhs.dtype in (torch.float16, torch.bfloat16):
        raise DataError(f"{where}: {rhs.dtype} is too coarse for conjugate gradients. Convert with .float().")
    if action.dtype is not None and action.dtype != rhs.dtype:
        raise DataError(
            f"{where}: the map is {action.dtype}, the right-hand side {rhs.dtype}. Convert one with .to."
        )
    if rhs.ndim == 0 or rhs.numel() == 0:
        raise ShapeError(f"{where}: got a right-hand side of shape {tuple(rhs.shape)}, expected (batch, m).")
    batch_axes = rhs.ndim - 1 if batch_axes is None else batch_axes
    if not 0 <= batch_axes <= rhs.ndim:
        raise ShapeError(f"{where}: batch_axes={batch_axes} does not fit shape {tuple(rhs.shape)}.")
    if action.shape is not None and (batch_axes != rhs.ndim - 1 or rhs.shape[-1] != action.shape[0]):
        raise ShapeError(
            f"{where}: the map is {action.shape[0]} x {action.shape[1]}, so the right-hand side is "
            f"(batch, {action.shape[0]}) with one vector per item; got {tuple(rhs.shape)}."
        )
    if not tol >= 0 or (steps is not None and steps < 0):
        raise DataError(f"{where}: got tol={tol}, steps={steps}, expected numbers >= 0.")
    return batch_axes


def _checked(where: str, forward: Callable[[Tensor], Tensor], rhs: Tensor) -> Callable[[Tensor], Tensor]:
    """Make a product refuse results that do not have the shape of the right-hand side."""

    def product(x: Tensor) -> Tensor:
        result = forward(x)
        if result.shape != rhs.shape:
            raise ShapeError(
                f"{where}: A x has shape {tuple(result.shape)}, expected that of b, {tuple(rhs.shape)}."
            )
        return result

    return product


def _begin(where: str, start: Tensor | None, like: Tensor) -> Tensor:
    if start is None:
        return torch.zeros_like(like)
    if start.shape != like.shape or start.dtype != like.dtype:
        raise ShapeError(
            f"{where}: start is {tuple(start.shape)} in {start.dtype}, expected {tuple(like.shape)} in "
            f"{like.dtype}."
        )
    return start


def _default_steps(unknowns: Tensor, batch_axes: int) -> int:
    return min(2 * prod(unknowns.shape[batch_axes:]), 1000)


def cg(
    operator: Any,
    rhs: Tensor,
    *,
    start: Tensor | None = None,
    preconditioner: Any = None,
    tol: float = 1e-6,
    discrepancy: float | Tensor | None = None,
    steps: int | None = None,
    batch_axes: int | None = None,
) -> Solution:
    """Solve ``A x = b`` for Hermitian positive definite maps by conjugate gradients.

    Parameters
    ----------
    operator : Tensor, Operator, object with shape and @, or callable
        The map A; a matrix (n, n) is shared by the batch, (batch, n, n) is not.
        A function gets all items at once, in the shape of `rhs`.
    rhs : Tensor, shape (batch, n)
        Right-hand sides b, real or complex; for a function (batch, ...) with
        items of any shape (see `batch_axes`).
    start : Tensor, optional
        First guess, in the shape of `rhs`; zero otherwise.
    preconditioner : same forms as `operator`, optional
        Product with an approximate inverse of A, Hermitian positive definite.
    tol : float
        An item stops when ``||b - A x|| <= tol ||b||``. Below about 1e-6 (float32)
        or 1e-14 (float64) rounding errors may keep it from getting there.
    discrepancy : float or Tensor, shape (batch), optional
        An item also stops when ``||b - A x||`` is at most this, the norm of the
        noise in b.
    steps : int, optional
        At most this many; min(2 n, 1000) otherwise.
    batch_axes : int, optional
        How many leading axes of `rhs` are the batch; all but the last otherwise.

    Returns
    -------
    Solution
        Differentiable through the steps that were taken.

    Raises
    ------
    ShapeError
        If sizes do not fit.
    DataError
        If dtypes do not fit, or A turns out not to be positive definite.
    Diverged
        If the numbers leave the finite range.

    References
    ----------
    .. [1] M. Hestenes, E. Stiefel, "Methods of conjugate gradients for solving
       linear systems", J. Res. Natl. Bur. Stand. 49, 1952.

    Examples
    --------
    >>> import torch
    >>> A = torch.tensor([[4.0, 1.0], [1.0, 3.0]])
    >>> solution = cg(A, torch.tensor([1.0, 2.0]))
    >>> (A @ solution.x).round(decimals=4), int(solution.steps)
    (tensor([1., 2.]), 2)
    """
    action = Action.of(operator, where="cg")
    action.require_square("cg")
    batch_axes = _enter("cg", rhs, action, batch_axes, tol, steps)
    items, push = _Items(batch_axes), _checked("cg", action.forward, rhs)
    approximate_inverse = None if preconditioner is None else Action.of(preconditioner, where="cg").forward
    x = _begin("cg", start, rhs)
    r = rhs - push(x) if start is not None else rhs
    watch = _Watch("cg", scale=items.norm(rhs), tol=tol, discrepancy=discrepancy)

    def observe() -> None:
        # The objective x^H A x / 2 - Re b^H x, by A x = b - r.
        watch.observe(items.norm(r), items.norm(r), -items.dot(x, rhs + r) / 2)

    observe()
    z = r if approximate_inverse is None else approximate_inverse(r)
    p, rho = z, items.dot(r, z)
    for _ in range(_default_steps(rhs, batch_axes) if steps is None else steps):
        if watch.finished():
            break
        q = push(p)
        curvature = items.dot(p, q)
        watch.indefinite = watch.indefinite | (watch.active & (curvature <= 0) & (items.norm(p) > 0))
        alpha = _quotient(watch.active, rho, curvature)
        x = x + items.times(alpha, p)
        r = r - items.times(alpha, q)
        z = r if approximate_inverse is None else approximate_inverse(r)
        rho_before, rho = rho, torch.where(watch.active, items.dot(r, z), rho)
        p = items.choose(watch.active, z + items.times(_quotient(watch.active, rho, rho_before), p), p)
        observe()
    watch.finished(now=True)
    misfit = items.norm(rhs - push(x))
    return Solution(x, watch.steps, ~watch.active, misfit / watch.scale, misfit, watch.history())


def cgls(
    operator: Any,
    rhs: Tensor,
    *,
    adjoint: Any = None,
    damping: float | Tensor = 0.0,
    start: Tensor | None = None,
    preconditioner: Any = None,
    tol: float = 1e-6,
    discrepancy: float | Tensor | None = None,
    steps: int | None = None,
    batch_axes: int | None = None,
) -> Solution:
    """Minimize ``||b - A x||^2 + damping ||x||^2`` by conjugate gradients.

    Works on the normal equations without forming them. From zero, and without
    damping or preconditioner, a rank-deficient problem gets its solution of
    smallest norm.

    Parameters
    ----------
    operator : Tensor, Operator, object with shape and @, or callable
        The map A, of any shape (m, n); a matrix (batch, m, n) differs by item.
    rhs : Tensor, shape (batch, m)
        Data b, real or complex; for a function (batch, ...).
    adjoint : same forms as `operator`, optional
        The adjoint map, needed where `operator` is a function.
    damping : float or Tensor, shape (batch)
        Weight of the ridge, >= 0. (LSQR's ``damp`` is its square root.)
    start : Tensor, optional
        First guess, in the shape of the unknown; zero otherwise.
    preconditioner : same forms as `operator`, optional
        Product with an approximate inverse of ``A^H A + damping``.
    tol : float
        An item stops when the gradient ``||A^H (b - A x) - damping x||`` is at most
        `tol` times ``||A^H b||``.
    discrepancy : float or Tensor, shape (batch), optional
        An item also stops when ``||b - A x||`` is at most this: the norm of the
        noise in b, below which steps fit noise.
    steps : int, optional
        At most this many; twice the number of unknowns, or 1000, otherwise.
    batch_axes : int, optional
        How many leading axes are the batch; all but the last of `rhs` otherwise.

    Returns
    -------
    Solution
        Differentiable through the steps that were taken.

    Raises
    ------
    ShapeError
        If sizes do not fit.
    DataError
        If dtypes do not fit, the adjoint is unknown, or `damping` is negative.
    Diverged
        If the numbers leave the finite range.

    References
    ----------
    .. [1] A. Bjorck, "Numerical methods for least squares problems", SIAM 1996,
       algorithm 7.4.1.

    Examples
    --------
    >>> import torch
    >>> A = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]])
    >>> cgls(A, torch.tensor([1.0, 2.0, 3.0])).x.round(decimals=4)
    tensor([1., 1.])
    """
    action = Action.of(operator, adjoint=adjoint, where="cgls")
    pull = action.require_adjoint("cgls")
    batch_axes = _enter("cgls", rhs, action, batch_axes, tol, steps)
    items, push = _Items(batch_axes), _checked("cgls", action.forward, rhs)
    approximate_inverse = None if preconditioner is None else Action.of(preconditioner, where="cgls").forward
    gradient_at_zero = pull(rhs)
    x = _begin("cgls", start, gradient_at_zero)
    scale = items.norm(gradient_at_zero)
    weight = torch.as_tensor(damping, dtype=scale.dtype, device=scale.device)
    if not bool((weight >= 0).all()):
        raise DataError(f"cgls: damping={damping} is negative. Use numbers >= 0.")
    try:
        weight = weight.expand(scale.shape)
    except RuntimeError as error:
        raise ShapeError(
            f"cgls: damping of shape {tuple(weight.shape)}, expected one number or {tuple(scale.shape)}."
        ) from error
    r = rhs - push(x) if start is not None else rhs
    s = pull(r) - items.times(weight, x) if start is not None else gradient_at_zero
    watch = _Watch("cgls", scale=scale, tol=tol, discrepancy=discrepancy)

    def observe() -> None:
        misfit = items.norm(r)
        watch.observe(items.norm(s), misfit, misfit.square() + weight * items.norm(x).square())

    observe()
    z = s if approximate_inverse is None else approximate_inverse(s)
    p, gamma = z, items.dot(s, z)
    for _ in range(_default_steps(x, batch_axes) if steps is None else steps):
        if watch.finished():
            break
        q = push(p)
        alpha = _quotient(watch.active, gamma, items.dot(q, q) + weight * items.dot(p, p))
        x = x + items.times(alpha, p)
        r = r - items.times(alpha, q)
        s = items.choose(watch.active, pull(r) - items.times(weight, x), s)
        z = s if approximate_inverse is None else approximate_inverse(s)
        gamma_before, gamma = gamma, torch.where(watch.active, items.dot(s, z), gamma)
        p = items.choose(watch.active, z + items.times(_quotient(watch.active, gamma, gamma_before), p), p)
        observe()
    watch.finished(now=True)
    misfit_vector = rhs - push(x)
    gradient = items.norm(pull(misfit_vector) - items.times(weight, x))
    return Solution(
        x, watch.steps, ~watch.active, gradient / watch.scale, items.norm(misfit_vector), watch.history()
    )
