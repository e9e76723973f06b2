"""Matrix: coefficients of low rank in two modes, by Newton's method on their manifold."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowdim.regress.relax import Problems, steady
from lowdim.regress.ridge import product
from lowdim.regress.samples import Samples
from lowdim.regress.tangent import Main, merged, step_of, worse

__all__ = ["MatrixSweep"]

BENDING = 1.0
"""A sweep that lowers the objective by less than this share of it is followed by one with curvature."""

SINGULAR = 1e-6
"""Share of the largest entry on the diagonal of A's triangle from which on A has its rank."""


@dataclass(frozen=True, eq=False)
class MatrixSweep:
    r"""Newton's steps for ``W = A V^T``, with blocks of exact least squares as a safeguard.

    With U, V orthonormal bases of the column and row space of W, the tangent space of the matrices of this
    rank holds ``T = A' V^T + U P^T`` with ``P^T V = 0``, and ``||T||^2 = ||A'||^2 + ||P||^2``. The best T is
    an ordinary ridge regression on both contractions of X at once; its best approximation of the rank
    follows by a small SVD (after [1]_, whose retraction is another one), and A is solved for once more with
    V held fixed. Near the end the curvature of the manifold is added: with ``A = U S`` and E half the
    gradient in W, ``2 <E, A' S^-1 P^T>`` (as for any matrices of fixed rank, [2]_). A step that does not
    lower the objective is replaced by one of block relaxation, which always does.

    The state is A, V, the last fall as a share of the objective, and the parts of `Main`.

    Parameters
    ----------
    kept : Tensor of shape (C, R)
        1 for columns in use, else 0, so that problems of several ranks share a batch.

    References
    ----------
    .. [1] Y. Luo, W. Huang, X. Li, A. Zhang, "Recursive importance sketching for rank constrained least
       squares", Oper. Res. 72, 2024.
    .. [2] B. Vandereycken, "Low-rank matrix completion by Riemannian optimization", SIAM J. Optim. 23, 2013.
    """

    kept: Tensor

    def begin(self, samples: Samples, problems: Problems, factors: list[Tensor]) -> list[Tensor]:
        """Return the state after one sweep of blocks from factors (C, n_k, R), of which the last is used."""
        A = self._fitted(samples, problems, steady(factors[-1], self.kept))[0]
        Z = samples.contract(steady(A, self.kept), leading=True)
        return self._turned(samples, problems, Z)

    def parts(self, state: list[Tensor]) -> list[Tensor]:
        """Return the factors of a state."""
        return state[:2]

    def sweep(
        self, samples: Samples, problems: Problems, state: list[Tensor]
    ) -> tuple[list[Tensor], Tensor, Tensor, Tensor | None]:
        """Make one step."""
        A, V, fall, main = *state[:3], Main.of(state)
        R, n1, n2 = self.kept.shape[1], A.shape[1], V.shape[1]
        U, S = torch.linalg.qr(A)
        U = U * self.kept.unsqueeze(1)
        Z = samples.contract(U, leading=True)
        # What V spans already is the business of A'.
        flat = Z.flatten(1, 2)
        outside = (flat - product(product(flat, V), V.mT)).view_as(Z)
        bend = None
        if main.factor.shape[1] and bool((fall < BENDING).any()):
            bend = self._curvature(samples, problems, A, S, V, main.rest, fall < BENDING)
        moved, found, promised = step_of(problems, main, outside.flatten(2), bend)
        moved = A + moved.view(-1, R, n1).mT
        P = found.view(-1, R, n2).mT
        R1 = torch.linalg.qr(torch.cat([moved, U], 2)).R
        Q2, R2 = torch.linalg.qr(torch.cat([V, P - V @ (V.mT @ P)], 2))
        _, _, rows = torch.linalg.svd(R1 @ R2.mT, full_matrices=False)
        after = self._fitted(samples, problems, Q2 @ rows.mT[..., :R] * self.kept.unsqueeze(1))
        now = Main.of(after)
        failed = worse(now.objective, main.objective)
        if bool(failed.any()):
            after = merged(failed, self._turned(samples, problems, Z), after)
            now, promised = Main.of(after), torch.where(failed, torch.inf, promised)
        after[2] = (main.objective - now.objective) / now.objective.clamp_min(1e-300)
        return after, now.objective, now.offset, promised

    def _curvature(
        self,
        samples: Samples,
        problems: Problems,
        A: Tensor,
        S: Tensor,
        V: Tensor,
        rest: Tensor,
        wanted: Tensor,
    ) -> Tensor:
        """Return ``S^-1 (x) E (I - V V^T)``, scaled as the rows; 0 where not wanted or A is singular."""
        C, n1, R = A.shape
        weighted = rest if problems.equal is not None else rest * problems.weights.sqrt()
        E = -samples.moment(weighted.mT).mT.view(C, n1, -1)
        E = E + (problems.alpha / problems.size).view(-1, 1, 1) * (A @ V.mT)
        E = E - (E @ V) @ V.mT
        size = S.diagonal(dim1=1, dim2=2).abs()
        unused = 1 - self.kept
        regular = ((size > SINGULAR * size.amax(1, keepdim=True)) | (unused > 0)).all(1) & wanted
        S = torch.where(regular.view(-1, 1, 1), S + torch.diag_embed(unused), torch.eye(R).to(S))
        inverse = torch.linalg.inv(S) * self.kept.unsqueeze(1) * regular.view(-1, 1, 1)
        return torch.einsum("crs,cab->crasb", inverse, E).reshape(C, R * n1, -1)

    def _turned(self, samples: Samples, problems: Problems, Z: Tensor) -> list[Tensor]:
        """Return the state after the other block: the best V for a column space whose contraction is Z."""
        block = problems.solve(Z.flatten(2)).solution.view(-1, *Z.shape[2:]).mT
        return self._fitted(samples, problems, steady(block, self.kept))

    def _fitted(self, samples: Samples, problems: Problems, V: Tensor) -> list[Tensor]:
        """Return the state of a row space with the best A."""
        Z = samples.contract(V, leading=False)
        main = Main.fitted(problems, Z.flatten(2), more=V[0].numel())
        A = main.solution.view(-1, *Z.shape[2:]).mT
        return [A, V, torch.full_like(main.objective, torch.inf), *main.parts()]
