"""Floquet: whether an oscillation survives small deviations in all directions of the weights.

The orbit of `period2_orbit` is stable inside the balanced aligned weights. In the full network a deviation
may also mix two singular directions. Linearized over both steps of the orbit it is multiplied by ``(I - eta
H_high) (I - eta H_low)``, where the Hessian falls apart into the blocks of `spectrum`. The spectral radius of
each block is its multiplier: above 1 the run leaves the orbit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowdim.dynamics.dln.door import as_depth, as_rate, as_singular_values
from lowdim.dynamics.dln.orbit import period2_orbit
from lowdim.dynamics.dln.spectrum import index_blocks, pair_blocks
from lowdim.errors import DataError

__all__ = ["Floquet", "floquet"]

NEUTRAL = 1e-6
"""Rounding of multipliers that are 1 because turning the layers against each other changes nothing."""


@dataclass(frozen=True, eq=False)
class Floquet:
    """Growth of small deviations over the two steps of an oscillation.

    Parameters
    ----------
    rank : int
        Number of singular values that oscillate.
    aligned : Tensor, shape (d,)
        Largest modulus for deviations of singular value i alone, balanced or not.
    mixing : Tensor, shape (d, d)
        Largest modulus for deviations that mix the singular directions i and j; 0 on the diagonal. A
        value of 1 is neutral: the layers may turn against each other.

    Examples
    --------
    >>> found = floquet([10.0, 9.5, 9.0], depth=3, lr=0.034)
    >>> found.rank, found.stable, float(found.transverse.round(decimals=2))
    (2, False, 1.05)
    """

    rank: int
    aligned: Tensor
    mixing: Tensor

    @property
    def transverse(self) -> Tensor:
        """The largest multiplier of deviations that mix singular directions, a scalar."""
        return self.mixing.max()

    @property
    def stable(self) -> bool:
        """Whether no deviation grows."""
        return float(torch.maximum(self.aligned.max(), self.transverse)) <= 1 + NEUTRAL


def floquet(target: Any, *, depth: int, lr: float, phases: Sequence[int] | None = None) -> Floquet:
    """Multipliers of the full deep linear network at its oscillation of period 2.

    Every singular value with ``lr > 2 / S_i`` is on its orbit, all others at their minimum.

    Parameters
    ----------
    target : array-like, shape (m, n) or (d,)
        The matrix M, or its singular values, zeros included.
    depth : int
        Number of layers L >= 2.
    lr : float
        Learning rate.
    phases : sequence of 0 or 1, optional
        For each oscillating singular value, whether it is at its low (0) or high (1) point in even steps;
        all low otherwise.

    Returns
    -------
    Floquet

    Raises
    ------
    DataError
        If there are not as many phases as oscillating singular values.

    Notes
    -----
    Oscillations of two or more singular values were unstable in every case we have tried, whatever their
    phases: the theorem about them speaks of weights that are exactly aligned.

    References
    ----------
    Derived here; not in arXiv 2502.20531.

    Examples
    --------
    >>> floquet([10.0, 5.0, 1.0], depth=3, lr=0.035).stable
    True
    """
    L = as_depth(depth, "floquet", least=2)
    s = as_singular_values(target, "floquet")
    eta = as_rate(lr, "floquet")
    orbit = period2_orbit(s, depth=L, lr=eta)
    oscillates = orbit.ratio > 1
    rank = int(oscillates.sum())
    flipped = torch.zeros_like(oscillates)
    if phases is not None:
        if len(phases) != rank or not set(phases) <= {0, 1}:
            raise DataError(
                f"floquet: phases={phases!r}, expected one 0 or 1 for each of {rank} oscillating singular "
                "values."
            )
        flipped[oscillates] = torch.tensor([bool(phase) for phase in phases])
    even = torch.where(flipped, orbit.high, orbit.low).expand(L, -1)
    odd = torch.where(flipped, orbit.low, orbit.high).expand(L, -1)

    i, j = torch.triu_indices(len(s), len(s), offset=1)
    own = [_step(index_blocks(rho, s), eta) for rho in (even, odd)]
    pairs = [_step(pair_blocks(rho[:, i], rho[:, j], s[i], s[j]), eta) for rho in (even, odd)]
    mixing = s.new_zeros(len(s), len(s))
    mixing[i, j] = mixing[j, i] = _radius(pairs[1] @ pairs[0])
    return Floquet(rank, _radius(own[1] @ own[0]), mixing)


def _step(H: Tensor, eta: float) -> Tensor:
    """``I - eta H``: one linearized step."""
    return torch.eye(H.shape[-1], dtype=H.dtype, device=H.device) - eta * H


def _radius(blocks: Tensor) -> Tensor:
    """Spectral radius of each block."""
    return torch.linalg.eigvals(blocks).abs().amax(-1)
