"""The phases of one compression. Each leaves its result in the run's work folder and finds it there again."""

from __future__ import annotations

import copy
import json
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lowdim.algebra import History, StructuredLinear
from lowdim.compress.allocate import allocate, curves, sensitivities
from lowdim.compress.calibrate import Moments, execution_groups
from lowdim.compress.card import model_card
from lowdim.compress.evaluate import evaluate, file_bytes, parameter_bytes, pooling_of, speed, task_of
from lowdim.compress.factorize import LayerOptions, factorize_layers
from lowdim.compress.inputs import Inputs
from lowdim.compress.layers import Layer, install_layers
from lowdim.compress.loading import Source
from lowdim.compress.plan import Plan
from lowdim.compress.ranks import Ranks
from lowdim.compress.record import dtype_name, final_quality, gates, library_of, machine, plain
from lowdim.compress.recover import recover
from lowdim.compress.result import CompressResult
from lowdim.compress.shrink import Table, install_tables, shrink_tables
from lowdim.compress.stored import calibrate, first_batches
from lowdim.compress.write import write_checkpoint
from lowdim.errors import DataError, LowdimWarning
from lowdim.runs import Run, atomic_json, atomic_tensors, atomic_write, read_json, read_tensors, versions

if TYPE_CHECKING:
    from lowdim.compress.pipeline import Options

__all__ = ["Job"]

SENSITIVITY_BATCHES = 4
"""Calibration batches on which the sensitivity of every layer is measured."""

PLAN_STEPS = 3
"""Steps of the phase "plan": the model, the inputs and layers, which layers the inputs reach."""

TIMED_TOKENS = 32
"""Tokens in the measurement of single layers."""


