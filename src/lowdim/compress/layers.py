"""Factorize every planned layer: one file per layer, skipped when it is there, shared out over processes."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowdim.algebra import History, Operator, StructuredLinear, factorize, weight_matrix
from lowdim.compress.calibrate import Moments
from lowdim.compress.modules import replace_module
from lowdim.compress.plan import METHODS, LayerPlan, Plan
from lowdim.compress.ranks import Ranks
from lowdim.compress.workers import each
from lowdim.errors import BudgetError, DataError, Diverged, RankError, ShapeError
from lowdim.runs import atomic_tensors, digest, read_tensors

__all__ = ["Layer", "LayerOptions", "factorize_layers", "file_name", "install_layers"]


@dataclass(frozen=True)
class LayerOptions:
    """What decides the factors of a layer besides its weight, its second moment and its plan.

    Parameters
    ----------
    sweeps : int
        Sweeps of the iterative methods.
    seed : int
        For starts that need random numbers.
    """

    sweeps: int = 20
    seed: int = 0


@dataclass(frozen=True)
class Layer:
    """One factorized layer.

    Parameters
    ----------
    plan : LayerPlan
        What was asked for.
    operator : Operator
        The factors, on the CPU, in the dtype of the weight.
    history : History
        Errors per sweep.
    weight_error : float
        ``||A - X||_F / ||A||_F`` with the original weight A.
    output_error : float or None
        Relative root mean square error of the layer's output on the calibration inputs.
    seconds : float
        Time that the factorization took.
    """

    plan: LayerPlan
    operator: Operator
    history: History
    weight_error: float
    output_error: float | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the row of report.json."""
        return {
            **self.plan.to_dict(),
            "weight_error": self.weight_error,
            "output_error": self.output_error,
            "sweeps": self.history.steps,
            "residual": list(self.history.residual),
            "reason": self.history.reason,
            "notes": list(self.history.notes),
            "seconds": self.seconds,
        }


def file_name(name: str) -> str:
    """Return the name of a layer's work file; no two layers share one.

    Parameters
    ----------
    name : str
        Name of the layer.

    Returns
    -------
    str

    Examples
    --------
    >>> file_name("encoder.layer.0.attention.self.query")
    'encoder.layer.0.attention.self.query.safetensors'
    """
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    if plain == name and 0 < len(name) < 150:
        return f"{name}.safetensors"
    return f"{plain[-100:]}-{digest(name)[:12]}.safetensors"


def factorize_layers(
    model: nn.Module,
    plan: Plan,
    moments: Moments | None,
    *,
    options: LayerOptions,
    folder: Path | None = None,
    ranks: Ranks | None = None,
    device: torch.device | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    callback: Callable[[Layer], None] | None = None,
) -> list[Layer]:
    """Factorize all layers of a plan.

    Parameters
    ----------
    model : Module
        Holds the original weights.
    plan : Plan
        Layers, blocks and ranks.
    moments : Moments or None
        Second moments of the inputs; None minimizes the weight error. With cross moments in it, the layers
        aim at the original outputs from the present inputs (`Moments.target`).
    options : LayerOptions
        Sweeps and seed.
    folder : Path, optional
        Existing folder for one file per layer. A file whose key (hash of weight, second moment and options)
        fits is read instead of computed.
    ranks : Ranks, optional
        The processes among which the layers are shared out; needs `folder`.
    device : torch.device, optional
        Where to compute; by default where the weight is.
    progress : callable, optional
        Called with (layers done, layers in all, what is going on), one call at a time, from any thread.
    callback : callable, optional
        Called with every finished `Layer`, in the order in which they finish.

    Returns
    -------
    list of Layer
        In the order of the plan, the same in every process.

    Raises
    ------
    RunError
        If a work file is truncated or was changed; it is named.
    DataError, ShapeError, RankError, BudgetError, Diverged
        From `factorize`; the layer is named.
    """
    total = len(plan.layers)
    ranks = ranks or Ranks()
    done: dict[str, Layer] = {}
    turn = threading.Lock()

    def note(text: str) -> None:
        if progress is not None:
            with turn:
                progress(min(len(done) * ranks.world, total), total, text)

    def work(entry: LayerPlan) -> Layer:
        note(entry.name)
        return _one(model, entry, plan.method, moments, options, folder, device, note)

    with ranks.together():
        for layer in each(work, plan.layers[ranks.rank :: ranks.world], on_cpu=_on_cpu(model, device)):
            done[layer.plan.name] = layer
            note(_told(layer))
            if callback is not None:
                callback(layer)
    if ranks.world > 1:
        assert folder is not None
        for entry in plan.layers:
            if entry.name not in done:
                done[entry.name] = _read(folder / file_name(entry.name), entry)
    return [done[entry.name] for entry in plan.layers]


def install_layers(model: nn.Module, layers: list[Layer]) -> None:
    """Put factorized layers into a model, in place, wherever their weights are used.

    Parameters
    ----------
    model : Module
        A copy of the original.
    layers : list of Layer
        From `factorize_layers`.
    """
    for layer in layers:
        operator: Operator | None = None
        for place in layer.plan.places:
            old = model.get_submodule(place)
            if isinstance(old, StructuredLinear):
                continue  # a second name of a module that was replaced already
            if operator is None:
                weight = old.get_parameter("weight")
                operator = layer.operator.to(weight.device, weight.dtype)
            bias = getattr(old, "bias", None)
            new = StructuredLinear(operator, bias)
            if bias is not None and new.bias is not None:
                new.bias.requires_grad_(bias.requires_grad)
            new.train(old.training)
            replace_module(model, old, new)


