"""Alternating least squares for Blast, with momentum that can only help."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
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


class _Iteration:
    """One item's course: its best factors, where the next sweep starts, and when it is over."""

    def __init__(self, problem: Problem, factors: Factors, *, tol: float, momentum: bool) -> None:
        self.problem, self.tol, self.momentum = problem, tol, momentum
        self.best = self.at = balance(factors)
        self.age = 0
        self.objective = [problem.error(product(self.best)) ** 2]
        self.reason: Reason | None = None

    def take(self, found: Factors, value: float) -> None:
        """Judge what a sweep from `at` found, and choose the next start."""
        step = len(self.objective)
        last = self.objective[-1]
        if self.at is not self.best and not value <= last:
            self.at, self.age = self.best, 0  # the extrapolation went too far
            self.objective.append(last)
        elif not math.isfinite(value):
            raise Diverged(
                f"factorize: sweep {step} of alternating least squares left the finite numbers (last "
                f"relative error {last**0.5:.4g}). Use float64, or look for huge entries.",
                step=step,
                last=last,
            )
        elif value > last:
            # Without momentum every sweep is exact: what remains to gain is below round-off.
            self.objective.append(last)
            self.reason = "tolerance"
        else:
            self._accept(found, value)
        if step >= _WINDOW and self.objective[-1] >= (1 - self.tol) * self.objective[-1 - _WINDOW]:
            self.reason = "tolerance"

    def _accept(self, found: Factors, value: float) -> None:
        found, revived = _revive(self.problem, balance(found), value**0.5)
        if revived:
            self.problem.notes.append(
                f"sweep {len(self.objective)}: {revived} dead components re-seeded from the residual"
            )
        weight = 0.0
        if self.momentum and self.age > 0 and not revived:
            weight = min(max(_SMALLEST_MOMENTUM, self.age / (self.age + 3)), _LARGEST_MOMENTUM)
        previous, self.best, self.age = self.best, found, self.age + 1
        self.at = self.best
        if weight > 0:
            (U, S, V), (_, old_S, old_V) = self.best, previous
            self.at = (U, S + weight * (S - old_S), V + weight * (V - old_V))
        self.objective.append(value)

    def history(self, seconds: float) -> History:
        return History(
            objective=tuple(self.objective),
            residual=tuple(value**0.5 for value in self.objective),
            seconds=seconds,
            reason=self.reason or "steps",
            notes=tuple(self.problem.notes),
        )


def alternating_least_squares(
    problems: Sequence[Problem],
    starts: Sequence[Factors],
    *,
    sweeps: int,
    tol: float,
    momentum: bool = True,
    callback: Callable[[int, float], Any] | None = None,
) -> list[tuple[Factors, History]]:
    """Minimize over U, V and S in turn, for a stack of problems of one shape at once.

    Every sweep starts from an extrapolation of V and S along their last change
    (Nesterov's weights k / (k + 3), kept within 0.7 and 0.93); when the objective grew, the sweep is
    discarded, and the next one starts from the best factors without momentum,
    which cannot grow. So the objective never does. Each item judges for itself, and stops by itself.

    Parameters
    ----------
    problems : sequence of Problem
        All with, or all without a second moment.
    starts : sequence of (U, S, V)
        The starts, of equal shapes.
    sweeps : int
        Largest number of sweeps.
    tol : float
        Stop when the objective fell by less than this fraction over 5 sweeps, or less than round-off.
    momentum : bool
        Extrapolate. On MiniLM's matrices 20 sweeps with momentum are worth 45 without.
    callback : callable, optional
        Called as ``callback(sweep, relative_error)`` after every sweep, with the largest error of the stack.

    Returns
    -------
    list of (factors, history)
        Balanced factors; ``objective`` holds squared relative errors, ``residual`` relative errors. Seconds
        are those of the whole stack.

    Raises
    ------
    Diverged
        If an objective leaves the finite numbers.
    """
    clock = time.perf_counter()
    items = [
        _Iteration(problem, start, tol=tol, momentum=momentum)
        for problem, start in zip(problems, starts, strict=True)
    ]
    running = list(items)
    sweep = sweep_for(problems, (starts[0][0].shape[0], starts[0][2].shape[0]))
    for step in range(1, sweeps + 1):
        U, S, V = (torch.stack(factor) for factor in zip(*(item.at for item in running), strict=True))
        found, values = sweep((U, S, V))
        for item, *factors, value in zip(running, *found, values.tolist(), strict=True):
            item.take((factors[0], factors[1], factors[2]), value)
        if callback is not None:
            callback(step, max(item.objective[-1] for item in items) ** 0.5)
        going = [place for place, item in enumerate(running) if item.reason is None]
        if len(going) < len(running):
            if not going:
                break
            running, sweep = [running[place] for place in going], sweep.only(going)
    elapsed = time.perf_counter() - clock
    return [(item.best, item.history(elapsed)) for item in items]
