"""The plan: which layers become structured, with which rank, and which are left alone and why.

What happens to embedding tables, where that is asked for, is decided in `lowdim.compress.tables`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from lowdim.algebra import (
    Blast,
    BlockDiagonal,
    LowRank,
    Monarch,
    Operator,
    StructuredLinear,
    is_linear,
    weight_matrix,
)
from lowdim.compress.tables import KINDS, Kind, TablePlan, find_tables, plan_table
from lowdim.errors import BudgetError, DataError, LowdimError, ShapeError

if TYPE_CHECKING:
    import pandas

__all__ = ["EXCLUDE", "METHODS", "LayerPlan", "LeftAlone", "Method", "Plan", "plan"]

Method = Literal["blast", "lowrank", "svd", "monarch", "blockdiag"]

METHODS: dict[str, type[Operator]] = {
    "blast": Blast,
    "lowrank": LowRank,
    "svd": LowRank,
    "monarch": Monarch,
    "blockdiag": BlockDiagonal,
}
"""Method -> structure. "lowrank" is the whitened SVD, "svd" looks at the weights only."""

EXCLUDE = ("lm_head", "pooler", "classifier", "score", "qa_outputs", "cls")
"""Output heads: few parameters, large effect. Left alone unless named as targets."""

NARROWEST = 16
"""Layers with fewer inputs or outputs (routers, small heads) are left alone unless named as targets."""


@dataclass(frozen=True)
class LayerPlan:
    """What happens to one layer.

    Parameters
    ----------
    name : str
        As in ``model.named_modules()``.
    places : tuple of str
        Every name under which the model uses this weight; the layer is compressed once.
    shape : tuple of int
        (m, n).
    structure : str
        "blast", "lowrank", "monarch" or "blockdiag".
    rank : int or None
        None for block-diagonal matrices, whose blocks are full.
    blocks : tuple of int or None
        (b1, b2); None for low rank.
    parameters : int
        Numbers in the factors.

    Examples
    --------
    >>> LayerPlan("0", ("0",), (64, 32), "lowrank", 8, None, parameters=768).kept
    0.375
    """

    name: str
    places: tuple[str, ...]
    shape: tuple[int, int]
    structure: str
    rank: int | None
    blocks: tuple[int, int] | None
    parameters: int

    @property
    def kept(self) -> float:
        """Fraction of the dense parameters that is kept."""
        return self.parameters / (self.shape[0] * self.shape[1])

    def to_dict(self) -> dict[str, Any]:
        """Return the row of report.json."""
        return {
            "name": self.name,
            "places": list(self.places),
            "shape": list(self.shape),
            "structure": self.structure,
            "rank": self.rank,
            "blocks": None if self.blocks is None else list(self.blocks),
            "kept": self.kept,
            "parameters_before": self.shape[0] * self.shape[1],
            "parameters_after": self.parameters,
        }


@dataclass(frozen=True)
class LeftAlone:
    """A linear layer, or an embedding table that was to be made smaller, that stays as it is.

    Parameters
    ----------
    name : str
        As in ``model.named_modules()``.
    shape : tuple of int
        (m, n), or the shape of the stored tensor.
    parameters : int
        Numbers in the weight.
    reason : str
        Why, as a sentence without a period.
    """

    name: str
    shape: tuple[int, ...]
    parameters: int
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return the row of report.json."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "parameters": self.parameters,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Plan:
    """All layers of a model, before and after.

    Parameters
    ----------
    layers : tuple of LayerPlan
        What is compressed, in the order of the model.
    left_alone : tuple of LeftAlone
        What is not.
    method : str
        Key of `METHODS`.
    keep : float
        The budget.
    parameters_before : int
        Of the whole model.
    tables : tuple of TablePlan
        Embedding tables that are made smaller.

    Examples
    --------
    >>> layer = LayerPlan("0", ("0",), (64, 32), "lowrank", 8, None, parameters=768)
    >>> found = Plan((layer,), (), "lowrank", 0.5, parameters_before=2112)
    >>> found.compressible_before, found.compressible_after, found.parameters_after
    (2048, 768, 832)
    """

    layers: tuple[LayerPlan, ...]
    left_alone: tuple[LeftAlone, ...]
    method: str
    keep: float
    parameters_before: int
    tables: tuple[TablePlan, ...] = ()

    @property
    def compressible_before(self) -> int:
        """Parameters in the weights that are compressed."""
        return sum(layer.shape[0] * layer.shape[1] for layer in self.layers)

    @property
    def compressible_after(self) -> int:
        """Parameters in their factors."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def parameters_after(self) -> int:
        """Parameters of the whole compressed model."""
        saved = sum(table.parameters_before - table.parameters for table in self.tables)
        return self.parameters_before - self.compressible_before + self.compressible_after - saved

    def layer(self, name: str) -> LayerPlan:
        """Return the plan of the layer called `name`."""
        return next(layer for layer in self.layers if layer.name == name)

    def with_ranks(self, ranks: Mapping[str, int]) -> Plan:
        """Return the same plan with other ranks.

        A layer whose factors would not be smaller than its matrix is left alone.

        Parameters
        ----------
        ranks : mapping of str to int
            Rank of every layer by name.

        Returns
        -------
        Plan
        """
        layers, dense = [], list(self.left_alone)
        for layer in self.layers:
            m, n = layer.shape
            rank = ranks[layer.name]
            parameters = _parameters(self.method, rank, m, n, layer.blocks)
            if parameters < m * n:
                layers.append(replace(layer, rank=rank, parameters=parameters))
            else:
                dense.append(LeftAlone(layer.name, layer.shape, m * n, "the allocation keeps it dense"))
        return replace(self, layers=tuple(layers), left_alone=tuple(dense))

    def without(self, names: Iterable[str], reason: str) -> Plan:
        """Return the same plan with some layers left alone.

        Parameters
        ----------
        names : iterable of str
            Layers.
        reason : str
            Why.

        Returns
        -------
        Plan
        """
        gone = set(names)
        moved = [
            LeftAlone(layer.name, layer.shape, layer.shape[0] * layer.shape[1], reason)
            for layer in self.layers
            if layer.name in gone
        ]
        return replace(
            self,
            layers=tuple(layer for layer in self.layers if layer.name not in gone),
            left_alone=(*self.left_alone, *moved),
        )

    def table(self) -> pandas.DataFrame:
        """Return one row per compressed layer."""
        import pandas

        return pandas.DataFrame([layer.to_dict() for layer in self.layers])

    def to_dict(self) -> dict[str, Any]:
        """Return everything, JSON-ready."""
        return {
            "method": self.method,
            "keep": self.keep,
            "parameters": {
                "before": self.parameters_before,
                "after": self.parameters_after,
                "compressible_before": self.compressible_before,
                "compressible_after": self.compressible_after,
            },
            "layers": [layer.to_dict() for layer in self.layers],
            "embeddings": [table.to_dict() for table in self.tables],
            "left_alone": [layer.to_dict() for layer in self.left_alone],
        }


