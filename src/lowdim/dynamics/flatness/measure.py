"""Measure: how flat a minimum of linear layers is, exactly, beside the flattest one of the same function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowdim.dynamics.dln import balancing_gap, product, sharpness, trace
from lowdim.dynamics.dln.door import as_layers
from lowdim.dynamics.dln.minimum import require_minimum, sides
from lowdim.dynamics.dln.observe import observe
from lowdim.errors import BudgetError

__all__ = ["Flatness", "at_minimum"]

NUMBERS = 100_000_000
"""Numbers of the Jacobian above which it is not made."""


@dataclass(frozen=True, eq=False)
class Flatness:
    """Measures of the Hessian at a minimum; smaller is flatter.

    Parameters
    ----------
    sharpness : Tensor, shape (...)
        Largest eigenvalue, in units of loss over parameter squared.
    trace : Tensor, shape (...)
        Sum of the eigenvalues, same unit.
    flattest : Tensor, shape (...)
        Smallest sharpness of all weights with the same product; NaN if only measurements of it are seen.
    smallest_trace : Tensor, shape (...)
        Smallest trace of them; NaN likewise. From three layers on it belongs to other weights.
    balance_gap : Tensor, shape (...)
        See `lowdim.dynamics.dln.balancing_gap`.
    relative : Tensor, shape (...), or None
        Adaptive sharpness: largest eigenvalue of D H D with D = diag(abs(weights)), in units of loss.

    Examples
    --------
    >>> found = at_minimum([[[1.0]], [[2.0]]])
    >>> float(found.sharpness), float(found.flattest), float(found.excess)
    (5.0, 4.0, 0.25)
    """

    sharpness: Tensor
    trace: Tensor
    flattest: Tensor
    smallest_trace: Tensor
    balance_gap: Tensor
    relative: Tensor | None = None

    @property
    def excess(self) -> Tensor:
        """``sharpness / flattest - 1``: 0 for balanced layers."""
        return self.sharpness / self.flattest - 1


def at_minimum(
    layers: Sequence[Any],
    *,
    target: Any = None,
    measurements: Any = None,
    relative: bool = False,
    gn: bool = False,
) -> Flatness:
    """Measure a global minimum of linear layers exactly.

    The loss is ``1/2 ||W_L ... W_1 - M||_F^2``, with the half.

    Parameters
    ----------
    layers : sequence of array-like, shapes (..., w_l, w_{l-1})
        W_1, ..., W_L, first layer first.
    target : array-like, shape (m, n) or (d,), optional
        M, to make sure that this is a minimum; without it the product is taken for the target.
    measurements : array-like, optional
        Matrices A_k (k, m, n), or a mask of bool (m, n), where the loss is ``1/2 sum_k <A_k, W_L ... W_1 -
        M>^2`` (sensing, completion).
    relative : bool, default False
        Compute the adaptive sharpness, too. Layers of a network with rectifiers may be rescaled against
        each other without changing it; the plain sharpness has then any value.
    gn : bool, default False
        Allow weights that are no minimum, and measure the Gauss-Newton matrix there.

    Returns
    -------
    Flatness

    Raises
    ------
    DataError
        If the residual is above 1e-6 of the target and `gn` is off.
    ShapeError
        If shapes do not fit.
    BudgetError
        If `relative` needs a Jacobian of more than 100 million numbers.

    References
    ----------
    Kamber, Parhi, arXiv 2509.25783 (sharpness of any minimum); Ding et al., arXiv 2203.03756 (trace and
    recovery); Gatmiry et al., arXiv 2306.13239 (smallest trace); Ghosh et al.,
    arXiv 2502.20531, lemma 4 (balanced layers are the flattest).

    Examples
    --------
    >>> from lowdim.dynamics import dln
    >>> float(at_minimum(dln.balanced_layers([4.0, 1.0], depth=2)).excess)
    0.0
    """
    Ws = as_layers(layers, "at_minimum")
    P = product(Ws)
    seen = observe(measurements, P.shape[-2], P.shape[-1], "at_minimum")
    if target is not None and not gn:
        require_minimum(Ws, target, seen, "at_minimum")
    if seen.full:
        L, s = len(Ws), torch.linalg.svdvals(P)
        flattest = L * s[..., 0] ** (2 - 2 / L)
        smallest = L * (P.shape[-2] * P.shape[-1]) ** (1 / L) * s.sum(-1) ** (2 - 2 / L)
    else:
        flattest = smallest = P.new_full(P.shape[:-2], torch.nan)
    return Flatness(
        sharpness(Ws, measurements=measurements),
        trace(Ws, measurements=measurements),
        flattest,
        smallest,
        balancing_gap(Ws),
        _relative(Ws, seen) if relative else None,
    )


def _relative(layers: list[Tensor], seen: Any) -> Tensor:
    """Largest eigenvalue of ``J D^2 J^T``, which is that of D J^T J D."""
    numbers = seen.count * sum(W.shape[-1] * W.shape[-2] for W in layers)
    if numbers > NUMBERS:
        raise BudgetError(
            f"at_minimum: relative=True needs a Jacobian of {numbers:,} numbers, more than {NUMBERS:,}. "
            "Leave it out, or use smaller layers."
        )
    total = torch.zeros((), dtype=torch.float64, device=layers[0].device)
    for W, up, down in zip(layers, *sides(layers), strict=True):
        J = seen.jacobian(up, down) * W.flatten(-2).abs()[..., None, :]
        total = total + J @ J.mT
    return torch.linalg.eigvalsh(total)[..., -1]
