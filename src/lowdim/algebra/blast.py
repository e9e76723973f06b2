"""Blast: block-level adaptive structured matrices."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lowdim.algebra.blocks import check_blocks
from lowdim.algebra.kernels import blast_product
from lowdim.algebra.lowrank import check_rank, rank_within
from lowdim.algebra.operator import Operator
from lowdim.errors import ShapeError

__all__ = ["Blast"]

# The automatic rule: block counts tried, the share of the parameters that couplings may take, and the rows
# and columns a block should have: products of thinner ones are slow (up to four blocks may be thinner).
_BLOCK_COUNTS = (16, 12, 8, 6, 4, 3, 2)
_COUPLING_SHARE = 0.1
_THINNEST = 64


class Blast(Operator):
    r"""A block matrix whose blocks share their factors: ``A_ij = U_i diag(S[:, i, j]) V_j``.

    The matrix is cut into b1 x b2 blocks of size p x q. A block row shares
    ``U_i``, a block column shares ``V_j``, and every block owns r coupling
    numbers; together r (m + n + b1 b2) parameters and as many multiplications
    per input vector. Low-rank (S = 1), block-diagonal and Monarch matrices are
    special cases.

    Parameters
    ----------
    in_features, out_features : int
        Sizes n and m.
    rank : int
        Number r of shared components; may exceed p and q.
    blocks : int or pair of int
        Block rows b1 and block columns b2; divisors of m and n unless `pad`.
    pad : bool
        Pad the matrix with zero rows and columns to the next multiples of b1
        and b2. The sizes seen from outside stay n and m.
    frozen : bool
        Keep the couplings S fixed in training (the special cases).
    device, dtype
        Where the parameters live.

    Attributes
    ----------
    U : Parameter of shape (b1, p, r)
    S : Parameter of shape (r, b1, b2)
    V : Parameter of shape (b2, r, q)

    Raises
    ------
    ShapeError
        If the blocks do not divide the sizes and `pad` is False.
    RankError
        If the rank is not a positive integer.

    References
    ----------
    Lee, Kwon, Qu, Kim, "BLAST: Block-Level Adaptive Structured Matrices for
    Efficient Deep Neural Network Inference", NeurIPS 2024, arXiv 2410.21262.
    There the couplings are stored as (b1, b2, r); rank first lets the coupling
    of all tokens run as one batched matrix product.

    Examples
    --------
    >>> import torch
    >>> A = Blast(12, 8, rank=3, blocks=(2, 4))
    >>> block = A.U[1] @ torch.diag(A.S[:, 1, 2]) @ A.V[2]
    >>> bool(torch.allclose(A.dense()[4:8, 6:9], block, atol=1e-6))
    True
    >>> A.cost().parameters == 3 * (12 + 8 + 2 * 4)
    True
    """

    structure: ClassVar[str] = "blast"
    takes_bias: ClassVar[bool] = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rank: int,
        blocks: int | tuple[int, int] | list[int] = (16, 16),
        pad: bool = False,
        frozen: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features)
        self.blocks = b1, b2 = check_blocks(blocks, out_features, in_features, "Blast", pad=pad)
        self.rank = r = check_rank(rank, "Blast")
        self.pad = pad
        p, q = -(-out_features // b1), -(-in_features // b2)
        self.U = nn.Parameter(torch.empty(b1, p, r, device=device, dtype=dtype))
        self.S = nn.Parameter(torch.empty(r, b1, b2, device=device, dtype=dtype), requires_grad=not frozen)
        self.V = nn.Parameter(torch.empty(b2, r, q, device=device, dtype=dtype))
        self.reset_parameters()

    @property
    def frozen(self) -> bool:
        """Whether the couplings are fixed in training."""
        return not self.S.requires_grad

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw factors such that the matrix has the entry variance 1/(3n) of ``nn.Linear``.

        The couplings are uniform on (0, 2), so E[s^2] = 4/3 and the entry
        variance is r var(u) var(v) 4/3. The paper does not give its own
        initialization for training from scratch.
        """
        deviation = (4 * self.in_features * self.rank) ** -0.25
        nn.init.normal_(self.U, std=deviation, generator=generator)
        nn.init.normal_(self.V, std=deviation, generator=generator)
        nn.init.uniform_(self.S, 0.0, 2.0, generator=generator)

    @classmethod
    def from_factors(
        cls,
        U: Tensor,
        S: Tensor,
        V: Tensor,
        *,
        in_features: int | None = None,
        out_features: int | None = None,
        frozen: bool = False,
    ) -> Blast:
        """Return the operator of copies of given factors.

        Parameters
        ----------
        U, S, V : Tensor of shape (b1, p, r), (r, b1, b2), (b2, r, q)
            The factors.
        in_features, out_features : int, optional
            Sizes n <= b2 q and m <= b1 p when the factors are padded.
        frozen : bool
            Keep S fixed in training.

        Raises
        ------
        ShapeError
            If the factors do not fit together.
        """
        fits = U.ndim == S.ndim == V.ndim == 3 and (
            (U.shape[2], U.shape[0], V.shape[0]) == tuple(S.shape) and V.shape[1] == U.shape[2]
        )
        if not fits:
            raise ShapeError(
                "Blast: U (b1, p, r), S (r, b1, b2) and V (b2, r, q) do not fit, got "
                f"{tuple(U.shape)}, {tuple(S.shape)} and {tuple(V.shape)}."
            )
        (b1, p, r), (b2, _, q) = U.shape, V.shape
        n, m = in_features or b2 * q, out_features or b1 * p
        if -(-m // b1) != p or -(-n // b2) != q:
            raise ShapeError(
                f"Blast: factors for {b1 * p}x{b2 * q} cannot carry out_features={m}, in_features={n} "
                f"in {b1}x{b2} blocks."
            )
        padded = (m, n) != (b1 * p, b2 * q)
        operator = cls(n, m, rank=r, blocks=(b1, b2), pad=padded, frozen=frozen, device="meta")
        for name, factor in (("U", U), ("S", S), ("V", V)):
            copy = factor.detach().clone(memory_format=torch.contiguous_format)
            setattr(operator, name, nn.Parameter(copy, requires_grad=not (frozen and name == "S")))
        return operator

    @classmethod
    def parameters_for(cls, rank: int, m: int, n: int, blocks: Any) -> int:
        """Return the number of parameters ``r (m + n + b1 b2)``, with padded m and n if need be.

        Parameters
        ----------
        rank : int
            Number r of components.
        m, n : int
            Rows and columns of the matrix.
        blocks : int or (int, int)
            Numbers b1, b2 of block rows and columns.

        Returns
        -------
        int
        """
        b1, b2 = check_blocks(blocks, m, n, "Blast", pad=True)
        return rank * (-(-m // b1) * b1 + -(-n // b2) * b2 + b1 * b2)

    @classmethod
    def rank_for(cls, keep: float, m: int, n: int, blocks: Any) -> int:
        """Return the largest rank within a budget, rounded down to a multiple of 8, 4 or 2 (3 % at most).

        Parameters
        ----------
        keep : float
            Fraction of the m n parameters, in (0, 1].
        m, n : int
            Rows and columns of the matrix.
        blocks : int or (int, int)
            Numbers b1, b2 of block rows and columns.

        Returns
        -------
        int

        Raises
        ------
        BudgetError
            If the budget does not pay for rank 1.
        """
        return rank_within(keep, "Blast", m, n, price=cls.parameters_for(1, m, n, blocks))

    @classmethod
    def blocks_for(cls, m: int, n: int) -> tuple[int, int]:
        """Return the automatic choice of blocks for an m x n matrix.

        The largest b in {16, 12, 8, 6, 4, 3, 2} that divides both sizes,
        whose couplings are at most a tenth of the parameters (whatever the
        rank), and whose blocks have 64 rows and columns or more (or b <= 4).
        If none divides both, the largest one that passes and pads both
        sizes by at most 2 %: use it with ``pad=True``. Else (1, 1), low rank.
        """
        affordable = [
            b
            for b in _BLOCK_COUNTS
            if b * b <= _COUPLING_SHARE * (m + n + b * b) and b <= max(4, min(m, n) // _THINNEST)
        ]
        for b in affordable:
            if m % b == 0 and n % b == 0:
                return (b, b)
        for b in affordable:
            if -m % b <= 0.02 * m and -n % b <= 0.02 * n:
                return (b, b)
        return (1, 1)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return ``A x`` (plus a bias, if given) on the last axis: ``(..., n) -> (..., m)``."""
        self._check_input(x, self.in_features, "in_features")
        if self.pad:
            y = self._padded(x, self.U, self.S, self.V, self.out_features)
            return y if bias is None else y + bias.to(y.dtype)  # in half precision under autocast
        return blast_product(x, self.U, self.S, self.V, bias=bias)

    def adjoint_forward(self, y: Tensor) -> Tensor:
        """Return ``A^H y``: a Blast product with the factors' roles exchanged."""
        self._check_input(y, self.out_features, "out_features")
        return self._padded(y, self.V.mH, self.S.mH, self.U.mH, self.in_features)

    @staticmethod
    def _padded(x: Tensor, U: Tensor, S: Tensor, V: Tensor, size: int) -> Tensor:
        missing = V.shape[0] * V.shape[2] - x.shape[-1]
        y = blast_product(nn.functional.pad(x, (0, missing)) if missing else x, U, S, V)
        return y[..., :size].contiguous() if y.shape[-1] != size else y

    def dense(self) -> Tensor:
        """Return the matrix ``(m, n)`` without padding."""
        b1, p, r = self.U.shape
        b2, _, q = self.V.shape
        # (U_i diag(s_ij)) V_j: scaled left factors of all blocks, one product per block column.
        left = self.U[None] * self.S.permute(2, 1, 0)[:, :, None, :]
        matrix = torch.bmm(left.reshape(b2, b1 * p, r), self.V)
        matrix = matrix.permute(1, 0, 2).reshape(b1 * p, b2 * q)
        return matrix[: self.out_features, : self.in_features]

    def config(self) -> dict[str, Any]:
        """Describe sizes, rank and blocks (and what is unusual: padding, frozen couplings)."""
        config = {**super().config(), "rank": self.rank, "blocks": list(self.blocks)}
        if self.pad:
            config["pad"] = True
        if self.frozen:
            config["frozen"] = True
        return config
