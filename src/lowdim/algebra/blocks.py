"""Matrices cut into blocks: BlockDiagonal and Monarch."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lowdim.algebra.lowrank import check_rank, rank_within
from lowdim.algebra.operator import Operator
from lowdim.errors import BudgetError, RankError, ShapeError

__all__ = ["BlockDiagonal", "Monarch", "check_blocks", "divisors"]


def divisors(size: int) -> list[int]:
    """Return the divisors of `size`, ascending."""
    small = [d for d in range(1, int(size**0.5) + 1) if size % d == 0]
    return sorted({*small, *(size // d for d in small)})


def check_blocks(blocks: Any, m: int, n: int, owner: str, *, pad: bool = False) -> tuple[int, int]:
    """Return ``(b1, b2)`` if an m x n matrix can be cut into them.

    Parameters
    ----------
    blocks : int or pair of int
        Block rows and block columns.
    m, n : int
        Sizes of the matrix.
    owner : str
        Who asks, for the message.
    pad : bool
        Whether sizes that do not divide are padded with zeros.

    Raises
    ------
    ShapeError
        If they are not positive integers or do not divide the sizes.
    """
    pair = (
        (blocks, blocks)
        if isinstance(blocks, int)
        else tuple(blocks)
        if isinstance(blocks, list | tuple)
        else ()
    )
    if len(pair) != 2 or any(isinstance(b, bool) or not isinstance(b, int) or b < 1 for b in pair):
        raise ShapeError(f"{owner}: blocks={blocks!r} must be a positive integer or a pair of them.")
    for name, size, b in (("out_features", m, pair[0]), ("in_features", n, pair[1])):
        if b > size:
            raise ShapeError(f"{owner}: {name}={size} cannot be cut into {b} blocks: use at most {size}.")
        if size % b and not pad:
            options = divisors(size)
            nearest = min(options, key=lambda d: (abs(d - b), d))
            raise ShapeError(
                f"{owner}: {name}={size} cannot be cut into {b} blocks. Use a divisor of {size} "
                f"({', '.join(map(str, options[:6]))}{', ...' if len(options) > 6 else ''}; "
                f"the nearest is {nearest}){' or pad=True' if owner == 'Blast' else ''}."
            )
    return pair


class BlockDiagonal(Operator):
    """A block-diagonal matrix: ``y_i = W_i x_i``.

    Parameters
    ----------
    in_features, out_features : int
        Sizes n and m.
    blocks : int
        Number b of diagonal blocks (a divisor of n and m); m n / b parameters.
    device, dtype
        Where the parameter lives.

    Attributes
    ----------
    W : Parameter of shape (b, p, q), p = m / b, q = n / b

    Raises
    ------
    ShapeError
        If b does not divide both sizes.

    Examples
    --------
    >>> BlockDiagonal(6, 4, blocks=2).cost().parameters
    12
    """

    structure: ClassVar[str] = "blockdiag"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        blocks: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features)
        b, other = check_blocks(blocks, out_features, in_features, "BlockDiagonal")
        if b != other:
            raise ShapeError(
                f"BlockDiagonal: blocks={blocks!r}: as many block rows as block columns are needed."
            )
        self.blocks = b
        shape = (b, out_features // b, in_features // b)
        self.W = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw entries of variance 1/(3q): the outputs vary as much as those of ``nn.Linear``."""
        bound = self.W.shape[2] ** -0.5
        nn.init.uniform_(self.W, -bound, bound, generator=generator)

    @classmethod
    def from_factors(cls, W: Tensor) -> BlockDiagonal:
        """Return the operator of a copy of the blocks ``(b, p, q)``."""
        if W.ndim != 3:
            raise ShapeError(f"BlockDiagonal: blocks (b, p, q) are expected, got shape {tuple(W.shape)}.")
        b, p, q = W.shape
        operator = cls(b * q, b * p, blocks=b, device="meta")
        operator.W = nn.Parameter(W.detach().clone(memory_format=torch.contiguous_format))
        return operator

    @classmethod
    def parameters_for(cls, rank: int | None, m: int, n: int, blocks: Any) -> int:
        """Return the number of parameters ``m n / b`` for b `blocks`; `rank` plays no role."""
        return m * n // (blocks if isinstance(blocks, int) else blocks[0])

    @classmethod
    def rank_for(cls, keep: float, m: int, n: int, blocks: Any) -> int:
        """Return the rank ``min(p, q)`` of the `blocks` of an m x n matrix, if `keep` pays for them.

        Raises
        ------
        BudgetError
            If it does not.
        """
        b, _ = check_blocks(blocks, m, n, "BlockDiagonal")
        if not 0 < keep <= 1:
            raise BudgetError(f"BlockDiagonal: keep={keep} must be in (0, 1].")
        if keep * b < 1 - 1e-9:
            raise BudgetError(
                f"BlockDiagonal: {b} blocks keep 1/{b} of the parameters, more than keep={keep}."
            )
        return min(m, n) // b

    @classmethod
    def blocks_for(cls, m: int, n: int, *, keep: float = 0.5) -> tuple[int, int]:
        """Return the smallest count ``(b, b)`` dividing both m and n with ``1/b <= keep``.

        Raises
        ------
        BudgetError
            If there is none.
        """
        for b in divisors(m):
            if n % b == 0 and keep * b >= 1 - 1e-9:
                return (b, b)
        raise BudgetError(
            f"BlockDiagonal: no number of blocks that divides {m} and {n} keeps at most keep={keep} "
            "of the parameters. Raise keep or use another structure."
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the products of all blocks side by side."""
        self._check_input(x, self.in_features, "in_features")
        return _blockwise(x, self.W)

    def adjoint_forward(self, y: Tensor) -> Tensor:
        """Return the products with the conjugate transposed blocks."""
        self._check_input(y, self.out_features, "out_features")
        return _blockwise(y, self.W.mH)

    def dense(self) -> Tensor:
        """Return the matrix with the blocks on its diagonal."""
        b, p, q = self.W.shape
        eye = torch.eye(b, dtype=self.W.dtype, device=self.W.device)
        return (self.W[:, :, None, :] * eye[:, None, :, None]).reshape(b * p, b * q)

    def config(self) -> dict[str, Any]:
        """Describe sizes and number of blocks."""
        return {**super().config(), "blocks": self.blocks}


def _blockwise(x: Tensor, W: Tensor) -> Tensor:
    """Multiply block k of the last axis of `x` by ``W[k]``."""
    b, p, q = W.shape
    tokens = x.reshape(-1, b, q).transpose(0, 1)
    return torch.bmm(tokens, W.mT).transpose(0, 1).reshape(*x.shape[:-1], b * p)


class Monarch(Operator):
    """A block matrix whose every block has rank t: ``y_i = sum_j L_ij R_ij x_j``.

    Parameters
    ----------
    in_features, out_features : int
        Sizes n and m.
    rank : int
        Rank t of every block; t (b2 m + b1 n) parameters.
    blocks : pair of int
        Block rows b1 (divisor of m) and block columns b2 (divisor of n).
    device, dtype
        Where the parameters live.

    Attributes
    ----------
    L : Parameter of shape (b1, p, b2, t)
        ``L[i, :, j, :]`` is the left factor (p, t) of block (i, j).
    R : Parameter of shape (b2, b1, t, q)
        ``R[j, i]`` is the right factor (t, q) of block (i, j). So each of the two
        steps of the product is one batched matrix product without a copy of a weight.

    Raises
    ------
    ShapeError
        If the blocks do not divide the sizes.
    RankError
        If t is not in 1 ... min(p, q).

    Examples
    --------
    >>> A = Monarch(8, 4, rank=1, blocks=(2, 4))
    >>> torch.linalg.matrix_rank(A.dense()[:2, :2]).item(), A.cost().parameters
    (1, 32)
    """

    structure: ClassVar[str] = "monarch"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rank: int,
        blocks: tuple[int, int] = (4, 4),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features)
        self.blocks = b1, b2 = check_blocks(blocks, out_features, in_features, "Monarch")
        self.rank = t = check_rank(rank, "Monarch")
        p, q = out_features // b1, in_features // b2
        if t > min(p, q):
            raise RankError(f"Monarch: blocks of size {p}x{q} cannot have rank {t}. Use at most {min(p, q)}.")
        self.L = nn.Parameter(torch.empty(b1, p, b2, t, device=device, dtype=dtype))
        self.R = nn.Parameter(torch.empty(b2, b1, t, q, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw factors such that every block has the entry variance 1/(3n) of ``nn.Linear``."""
        deviation = (3 * self.in_features * self.rank) ** -0.25
        nn.init.normal_(self.L, std=deviation, generator=generator)
        nn.init.normal_(self.R, std=deviation, generator=generator)

    @classmethod
    def from_factors(cls, L: Tensor, R: Tensor) -> Monarch:
        """Return the operator of copies of ``L (b1, p, b2, t)`` and ``R (b2, b1, t, q)``.

        Raises
        ------
        ShapeError
            If these shapes do not fit.
        """
        fits = (
            L.ndim == 4
            and R.ndim == 4
            and (L.shape[0], L.shape[2], L.shape[3])
            == (
                R.shape[1],
                R.shape[0],
                R.shape[2],
            )
        )
        if not fits:
            raise ShapeError(
                "Monarch: L (b1, p, b2, t) and R (b2, b1, t, q) do not fit, "
                f"got {tuple(L.shape)} and {tuple(R.shape)}."
            )
        (b1, p, b2, t), q = L.shape, R.shape[3]
        operator = cls(b2 * q, b1 * p, rank=t, blocks=(b1, b2), device="meta")
        operator.L = nn.Parameter(L.detach().clone(memory_format=torch.contiguous_format))
        operator.R = nn.Parameter(R.detach().clone(memory_format=torch.contiguous_format))
        return operator

    @classmethod
    def parameters_for(cls, rank: int, m: int, n: int, blocks: Any) -> int:
        """Return the number of parameters ``t (b2 m + b1 n)`` of `rank` t and `blocks` (b1, b2)."""
        b1, b2 = check_blocks(blocks, m, n, "Monarch")
        return rank * (b2 * m + b1 * n)

    @classmethod
    def rank_for(cls, keep: float, m: int, n: int, blocks: Any) -> int:
        """Return the largest rank t of m x n `blocks` within the budget `keep`.

        Not rounded to a multiple of 8: the product of t and the number of blocks is what kernels see.
        """
        b1, b2 = check_blocks(blocks, m, n, "Monarch")
        rank = rank_within(keep, "Monarch", m, n, price=b2 * m + b1 * n, multiple=1)
        return min(rank, m // b1, n // b2)

    @classmethod
    def blocks_for(cls, m: int, n: int) -> tuple[int, int]:
        """Return (4, 4), the small-model setting, or the largest of (3, 3), (2, 2), (1, 1) dividing m, n."""
        b = next(b for b in (4, 3, 2, 1) if m % b == 0 and n % b == 0)
        return (b, b)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``sum_j L_ij R_ij x_j`` for all block rows i."""
        self._check_input(x, self.in_features, "in_features")
        return _monarch(x, self.R, self.L)

    def adjoint_forward(self, y: Tensor) -> Tensor:
        """Return ``sum_i R_ij^H L_ij^H y_i`` for all block columns j."""
        self._check_input(y, self.out_features, "out_features")
        return _monarch(y, self.L.conj().permute(0, 2, 3, 1), self.R.conj().permute(0, 3, 1, 2))

    def dense(self) -> Tensor:
        """Return the matrix of all blocks."""
        blocks = torch.einsum("ipjt,jitq->ipjq", self.L, self.R)
        return blocks.reshape(self.out_features, self.in_features)

    def config(self) -> dict[str, Any]:
        """Describe sizes, block rank and blocks."""
        return {**super().config(), "rank": self.rank, "blocks": list(self.blocks)}


def _monarch(x: Tensor, R: Tensor, L: Tensor) -> Tensor:
    """Return ``sum_j L[i, :, j] R[j, i] x_j`` for R (b2, b1, t, q) and L (b1, p, b2, t)."""
    b2, b1, t, q = R.shape
    p = L.shape[1]
    tokens = x.reshape(-1, b2, q).permute(1, 2, 0)
    inner = torch.bmm(R.reshape(b2, b1 * t, q), tokens)
    inner = inner.reshape(b2, b1, t, -1).transpose(0, 1).reshape(b1, b2 * t, -1)
    # Tokens first again in the last product, so that the copy at the end moves whole rows.
    outer = torch.bmm(inner.transpose(1, 2), L.reshape(b1, p, b2 * t).mT)
    return outer.transpose(0, 1).reshape(*x.shape[:-1], b1 * p)
