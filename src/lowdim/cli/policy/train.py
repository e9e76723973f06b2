"""``lowdim policy train``: Hybrid-GRPO and its baselines, in a run directory."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lowdim.cli import manners
from lowdim.cli.policy import options as o
from lowdim.cli.policy.derive import Compressed, compressed_share
from lowdim.cli.policy.options import option
from lowdim.errors import DataError

if TYPE_CHECKING:
    from lowdim.policy import HybridGRPOResult, Prompts

__all__ = ["finish", "register"]


class Method(StrEnum):
    """Methods on offer."""

    hybrid = "hybrid"
    kdrl = "kdrl"
    pods = "pods"
    grpo = "grpo"


class Structure(StrEnum):
    """Structures of a compressed copy."""

    lowrank = "lowrank"
    blast = "blast"


Small = Annotated[
    str,
    option(
        "--small",
        panel=o.MODELS,
        text="The model that writes: a folder, a Hub id, or compress:0.25 for a compressed copy of the large "
        "one (of --of, where there is no large one).",
        show_default=False,
    ),
]
Large = Annotated[
    str | None,
    option("--large", panel=o.MODELS, text="The model that learns beside it.", show_default=False),
]
Of = Annotated[
    str | None,
    option("--of", panel=o.MODELS, text="What compress: makes smaller; --large.", show_default=False),
]
Lora = Annotated[
    list[str] | None,
    option(
        "--lora",
        panel=o.MODELS,
        text="small:16 or large:64: train adapters of this rank only. Repeat it for both.",
        show_default=False,
    ),
]
StructureOption = Annotated[
    Structure, option("--structure", panel=o.MODELS, text="Of the compressed copy's matrices.")
]
HealSteps = Annotated[
    int, option("--heal-steps", panel=o.MODELS, text="Updates that heal the compressed copy.")
]
HealBatches = Annotated[
    int,
    option(
        "--heal-batches", panel=o.MODELS, text="Batches of 32 fresh samples for it, used again and again."
    ),
]
Evaluate = Annotated[
    str | None, option("--evaluate", panel=o.DATA, text="Prompts for the evaluation.", show_default=False)
]
HoldOut = Annotated[
    int | None,
    option("--hold-out", panel=o.DATA, text="Or set so many of the data aside for it.", show_default=False),
]
MethodOption = Annotated[
    Method,
    option(
        "--method",
        panel=o.METHOD,
        text="hybrid: both learn. kdrl: the large one is a frozen teacher. pods, grpo: one model.",
    ),
]
Preset = Annotated[
    str | None,
    option(
        "--preset",
        panel=o.METHOD,
        text="paper, math-1.5b or llama-1b: values of the paper; improved: ours. Options go before them.",
        show_default=False,
    ),
]
Alpha = Annotated[
    float | None,
    option("--alpha", panel=o.METHOD, text="Weight of the large model's opinion: 1.", show_default=False),
]
HintTokens = Annotated[
    int | None,
    option(
        "--hint-tokens",
        panel=o.METHOD,
        text="First tokens that the large model writes, in the first epoch: 0.",
        show_default=False,
    ),
]
Steps = Annotated[int, option("--steps", panel=o.METHOD, text="Updates.")]
ContinueSteps = Annotated[
    int,
    option("--continue-steps", panel=o.METHOD, text="Updates of the large model alone, by GRPO, afterwards."),
]
PromptsPerStep = Annotated[
    int, option("--prompts-per-step", panel=o.METHOD, text="Prompts of an update, on each device.")
]
Slices = Annotated[
    int, option("--slices", panel=o.METHOD, text="Micro-batches that an update is cut into, for memory.")
]
Rate = Annotated[
    float | None,
    option("--lr", panel=o.METHOD, text="Learning rate of both models: 1e-6.", show_default=False),
]
LargeRate = Annotated[
    float | None, option("--large-lr", panel=o.METHOD, text="Of the large one.", show_default=False)
]
Compaction = Annotated[
    bool,
    option(
        "--compaction", panel=o.METHOD, text="Leave rollouts that teach nothing out of updates (lossless)."
    ),
]
Staged = Annotated[
    int | None,
    option(
        "--staged-rollouts",
        panel=o.METHOD,
        text="With --method grpo: so many rollouts first, the others only of prompts that failed.",
        show_default=False,
    ),
]
Set = Annotated[
    list[str] | None,
    option(
        "--set",
        panel=o.METHOD,
        text="Any setting of the trainer, NAME=VALUE, such as ratio_cap=3. Repeat it.",
        show_default=False,
    ),
]
EvalSteps = Annotated[
    int | None,
    option(
        "--eval-steps", panel=o.RUN, text="Steps between evaluations: a fifth of all.", show_default=False
    ),
]
EvalSamples = Annotated[int, option("--eval-samples", panel=o.RUN, text="Completions per prompt in one.")]
SaveSteps = Annotated[int, option("--save-steps", panel=o.RUN, text="Steps between checkpoints.")]
ReportTo = Annotated[
    str,
    option("--report-to", panel=o.RUN, text="Loggers of transformers: tensorboard, wandb, trackio, ..."),
]
Vllm = Annotated[
    bool, option("--vllm", panel=o.RUN, text="Let a vLLM engine on the same device write the rollouts.")
]
Against = Annotated[
    Path | None,
    option("--against", panel=o.RUN, text="Folder of another run, to stand beside it.", show_default=False),
]
Output = Annotated[
    Path,
    option(
        "--output", "-o", panel=o.RUN, text="Folder for both models, tables and report.", show_default=False
    ),
]
Resume = Annotated[bool, option("--resume", panel=o.RUN, text="Go on with the run in OUT.")]
Restart = Annotated[bool, option("--restart", panel=o.RUN, text="Throw the run in OUT away and begin anew.")]


def register(group: typer.Typer) -> None:
    """Add ``train`` to the group."""

    @group.command("train")
    def train(
        small: Small,
        data: o.Data,
        reward: o.Rewards,
        output: Output,
        large: Large = None,
        of: Of = None,
        lora: Lora = None,
        structure: StructureOption = Structure.lowrank,
        heal_steps: HealSteps = 100,
        heal_batches: HealBatches = 50,
        evaluate: Evaluate = None,
        hold_out: HoldOut = None,
        split: o.Split = None,
        prompt_column: o.PromptColumn = None,
        answer_column: o.AnswerColumn = None,
        template: o.Template = o.TemplateName.plain,
        method: MethodOption = Method.hybrid,
        preset: Preset = None,
        candidates: o.Candidates = None,
        keep_rollouts: o.Keep = None,
        alpha: Alpha = None,
        hint_tokens: HintTokens = None,
        steps: Steps = 100,
        continue_steps: ContinueSteps = 0,
        prompts_per_step: PromptsPerStep = 8,
        slices: Slices = 1,
        max_tokens: o.Length = None,
        lr: Rate = None,
        large_lr: LargeRate = None,
        compaction: Compaction = False,
        staged_rollouts: Staged = None,
        set_: Set = None,
        eval_steps: EvalSteps = None,
        eval_samples: EvalSamples = 4,
        save_steps: SaveSteps = 50,
        report_to: ReportTo = "none",
        vllm: Vllm = False,
        against: Against = None,
        seed: o.Seed = 0,
        device: o.Device = "auto",
        resume: Resume = False,
        restart: Restart = False,
        json: manners.JsonOption = False,
    ) -> None:
        """Train a small and a large language model at once: only the small one writes.

        Both models, tables and report.html are in OUT at the end. --resume goes on with a run that was
        stopped. Before a long one, ask `lowdim policy plan` whether it pays.
        """
        share = compressed_share(small)
        source = _source(share, small, large, of)
        given = {
            "method": method.value,
            "candidates": candidates,
            "keep_rollouts": keep_rollouts,
            "alpha": alpha,
            "hint_tokens": hint_tokens,
            "max_completion_length": max_tokens,
            "learning_rate": lr,
            "large_learning_rate": large_lr,
            "staged_rollouts": staged_rollouts,
        }
        with o.calm(), manners.phases() as progress:
            progress("read", 0, 1, data)
            from lowdim.policy import codistill
            from lowdim.policy.data import split_prompts

            settings = _settings(given, preset, set_ or [])
            settings |= {"max_steps": steps, "seed": seed, "save_steps": save_steps, "compaction": compaction}
            settings |= {
                "report_to": report_to,
                "use_cpu": _on_cpu(device),
                **_batch(settings, prompts_per_step, slices),
            }
            if vllm:
                settings |= {"use_vllm": True, "vllm_mode": "colocate"}
            rewards, settings["reward_weights"] = o.rewards_of(reward)
            chat = o.chat_of(source)
            how: dict[str, Any] = {"prompt": prompt_column, "answer": answer_column, "template": template}
            prompts = o.read(data, split=split, chat=chat, **how)
            held: Prompts | None = None
            if evaluate is not None:
                held = o.read(evaluate, split=split, chat=chat, **how)
            elif hold_out is not None:
                prompts, held = split_prompts(prompts, evaluation=hold_out, seed=seed)
            start: Any = small
            if share is not None:
                start = Compressed(
                    share,
                    of=source,
                    prompts=prompts,
                    structure=structure.value,
                    heal_steps=heal_steps,
                    heal_batches=heal_batches,
                    max_completion_length=settings["max_completion_length"],
                    seed=seed,
                    device=device,
                )
            adapters = _adapters(lora or [])
            result = codistill(
                start,
                large=large,
                rewards=rewards,
                train=prompts,
                evaluate=held,
                config=settings,
                output=output,
                continue_steps=continue_steps,
                eval_steps=eval_steps,
                eval_samples=eval_samples,
                small_peft_config=adapters.get("small"),
                large_peft_config=adapters.get("large"),
                progress=progress if _first() else None,
                resume=resume,
                restart=restart,
            )
        if _first():
            finish(result, output, against, json)


def finish(result: HybridGRPOResult, output: Path, against: Path | None, json: bool) -> None:
    """Add how it was called to report.json, write the page, and show the finding.

    Parameters
    ----------
    result : HybridGRPOResult
    output : Path
        The run directory.
    against : Path, optional
        Another run.
    json : bool

    Raises
    ------
    typer.Exit
        With code 1, if a guard has stopped the run.
    """
    from lowdim.policy import HybridGRPOResult
    from lowdim.report import policy_page
    from lowdim.runs import atomic_json

    other = None if against is None else HybridGRPOResult.load(against).report
    report = {**result.report, "command": manners.typed(), "output": str(output)}
    atomic_json(output / "report.json", report)
    policy_page(report, against=other).write(output / "report.html")
    if json:
        manners.emit(report)
    else:
        from lowdim.cli.policy.show import show_run

        show_run(report, output)
    if report.get("stopped"):
        raise typer.Exit(manners.GATE_FAILED)


def _source(share: float | None, small: str, large: str | None, of: str | None) -> str:
    """Return the model whose tokenizer counts: the small one, or what it is made from."""
    if share is None:
        if of is not None:
            raise DataError(f"--of {of}: it names what --small compress:... is made from. Leave it out.")
        return small
    found = of or large
    if found is None:
        raise DataError(f"--small {small}: compressed from what? Add --large MODEL, or --of MODEL.")
    return found


def _settings(given: dict[str, Any], preset: str | None, pairs: list[str]) -> dict[str, Any]:
    """Return the settings: options before presets, ``--set`` before both."""
    from lowdim.policy.settings import preset as settings_with

    settings = {name: value for name, value in given.items() if value is not None}
    settings |= dict(o.value_of(pair) for pair in pairs)
    if preset is not None:
        settings = settings_with(preset, settings)
    return {"candidates": 14, "keep_rollouts": 8, "max_completion_length": 256, **settings}


def _batch(settings: dict[str, Any], prompts: int, slices: int) -> dict[str, Any]:
    """Return rows per device and micro-batch, for so many prompts per update."""
    name = "keep_rollouts" if settings["method"] == "grpo" else "candidates"
    rows = prompts * settings[name]
    if prompts < 1 or slices < 1 or rows % slices:
        raise DataError(
            f"--prompts-per-step {prompts} --slices {slices}: {rows} rollouts of an update cannot be cut "
            f"into {slices} equal micro-batches. Use slices that divide {rows}."
        )
    return {"per_device_train_batch_size": rows // slices, "gradient_accumulation_steps": slices}


def _adapters(given: list[str]) -> dict[str, Any]:
    """Return LoRA configurations of ``small:16`` and ``large:64``."""
    found: dict[str, Any] = {}
    for text in given:
        name, _, rank = text.partition(":")
        if name not in ("small", "large") or not rank.isdigit() or int(rank) < 1:
            raise DataError(f"--lora {text}: expected small:RANK or large:RANK, such as large:64.")
        from peft import LoraConfig

        found[name] = LoraConfig(
            r=int(rank), lora_alpha=2 * int(rank), target_modules="all-linear", task_type="CAUSAL_LM"
        )
    return found


def _on_cpu(device: str) -> bool:
    import torch

    if device not in ("auto", "cpu", "cuda"):
        raise DataError(
            f"--device {device}: expected auto, cpu or cuda (choose one of several by CUDA_VISIBLE_DEVICES)."
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise DataError("--device cuda: torch sees no GPU. Use cpu, or `lowdim doctor` to see why.")
    return device == "cpu" or not torch.cuda.is_available()


def _first() -> bool:
    """Whether this process is the first of its job, which shows and writes."""
    import os

    return int(os.environ.get("RANK", "0")) == 0
