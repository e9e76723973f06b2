"""Forms: coefficients as a function of one flat vector of parameters, and the way back for gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from lowdim.algebra.tensors import CP, Tucker, khatri_rao, mode_product, unfold

__all__ = ["CPForm", "Form", "FullForm", "TuckerForm"]


class Form(Protocol):
    """Coefficients of shape (C, K size) in terms of parameters (C, P)."""

    def dense(self, theta: Tensor) -> Tensor:
        """Return the coefficients, (C, K size)."""
        ...

    def pull(self, theta: Tensor, G: Tensor) -> Tensor:
        """Return the gradient in the parameters, (C, P), from that in the coefficients, (C, K size)."""
        ...

    def pack(self, parts: Sequence[Tensor]) -> Tensor:
        """Return factors (and core) as one flat vector, (C, P)."""
        ...

    def split(self, theta: Tensor) -> list[Tensor]:
        """Undo `pack`."""
        ...


def _cut(theta: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    parts = theta.split([prod(shape) for shape in shapes], dim=1)
    return [part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten(1) for part in parts], 1)


@dataclass(frozen=True)
class FullForm:
    """Coefficients without structure, for plain vectors: the parameters are the coefficients.

    Parameters
    ----------
    size : int
        K p.
    """

    size: int

    def dense(self, theta: Tensor) -> Tensor:
        """Return the coefficients, (C, K p)."""
        return theta

    def pull(self, theta: Tensor, G: Tensor) -> Tensor:
        """Return the gradient in the parameters."""
        return G

    def pack(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the coefficients as a flat vector."""
        return _flat(parts)

    def split(self, theta: Tensor) -> list[Tensor]:
        """Return the coefficients as a matrix with one column, (C, K p, 1)."""
        return [theta.unsqueeze(-1)]


@dataclass(frozen=True)
class CPForm:
    """``W = sum_r w1_r o ... o wd_r``; with several classes the first factor is that of the classes.

    The gradient in factor k is ``unfold_k(G) KhatriRao(others)``.

    Parameters
    ----------
    shape : tuple of int
        Modes, after that of the classes if there is one.
    rank : int

    Examples
    --------
    >>> form = CPForm((2, 3), 1)
    >>> form.dense(torch.ones(1, 5)).tolist()
    [[1.0, 1.0, 1.0, 1.0, 1.0, 1.0]]
    """

    shape: tuple[int, ...]
    rank: int

    def split(self, theta: Tensor) -> list[Tensor]:
        """Return the factors, (C, n_k, R)."""
        return _cut(theta, [(n, self.rank) for n in self.shape])

    def pack(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the factors as a flat vector."""
        return _flat(parts)

    def dense(self, theta: Tensor) -> Tensor:
        """Return the coefficients, (C, size)."""
        return CP(tuple(self.split(theta))).dense().flatten(1)

    def pull(self, theta: Tensor, G: Tensor) -> Tensor:
        """Return the gradient in the factors."""
        factors, d = self.split(theta), len(self.shape)
        G = G.view(-1, *self.shape)
        if d == 2:
            return _flat([G @ factors[1], G.mT @ factors[0]])
        found = []
        for k in range(d):
            others = khatri_rao([factor for j, factor in enumerate(factors) if j != k])
            found.append(unfold(G, k, order=d) @ others)
        return _flat(found)


@dataclass(frozen=True)
class TuckerForm:
    """``W_c = G_c x1 F1 ... xd Fd``: a core per class, factors that all classes share.

    The gradients are ``G x1 F1^T ... xd Fd^T`` in the core and ``unfold_k(G x others^T) unfold_k(core)^T`` in
    factor k.

    Parameters
    ----------
    classes : int
        K.
    shape, ranks : tuple of int
        Modes, and the sizes of a core.

    Examples
    --------
    >>> form = TuckerForm(1, (2, 3), (1, 1))
    >>> form.dense(torch.ones(1, 6)).tolist()
    [[1.0, 1.0, 1.0, 1.0, 1.0, 1.0]]
    """

    classes: int
    shape: tuple[int, ...]
    ranks: tuple[int, ...]

    def split(self, theta: Tensor) -> list[Tensor]:
        """Return the factors, (C, n_k, r_k), and the cores, (C, K, r1, ..., rd)."""
        sizes: list[tuple[int, ...]] = list(zip(self.shape, self.ranks, strict=True))
        return _cut(theta, [*sizes, (self.classes, *self.ranks)])

    def pack(self, parts: Sequence[Tensor]) -> Tensor:
        """Return factors and cores as a flat vector."""
        return _flat(parts)

    def dense(self, theta: Tensor) -> Tensor:
        """Return the coefficients, (C, K size)."""
        *factors, core = self.split(theta)
        spread = tuple(factor.unsqueeze(1) for factor in factors)
        return Tucker(core, spread).dense().flatten(1)

    def pull(self, theta: Tensor, G: Tensor) -> Tensor:
        """Return the gradient in factors and cores."""
        *factors, core = self.split(theta)
        d = len(self.shape)
        spread = [factor.unsqueeze(1) for factor in factors]
        G = G.view(len(theta), self.classes, *self.shape)
        found = []
        for k in range(d):
            rest = G
            for j in range(d):
                if j != k:
                    rest = mode_product(rest, spread[j].mT, j, order=d)
            flat = unfold(rest, k, order=d) @ unfold(core, k, order=d).mT
            found.append(flat.sum(1))
        shrunk = G
        for j in range(d):
            shrunk = mode_product(shrunk, spread[j].mT, j, order=d)
        return _flat([*found, shrunk])
