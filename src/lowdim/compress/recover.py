"""Recovery: a compressed model learns from the original on the calibration inputs, without labels."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowdim.algebra import History
from lowdim.compress.calibrate import evaluation_mode
from lowdim.compress.distill import Distillation, Targets
from lowdim.compress.embedding import CompactEmbedding
from lowdim.compress.evaluate import Batch, Task
from lowdim.errors import DataError, Diverged, RunError
from lowdim.runs import atomic_tensors, read_tensors

__all__ = ["recover"]

FORMAT = 1

SHORTEST_WARMUP = 20
"""Steps; the first updates of AdamW move every number by the whole learning rate, which alone does harm."""


def recover(
    student: nn.Module,
    teacher: nn.Module,
    batches: Sequence[Batch],
    *,
    steps: int,
    lr: float = 2e-4,
    seed: int = 0,
    task: Task = "embedding",
    pooling: str = "mean",
    distillation: Distillation | None = None,
    warmup: float = 0.1,
    clip: float = 1.0,
    checkpoint: str | Path | None = None,
    every: int = 25,
    cache_bytes: int = 2**30,
    callback: Callable[[int, float], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> History:
    """Train the compressed model, in place, to imitate the original.

    AdamW without weight decay (decay of factors is not decay of their product) on every parameter
    except embedding tables, whose rows the calibration text reaches only in part; linear warm-up, then a
    cosine to 5 % of `lr`.
    Both models stay in evaluation mode, so dropout is off. Parameters in half precision are trained in
    float32 and rounded at the end.

    Parameters
    ----------
    student : Module
        The compressed model; changed in place.
    teacher : Module
        The original, with the same layers and outputs.
    batches : sequence of mapping, tuple or Tensor
        Inputs. Every epoch takes them in a new random order.
    steps : int
        Number of updates, one batch each. 0 leaves the student as it is.
    lr : float
        Highest learning rate.
    seed : int
        Order of the batches.
    task : {"embedding", "causal", "masked", "classifier", "generic"}
        Decides the loss, see `Distillation`.
    pooling : {"mean", "cls", "max", "lasttoken"}
        How tokens become a sentence embedding.
    distillation : Distillation, optional
        Another weighting of the loss; replaces `task` and `pooling`.
    warmup : float
        Fraction of the steps with growing learning rate; at least 20 steps, so that a few steps alone (which
        do not reach `lr`) do little harm.
    clip : float
        Largest norm of the gradient.
    checkpoint : path, optional
        A file that is rewritten whole every `every` steps. If it exists, training goes on from it; on the
        CPU the result is the same to the bit as without the interruption (equal number of threads).
    every : int
        Steps between checkpoints.
    cache_bytes : int
        Memory for the teacher's outputs, so that a batch that returns costs no second pass of the teacher.
    callback : callable, optional
        Called with (step, loss) after every update.
    progress : callable, optional
        Called with (steps done, steps in all).

    Returns
    -------
    History
        objective: the loss before every update, and once more after the last one (each on its own batch);
        residual: relative error of the last hidden state (or output).

    Raises
    ------
    DataError
        If there is nothing to learn from or an option is out of range.
    Diverged
        If the loss or the gradient is not finite; the student then holds the weights of the last good step.
    RunError
        If the checkpoint is damaged or belongs to other options.

    Notes
    -----
    Cached targets are those that the teacher gives without a cache, so its size does not change the result.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> teacher, student = nn.Linear(4, 2), nn.Linear(4, 2)
    >>> inputs = [torch.randn(16, 4) for _ in range(4)]
    >>> history = recover(student, teacher, inputs, steps=100, lr=0.05, task="generic")
    >>> history.objective[-1] < 0.01 * history.objective[0]
    True
    """
    rule = distillation if distillation is not None else Distillation(task, pooling)
    batches = list(batches)
    _check(batches, steps=steps, lr=lr, every=every, warmup=warmup, clip=clip)
    started = time.perf_counter()
    if steps == 0:
        return History(objective=(), residual=(), seconds=0.0, reason="steps")
    parameters = _trainable(student)
    dtypes = {id(t): t.dtype for t in _all_tensors(student)}
    _cast(student, lambda t: torch.float32 if t.dtype in (torch.float16, torch.bfloat16) else t.dtype)
    optimizer = torch.optim.AdamW(parameters.values(), lr=lr, weight_decay=0.0)
    settings = {
        "format": FORMAT, "steps": steps, "lr": lr, "seed": seed, "warmup": warmup, "clip": clip,
        "batches": len(batches), "distillation": repr(rule), "parameters": _layout(parameters),
    }  # fmt: skip
    objective: list[float] = []
    residual: list[float] = []
    if checkpoint is not None and Path(checkpoint).exists():
        objective, residual = _load(Path(checkpoint), parameters, optimizer, settings)
    targets_of = _Teacher(teacher, batches, rule, cache_bytes)
    with evaluation_mode(student), evaluation_mode(teacher), _frozen(_tables(student)):
        for step in range(len(objective), steps):
            index = _batch_at(step, len(batches), seed)
            for group in optimizer.param_groups:
                group["lr"] = lr * schedule(step, steps, warmup)
            optimizer.zero_grad(set_to_none=True)
            loss, error = rule.loss(student, batches[index], targets_of(index))
            value = float(loss.detach())
            last = objective[-1] if objective else None
            if not math.isfinite(value):
                raise _diverged(step, last, lr)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(parameters.values(), clip)
            if not math.isfinite(float(norm)):
                raise _diverged(step, last, lr)
            optimizer.step()
            objective.append(value)
            residual.append(error)
            done = step + 1
            if checkpoint is not None and (done % every == 0 or done == steps):
                _save(Path(checkpoint), parameters, optimizer, settings, objective, residual)
            if callback is not None:
                callback(done, value)
            if progress is not None:
                progress(done, steps)
        optimizer.zero_grad(set_to_none=True)
        _cast(student, lambda t: dtypes[id(t)])
        index = _batch_at(steps, len(batches), seed)
        with torch.no_grad():
            loss, error = rule.loss(student, batches[index], targets_of(index))
    return History(
        objective=(*objective, float(loss)),
        residual=(*residual, error),
        seconds=time.perf_counter() - started,
        reason="steps",
    )


def schedule(step: int, steps: int, warmup: float) -> float:
    """Return the learning rate at a step as a fraction of the highest: linear warm-up, cosine to 5 %."""
    rising = max(SHORTEST_WARMUP, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


class _Teacher:
    """The teacher's targets per batch, kept while the memory allows."""

    def __init__(self, teacher: nn.Module, batches: list[Batch], rule: Distillation, budget: int) -> None:
        self.teacher, self.batches, self.rule, self.budget = teacher, batches, rule, budget
        self.kept: dict[int, Targets] = {}

    def __call__(self, index: int) -> Targets:
        """Return the targets of batch `index`."""
        if index not in self.kept:
            targets = self.rule.targets(self.teacher, self.batches[index])
            size = sum(t.numel() * t.element_size() for values in targets.values() for t in values)
            if size > self.budget:
                return targets
            self.budget -= size
            self.kept[index] = targets
        return self.kept[index]


