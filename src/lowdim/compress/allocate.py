r"""Allocation: share one parameter budget out over layers by their error curves and measured sensitivities.

Minimize :math:`\sum_l w_l e_l(r_l)^2` subject to :math:`\sum_l r_l c_l \le B`, where :math:`e_l(r)^2` is
the energy of the whitened spectrum behind rank r, :math:`c_l` what one rank costs, and :math:`w_l` how much
the model's output suffers per unit of the layer's error, measured by compressing that layer alone. The gain
of the k-th component, :math:`w_l \sigma_{lk}^2 / c_l`, falls with k, so one threshold for all layers is
optimal, and bisection finds it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lowdim.algebra import weight_matrix
from lowdim.compress.calibrate import Moments
from lowdim.compress.layers import Layer, install_layers
from lowdim.compress.plan import METHODS, LayerPlan, Plan
from lowdim.compress.timing import feed
from lowdim.errors import BudgetError, DataError

__all__ = ["Curve", "allocate", "curves", "sensitivities"]

LOWEST = 0.6
"""No layer falls below this fraction of the uniform budget."""

ALIGNMENT_LOSS = 0.03
"""Largest fraction of a rank that rounding to a multiple kernels like may cost."""


@dataclass(frozen=True)
class Curve:
    """The error of one layer against its rank.

    Parameters
    ----------
    energy : Tensor of shape (k,)
        Squared singular values of the whitened weight, normalized to sum 1, descending.
    price : int
        Parameters per unit of rank.
    lowest, highest : int
        The ranks allowed.
    """

    energy: Tensor
    price: int
    lowest: int
    highest: int

    def tail(self, rank: int) -> float:
        """Return e(rank)^2: the energy behind the first `rank` components."""
        return float(self.energy[rank:].sum())


def curves(model: nn.Module, plan: Plan, moments: Moments | None) -> dict[str, Curve]:
    """Return the error curve of every planned layer.

    Parameters
    ----------
    model : Module
        Holds the original weights.
    plan : Plan
        The uniform plan.
    moments : Moments or None
        Second moments of the inputs; without them the plain spectrum is taken.

    Returns
    -------
    dict of str to Curve

    Raises
    ------
    DataError
        If the method has no rank to share out.
    """
    if plan.method not in ("blast", "lowrank", "svd"):
        raise DataError(
            f"compress: allocation='error-curve' shares out ranks, and method={plan.method!r} has none to "
            "share. Use blast, lowrank or svd, or allocation='uniform'."
        )
    found = {}
    for layer in plan.layers:
        m, n = layer.shape
        A = weight_matrix(model.get_submodule(layer.name)).detach().float().cpu()
        if moments is not None and plan.method != "svd":
            H = moments.of(layer.name)
            H = H + 1e-4 * H.diagonal().mean() * torch.eye(n)
            values, vectors = torch.linalg.eigh(H.double())
            A = (A.double() @ (vectors * values.clamp(min=0).sqrt())).float()
        energy = torch.linalg.svdvals(A).double().square()
        found[layer.name] = Curve(
            energy=energy / energy.sum(),
            price=METHODS[plan.method].parameters_for(1, m, n, layer.blocks),  # type: ignore[attr-defined]
            lowest=_rank_for(plan.method, LOWEST * plan.keep, layer),
            highest=_rank_for(plan.method, 1.0, layer),
        )
    return found


def sensitivities(
    model: nn.Module,
    layers: Sequence[Layer],
    batches: Sequence[Any],
    *,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, float]:
    """Measure how much the model's output changes when one layer alone is compressed.

    Parameters
    ----------
    model : Module
        The original.
    layers : sequence of Layer
        Uniformly compressed layers.
    batches : sequence
        A few calibration batches.
    progress : callable, optional
        Called with (layers done, layers in all, what is going on).

    Returns
    -------
    dict of str to float
        Relative squared change of the output by layer.
    """
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        reference = [_output(model, batch) for batch in batches]
    total = sum(float(y.double().square().sum()) for y in reference)
    losses = {}
    for number, layer in enumerate(layers, start=1):
        saved = {place: model.get_submodule(place) for place in layer.plan.places}
        install_layers(model, [layer])
        with torch.no_grad():
            change = sum(
                float((_output(model, batch) - y).double().square().sum())
                for batch, y in zip(batches, reference, strict=True)
            )
        for place, module in saved.items():
            parent, _, key = place.rpartition(".")
            setattr(model.get_submodule(parent), key, module)
        losses[layer.plan.name] = change / total
        if progress is not None:
            progress(number, len(layers), f"sensitivity of {layer.plan.name}: {change / total:.2e}")
    return losses


def allocate(
    plan: Plan, found: Mapping[str, Curve], losses: Mapping[str, float]
) -> tuple[Plan, dict[str, float]]:
    """Share the uniform plan's budget out anew.

    Parameters
    ----------
    plan : Plan
        The uniform plan; its compressed size is the budget.
    found : mapping of str to Curve
        From `curves`.
    losses : mapping of str to float
        From `sensitivities`, at the ranks of `plan`.

    Returns
    -------
    plan : Plan
        With ranks between 0.6 times the uniform budget and the dense size, and at most the same parameters.
    weights : dict of str to float
        The sensitivity w_l per unit of squared error.

    Examples
    --------
    >>> from lowdim.compress.plan import LayerPlan
    >>> layers = tuple(LayerPlan(x, (x,), (64, 64), "lowrank", 16, None, 2048) for x in "ab")
    >>> plan = Plan(layers, (), "lowrank", 0.5, 8192)
    >>> curve = Curve(torch.full((64,), 1 / 64), 128, 8, 32)
    >>> shared, weights = allocate(plan, {"a": curve, "b": curve}, {"a": 0.9, "b": 0.1})
    >>> [layer.rank for layer in shared.layers]
    [24, 8]
    """
    weights = {
        layer.name: losses[layer.name] / max(found[layer.name].tail(layer.rank or 0), 1e-12)
        for layer in plan.layers
    }
    gains = {name: weights[name] * curve.energy / curve.price for name, curve in found.items()}
    budget = plan.compressible_after

    def ranks_at(threshold: float) -> dict[str, int]:
        return {name: _clip(int((gains[name] >= threshold).sum()), curve) for name, curve in found.items()}

    def spent(ranks: Mapping[str, int]) -> int:
        return sum(rank * found[name].price for name, rank in ranks.items())

    low, high = 0.0, max(float(gain.max()) for gain in gains.values()) * 2
    for _ in range(100):  # the smallest threshold that the budget can pay for
        middle = (low + high) / 2
        low, high = (low, middle) if spent(ranks_at(middle)) <= budget else (middle, high)
    ranks = ranks_at(high)
    if spent(ranks) > budget:  # the lower limits alone take all of it
        return plan, weights
    _spend_rest(ranks, found, gains, budget - spent(ranks))
    return plan.with_ranks({name: _aligned(rank) for name, rank in ranks.items()}), weights


def _clip(rank: int, curve: Curve) -> int:
    return min(max(rank, curve.lowest), curve.highest)


def _spend_rest(
    ranks: dict[str, int], found: Mapping[str, Curve], gains: Mapping[str, Tensor], rest: int
) -> None:
    """Give the parameters that are left, rank by rank, to the layers that gain most."""
    while True:
        affordable = {
            name: float(gains[name][ranks[name]])
            for name, curve in found.items()
            if ranks[name] < min(curve.highest, len(gains[name])) and curve.price <= rest
        }
        if not affordable:
            return
        best = max(affordable, key=lambda name: affordable[name])
        ranks[best] += 1
        rest -= found[best].price


def _aligned(rank: int) -> int:
    """Round down to a multiple of 8, 4 or 2 where that costs little, as `rank_for` does."""
    multiple = next(step for step in (8, 4, 2, 1) if rank % step <= ALIGNMENT_LOSS * rank)
    return rank - rank % multiple


def _rank_for(method: str, keep: float, layer: LayerPlan) -> int:
    m, n = layer.shape
    try:
        return METHODS[method].rank_for(keep, m, n, layer.blocks)  # type: ignore[attr-defined]
    except BudgetError:  # less than one rank: no layer gets none
        return 1


def _output(model: nn.Module, batch: Any) -> Tensor:
    """Return the first floating-point tensor of the output, without padding."""
    from lowdim.compress.evaluate import _tensors

    y = next(_tensors(feed(model, batch))).float()
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if isinstance(mask, Tensor) and mask.shape == y.shape[:2]:
        return y[mask.to(y.device).bool()]
    return y