class Job:
    """One compression on its way: what is known so far, and the phases that add to it.

    Parameters
    ----------
    source : Source
        The original.
    options : Options
        The arguments of `compress` that decide the result.
    run : Run or None
        The run directory, or nothing is kept.
    ranks : Ranks
        The processes of the job.
    seed : int
        For everything random.
    progress, callback : callable or None
        See `compress`.
    """

    def __init__(
        self,
        source: Source,
        options: Options,
        run: Run | None,
        ranks: Ranks,
        seed: int,
        progress: Callable[[str, int, int, str], None] | None,
        callback: Callable[[Layer], None] | None,
    ) -> None:
        self.source, self.options, self.run, self.ranks = source, options, run, ranks
        self.seed, self.callback = seed, callback
        self._progress = progress
        self.task = task_of(source.model)
        self.inputs: Inputs
        self.plan: Plan
        self.seconds = dict.fromkeys(("plan", "calibrate", "factorize", "recover", "evaluate", "write"), 0.0)
        self.notes: list[str] = []
        self.layers: dict[str, list[Layer]] = {}
        self.plans: dict[str, Plan] = {}
        self.students: dict[str, nn.Module] = {}
        self.chosen = "uniform"
        self.allocation: dict[str, Any] | None = None
        self.history: History | None = None
        self.recovery: dict[str, Any] | None = None
        self.tables: list[Table] = []
        self.quality: dict[str, Any] = {}
        self.int8: dict[str, Any] | None = None
        self.speed: dict[str, Any] = {}

    # ----- what all phases use ------------------------------------------------------------------------

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the seconds of a phase; of the plan also show where it starts and ends."""
        start = time.perf_counter()
        # The other phases tell their own steps. Step 0 of this one, to load the model, comes before the job.
        planning = self.note(name) if name == "plan" else None
        if planning is not None:
            planning(1, PLAN_STEPS, "inputs and layers")
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start
        if planning is not None:
            planning(PLAN_STEPS, PLAN_STEPS)

    def note(self, phase: str) -> Callable[..., None]:
        """Return progress(done, total, text) of one phase."""

        def tell(done: int, total: int, text: str = "") -> None:
            if self._progress is not None:
                self._progress(phase, done, total, text)

        return tell

    def folder(self, name: str) -> Path | None:
        """Return (and make) a folder for work files; None without a run directory."""
        if self.run is None:
            return None
        path = self.run.work / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def kept(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return what an earlier, stopped run has computed, or compute and keep it."""
        if self.run is None:
            return plain(compute())
        path = self.run.work / f"{name}.json"
        if not path.exists():
            atomic_json(path, plain(compute()))
        return read_json(path)

    @property
    def student(self) -> nn.Module:
        """The compressed model."""
        return self.students[self.chosen]

    # ----- plan ---------------------------------------------------------------------------------------

    def drop_unreached(self) -> None:
        """Leave layers alone that no calibration input reaches."""
        self.first: dict[str, int] = {}
        if not self.inputs.calibration:
            return
        names = [layer.name for layer in self.plan.layers]
        self.note("plan")(2, PLAN_STEPS, "which layers the inputs reach")
        self.first = first_batches(self.source.model, self.inputs.calibration, names)
        silent = [name for name in names if name not in self.first]
        if len(silent) == len(names):
            raise DataError(
                f"compress: none of the {len(names)} layers (such as {names[0]!r}) runs on the calibration "
                "inputs. Give inputs that reach them."
            )
        if silent:
            self.plan = self.plan.without(silent, "no calibration input reaches it")
            text = (
                f"{len(silent)} layers are left alone because no calibration input reaches them "
                f"({', '.join(silent[:3])}{', ...' if len(silent) > 3 else ''}). Calibrate on more inputs."
            )
            warnings.warn(LowdimWarning(text), stacklevel=2)
            self.notes.append(text)

    # ----- calibrate and factorize --------------------------------------------------------------------

    def factorize(self) -> None:
        """Factorize the uniform plan and, if asked for, the allocated one."""
        self._factorize_plan("uniform", self.plan)
        if self.options.allocation == "uniform":
            return
        with self.phase("factorize"), self.ranks.together():
            shared = self._shared_plan() if self.ranks.first else None
        with self.ranks.together():  # the other processes read what the first has decided
            shared = shared or self._shared_plan()
        self._factorize_plan("error-curve", shared)

    def _shared_plan(self) -> Plan:
        tell = self.note("allocate")
        layers = self.layers["uniform"]
        losses = self.kept(
            "sensitivities",
            lambda: sensitivities(
                self.source.model, layers, self.inputs.calibration[:SENSITIVITY_BATCHES], progress=tell
            ),
        )
        moments, _ = self._moments() if self.options.method != "svd" else (None, [])
        shared, weights = allocate(self.plan, curves(self.source.model, self.plan, moments), losses)
        self.allocation = {"sensitivity": weights}
        return shared

    def _factorize_plan(self, name: str, plan: Plan) -> None:
        student = copy.deepcopy(self.source.model)
        self.plans[name], self.students[name] = plan, student
        if self.options.sequential:
            self.layers[name] = self._sequentially(name, plan, student)
            return
        moments = None
        if self.inputs.calibration:
            with self.phase("calibrate"), self.ranks.together():
                if self.ranks.first:
                    self._moments()
            moments, notes = self._moments()
            self.notes.extend(text for text in notes if text not in self.notes)
        with self.phase("factorize"):
            self.layers[name] = self._factorized(name, plan, moments, self.note("factorize"))
        install_layers(student, self.layers[name])

    def _moments(self) -> tuple[Moments, list[str]]:
        """Return the second moments of all layers of the uniform plan, taken once."""
        if not hasattr(self, "_taken"):
            self._taken = calibrate(
                self.source.model,
                self.inputs.calibration,
                [layer.name for layer in self.plan.layers],
                folder=self.folder("moments"),
                first=self.first,
                progress=self.note("calibrate"),
            )
        return self._taken

    def _factorized(
        self, name: str, plan: Plan, moments: Moments | None, tell: Callable[[int, int, str], None]
    ) -> list[Layer]:
        return factorize_layers(
            self.source.model,
            plan,
            moments,
            options=LayerOptions(self.options.sweeps, self.seed),
            folder=self.folder(f"layers-{name}"),
            ranks=self.ranks,
            device=next(self.source.model.parameters()).device,
            progress=tell,
            callback=self.callback,
        )

    def _sequentially(self, name: str, plan: Plan, student: nn.Module) -> list[Layer]:
        """Go through the network: take moments, factorize the layers with this input, put them in."""
        by_name = {layer.name: layer for layer in plan.layers}
        groups: list[tuple[str, ...]] = []
        for start in sorted(set(self.first.values())):
            members = [layer for layer in by_name if self.first[layer] == start]
            groups.extend(execution_groups(self.source.model, self.inputs.calibration[start], members))
        done: list[Layer] = []
        for number, group in enumerate(groups):
            folder = self.folder(f"moments-{name}/{number:04d}")

            def take(
                group: tuple[str, ...] = group, folder: Path | None = folder
            ) -> tuple[Moments, list[str]]:
                return calibrate(
                    student,
                    self.inputs.calibration,
                    group,
                    original=self.source.model,
                    folder=folder,
                    first=self.first,
                )

            with self.phase("calibrate"), self.ranks.together():
                self.note("calibrate")(number, len(groups), group[0])
                taken = take() if self.ranks.first else None
            moments, notes = taken or take()
            self.notes.extend(text for text in notes if text not in self.notes)

            def tell(now: int, _: int, text: str, before: int = len(done)) -> None:
                self.note("factorize")(before + now, len(by_name), text)

            with self.phase("factorize"):
                part = replace(plan, layers=tuple(by_name[member] for member in group))
                layers = self._factorized(name, part, moments, tell)
            install_layers(student, layers)
            done.extend(layers)
        self.note("calibrate")(len(groups), len(groups), "")
        found = {layer.plan.name: layer for layer in done}
        return [found[layer.name] for layer in plan.layers]

    # ----- choose, recover, shrink tables, evaluate -----------------------------------------------------

    def choose(self) -> None:
        """Keep the allocation with the better held-out quality."""
        if len(self.students) == 1:
            return
        with self.phase("evaluate"):
            figures = {name: self._quality(name, f"quality-{name}") for name in self.students}
        if _better(figures["error-curve"], figures["uniform"]):
            self.chosen = "error-curve"
        self.plan = self.plans[self.chosen]
        self.allocation = {**(self.allocation or {}), **figures, "chosen": self.chosen}
        for name in [name for name in self.students if name != self.chosen]:
            del self.students[name]

    def recover(self) -> None:
        """Distill the original into the compressed model, and keep what that gave unless it is worse."""
        if self.options.recover_steps == 0:
            return
        with self.phase("evaluate"):
            before = self._quality(self.chosen, f"quality-{self.chosen}")
        self.quality["before_recovery"] = before
        unrecovered = {name: value.clone() for name, value in self.student.state_dict().items()}
        with self.phase("recover"):
            self.history = self._recovered()
        with self.phase("evaluate"):
            after = self._quality(self.chosen, "quality-recovered")
        self.recovery = {"kept": not _better(before, after), "quality": after}
        if not self.recovery["kept"]:
            self.student.load_state_dict(unrecovered)
            text = (
                f"{self.options.recover_steps} steps of recovery made the model worse on held-out inputs, so "
                "the weights before it were kept. Use more steps, or more calibration text."
            )
            warnings.warn(LowdimWarning(text), stacklevel=2)
            self.notes.append(text)

    def _recovered(self) -> History:
        """Train the student in place, or read what an earlier run has trained."""
        done = None if self.run is None else self.run.work / "recovered.safetensors"
        if done is not None and done.exists():
            tensors, facts = read_tensors(done)
            self.student.load_state_dict(tensors)
            row = json.loads(facts["history"])
            return History(tuple(row["objective"]), tuple(row["residual"]), row["seconds"], row["reason"])
        tell = self.note("recover")
        loss = [float("nan")]

        def after(step: int, value: float) -> None:
            loss[0] = value

        def show(step: int, steps: int) -> None:
            tell(step, steps, f"loss {loss[0]:.4f}")

        history = recover(
            self.student,
            self.source.model,
            self.inputs.recovery or self.inputs.calibration,
            steps=self.options.recover_steps,
            seed=self.seed,
            task=self.task,
            pooling=pooling_of(self.source.folder),
            checkpoint=None if self.run is None else self.run.work / "recovery.safetensors",
            callback=after,
            progress=show,
        )
        self.student.eval()
        if done is not None:
            facts = {"history": json.dumps(history.to_dict())}
            atomic_tensors(done, self.student.state_dict(), facts)
        return history

    def shrink_tables(self) -> None:
        """Put the smaller embedding tables in, after the quality with the original ones was measured.

        They come last: calibration and recovery look at the linear layers, and train no table.
        """
        if not self.plan.tables:
            return
        with self.phase("evaluate"):
            self.quality["before_embeddings"] = self._quality(self.chosen, self._layers_quality())
        with self.phase("factorize"):
            self.tables = shrink_tables(
                self.student, self.plan.tables, folder=self.folder("tables"), progress=self.note("tables")
            )
            install_tables(self.student, self.tables)

    def evaluate(self) -> None:
        """Measure quality and speed against the original, of the model as it will be written."""
        with self.phase("evaluate"):
            name = "quality-embeddings" if self.tables else self._layers_quality()
            self.quality |= {**self._quality(self.chosen, name), "text": self.inputs.evaluated_on}
            tell = self.note("evaluate")
            names = [layer.name for layer in self.plan.layers]
            # int8 of the original is compared with what was done here: its tables are in int8 where ours are.
            rounded = [*names, *(table.name for table in self.plan.tables if table.how == "int8")]
            if self.options.quantize and self.inputs.evaluation:
                from lowdim.compress.torchao import compare_int8

                tell(1, 4, "int8")
                self.int8 = plain(
                    compare_int8(
                        self.source.model,
                        self.student,
                        self.inputs.evaluation,
                        names=rounded,
                        batch=self.inputs.timed,
                        task=self.task,
                        mask_token=self._mask_token(),
                        seed=self.seed,
                    )
                )
            if self.inputs.timed is not None:
                tell(2, 4, "speed")
                self.speed = plain(speed(self.source.model, self.student, self.inputs.timed))
            tell(3, 4, "speed of single layers")
            self.layer_times = _layer_times(self.source.model, self.student, names)
            tell(4, 4, "")

    def _layers_quality(self) -> str:
        """Return the name under which the quality with the compressed layers, but all tables, is kept."""
        recovered = self.recovery is not None and self.recovery["kept"]
        return "quality-recovered" if recovered else f"quality-{self.chosen}"

    def _quality(self, name: str, file: str) -> dict[str, Any]:
        if not self.inputs.evaluation:
            return {"task": self.task}
        self.note("evaluate")(0, 4, "quality on held-out inputs")
        return self.kept(
            file,
            lambda: evaluate(
                self.source.model,
                self.students[name],
                self.inputs.evaluation,
                task=self.task,
                mask_token=self._mask_token(),
                seed=self.seed,
            ),
        )

    def _mask_token(self) -> int | None:
        return getattr(self.source.tokenizer, "mask_token_id", None)

    # ----- write --------------------------------------------------------------------------------------

    def write(self, min_cosine: float | None, max_perplexity_increase: float | None) -> CompressResult:
        """Write the folder, then the report that knows its size."""
        with self.phase("write"):
            student = self.student
            report = self._report(student)
            if self.options.quantize:
                from lowdim.compress.torchao import int8

                student = int8(student)
                report["bytes"] |= {"after": parameter_bytes(student), "float": report["bytes"]["after"]}
            judged = gates(final_quality(report), min_cosine, max_perplexity_increase)
            report["gates"] = judged
            result = CompressResult(student, self.plan, report, self.history, self.source.processor)
            if self.run is None:
                return result
            tell = self.note("write")
            tell(0, 2, "model")
            out = self.run.path
            options: dict[str, Any] = {"tokenizer": self.source.processor, "source": self.source.folder}
            write_checkpoint(student, out, report=report, **options)
            report["bytes"]["after"] = file_bytes(out)
            if self.options.dense:
                tell(1, 2, "dense copy")
                # Of the model that was written, int8 included: "the same function" must be true.
                write_checkpoint(student, out / "dense", report=report, dense=True, **options)
        report["seconds"] = dict(self.seconds)
        atomic_json(out / "report.json", report)
        atomic_write(out / "README.md", model_card(student, report))
        self.note("write")(2, 2, "")
        return result

    def _report(self, student: nn.Module) -> dict[str, Any]:
        source, options = self.source, self.options
        device = next(source.model.parameters()).device
        layers = self.layers[self.chosen]
        numbers = self.plan.to_dict()["parameters"]
        numbers["after"] = sum(p.numel() for p in student.parameters())
        # Integers are no parameters to torch; they are numbers of the model all the same.
        numbers["after"] += sum(table.plan.parameters for table in self.tables if table.plan.how == "int8")
        stored = file_bytes(source.folder) if source.folder is not None else 0
        report: dict[str, Any] = {
            "format": 1,
            "model": source.name,
            "architecture": type(source.model).__name__,
            "library": library_of(source.model),
            "task": self.task,
            "method": options.method,
            "keep": options.keep,
            "blocks": options.blocks,
            "sweeps": options.sweeps,
            "allocation": self.chosen,
            "sequential": options.sequential,
            "seed": self.seed,
            "dtype": dtype_name(source.model),
            "device": str(device),
            "threads": torch.get_num_threads(),
            "created": (self.run.manifest["start"] if self.run else None)
            or datetime.now(UTC).isoformat(timespec="seconds"),
            "dense": False,
            "quantize": options.quantize,
            "parameters": numbers,
            "bytes": {"before": stored or parameter_bytes(source.model), "after": parameter_bytes(student)},
            "quality": self.quality,
            "speed": self.speed,
            "layers": [{**layer.to_dict(), **self.layer_times[layer.plan.name]} for layer in layers],
            "embeddings": [table.to_dict() for table in self.tables],
            "left_alone": [entry.to_dict() for entry in self.plan.left_alone],
            "calibration": self.inputs.about,
            "seconds": dict(self.seconds),
            "versions": versions(),
            "machine": machine(device),
            "notes": self._notes(layers),
        }
        if self.int8 is not None:
            report["int8"] = self.int8
        if self.allocation is not None:
            report["allocations"] = self.allocation
        if self.history is not None:
            report["recovery"] = {
                "steps": options.recover_steps,
                "batches": len(self.inputs.recovery or self.inputs.calibration),
                **self.history.to_dict(),
                **(self.recovery or {}),
            }
        return plain(report)

    def _notes(self, layers: list[Layer]) -> list[str]:
        notes = [*self.notes, *self.inputs.notes]
        told: dict[str, list[str]] = {}
        for layer in layers:
            for text in layer.history.notes:
                told.setdefault(text, []).append(layer.plan.name)
        notes += [
            f"{names[0]}{f' and {len(names) - 1} more layers' if len(names) > 1 else ''}: {text}"
            for text, names in told.items()
        ]
        if self.options.allocation == "error-curve" and self.chosen == "uniform":
            notes.append(
                "The error-curve allocation was not better on held-out inputs: the uniform one was kept."
            )
        if self.tables:
            notes.append(
                "The embedding tables were made smaller after everything else: figures before recovery, of "
                "the allocations and of single layers are with the original tables, all others with the "
                "smaller ones."
            )
        if self.options.quantize:
            notes.append(
                "The folder holds the factors in int8: bytes.after is its size, int8.compressed its quality "
                "and speed. Other figures (bytes.float, quality, speed, layers) are of the float factors."
            )
        if self.options.dense:
            notes.append("The folder dense/ holds the same function with ordinary layers.")
        return notes


def _better(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether the first quality is better, by the figure of the task."""
    for key, sign in (("cosine", 1), ("perplexity_after", -1), ("kl", -1), ("relative_error", -1)):
        if key in first or key in second:
            a, b = first.get(key), second.get(key)
            return a is not None and (b is None or sign * a > sign * b)
    return False


def _layer_times(
    original: nn.Module, student: nn.Module, names: list[str]
) -> dict[str, dict[str, float | None]]:
    """Time the layers, each kind once: milliseconds for 32 tokens, dense and compressed."""
    known: dict[str, dict[str, float | None]] = {}
    times = {}
    for name in names:
        before, after = original.get_submodule(name), student.get_submodule(name)
        assert isinstance(after, StructuredLinear)
        kind = json.dumps([after.operator.config(), type(before).__name__])
        if kind not in known:
            like = next(after.parameters())
            x = torch.ones(TIMED_TOKENS, after.in_features, dtype=like.dtype, device=like.device)
            timing = speed(before, after, x, batches=(TIMED_TOKENS,), repeats=9)[str(TIMED_TOKENS)]
            known[kind] = {"dense_ms": timing["before_ms"], "compressed_ms": timing["after_ms"]}
        times[name] = known[kind]
    return times
