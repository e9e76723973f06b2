"""Video: frames as one Tucker tensor, ``X_k = (G x_f f_k) x1 D x2 E ...``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowdim.algebra.seeds import Seed, gaussian
from lowdim.algebra.tensors import Tucker, fold, mode_product, unfold

__all__ = ["Video"]


@dataclass
class Video:
    """Factors of the image modes, a core, and one row of coefficients per frame.

    Parameters
    ----------
    core : Tensor, shape (r1, ..., rd, rf)
        G.
    factors : list of Tensor, each of shape (n_j, r_j)
        D, E, ...: one per axis of an image.
    coef : Tensor, shape (q, rf)
        F, one row f_k per frame.

    Examples
    --------
    >>> video = Video(torch.ones(1, 1, 1), [torch.ones(2, 1), torch.ones(3, 1)], torch.ones(5, 1))
    >>> video.frames().shape
    torch.Size([5, 2, 3])
    """

    core: Tensor
    factors: list[Tensor]
    coef: Tensor

    @property
    def ranks(self) -> tuple[int, ...]:
        """(r1, ..., rd, rf)."""
        return tuple(self.core.shape)

    @property
    def image_ranks(self) -> int:
        """Size r1 ... rd of one frame in the bases of the modes."""
        return self.core.shape[:-1].numel()

    def heads(self, part: slice = slice(None)) -> Tensor:
        """Return ``G x_f f_k`` of some frames, (q, r1, ..., rd)."""
        return (self.coef[part] @ self.core.flatten(0, -2).mT).reshape(-1, *self.core.shape[:-1])

    def spread(self, heads: Tensor, *, but: int | None = None) -> Tensor:
        """Multiply heads (q, r1, ..., rd) by the factors, all but one if told: (q, n1, ..., nd)."""
        order = len(self.factors)
        for mode, factor in enumerate(self.factors):
            if mode != but:
                heads = mode_product(heads, factor, mode, order=order)
        return heads

    def basis(self) -> Tensor:
        """Return the images that frames are made of, (rf, n1, ..., nd): the columns of W."""
        return self.spread(self.core.movedim(-1, 0))

    def frames(self, part: slice = slice(None)) -> Tensor:
        """Return frames, (q, n1, ..., nd)."""
        return self.spread(self.heads(part))

    def settle(self, mode: int) -> None:
        """Make one factor orthonormal; what QR leaves over goes into the core, frames stay as they are."""
        Q, R = torch.linalg.qr(self.factors[mode])
        self.factors[mode], self.core = Q, mode_product(self.core, R, mode)

    def orthonormalize(self) -> None:
        """Make all factors and the core's frame mode orthonormal; frames stay as they are.

        Then W is orthonormal, ``M_k = A_k W`` as well conditioned as the measurements are, and ``||f_k||``
        the norm of a frame.
        """
        for mode in range(len(self.factors)):
            self.settle(mode)
        # unfold(G, frame) = (Q R)^T: f_k -> R f_k.
        last = self.core.ndim - 1
        Q, R = torch.linalg.qr(unfold(self.core, last).mT)
        self.core = fold(Q.mT, last, (*self.core.shape[:-1], Q.shape[-1]))
        self.coef = self.coef @ R.mT

    def metric(self, mode: int) -> Tensor:
        """Return K with ``sum_k ||X_k||^2 = sum of D K D^H``, D that factor and the others orthonormal.

        The mode after the last factor is that of the coefficients, for which the core stands in D's place.
        """
        if mode == len(self.factors):
            return self.coef.mT @ self.coef.conj()
        H = unfold(self.heads().movedim(0, -1), mode)
        return H @ H.mH

    def tucker(self) -> Tucker:
        """Return it as one Tucker form with modes (n1, ..., nd, q)."""
        return Tucker(self.core, (*self.factors, self.coef))

    def grown(self, ranks: Sequence[int], *, seed: Seed = 0) -> Video:
        """Return the same frames in larger ranks: new directions are random, and not used yet."""
        sizes, old = tuple(ranks), self.ranks
        generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
        draw = lambda *shape: gaussian(shape, seed=generator, dtype=self.core.dtype, device=self.core.device)  # noqa: E731
        factors = []
        for factor, size in zip(self.factors, sizes[:-1], strict=True):
            new = draw(len(factor), size - factor.shape[1])
            factors.append(torch.cat([factor, new - factor @ torch.linalg.lstsq(factor, new).solution], 1))
        core = torch.zeros(sizes, dtype=self.core.dtype, device=self.core.device)
        core[tuple(slice(0, size) for size in old)] = self.core
        core[..., old[-1] :] = draw(*sizes[:-1], sizes[-1] - old[-1])
        unused = self.coef.new_zeros(len(self.coef), sizes[-1] - old[-1])
        return Video(core, factors, torch.cat([self.coef, unused], 1))

    def copy(self) -> Video:
        """Return one that can be changed by itself."""
        return Video(self.core, list(self.factors), self.coef)
