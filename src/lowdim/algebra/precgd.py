"""Gradient descent for Blast: the paper's preconditioned steps, and plain ones with safe step sizes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lowdim.algebra.als import balance, start_factors
from lowdim.algebra.history import History, Reason
from lowdim.algebra.problem import Problem
from lowdim.algebra.seeds import Seed, gaussian, generator
from lowdim.algebra.sweeps import Factors, left_factors, product, rows_of
from lowdim.errors import DataError, Diverged

__all__ = ["fit", "gradient_descent", "small_start"]

_WINDOW = 5


def small_start(problem: Problem, rank: int, blocks: tuple[int, int], *, preset: str, seed: Seed) -> Factors:
    """Return the small random start of a preset.

    "paper": U, V with deviation 1e-2, S uniform on (0, 1). "official": U, V with
    deviation 1e-3 / sqrt(r), S standard normal (for a matrix of unit deviation).
    """
    A = problem.matrix
    (m, n), (b1, b2) = A.shape, blocks
    source = generator(seed)

    def draw(*shape: int) -> Tensor:
        return gaussian(shape, seed=source, dtype=A.dtype, device=A.device)

    deviation = 1e-2 if preset == "paper" else 1e-3 * rank**-0.5
    U = draw(b1, m // b1, rank) * deviation
    V = draw(b2, rank, n // b2) * deviation
    S = draw(rank, b1, b2)
    if preset == "paper":
        S = torch.special.ndtr(S)  # a normal number's distribution function is uniform on (0, 1)
    return U, S, V


def gradient_descent(
    problem: Problem,
    factors: Factors,
    *,
    steps: int,
    tol: float,
    preset: str | None = "official",
    delta: float = 0.1,
    rate: float | None = None,
    end: float | None = None,
    normalize: bool = False,
    nonnegative: bool = False,
    shrink: float = 0.0,
    callback: Callable[[int, float], Any] | None = None,
) -> tuple[Factors, History]:
    r"""Minimize ``||A - X||_F^2 / 2`` by steps in U, then V, then S, each seeing the newest others.

    With a preset, every gradient is multiplied by the inverse of its (damped)
    Gram matrix, with the damping ``d = delta * sqrt(loss)`` renewed before every
    substep and a rate that falls linearly. Without one, plain steps 1/L are
    taken, L the largest eigenvalue of the Gram matrix: the loss cannot grow.

    Parameters
    ----------
    problem : Problem
        Without a second moment. With "official" scaled by the caller to unit deviation.
    factors : (U, S, V)
    steps : int
        Number T of steps.
    tol : float
        Plain descent stops when the objective falls by less than this fraction
        over 5 steps; the presets follow their schedule to its end.
    preset : {"paper", "official", None}
        "paper": rate 1 to 0, loss = ||E||^2 / 2. "official": the released code, whose
        loss lacks the 1/2: rate 2 to 0.02, loss = ||E||^2.
    delta : float
        Damping factor.
    rate, end : float, optional
        First and last rate, other than the preset's.
    normalize : bool
        After every step scale the columns of U_i and rows of V_j to norm 1, as the official
        switch does. The scale is moved into S here, so that the product does not change.
    nonnegative : bool
        Set negative couplings to zero after every step.
    shrink : float
        Group-sparse couplings: after every step the b1 x b2 couplings of a component are
        multiplied by ``max(0, 1 - rate * shrink / ||S_c||_F)``, so whole components vanish.
    callback : callable, optional
        Called as ``callback(step, relative_error)``.

    Returns
    -------
    factors, history

    Raises
    ------
    Diverged
        If the objective leaves the finite numbers.

    References
    ----------
    BLAST, arXiv 2410.21262 (preconditioned gradient descent); the official schedule after
    the released ``blast_ops.py``: linear from 1 to 0.01 over T steps, on the doubled gradient.
    """
    A = problem.matrix
    (b1, p, r), b2 = factors[0].shape, factors[2].shape[0]
    rows, columns = A.reshape(b1, p, -1), A.reshape(b1 * p, b2, -1).permute(1, 0, 2)
    official = preset == "official"
    first = rate if rate is not None else 2.0 if official else 1.0
    last = end if end is not None else 0.02 if official else 0.0
    halves = 1.0 if official else 0.5
    U, S, V = factors
    clock = time.perf_counter()
    squared = float((A - product(factors)).square().sum())
    objective = [squared / problem.energy]
    reason: Reason = "steps"

    def direction(gradient: Tensor, gram: Tensor, loss: Tensor) -> Tensor:
        if preset is None:
            top = torch.linalg.eigvalsh(gram)[..., -1].clamp_min(torch.finfo(A.dtype).tiny)
            return gradient / top[..., None, None]
        damped = gram + (delta * (halves * loss).sqrt()) * torch.eye(r, dtype=A.dtype, device=A.device)
        return torch.linalg.solve_ex(damped, gradient).result

    for step in range(steps):
        eta = 1.0 if preset is None else first + (last - first) * step / steps
        Z = rows_of(S, V)
        E = torch.bmm(U, Z) - rows
        U = U - eta * direction(torch.bmm(Z, E.mT), torch.bmm(Z, Z.mT), E.square().sum()).mT

        Y = left_factors(U, S)
        E = torch.bmm(Y, V) - columns
        V = V - eta * direction(torch.bmm(Y.mT, E), torch.bmm(Y.mT, Y), E.square().sum())

        E = torch.bmm(Y, V) - columns
        projected = torch.bmm(U.mT, E.permute(1, 0, 2).reshape(b1, p, -1)).reshape(b1, r, b2, -1)
        gradient = (projected * V.permute(1, 0, 2)).sum(-1).permute(0, 2, 1)
        gram = torch.bmm(U.mT, U)[:, None] * torch.bmm(V, V.mT)[None]
        S = S - eta * direction(gradient[..., None], gram, E.square().sum())[..., 0].permute(2, 0, 1)

        if normalize:
            U, S, V = _normalize(U, S, V)
        if shrink > 0:
            size = S.norm(dim=(1, 2), keepdim=True)
            S = S * (1 - eta * shrink / size.clamp_min(torch.finfo(A.dtype).tiny)).clamp_min(0)
        if nonnegative:
            S = S.clamp_min(0)

        value = float((A - product((U, S, V))).square().sum(dtype=torch.float64)) / problem.energy
        if not math.isfinite(value):
            raise Diverged(
                f"factorize: step {step + 1} of gradient descent left the finite numbers (last relative "
                f"error {objective[-1] ** 0.5:.4g}). Use a larger delta, a smaller rate, or method='als'.",
                step=step + 1,
                last=objective[-1],
            )
        objective.append(value)
        if callback is not None:
            callback(step + 1, value**0.5)
        if preset is None and step + 1 >= _WINDOW and value >= (1 - tol) * objective[-1 - _WINDOW]:
            reason = "tolerance"
            break
    factors = (U, S, V) if normalize else balance((U, S, V))
    history = History(
        objective=tuple(objective),
        residual=tuple(value**0.5 for value in objective),
        seconds=time.perf_counter() - clock,
        reason=reason,
        notes=tuple(problem.notes),
    )
    return factors, history


def _normalize(U: Tensor, S: Tensor, V: Tensor) -> Factors:
    left = U.norm(dim=1).clamp_min(torch.finfo(U.dtype).tiny)
    right = V.norm(dim=2).clamp_min(torch.finfo(U.dtype).tiny)
    return U / left[:, None], S * left.T[:, :, None] * right.T[:, None], V / right[..., None]


def fit(
    problem: Problem,
    rank: int,
    blocks: tuple[int, int],
    *,
    method: str,
    steps: int,
    tol: float,
    seed: Seed,
    callback: Callable[[int, float], Any] | None,
    preset: str = "official",
    start: str | Factors | None = None,
    **options: Any,
) -> tuple[Factors, History]:
    """Run "precgd" (from a preset) or "gd" and return balanced factors of the matrix.

    Parameters
    ----------
    problem, rank, blocks, steps, tol, seed, callback
        As in :func:`lowdim.algebra.factorize`.
    method : {"precgd", "gd"}
    preset : {"paper", "official"}
        Of "precgd".
    start : str or (U, S, V), optional
        A start as for "als" instead of the preset's own.
    **options
        Of :func:`gradient_descent`.
    """
    known = {"delta", "rate", "end", "normalize", "nonnegative", "shrink"} if method == "precgd" else set()
    if set(options) - known:
        raise DataError(
            f"factorize: unknown options for {method!r}: {', '.join(sorted(set(options) - known))}."
        )
    if preset not in ("paper", "official"):
        raise DataError(f"factorize: preset={preset!r} is unknown. Use 'paper' or 'official'.")
    if problem.second_moment is not None:
        raise DataError(
            f"factorize: method={method!r} minimizes the weight error and cannot use second_moment. "
            "Use method='als', or leave second_moment out."
        )
    if not bool(problem.matrix.any()):
        raise DataError(f"factorize: the matrix is zero, so method={method!r} has nothing to descend.")
    scale = 1.0
    if method == "precgd" and preset == "official":
        scale = float(problem.matrix.std())
        if scale == 0.0:
            raise DataError(
                "factorize: the official preset divides by the deviation of the entries, which is 0."
            )
    scaled = Problem(matrix=problem.matrix / scale, notes=problem.notes)
    if start is not None:
        factors = start_factors(scaled, rank, blocks, start=start, noise=0.1, seed=seed)
    else:
        factors = small_start(scaled, rank, blocks, preset="paper" if method == "gd" else preset, seed=seed)
    (U, S, V), history = gradient_descent(
        scaled, factors, steps=steps, tol=tol, preset=preset if method == "precgd" else None,
        callback=callback, **options,
    )  # fmt: skip
    return (U, S * scale, V) if options.get("normalize") else balance((U, S * scale, V)), history
