"""Rates: at which learning rates something new happens, and in how many directions it oscillates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lowdim.dynamics.dln.door import as_depth, as_rate, as_singular_values
from lowdim.dynamics.dln.orbit import stability_limit
from lowdim.dynamics.dln.spectrum import balanced_sharpness, hessian_eigenvalues
from lowdim.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CriticalLRs", "critical_lrs", "oscillation_rank"]


@dataclass(frozen=True, eq=False)
class CriticalLRs:
    """Learning rates at which a deep linear network changes what it does.

    Parameters
    ----------
    singular_values : Tensor, shape (d,)
        Of the target, those above 0, descending.
    onset : Tensor, shape (d,)
        ``2 / S_i``: beyond it singular value i oscillates with period 2. The first is the edge of stability.
    period4 : Tensor, shape (d,)
        ``c_L 2 / S_i``: beyond it, with period 4 and soon without any. Infinite for one layer.
    mixing : float
        ``2 / lambda_12``: about here an oscillation of the first singular value alone becomes unstable, and
        mixes the first two singular directions, unless the weights are exactly aligned.

    Examples
    --------
    >>> float(critical_lrs([10.0, 9.5, 9.0], depth=3).onset[0])  # doctest: +ELLIPSIS
    0.030943...
    """

    singular_values: Tensor
    onset: Tensor
    period4: Tensor
    mixing: float

    def table(self) -> pd.DataFrame:
        """Return one row per singular value: its number, value, onset and period4."""
        import pandas as pd

        columns = {"s": self.singular_values, "onset": self.onset, "period4": self.period4}
        index = pd.RangeIndex(1, len(self.onset) + 1, name="index")
        return pd.DataFrame({name: column.tolist() for name, column in columns.items()}, index=index)


def critical_lrs(target: Any, *, depth: int) -> CriticalLRs:
    """Learning rates at which the training of a deep linear network changes its nature.

    The loss is ``1/2 ||W_L ... W_1 - M||_F^2``, the training gradient descent with constant learning rate.

    Parameters
    ----------
    target : array-like, shape (m, n) or (d,)
        The matrix M, or its singular values.
    depth : int
        Number of layers L.

    Returns
    -------
    CriticalLRs

    References
    ----------
    arXiv 2502.20531, theorem 1 (onset); period4 and mixing are derived here.

    Examples
    --------
    >>> critical_lrs([10.0, 5.0], depth=2).table()
             s  onset   period4
    index
    1      10.0    0.1  0.123607
    2       5.0    0.2  0.247214
    """
    L = as_depth(depth, "critical_lrs")
    s = as_singular_values(target, "critical_lrs")
    s = s[s > s[0] * len(s) * torch.finfo(s.dtype).eps]
    onset = 2 / balanced_sharpness(s, depth=L)
    limit = stability_limit(L) if L > 1 else math.inf
    top_two = s[:2] if len(s) > 1 else torch.cat([s, s.new_zeros(1)])
    # lambda_12 and lambda_21 are equal, and lie between S_1 and S_2.
    mixing = 2 / float(hessian_eigenvalues(top_two, depth=L)[1])
    return CriticalLRs(s, onset, limit * onset, mixing)


def oscillation_rank(target: Any, *, depth: int, lr: float, momentum: float = 0.0) -> int:
    """How many singular directions oscillate: the number of i with ``lr > 2 / S_i``.

    The product of the layers then differs between even and odd steps by a matrix of this rank, as long as
    the weights are aligned; see `floquet` for what happens if they are not.

    Parameters
    ----------
    target : array-like, shape (m, n) or (d,)
        The matrix M, or its singular values.
    depth : int
        Number of layers L.
    lr : float
        Learning rate.
    momentum : float, default 0
        Of the heavy-ball method, which is stable up to ``(2 + 2 momentum) / S_i``.

    Returns
    -------
    int

    Raises
    ------
    DataError
        If the momentum is not in [0, 1).

    References
    ----------
    arXiv 2502.20531, theorem 1.

    Examples
    --------
    >>> oscillation_rank([10.0, 9.5, 9.0], depth=3, lr=0.034)
    2
    """
    if not 0 <= momentum < 1:
        raise DataError(f"oscillation_rank: momentum={momentum!r}, expected a number in [0, 1).")
    rate = as_rate(lr, "oscillation_rank")
    S = balanced_sharpness(target, depth=depth)
    return int((rate * S > 2 + 2 * momentum).sum())
