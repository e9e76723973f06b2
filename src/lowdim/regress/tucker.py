"""Tucker: block relaxation of coefficients that are a small core multiplied by a matrix in every mode."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowdim.algebra.tensors import fold, unfold
from lowdim.regress.relax import Problems, steady
from lowdim.regress.samples import Samples

__all__ = ["TuckerSweep"]


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
