r"""One sweep of block least squares for Blast: the exact minimizers over U, V and S in turn.

Notation: ``Z_i = [diag(s_i1) V_1, ...] (r, n)`` so that row block i is ``U_i Z_i``;
``Y_j = [U_1 diag(s_1j); ...] (m, r)`` so that column block j is ``Y_j V_j``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lowdim.algebra.gram import coupling_solve, proximal_solve
from lowdim.algebra.problem import Problem, lower_root

__all__ = ["Factors", "OutputSweep", "WeightSweep", "sweep_for"]

Factors = tuple[Tensor, Tensor, Tensor]

# Floats of the temporary that the left Gram matrices are summed in: a slice that stays in the cache.
_SLICE = 1 << 18


def rows_of(S: Tensor, V: Tensor) -> Tensor:
    """Return all ``Z_i``, of shape (b1, r, n)."""
    b2, r, q = V.shape
    return (S.permute(1, 0, 2)[..., None] * V.permute(1, 0, 2)[None]).reshape(S.shape[1], r, b2 * q)


def left_factors(U: Tensor, S: Tensor) -> Tensor:
    """Return all ``Y_j``, of shape (b2, m, r)."""
    b1, p, r = U.shape
    return (U[None] * S.permute(2, 1, 0)[:, :, None]).reshape(S.shape[2], b1 * p, r)


def product(factors: Factors) -> Tensor:
    """Return the matrix (m, n) of Blast factors."""
    U, S, V = factors
    return torch.bmm(U, rows_of(S, V)).reshape(U.shape[0] * U.shape[1], -1)


@dataclass(frozen=True)
class WeightSweep:
    """Minimize ``||A - X||_F^2`` (blast.md 2.3): all blocks of U, of V, of S at once.

    Parameters
    ----------
    problem : Problem
    blocks : pair of int
    """

    problem: Problem
    blocks: tuple[int, int]

    def __call__(self, factors: Factors) -> tuple[Factors, float]:
        """Return the improved factors and their squared relative error."""
        A = self.problem.matrix
        U, S, V = factors
        (b1, p, r), (b2, _, q) = U.shape, V.shape

        Z = rows_of(S, V)
        right = torch.bmm(Z, A.reshape(b1, p, -1).mT)
        U = proximal_solve(torch.bmm(Z, Z.mT), right, U.mT).mT.contiguous()

        Y = left_factors(U, S)
        columns = A.reshape(-1, b2, q).permute(1, 0, 2)
        V = proximal_solve(torch.bmm(Y.mT, Y), torch.bmm(Y.mT, columns), V).contiguous()

        K = torch.bmm(U.mT, U)
        projected = torch.bmm(U.mT, A.reshape(b1, p, -1)).reshape(b1, r, b2, q)
        right = (projected * V.permute(1, 0, 2)).sum(-1)
        S = S.clone()
        for j in range(b2):  # all b1 b2 Gram matrices at once would not fit into the cache
            before = S[:, :, j].T
            S[:, :, j] = coupling_solve(K * (V[j] @ V[j].T), right[:, :, j], before).T

        factors = (U, S, V)
        residual = A - product(factors)
        return factors, float(residual.square().sum(dtype=torch.float64)) / self.problem.energy


@dataclass(frozen=True)
class OutputSweep:
    """Minimize ``tr((A - X) H (A - X)^T)`` (blast.md 2.4): U at once, then V_j and S[:, :, j] in turn.

    Parameters
    ----------
    problem : Problem
    blocks : pair of int
    """

    problem: Problem
    blocks: tuple[int, int]

    @cached_property
    def _bands(self) -> list[Tensor]:
        """The bands ``H_j`` (q, n) of the second moment."""
        H = self.problem.second_moment
        assert H is not None
        return list(H.reshape(self.blocks[1], -1, H.shape[1]))

    @cached_property
    def _corners(self) -> list[Tensor]:
        """The diagonal blocks ``H_jj`` (q, q)."""
        q = self._bands[0].shape[0]
        return [band[:, j * q : (j + 1) * q].contiguous() for j, band in enumerate(self._bands)]

    @cached_property
    def _roots(self) -> list[Tensor]:
        """Their lower Cholesky factors."""
        return [lower_root(corner).to(corner.dtype) for corner in self._corners]

    def left_gram(self, S: Tensor, V: Tensor) -> Tensor:
        """Return ``Z_i H Z_i^T`` for all i, of shape (b1, r, r).

        The matrices ``V_j H_jk V_k^T`` are common to all i; for every component
        d the couplings are then two small products.
        """
        b2, r, q = V.shape
        b1 = S.shape[1]
        images = torch.stack([V[j] @ self._bands[j] for j in range(b2)]).reshape(b2 * r, b2, q)
        common = torch.empty(r, b2, b2 * r, dtype=V.dtype, device=V.device)
        for k in range(b2):
            common[:, k] = V[k] @ images[:, k].mT
        gram = torch.empty(b1, r, r, dtype=V.dtype, device=V.device)
        weights = S.permute(1, 2, 0)[None]
        step = max(1, _SLICE // (b1 * b2 * r))
        for d in range(0, r, step):
            part = torch.bmm(S[d : d + step], common[d : d + step]).reshape(-1, b1, b2, r)
            gram[:, d : d + step] = part.mul_(weights).sum(2).permute(1, 0, 2)
        return gram

    def __call__(self, factors: Factors) -> tuple[Factors, float]:
        """Return the improved factors and their squared relative error."""
        problem, H = self.problem, self.problem.second_moment
        assert H is not None
        U, S, V = factors
        (b1, p, r), (b2, _, q) = U.shape, V.shape
        m = b1 * p

        Z = rows_of(S, V)
        right = torch.bmm(Z, problem.weighted.reshape(b1, p, -1).mT)
        U = proximal_solve(self.left_gram(S, V), right, U.mT).mT.contiguous()

        X = torch.bmm(U, Z).reshape(m, -1)
        P = torch.addmm(problem.weighted, X, H, alpha=-1)
        K = torch.bmm(U.mT, U)
        S, V = S.clone(), V.clone()
        for j in range(b2):
            here = slice(j * q, (j + 1) * q)
            corner = self._corners[j]
            Y = (U * S[:, :, j].T[:, None]).reshape(m, r)
            right = torch.cholesky_solve(P[:, here].T @ Y, self._roots[j]).T
            change = proximal_solve(Y.T @ Y, right)
            V[j] += change
            shift = (Y @ change).reshape(b1, p, q)

            image = V[j] @ corner
            error = P[:, here].reshape(b1, p, q) - shift @ corner
            right = (torch.bmm(U.mT, error) * V[j]).sum(-1)
            change = coupling_solve(K * (image @ V[j].T), right)
            S[:, :, j] += change.T
            shift += (U * change[:, None]) @ V[j]
            shift = shift.reshape(m, q)
            X[:, here] += shift
            P.addmm_(shift, self._bands[j], alpha=-1)

        squared = float(((problem.matrix - X) * P).sum(dtype=torch.float64))
        return (U, S, V), max(squared, 0.0) / problem.energy


def sweep_for(problem: Problem, blocks: tuple[int, int]) -> WeightSweep | OutputSweep:
    """Return the sweep for a problem with or without a second moment."""
    kind = WeightSweep if problem.second_moment is None else OutputSweep
    return kind(problem, blocks)
