"""Lookup tables in fewer bytes, in the place of ``nn.Embedding``: 8-bit rows, or a product of thin matrices.

A table W, (vocabulary, dim), is read one row at a time, so it is never needed as a whole: a lookup widens or
multiplies out only the rows that it gathers. The values come from elsewhere (`lowdim.compress.torchao` and
`lowdim.compress.shrink`); looking up needs torch alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowdim.algebra.lowrank import check_rank
from lowdim.errors import DataError, ShapeError

__all__ = ["CompactEmbedding", "Int8Embedding", "LowRankEmbedding"]


class CompactEmbedding(nn.Module):
    """A lookup table that stores less than its matrix; `Int8Embedding` and `LowRankEmbedding` are the kinds.

    A kind sets the class attribute ``how``, and implements ``weight`` and ``forward``.

    Parameters
    ----------
    num_embeddings, embedding_dim : int
        Rows and columns of the table.
    padding_idx : int, optional
        The row of the padding token, as ``nn.Embedding`` keeps it: it has no gradient.

    Raises
    ------
    ShapeError
        If a size is not a positive integer, or the padding row is not in the table.
    """

    how: ClassVar[str] = ""
    _kinds: ClassVar[dict[str, type[CompactEmbedding]]] = {}

    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None) -> None:
        super().__init__()
        for name, size in (("num_embeddings", num_embeddings), ("embedding_dim", embedding_dim)):
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ShapeError(f"{type(self).__name__}: {name}={size!r} must be a positive integer.")
        if padding_idx is not None and (
            isinstance(padding_idx, bool)
            or not isinstance(padding_idx, int)
            or not 0 <= padding_idx < num_embeddings
        ):
            raise ShapeError(
                f"{type(self).__name__}: padding_idx={padding_idx!r} must be a row of the table, 0 to "
                f"{num_embeddings - 1}, or None."
            )
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = padding_idx

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        CompactEmbedding._kinds[cls.how] = cls

    @property
    def weight(self) -> Tensor:
        """The dense table (num_embeddings, embedding_dim), computed anew at every access."""
        raise NotImplementedError(f"{type(self).__name__} does not implement weight.")

    def config(self) -> dict[str, Any]:
        """Return the JSON-ready description from which ``from_config`` builds an empty twin."""
        return {
            "embedding": self.how,
            "num_embeddings": self.num_embeddings,
            "embedding_dim": self.embedding_dim,
            "padding_idx": self.padding_idx,
        }

    @staticmethod
    def from_config(
        config: Mapping[str, Any],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> CompactEmbedding:
        """Build a table of the kind and the sizes that `config` describes.

        Parameters
        ----------
        config : mapping
            What ``config()`` returned (after a trip through JSON, if you like).
        device, dtype
            Where the numbers live; works under ``torch.device("meta")``.

        Returns
        -------
        CompactEmbedding
            With fresh, not the original, values: load a state dict next.

        Raises
        ------
        DataError
            If the kind is unknown or an entry is missing.
        """
        kinds = CompactEmbedding._kinds
        how = config.get("embedding")
        if not isinstance(how, str) or how not in kinds:
            raise DataError(
                f"CompactEmbedding.from_config: unknown kind of embedding table {how!r}. Known are "
                f"{', '.join(sorted(kinds))}; a newer lowdim may have written this."
            )
        options = {key: value for key, value in config.items() if key != "embedding"}
        try:
            sizes = options.pop("num_embeddings"), options.pop("embedding_dim")
            return kinds[how](*sizes, **options, device=device, dtype=dtype)  # type: ignore[call-arg]
        except (KeyError, TypeError) as error:
            raise DataError(
                f"CompactEmbedding.from_config: bad description of a table in {how!r}: {error}."
            ) from error

    def densify(self) -> nn.Embedding:
        """Return an ordinary ``nn.Embedding`` with the same rows (a copy)."""
        weight = self.weight.detach()
        dense = nn.Embedding(
            self.num_embeddings,
            self.embedding_dim,
            self.padding_idx,
            device="meta",
            dtype=weight.dtype,
        )
        dense.weight = nn.Parameter(weight.clone())
        return dense

    def extra_repr(self) -> str:
        """Describe the sizes in ``repr``."""
        return ", ".join(f"{key}={value}" for key, value in self.config().items() if key != "embedding")


class Int8Embedding(CompactEmbedding):
    """A table whose rows are 8-bit integers times one scale per row: ``W ~= scales * integers``.

    A quarter of the bytes of float32. Meant for inference: integers have no gradient.

    Parameters
    ----------
    num_embeddings, embedding_dim : int
        Rows and columns of the table.
    padding_idx : int, optional
        The row of the padding token.
    device, dtype
        Of the buffers, and of the scales (and so of the rows looked up).

    Attributes
    ----------
    integers : Tensor of shape (num_embeddings, embedding_dim)
        int8.
    scales : Tensor of shape (num_embeddings, 1)

    Examples
    --------
    >>> table = Int8Embedding(100, 8)
    >>> table(torch.tensor([[3, 4], [5, 6]])).shape
    torch.Size([2, 2, 8])
    """

    how = "int8"

    integers: Tensor
    scales: Tensor

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        padding_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx)
        integers = torch.zeros(num_embeddings, embedding_dim, device=device, dtype=torch.int8)
        self.register_buffer("integers", integers)
        self.register_buffer("scales", torch.ones(num_embeddings, 1, device=device, dtype=dtype))

    @property
    def weight(self) -> Tensor:
        """The dense table (num_embeddings, embedding_dim) in the dtype of the scales."""
        return self.integers.to(self.scales.dtype) * self.scales

    def forward(self, ids: Tensor) -> Tensor:
        """Return the rows `ids`, (...) -> (..., embedding_dim); only these are widened."""
        rows = functional.embedding(ids, self.integers)
        return rows.to(self.scales.dtype) * functional.embedding(ids, self.scales)


class LowRankEmbedding(CompactEmbedding):
    """A table that is a product of two thin matrices: ``W ~= L R``, looked up as ``L[ids] @ R``.

    Parameters
    ----------
    num_embeddings, embedding_dim : int
        Rows and columns of the table.
    rank : int
        Columns r of L and rows of R; r (num_embeddings + embedding_dim) parameters.
    padding_idx : int, optional
        The row of the padding token.
    device, dtype
        Where the parameters live.

    Attributes
    ----------
    L : Parameter of shape (num_embeddings, r)
    R : Parameter of shape (r, embedding_dim)

    Raises
    ------
    RankError
        If the rank is not a positive integer.

    Examples
    --------
    >>> table = LowRankEmbedding(100, 8, rank=2)
    >>> ids = torch.tensor([3, 4])
    >>> bool(torch.allclose(table(ids), table.weight[ids], atol=1e-6))
    True
    """

    how = "low-rank"

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        rank: int,
        padding_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx)
        self.rank = check_rank(rank, "LowRankEmbedding")
        self.L = nn.Parameter(torch.empty(num_embeddings, rank, device=device, dtype=dtype))
        self.R = nn.Parameter(torch.empty(rank, embedding_dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw factors such that the product has the entry variance 1 of ``nn.Embedding``.

        `generator` is for reproducible draws.
        """
        deviation = self.rank**-0.25
        nn.init.normal_(self.L, std=deviation, generator=generator)
        nn.init.normal_(self.R, std=deviation, generator=generator)

    @classmethod
    def from_factors(cls, L: Tensor, R: Tensor, *, padding_idx: int | None = None) -> LowRankEmbedding:
        """Return the table of copies of ``L (num_embeddings, r)`` and ``R (r, embedding_dim)``.

        Raises
        ------
        ShapeError
            If these shapes do not fit, or `padding_idx` is no row.
        """
        if L.ndim != 2 or R.ndim != 2 or L.shape[1] != R.shape[0]:
            raise ShapeError(
                f"LowRankEmbedding: L (v, r) and R (r, d) must share r, got {tuple(L.shape)} and "
                f"{tuple(R.shape)}."
            )
        table = cls(L.shape[0], R.shape[1], rank=L.shape[1], padding_idx=padding_idx, device="meta")
        table.L = nn.Parameter(L.detach().clone(memory_format=torch.contiguous_format))
        table.R = nn.Parameter(R.detach().clone(memory_format=torch.contiguous_format))
        return table

    @property
    def weight(self) -> Tensor:
        """The dense table (num_embeddings, embedding_dim)."""
        return self.L @ self.R

    def forward(self, ids: Tensor) -> Tensor:
        """Return the rows `ids`, (...) -> (..., embedding_dim); only these are multiplied out."""
        rows = functional.embedding(ids, self.L, self.padding_idx)
        # Autocast multiplies in half precision; nn.Embedding gives the dtype of its table even then.
        return (rows @ self.R).to(self.L.dtype)

    def config(self) -> dict[str, Any]:
        """Describe sizes and rank."""
        return {**super().config(), "rank": self.rank}
