"""``lowdim policy evaluate``: how often a model is right."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lowdim.cli import manners
from lowdim.cli.policy import options as o
from lowdim.cli.policy.options import option
from lowdim.errors import DataError, RunError

__all__ = ["register"]

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A folder or a Hub id.", show_default=False)
]
Samples = Annotated[int, option("--samples", panel=o.METHOD, text="Completions of each prompt.")]
Temperature = Annotated[float, option("--temperature", panel=o.METHOD, text="Of sampling.")]
Limit = Annotated[
    int | None, option("--limit", panel=o.DATA, text="Take the first so many prompts.", show_default=False)
]
Batch = Annotated[int, option("--batch", panel=o.RUN, text="Completions written at a time.")]
Output = Annotated[
    Path | None,
    option("--output", "-o", panel=o.RUN, text="Folder for figures and completions.", show_default=False),
]


def register(group: typer.Typer) -> None:
    """Add ``evaluate`` to the group."""

    @group.command("evaluate")
    def evaluate(
        model: ModelArgument,
        data: o.Data,
        reward: o.Rewards,
        split: o.Split = None,
        prompt_column: o.PromptColumn = None,
        answer_column: o.AnswerColumn = None,
        template: o.Template = o.TemplateName.plain,
        limit: Limit = None,
        samples: Samples = 8,
        temperature: Temperature = 1.0,
        max_tokens: o.Length = 256,
        batch: Batch = 32,
        output: Output = None,
        seed: o.Seed = 0,
        device: o.Device = "auto",
        json: manners.JsonOption = False,
    ) -> None:
        """Sample completions of every prompt, reward them, and count: mean, greedy, pass@k, with errors."""
        if output is not None and output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise RunError(f"{output} is not empty. Choose a new folder with -o.")
        with o.calm(), manners.phases() as progress:
            progress("read", 0, 1, model)
            import lowdim.policy as room
            from lowdim.policy.phases import quiet
            from lowdim.policy.rewards import total_reward
            from lowdim.policy.sources import tokenizer_of

            rewards, weights = o.rewards_of(reward)
            tokenizer = tokenizer_of(model)
            how: dict[str, Any] = {"prompt": prompt_column, "answer": answer_column, "template": template}
            chat = getattr(tokenizer, "chat_template", None) is not None
            prompts = o.read(data, split=split, chat=chat, limit=limit, **how)
            with quiet():
                found = room.evaluate_policy(
                    _load(model, device),
                    tokenizer,
                    prompts,
                    reward=rewards[0] if len(rewards) == 1 else total_reward(rewards, weights=weights),
                    samples=samples,
                    temperature=temperature,
                    max_completion_length=max_tokens or 256,
                    batch_size=batch,
                    seed=seed,
                    progress=lambda done, total: progress("write", done, total, "completions"),
                )
        if output is not None:
            found.save(output)
        if json:
            manners.emit(found.to_dict())
            return
        from lowdim.cli.policy.show import show_evaluation

        show_evaluation(found)
        if output is not None:
            manners.out.print(f"\nKept in: {output}", highlight=False, soft_wrap=True, markup=False)


def _load(model: str, device: str) -> Any:
    import torch

    from lowdim.policy.result import load_policy

    where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        return load_policy(model, dtype="auto").to(where)
    except (OSError, ValueError, RuntimeError, AssertionError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{model}: cannot be loaded as a causal language model on {where} ({reason}). Give a folder that "
            "save_pretrained has written, or a Hub id."
        ) from error
