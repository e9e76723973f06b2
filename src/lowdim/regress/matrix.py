"""Matrix: coefficients of low rank in two modes, by least squares on their tangent space."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowdim.regress.relax import Problems, steady
from lowdim.regress.samples import Samples

__all__ = ["MatrixSweep"]


@dataclass(frozen=True, eq=False)
class MatrixSweep:
    r"""Riemannian Gauss-Newton for ``W = A V^T``, with blocks of exact least squares as a safeguard.

    With U, V orthonormal bases of the column and row space of W, the tangent space of the matrices of this
    rank holds ``T = A' V^T + U P^T`` with ``P^T V = 0``, and ``||T||^2 = ||A'||^2 + ||P||^2``. The best T is
    an ordinary ridge regression on both contractions of X at once; its best approximation of the rank
    follows by a small SVD (after [1]_, whose retraction is another one), and A is solved for once more with
    V held fixed. Where samples suffice this converges quadratically, where block relaxation is linear. A
    step that does not lower the objective is replaced by one of block relaxation, which always does.

    The state is A, V, the contraction of X with V, and the objective.

    Parameters
    ----------
    kept : Tensor of shape (C, R)
        1 for columns in use, else 0, so that problems of several ranks share a batch.

    References
    ----------
    .. [1] Y. Luo, W. Huang, X. Li, A. Zhang, "Recursive importance sketching for rank constrained least
       squares", Oper. Res. 72, 2024.
    """

    kept: Tensor

    def begin(self, samples: Samples, problems: Problems, V: Tensor) -> list[Tensor]:
        """Return the state with a given row space, (C, n2, R), and the best A for it."""
        state, _ = self._fitted(samples, problems, steady(V, self.kept))
        return state

    def sweep(
        self, samples: Samples, problems: Problems, state: list[Tensor]
    ) -> tuple[list[Tensor], Tensor, Tensor, Tensor | None]:
        """Make one step."""
        A, V, Z1, before = state
        R, n1, n2 = self.kept.shape[1], A.shape[1], V.shape[1]
        U = steady(A, self.kept)
        Z2 = samples.contract(U, leading=True)
        # What V spans already is the business of A'.
        flat = Z2.flatten(1, 2)
        outside = (flat - (flat @ V) @ V.mT).view_as(Z2)
        found = problems.solve(torch.cat([Z1.flatten(2), outside.flatten(2)], 2))
        promised = before - found.misfit - problems.alpha * found.solution.square().sum(1)
        moved = found.solution[:, : R * n1].view(-1, R, n1).mT
        P = found.solution[:, R * n1 :].view(-1, R, n2).mT
        R1 = torch.linalg.qr(torch.cat([moved, U], 2)).R
        Q2, R2 = torch.linalg.qr(torch.cat([V, P - V @ (V.mT @ P)], 2))
        _, _, rows = torch.linalg.svd(R1 @ R2.mT, full_matrices=False)
        state, offset = self._fitted(samples, problems, Q2 @ rows.mT[..., :R] * self.kept.unsqueeze(1))
        worse = state[-1] > before
        if bool(worse.any()):
            block = problems.solve(Z2.flatten(2)).solution.view(-1, R, n2).mT
            other, shift = self._fitted(samples, problems, steady(block, self.kept))
            pick = [worse.view(-1, *[1] * (part.ndim - 1)) for part in state]
            state = [torch.where(w, b, a) for w, a, b in zip(pick, state, other, strict=True)]
            offset = torch.where(worse, shift, offset)
        return state, state[-1], offset, promised

    def _fitted(self, samples: Samples, problems: Problems, V: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the state of a row space with the best A, and the offset of the intercept."""
        Z1 = samples.contract(V, leading=False)
        found = problems.solve(Z1.flatten(2))
        A = found.solution.view(-1, V.shape[2], Z1.shape[3]).mT
        return [A, V, Z1, found.misfit + problems.alpha * found.solution.square().sum(1)], found.offset
