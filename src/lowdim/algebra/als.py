"""Alternating least squares for Blast, with momentum that can only help."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lowdim.algebra.history import History, Reason
from lowdim.algebra.problem import Problem
from lowdim.algebra.seeds import Seed, gaussian, generator
from lowdim.algebra.svd import low_rank_factors
from lowdim.algebra.sweeps import Factors, product, sweep_for
from lowdim.errors import DataError, Diverged, ShapeError

__all__ = ["alternating_least_squares", "balance", "start_factors"]

# A component whose scale is below this share of the largest one carries nothing.
_DEAD = 1e-7
_LARGEST_MOMENTUM = 0.93
_SMALLEST_MOMENTUM = 0.7
_WINDOW = 5


def start_factors(
    problem: Problem, rank: int, blocks: tuple[int, int], *, start: str | Factors, noise: float, seed: Seed
) -> Factors:
    """Return the factors from which the iteration starts.

    Parameters
    ----------
    problem : Problem
    rank : int
    blocks : pair of int
    start : {"svd", "random", "latin"} or (U, S, V)
        "svd": the (whitened) truncated SVD with couplings 1; "random": Gaussian factors;
        "latin": the best rank-t blocks, t = rank / b, on a Latin square of couplings
        (blast.md 2.1), for matrices whose blocks are of low rank.
    noise : float
        Standard deviation of the Gaussian noise added to the couplings of "svd".
    seed : int, torch.Generator or None

    Returns
    -------
    U, S, V : Tensor of shape (b1, p, r), (r, b1, b2), (b2, r, q)
    """
    A = problem.matrix
    (m, n), (b1, b2) = A.shape, blocks
    p, q = m // b1, n // b2
    source = generator(seed)

    def draw(*shape: int) -> Tensor:
        return gaussian(shape, seed=source, dtype=A.dtype, device=A.device)

    if not isinstance(start, str):
        shapes = (b1, p, rank), (rank, b1, b2), (b2, rank, q)
        if len(start) != 3 or any(tuple(f.shape) != s for f, s in zip(start, shapes, strict=True)):
            given = ", ".join(str(tuple(f.shape)) for f in start)
            raise ShapeError(f"factorize: start has shapes {given}; expected (U, S, V) of shapes {shapes}.")
        U, S, V = (f.detach().to(A).clone() for f in start)
        return U, S, V
    if start == "random":
        # The product's entries get about the variance of A.
        scale = float(A.std()) ** 0.5 * rank**-0.25
        return draw(b1, p, rank) * scale, 1 + 0.5 * draw(rank, b1, b2), draw(b2, rank, q) * scale
    if start == "latin":
        return _latin_square(A, rank, blocks)
    if start != "svd":
        raise DataError(f"factorize: start={start!r} is unknown. Use 'svd', 'random', 'latin' or (U, S, V).")
    known = min(rank, m, n)
    left, right = low_rank_factors(problem, known)
    U = torch.zeros(m, rank, dtype=A.dtype, device=A.device)
    V = torch.zeros(rank, n, dtype=A.dtype, device=A.device)
    U[:, :known], V[:known] = left, right
    S = 1 + noise * draw(rank, b1, b2)
    if rank > known:
        # Components beyond the SVD start with no weight in U but with directions to grow into.
        V[known:] = draw(rank - known, n) * V[:known].square().mean().sqrt()
        S[known:] = draw(rank - known, b1, b2)
    V = V.reshape(rank, b2, q).permute(1, 0, 2).contiguous()
    # Singular vectors of block-sparse matrices vanish on whole blocks, where no step could leave zero.
    size = V.norm(dim=2)
    empty = size < 1e-4 * size.amax(0)
    if bool(empty.any()):
        mean = (size.square().sum(0) / (~empty).sum(0).clamp_min(1)).sqrt() * q**-0.5
        V = torch.where(empty[..., None], draw(*V.shape) * mean[None, :, None], V)
        S = torch.where(empty.T[:, None], draw(*S.shape), S)
    return U.reshape(b1, p, rank), S, V


def _latin_square(A: Tensor, rank: int, blocks: tuple[int, int]) -> Factors:
    (b1, b2), (m, n) = blocks, A.shape
    b, t = max(blocks), rank // max(blocks)
    p, q = m // b1, n // b2
    if t < 1 or rank % b or t > min(p, q):
        raise DataError(
            f"factorize: start='latin' puts the components in {b} groups of rank / {b} <= {min(p, q)}; "
            f"rank={rank} does not fit. Use a multiple of {b}, or start='svd'."
        )
    left, values, right = torch.linalg.svd(A.reshape(b1, p, b2, q).transpose(1, 2), full_matrices=False)
    root = values[..., :t].sqrt()
    left, right = left[..., :t] * root[..., None, :], root[..., None] * right[..., :t, :]
    U, V = A.new_zeros(b1, p, rank), A.new_zeros(b2, rank, q)
    S = A.new_zeros(rank, b1, b2)
    for i in range(b1):
        for j in range(b2):
            group = slice((i + j) % b * t, (i + j) % b * t + t)
            U[i, :, group], V[j, group], S[group, i, j] = left[i, j], right[i, j], 1.0
    return U, S, V


def balance(factors: Factors) -> Factors:
    """Rescale without changing the product: every component gets couplings of root mean square one.

    Within a component all columns of the U_i, and all rows of the V_j, get the
    same norm, the square root of the component's scale.
    """
    U, S, V = factors
    left, right = _norms(U, 1), _norms(V, 2)  # (b1, r), (b2, r)
    coupled = S * left.T[:, :, None] * right.T[:, None, :]
    scale = coupled.square().mean((1, 2)).sqrt()
    safe = torch.where(scale > 0, scale, torch.ones_like(scale))
    root = scale.sqrt()
    return U * (root / left)[:, None, :], coupled / safe[:, None, None], V * (root / right)[:, :, None]


def _norms(factor: Tensor, dim: int) -> Tensor:
    """Return the norms along `dim`; the ones of vanishing columns are replaced by their component's mean.

    Else the coupling of a column that is zero for now would be set to zero, and no step could leave that.
    """
    size = factor.norm(dim=dim)
    mean = size.mean(0, keepdim=True)
    mean = torch.where(mean > 0, mean, torch.ones_like(mean))
    return torch.where(size > 1e-6 * mean, size, mean)


def _revive(problem: Problem, factors: Factors, error: float) -> tuple[Factors, int]:
    """Replace dead components by the leading singular vectors of the residual (in the problem's metric)."""
    U, S, V = factors
    scale = U.norm(dim=1).amax(0) * V.norm(dim=2).amax(0) * S.abs().amax((1, 2))
    dead = (scale <= _DEAD * scale.max()).nonzero().flatten()
    if len(dead) == 0 or error < math.sqrt(torch.finfo(U.dtype).eps):
        return factors, 0
    residual = problem.matrix - product(factors)
    rest = Problem(matrix=residual, second_moment=problem.second_moment)
    count = min(len(dead), *residual.shape)
    left, right = low_rank_factors(rest, count)
    (b1, p, _), (b2, _, q) = U.shape, V.shape
    U, S, V = U.clone(), S.clone(), V.clone()
    dead = dead[:count]
    U[:, :, dead] = left.reshape(b1, p, count)
    V[:, dead] = right.reshape(count, b2, q).permute(1, 0, 2)
    S[dead] = 1.0
    return (U, S, V), count


def alternating_least_squares(
    problem: Problem,
    factors: Factors,
    *,
    sweeps: int,
    tol: float,
    momentum: bool = True,
    callback: Callable[[int, float], Any] | None = None,
) -> tuple[Factors, History]:
    """Minimize over U, V and S in turn.

    Every sweep starts from an extrapolation of V and S along their last change
    (Nesterov's weights k / (k + 3), kept within 0.7 and 0.93); when the objective grew, the sweep is
    discarded, and the next one starts from the best factors without momentum,
    which cannot grow. So the objective never does.

    Parameters
    ----------
    problem : Problem
    factors : (U, S, V)
        The start.
    sweeps : int
        Largest number of sweeps.
    tol : float
        Stop when the objective fell by less than this fraction over 5 sweeps, or less than round-off.
    momentum : bool
        Extrapolate. On MiniLM's matrices 20 sweeps with momentum are worth 45 without.
    callback : callable, optional
        Called as ``callback(sweep, relative_error)`` after every sweep.

    Returns
    -------
    factors : (U, S, V)
        Balanced.
    history : History
        ``objective`` holds squared relative errors, ``residual`` relative errors.

    Raises
    ------
    Diverged
        If the objective leaves the finite numbers.
    """
    clock = time.perf_counter()
    sweep = sweep_for(problem, (factors[0].shape[0], factors[2].shape[0]))
    best = balance(factors)
    objective = [problem.error(product(best)) ** 2]
    at, age = best, 0
    reason: Reason = "steps"
    for step in range(1, sweeps + 1):
        found, value = sweep(at)
        if at is not best and not value <= objective[-1]:
            at, age = best, 0  # the extrapolation went too far
        elif not math.isfinite(value):
            raise Diverged(
                f"factorize: sweep {step} of alternating least squares left the finite numbers (last "
                f"relative error {objective[-1] ** 0.5:.4g}). Use float64, or look for huge entries.",
                step=step,
                last=objective[-1],
            )
        elif value > objective[-1]:
            # Without momentum every sweep is exact: what remains to gain is below round-off.
            reason = "tolerance"
        else:
            found = balance(found)
            found, revived = _revive(problem, found, value**0.5)
            if revived:
                problem.notes.append(f"sweep {step}: {revived} dead components re-seeded from the residual")
            weight = 0.0
            if momentum and age > 0 and not revived:
                weight = min(max(_SMALLEST_MOMENTUM, age / (age + 3)), _LARGEST_MOMENTUM)
            previous, best, age = best, found, age + 1
            at = best
            if weight > 0:
                (U, S, V), (_, old_S, old_V) = best, previous
                at = (U, S + weight * (S - old_S), V + weight * (V - old_V))
            objective.append(value)
        if len(objective) == step:
            objective.append(objective[-1])
        if callback is not None:
            callback(step, objective[-1] ** 0.5)
        if step >= _WINDOW and objective[-1] >= (1 - tol) * objective[-1 - _WINDOW]:
            reason = "tolerance"
        if reason == "tolerance":
            break
    history = History(
        objective=tuple(objective),
        residual=tuple(value**0.5 for value in objective),
        seconds=time.perf_counter() - clock,
        reason=reason,
        notes=tuple(problem.notes),
    )
    return best, history
