"""Pipeline: `study`, from sizes to risks over angles, context lengths and ranks of adapters."""

from __future__ import annotations

import dataclasses
import os
import time as clock
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor

from lowdim.errors import DataError, RunError
from lowdim.incontext.adapters import best_low_rank_update, train_low_rank_update
from lowdim.incontext.attention import LinearAttention
from lowdim.incontext.evaluate import evaluate
from lowdim.incontext.optimal import optimal_weights
from lowdim.incontext.result import ADAPTERS, FORMAT, RISKS, StudyResult, table
from lowdim.incontext.settings import ModelName, Settings
from lowdim.incontext.tasks import SubspaceTasks, Toward
from lowdim.incontext.train import train
from lowdim.incontext.transformer import PromptTransformer, Tokens
from lowdim.incontext.words import sentence
from lowdim.runs import Run, atomic_json, plain, read_json, versions

__all__ = ["Progress", "study"]

Progress = Callable[[str, int, int, str], None]
Model = LinearAttention | PromptTransformer


def study(
    model: ModelName = "optimal",
    *,
    d: int = 20,
    r: int = 5,
    subspaces: int = 1,
    noise: float = 0.0,
    family: str = "linear",
    toward: Toward | None = None,
    n: int | None = None,
    angles_deg: Sequence[float] = (0, 15, 30, 45, 60, 75, 90),
    context_lengths: Sequence[int] | None = None,
    ranks: Sequence[int] = (),
    adapt_deg: float = 45.0,
    adapt_steps: int = 500,
    steps: int | None = None,
    batch: int | None = None,
    lr: float | None = None,
    n_layer: int = 4,
    n_head: int = 4,
    n_embd: int = 64,
    tokens: Tokens = "paired",
    prompts: int = 2000,
    baselines: Sequence[str] = ("zero", "ridge", "oracle"),
    seed: int = 0,
    seeds: int = 1,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    output: str | os.PathLike[str] | None = None,
    resume: bool = False,
    restart: bool = False,
) -> StudyResult:
    """Train a model on tasks in subspaces, shift the tasks by an angle, and measure what it still can do.

    Parameters
    ----------
    model : {"optimal", "linear", "gpt2"}
        Linear attention with the best weights in closed form, the same trained by Adam, or a small GPT-2.
    d, r, subspaces : int
        Dimension of inputs, of each subspace of task vectors, and number of subspaces in training.
    noise : float
        Standard deviation sigma of the noise on labels.
    family : {"linear", "relu", "single-index", "fourier"}
        Functions, whose weights lie in a subspace; other than linear ones for "gpt2" only.
    toward : {"inside", "outside", "anywhere"}, optional
        Where the first subspace is turned to; see `SubspaceTasks.rotated`.
    n : int, optional
        Examples in the context in training: 100, and 2 d + 2 for "gpt2".
    angles_deg : sequence of float
        Of the shift, in degrees from 0 to 90.
    context_lengths : sequence of int, optional
        Examples in the context at test; `n` by default.
    ranks : sequence of int
        Ranks of adapters to try; none by default. Of linear attention the best update in closed form and the
        one found by Adam, of "gpt2" updates of queries, keys and values, trained by peft.
    adapt_deg : float
        Angle of the tasks that are adapted to, in degrees.
    adapt_steps : int
        Steps of the training of an adapter.
    steps, batch, lr : optional
        Of the training: 3000 steps of 256 prompts at 1e-2 for "linear", 2000 of 64 at 2e-3 for "gpt2".
    n_layer, n_head, n_embd, tokens
        Sizes and tokens of "gpt2"; see `PromptTransformer`.
    prompts : int
        Fresh prompts per angle in the measurement.
    baselines : sequence of str
        See `evaluate`.
    seed, seeds : int
        First seed, and how many studies with other subspaces, starts and prompts.
    device : str
        Where models are trained.
    progress : callable, optional
        Called with (phase, done, total, what is going on).
    output : path, optional
        Run directory: trainings are kept there as they go, and the result is written to it.
    resume, restart : bool
        Go on with the run in `output`, or throw it away.

    Returns
    -------
    StudyResult

    Raises
    ------
    DataError, RankError
        If an option is out of range.
    MissingExtra
        If "gpt2" needs transformers, or its adapters peft, and they are not installed.
    RunError
        If the output folder is in use, holds another run, or cannot be written.

    Examples
    --------
    >>> result = study("optimal", d=20, r=5, noise=0.1, angles_deg=[0, 90], prompts=1000)
    >>> theory = result.risks[result.risks["predictor"] == "theory"]
    >>> theory["risk"].round(4).tolist()
    [0.2835, 5.2229]
    """
    settings = Settings.of(
        model,
        d=d,
        r=r,
        subspaces=subspaces,
        noise=noise,
        family=family,
        toward=toward,
        n=n,
        angles_deg=angles_deg,
        context_lengths=context_lengths,
        ranks=ranks,
        adapt_deg=adapt_deg,
        adapt_steps=adapt_steps,
        steps=steps,
        batch=batch,
        lr=lr,
        n_layer=n_layer,
        n_head=n_head,
        n_embd=n_embd,
        tokens=tokens,
        prompts=prompts,
        baselines=baselines,
        seed=seed,
        seeds=seeds,
    )
    if output is None and (resume or restart):
        raise RunError("incontext: resume and restart need the output folder of the run. Add output=...")
    where = _device(device)
    arguments = plain(dataclasses.asdict(settings))
    with ExitStack() as stack:
        run: Run | None = None
        if output is not None:
            run = stack.enter_context(
                Run.open(
                    output,
                    command="incontext run",
                    arguments={name: value for name, value in arguments.items() if name != "seed"},
                    seed=seed,
                    resume=resume,
                    restart=restart,
                )
            )
            if run.finished:
                return StudyResult.load(run.path)
        result = _Job(settings, progress, where, run).result(arguments)
        if output is not None:
            result.save(output)
        return result


