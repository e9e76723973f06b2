"""Are consecutive layers balanced: what gradient flow conserves, and oscillation makes vanish.

For layers ``z_l = W_l a_{l-1} + b_l`` that follow each other without a nonlinearity, gradient flow conserves
the matrices ``G_l = W_{l+1}^T W_{l+1} - W_l W_l^T - b_l b_l^T``; with ReLU between them, their diagonals, one
number per unit. Beyond the edge of stability they shrink.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lowdim.algebra import StructuredLinear, is_linear, weight_matrix
from lowdim.errors import DataError, ShapeError

__all__ = ["Chain", "Kind", "balancing_gap", "declared_chains", "find_chains"]

Kind = Literal["matrix", "units"]
"""Compare Gram matrices (linear layers), or their diagonals (ReLU between the layers)."""

_HOMOGENEOUS = (nn.ReLU, nn.LeakyReLU)
_SILENT = (nn.Identity, nn.Dropout, nn.AlphaDropout)
_ELEMENTWISE = (
    *(nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.ELU, nn.CELU, nn.SELU, nn.Softplus, nn.Mish),
    *(nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.ReLU6, nn.Softsign, nn.LogSigmoid),
)


@dataclass(frozen=True)
class Chain:
    """Linear layers of which each takes what the one before gives.

    Parameters
    ----------
    name : str
        Of the first and the last layer.
    layers : tuple of nn.Module
        In the order in which they act.
    kind : {"matrix", "units"}
        What of them is compared.
    """

    name: str
    layers: tuple[nn.Module, ...]
    kind: Kind

    def matrices(self) -> tuple[list[Tensor], list[Tensor | None]]:
        """Return the weights (m, n) as they are now, and the biases."""
        weights = [weight_matrix(layer).detach() for layer in self.layers]
        biases = [getattr(layer, "bias", None) for layer in self.layers]
        return weights, [bias.detach() if isinstance(bias, Tensor) else None for bias in biases]


def balancing_gap(
    layers: Sequence[nn.Module | Tensor],
    *,
    biases: Sequence[Tensor | None] | None = None,
    kind: Kind = "matrix",
    relative: bool = False,
) -> float:
    """Largest ``|G_l|_F`` of a chain: how far it is from balance.

    Parameters
    ----------
    layers : sequence of nn.Linear or Tensor (m, n)
        At least two, in the order in which they act.
    biases : sequence of Tensor or None, optional
        Of the layers given as matrices. A module brings its own.
    kind : {"matrix", "units"}
        The whole matrices, or their diagonals: with ReLU between the
        layers, gradient flow conserves only those.
    relative : bool
        Divide by the largest ``|W_l|_F^2``.

    Returns
    -------
    float

    Raises
    ------
    ShapeError
        If there are fewer than two layers or they do not fit together.
    DataError
        If `kind` is unknown.

    References
    ----------
    .. [1] S. Du, W. Hu, J. Lee, "Algorithmic regularization in learning deep homogeneous models: layers are
       automatically balanced", NeurIPS 2018, theorems 2.1 and 2.2; with the biases, which they leave out.

    Examples
    --------
    >>> import torch
    >>> round(balancing_gap([torch.eye(2), 2 * torch.eye(2)]), 3)
    4.243
    """
    if kind not in get_args(Kind):
        raise DataError(
            f"balancing_gap: kind={kind!r} is unknown. Use {' or '.join(map(repr, get_args(Kind)))}."
        )
    weights = [layer if isinstance(layer, Tensor) else weight_matrix(layer) for layer in layers]
    if biases is None:
        biases = [None if isinstance(layer, Tensor) else getattr(layer, "bias", None) for layer in layers]
    _check_fit(weights, biases)
    double = torch.float32 if weights[0].device.type == "mps" else torch.float64
    W = [weight.detach().to(double) for weight in weights]
    gaps = []
    for (inner, outer), bias in zip(pairwise(W), biases, strict=False):
        # With a one as its last input, the bias is a column of the matrix.
        if bias is not None:
            inner = torch.cat([inner, bias.detach().to(inner)[:, None]], dim=1)
        outer = outer.to(inner.device)
        if kind == "units":
            gaps.append(torch.linalg.vector_norm(outer.square().sum(0) - inner.square().sum(1)))
        else:
            gaps.append(torch.linalg.matrix_norm(outer.mT @ outer - inner @ inner.mT))
    gap = max(float(g) for g in gaps)
    scale = max(float(weight.square().sum()) for weight in W) if relative else 1.0
    return gap / scale if scale else 0.0


def _check_fit(weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
    if len(weights) < 2:
        raise ShapeError(
            f"balancing_gap: got {len(weights)} layers, expected two or more that follow each other."
        )
    if len(biases) != len(weights):
        raise ShapeError(
            f"balancing_gap: got {len(biases)} biases for {len(weights)} layers. Give one for each."
        )
    for place, (inner, outer) in enumerate(pairwise(weights)):
        if inner.ndim != 2 or outer.ndim != 2 or inner.shape[0] != outer.shape[1]:
            raise ShapeError(
                f"balancing_gap: layer {place} of shape {tuple(inner.shape)} does not feed layer {place + 1} "
                f"of shape {tuple(outer.shape)}. Give the layers in the order in which they act."
            )


def find_chains(model: nn.Module) -> list[Chain]:
    """Find the linear layers that follow each other in the ``nn.Sequential`` parts of a network.

    Between them there may be dropout and functions that act on each number; the order in any other
    module is known only to its ``forward``, so declare such chains by name.

    Parameters
    ----------
    model : nn.Module

    Returns
    -------
    list of Chain
        Of two layers or more.

    Examples
    --------
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2), nn.LayerNorm(2), nn.Linear(2, 2))
    >>> [(chain.name, chain.kind) for chain in find_chains(net)]
    [('0-2', 'units')]
    """
    chains: list[Chain] = []
    inside: set[int] = set()
    for name, module in model.named_modules():
        if not isinstance(module, nn.Sequential) or id(module) in inside:
            continue
        inside |= {id(m) for m in module.modules() if isinstance(m, nn.Sequential)}
        chains += _chains_of(list(_leaves(name, module)))
    return chains


def _leaves(prefix: str, module: nn.Module) -> Any:
    """Yield the members of nested Sequentials in the order in which they act."""
    for key, child in module.named_children():
        name = f"{prefix}.{key}" if prefix else key
        if type(child) is nn.Sequential:
            yield from _leaves(name, child)
        else:
            yield name, child


def _chains_of(leaves: list[tuple[str, nn.Module]]) -> list[Chain]:
    found: list[Chain] = []
    run: list[Any] = []
    between: list[Any] = []  # since the last layer of the run
    within: list[Any] = []  # between layers of the run

    def end() -> None:
        if len(run) > 1:
            found.append(Chain(_name(run), tuple(layer for _, layer in run), _kind(within)))
        for collected in (run, between, within):
            collected.clear()

    for name, module in leaves:
        if is_linear(module) or isinstance(module, StructuredLinear):
            if run and weight_matrix(run[-1][1]).shape[0] != weight_matrix(module).shape[1]:
                end()
            if run:
                within += between
            between.clear()
            run.append((name, module))
        elif isinstance(module, _HOMOGENEOUS + _SILENT + _ELEMENTWISE):
            between.append(module)
        else:
            end()
    end()
    return found


def _kind(between: Sequence[nn.Module]) -> Kind:
    active = [module for module in between if not isinstance(module, _SILENT)]
    return "units" if active and all(isinstance(module, _HOMOGENEOUS) for module in active) else "matrix"


def _name(run: Sequence[tuple[str, nn.Module]]) -> str:
    return f"{run[0][0]}-{run[-1][0]}"


def declared_chains(
    model: nn.Module, chains: Mapping[str, Sequence[str]] | Sequence[Sequence[str]], *, kind: Kind = "matrix"
) -> list[Chain]:
    """Look up chains that are given by the names of their layers.

    Parameters
    ----------
    model : nn.Module
    chains : mapping of str to sequence of str, or sequence of sequences
        Names of the layers in the order in which they act, by a name for the chain.
    kind : {"matrix", "units"}
        What is compared.

    Returns
    -------
    list of Chain

    Raises
    ------
    DataError
        If there is no linear layer of such a name.
    ShapeError
        If the layers do not fit together.

    Examples
    --------
    >>> from torch import nn
    >>> net = nn.ModuleDict({"up": nn.Linear(4, 8), "down": nn.Linear(8, 4)})
    >>> [chain.name for chain in declared_chains(net, {"mlp": ["up", "down"]})]
    ['mlp']
    """
    modules = dict(model.named_modules())
    pairs = list(chains.items()) if isinstance(chains, Mapping) else [(None, names) for names in chains]
    found = []
    for title, names in pairs:
        if isinstance(names, str):
            raise DataError(f"balance: the chain {names!r} is a text, expected a list of names of layers.")
        run = []
        for name in names:
            layer = modules.get(name)
            if layer is None or not (is_linear(layer) or isinstance(layer, StructuredLinear)):
                what = "there is no such module" if layer is None else f"it is a {type(layer).__name__}"
                raise DataError(
                    f"balance: {name!r} is no linear layer of the {type(model).__name__}: {what}. Use "
                    f"names of model.named_modules()."
                )
            run.append((name, layer))
        _check_fit([weight_matrix(layer) for _, layer in run], [None] * len(run))
        found.append(Chain(title or _name(run), tuple(layer for _, layer in run), kind))
    return found