def plan(
    model: nn.Module,
    *,
    keep: float = 0.5,
    method: Method = "blast",
    blocks: Any = "auto",
    targets: str | Sequence[str] = "all-linear",
    exclude: Sequence[str] | None = None,
    embeddings: Kind | None = None,
) -> Plan:
    """Decide what happens to every linear layer of a model, and to its embedding tables.

    Parameters
    ----------
    model : Module
        Any module; ``nn.Linear`` and transformers' ``Conv1D`` are compressed.
    keep : float
        Fraction of the parameters of every compressed matrix to keep, in (0, 1].
    method : {"blast", "lowrank", "svd", "monarch", "blockdiag"}
        The structure, and for "svd" that activations are not looked at.
    blocks : "auto", int or pair of int
        Block rows and columns.
    targets : "all-linear" or sequence of str
        Patterns of layer names. A pattern is a full name with shell wildcards, or dotted pieces of a name:
        "attention" matches "encoder.layer.0.attention.self.query".
    exclude : sequence of str, optional
        Patterns of layers and tables that stay as they are; by default output heads (`EXCLUDE`), or nothing
        when the targets are named.
    embeddings : {"int8", "low-rank"}, optional
        What is made of ``nn.Embedding`` tables with at least 2,500 rows that nothing else shares; by default
        they stay. `targets` names linear layers only.

    Returns
    -------
    Plan

    Raises
    ------
    BudgetError
        If `keep` is outside (0, 1] or pays for no rank in any layer.
    ShapeError
        If the blocks given do not divide a layer's sizes; the layer is named.
    DataError
        If no layer is left to compress, no table to make smaller where that was asked for, or the method or
        a pattern fits nothing.

    Examples
    --------
    >>> found = plan(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)), keep=0.5)
    >>> [(layer.name, layer.structure, layer.rank) for layer in found.layers]
    [('0', 'blast', 15)]
    >>> found.left_alone[0].reason
    '2 outputs: too narrow to gain'
    """
    if method not in METHODS:
        raise DataError(f"compress: method={method!r} is unknown. Use one of {', '.join(METHODS)}.")
    if isinstance(keep, bool) or not isinstance(keep, int | float) or not 0 < keep <= 1:
        raise BudgetError(
            f"compress: keep={keep} must be in (0, 1]: the fraction of every matrix's parameters to keep, "
            "for example 0.5."
        )
    named = not isinstance(targets, str)
    if isinstance(targets, str) and targets != "all-linear":
        raise DataError(f"compress: targets={targets!r}. Use 'all-linear' or a list of layer names.")
    if embeddings is not None and embeddings not in KINDS:
        raise DataError(f"compress: embeddings={embeddings!r}. Use 'int8' or 'low-rank', or leave it out.")
    exclude = (() if named else EXCLUDE) if exclude is None else tuple(exclude)
    candidates = _candidates(model)
    if not candidates:
        raise DataError(
            f"compress: {type(model).__name__} has no linear layer. nn.Linear and Conv1D can be compressed."
        )
    _check_patterns("targets", targets if named else (), candidates)
    tables = find_tables(model) if embeddings is not None else {}
    _check_patterns("exclude", [p for p in exclude if p not in EXCLUDE], {**candidates, **tables})

    layers: list[LayerPlan] = []
    left: list[LeftAlone] = []
    for module, places in candidates.values():
        wanted = not named or _matches(places, targets)
        if named and not wanted:
            continue
        reason = _refusal(model, module, places, exclude, named)
        if reason is None:
            decided = _budget(module, places, keep, method, blocks)
            if isinstance(decided, LayerPlan):
                layers.append(decided)
                continue
            reason = decided
        shape, count = _shape(module)
        left.append(LeftAlone(places[0], shape, count, reason))
    left.extend(_expert_stacks(model))
    found = Plan(tuple(layers), tuple(left), method, keep, sum(p.numel() for p in model.parameters()))
    if not layers:
        raise _nothing_left(found)
    return found if embeddings is None else _with_tables(found, model, tables, embeddings, exclude)


