"""LowRank: a matrix that is a product of two thin ones."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lowdim.algebra.operator import Operator
from lowdim.errors import BudgetError, RankError, ShapeError

__all__ = ["LowRank", "check_rank", "rank_within"]


def check_rank(rank: Any, owner: str) -> int:
    """Return `rank` if it is a positive integer, else raise RankError in the name of `owner`."""
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise RankError(f"{owner}: rank={rank!r} must be a positive integer.")
    return rank


def rank_within(
    keep: float, owner: str, m: int, n: int, *, price: int, multiple: int = 8, loss: float = 0.03
) -> int:
    """Return the largest rank whose parameters fit into ``keep * m * n``.

    Parameters
    ----------
    keep : float
        Fraction of the dense parameters, in (0, 1].
    owner : str
        Who asks, for the message.
    m, n : int
        Sizes of the dense matrix.
    price : int
        Parameters per unit of rank.
    multiple : int
        A power of two. Kernels like aligned sizes, so the rank is rounded down
        to a multiple of this, or of the largest smaller power of two for which
        no more than `loss` is given away.
    loss : float
        Largest fraction of the rank that alignment may cost.

    Raises
    ------
    BudgetError
        If `keep` is outside (0, 1] or pays for no rank at all.
    """
    if not 0 < keep <= 1:
        raise BudgetError(f"{owner}: keep={keep} must be in (0, 1], the fraction of the parameters to keep.")
    # The small addition keeps e.g. keep = 0.1 from losing a rank to binary rounding.
    rank = int(keep * m * n / price + 1e-9)
    if rank < 1:
        raise BudgetError(
            f"{owner}: keep={keep} of a {m}x{n} matrix is {keep * m * n:.0f} parameters, fewer than the "
            f"{price} that rank 1 costs. Raise keep to at least {price / (m * n):.3g}, use fewer blocks, "
            "or leave the layer dense."
        )
    # MiniLM at keep = 0.3: ranks 40 and 80 instead of 43 and 81 cost 0.004 of the STS-B correlation.
    while rank % multiple > loss * rank:
        multiple //= 2
    return rank - rank % multiple


class LowRank(Operator):
    """A matrix of low rank: ``y = U (V x)``.

    Parameters
    ----------
    in_features, out_features : int
        Sizes n and m.
    rank : int
        Number r of columns of U and rows of V; r (m + n) parameters.
    device, dtype
        Where the parameters live.

    Attributes
    ----------
    U : Parameter of shape (m, r)
    V : Parameter of shape (r, n)

    Raises
    ------
    RankError
        If the rank is not a positive integer.

    Examples
    --------
    >>> import torch
    >>> A = LowRank(6, 4, rank=2)
    >>> bool(torch.allclose(A.dense(), A.U @ A.V)), A.cost().parameters
    (True, 20)
    """

    structure: ClassVar[str] = "lowrank"
    takes_bias: ClassVar[bool] = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rank: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features)
        self.rank = check_rank(rank, "LowRank")
        self.U = nn.Parameter(torch.empty(out_features, rank, device=device, dtype=dtype))
        self.V = nn.Parameter(torch.empty(rank, in_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw factors such that the product has the entry variance 1/(3n) of ``nn.Linear``."""
        deviation = (3 * self.in_features * self.rank) ** -0.25
        nn.init.normal_(self.U, std=deviation, generator=generator)
        nn.init.normal_(self.V, std=deviation, generator=generator)

    @classmethod
    def from_factors(cls, U: Tensor, V: Tensor) -> LowRank:
        """Return the operator of copies of ``U (m, r)`` and ``V (r, n)``.

        Raises
        ------
        ShapeError
            If these shapes do not fit.
        """
        if U.ndim != 2 or V.ndim != 2 or U.shape[1] != V.shape[0]:
            raise ShapeError(
                f"LowRank: U (m, r) and V (r, n) must share r, got {tuple(U.shape)} and {tuple(V.shape)}."
            )
        operator = cls(V.shape[1], U.shape[0], rank=U.shape[1], device="meta")
        operator.U = nn.Parameter(U.detach().clone(memory_format=torch.contiguous_format))
        operator.V = nn.Parameter(V.detach().clone(memory_format=torch.contiguous_format))
        return operator

    @classmethod
    def parameters_for(cls, rank: int, m: int, n: int, blocks: Any = None) -> int:
        """Return the number of parameters ``r (m + n)`` of `rank` r; `blocks` plays no role."""
        return rank * (m + n)

    @classmethod
    def rank_for(cls, keep: float, m: int, n: int, blocks: Any = None) -> int:
        """Return the largest rank within the budget `keep` of m n, aligned as `rank_within` says.

        `blocks` plays no role.
        """
        return rank_within(keep, "LowRank", m, n, price=m + n)

    @classmethod
    def blocks_for(cls, m: int, n: int) -> tuple[int, int]:
        """Return (1, 1): an m x n matrix is not cut."""
        return (1, 1)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return ``U (V x)``, plus a bias if given."""
        self._check_input(x, self.in_features, "in_features")
        return nn.functional.linear(nn.functional.linear(x, self.V), self.U, bias)

    def adjoint_forward(self, y: Tensor) -> Tensor:
        """Return ``V^H (U^H y)``."""
        self._check_input(y, self.out_features, "out_features")
        return nn.functional.linear(nn.functional.linear(y, self.U.mH), self.V.mH)

    def dense(self) -> Tensor:
        """Return ``U V``."""
        return self.U @ self.V

    def config(self) -> dict[str, Any]:
        """Describe sizes and rank."""
        return {**super().config(), "rank": self.rank}
