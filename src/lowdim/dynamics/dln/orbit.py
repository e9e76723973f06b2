r"""Orbit: the oscillation of period 2 of one singular value, in closed form.

Balanced layers ``rho_1 = ... = rho_L`` follow the scalar map ``rho+ = rho z`` with ``z = 1 + eta (s - rho^L)
rho^(L-2)``. A point comes back after two steps if ``s = rho^L (1 + z^(2L-1)) / (1 + z^(L-1))``. That makes z,
the ratio of the two points, the one unknown: everything else is a formula in z.

* ``q(z) = rho^L / s = (1 + z^(L-1)) / (1 + z^(2L-1))``
* ``eta S / 2 = h(z) = L/2 (z - 1) / ((1 - q) q^((L-2)/L))``, which rises from h(1) = 1 without bound: there
  is an orbit for every learning rate above 2 / S, and no other one. For L = 2, ``h(z) = z + 1/z - 1``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from scipy.optimize import brentq
from torch import Tensor

from lowdim.dynamics.dln.door import as_depth, as_rates
from lowdim.errors import DataError

__all__ = ["Orbit", "period2_orbit", "stability_limit"]


@dataclass(frozen=True, eq=False)
class Orbit:
    """Two values of a layer that follow each other for ever.

    Parameters
    ----------
    low, high : Tensor, shape (...)
        The smaller and the larger value rho of each layer; equal at and below the edge of stability.
    ratio : Tensor, shape (...)
        ``z = high / low``.
    multiplier : Tensor, shape (...)
        Factor by which a small deviation from the orbit is multiplied in two steps, in balanced layers.
    depth : int

    Examples
    --------
    >>> orbit = period2_orbit([10.0, 5.0], depth=3, lr=0.0312)
    >>> orbit.amplitude.round(decimals=3), orbit.stable
    (tensor([1.4170, 0.0000], dtype=torch.float64), tensor([True, True]))
    """

    low: Tensor
    high: Tensor
    ratio: Tensor
    multiplier: Tensor
    depth: int

    @property
    def amplitude(self) -> Tensor:
        """Change of the product of all layers from one step to the next: ``high^L - low^L``."""
        return self.high**self.depth - self.low**self.depth

    @property
    def stable(self) -> Tensor:
        """Whether balanced layers come back to the orbit: the multiplier is below 1 in modulus."""
        return self.multiplier.abs() < 1


def period2_orbit(s: Any, *, depth: int, lr: Any) -> Orbit:
    """Find the orbit of period 2 of gradient descent on ``1/2 (rho^L - s)^2``, layers balanced.

    Parameters
    ----------
    s : array-like, shape (...)
        Singular values >= 0.
    depth : int
        Number of layers L.
    lr : array-like, shape (...)
        Learning rates; broadcast against s.

    Returns
    -------
    Orbit
        At and below ``2 / S`` with ``S = L s^(2 - 2/L)`` both points are the minimum ``s^(1/L)``.

    Raises
    ------
    DataError
        If L = 1 and the learning rate is 2 or more: a single layer diverges there instead of oscillating.

    Notes
    -----
    Readers report an upper limit of the learning rate in the theorem of the source. To exist, the orbit
    needs none, since h rises without bound. To be stable, it has that of `stability_limit`, and of `floquet`
    for networks that are not aligned.

    References
    ----------
    arXiv 2502.20531, theorem 1 (the equation of the points; the formulas in z are ours).

    Examples
    --------
    >>> orbit = period2_orbit(10.0, depth=2, lr=0.11)
    >>> orbit.low.round(decimals=4), orbit.high.round(decimals=4)
    (tensor(2.5758, dtype=torch.float64), tensor(3.5293, dtype=torch.float64))
    """
    L = as_depth(depth, "period2_orbit")
    s = as_rates(s, "period2_orbit", name="s", zero=True)
    s, eta = torch.broadcast_tensors(s, as_rates(lr, "period2_orbit").to(s.device))
    x = eta * L * s ** (2 - 2 / L) / 2  # the learning rate in units of 2 / S
    if L == 1 and bool((x >= 1).any()):
        raise DataError(
            "period2_orbit: depth=1 has no orbit: from lr=2 on a single layer diverges. Use depth >= 2, or "
            "lr < 2."
        )
    z = _ratio(x, L) if L > 1 else torch.ones_like(x)
    low = (s * _share(z, L)) ** (1 / L)
    minimum = (1 - 2 * x) ** 2  # two steps near the minimum, where f' = 1 - eta S
    multiplier = torch.where(x > 1, _multiplier(z, L), minimum) if L > 1 else minimum
    return Orbit(low, z * low, z, multiplier, L)


def stability_limit(depth: int) -> float:
    """Learning rate at which period 2 gives way to period 4, in units of ``2 / S``.

    Parameters
    ----------
    depth : int
        Number of layers L >= 2.

    Returns
    -------
    float
        c_L: ``sqrt(5) - 1`` for L = 2, 1.2446 for L = 3; the same for all s.

    Examples
    --------
    >>> [round(stability_limit(depth), 5) for depth in (2, 3, 4, 5)]
    [1.23607, 1.24461, 1.24717, 1.24838]
    """
    return _limit(as_depth(depth, "stability_limit", least=2))


@lru_cache(maxsize=64)
def _limit(L: int) -> float:
    def beyond(z: float) -> float:
        return float(_multiplier(torch.tensor(z, dtype=torch.float64), L)) + 1

    z = brentq(beyond, 1.0 + 1e-6, 3.0, xtol=1e-15, rtol=1e-14)
    return float(_height(torch.tensor(z, dtype=torch.float64), L))


def _share(z: Tensor, L: int) -> Tensor:
    """``q = rho^L / s`` of the lower point."""
    return (1 + z ** (L - 1)) / (1 + z ** (2 * L - 1))


def _lift(z: Tensor, L: int) -> Tensor:
    """``b = eta s rho^(L-2) = (z - 1) / (1 - q)``; the quotient (z^L - 1) / (z - 1) is written out."""
    geometric = sum((z**k for k in range(L)), torch.zeros_like(z))
    return (1 + z ** (2 * L - 1)) / (z ** (L - 1) * geometric)


def _height(z: Tensor, L: int) -> Tensor:
    """``h(z) = eta S / 2``."""
    return L / 2 * _lift(z, L) / _share(z, L) ** ((L - 2) / L)


def _multiplier(z: Tensor, L: int) -> Tensor:
    """``f'(rho_1) f'(rho_2)``, with ``f'(rho) = 1 - (2L - 1) eta rho^(2L-2) + (L - 1) eta s rho^(L-2)``.

    The upper point is the lower one of 1 / z.
    """
    result = torch.ones_like(z)
    for ratio in (z, 1 / z):
        b = _lift(ratio, L)
        result = result * (1 - (2 * L - 1) * _share(ratio, L) * b + (L - 1) * b)
    return result


def _ratio(x: Tensor, L: int) -> Tensor:
    """Solve ``h(z) = x`` for z >= 1 by bisection; h(z) >= z + 1/z - 1 bounds z from above."""
    low = torch.ones_like(x)
    high = x.clamp_min(1) + 1
    for _ in range(60):
        middle = (low + high) / 2
        above = _height(middle, L) > x
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    z = (low + high) / 2
    return torch.where(x > 1, z, torch.ones_like(z))