def _with_tables(
    found: Plan,
    model: nn.Module,
    tables: Mapping[int, tuple[nn.Module, tuple[str, ...]]],
    how: Kind,
    exclude: Sequence[str],
) -> Plan:
    """Add what happens to the embedding tables."""
    smaller: list[TablePlan] = []
    left: list[LeftAlone] = []
    for module, places in tables.values():
        pattern = next((p for p in exclude if _matches(places, [p])), None)
        decided: TablePlan | str = f"excluded by {pattern!r}"
        if pattern is None:
            decided = plan_table(model, module, places, how=how, keep=found.keep)
        if isinstance(decided, TablePlan):
            smaller.append(decided)
            continue
        v, d = int(module.num_embeddings), int(module.embedding_dim)  # type: ignore[arg-type]
        left.append(LeftAlone(places[0], (v, d), v * d, decided))
    if not smaller:
        kind = type(model).__name__
        told = "; ".join(f"{entry.name}: {entry.reason.rstrip('.')}" for entry in left) or f"{kind} has none"
        raise DataError(
            f"compress: embeddings={how!r}: there is no embedding table to make smaller ({told}). Leave "
            "embeddings out (--embeddings keep) to compress the linear layers alone."
        )
    return replace(found, tables=tuple(smaller), left_alone=(*found.left_alone, *left))


def _candidates(model: nn.Module) -> dict[int, tuple[nn.Module, tuple[str, ...]]]:
    """Every module that acts as a linear layer, with all its names; one entry per weight."""
    found: dict[int, tuple[nn.Module, tuple[str, ...]]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Embedding) or not (is_linear(module) or _looks_linear(module)):
            continue
        weight = getattr(module, "weight", None) if is_linear(module) else None
        key = id(module) if weight is None else id(weight)
        first, places = found.get(key, (module, ()))
        found[key] = (first, (*places, name))
    return found


