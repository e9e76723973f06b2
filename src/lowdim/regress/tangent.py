"""Tangent: one block solved exactly, and Newton's steps of all others with that block eliminated."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Protocol, Self

import torch
from torch import Tensor

from lowdim.regress.relax import Problems, Sweep
from lowdim.regress.ridge import gram, positive_factor, product, solve_positive
from lowdim.regress.samples import Samples

__all__ = ["Main", "Tangent", "chosen", "merged", "step_of", "worse"]


@dataclass(frozen=True, eq=False)
class Main:
    """The block that is always at its best for the others: coefficients v of regressors Z.

    Parameters
    ----------
    rows : Tensor of shape (C, N, q)
        Z, centered, times the roots of the weights unless these are all equal.
    factor : Tensor of shape (C, q, q)
        Lower Cholesky factor of ``Z^T Z + alpha``; (C, 0, 0) where steps are taken in N unknowns.
    solution : Tensor of shape (C, q)
        v.
    rest : Tensor of shape (C, N)
        Residuals, scaled as the rows.
    objective, offset : Tensor of shape (C,)
        Misfit and penalty; weighted mean of Z v, which the intercept takes off.
    """

    rows: Tensor
    factor: Tensor
    solution: Tensor
    rest: Tensor
    objective: Tensor
    offset: Tensor

    @classmethod
    def fitted(cls, problems: Problems, Z: Tensor, *, more: int) -> Main:
        """Solve for v.

        Parameters
        ----------
        problems : Problems
        Z : Tensor of shape (C, N, q)
        more : int
            Unknowns that a step has beside v: with more of both than samples, it is taken in N unknowns.

        Returns
        -------
        Main
        """
        C, N, q = Z.shape
        rows, mean = problems.scaled(Z)
        b, alpha = problems.right, problems.alpha / problems.size
        if q + more > N:
            factor = Z.new_zeros(C, 0, 0)
            if q > N:
                v = rows.mT @ solve_positive(gram(rows.mT), b, alpha)
            else:
                v = solve_positive(gram(rows), rows.mT @ b, alpha)
        else:
            factor = positive_factor(gram(rows), alpha)
            v = torch.cholesky_solve(rows.mT @ b, factor)
        rest = (b - rows @ v).squeeze(-1)
        v = v.squeeze(-1)
        objective = problems.size * rest.square().sum(1) + problems.alpha * v.square().sum(1)
        offset = torch.zeros_like(objective) if mean is None else (mean.squeeze(1) * v).sum(1)
        return cls(rows, factor, v, rest, objective, offset)

    def parts(self) -> list[Tensor]:
        """Return the tensors, with which states end."""
        return [getattr(self, field.name) for field in fields(self)]

    @classmethod
    def of(cls, state: list[Tensor]) -> Self:
        """Return what a state ends with."""
        return cls(*state[-len(fields(cls)) :])


def step_of(
    problems: Problems, main: Main, Z: Tensor, bend: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return the best step on the tangent space: how v moves, how all others do, and the promised fall.

    Minimizes ``sum_i s_i (rest_i - <Zv_i, dv> - <Z_i, p>)^2 + alpha (||v + dv||^2 + ||p||^2) + 2 dv^T B p``.
    Without B (`bend`) this is a step of Gauss and Newton; with the curvature of the form under the residuals
    it is Newton's. v is at its best, so it follows p, and p solves the Schur complement.

    Parameters
    ----------
    problems : Problems
    main : Main
    Z : Tensor of shape (C, N, m)
        Regressors of the tangent vectors that leave the others' span.
    bend : Tensor of shape (C, q, m), optional
        B, scaled as the rows of `main`. Left out where the system would not be positive with it.

    Returns
    -------
    dv : Tensor of shape (C, q)
    p : Tensor of shape (C, m)
    promised : Tensor of shape (C,)
    """
    rows, _ = problems.scaled(Z)
    alpha, size = problems.alpha / problems.size, problems.size
    q = main.solution.shape[1]
    if main.factor.shape[1] < q:
        both = torch.cat([main.rows, rows], 2)
        v = (both.mT @ solve_positive(gram(both.mT), problems.right, alpha)).squeeze(-1)
        rest = problems.right.squeeze(-1) - (both @ v.unsqueeze(-1)).squeeze(-1)
        reached = size * rest.square().sum(1) + problems.alpha * v.square().sum(1)
        return v[:, :q] - main.solution, v[:, q:], main.objective - reached
    right = rows.mT @ main.rest.unsqueeze(-1)
    cross = product(main.rows.mT, rows)
    inner = gram(rows)
    inner.diagonal(dim1=1, dim2=2).add_(alpha.unsqueeze(-1))
    through = torch.linalg.solve_triangular(main.factor, cross if bend is None else cross + bend, upper=False)
    factor, info = torch.linalg.cholesky_ex(inner - gram(through))
    if bend is not None and bool(info.any()):
        bent = (info == 0).view(-1, 1, 1)
        through = torch.linalg.solve_triangular(main.factor, cross + bend * bent, upper=False)
        factor, info = torch.linalg.cholesky_ex(inner - gram(through))
    p = torch.cholesky_solve(right, factor)
    dv = -torch.linalg.solve_triangular(main.factor.mT, through @ p, upper=True)
    return dv.squeeze(-1), p.squeeze(-1), size * (right * p).sum((1, 2))


def worse(now: Tensor, before: Tensor) -> Tensor:
    """Return where a step has not lowered the objective (or has left the finite numbers), (C,)."""
    return ~(now < before)


class Tangent(Sweep, Protocol):
    """A form that makes steps on its tangent space."""

    def begin(self, samples: Samples, problems: Problems, factors: list[Tensor]) -> list[Tensor]:
        """Return the state with given factors (a core behind them is ignored) and the best main block."""
        ...


def chosen(
    form: Tangent,
    blocks: Sweep,
    samples: Samples,
    problems: Problems,
    state: list[Tensor],
    after: list[Tensor],
    promised: Tensor,
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Return what a sweep returns: the state after the step, or after one of blocks where that went wrong.

    Parameters
    ----------
    form, blocks : Sweep
        That of the states, and the safeguard.
    samples : Samples
    problems : Problems
    state, after : list of Tensor
        Before and after the step.
    promised : Tensor of shape (C,)
    """
    main = Main.of(after)
    failed = worse(main.objective, Main.of(state).objective)
    if bool(failed.any()):
        found, *_ = blocks.sweep(samples, problems, form.parts(state))
        other = form.begin(samples, problems, found)
        after = merged(failed, other, after)
        main, promised = Main.of(after), torch.where(failed, torch.inf, promised)
    return after, main.objective, main.offset, promised


def merged(chosen: Tensor, one: list[Tensor], other: list[Tensor]) -> list[Tensor]:
    """Return the parts of `one` for chosen problems (C,), those of `other` for the rest."""
    return [torch.where(chosen.view(-1, *[1] * (a.ndim - 1)), a, b) for a, b in zip(one, other, strict=True)]
