r"""One sweep of block least squares for Blast: the exact minimizers over U, V and S in turn.

Notation: ``Z_i = [diag(s_i1) V_1, ...] (r, n)`` so that row block i is ``U_i Z_i``;
``Y_j = [U_1 diag(s_1j); ...] (m, r)`` so that column block j is ``Y_j V_j``.

A sweep improves k problems of one shape at once: the first axis of everything is theirs, and no number of
one depends on another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lowdim.algebra.gram import coupling_solve, proximal_solve
from lowdim.algebra.problem import Problem, lower_root

__all__ = ["Factors", "OutputSweep", "WeightSweep", "product", "sweep_for"]

Factors = tuple[Tensor, Tensor, Tensor]

# Floats of the temporary that the left Gram matrices are summed in: a slice that stays in the cache.
_SLICE = 1 << 18


def rows_of(S: Tensor, V: Tensor) -> Tensor:
    """Return all ``Z_i``, of shape (..., b1, r, n)."""
    Z = S.movedim(-2, -3)[..., None] * V.movedim(-3, -2)[..., None, :, :, :]
    return Z.reshape(*Z.shape[:-2], V.shape[-3] * V.shape[-1])


def left_factors(U: Tensor, S: Tensor) -> Tensor:
    """Return all ``Y_j``, of shape (..., b2, m, r)."""
    Y = U[..., None, :, :, :] * S.transpose(-3, -1)[..., None, :]
    return Y.reshape(*Y.shape[:-3], U.shape[-3] * U.shape[-2], U.shape[-1])


def product(factors: Factors) -> Tensor:
    """Return the matrix (..., m, n) of Blast factors."""
    U, S, V = factors
    X = U @ rows_of(S, V)
    return X.reshape(*X.shape[:-3], X.shape[-3] * X.shape[-2], X.shape[-1])


@dataclass(frozen=True)
class WeightSweep:
    """Minimize ``||A - X||_F^2`` (blast.md 2.3): all blocks of U, of V, of S at once.

    Parameters
    ----------
    matrix : Tensor of shape (k, m, n)
        The matrices A.
    energy : Tensor of shape (k,), float64
        Their squared norms.
    """

    matrix: Tensor
    energy: Tensor

    @classmethod
    def of(cls, problems: Sequence[Problem], blocks: tuple[int, int]) -> WeightSweep:
        """Prepare the sweep of problems without second moments."""
        return cls(torch.stack([one.matrix for one in problems]), _energies(problems))

    def only(self, items: list[int]) -> WeightSweep:
        """Return the sweep of some of the problems."""
        return replace(self, matrix=self.matrix[items], energy=self.energy[items])

    def __call__(self, factors: Factors) -> tuple[Factors, Tensor]:
        """Return the improved factors and their squared relative errors (k,), float64 on the CPU."""
        A = self.matrix
        U, S, V = factors
        (k, b1, p, r), (_, b2, _, q) = U.shape, V.shape

        Z = rows_of(S, V)
        rows = A.reshape(k, b1, p, b2 * q)
        U = proximal_solve(Z @ Z.mT, Z @ rows.mT, U.mT).mT.contiguous()

        Y = left_factors(U, S)
        columns = A.reshape(k, b1 * p, b2, q).transpose(1, 2)
        V = proximal_solve(Y.mT @ Y, Y.mT @ columns, V).contiguous()

        K = U.mT @ U
        projected = (U.mT @ rows).reshape(k, b1, r, b2, q)
        right = (projected * V.transpose(1, 2)[:, None]).sum(-1)
        S = S.clone()
        for j in range(b2):  # all b1 b2 Gram matrices at once would not fit into the cache
            inner = K * (V[:, j] @ V[:, j].mT)[:, None]
            S[..., j] = coupling_solve(inner, right[..., j], S[..., j].mT).mT

        factors = (U, S, V)
        residual = A - product(factors)
        squared = residual.square().sum((1, 2), dtype=torch.float64)
        return factors, squared.cpu() / self.energy


@dataclass(frozen=True)
class OutputSweep:
    """Minimize ``tr((A - X) H (A - X)^T)`` (blast.md 2.4): U at once, then V_j and S[:, :, j] in turn.

    Parameters
    ----------
    matrix, weighted : Tensor of shape (k, m, n)
        The matrices A and A H.
    bands : Tensor of shape (k, b2, q, n)
        The second moments H in bands of rows.
    corners, roots : list of Tensor of shape (k, q, q)
        The diagonal blocks ``H_jj`` and their lower Cholesky factors.
    energy : Tensor of shape (k,), float64
        The squared norms of A in the problems' metrics.
    """

    matrix: Tensor
    weighted: Tensor
    bands: Tensor
    corners: list[Tensor]
    roots: list[Tensor]
    energy: Tensor

    @classmethod
    def of(cls, problems: Sequence[Problem], blocks: tuple[int, int]) -> OutputSweep:
        """Prepare the sweep of problems with second moments."""
        H = torch.stack([one.second_moment for one in problems if one.second_moment is not None])
        k, n, b2 = len(H), H.shape[-1], blocks[1]
        q = n // b2
        bands = H.reshape(k, b2, q, n)
        corners = [bands[:, j, :, j * q : (j + 1) * q].contiguous() for j in range(b2)]
        return cls(
            matrix=torch.stack([one.matrix for one in problems]),
            weighted=torch.stack([one.weighted for one in problems]),
            bands=bands,
            corners=corners,
            roots=[lower_root(corner).to(corner.dtype) for corner in corners],
            energy=_energies(problems),
        )

    def only(self, items: list[int]) -> OutputSweep:
        """Return the sweep of some of the problems."""
        return OutputSweep(
            self.matrix[items],
            self.weighted[items],
            self.bands[items],
            [corner[items] for corner in self.corners],
            [root[items] for root in self.roots],
            self.energy[items],
        )

    def left_gram(self, S: Tensor, V: Tensor) -> Tensor:
        """Return ``Z_i H Z_i^T`` for all i, of shape (k, b1, r, r).

        The matrices ``V_j H_jl V_l^T`` are common to all i; for every component
        d the couplings are then two small products.
        """
        k, b2, r, q = V.shape
        b1 = S.shape[2]
        images = torch.stack([V[:, j] @ self.bands[:, j] for j in range(b2)], 1)
        images = images.reshape(k, b2 * r, b2, q)
        common = V.new_empty(k, r, b2, b2 * r)
        for j in range(b2):
            common[:, :, j] = V[:, j] @ images[:, :, j].mT
        gram = V.new_empty(k, b1, r, r)
        weights = S.permute(0, 2, 3, 1)[:, None]
        step = max(1, _SLICE // (k * b1 * b2 * r))
        for d in range(0, r, step):
            part = (S[:, d : d + step] @ common[:, d : d + step]).reshape(k, -1, b1, b2, r)
            gram[:, :, d : d + step] = part.mul_(weights).sum(3).transpose(1, 2)
        return gram

    def __call__(self, factors: Factors) -> tuple[Factors, Tensor]:
        """Return the improved factors and their squared relative errors (k,), float64 on the CPU."""
        U, S, V = factors
        (k, b1, p, r), (_, b2, _, q) = U.shape, V.shape
        m, n = b1 * p, b2 * q

        Z = rows_of(S, V)
        right = Z @ self.weighted.reshape(k, b1, p, n).mT
        U = proximal_solve(self.left_gram(S, V), right, U.mT).mT.contiguous()

        X = (U @ Z).reshape(k, m, n)
        P = torch.baddbmm(self.weighted, X, self.bands.reshape(k, n, n), alpha=-1)
        K = U.mT @ U
        S, V = S.clone(), V.clone()
        for j in range(b2):
            here = slice(j * q, (j + 1) * q)
            corner = self.corners[j]
            Y = (U * S[..., j].mT[:, :, None]).reshape(k, m, r)
            right = torch.cholesky_solve(P[..., here].mT @ Y, self.roots[j]).mT
            change = proximal_solve(Y.mT @ Y, right)
            V[:, j] += change
            shift = (Y @ change).reshape(k, b1, p, q)

            image = V[:, j] @ corner
            error = P[..., here].reshape(k, b1, p, q) - shift @ corner[:, None]
            right = ((U.mT @ error) * V[:, None, j]).sum(-1)
            change = coupling_solve(K * (image @ V[:, j].mT)[:, None], right)
            S[..., j] += change.mT
            shift += (U * change[:, :, None]) @ V[:, None, j]
            X[..., here] += shift.reshape(k, m, q)
            P.baddbmm_(shift.reshape(k, m, q), self.bands[:, j], alpha=-1)

        squared = ((self.matrix - X) * P).sum((1, 2), dtype=torch.float64)
        return (U, S, V), squared.clamp_min(0.0).cpu() / self.energy


def _energies(problems: Sequence[Problem]) -> Tensor:
    return torch.tensor([one.energy for one in problems], dtype=torch.float64)


def sweep_for(problems: Sequence[Problem], blocks: tuple[int, int]) -> WeightSweep | OutputSweep:
    """Return the sweep for problems of one shape, all with or all without a second moment."""
    kind = WeightSweep if problems[0].second_moment is None else OutputSweep
    return kind.of(problems, blocks)
