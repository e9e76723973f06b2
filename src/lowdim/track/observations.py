"""Observations: frames of a moving signal, seen whole, with gaps, or through linear maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Masked", "Observations", "Sampled"]


class Observations(Protocol):
    """What the algorithms need to know of T frames ``y_i = A_i x_i`` of length d."""

    @property
    def y(self) -> Tensor:
        """What was measured, (T, ...)."""
        ...

    def energy(self) -> Tensor:
        """Return the sum of squares of everything observed."""
        ...

    def share(self) -> Tensor:
        """Return the mean of ``||A_i u||^2`` over unit vectors u, shape (T,)."""
        ...

    def normal(self, Q: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``Q^H A_i^H A_i Q`` (T, c, c) and ``Q^H A_i^H y_i`` (T, c)."""
        ...

    def complete(self, F: Tensor) -> tuple[Tensor, Tensor]:
        """Return frames (T, d) nearer to the data than F, and ``sum ||y_i - A_i F_i||^2``."""
        ...


@dataclass(frozen=True, eq=False)
class Masked:
    """Frames of which some entries are seen.

    Parameters
    ----------
    y : Tensor of shape (T, d)
        Zero where nothing is seen.
    mask : Tensor of shape (T, d), optional
        Whether an entry is seen; all are without it.
    """

    y: Tensor
    mask: Tensor | None = None

    @cached_property
    def weight(self) -> Tensor | None:
        """The mask as numbers."""
        return None if self.mask is None else self.mask.to(self.y.real.dtype)

    def energy(self) -> Tensor:
        """Return the sum of squares of everything observed."""
        return self.y.abs().square().sum()

    def share(self) -> Tensor:
        """Return the fraction of entries that is seen of every frame."""
        return self.y.new_ones(len(self.y)).real if self.weight is None else self.weight.mean(1)

    def normal(self, Q: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``Q^H P_i Q`` and ``Q^H P_i y_i``; of complete frames the first has T = 1."""
        right = self.y @ Q.conj()
        if self.weight is None:
            return torch.eye(Q.shape[1], dtype=Q.dtype, device=Q.device)[None], right
        d, c = Q.shape
        # All products of two columns, entry by entry: one matrix product with the mask gives all Grams.
        pairs = (Q.conj()[:, :, None] * Q[:, None, :]).reshape(d, c * c)
        gram = self.weight.to(Q.dtype) @ pairs
        return gram.reshape(-1, c, c), right

    def complete(self, F: Tensor) -> tuple[Tensor, Tensor]:
        """Return F with the seen entries put in, and the squared error on these."""
        if self.mask is None:
            return self.y, (self.y - F).abs().square().sum()
        X = torch.where(self.mask, self.y, F)
        return X, (X - F).abs().square().sum()


@dataclass(frozen=True, eq=False)
class Sampled:
    """Frames each of which is seen through its own linear map.

    Parameters
    ----------
    y : Tensor of shape (T, ...)
        ``y_i = A_i x_i``.
    forward : callable
        ``(T, d) -> (T, ...)``, applies A_i to row i.
    adjoint : callable
        ``(T, ...) -> (T, d)``, applies A_i^H.
    dimension : int
        d.
    steps : int
        Of the power iteration for the norms of A_i.
    """

    y: Tensor
    forward: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor], Tensor]
    dimension: int
    steps: int = field(default=30)

    @cached_property
    def squared_norm(self) -> Tensor:
        """Upper bounds of ``||A_i||^2`` from the power iteration, shape (T, 1)."""
        source = torch.Generator().manual_seed(0)
        x = torch.randn(len(self.y), self.dimension, generator=source, dtype=self.y.real.dtype)
        x = x.to(self.y)
        size = x.norm(dim=1, keepdim=True)
        for _ in range(self.steps):
            x = self.adjoint(self.forward(x / size.clamp_min(torch.finfo(size.dtype).tiny)))
            size = x.norm(dim=1, keepdim=True)
        # The iteration comes from below; the step of the completion must not be too long.
        return (1.1 * size).clamp_min(torch.finfo(size.dtype).tiny)

    def energy(self) -> Tensor:
        """Return the sum of squares of everything observed."""
        return self.y.abs().square().sum()

    @cached_property
    def _share(self) -> Tensor:
        source = torch.Generator().manual_seed(1)
        x = torch.randn(len(self.y), self.dimension, generator=source, dtype=self.y.real.dtype).to(self.y)
        seen = self.forward(x / x.norm(dim=1, keepdim=True)).abs().square()
        return seen.reshape(len(seen), -1).sum(1)

    def share(self) -> Tensor:
        """Return ``||A_i u||^2`` for a random unit vector u."""
        return self._share

    def normal(self, Q: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``Q^H A_i^H A_i Q`` and ``Q^H A_i^H y_i``."""
        T = len(self.y)
        images = torch.stack([self.forward(q.expand(T, -1)).reshape(T, -1) for q in Q.T], dim=2)  # (T, m, c)
        return images.mH @ images, (images.mH @ self.y.reshape(T, -1, 1)).squeeze(-1)

    def complete(self, F: Tensor) -> tuple[Tensor, Tensor]:
        """Return a gradient step from F towards the data, of length 1 / ||A_i||^2."""
        residual = self.y - self.forward(F)
        return F + self.adjoint(residual) / self.squared_norm, residual.abs().square().sum()
