"""Trajectory: what many trainings of a deep linear network did."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Trajectory"]


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Trainings of deep linear networks, one for each learning rate, scale and seed.

    The leading axes ``...`` are those of lr, scale and seed that were given as sequences, in this order.

    Parameters
    ----------
    layers : list of Tensor, shapes (..., w_l, w_{l-1})
        Weights at the end, first layer first; of a diverged run, the last ones within the limit. Of a
        diagonal network, its vectors (..., d).
    lr, scale : Tensor, shape (...)
        Learning rate and initial scale of each run.
    steps : Tensor of int64, shape (...)
        Steps taken; of a diverged run, the step at which it left the limit.
    diverged : Tensor of bool, shape (...)
        Whether the product became infinite, or larger than a million times the target.
    converged : Tensor of bool, shape (...)
        Whether the loss fell below `tol`.
    times : Tensor of int64, shape (T,)
        Steps at which something was recorded.
    loss : Tensor, shape (..., T), or None
        ``1/2 ||W_L ... W_1 - M||_F^2``, or of what is measured of it.
    values : Tensor, shape (..., T, d), or None
        ``u_i^T (W_L ... W_1) v_i``: the product in the singular directions of the target.
    product : Tensor, shape (..., T, m, n), or None
        The product of the layers (of a diagonal network (..., T, d)).
    gap : Tensor, shape (..., T), or None
        See `balancing_gap`.
    factors : Tensor, shape (..., T, L, d), or None
        Diagonals of the layers, of aligned and diagonal networks.

    Examples
    --------
    >>> from lowdim.dynamics.dln import DeepLinear
    >>> net = DeepLinear([10.0, 5.0], depth=3)
    >>> run = net.fit([0.03, 0.035], steps=800, record=("values",), last=2)
    >>> run.values.diff(dim=1).abs().squeeze().round(decimals=2)
    tensor([[0.0000, 0.0000],
            [5.2000, 0.0000]], dtype=torch.float64)
    """

    layers: list[Tensor]
    lr: Tensor
    scale: Tensor
    steps: Tensor
    diverged: Tensor
    converged: Tensor
    times: Tensor
    loss: Tensor | None = None
    values: Tensor | None = None
    product: Tensor | None = None
    gap: Tensor | None = None
    factors: Tensor | None = None
