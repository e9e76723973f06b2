"""Relax: block relaxation of the squared loss; every block is solved exactly with the others held fixed."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from lowdim.regress.ridge import Ridge, ridge, scaled
from lowdim.regress.samples import Samples

__all__ = ["Problems", "Relaxed", "Sweep", "normalized", "relax", "shrink", "steady"]

_Batch = TypeVar("_Batch")


@dataclass(frozen=True, eq=False)
class Problems:
    """Many regressions on the same samples: folds, penalties, targets and starts.

    Parameters
    ----------
    weights : Tensor of shape (C, N)
        s, non-negative with sum 1; zero for samples that a problem does not see.
    y : Tensor of shape (C, N)
        Targets less their weighted mean (with `center`).
    alpha : Tensor of shape (C,)
        Penalty.
    center : bool
        Whether regressors have to be centered: there is an intercept, and the samples are not centered by
        these weights already.
    equal : float, optional
        The weight of every sample of every problem, if it is the same.

    Examples
    --------
    >>> one = torch.full((1, 2), 0.5)
    >>> Problems(one, torch.tensor([[1.0, -1.0]]), torch.ones(1)).energy
    tensor([1.])
    """

    weights: Tensor
    y: Tensor
    alpha: Tensor
    center: bool = True
    equal: float | None = None

    @property
    def energy(self) -> Tensor:
        """Weighted sum of squared targets, (C,)."""
        return (self.weights * self.y.square()).sum(1)

    @property
    def size(self) -> float:
        """What sums over scaled rows are multiplied by: the weight of every sample, if all are equal."""
        return 1.0 if self.equal is None else self.equal

    @property
    def right(self) -> Tensor:
        """Targets scaled as the rows of `scaled`, (C, N, 1)."""
        return (self.y if self.equal is not None else self.y * self.weights.sqrt()).unsqueeze(-1)

    def scaled(self, Z: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return regressors centered and scaled, and their mean, see `lowdim.regress.ridge.scaled`."""
        return scaled(Z, self.weights if self.equal is None else self.equal, center=self.center)

    def solve(self, Z: Tensor) -> Ridge:
        """Return the ridge solutions for regressors Z of shape (C, N, q)."""
        weights = self.weights if self.equal is None else self.equal
        return ridge(Z, self.y, weights, self.alpha, center=self.center)


class Sweep(Protocol):
    """The form of the coefficients that is relaxed: CP or Tucker."""

    def sweep(
        self, samples: Samples, problems: Problems, state: list[Tensor]
    ) -> tuple[list[Tensor], Tensor, Tensor, Tensor | None]:
        """Solve every block once.

        Returns the new state, the objective (C,), the offset of the intercept (C,), and by how much the sweep
        could have lowered the objective at most, where that is known (C,).
        """
        ...

    def parts(self, state: list[Tensor]) -> list[Tensor]:
        """Return the factors of a state, and the core of a Tucker form behind them."""
        ...


@dataclass(frozen=True, eq=False)
class Relaxed:
    """Where block relaxation has ended, problem by problem.

    Parameters
    ----------
    state : list of Tensor, each with leading axis C
        Factors (and core).
    offset : Tensor of shape (C,)
        Weighted mean of the scores of centered samples.
    objective : Tensor of shape (C,)
    sweeps : Tensor of int of shape (C,)
    converged : Tensor of bool of shape (C,)
    history : list of list of float
        Objective after every sweep.
    """

    state: list[Tensor]
    offset: Tensor
    objective: Tensor
    sweeps: Tensor
    converged: Tensor
    history: list[list[float]]


def relax(
    form: Sweep,
    samples: Samples,
    problems: Problems,
    state: list[Tensor],
    *,
    before: Tensor | None = None,
    tol: float,
    max_iter: int,
) -> Relaxed:
    """Sweep over the blocks until the objective of every problem has come to rest.

    Parameters
    ----------
    form : Sweep
    samples : Samples
    problems : Problems
        C of them; those that have come to rest are taken out of the batch.
    state : list of Tensor, each with leading axis C
        Where to start.
    before : Tensor of shape (C,), optional
        The objective there.
    tol : float
        Rest: a sweep lowers the objective by no more than this fraction of it; or, where sweeps are steps of
        Newton's kind, all further ones together would.
    max_iter : int
        Most sweeps.

    Returns
    -------
    Relaxed
    """
    C = len(problems.y)
    at = torch.arange(C, device=problems.y.device)
    floor = 1e-15 * problems.energy
    final = [torch.empty_like(part) for part in form.parts(state)]
    offset, objective = torch.zeros_like(floor), torch.zeros_like(floor)
    sweeps, converged = at.new_zeros(C), at.new_zeros(C, dtype=torch.bool)
    history: list[list[float]] = [[] for _ in range(C)]
    last, drop = before, None
    for step in range(1, max_iter + 1):
        state, now, shift, promised = form.sweep(samples, problems, state)
        for problem, value in zip(at.tolist(), now.tolist(), strict=True):
            history[problem].append(value)
        rest = now <= floor
        if last is not None:
            fall = last - now
            rest = rest | (fall <= tol * now)
            if promised is not None:
                rest = rest | (promised <= tol * now)
                if drop is not None:
                    # What falls this fast has left the sum of a geometric series to fall.
                    rest = rest | ((fall < drop) & (fall.square() <= tol * now * (drop - fall)))
            drop = fall
        ended = rest if step < max_iter else torch.ones_like(rest)
        if bool(ended.any()):
            done = at[ended]
            for whole, part in zip(final, form.parts(state), strict=True):
                whole[done] = part[ended]
            offset[done], objective[done] = shift[ended], now[ended]
            sweeps[done], converged[done] = step, rest[ended]
            left = ~ended
            if not bool(left.any()):
                break
            problems, form = shrink(problems, left), shrink(form, left)
            state = [part[left] for part in state]
            at, now, floor = at[left], now[left], floor[left]
            drop = None if drop is None else drop[left]
        last = now
    return Relaxed(final, offset, objective, sweeps, converged, history)


def shrink(batch: _Batch, kept: Tensor) -> _Batch:
    """Return the kept items of a dataclass whose tensors have a leading axis of items.

    Parameters
    ----------
    batch : dataclass
    kept : Tensor of bool of shape (C,)

    Returns
    -------
    dataclass
    """
    taken = {}
    for field in fields(batch):  # type: ignore[arg-type]
        value = getattr(batch, field.name)
        if isinstance(value, Tensor):
            value = value[kept]
        elif isinstance(value, list):
            value = [part[kept] for part in value]
        taken[field.name] = value
    return type(batch)(**taken)


def normalized(factor: Tensor) -> Tensor:
    """Return columns of norm 1 (zero columns stay)."""
    return factor / factor.norm(dim=-2, keepdim=True).clamp_min(1e-150)


def steady(factor: Tensor, kept: Tensor) -> Tensor:
    """Return orthonormal columns of the same span, zero where a column is not in use.

    Parameters
    ----------
    factor : Tensor of shape (C, n, R)
    kept : Tensor of shape (C, R)
        1 for columns in use, else 0; those in use come first.

    Returns
    -------
    Tensor of shape (C, n, R)
    """
    return torch.linalg.qr(factor).Q * kept.unsqueeze(1)
