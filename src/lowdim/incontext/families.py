"""Families: what the label of a prompt is as a function of its input, with weights from the subspace."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from lowdim.algebra.seeds import Seed, gaussian, generator
from lowdim.errors import DataError
from lowdim.incontext.door import check_count

__all__ = ["FAMILIES", "Family", "Linear", "RandomFeatures", "ReluNetwork", "SingleIndex", "make_family"]

Label = Callable[[Tensor], Tensor]
"""Labels (batch, m) of inputs (batch, m, d)."""


class Family(ABC):
    """A class of functions of an input whose weights lie in a subspace.

    Examples
    --------
    >>> make_family("relu")
    ReluNetwork(width=64)
    """

    name: ClassVar[str]

    @abstractmethod
    def variance(self, r: int) -> float:
        """Return the variance of a label for standard normal inputs: the risk of always predicting 0."""

    @abstractmethod
    def linear_share(self, r: int) -> float:
        """Return the share of the variance of labels that the best linear function of the input explains."""

    @abstractmethod
    def draw(self, bases: Tensor, *, seed: Seed = None) -> Label:
        """Draw one function per basis.

        Parameters
        ----------
        bases : Tensor, shape (batch, d, r)
            Orthonormal columns.
        seed : int, torch.Generator or None

        Returns
        -------
        callable
            From inputs (batch, m, d) to labels (batch, m).
        """

    @abstractmethod
    def kernel(self, u: Tensor, v: Tensor) -> Tensor:
        """Return the second moment of the labels of two inputs over the draw of the function.

        Parameters
        ----------
        u, v : Tensor, shapes (batch, m, r) and (batch, k, r)
            Coordinates of the inputs in the subspace; the labels depend on nothing else.

        Returns
        -------
        Tensor, shape (batch, m, k)
        """


def _weights(bases: Tensor, count: int, seed: Seed) -> Tensor:
    """Return Gaussian vectors of the subspace, (batch, count, d): U z with z standard normal."""
    batch, _, r = bases.shape
    z = gaussian((batch, count, r), seed=seed, dtype=bases.dtype, device=bases.device)
    return z @ bases.mT


@dataclass(frozen=True)
class Linear(Family):
    """Linear functions b.x with b in the subspace and second moment U U^T.

    Parameters
    ----------
    vectors : {"gaussian", "sphere"}
        b = U z with z standard normal, or uniform on the sphere of radius sqrt(r).

    Examples
    --------
    >>> b = Linear("sphere").draw(torch.eye(3, 2)[None], seed=0)(torch.eye(3)[None])
    >>> round(float(b.square().sum()), 4)
    2.0
    """

    name: ClassVar[str] = "linear"
    vectors: Literal["gaussian", "sphere"] = "gaussian"

    def __post_init__(self) -> None:
        if self.vectors not in ("gaussian", "sphere"):
            raise DataError(f"Linear: vectors={self.vectors!r} is unknown. Use 'gaussian' or 'sphere'.")

    def variance(self, r: int) -> float:
        """Return r."""
        return float(r)

    def linear_share(self, r: int) -> float:
        """Return 1."""
        return 1.0

    def task_vectors(self, bases: Tensor, *, seed: Seed = None) -> Tensor:
        """Return the vectors b, shape (batch, d): one for each of `bases` (batch, d, r), from `seed`."""
        b = _weights(bases, 1, seed).squeeze(1)
        if self.vectors == "sphere":
            b = b * (math.sqrt(bases.shape[-1]) / b.norm(dim=-1, keepdim=True))
        return b

    def draw(self, bases: Tensor, *, seed: Seed = None) -> Label:
        """Draw b, one per basis."""
        b = self.task_vectors(bases, seed=seed)
        return lambda X: (X @ b.unsqueeze(-1)).squeeze(-1)

    def kernel(self, u: Tensor, v: Tensor) -> Tensor:
        """Return u.v."""
        return u @ v.mT


@dataclass(frozen=True)
class ReluNetwork(Family):
    """Two-layer ReLU networks: sqrt(2/width) sum_j a_j relu(w_j.x), w_j = U z_j / sqrt(r).

    The a_j are standard normal. ``E relu(w.x)^2 = |w|^2 / 2`` for a standard normal x, so that labels have
    variance 1.

    Parameters
    ----------
    width : int
        Hidden units.

    Examples
    --------
    >>> ReluNetwork(width=16).variance(3)
    1.0
    """

    name: ClassVar[str] = "relu"
    width: int = 64

    def __post_init__(self) -> None:
        check_count("width", self.width, where="ReluNetwork")

    def variance(self, r: int) -> float:
        """Return 1."""
        return 1.0

    def linear_share(self, r: int) -> float:
        """Return 1/2: the linear part of relu(w.x) is w.x / 2, of 2 E relu(w.x)^2 = 1 it is 1/2."""
        return 0.5

    def draw(self, bases: Tensor, *, seed: Seed = None) -> Label:
        """Draw both layers, one network per basis."""
        source = generator(seed)
        w = _weights(bases, self.width, source) / math.sqrt(bases.shape[-1])
        a = gaussian((len(bases), self.width), seed=source, dtype=bases.dtype, device=bases.device)
        a = a * math.sqrt(2 / self.width)
        return lambda X: (torch.relu(X @ w.mT) @ a.unsqueeze(-1)).squeeze(-1)

    def kernel(self, u: Tensor, v: Tensor) -> Tensor:
        """Return ``|u| |v| (sin t + (pi - t) cos t) / (pi r)`` with t the angle of u and v.

        References
        ----------
        .. [1] Y. Cho, L. Saul, "Kernel methods for deep learning", NeurIPS 2009 (arc-cosine kernel, order 1).
        """
        sizes = u.norm(dim=-1).unsqueeze(-1) * v.norm(dim=-1).unsqueeze(-2)
        cosine = ((u @ v.mT) / sizes.clamp_min(torch.finfo(u.dtype).tiny)).clamp(-1, 1)
        angle = torch.arccos(cosine)
        return sizes * (torch.sin(angle) + (math.pi - angle) * cosine) / (math.pi * u.shape[-1])


LINKS: dict[str, Callable[[Any], Any]] = {
    "tanh": lambda s: (2 * s).tanh() if isinstance(s, Tensor) else np.tanh(2 * s),
    "relu": lambda s: s * (s > 0),
    "quadratic": lambda s: s * s,
    "cubic": lambda s: s * (s * s - 3),
    "sine": lambda s: torch.sin(2 * s) if isinstance(s, Tensor) else np.sin(2 * s),
}
"""Link functions before they are centered and scaled."""


@dataclass(frozen=True)
class SingleIndex(Family):
    """Single-index functions g(w.x) with a unit vector w of the subspace, uniform on its sphere.

    w.x is standard normal; g is the link, centered and scaled so that g(w.x) has mean 0 and variance 1
    (Gauss-Hermite quadrature).

    Parameters
    ----------
    link : {"tanh", "relu", "quadratic", "cubic", "sine"}
        tanh(2 s), max(s, 0), s^2, s^3 - 3 s, sin(2 s).

    Examples
    --------
    >>> SingleIndex("quadratic").g(torch.tensor([1.0, 0.0])).round(decimals=4)
    tensor([ 0.0000, -0.7071])
    """

    name: ClassVar[str] = "single-index"
    link: str = "tanh"

    def __post_init__(self) -> None:
        if self.link not in LINKS:
            raise DataError(f"SingleIndex: link={self.link!r} is unknown. Use one of {', '.join(LINKS)}.")
        nodes, weights = np.polynomial.hermite_e.hermegauss(180)
        values, weights = LINKS[self.link](nodes), weights / weights.sum()
        mean = float(weights @ values)
        object.__setattr__(self, "_mean", mean)
        scale = float(weights @ (values - mean) ** 2) ** 0.5
        object.__setattr__(self, "_scale", scale)
        object.__setattr__(self, "_share", float(weights @ (values * nodes) / scale) ** 2)

    def variance(self, r: int) -> float:
        """Return 1."""
        return 1.0

    def linear_share(self, r: int) -> float:
        """Return (E g(s) s)^2 for a standard normal s."""
        return self._share  # type: ignore[attr-defined]

    def g(self, s: Tensor) -> Tensor:
        """Return the centered and scaled link of the numbers `s`."""
        return (LINKS[self.link](s) - self._mean) / self._scale  # type: ignore[attr-defined]

    def draw(self, bases: Tensor, *, seed: Seed = None) -> Label:
        """Draw w, one per basis."""
        w = _weights(bases, 1, seed).squeeze(1)
        w = w / w.norm(dim=-1, keepdim=True)
        return lambda X: self.g((X @ w.unsqueeze(-1)).squeeze(-1))

    def kernel(self, u: Tensor, v: Tensor) -> Tensor:
        """Return the mean of g(w.u) g(w.v) over 1024 fixed directions w (for r = 1 over both)."""
        r = u.shape[-1]
        w = torch.tensor([[1.0], [-1.0]], dtype=u.dtype) if r == 1 else _directions(r, 1024).to(u.dtype)
        w = w.to(u.device)
        return self.g(u @ w.mT) @ self.g(v @ w.mT).mT / len(w)


def _directions(r: int, count: int) -> Tensor:
    z = gaussian((count // 2, r), seed=0, dtype=torch.float64)
    z = z / z.norm(dim=-1, keepdim=True)
    return torch.cat([z, -z])


@dataclass(frozen=True)
class RandomFeatures(Family):
    """Random Fourier features: sqrt(2/count) sum_j a_j cos(w_j.x + p_j), w_j = U z_j / (scale sqrt(r)).

    Phases p_j are uniform and a_j standard normal: E cos^2 = 1/2, labels have variance 1 for any input.

    Parameters
    ----------
    count : int
        Features.
    scale : float
        Length over which a function changes, in root mean square distances of inputs in the subspace.

    Examples
    --------
    >>> RandomFeatures(count=32).kernel(torch.zeros(1, 1, 2), torch.ones(1, 1, 2)).round(decimals=4)
    tensor([[[0.6065]]])
    """

    name: ClassVar[str] = "fourier"
    count: int = 64
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_count("count", self.count, where="RandomFeatures")
        if not 0 < self.scale < math.inf:
            raise DataError(f"RandomFeatures: scale={self.scale!r} must be a positive number.")

    def variance(self, r: int) -> float:
        """Return 1."""
        return 1.0

    def linear_share(self, r: int) -> float:
        """Return r v (1 + 2 v)^(-r/2 - 1) with v = 1 / (scale^2 r)."""
        v = 1 / (self.scale**2 * r)
        return r * v * (1 + 2 * v) ** (-r / 2 - 1)

    def draw(self, bases: Tensor, *, seed: Seed = None) -> Label:
        """Draw frequencies, phases and amplitudes, one function per basis."""
        source = generator(seed)
        batch, dtype, device = len(bases), bases.dtype, bases.device
        w = _weights(bases, self.count, source) / (self.scale * math.sqrt(bases.shape[-1]))
        a = gaussian((batch, self.count), seed=source, dtype=dtype, device=device)
        a = a * math.sqrt(2 / self.count)
        where = source.device if source is not None else device
        p = torch.rand((batch, self.count), generator=source, dtype=dtype, device=where).to(device)
        p = 2 * math.pi * p
        return lambda X: (torch.cos(X @ w.mT + p.unsqueeze(1)) @ a.unsqueeze(-1)).squeeze(-1)

    def kernel(self, u: Tensor, v: Tensor) -> Tensor:
        """Return ``exp(-|u - v|^2 / (2 scale^2 r))``."""
        distance = u.square().sum(-1).unsqueeze(-1) + v.square().sum(-1).unsqueeze(-2) - 2 * u @ v.mT
        return torch.exp(-distance.clamp_min(0) / (2 * self.scale**2 * u.shape[-1]))


FAMILIES: dict[str, type[Family]] = {
    kind.name: kind for kind in (Linear, ReluNetwork, SingleIndex, RandomFeatures)
}
"""Families by name."""


def make_family(family: str | Family) -> Family:
    """Return a family by its name.

    Parameters
    ----------
    family : {"linear", "relu", "single-index", "fourier"} or Family

    Returns
    -------
    Family

    Raises
    ------
    DataError
        If the name is unknown.

    Examples
    --------
    >>> make_family("single-index")
    SingleIndex(link='tanh')
    """
    if isinstance(family, Family):
        return family
    if family not in FAMILIES:
        raise DataError(f"incontext: family={family!r} is unknown. Use one of {', '.join(FAMILIES)}.")
    return FAMILIES[family]()