def _batch_at(step: int, count: int, seed: int) -> int:
    """Return the batch of a step; every epoch is a permutation that depends on seed and epoch alone."""
    epoch, place = divmod(step, count)
    order = list(range(count))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order[place]


def _trainable(student: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters to train: all that ask for gradients, without embedding tables."""
    tables = set(map(id, _tables(student)))
    found = {
        name: p
        for name, p in student.named_parameters()
        if p.requires_grad and p.is_floating_point() and id(p) not in tables
    }
    if not found:
        raise DataError(
            "recover: the model has no trainable parameters. Call model.requires_grad_(True) first."
        )
    return found


def _tables(model: nn.Module) -> list[nn.Parameter]:
    kinds = (nn.Embedding, CompactEmbedding)
    return [p for m in model.modules() if isinstance(m, kinds) for p in m.parameters()]


@contextmanager
def _frozen(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Ask for no gradients inside: the large tables of a language model would only cost time."""
    asked = [p for p in parameters if p.requires_grad]
    for p in asked:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in asked:
            p.requires_grad_(True)


def _all_tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _cast(model: nn.Module, dtype_of: Callable[[Tensor], torch.dtype]) -> None:
    """Change dtypes in place; the tensors stay the same objects."""
    for tensor in _all_tensors(model):
        tensor.data = tensor.data.to(dtype_of(tensor))


def _check(batches: list[Batch], **options: float) -> None:
    if not batches:
        raise DataError("recover: there is no batch to learn from. Give calibration text or inputs.")
    for name, low in {"steps": 0, "lr": 1e-12, "every": 1, "warmup": 0, "clip": 1e-12}.items():
        if not options[name] >= low:
            raise DataError(f"recover: {name}={options[name]} is too small, expected at least {low}.")


def _diverged(step: int, last: float | None, lr: float) -> Diverged:
    return Diverged(
        f"recover: the loss is not finite at step {step + 1} (last finite loss: {last}). "
        f"Use a smaller learning rate than {lr}, or check the calibration inputs.",
        step=step + 1,
        last=last,
    )


def _layout(parameters: dict[str, nn.Parameter]) -> list[list[Any]]:
    return [[name, list(p.shape)] for name, p in parameters.items()]


def _save(
    path: Path,
    parameters: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    settings: dict[str, Any],
    objective: list[float],
    residual: list[float],
) -> None:
    """Write weights, both moments of AdamW and the history so far as one file."""
    tensors: dict[str, Tensor] = {}
    for name, p in parameters.items():
        tensors[f"weight/{name}"] = p.detach()
        for key in ("exp_avg", "exp_avg_sq"):
            if key in optimizer.state[p]:
                tensors[f"{key}/{name}"] = optimizer.state[p][key]
    state = {"settings": settings, "objective": objective, "residual": residual}
    atomic_tensors(path, tensors, {"recover": json.dumps(state)})


def _load(
    path: Path,
    parameters: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    settings: dict[str, Any],
) -> tuple[list[float], list[float]]:
    """Restore what `_save` wrote, or refuse a file of another recovery."""
    tensors, metadata = read_tensors(path)
    try:
        state = json.loads(metadata["recover"])
    except (KeyError, TypeError, ValueError):
        raise RunError(
            f"{path} is no recovery checkpoint. Remove it, or start anew with --restart."
        ) from None
    stored = state["settings"]
    if differ := [key for key in settings if stored.get(key) != settings[key]]:
        shown = ", ".join(
            f"{key} {stored.get(key)} -> {settings[key]}" if key != "parameters" else "parameters"
            for key in differ
        )
        raise RunError(f"{path} belongs to another recovery ({shown}). Use the same options, or --restart.")
    done = len(state["objective"])
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(tensors[f"weight/{name}"])
            if f"exp_avg/{name}" in tensors:
                optimizer.state[p] = {
                    "step": torch.tensor(float(done)),
                    "exp_avg": tensors[f"exp_avg/{name}"].to(p.device),
                    "exp_avg_sq": tensors[f"exp_avg_sq/{name}"].to(p.device),
                }
    return state["objective"], state["residual"]
