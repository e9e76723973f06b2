"""CP: coefficients that are a sum of outer products, by tangent steps or by relaxation of blocks."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lowdim.algebra.tensors import khatri_rao
from lowdim.regress.relax import Problems, normalized, steady
from lowdim.regress.samples import Samples
from lowdim.regress.tangent import Main, chosen, step_of

__all__ = ["CPSweep", "CPTangent"]


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

    def parts(self, state: list[Tensor]) -> list[Tensor]:
        """Return the factors of a state."""
        return state

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


@dataclass(frozen=True, eq=False)
class CPTangent:
    r"""Gauss-Newton steps for a CP form of three and more modes, with block relaxation as a safeguard.

    With all factors but the first of unit columns, a term moves along ``a' o v o w + a o p o w / s + a o v o
    q / s`` with p orthogonal to v, q to w, and s the norm of a; its squared norm is ``||a'||^2 + ||p||^2 +
    ||q||^2``. So the best step is an ordinary ridge regression on the contractions of all modes at once,
    which cost no more reads of X than the blocks one after another. Then the first factor is solved for with
    the others held fixed. The objective is that of `CPSweep`.

    The state is the factors, the contraction of X with those of the trailing modes, and the parts of `Main`.

    Parameters
    ----------
    kept : Tensor of shape (C, R)
        1 for columns in use, else 0, so that problems of several ranks share a batch.
    """

    kept: Tensor

    def begin(self, samples: Samples, problems: Problems, factors: list[Tensor]) -> list[Tensor]:
        """Return the state with given factors, (C, n_k, R), and the best first one for them."""
        shape, cut = samples.grid.shape, samples.grid.cut
        factors = [normalized(factor) * self.kept.unsqueeze(1) for factor in factors]
        T = samples.contract(khatri_rao(factors[cut:]), leading=False)
        T = T.view(*T.shape[:3], *shape[:cut])
        more = self.kept.shape[1] * sum(shape[1:])
        main = Main.fitted(problems, _but_one(T, factors[:cut], 0).flatten(2), more=more)
        factors[0] = main.solution.view(-1, self.kept.shape[1], shape[0]).mT
        return [*factors, T, *main.parts()]

    def parts(self, state: list[Tensor]) -> list[Tensor]:
        """Return the factors of a state."""
        return state[: -len(fields(Main)) - 1]

    def sweep(
        self, samples: Samples, problems: Problems, state: list[Tensor]
    ) -> tuple[list[Tensor], Tensor, Tensor, Tensor | None]:
        """Make one step."""
        shape, cut, R = samples.grid.shape, samples.grid.cut, self.kept.shape[1]
        factors, T, main = state[: len(shape)], state[len(shape)], Main.of(state)
        size = factors[0].norm(dim=1, keepdim=True).clamp_min(1e-150)
        unit = [factors[0] / size, *factors[1:]]
        far = samples.contract(khatri_rao(unit[:cut]), leading=True)
        far = far.view(*far.shape[:3], *shape[cut:])
        outside = []
        for k in range(1, len(shape)):
            Z = _but_one(T, unit[:cut], k) if k < cut else _but_one(far, unit[cut:], k - cut)
            v = unit[k].mT.unsqueeze(1)
            outside.append(torch.addcmul(Z, (Z * v).sum(-1, keepdim=True), v, value=-1).flatten(2))
        _, p, promised = step_of(problems, main, torch.cat(outside, 2))
        moved = [factors[0]]
        for k, step in enumerate(p.split([R * n for n in shape[1:]], dim=1), 1):
            moved.append(factors[k] + step.view(-1, R, shape[k]).mT / size)
        after = self.begin(samples, problems, moved)
        return chosen(self, CPSweep(self.kept), samples, problems, state, after, promised)


def _but_one(T: Tensor, factors: list[Tensor], own: int) -> Tensor:
    """Sum T (C, N, R, n_a, n_b, ...) over all modes but one, weighted term by term: (C, N, R, n_own)."""
    for j in reversed(range(len(factors))):
        if j != own:
            others = [1] * T.ndim
            others[0], others[2], others[3 + j] = len(T), T.shape[2], T.shape[3 + j]
            T = (T * factors[j].mT.reshape(others)).sum(3 + j, keepdim=True)
    return T.reshape(*T.shape[:3], -1)
