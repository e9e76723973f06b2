"""Make the planned embedding tables smaller: one work file per table, read back when it is there."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowdim.algebra import LowRank, factorize
from lowdim.compress.embedding import CompactEmbedding, LowRankEmbedding
from lowdim.compress.layers import file_name
from lowdim.compress.modules import replace_module
from lowdim.compress.tables import TablePlan
from lowdim.compress.timing import parameter_bytes
from lowdim.errors import DataError
from lowdim.runs import atomic_tensors, digest, read_tensors

__all__ = ["Table", "install_tables", "low_rank_table", "shrink_tables"]


@dataclass(frozen=True)
class Table:
    """One embedding table made smaller.

    Parameters
    ----------
    plan : TablePlan
        What was asked for.
    module : CompactEmbedding
        What takes the place of the table, on its device and in its dtype.
    bytes_before : int
        Of the table.
    relative_error : float
        ``||W - X||_F / ||W||_F`` with the original table W.
    """

    plan: TablePlan
    module: CompactEmbedding
    bytes_before: int
    relative_error: float

    def to_dict(self) -> dict[str, Any]:
        """Return the row of report.json."""
        return {
            **self.plan.to_dict(),
            "bytes": {"before": self.bytes_before, "after": parameter_bytes(self.module)},
            "relative_error": self.relative_error,
        }


def shrink_tables(
    model: nn.Module,
    plans: Sequence[TablePlan],
    *,
    folder: Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[Table]:
    """Make tables smaller; the model is not changed (see `install_tables`).

    Parameters
    ----------
    model : nn.Module
        Holds the tables.
    plans : sequence of TablePlan
        From `plan`.
    folder : Path, optional
        Existing folder for one file per table. A file whose key (hash of table and plan) fits is read
        instead of computed.
    progress : callable, optional
        Called with (tables done, tables in all, what is going on).

    Returns
    -------
    list of Table
        In the order of the plans.

    Raises
    ------
    DataError
        If a table holds NaN or infinity; it is named.
    MissingExtra
        For int8 without torchao.
    RunError
        If a work file is truncated or was changed; it is named.
    """
    tables = []
    for number, entry in enumerate(plans):
        if progress is not None:
            progress(number, len(plans), entry.name)
        old = model.get_submodule(entry.name)
        assert isinstance(old, nn.Embedding)
        tables.append(_one(old, entry, folder))
    if progress is not None:
        progress(len(plans), len(plans), "")
    return tables


def install_tables(model: nn.Module, tables: Sequence[Table]) -> None:
    """Put smaller tables into a model, in place.

    Parameters
    ----------
    model : nn.Module
        With the original tables, or copies of them.
    tables : sequence of Table
        From `shrink_tables`.
    """
    for table in tables:
        old = model.get_submodule(table.plan.name)
        table.module.train(old.training)
        table.module.requires_grad_(old.get_parameter("weight").requires_grad)
        replace_module(model, old, table.module)


@torch.no_grad()
def low_rank_table(table: nn.Embedding, rank: int) -> LowRankEmbedding:
    """Return the best approximation of a table by a product of rank `rank` (truncated SVD).

    Rows that are zero, as that of a padding token often is, stay exactly zero.

    Parameters
    ----------
    table : nn.Embedding
        It is not changed.
    rank : int
        At most the smaller size of the table.

    Returns
    -------
    LowRankEmbedding
        In the dtype and on the device of the table.

    Raises
    ------
    RankError
        If the rank is impossible.

    Examples
    --------
    >>> table = nn.Embedding(50, 8, padding_idx=0)
    >>> small = low_rank_table(table, 8)
    >>> bool(torch.allclose(small.weight, table.weight, atol=1e-5)), bool(small.weight[0].any())
    (True, False)
    """
    weight = table.weight.detach()
    operator = factorize(weight, LowRank, rank=rank).operator
    L = operator.U.masked_fill((weight == 0).all(1, keepdim=True), 0)
    return LowRankEmbedding.from_factors(L, operator.V, padding_idx=table.padding_idx)


def _one(old: nn.Embedding, entry: TablePlan, folder: Path | None) -> Table:
    """Read one table from its file, or make it and write the file."""
    weight = old.weight.detach()
    if not bool(torch.isfinite(weight).all()):
        bad = int((~torch.isfinite(weight)).sum())
        raise DataError(
            f"compress: the embedding table {entry.name!r} holds {bad} entries that are NaN or infinite. "
            "Look at the checkpoint: the table is broken before compression."
        )
    key = digest(weight, entry.to_dict(), old.padding_idx)
    path = None if folder is None else folder / file_name(entry.name)
    if path is not None and path.exists():
        tensors, facts = read_tensors(path)
        if facts.get("key") == key:
            module = CompactEmbedding.from_config(json.loads(facts["config"]), device="meta")
            module.load_state_dict(tensors, assign=True)
            return Table(entry, module.to(weight.device), weight.nbytes, float(facts["error"]))
    module = _compact(old, entry)
    error = _relative(weight, module)
    if path is not None:
        facts = {"key": key, "config": json.dumps(module.config()), "error": repr(error)}
        atomic_tensors(path, module.state_dict(), facts)
    return Table(entry, module, weight.nbytes, error)


def _compact(old: nn.Embedding, entry: TablePlan) -> CompactEmbedding:
    if entry.how == "int8":
        from lowdim.compress.torchao import int8_table

        return int8_table(old)
    assert entry.rank is not None
    return low_rank_table(old, entry.rank)


@torch.no_grad()
def _relative(weight: Tensor, module: CompactEmbedding) -> float:
    size = float(torch.linalg.norm(weight.double()))
    return float(torch.linalg.norm(weight.double() - module.weight.double())) / max(size, 1e-300)
