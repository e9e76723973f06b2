"""Blocks: factors and core by least squares, one after another, with the phases held.

With phases fixed the problem is linear in each block of the Tucker form (Kwon et al. 2022, the three
least-squares steps). For a dense A the normal equations of a block are small, so they are solved exactly,
in two passes over A per sweep; maps without a matrix take a few steps of conjugate gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lowdim.algebra.solve import cgls
from lowdim.algebra.tensors import mode_product, unfold
from lowdim.phase.alignment import turned
from lowdim.phase.coefficients import ridge_of
from lowdim.phase.measurement import DenseMeasurement, Measurement
from lowdim.phase.video import Video

__all__ = ["Blocks", "DenseBlocks", "OperatorBlocks", "Targets"]

Refresh = Callable[[Tensor, slice], Tensor]


@dataclass
class Targets:
    """What is fitted: magnitudes, and a weight for each (0 leaves it out).

    Parameters
    ----------
    y : Tensor, shape (q, m)
        Magnitudes.
    root : Tensor, shape (q, m), or None
        Square roots of the weights; None stands for ones.
    real : bool
        Whether frames are real although A is complex.
    ridge : float
        Weight of ``||X||_F^2`` beside the misfit.
    """

    y: Tensor
    root: Tensor | None
    real: bool
    ridge: float = 0.0

    def scaled(self, v: Tensor, part: slice = slice(None)) -> Tensor:
        """Multiply values (q, m, ...) by the roots of the weights."""
        if self.root is None:
            return v
        root = self.root[part]
        return v * root.reshape(*root.shape, *[1] * (v.ndim - root.ndim))

    def keep(self, v: Tensor) -> Tensor:
        """Drop the imaginary part where frames are real."""
        return v.real if self.real and v.is_complex() else v


class Blocks(Protocol):
    """One way to run a sweep."""

    targets: Targets

    def columns(self, video: Video) -> Iterator[tuple[slice, Tensor]]:
        """Yield parts of the frames with ``M_k = A_k W``, (q or 1, m, rf)."""

    def sweep(self, video: Video, refresh: Refresh) -> Tensor:
        """Renew coefficients, factors and core in place; return ``A_k x_k``, (q, m)."""


class DenseBlocks:
    """Exact block solves from the dense tensor, in parts of the frames that fit a budget.

    Parameters
    ----------
    A : DenseMeasurement
        The measurement.
    targets : Targets
        What is fitted.
    chunk_bytes : int
        For what is made of one part of the frames.
    """

    def __init__(self, A: DenseMeasurement, targets: Targets, *, chunk_bytes: int) -> None:
        # Strides are free: with its first mode last in memory A meets that mode's factor in one product.
        fits = A.A.numel() * A.A.element_size() <= chunk_bytes
        self.A, self.targets, self.chunk_bytes = A.A, targets, chunk_bytes
        self.turned = A.A.movedim(2, -1).contiguous().movedim(-1, 2) if fits and A.A.ndim > 3 else A.A
        self.q = len(targets.y)

    def columns(self, video: Video) -> Iterator[tuple[slice, Tensor]]:
        """Yield parts of the frames with ``M_k = A_k W``, (q or 1, m, rf)."""
        core = video.core.flatten(0, -2)
        for part in self._parts(video):
            W = self._contract(self._suffix(self._of(part), video, keep=0), video.factors[0], 2)
            yield part, W.flatten(2) @ core.to(W.dtype)

    def sweep(self, video: Video, refresh: Refresh) -> Tensor:
        """Renew coefficients, factors and core in place; return ``A_k x_k``, (q, m)."""
        targets, parts = self.targets, list(self._parts(video))
        core, d = video.core.flatten(0, -2), len(video.factors)
        coef, goal = [], []
        system = _System(targets, shape=video.factors[0].shape)
        for part in parts:
            T = self._suffix(self._of(part), video, keep=0)
            M = self._contract(T, video.factors[0], 2).flatten(2) @ core.to(T.dtype)
            f = refresh(M, part)
            v = (M @ f.to(M.dtype).unsqueeze(-1)).squeeze(-1)
            coef.append(f)
            goal.append(turned(targets.y[part], v))
            heads = (f @ core.mT).reshape(-1, *video.ranks[:-1])
            system.add(self._rows(T, heads, 0), goal[-1], part)
        video.coef = torch.cat(coef)
        self._renew(video, 0, system)
        prefixes = [self._of(part, self.turned) for part in parts]
        for mode in range(1, d):
            system = _System(targets, shape=video.factors[mode].shape)
            for i, part in enumerate(parts):
                prefixes[i] = self._contract(prefixes[i], video.factors[mode - 1], 2 + mode - 1)
                T = self._suffix(prefixes[i], video, keep=mode)
                system.add(self._rows(T, video.heads(part), mode), goal[i], part)
            self._renew(video, mode, system)
        W = [self._contract(prefix, video.factors[-1], 1 + d).flatten(2) for prefix in prefixes]
        video.core = self._core(W, goal, parts, video)
        core = video.core.flatten(0, -2)
        found = [
            (w @ (video.coef[part] @ core.mT).to(w.dtype).unsqueeze(-1)).squeeze(-1)
            for w, part in zip(W, parts, strict=True)
        ]
        return torch.cat(found)

    def _renew(self, video: Video, mode: int, system: _System) -> None:
        video.factors[mode] = system.solve(video.metric(mode))
        video.settle(mode)

    def _core(self, W: list[Tensor], goal: list[Tensor], parts: list[slice], video: Video) -> Tensor:
        """Solve for the core: rows are ``w (x) f_k``, so the Gram matrix is a sum of Kronecker products."""
        targets, (R, rf) = self.targets, (video.image_ranks, video.ranks[-1])
        gram = video.core.new_zeros(R * R, rf * rf)
        moment = video.core.new_zeros(R, rf)
        for w, c, part in zip(W, goal, parts, strict=True):
            f = video.coef[part]
            scaled = targets.scaled(w, part)
            K = targets.keep(scaled.mH @ scaled).flatten(1)
            K = K.expand(len(f), -1)
            outer = (f.conj().unsqueeze(-1) * f.unsqueeze(-2)).flatten(1)
            gram = gram + K.mT @ outer
            pull = targets.keep((scaled.mH @ targets.scaled(c, part).unsqueeze(-1)).squeeze(-1))
            moment = moment + pull.mT @ f.conj()
        # gram[(a, a'), (c, c')] -> [(a, c), (a', c')]
        gram = gram.reshape(R, R, rf, rf).permute(0, 2, 1, 3).reshape(R * rf, R * rf)
        gram = _with_ridge(gram, targets.ridge, video.metric(len(video.factors)))
        return _solved(gram, moment.reshape(-1)).reshape(video.core.shape)

    def _rows(self, T: Tensor, heads: Tensor, mode: int) -> Tensor:
        """Return the rows J of the least squares in factor `mode`: (q, m, n_mode r_mode)."""
        H = unfold(heads, mode, order=heads.ndim - 1).mT.to(
            T.dtype
        )  # (q, product of the other ranks, r_mode)
        m, n = T.shape[1], T.shape[2 + mode]
        flat = T.movedim(2 + mode, 2).reshape(len(T), m * n, -1)
        return (flat @ H).reshape(-1, m, n * H.shape[-1])

    def _suffix(self, T: Tensor, video: Video, *, keep: int) -> Tensor:
        """Contract the modes after `keep` with their factors."""
        for mode in range(len(video.factors) - 1, keep, -1):
            T = self._contract(T, video.factors[mode], 2 + mode)
        return T

    @staticmethod
    def _contract(T: Tensor, factor: Tensor, axis: int) -> Tensor:
        factor = factor.to(T.dtype)
        # One large product, for which the axis has to stand last: many small ones take several times as long.
        return (T.movedim(axis, -1) @ factor).movedim(-1, axis)

    def _of(self, part: slice, A: Tensor | None = None) -> Tensor:
        A = self.A if A is None else A
        return A if len(A) == 1 else A[part]

    def _parts(self, video: Video) -> Iterator[slice]:
        """Yield slices of the frames whose intermediate results fit the budget."""
        sizes = list(self.A.shape[2:])
        widest = max(
            max(sizes[j] * video.ranks[j], sizes[j] * video.image_ranks // video.ranks[j])
            for j in range(len(sizes))
        )
        frame = 2 * self.A.shape[1] * widest * self.A.element_size()
        count = max(1, self.chunk_bytes // frame)
        for first in range(0, self.q, count):
            yield slice(first, min(first + count, self.q))


class OperatorBlocks:
    """Block solves by conjugate gradients: maps are only applied, never formed.

    Parameters
    ----------
    A : Measurement
        The measurement.
    targets : Targets
        What is fitted.
    steps : int
        Of conjugate gradients per block, from where the block is.
    gradient : bool
        Whether one step of steepest descent takes their place (AltGDmin).
    """

    def __init__(self, A: Measurement, targets: Targets, *, steps: int = 10, gradient: bool = False) -> None:
        self.A, self.targets, self.steps = A, targets, 1 if gradient else steps
        self.q = len(targets.y)

    def columns(self, video: Video) -> Iterator[tuple[slice, Tensor]]:
        """Yield all frames with ``M_k = A_k W``, (q, m, rf)."""
        basis = video.basis().unsqueeze(1)
        M = self.A.forward(basis.expand(-1, self.q, *basis.shape[2:]))  # (rf, q, m)
        yield slice(0, self.q), M.permute(1, 2, 0)

    def sweep(self, video: Video, refresh: Refresh) -> Tensor:
        """Renew coefficients, factors and core in place; return ``A_k x_k``, (q, m)."""
        ((part, M),) = self.columns(video)
        video.coef = refresh(M, part)
        v = (M @ video.coef.to(M.dtype).unsqueeze(-1)).squeeze(-1)
        goal = self.targets.scaled(turned(self.targets.y, v))
        for mode in range(len(video.factors)):
            self._factor(video, mode, goal)
        if len(video.factors) > 1:  # a matrix has no core of its own
            self._core(video, goal)
        return self.A.forward(video.frames())

    def _factor(self, video: Video, mode: int, goal: Tensor) -> None:
        """Renew one factor: ``unfold(X_k) = D B_k``, B_k everything else."""
        order = len(video.factors)
        video.settle(mode)
        # In the unknown D L, with K = L L^H, the ridge is a plain damping, and CG is preconditioned.
        L = _root(video.metric(mode))
        heads = mode_product(video.heads(), torch.linalg.inv(L), mode, order=order)
        B = unfold(video.spread(heads, but=mode), mode, order=order)  # (q, r, rest)
        sizes = [factor.shape[0] for factor in video.factors]
        rest = sizes[:mode] + sizes[mode + 1 :]

        def forward(D: Tensor) -> Tensor:
            X = (D @ B).unflatten(-1, rest) if rest else (D @ B).squeeze(-1)
            return self._push(X.movedim(1, 1 + mode))

        def adjoint(c: Tensor) -> Tensor:
            Z = unfold(self._pull(c), mode, order=order)
            return torch.einsum("kne,kre->nr", Z, B.conj())

        found = self._solve(forward, adjoint, goal, video.factors[mode] @ L)
        video.factors[mode] = torch.linalg.solve_triangular(L, found, upper=False, left=False)
        video.settle(mode)

    def _core(self, video: Video, goal: Tensor) -> None:
        L = _root(video.metric(len(video.factors)))
        coef = torch.linalg.solve_triangular(L, video.coef.mT, upper=False).mT
        adjoints = Video(video.core, [factor.mH for factor in video.factors], coef)

        def forward(G: Tensor) -> Tensor:
            return self._push(Video(G, video.factors, coef).frames())

        def adjoint(c: Tensor) -> Tensor:
            heads = adjoints.spread(self._pull(c)).flatten(1)
            return (heads.mT @ coef.conj()).reshape(video.core.shape)

        found = self._solve(forward, adjoint, goal, video.core @ L)
        video.core = torch.linalg.solve_triangular(L, found.flatten(0, -2), upper=False, left=False).reshape(
            video.core.shape
        )

    def _push(self, X: Tensor) -> Tensor:
        return self.targets.scaled(self.A.forward(X))

    def _pull(self, c: Tensor) -> Tensor:
        return self.targets.keep(self.A.adjoint(self.targets.scaled(c)))

    def _solve(
        self,
        forward: Callable[[Tensor], Tensor],
        adjoint: Callable[[Tensor], Tensor],
        goal: Tensor,
        start: Tensor,
    ) -> Tensor:
        # Real unknowns of a complex map: a complex number counts as two real data.
        split = self.targets.real and goal.is_complex()
        if split:
            solution = cgls(
                lambda x: torch.view_as_real(forward(x)),
                torch.view_as_real(goal.resolve_conj()),
                adjoint=lambda c: adjoint(torch.view_as_complex(c)),
                damping=self.targets.ridge,
                start=start,
                tol=1e-12,
                steps=self.steps,
                batch_axes=0,
            )
        else:
            solution = cgls(
                forward,
                goal,
                adjoint=adjoint,
                damping=self.targets.ridge,
                start=start,
                tol=1e-12,
                steps=self.steps,
                batch_axes=0,
            )
        return solution.x


class _System:
    """Normal equations of one factor, summed over parts of the frames."""

    def __init__(self, targets: Targets, *, shape: torch.Size) -> None:
        self.targets, self.shape = targets, shape
        self.gram: Tensor | None = None
        self.moment: Tensor | None = None

    def add(self, J: Tensor, c: Tensor, part: slice) -> None:
        rows = self.targets.scaled(J, part).flatten(0, 1)
        data = self.targets.scaled(c, part).flatten()
        gram = self.targets.keep(rows.mH @ rows)
        moment = self.targets.keep(rows.mH @ data)
        self.gram = gram if self.gram is None else self.gram + gram
        self.moment = moment if self.moment is None else self.moment + moment

    def solve(self, metric: Tensor) -> Tensor:
        assert self.gram is not None
        assert self.moment is not None
        gram = _with_ridge(self.gram, self.targets.ridge, metric)
        return _solved(gram, self.moment).reshape(self.shape)


def _with_ridge(gram: Tensor, ridge: float, metric: Tensor) -> Tensor:
    """Add the ridge on ``||X||_F^2``, which is d^H (I (x) K^T) d in the rows d of the unknown."""
    if ridge == 0:
        return gram
    eye = torch.eye(len(gram) // len(metric), dtype=gram.dtype, device=gram.device)
    return gram + ridge * torch.kron(eye, metric.mT.contiguous())


def _root(K: Tensor) -> Tensor:
    """Return lower triangular L with ``K = L L^H``; directions that no frame uses get a little."""
    level = float(K.diagonal().real.mean()) or 1.0
    eye = torch.eye(len(K), dtype=K.dtype, device=K.device)
    return torch.linalg.cholesky(K + 1e-3 * ridge_of(K.dtype) ** 0.5 * level * eye)


def _solved(gram: Tensor, moment: Tensor) -> Tensor:
    """Solve normal equations by Cholesky, with as little ridge as the precision needs."""
    level = gram.diagonal().real.mean()
    if float(level) == 0.0:
        return torch.zeros_like(moment)
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    ridge = ridge_of(gram.dtype)
    while True:
        factor, failed = torch.linalg.cholesky_ex(gram + ridge * level * eye)
        if not int(failed):
            return torch.cholesky_solve(moment.unsqueeze(-1), factor).squeeze(-1)
        ridge *= 100
