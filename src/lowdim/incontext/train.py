"""Train: models on fresh prompts, resumable, on one process or several."""

from __future__ import annotations

import hashlib
import math
import os
import time as clock
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lowdim.algebra.history import History
from lowdim.errors import DataError, Diverged, ShapeError
from lowdim.incontext.attention import LinearAttention
from lowdim.incontext.door import check_count
from lowdim.incontext.families import Linear
from lowdim.incontext.statistics import Moments, sample_moments
from lowdim.incontext.tasks import Prompt, SubspaceTasks
from lowdim.runs import atomic_tensors, digest, read_tensors

__all__ = ["Callback", "train"]

Callback = Callable[[int, int, float], None]
Schedule = Literal["cosine", "onecycle", "constant"]

_TOLD = 50
"""Steps between two calls of the callback."""


def train(
    model: nn.Module,
    tasks: SubspaceTasks,
    *,
    steps: int,
    n: int,
    batch: int = 64,
    lr: float = 1e-3,
    schedule: Schedule = "onecycle",
    clip: float | None = 1.0,
    seed: int = 0,
    bfloat16: bool = False,
    callback: Callback | None = None,
    directory: str | os.PathLike[str] | None = None,
    save_every: int = 500,
    accelerator: Any = None,
) -> History:
    """Train a model in place on prompts that are drawn afresh for every step, by Adam.

    Parameters
    ----------
    model : nn.Module
        `LinearAttention`, `PromptTransformer`, or another module with ``loss(prompt)``. It is trained where
        it is, in its precision; parameters that need no gradient stay.
    tasks : SubspaceTasks
    steps : int
    n : int
        Examples in the context.
    batch : int
        Prompts per step and process.
    lr : float
        Learning rate of Adam, at its highest.
    schedule : {"onecycle", "cosine", "constant"}
        "onecycle" rises over the first tenth and falls to 0 along a cosine, "cosine" falls from the start.
    clip : float, optional
        Norm at which gradients are clipped; None never clips.
    seed : int
        Prompts depend on it, the step and the process, and on nothing else.
    bfloat16 : bool
        Compute forward and backward in mixed precision.
    callback : callable, optional
        Called with (step, steps, loss of that step) every 50 steps.
    directory : path, optional
        Where the state is kept every `save_every` steps. A call that finds a state of the same training there
        goes on from it, to the same weights.
    save_every : int
        Steps between two states.
    accelerator : accelerate.Accelerator, optional
        Shares the work among processes: each draws its own prompts.

    Returns
    -------
    History
        The loss of every step; ``residual`` is the loss over the variance of a label.

    Raises
    ------
    DataError
        If an option is out of range, or the context longer than the model can see.
    ShapeError
        If model and tasks differ in d.
    Diverged
        If the loss is not finite.
    RunError
        If the state in `directory` is damaged.

    Notes
    -----
    Merged linear attention on linear functions sees nothing of a prompt but X^T y / n, which is drawn
    directly (`sample_moments`): the time of a step does not depend on n.

    References
    ----------
    .. [1] L. Smith, N. Topin, "Super-convergence: very fast training of neural networks using large learning
       rates", 2019, for the schedule that rises and falls.

    Examples
    --------
    >>> from lowdim.incontext import LinearAttention, SubspaceTasks, optimal_weights
    >>> tasks = SubspaceTasks(4, r=1, seed=0)
    >>> model = LinearAttention(4)
    >>> history = train(model, tasks, steps=300, n=20, batch=256, lr=2e-2, schedule="cosine")
    >>> best = optimal_weights(tasks.covariance, n=20).float()
    >>> bool((model.W - best).norm() < 0.2 * best.norm())
    True
    """
    where = "train"
    for name, value in (("steps", steps), ("n", n), ("batch", batch), ("save_every", save_every)):
        check_count(name, value, where=where)
    check_count("seed", seed, where=where, least=0)
    if not 0 < lr < math.inf:
        raise DataError(f"{where}: lr={lr!r} must be a positive number.")
    if schedule not in ("onecycle", "cosine", "constant"):
        raise DataError(f"{where}: schedule={schedule!r} is unknown. Use 'onecycle', 'cosine' or 'constant'.")
    if clip is not None and not clip > 0:
        raise DataError(f"{where}: clip={clip!r} must be a positive norm, or None.")
    if getattr(model, "d", tasks.d) != tasks.d:
        raise ShapeError(f"{where}: the model has d={model.d}, the tasks have d={tasks.d}. Use the same.")
    most = getattr(model, "n_positions", n + 1)
    if n + 1 > most:
        raise DataError(
            f"{where}: a context of {n} examples and the query exceeds n_positions={most} of the model. Use "
            f"n <= {most - 1}, or a model with n_positions={n + 1}."
        )
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    if not trained:
        raise DataError(f"{where}: no parameter of the model needs a gradient. Call requires_grad_(True).")
    first = trained[0]
    job = _Job(model, tasks.to(first.device, first.dtype), trained, n, batch, steps, lr, schedule, seed)
    job.clip, job.bfloat16 = clip, bfloat16
    return job.run(callback, None if directory is None else Path(directory), save_every, accelerator)


