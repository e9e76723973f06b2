"""Squared: regressions with tensor-structured coefficients, many at once over shared samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from sklearn import get_config
from torch import Tensor

from lowdim.algebra.tensors import mode_product
from lowdim.regress.cp import CPSweep, CPTangent
from lowdim.regress.grid import Ranks
from lowdim.regress.matrix import MatrixSweep
from lowdim.regress.relax import Problems, Relaxed, Sweep, relax, shrink, steady
from lowdim.regress.ridge import solve_positive
from lowdim.regress.samples import Samples
from lowdim.regress.starts import bounded, dense, gaussian, leading
from lowdim.regress.tangent import Main
from lowdim.regress.tucker import TuckerSweep, TuckerTangent

__all__ = ["Fit", "fit_squared"]


@dataclass(frozen=True, eq=False)
class Fit:
    """One fitted set of coefficients.

    Parameters
    ----------
    factors : list of Tensor
        Of shape (n_k, r_k), one per mode; for vectors one of shape (p, 1).
    core : Tensor of shape (r1, ..., rd) or None
        Of a Tucker form.
    intercept : Tensor of shape () or (K,)
    objective : float
    steps : int
        Sweeps or iterations.
    converged : bool
    history : list of float
        Objective after every step.
    """

    factors: list[Tensor]
    core: Tensor | None
    intercept: Tensor
    objective: float
    steps: int
    converged: bool
    history: list[float]

    def coefficients(self) -> Tensor:
        """Return the coefficients as a tensor."""
        return dense(self.factors, self.core)


def fit_squared(
    samples: Samples,
    weights: Tensor,
    targets: Tensor,
    alpha: Tensor,
    ranks: Sequence[Ranks],
    *,
    center: bool = True,
    n_init: int = 1,
    tol: float = 1e-5,
    max_iter: int = 100,
    random: np.random.RandomState,
) -> list[Fit]:
    """Minimize ``sum_i s_i (y_i - b - <W, X_i>)^2 + alpha pen(W)`` for B choices of s, y, alpha and rank.

    Parameters
    ----------
    samples : Samples
    weights : Tensor of shape (B, N)
        s, with sum 1.
    targets : Tensor of shape (B, N)
    alpha : Tensor of shape (B,)
    ranks : sequence of tuple of int
        B of them: (R,) of a CP form, (r1, ..., rd) of a Tucker form, () for vectors.
    center : bool
        Whether there is an intercept b.
    n_init : int
        Starts; the first from the moment tensor, others Gaussian. The best is returned.
    tol, max_iter
        See `relax`.
    random : RandomState

    Returns
    -------
    list of Fit
    """
    mean = (weights * targets).sum(1) if center else targets.new_zeros(len(targets))
    # Samples that are centered by the weights of all problems need not be centered again.
    apart = center and not bool((weights == samples.weights).all())
    first = float(weights[0, 0])
    equal = first if bool((weights == first).all()) else None
    problems = Problems(weights, targets - mean.unsqueeze(1), alpha, apart, equal)
    if len(samples.grid.shape) == 1:
        fits = [_vector(samples, problems, at) for at in range(len(targets))]
    else:
        held: dict[int, Fit] = {}
        seed = random.randint(2**31 - 1)  # the same for every batch, however the problems are cut into them
        for at in _groups(samples, ranks, n_init):
            group = shrink_to(problems, at)
            source = np.random.RandomState(seed)
            own = _tensors(samples, group, [ranks[i] for i in at], n_init, tol, max_iter, source)
            held |= dict(zip(at, own, strict=True))
        fits = [held[i] for i in range(len(ranks))]
    base = samples.mean.double()
    return [
        Fit(f.factors, f.core, m - f.intercept - f.coefficients().flatten() @ base, *_ending(f))
        for f, m in zip(fits, mean, strict=True)
    ]


def _ending(fit: Fit) -> tuple[float, int, bool, list[float]]:
    return fit.objective, fit.steps, fit.converged, fit.history


def shrink_to(problems: Problems, at: Sequence[int]) -> Problems:
    """Return some problems.

    Parameters
    ----------
    problems : Problems
    at : sequence of int

    Returns
    -------
    Problems
    """
    return shrink(problems, torch.as_tensor(list(at), device=problems.y.device))


def _groups(samples: Samples, ranks: Sequence[Ranks], n_init: int) -> list[list[int]]:
    """Cut the problems into batches whose intermediate products fit into the working memory.

    Samples that are read from a disk are read for all ranks at once, padded to the largest; in memory padding
    costs more than reading.
    """
    shape, cut = samples.grid.shape, samples.grid.cut
    sides = (prod(shape[:cut]), prod(shape[cut:]))
    kinds = [list(range(len(ranks)))]
    if not samples.streamed:
        kinds = [[i for i, own in enumerate(ranks) if own == rank] for rank in dict.fromkeys(ranks)]
    found = []
    for kind in kinds:
        columns = max(ranks[i][0] if len(ranks[i]) == 1 else prod(ranks[i]) for i in kind)
        each = 16 * samples.count * max(sides) * columns * n_init
        step = max(1, int(get_config()["working_memory"] * 2**20 / each))
        found += [kind[i : i + step] for i in range(0, len(kind), step)]
    return found


def _vector(samples: Samples, problems: Problems, at: int) -> Fit:
    """Ridge regression on plain vectors, from Gram matrices that are summed piece by piece."""
    s, y, alpha = problems.weights[at], problems.y[at], problems.alpha[at : at + 1]
    N, p = samples.count, samples.grid.size
    z = samples.moment(s.unsqueeze(1)).T if problems.center else samples.moment(s.unsqueeze(1)).T * 0
    root = s.sqrt().unsqueeze(1)
    right = bounded(samples.moment((s * y).unsqueeze(1)))
    if p <= N:
        G = torch.zeros(1, p, p, dtype=torch.float64, device=samples.device)
        for rows, piece in samples.pieces():
            A = (piece.double() - z) * root[rows]
            G[0] += A.mT @ A
        v = solve_positive(bounded(G), (right - z.T * (s * y).sum())[None], alpha)[0]
    else:
        K = torch.zeros(1, N, N, dtype=torch.float64, device=samples.device)
        for rows, piece in samples.pieces():
            A = (piece.double() - z) * root[rows]
            for columns, other in samples.pieces():
                K[0, rows, columns] = A @ ((other.double() - z) * root[columns]).mT
        u = solve_positive(bounded(K), (root * y.unsqueeze(1))[None], alpha)[0] * root
        v = samples.moment(u) - z.T * u.sum()
    scores = samples.against(v)[:, 0] - (z @ v)[0, 0]
    objective = float((s * (y - scores).square()).sum() + alpha[0] * v.square().sum())
    return Fit([v], None, (z @ v)[0, 0], objective, 1, True, [objective])


def _tensors(
    samples: Samples,
    problems: Problems,
    ranks: Sequence[Ranks],
    n_init: int,
    tol: float,
    max_iter: int,
    random: np.random.RandomState,
) -> list[Fit]:
    """Relax all problems and starts in one batch, ranks padded to the largest."""
    order = torch.arange(len(ranks), device=samples.device).repeat(n_init)
    every = shrink(problems, order)
    form, state, before = _begin(samples, problems, every, ranks, n_init, random)
    found = relax(form, samples, every, state, before=before, tol=tol, max_iter=max_iter)
    objective = found.objective.view(n_init, -1)
    best = torch.where(objective.isfinite(), objective, torch.inf).argmin(0).tolist()
    return [_cut(found, start * len(ranks) + i, ranks[i]) for i, start in enumerate(best)]


def _begin(
    samples: Samples,
    problems: Problems,
    every: Problems,
    ranks: Sequence[Ranks],
    n_init: int,
    random: np.random.RandomState,
) -> tuple[Sweep, list[Tensor], Tensor | None]:
    """Return the form with its columns in use, the starts, and the objective there if it is known.

    The starts are the moment tensors first, then Gaussian ones.
    """
    shape = samples.grid.shape
    d, tucker = len(shape), len(ranks[0]) > 1
    each = [r if tucker else r * d for r in ranks]
    widest = tuple(max(r[k] for r in each) for k in range(d))
    M = bounded(samples.moment((problems.weights * problems.y).T)).T.reshape(-1, *shape)
    easy = bool((problems.alpha > 0).all())
    # Steps for matrices begin with their row space alone.
    first = leading(M, widest, random, modes=range(1, 2) if easy and d == 2 else range(d))
    drawn = [[gaussian(factor.shape, random, factor) for factor in first] for _ in range(n_init - 1)]
    factors = [torch.cat(parts) for parts in zip(first, *drawn, strict=True)]
    limits = torch.tensor(each, device=M.device).repeat(n_init, 1)
    kept = [(torch.arange(w, device=M.device) < limits[:, k : k + 1]).double() for k, w in enumerate(widest)]
    if easy:
        # Of matrices both forms are the same, with the same penalty.
        tangent = MatrixSweep(kept[1]) if d == 2 else TuckerTangent(kept) if tucker else CPTangent(kept[0])
        state = tangent.begin(samples, every, factors)
        return tangent, state, Main.of(state).objective
    if not tucker:
        factors = [factor * use.unsqueeze(1) for factor, use in zip(factors, kept, strict=True)]
        return CPSweep(kept[0]), factors, None
    factors = [steady(factor, use) for factor, use in zip(factors, kept, strict=True)]
    core = gaussian((len(limits), *widest), random, M) if n_init > 1 else M.new_zeros(len(limits), *widest)
    C = len(M)
    head = M
    for k, factor in enumerate(factors):
        head = mode_product(head, factor[:C].mT, k, order=d)
    core[:C] = head
    return TuckerSweep(kept), [*factors, core], None


def _cut(found: Relaxed, at: int, ranks: Ranks) -> Fit:
    tucker = len(ranks) > 1
    factors = [part[at] for part in found.state]
    core = factors.pop()[tuple(slice(r) for r in ranks)] if tucker and len(factors) > len(ranks) else None
    each = ranks if tucker else ranks * len(factors)
    factors = [factor[:, :r] for factor, r in zip(factors, each, strict=True)]
    if core is None and tucker:  # matrices, of which both forms are the same
        factors[0], core = torch.linalg.qr(factors[0])
    return Fit(
        factors,
        core,
        found.offset[at],
        float(found.objective[at]),
        int(found.sweeps[at]),
        bool(found.converged[at]),
        found.history[at],
    )
