"""Trajectory: what many trainings of a deep linear network did."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lowdim.errors import DataError

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
        Learning rate and initial scale of each run (NaN where it began from given layers).
    steps : Tensor of int64, shape (...)
        Steps taken; of a diverged run, the step at which it left the limit.
    diverged : Tensor of bool, shape (...)
        Whether the product became infinite, or larger than a million times the target.
    converged : Tensor of bool, shape (...)
        Whether the loss fell below `tol`.
    times : Tensor of int64, shape (T,)
        Steps at which something was recorded.
    records : dict of str to Tensor, shapes (..., T, ...)
        What was recorded; NaN after a run diverged, the last value after one converged. The properties
        `loss`, `values`, `product`, `gap` and `factors` return them by name.

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
    records: dict[str, Tensor]

    @property
    def loss(self) -> Tensor:
        """The loss, half a squared norm, shape (..., T)."""
        return self._recorded("loss")

    @property
    def values(self) -> Tensor:
        """The product P in the singular directions of the target, ``u_i^T P v_i``, shape (..., T, d)."""
        return self._recorded("values")

    @property
    def product(self) -> Tensor:
        """The product of the layers, shape (..., T, m, n); of a diagonal network (..., T, d)."""
        return self._recorded("product")

    @property
    def gap(self) -> Tensor:
        """The balancing gap, shape (..., T)."""
        return self._recorded("gap")

    @property
    def factors(self) -> Tensor:
        """Diagonals of the layers of aligned and diagonal networks, shape (..., T, L, d)."""
        return self._recorded("factors")

    def _recorded(self, name: str) -> Tensor:
        if name not in self.records:
            raise DataError(
                f"Trajectory: {name} was not recorded, only {', '.join(self.records) or 'nothing'}. Call "
                f"fit(..., record=({name!r},))."
            )
        return self.records[name]
