"""CP: block relaxation of coefficients that are a sum of outer products."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lowdim.algebra.tensors import khatri_rao
from lowdim.regress.relax import Problems, normalized, steady
from lowdim.regress.samples import Samples

__all__ = ["CPSweep"]


@dataclass(frozen=True, eq=False)
class CPSweep:
    r"""Block relaxation of a CP form, ``W = sum_r w1_r o ... o wd_r`` ([1]_ section 3.2).

    The block of mode k is an ordinary ridge regression on ``Z_k[i] = unfold_k(X_i) KhatriRao(others)``. With
    two modes the passive factor is made orthonormal first, so that the penalty is that of the coefficients,
    ``alpha ||W||^2``. With more its columns are made to have norm 1, and the penalty is ``alpha sum_r
    ||w1_r o ... o wd_r||^2``, which keeps terms from growing against one another.

    Parameters
    ----------
    kept : Tensor of shape (C, R)
        1 for columns in use, else 0, so that problems of several ranks share a batch.

    References
    ----------
    .. [1] H. Zhou, L. Li, H. Zhu, "Tensor regression with applications in neuroimaging data analysis",
       JASA 108, 2013.
    """

    kept: Tensor

    def _ready(self, factor: Tensor, modes: int) -> Tensor:
        return steady(factor, self.kept) if modes == 2 else normalized(factor)

    def sweep(
        self, samples: Samples, problems: Problems, state: list[Tensor]
    ) -> tuple[list[Tensor], Tensor, Tensor, Tensor | None]:
        """Solve every factor once."""
        shape, cut = samples.grid.shape, samples.grid.cut
        d, R = len(shape), self.kept.shape[1]
        factors = [self._ready(factor, d) for factor in state]
        objective = offset = problems.energy
        scaled = factors[-1]
        for own, passive in ((range(cut), range(cut, d)), (range(cut, d), range(cut))):
            T = samples.contract(khatri_rao([factors[j] for j in passive]), leading=own[0] > 0)
            T = T.view(*T.shape[:3], *(shape[k] for k in own))
            for k in own:
                Z = _but_one(T, [factors[j] for j in own], k - own[0])
                found = problems.solve(Z.flatten(2))
                scaled = found.solution.view(-1, R, shape[k]).mT
                factors[k] = self._ready(scaled, d)
                objective = found.misfit + problems.alpha * found.solution.square().sum(1)
                offset = found.offset
        return [*factors[:-1], scaled], objective, offset, None


def _but_one(T: Tensor, factors: list[Tensor], own: int) -> Tensor:
    """Sum T (C, N, R, n_a, n_b, ...) over all modes but one, weighted term by term: (C, N, R, n_own)."""
    for j in reversed(range(len(factors))):
        if j != own:
            others = [1] * T.ndim
            others[0], others[2], others[3 + j] = len(T), T.shape[2], T.shape[3 + j]
            T = (T * factors[j].mT.reshape(others)).sum(3 + j, keepdim=True)
    return T.reshape(*T.shape[:3], -1)