def _looks_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer of another kind (quantized, adapted, already structured)."""
    return (
        isinstance(getattr(module, "in_features", None), int)
        and isinstance(getattr(module, "out_features", None), int)
        and not isinstance(module, Operator)
    )


def _refusal(
    model: nn.Module, module: nn.Module, places: tuple[str, ...], exclude: Sequence[str], named: bool
) -> str | None:
    """Return why a layer stays as it is, or None."""
    kind = f"{type(module).__module__.split('.')[0]}.{type(module).__name__}"
    if isinstance(module, StructuredLinear):
        return "already compressed"
    if pattern := next((p for p in exclude if _matches(places, [p])), None):
        return f"excluded by {pattern!r}"
    if _inside_attention(model, places):
        return "nn.MultiheadAttention reads its weight directly"
    if not is_linear(module):
        return f"already quantized or adapted ({kind}); compress the plain model first, then quantize it"
    weight = module.get_parameter("weight")
    if type(weight.data) is not Tensor or not weight.is_floating_point():
        kind = f"{type(weight.data).__name__}, {weight.dtype}"
        return f"already quantized ({kind}); compress the plain model first"
    if owner := _tied_to(model, weight):
        return f"its weight is tied to {owner!r}"
    m, n = weight_matrix(module).shape
    if not named and min(m, n) < NARROWEST:
        return f"{m} outputs: too narrow to gain" if m <= n else f"{n} inputs: too narrow to gain"
    return None


def _inside_attention(model: nn.Module, places: tuple[str, ...]) -> bool:
    parents = (place.rpartition(".")[0] for place in places)
    return any(isinstance(model.get_submodule(parent), nn.MultiheadAttention) for parent in parents)


def _tied_to(model: nn.Module, weight: Tensor) -> str | None:
    """Return the module that is no linear layer (an embedding) and owns the same weight."""
    for name, module in model.named_modules():
        if not is_linear(module) and any(p is weight for p in module.parameters(recurse=False)):
            return name or type(module).__name__
    return None


def _budget(
    module: nn.Module, places: tuple[str, ...], keep: float, method: str, blocks: Any
) -> LayerPlan | str:
    """Choose blocks and rank for one layer, or say why it stays dense."""
    structure = METHODS[method]
    m, n = (int(size) for size in weight_matrix(module).shape)
    try:
        cut = _blocks(structure, m, n, keep, blocks)
    except BudgetError as error:
        return str(error)
    except ShapeError as error:
        raise ShapeError(f"compress: layer {places[0]!r}: {error} Or exclude the layer.") from error
    try:
        rank = structure.rank_for(keep, m, n, cut)  # type: ignore[attr-defined]
    except BudgetError as error:
        return str(error)
    parameters = _parameters(method, rank, m, n, cut)
    if parameters >= m * n:
        return f"the factors would hold {parameters} numbers, the matrix holds {m * n}: it stays dense"
    return LayerPlan(
        name=places[0],
        places=places,
        shape=(m, n),
        structure=structure.structure,
        rank=None if structure is BlockDiagonal else rank,
        blocks=None if structure is LowRank else cut,
        parameters=parameters,
    )


def _blocks(structure: Any, m: int, n: int, keep: float, blocks: Any) -> tuple[int, int]:
    if structure is LowRank:
        return (1, 1)
    if blocks == "auto":
        return (
            structure.blocks_for(m, n, keep=keep)
            if structure is BlockDiagonal
            else structure.blocks_for(m, n)
        )
    from lowdim.algebra.blocks import check_blocks

    return check_blocks(blocks, m, n, structure.__name__)


def _parameters(method: str, rank: int, m: int, n: int, blocks: tuple[int, int] | None) -> int:
    return METHODS[method].parameters_for(rank, m, n, blocks)  # type: ignore[attr-defined]


def _shape(module: nn.Module) -> tuple[tuple[int, ...], int]:
    if is_linear(module):
        m, n = weight_matrix(module).shape
        return (m, n), m * n
    shape = (int(module.out_features), int(module.in_features))  # type: ignore[arg-type]
    if isinstance(module, StructuredLinear):
        return shape, module.operator.cost().parameters
    return shape, shape[0] * shape[1]


def _expert_stacks(model: nn.Module) -> list[LeftAlone]:
    """Mixture-of-experts weights that are stored as one (experts, m, n) tensor."""
    return [
        LeftAlone(
            f"{name}.{key}",
            tuple(parameter.shape),
            parameter.numel(),
            "a stack of matrices in one tensor (mixture of experts), which holds no linear layer to replace",
        )
        for name, module in model.named_modules()
        for key, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3 and "expert" in type(module).__name__.lower() and parameter.shape[0] > 1
    ]


def _matches(places: Iterable[str], patterns: Iterable[str]) -> bool:
    """Whether one of the names is matched by one of the patterns."""
    return any(
        fnmatchcase(place, pattern) or f".{pattern}." in f".{place}."
        for place in places
        for pattern in patterns
    )


def _check_patterns(
    option: str, patterns: Iterable[str], candidates: Mapping[int, tuple[nn.Module, tuple[str, ...]]]
) -> None:
    """Refuse a pattern that matches nothing: it is a typing error."""
    for pattern in patterns:
        if not any(_matches(places, [pattern]) for _, places in candidates.values()):
            some = [places[0] for _, places in candidates.values()]
            raise DataError(
                f"compress: {option}: {pattern!r} matches no linear layer. Layers are named like "
                f"{', '.join(some[:3])}{', ...' if len(some) > 3 else ''}."
            )


def _nothing_left(found: Plan) -> LowdimError:
    reasons: dict[str, list[str]] = {}
    for layer in found.left_alone:
        reasons.setdefault(layer.reason, []).append(layer.name)
    told = "; ".join(
        f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {reason.rstrip('.')}"
        for reason, names in reasons.items()
    )
    error = (
        BudgetError
        if any("keep=" in reason or "factors would" in reason for reason in reasons)
        else DataError
    )
    return error(
        f"compress: no layer is left to compress ({told}). Choose other targets, exclude "
        "less, or change keep."
    )
