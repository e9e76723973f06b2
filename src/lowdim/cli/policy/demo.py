"""``lowdim policy demo``: two small language models learn to add, in a few minutes on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lowdim.cli import manners
from lowdim.cli.policy import options as o
from lowdim.cli.policy.options import option

__all__ = ["register"]

Output = Annotated[
    Path,
    option("--output", "-o", panel=o.RUN, text="Folder for models, runs and report.", show_default=False),
]
Steps = Annotated[int, option("--steps", panel=o.METHOD, text="Updates of each of the two runs.")]
ContinueSteps = Annotated[
    int, option("--continue-steps", panel=o.METHOD, text="Updates of the large model alone afterwards.")
]
Quick = Annotated[
    bool,
    option(
        "--quick", panel=o.RUN, text="Models that learn nothing: to see in seconds that everything works."
    ),
]


def register(group: typer.Typer) -> None:
    """Add ``demo`` to the group."""

    @group.command("demo")
    def demo(
        output: Output,
        steps: Steps = 100,
        continue_steps: ContinueSteps = 25,
        quick: Quick = False,
        seed: o.Seed = 0,
        restart: Annotated[bool, option("--restart", panel=o.RUN, text="Do it again.")] = False,
        json: manners.JsonOption = False,
    ) -> None:
        """Let two small language models learn to add: Hybrid-GRPO beside GRPO on the large one.

        The models are made and taught a little first; then both methods train for as many steps, and the
        report sets them side by side. Stopped, it goes on where it was.
        """
        from lowdim.cli.policy.train import finish

        with o.calm(), manners.phases() as progress:
            progress("read", 0, 1, "two-digit addition")
            from lowdim.policy import codistill
            from lowdim.policy.demo import SIZES, TINY, write_world
            from lowdim.policy.phases import quiet
            from lowdim.policy.rewards import named_reward

            with quiet():
                world = write_world(
                    output / "world", sizes=TINY if quick else SIZES, seed=seed, progress=progress
                )
            given: dict[str, Any] = {
                "rewards": named_reward("exact"),
                "train": world.train,
                "evaluate": world.evaluate,
                "eval_samples": 4,
                "eval_batch": 256,
                "resume": not restart,
                "restart": restart,
            }
            settings: dict[str, Any] = {
                "max_steps": steps,
                "max_completion_length": 4,
                "learning_rate": 3e-4,
                "seed": seed,
                "use_cpu": True,
                "lr_scheduler_type": "constant",
            }
            prompts = 2 if quick else 16
            alone = codistill(
                world.large,
                config={**settings, "method": "grpo", "per_device_train_batch_size": 8 * prompts},
                output=output / "grpo",
                progress=_named(progress, "GRPO"),
                **given,
            )
            result = codistill(
                world.small,
                large=world.large,
                config={**settings, "per_device_train_batch_size": 14 * prompts},
                output=output / "hybrid",
                continue_steps=continue_steps,
                progress=_named(progress, "Hybrid"),
                **given,
            )
        if not json:
            manners.out.print(f"GRPO alone. {alone.summary()}\n", highlight=False, markup=False)
        finish(result, output / "hybrid", output / "grpo", json)


def _named(progress: Any, name: str) -> Any:
    """Tell the phases of the two runs apart."""
    return lambda phase, done, total, text: progress(f"{name}: {phase}", done, total, text)
