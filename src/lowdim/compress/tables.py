"""Which embedding tables become smaller, and how; the others stay, each with the reason.

A table is worth it if it has many rows: vocabularies have tens of thousands, while tables of positions and
token types have at most about two thousand, hold little, and are needed exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from lowdim.algebra import LowRank
from lowdim.compress.embedding import CompactEmbedding
from lowdim.errors import BudgetError

__all__ = ["FEWEST_ROWS", "KINDS", "Kind", "TablePlan", "find_tables", "plan_table"]

Kind = Literal["int8", "low-rank"]

KINDS: tuple[Kind, ...] = ("int8", "low-rank")
"""What can be made of an embedding table."""

FEWEST_ROWS = 2500
"""Smaller tables stay: above the tables of positions of GPT-2 (1,024) and OPT (2,050), below vocabularies."""


@dataclass(frozen=True)
class TablePlan:
    """What happens to one embedding table.

    Parameters
    ----------
    name : str
        As in ``model.named_modules()``.
    shape : tuple of int
        (rows, columns).
    how : str
        One of `KINDS`.
    rank : int or None
        None for int8.
    parameters : int
        Numbers in what takes its place (scales not counted).

    Examples
    --------
    >>> TablePlan("words", (30000, 64), "low-rank", 32, 32 * 30064).parameters_before
    1920000
    """

    name: str
    shape: tuple[int, int]
    how: str
    rank: int | None
    parameters: int

    @property
    def parameters_before(self) -> int:
        """Numbers in the table."""
        return self.shape[0] * self.shape[1]

    def to_dict(self) -> dict[str, Any]:
        """Return the row of a plan, and the beginning of one of report.json."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "how": self.how,
            "rank": self.rank,
            "parameters_before": self.parameters_before,
            "parameters_after": self.parameters,
        }


def find_tables(model: nn.Module) -> dict[int, tuple[nn.Module, tuple[str, ...]]]:
    """Return every embedding table of a model with all its names, one entry per module.

    Parameters
    ----------
    model : nn.Module

    Returns
    -------
    dict of int to (Module, tuple of str)
        By the identity of the module.

    Examples
    --------
    >>> net = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4))
    >>> [names for _, names in find_tables(net).values()]
    [('0',)]
    """
    found: dict[int, tuple[nn.Module, tuple[str, ...]]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Embedding | CompactEmbedding):
            _, names = found.get(id(module), (module, ()))
            found[id(module)] = (module, (*names, name))
    return found


def plan_table(
    model: nn.Module, module: nn.Module, names: tuple[str, ...], *, how: Kind, keep: float
) -> TablePlan | str:
    """Decide what happens to one table, or say why it stays.

    Parameters
    ----------
    model : nn.Module
        Contains the table; looked through for others that share its weight.
    module : nn.Embedding or CompactEmbedding
        The table.
    names : tuple of str
        All its names in the model.
    how : {"int8", "low-rank"}
        What is wanted.
    keep : float
        For "low-rank", the fraction of the parameters to keep, in (0, 1].

    Returns
    -------
    TablePlan or str
        The plan, or the reason as a sentence without a period.

    Examples
    --------
    >>> net = nn.Sequential(nn.Embedding(4000, 64))
    >>> plan_table(net, net[0], ("0",), how="low-rank", keep=0.5).rank
    31
    >>> net = nn.Sequential(nn.Embedding(512, 64))
    >>> plan_table(net, net[0], ("0",), how="int8", keep=0.5)
    '512 rows: too few to gain'
    """
    reason = _refusal(model, module, names)
    if reason is not None:
        return reason
    v, d = (int(size) for size in module.get_parameter("weight").shape)
    if how == "int8":
        return TablePlan(names[0], (v, d), how, rank=None, parameters=v * d)
    try:
        rank = LowRank.rank_for(keep, v, d)
    except BudgetError as error:
        return str(error)
    parameters = LowRank.parameters_for(rank, v, d)
    if parameters >= v * d:
        return f"the factors would hold {parameters} numbers, the table holds {v * d}: it stays dense"
    return TablePlan(names[0], (v, d), how, rank, parameters)


def _refusal(model: nn.Module, module: nn.Module, names: tuple[str, ...]) -> str | None:
    """Return why a table stays as it is, or None."""
    if isinstance(module, CompactEmbedding):
        return "already compressed"
    if type(module) is not nn.Embedding:
        return f"a {type(module).__name__}, which may do more than nn.Embedding"
    weight = module.weight
    if type(weight.data) is not Tensor or not weight.is_floating_point():
        return f"already quantized ({type(weight.data).__name__}, {weight.dtype})"
    if len(names) > 1:
        return f"the model uses it in {len(names)} places, also as {names[1]!r}"
    if owner := _shared_with(model, module):
        return f"its weight is tied to {owner!r}"
    if module.num_embeddings < FEWEST_ROWS:
        return f"{module.num_embeddings} rows: too few to gain"
    if module.max_norm is not None:
        return f"max_norm={module.max_norm:g} rewrites its rows when they are looked up"
    return None


def _shared_with(model: nn.Module, table: nn.Embedding) -> str | None:
    """Return another module (an output layer, a second table) that owns the same weight."""
    for name, module in model.named_modules():
        if module is not table and any(p is table.weight for p in module.parameters(recurse=False)):
            return name or type(module).__name__
    return None