def _on_cpu(model: nn.Module, device: torch.device | None) -> bool:
    return (device or next(model.parameters()).device).type == "cpu"


def _one(
    model: nn.Module,
    entry: LayerPlan,
    method: str,
    moments: Moments | None,
    options: LayerOptions,
    folder: Path | None,
    device: torch.device | None,
    note: Callable[[str], None],
) -> Layer:
    """Read one layer from its file, or factorize it and write the file."""
    weight = weight_matrix(model.get_submodule(entry.name)).detach()
    H = None if moments is None else moments.of(entry.name)
    aware = H is not None and method != "svd"
    target = weight
    if moments is not None and moments.owner[entry.name] in moments.crosses:
        target = moments.target(entry.name, weight)
    settings = _settings(entry, method, options)
    key = digest(weight, target, torch.empty(0) if H is None else H, settings)
    path = None if folder is None else folder / file_name(entry.name)
    if path is not None and path.exists():
        found, facts = read_tensors(path)
        if facts.get("key") == key:
            return _layer(found, facts, entry)
    start = time.perf_counter()

    def sweep(step: int, error: float) -> None:
        note(f"{entry.name}: sweep {step}, error {error:.3f}")

    try:
        result = factorize(
            target.to(device) if device is not None else target,
            METHODS[method],
            second_moment=H.to(device or weight.device) if aware and H is not None else None,
            callback=sweep,
            **settings,
        )
    except (BudgetError, DataError, RankError, ShapeError) as error:
        raise type(error)(f"layer {entry.name!r}: {error}") from error
    except Diverged as error:
        raise Diverged(f"layer {entry.name!r}: {error}", step=error.step, last=error.last) from error
    operator = result.operator.cpu()
    layer = Layer(
        plan=entry,
        operator=operator,
        history=result.history,
        weight_error=_relative(weight, operator),
        output_error=result.output_error if aware or H is None else _output_error(weight, operator, H),
        seconds=time.perf_counter() - start,
    )
    if path is not None:
        atomic_tensors(path, operator.state_dict(), _facts(layer, key))
    return layer


def _settings(entry: LayerPlan, method: str, options: LayerOptions) -> dict[str, Any]:
    """Return the arguments of `factorize`: JSON-ready, for they are part of the key."""
    settings: dict[str, Any] = {"seed": options.seed}
    if entry.structure == "blockdiag":
        return {**settings, "keep": 1.0, "blocks": entry.blocks[0] if entry.blocks else 1}
    settings["rank"] = entry.rank
    if entry.structure == "lowrank":
        return settings
    settings |= {"blocks": list(entry.blocks or (1, 1)), "sweeps": options.sweeps}
    if method == "blast":
        b1, b2 = entry.blocks or (1, 1)
        settings["pad"] = bool(entry.shape[0] % b1 or entry.shape[1] % b2)
    return settings


@torch.no_grad()
def _relative(weight: Tensor, operator: Operator) -> float:
    A = weight.cpu().double()
    return float(torch.linalg.norm(A - operator.dense().double()) / torch.linalg.norm(A))


@torch.no_grad()
def _output_error(weight: Tensor, operator: Operator, H: Tensor) -> float:
    """Return sqrt(tr(E H E^T) / tr(A H A^T)), E = A - X: for factors that were found without H."""
    A, moment = weight.cpu().double(), H.cpu().double()
    E = A - operator.dense().double()
    return float((((E @ moment) * E).sum() / ((A @ moment) * A).sum()).clamp(min=0).sqrt())


def _facts(layer: Layer, key: str) -> dict[str, str]:
    return {
        "key": key,
        "config": json.dumps(layer.operator.config()),
        "history": json.dumps(layer.history.to_dict()),
        "errors": json.dumps([layer.weight_error, layer.output_error]),
        "seconds": repr(layer.seconds),
    }


def _read(path: Path, entry: LayerPlan) -> Layer:
    return _layer(*read_tensors(path), entry)


def _layer(tensors: Mapping[str, Tensor], facts: Mapping[str, str], entry: LayerPlan) -> Layer:
    """Rebuild a layer from what its file holds."""
    operator = Operator.from_config(json.loads(facts["config"]), device="meta")
    operator.load_state_dict(dict(tensors), assign=True)
    history = json.loads(facts["history"])
    weight_error, output_error = json.loads(facts["errors"])
    return Layer(
        plan=entry,
        operator=operator,
        history=History(
            objective=tuple(history["objective"]),
            residual=tuple(history["residual"]),
            seconds=history["seconds"],
            reason=history["reason"],
            notes=tuple(history["notes"]),
        ),
        weight_error=weight_error,
        output_error=output_error,
        seconds=float(facts["seconds"]),
    )


def _told(layer: Layer) -> str:
    error = layer.weight_error if layer.output_error is None else layer.output_error
    return f"{layer.plan.name}: error {error:.3f}"