class _Objective(nn.Module):
    """The loss as a module of its own: wrappers for several processes act on forward."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Prompt | Moments) -> Tensor:
        return self.model.loss(batch)  # type: ignore[operator]


@dataclass
class _Job:
    """One call of `train` at work."""

    model: nn.Module
    tasks: SubspaceTasks
    trained: list[nn.Parameter]
    n: int
    batch: int
    steps: int
    lr: float
    schedule: str
    seed: int
    clip: float | None = None
    bfloat16: bool = False
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        device = self.trained[0].device
        # All parameters in one kernel per step; complex or sparse ones do not occur here.
        self.optimizer = torch.optim.Adam(self.trained, lr=self.lr, fused=device.type in ("cpu", "cuda"))
        self.source = torch.Generator(device=device)
        self.moments = (
            isinstance(self.model, LinearAttention)
            and self.model.merged
            and isinstance(self.tasks.family, Linear)
        )

    def draw(self, step: int, rank: int) -> Prompt | Moments:
        """Return the prompts of a step and process."""
        word = hashlib.sha256(f"{self.seed} {rank} {step}".encode()).digest()
        self.source.manual_seed(int.from_bytes(word[:8], "little") >> 1)
        if self.moments:
            return sample_moments(self.tasks, self.batch, n=self.n, seed=self.source)
        return self.tasks.sample(self.batch, n=self.n, seed=self.source)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step (from 0)."""
        done, rise = step / self.steps, 0.1 if self.schedule == "onecycle" else 0.0
        if self.schedule == "constant":
            return self.lr
        if done < rise:
            return self.lr * (step + 1) / (rise * self.steps + 1)
        return self.lr * 0.5 * (1 + math.cos(math.pi * (done - rise) / (1 - rise)))

    def identity(self) -> str:
        """Return what makes a state another training's: all that decides the weights but the start."""
        shapes = [list(weight.shape) for weight in self.trained]
        facts = [self.n, self.batch, self.steps, self.lr, self.schedule, self.seed, self.clip, self.bfloat16]
        tasks = self.tasks
        inputs = torch.zeros(0) if tasks.inputs is None else tasks.inputs.cpu()
        return digest(
            shapes, facts, repr(tasks.family), tasks.noise, tasks.bases.cpu(), tasks.weights.cpu(), inputs
        )

    def run(
        self, callback: Callback | None, directory: Path | None, save_every: int, accelerator: Any
    ) -> History:
        """Train, from the state that is there."""
        objective: Any = _Objective(self.model)
        optimizer: Any = self.optimizer
        rank, main = 0, True
        if accelerator is not None:
            objective, optimizer = accelerator.prepare(objective, optimizer)
            rank, main = accelerator.process_index, accelerator.is_main_process
        kept = None if directory is None else directory / "state.safetensors"
        start = 0 if kept is None else self.load(kept)
        begin, recent = clock.perf_counter(), []
        was_training = self.model.training
        self.model.train()
        device = self.trained[0].device
        try:
            for step in range(start, self.steps):
                for group in optimizer.param_groups:
                    group["lr"] = self.rate(step)
                narrow = torch.autocast(device.type, torch.bfloat16) if self.bfloat16 else nullcontext()
                with narrow:
                    loss = objective(self.draw(step, rank))
                if accelerator is None:
                    loss.backward()
                else:
                    accelerator.backward(loss)
                if self.clip is not None:
                    torch.nn.utils.clip_grad_norm_(self.trained, self.clip)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                recent.append(loss.detach())
                last = step + 1 == self.steps
                saving = kept is not None and ((step + 1) % save_every == 0 or last)
                # Waiting for the loss of every step would let a GPU run dry.
                if (step + 1) % _TOLD == 0 or last or saving:
                    self.settle(recent, step)
                    if callback is not None and main:
                        callback(step + 1, self.steps, self.losses[-1])
                    if saving and main and kept is not None:
                        self.save(kept, step + 1)
        finally:
            self.model.train(was_training)
        unit = self.tasks.variance or 1.0
        return History(
            tuple(self.losses),
            tuple(loss / unit for loss in self.losses),
            clock.perf_counter() - begin,
            "steps",
        )

    def settle(self, recent: list[Tensor], step: int) -> None:
        """Fetch the losses of the last steps, and refuse those that are not finite."""
        values = torch.stack(recent).double().cpu().tolist() if recent else []
        recent.clear()
        for i, value in enumerate(values):
            if not math.isfinite(value):
                at = step - len(values) + 1 + i
                known = self.losses[-1] if self.losses else None
                raise Diverged(
                    f"train: the loss is {value} at step {at + 1}. Lower lr={self.lr:g}.",
                    step=at + 1,
                    last=known,
                )
            self.losses.append(value)

    def save(self, kept: Path, step: int) -> None:
        """Keep weights, moments of Adam and losses."""
        tensors = {f"weight.{i}": weight.detach() for i, weight in enumerate(self.trained)}
        for i, weight in enumerate(self.trained):
            state = self.optimizer.state[weight]  # empty of weights that had no gradient so far
            tensors |= {f"{name}.{i}": state[name] for name in ("exp_avg", "exp_avg_sq") if name in state}
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        kept.parent.mkdir(parents=True, exist_ok=True)
        atomic_tensors(kept, tensors, {"step": str(step), "training": self.identity()})

    def load(self, kept: Path) -> int:
        """Take the state that is there, if it is of this training; return its step."""
        if not kept.exists():
            return 0
        tensors, facts = read_tensors(kept)
        if facts.get("training") != self.identity():
            raise DataError(
                f"train: {kept} holds the state of another training. Choose another directory, or delete it."
            )
        step = int(facts["step"])
        with torch.no_grad():
            for i, weight in enumerate(self.trained):
                weight.copy_(tensors[f"weight.{i}"])
                if f"exp_avg.{i}" not in tensors:
                    continue
                self.optimizer.state[weight] = {
                    "step": torch.tensor(float(step), device=weight.device),
                    "exp_avg": tensors[f"exp_avg.{i}"].to(weight),
                    "exp_avg_sq": tensors[f"exp_avg_sq.{i}"].to(weight),
                }
        self.losses = tensors["losses"].tolist()
        return step
