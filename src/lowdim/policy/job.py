"""A run at work: the method's phase, the large model's own phase, and what is written at the end."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lowdim.policy.data import Prompts
from lowdim.policy.evaluation import Evaluation
from lowdim.policy.phases import Callback, Examination, Phase, Progress
from lowdim.policy.result import FORMAT, MODELS, PARTS, HybridGRPOResult, load_policy
from lowdim.policy.settings import grpo_of
from lowdim.policy.sources import jsonable, processes
from lowdim.policy.words import model_card, sentence
from lowdim.runs import Run, atomic_write, plain, read_json, staged, versions

__all__ = ["Job"]


@dataclass
class Job:
    """One call of `codistill` at work."""

    run: Run
    rewards: list[Any]
    data: Prompts
    tokenizer: Any
    examination: Examination
    progress: Progress | None
    callback: Callback | None
    started: dict[str, Any]
    seconds: dict[str, float] = field(default_factory=dict)

    def phase(self, name: str, models: Mapping[str, str]) -> Phase:
        """Return a phase of this run, begun or not."""
        return Phase(name, self.run.work / name, self.examination, models, self.progress, self.callback)

    def train(self, small: Any, large: Any, args: Any, small_adapter: Any, large_adapter: Any) -> None:
        """Phase 1: the method."""
        phase = self.phase("train", {"small": "small", "large": "large"})
        if phase.finished:
            return
        self._work(
            phase,
            args,
            _path(small),
            _path(large),
            peft_config=small_adapter,
            large_peft_config=large_adapter,
        )

    def go_on(self, args: Any, steps: int) -> None:
        """Phase 2: plain GRPO on the large model, from where it is, with a fresh optimizer."""
        phase = self.phase("continue", {"small": "large"})
        if phase.finished:
            return
        where = self.run.work / "train" / "large"
        model = load_policy(where, **_trainable(where), **dict(args.large_model_init_kwargs or {}))
        self._work(phase, grpo_of(args, steps, self.run.work / "continue"), model, None)

    def _work(self, phase: Phase, args: Any, model: Any, large: Any, **adapters: Any) -> None:
        from lowdim.policy.trl import HybridGRPOTrainer

        begin = time.perf_counter()
        trainer = HybridGRPOTrainer(
            model,
            large=large,
            reward_funcs=self.rewards,
            args=args,
            train_dataset=self.data.dataset,
            processing_class=self.tokenizer,
            **adapters,
        )
        try:
            phase.run(trainer, self.tokenizer)
        finally:
            self.seconds[phase.name] = time.perf_counter() - begin

    def finish(self, arguments: dict[str, Any], method: str, seed: int) -> HybridGRPOResult:
        """Put models and tables into the run directory; every process returns the same."""
        state = processes()
        if state.is_main_process:
            self._write(arguments, method, seed)
        state.wait_for_everyone()
        return HybridGRPOResult.load(self.run.path)

    def _write(self, arguments: dict[str, Any], method: str, seed: int) -> None:
        phases = [self.phase(name, {}) for name in ("train", "continue")]
        records = {phase.name: phase.record() for phase in phases if phase.finished}
        rows = self._evaluations()
        report: dict[str, Any] = {
            "format": FORMAT,
            "system": "policy",
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "settings": {"method": method, "seed": seed, **jsonable(arguments)},
            "steps": {name: record["steps"] for name, record in records.items()},
            "prompts": {"train": len(self.data), "evaluate": len(self.examination.prompts or ())},
            "evaluations": rows,
            "metrics": [row for record in records.values() for row in record["metrics"] if "reward" in row],
            "ledger": [row for record in records.values() for row in record["ledger"]],
            "samples": self._samples(rows),
            "stopped": next((record["stopped"] for record in records.values() if record["stopped"]), None),
            "notes": list(self.data.notes),
            "start": self.started,
            "seconds": self.seconds,
            "versions": versions("trl", "peft", "accelerate"),
        }
        report["sentence"] = sentence(report)
        models = {"small": self.run.work / "train" / "small"}
        if (self.run.work / "train" / "large").is_dir() and method == "hybrid":
            models["large"] = self.run.work / "train" / "large"
        if "continue" in records:
            models["large"] = self.run.work / "continue" / "small"
        report = plain(report)
        with staged(self.run.path, names=PARTS, report=report) as beside:
            for name, folder in models.items():
                shutil.copytree(folder, beside / name, copy_function=_link)
                (beside / name / "README.md").unlink(missing_ok=True)
                atomic_write(beside / name / "README.md", model_card(report, name))
            result = HybridGRPOResult.of(None, None, report)
            tables = {"evaluations": result.table, "metrics": result.metrics, "ledger": result.ledger}
            for name, table in tables.items():
                atomic_write(beside / f"{name}.csv", table.to_csv(index=False))

    def _evaluations(self) -> list[dict[str, Any]]:
        """Return one row per evaluation, in the order of their steps."""
        rows = []
        for folder in self.examination.folder.glob("*-*-*"):
            phase, step, model = folder.name.split("-")
            found = read_json(folder / "evaluation.json")
            row = {"phase": phase, "step": int(step), "model": model}
            row |= {"accuracy": found["mean"], "error": found["error"], "greedy": found["greedy"]}
            row |= {"best_of": found["pass_at"][str(found["samples"])][0], "samples": found["samples"]}
            row |= {"truncated": found["truncated"], "length": found["length_mean"]}
            rows.append(row)
        order = ("train", "continue")
        return sorted(rows, key=lambda row: (order.index(row["phase"]), row["step"], row["model"] == "large"))

    def _samples(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return completions of the same prompts by each model before and after."""
        found = []
        for model in MODELS:
            own = [row for row in rows if row["model"] == model]
            for when, row in (("before", own[0]), ("after", own[-1])) if own else ():
                name = f"{row['phase']}-{row['step']}-{model}"
                for one in Evaluation.load(self.examination.folder / name).completions:
                    if one["sample"] in (0, "greedy"):
                        found.append({"model": model, "when": when, **one})
        return found


def _path(model: Any) -> Any:
    return os.fspath(model) if isinstance(model, os.PathLike) else model


def _trainable(folder: Path) -> dict[str, Any]:
    return {"is_trainable": True} if (folder / "adapter_config.json").is_file() else {}


def _link(source: str, target: str) -> None:
    """Give a file a second name, which costs nothing; copy it where file systems cannot."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
