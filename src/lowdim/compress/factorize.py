"""Factorize every planned layer: one file per layer, skipped when it is there, shared out over processes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowdim.algebra import Factorization, Operator, factorize, weight_matrix
from lowdim.compress.calibrate import Moments
from lowdim.compress.layers import Layer, file_name
from lowdim.compress.plan import METHODS, LayerPlan, Plan
from lowdim.compress.ranks import Ranks
from lowdim.compress.workers import each
from lowdim.errors import BudgetError, DataError, Diverged, RankError, ShapeError
from lowdim.runs import digest

__all__ = ["LayerOptions", "factorize_layers"]

# Numbers in the matrices and second moments that a GPU factorizes at once; it needs some ten times as many.
_STACKED = 1 << 26


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
        Where to compute; by default where the weight is. A GPU takes layers of equal shape and rank together.
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

    def work(entries: list[LayerPlan]) -> list[Layer]:
        note(_names(entries))
        return _together(model, entries, plan.method, moments, options, folder, device, note)

    mine, on_cpu = plan.layers[ranks.rank :: ranks.world], _on_cpu(model, device)
    groups = [[entry] for entry in mine] if on_cpu or plan.method != "blast" else _stacks(mine)
    with ranks.together():
        for found in each(work, groups, on_cpu=on_cpu):
            for layer in found:
                done[layer.plan.name] = layer
                note(_told(layer))
                if callback is not None:
                    callback(layer)
    if ranks.world > 1:
        assert folder is not None
        for entry in plan.layers:
            if entry.name not in done:
                theirs = Layer.read(folder / file_name(entry.name), entry)
                assert theirs is not None  # for the type checker: no key was asked for
                done[entry.name] = theirs
    return [done[entry.name] for entry in plan.layers]


def _on_cpu(model: nn.Module, device: torch.device | None) -> bool:
    return (device or next(model.parameters()).device).type == "cpu"


def _stacks(entries: Sequence[LayerPlan]) -> list[list[LayerPlan]]:
    """Return layers of equal shape and plan together, as many as fit: one of them seldom fills a GPU."""
    alike: dict[tuple[Any, ...], list[list[LayerPlan]]] = {}
    for entry in entries:
        m, n = entry.shape
        stacks = alike.setdefault((entry.shape, entry.rank, entry.blocks), [[]])
        if (len(stacks[-1]) + 1) * n * (m + n) > _STACKED and stacks[-1]:
            stacks.append([])
        stacks[-1].append(entry)
    return [stack for stacks in alike.values() for stack in stacks]


@dataclass(frozen=True)
class _Task:
    """One layer to be factorized, and the file that its factors go to."""

    entry: LayerPlan
    weight: Tensor
    target: Tensor
    moment: Tensor | None
    key: str
    path: Path | None


def _together(
    model: nn.Module,
    entries: list[LayerPlan],
    method: str,
    moments: Moments | None,
    options: LayerOptions,
    folder: Path | None,
    device: torch.device | None,
    note: Callable[[str], None],
) -> list[Layer]:
    """Read layers of one shape and plan from their files, or factorize them at once and write the files."""
    layers: list[Layer] = []
    tasks: list[_Task] = []
    for entry in entries:
        task = _task(model, entry, method, moments, options, folder)
        known = None
        if task.path is not None and task.path.exists():
            known = Layer.read(task.path, entry, key=task.key)
        if known is None:
            tasks.append(task)
        else:
            layers.append(known)
    if not tasks:
        return layers
    start = time.perf_counter()
    results = _factorized(tasks, method, options, device, note)
    seconds = (time.perf_counter() - start) / len(tasks)
    for task, result in zip(tasks, results, strict=True):
        operator, H = result.operator.cpu(), task.moment
        aware = H is not None and method != "svd"
        error = result.output_error
        if H is not None and not aware:
            error = _output_error(task.weight, operator, H)
        layer = Layer(
            plan=task.entry,
            operator=operator,
            history=result.history,
            weight_error=_relative(task.weight, operator),
            output_error=error,
            seconds=seconds,
        )
        if task.path is not None:
            layer.write(task.path, key=task.key)
        layers.append(layer)
    return layers


def _task(
    model: nn.Module,
    entry: LayerPlan,
    method: str,
    moments: Moments | None,
    options: LayerOptions,
    folder: Path | None,
) -> _Task:
    weight = weight_matrix(model.get_submodule(entry.name)).detach()
    H = None if moments is None else moments.of(entry.name)
    target = weight
    if moments is not None and moments.owner[entry.name] in moments.crosses:
        target = moments.target(entry.name, weight)
    key = digest(weight, target, torch.empty(0) if H is None else H, _settings(entry, method, options))
    return _Task(entry, weight, target, H, key, None if folder is None else folder / file_name(entry.name))


def _factorized(
    tasks: list[_Task],
    method: str,
    options: LayerOptions,
    device: torch.device | None,
    note: Callable[[str], None],
) -> list[Factorization]:
    """Factorize matrices of one shape as a stack; an error names the layer."""
    names = _names([task.entry for task in tasks])

    def sweep(step: int, error: float) -> None:
        note(f"{names}: sweep {step}, error {error:.3f}")

    place = device or tasks[0].weight.device
    H = [task.moment.to(place) for task in tasks if task.moment is not None and method != "svd"]
    try:
        found: list[Factorization] = factorize(
            torch.stack([task.target.to(place) for task in tasks]),
            METHODS[method],
            second_moment=torch.stack(H) if H else None,
            callback=sweep,
            **_settings(tasks[0].entry, method, options),
        )
    except (BudgetError, DataError, Diverged, RankError, ShapeError) as error:
        if len(tasks) > 1:  # which one was it?
            return [one for task in tasks for one in _factorized([task], method, options, device, note)]
        if isinstance(error, Diverged):
            raise Diverged(f"layer {names!r}: {error}", step=error.step, last=error.last) from error
        raise type(error)(f"layer {names!r}: {error}") from error
    return found


def _names(entries: list[LayerPlan]) -> str:
    others = len(entries) - 1
    return entries[0].name + (f" and {others} more of its shape" if others else "")


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


def _told(layer: Layer) -> str:
    error = layer.weight_error if layer.output_error is None else layer.output_error
    return f"{layer.plan.name}: error {error:.3f}"