def _device(device: torch.device | str) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # what torch raises where it was built without a device
        reason = str(error).splitlines()[0]
        raise DataError(f"study: device={str(device)!r} cannot be used ({reason}). Use 'cpu'.") from error


@dataclass
class _Job:
    """One call of `study` at work."""

    settings: Settings
    progress: Progress | None
    device: torch.device
    run: Run | None
    seconds: dict[str, float] = field(default_factory=dict)

    def tell(self, phase: str, done: int, total: int, text: str) -> None:
        if self.progress is not None:
            self.progress(phase, done, total, text)

    def result(self, arguments: dict[str, Any]) -> StudyResult:
        """Go through all seeds."""
        options = self.settings
        risks: list[dict[str, Any]] = []
        adapters: list[dict[str, Any]] = []
        weights: dict[str, Tensor] = {}
        losses: dict[str, list[float]] = {}
        for i in range(options.seeds):
            seed = options.seed + i
            tasks = options.tasks(seed)
            model, losses[str(seed)] = self.trained(tasks, seed)
            weights |= {f"{seed}/{name}": value.cpu() for name, value in model.state_dict().items()}
            weights[f"{seed}/bases"] = tasks.bases
            risks += self.kept(f"risks-{seed}", "measure", lambda: self.measure(model, tasks, seed))  # noqa: B023
            if options.ranks:
                adapters += self.kept(
                    f"adapters-{seed}",
                    "adapt",
                    lambda: self.adapt(model, tasks, seed),  # noqa: B023
                )
        report = {
            "format": FORMAT,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "settings": arguments,
            "sizes": options.sizes() if options.model == "gpt2" else None,
            "parameters": sum(value.numel() for value in model.parameters()),
            "variance": options.tasks(options.seed).variance,
            "risks": plain(risks),
            "adapters": plain(adapters),
            "losses": losses,
            "seconds": self.seconds,
            "versions": versions("peft") if options.model == "gpt2" else versions(),
        }
        report["sentence"] = sentence(report)
        return StudyResult(table(risks, RISKS), table(adapters, ADAPTERS), weights, report)

    def kept(
        self, name: str, phase: str, compute: Callable[[], list[dict[str, Any]]]
    ) -> list[dict[str, Any]]:
        """Return rows, of an earlier call where they are known."""
        path = None if self.run is None else self.run.work / f"{name}.json"
        begin = clock.perf_counter()
        if path is not None and path.exists():
            found = read_json(path)
            self.tell(phase, 1, 1, "done before")
        else:
            found = plain(compute())
            if path is not None:
                atomic_json(path, found)
        self.seconds[phase] = self.seconds.get(phase, 0.0) + clock.perf_counter() - begin
        return found

    def trained(self, tasks: SubspaceTasks, seed: int) -> tuple[Model, list[float]]:
        """Return the model of a seed, trained, and the mean losses along the way."""
        options, d = self.settings, self.settings.d
        if options.model == "optimal":
            attention = LinearAttention(d).double()
            best = optimal_weights(tasks.covariance, n=options.n, noise=options.noise)
            attention.load_state_dict({"W": best})
            return attention.to(self.device), []
        model: Model
        if options.model == "linear":
            model, schedule, clip = LinearAttention(d), "cosine", None
        else:
            model = PromptTransformer(d, **options.sizes(), seed=seed)
            schedule, clip = "onecycle", 1.0
        model.to(self.device)
        begin = clock.perf_counter()
        which = f"seed {seed}, " if options.seeds > 1 else ""
        history = train(
            model,
            tasks,
            steps=options.steps,
            n=options.n,
            batch=options.batch,
            lr=options.lr,
            schedule=schedule,  # type: ignore[arg-type]
            clip=clip,
            seed=seed,
            callback=lambda step, steps, loss: self.tell("train", step, steps, f"{which}loss {loss:.3g}"),
            directory=None if self.run is None else self.run.work / f"train-{seed}",
        )
        self.seconds["train"] = self.seconds.get("train", 0.0) + clock.perf_counter() - begin
        size = max(1, -(-len(history.objective) // 100))
        chunks = [history.objective[i : i + size] for i in range(0, len(history.objective), size)]
        return model, [sum(chunk) / len(chunk) for chunk in chunks]

    def measure(self, model: Model, tasks: SubspaceTasks, seed: int) -> list[dict[str, Any]]:
        """Return risks over angles and context lengths."""
        options = self.settings
        found = evaluate(
            model,
            tasks,
            angles_deg=options.angles_deg,
            context_lengths=options.context_lengths,
            toward=options.toward,  # type: ignore[arg-type]
            prompts=options.prompts,
            baselines=options.baselines,
            seed=seed,
            callback=lambda done, total: self.tell("measure", done, total, f"seed {seed}"),
        )
        return [{"seed": seed, **row} for row in found.to_dict("records")]

    def adapt(self, model: Model, tasks: SubspaceTasks, seed: int) -> list[dict[str, Any]]:
        """Return risks by rank of an adapter for turned tasks."""
        options = self.settings
        turned = tasks.rotated(options.adapt_deg, toward=options.toward, seed=seed)  # type: ignore[arg-type]
        n = max(options.context_lengths)
        rows = []

        def note(method: str, rank: int, found: float) -> None:
            row = {"seed": seed, "method": method, "angle_deg": options.adapt_deg, "n": n, "rank": rank}
            rows.append({**row, "risk": found, "relative": found / tasks.variance})

        for number, rank in enumerate(options.ranks):
            self.tell("adapt", number, len(options.ranks), f"seed {seed}, rank {rank}")
            if isinstance(model, LinearAttention):
                W = model.effective_weights().detach().double().cpu()
                where: dict[str, Any] = {"covariance": turned.covariance, "n": n, "noise": options.noise}
                note("closed form", rank, best_low_rank_update(W, rank=rank, **where).risk)
                found = train_low_rank_update(W, rank=rank, steps=options.adapt_steps, seed=seed, **where)
                note("trained", rank, found.risk)
            else:
                note("trained", rank, self.adapted(model, turned, rank, n, seed))
        self.tell("adapt", len(options.ranks), len(options.ranks), f"seed {seed}")
        return rows

    def adapted(self, model: PromptTransformer, turned: SubspaceTasks, rank: int, n: int, seed: int) -> float:
        """Return the risk of a transformer on turned tasks, after its adapters were trained on them."""
        from lowdim.incontext.peft import add_adapters

        options = self.settings
        adapted = add_adapters(model, rank=rank, seed=seed)
        train(
            adapted,
            turned,
            steps=options.adapt_steps,
            n=options.n,
            batch=options.batch,
            lr=options.lr,
            seed=seed,
            directory=None if self.run is None else self.run.work / f"adapt-{seed}-{rank}",
        )
        found = evaluate(
            adapted,
            turned,
            angles_deg=[0],
            context_lengths=[n],
            prompts=options.prompts,
            seed=seed,
            toward="anywhere",
        )
        return float(found["risk"].iloc[0])
