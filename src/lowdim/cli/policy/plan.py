"""``lowdim policy plan``: what a run will cost and whether it will pay, measured on a few prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lowdim.cli import manners
from lowdim.cli.policy import options as o
from lowdim.cli.policy.options import option
from lowdim.errors import DataError

__all__ = ["register"]

Small = Annotated[str, option("--small", panel=o.MODELS, text="The model that writes.", show_default=False)]
Large = Annotated[str, option("--large", panel=o.MODELS, text="The model beside it.", show_default=False)]
ConfigOnly = Annotated[
    bool,
    option(
        "--config-only",
        panel=o.MODELS,
        text="Read configurations only and take random weights: times and memory, no prospects.",
    ),
]
OptionalData = Annotated[
    str | None,
    option(
        "--data",
        panel=o.DATA,
        text="Prompts with answers; not needed with --config-only.",
        show_default=False,
    ),
]
OptionalRewards = Annotated[
    list[str] | None,
    option(
        "--reward",
        panel=o.DATA,
        text="As in `train`; without any, times and memory only.",
        show_default=False,
    ),
]
PromptTokens = Annotated[
    int, option("--prompt-tokens", panel=o.DATA, text="Length of prompts where there are none.")
]
PromptsPerStep = Annotated[int, option("--prompts-per-step", panel=o.METHOD, text="Prompts of an update.")]
Rows = Annotated[int, option("--rows", panel=o.METHOD, text="Rows of a micro-batch.")]
Measured = Annotated[int, option("--prompts", panel=o.RUN, text="How many prompts are tried.")]
Repeats = Annotated[int, option("--repeats", panel=o.RUN, text="Timings of each part; medians are taken.")]
Output = Annotated[
    Path | None,
    option("--output", "-o", panel=o.RUN, text="File for the plan, JSON.", show_default=False),
]


def register(group: typer.Typer) -> None:
    """Add ``plan`` to the group."""

    @group.command("plan")
    def plan(
        small: Small,
        large: Large,
        config_only: ConfigOnly = False,
        data: OptionalData = None,
        reward: OptionalRewards = None,
        prompt_tokens: PromptTokens = 128,
        split: o.Split = None,
        prompt_column: o.PromptColumn = None,
        answer_column: o.AnswerColumn = None,
        template: o.Template = o.TemplateName.plain,
        candidates: o.Candidates = 14,
        keep_rollouts: o.Keep = 8,
        max_tokens: o.Length = 256,
        prompts_per_step: PromptsPerStep = 8,
        rows: Rows = 8,
        prompts: Measured = 64,
        repeats: Repeats = 3,
        output: Output = None,
        seed: o.Seed = 0,
        device: o.Device = "auto",
        json: manners.JsonOption = False,
    ) -> None:
        """Measure on a few prompts what Hybrid-GRPO will cost, and say whether it will pay.

        Seconds of a step beside those of GRPO on the large model, memory under several plans, how often the
        small model succeeds, and how far apart the two are. Nothing is trained.
        """
        if output is not None and not output.parent.is_dir():
            raise DataError(
                f"--output {output}: there is no folder {output.parent}. Make it, or choose another."
            )
        if data is None and reward:
            raise DataError("--reward: rewards need prompts. Add --data, or leave --reward out.")
        with o.calm(), manners.phases() as progress:
            progress("read", 0, 1, data or small)
            import lowdim.policy as room

            models = [_configuration(one) if config_only else one for one in (small, large)]
            entries: Any = [prompt_tokens] * prompts
            rewards = None
            if data is not None and not config_only:
                how: dict[str, Any] = {"prompt": prompt_column, "answer": answer_column, "template": template}
                entries = o.read(data, split=split, chat=o.chat_of(small), limit=prompts, **how).dataset
                rewards = o.rewards_of(reward)[0] if reward else None
            found = room.plan(
                models[0],
                models[1],
                entries,
                reward=rewards,
                candidates=candidates or 14,
                keep_rollouts=keep_rollouts or 8,
                max_completion_length=max_tokens or 256,
                prompts_per_step=prompts_per_step,
                rows=rows,
                prompts_measured=prompts,
                repeats=repeats,
                device=device,
                seed=seed,
                callback=lambda what, done, total: progress(what, done, total, ""),
            )
        if output is not None:
            found.save(output)
        if json:
            manners.emit(found.to_dict())
            return
        from lowdim.cli.policy.show import show_plan

        show_plan(found)
        if output is not None:
            manners.out.print(f"\nPlan: {output}", highlight=False, soft_wrap=True, markup=False)


def _configuration(model: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model)
    except Exception as error:  # the loader raises what its files and its transport raise
        raise DataError(
            f"{model}: no configuration can be read ({type(error).__name__}). Give a folder with a "
            "config.json, or a Hub id that can be reached."
        ) from error
