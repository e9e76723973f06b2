"""Tucker: coefficients that are a small core times a matrix in every mode, by tangent steps or by blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowdim.algebra.tensors import fold, unfold
from lowdim.regress.relax import Problems, steady
from lowdim.regress.samples import Samples
from lowdim.regress.tangent import Main, chosen, step_of

__all__ = ["TuckerSweep", "TuckerTangent"]


@dataclass(frozen=True, eq=False)
class TuckerSweep:
    """Block relaxation of a Tucker form, ``W = G x1 F1 ... xd Fd`` with penalty ``alpha ||W||^2``.

    Factors are orthonormal. For mode k the rows of ``unfold(G, k)`` are made orthonormal by what is put into
    F_k, which is then solved for; at the end of a sweep the core is solved for.

    Parameters
    ----------
    kept : list of Tensor, each of shape (C, r_k)
        1 for columns in use, else 0, so that problems of several ranks share a batch.
    """

    kept: list[Tensor]

    def parts(self, state: list[Tensor]) -> list[Tensor]:
        """Return the factors and the core of a state."""
        return state

    def sweep(
        self, samples: Samples, problems: Problems, state: list[Tensor]
    ) -> tuple[list[Tensor], Tensor, Tensor, Tensor | None]:
        """Solve every factor once, then the core."""
        shape, cut = samples.grid.shape, samples.grid.cut
        d = len(shape)
        factors, core = list(state[:-1]), state[-1]
        ranks = tuple(core.shape[1:])
        T = core
        for own, passive in ((range(cut), range(cut, d)), (range(cut, d), range(cut))):
            T = samples.contract(_kronecker([factors[j] for j in passive]), leading=own[0] > 0)
            T = T.view(*T.shape[:2], *(ranks[j] for j in passive), *(shape[k] for k in own))
            # The own modes stand where they do in the tensor: before the passive ranks if they are the first.
            if own[0] == 0:
                T = T.permute(0, 1, *range(2 + len(passive), 2 + d), *range(2, 2 + len(passive)))
            for k in own:
                Z = T
                for j in own:
                    if j != k:
                        Z = _shrunk(Z, factors[j], 2 + j)
                Z = torch.movedim(Z, 2 + k, 2).flatten(3)
                Q = steady(unfold(core, k, order=d).mT, self.kept[k])
                found = problems.solve((Z @ Q.unsqueeze(1)).flatten(2))
                F, R = torch.linalg.qr(found.solution.view(-1, shape[k], ranks[k]))
                factors[k] = F * self.kept[k].unsqueeze(1)
                core = fold(R @ Q.mT, k, ranks)
                if k == d - 1:
                    T = fold(factors[k].mT.unsqueeze(1) @ Z, k, ranks)
        found = problems.solve(T.flatten(2))
        core = found.solution.view(-1, *ranks)
        for k in range(d):
            core = core * self.kept[k].view(-1, *(ranks[j] if j == k else 1 for j in range(d)))
        objective = found.misfit + problems.alpha * found.solution.square().sum(1)
        return [*factors, core], objective, found.offset, None


@dataclass(frozen=True, eq=False)
class TuckerTangent:
    r"""Gauss-Newton steps for a Tucker form, with block relaxation as a safeguard.

    With orthonormal factors U_k and ``unfold(G, k)^T = Q_k R_k``, the tangent space of the tensors of these
    ranks holds ``G' x U + sum_k (fold(B_k Q_k^T)) x_(j != k) U_j`` with B_k orthogonal to U_k, all terms
    orthogonal to one another. The best step is an ordinary ridge regression on all contractions at once
    (after [1]_); it lives in the span of U_k and B_k, where a small HOSVD brings it back to the ranks. Then
    the core is solved for. The objective is that of `TuckerSweep`.

    The state is factors, core, the contraction of X with the factors of the trailing modes, and the parts
    of `Main`.

    Parameters
    ----------
    kept : list of Tensor, each of shape (C, r_k)
        1 for columns in use, else 0, so that problems of several ranks share a batch.

    References
    ----------
    .. [1] Y. Luo, A. Zhang, "Low-rank tensor estimation via Riemannian Gauss-Newton", JMLR 24, 2023.
    """

    kept: list[Tensor]

    def begin(self, samples: Samples, problems: Problems, factors: list[Tensor]) -> list[Tensor]:
        """Return the state with given factors, (C, n_k, r_k), and the best core for them."""
        shape, cut = samples.grid.shape, samples.grid.cut
        factors = [steady(factor, kept) for factor, kept in zip(factors, self.kept, strict=False)]
        ranks = [factor.shape[2] for factor in factors]
        T = samples.contract(_kronecker(factors[cut:]), leading=False)
        # The leading modes stand before the trailing ranks, as in the tensor.
        T = T.view(*T.shape[:2], *ranks[cut:], *shape[:cut])
        T = T.permute(0, 1, *range(2 + len(shape) - cut, 2 + len(shape)), *range(2, 2 + len(shape) - cut))
        Z = T
        for k in range(cut):
            Z = _shrunk(Z, factors[k], 2 + k)
        main = Main.fitted(problems, Z.flatten(2), more=sum(factor[0].numel() for factor in factors))
        core = main.solution.view(-1, *ranks)
        return [*factors, core, T, *main.parts()]

    def parts(self, state: list[Tensor]) -> list[Tensor]:
        """Return the factors and the core of a state."""
        return state[: len(self.kept) + 1]

    def sweep(
        self, samples: Samples, problems: Problems, state: list[Tensor]
    ) -> tuple[list[Tensor], Tensor, Tensor, Tensor | None]:
        """Make one step."""
        shape, cut = samples.grid.shape, samples.grid.cut
        d = len(shape)
        factors, core, T, main = state[:d], state[d], state[d + 1], Main.of(state)
        ranks = tuple(core.shape[1:])
        far = samples.contract(_kronecker(factors[:cut]), leading=True)
        far = far.view(*far.shape[:2], *ranks[:cut], *shape[cut:])
        outside, turns = [], []
        for k in range(d):
            Z = T if k < cut else far
            for j in range(cut) if k < cut else range(cut, d):
                if j != k:
                    Z = _shrunk(Z, factors[j], 2 + j)
            Q = steady(unfold(core, k, order=d).mT, self.kept[k])
            Z = torch.movedim(Z, 2 + k, 2).flatten(3) @ Q.unsqueeze(1)
            U = factors[k].unsqueeze(1)
            outside.append((Z - U @ (U.mT @ Z)).flatten(2))
            turns.append(Q)
        moved, p, promised = step_of(problems, main, torch.cat(outside, 2))
        steps = p.split([n * r for n, r in zip(shape, ranks, strict=True)], dim=1)
        steps = [B.view(-1, n, r) for B, n, r in zip(steps, shape, ranks, strict=True)]
        after = self.begin(samples, problems, _retracted(factors, core + moved.view_as(core), steps, turns))
        return chosen(self, TuckerSweep(self.kept), samples, problems, state, after, promised)


def _retracted(
    factors: list[Tensor], core: Tensor, steps: Sequence[Tensor], turns: list[Tensor]
) -> list[Tensor]:
    """Return factors (C, n_k, r_k) near the tensor ``core x U + sum_k fold(B_k Q_k^T) x U``, by HOSVD."""
    d, ranks = len(factors), core.shape[1:]
    inner = core.new_zeros(len(core), *(2 * r for r in ranks))
    corner = [slice(None), *(slice(r) for r in ranks)]
    inner[tuple(corner)] = core
    bases = []
    for k, (B, Q) in enumerate(zip(steps, turns, strict=True)):
        away, R = torch.linalg.qr(B)
        beside = list(corner)
        beside[1 + k] = slice(ranks[k], 2 * ranks[k])
        inner[tuple(beside)] = fold(R @ Q.mT, k, ranks)
        bases.append(torch.cat([factors[k], away], 2))
    found = []
    for k, basis in enumerate(bases):
        vectors = torch.linalg.svd(unfold(inner, k, order=d), full_matrices=False).U
        found.append(basis @ vectors[..., : ranks[k]])
    return found


def _kronecker(factors: list[Tensor]) -> Tensor:
    """Return the Kronecker product of matrices (C, n_k, r_k), the last one running fastest."""
    product = factors[0]
    for factor in factors[1:]:
        product = torch.einsum("car,cbs->cabrs", product, factor).flatten(1, 2).flatten(2, 3)
    return product


def _shrunk(Z: Tensor, factor: Tensor, axis: int) -> Tensor:
    """Multiply one axis of Z (C, N, ...) by the transpose of a factor (C, n, r), in one product each."""
    moved = Z.movedim(axis, -1)
    flat = moved.reshape(len(Z), -1, moved.shape[-1]) @ factor
    return flat.view(*moved.shape[:-1], -1).movedim(-1, axis)
