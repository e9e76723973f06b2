"""Claims about the economies of plain GRPO: compaction loses nothing, staged rollouts need fewer of them."""

from __future__ import annotations

import functools
import statistics
import tempfile
import time
from typing import TYPE_CHECKING, Any

from lowdim.claims.declare import Measurement, Trial, Unavailable, claim

if TYPE_CHECKING:
    from lowdim.claims.bandit import Setting
    from lowdim.claims.products import World

__all__: list[str] = []

OWN = "own; the economies are not part of the published algorithm"
TEXT = (
    "Three products modulo 50 in a text (claims/products.py), Llama of 163,264 parameters warmed up on noisy"
    " labels, learning rate 1e-3, loss dapo, through TRL."
)
BANDIT = (
    "Neural bandit (claims/bandit.py): 196 questions, 50 answers, three right answers for a reward, exact"
    " reward on 2,000 held-out prompts, 12,000 rollouts, means of 8 seeds that share one warmed-up network."
)


# Compaction


@functools.cache
def world() -> World:
    """Warm up the text task, once."""
    try:
        import trl  # noqa: F401
    except ImportError as missing:
        raise Unavailable("needs trl (extra [policy])") from missing
    from lowdim.claims.products import World

    return World(0)


def _measure_compaction(trial: Trial) -> dict[str, Any]:
    """Gradient and time of one batch of 64 prompts of 4 rollouts, with and without its flat groups."""
    import torch

    from lowdim.claims.products import trainer_of
    from lowdim.policy.compaction import compact

    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(world(), folder, group=4, prompts=64, steps=1, seed=trial.seed)
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))

        def gradient(batch: dict[str, Any]) -> torch.Tensor:
            trainer.model.zero_grad()
            trainer._compute_loss(trainer.model, batch).backward()
            return torch.cat([weight.grad.flatten().clone() for weight in trainer.model.parameters()])

        differences = {}
        for loss_type in ("dapo", "grpo", "dr_grpo", "bnpo"):
            trainer.loss_type = loss_type
            (small,), found = compact([batch], loss_type=loss_type)
            whole = gradient(batch)
            differences[loss_type] = float((gradient(small) - whole).norm() / whole.norm())
        seconds: dict[str, list[float]] = {"whole": [], "compacted": []}
        for _ in range(4 if trial.quick else 15):
            for name, each in (("whole", batch), ("compacted", small)):
                start = time.process_time()
                gradient(each)
                seconds[name].append(time.process_time() - start)
    ratios = [after / before for before, after in zip(seconds["whole"], seconds["compacted"], strict=True)]
    return {"differences": differences, "kept": found.share, "time": statistics.median(ratios)}


def _compaction(trial: Trial) -> dict[str, Any]:
    found: dict[str, Any] = trial.share("economies-compaction", lambda: _measure_compaction(trial))
    return found


@claim(
    "economies.gradient",
    statement="Leaving out rows without advantage keeps the gradient of TRL's losses dapo, grpo, dr_grpo and"
    " bnpo: largest relative difference",
    source=OWN,
    setting=f"{TEXT} One batch of 64 prompts of 4 rollouts, float32.",
    at_most=1e-5,
    seeds=(0, 1, 2),
)
def gradient(trial: Trial) -> Measurement:
    found = _compaction(trial)
    return Measurement(max(found["differences"].values()), found)


@claim(
    "economies.backward",
    statement="Without the rows of flat groups forward and backward pass take less time: ratio",
    source=OWN,
    setting="The same batches, of which 42 to 55 % of the rows are left; median of 15 pairs.",
    at_most=0.65,
    seeds=(0, 1, 2),
)
def backward(trial: Trial) -> Measurement:
    found = _compaction(trial)
    return Measurement(found["time"], found, judged=not trial.quick)


@claim(
    "economies.step",
    statement="Compaction saves processor time of a whole step through TRL: time over TRL's",
    source=OWN,
    setting=f"{TEXT} 16 prompts of 4 rollouts, TRL's trainer and ours in turn, median over 3 seeds.",
    at_most=0.88,
)
def step(trial: Trial) -> Measurement:
    from lowdim.claims.products import trainer_of

    steps, ratios, seconds = 20 if trial.quick else 60, [], []
    for seed in (0,) if trial.quick else (0, 1, 2):
        spent = {}
        for plain in (True, False) if seed % 2 else (False, True):
            with tempfile.TemporaryDirectory() as folder:
                options: dict[str, Any] = {} if plain else {"compaction": True}
                trainer = trainer_of(
                    world(), folder, plain=plain, group=4, prompts=16, steps=steps, seed=seed, **options
                )
                start = time.process_time()
                trainer.train()
                spent[plain] = (time.process_time() - start) / steps
        ratios.append(spent[False] / spent[True])
        seconds.append([spent[True], spent[False]])
    return Measurement(
        statistics.median(ratios), {"ratios": ratios, "seconds": seconds}, judged=not trial.quick
    )


# Staged rollouts through TRL


def _texts(trial: Trial) -> dict[str, Any]:
    def compute() -> dict[str, Any]:
        from lowdim.claims.products import staged_run

        steps, seeds = (21, (0,)) if trial.quick else (120, range(5))
        found = {}
        for name, first in (("all", None), ("staged", 2)):
            runs = [staged_run(world(), first, steps=steps, seed=seed, every=steps // 3) for seed in seeds]
            found[name] = {
                "tokens": [run.tokens[-1] / steps for run in runs],
                "two_thirds": [run.rewards[1] for run in runs],
                "final": [run.rewards[2] for run in runs],
            }
        return found

    found: dict[str, Any] = trial.share("economies-texts", compute, seeded=False)
    return found


TEXTS = f"{TEXT} 16 prompts of 4 rollouts, 2 in the first stage, 120 steps, both with compaction, 5 seeds."


@claim(
    "economies.tokens",
    statement="Staged rollouts write fewer tokens per step: over those of all rollouts",
    source=OWN,
    setting=TEXTS,
    at_most=0.82,
)
def tokens(trial: Trial) -> Measurement:
    found = _texts(trial)
    ratio = statistics.fmean(found["staged"]["tokens"]) / statistics.fmean(found["all"]["tokens"])
    return Measurement(ratio, found, judged=not trial.quick)


@claim(
    "economies.texts",
    statement="The reward at the end is not below that of all rollouts by more than .03: difference",
    source=OWN,
    setting=TEXTS + " Equal steps, not equal tokens.",
    at_least=-0.03,
)
def texts(trial: Trial) -> Measurement:
    found = _texts(trial)
    difference = statistics.fmean(found["staged"]["final"]) - statistics.fmean(found["all"]["final"])
    return Measurement(difference, found, judged=not trial.quick)


@claim(
    "economies.texts-tokens",
    statement="At equal tokens the reward is not below that of all rollouts by more than .02: difference",
    source=OWN,
    setting=TEXTS + " Staged after 120 steps, all rollouts after 80: as many tokens within 1 %.",
    at_least=-0.02,
)
def texts_tokens(trial: Trial) -> Measurement:
    found = _texts(trial)
    difference = statistics.fmean(found["staged"]["final"]) - statistics.fmean(found["all"]["two_thirds"])
    return Measurement(difference, found, judged=not trial.quick)


# Staged rollouts in the neural bandit


def _settings() -> dict[str, Setting]:
    from lowdim.claims.bandit import Setting

    return {
        "all": Setting(group=8, prompts=8, rate=8e-3),
        "staged": Setting(group=8, prompts=8, rate=8e-3, first=2),
        "default": Setting(group=8, prompts=8, rate=8e-3, first=4),
        "chance": Setting(group=8, prompts=8, rate=8e-3, first=2, random_stop=True),
    }


def _compare(trial: Trial, ours: str, figure: str, *, other: str = "all", number: int = 3) -> Measurement:
    from lowdim.claims.bandit import against

    settings = _settings()
    return against(trial, settings[ours], settings[other], figure, number=number)


PAIR = f"{BANDIT} 8 prompts of 8 rollouts, learning rate 8e-3, 2 in the first stage, no audits."


@claim(
    "economies.bandit-80",
    statement="Staged rollouts need fewer rollouts to a reward of .80: over those of GRPO",
    source=OWN,
    setting=PAIR,
    at_most=0.82,
)
def bandit_80(trial: Trial) -> Measurement:
    return _compare(trial, "staged", "0.8")


@claim(
    "economies.bandit-90",
    statement="Staged rollouts need fewer rollouts to a reward of .90: over those of GRPO",
    source=OWN,
    setting=PAIR,
    at_most=0.75,
)
def bandit_90(trial: Trial) -> Measurement:
    return _compare(trial, "staged", "0.9")


@claim(
    "economies.bandit-final",
    statement="After the same rollouts the reward is higher: difference",
    source=OWN,
    setting=PAIR,
    at_least=0.005,
)
def bandit_final(trial: Trial) -> Measurement:
    return _compare(trial, "staged", "final")


@claim(
    "economies.bandit-sigma",
    statement="The three differences are no chance: the smallest in standard errors",
    source=OWN,
    setting=PAIR,
    at_least=3.0,
)
def bandit_sigma(trial: Trial) -> Measurement:
    sigmas = {
        figure: _compare(trial, "staged", figure).details["sigma"] for figure in ("0.8", "0.9", "final")
    }
    return Measurement(min(sigmas.values()), sigmas, judged=not trial.quick)


def _worlds(trial: Trial, figure: str) -> Measurement:
    """Compare in other worlds; the worst of them."""
    found = {number: _compare(trial, "staged", figure, number=number) for number in (1, 7, 11)}
    values = [each.value for each in found.values()]
    worst = min(values) if figure == "final" else max(values)
    details = {str(number): {"value": each.value, **each.details} for number, each in found.items()}
    return Measurement(worst, details, judged=not trial.quick)


WORLDS = f"{PAIR} Three other worlds (questions, labels, first weights); the worst of them."


@claim(
    "economies.worlds-90",
    statement="The saving does not hang on the world: rollouts to .90 over those of GRPO, the largest",
    source=OWN,
    setting=WORLDS,
    at_most=0.75,
)
def worlds_90(trial: Trial) -> Measurement:
    return _worlds(trial, "0.9")


@claim(
    "economies.worlds-final",
    statement="Nor does the reward at the end: difference, the smallest",
    source=OWN,
    setting=WORLDS,
    at_least=0.005,
)
def worlds_final(trial: Trial) -> Measurement:
    return _worlds(trial, "final")


def _best(trial: Trial, level: str) -> Measurement:
    """Compare the best staged setting with the best of GRPO, each at its own batch and rate."""
    from lowdim.claims.bandit import Setting, mean_of

    plain = [
        *(Setting(8, 8, rate) for rate in (4e-3, 8e-3, 16e-3)),
        *(Setting(8, prompts, 8e-3) for prompts in (4, 6)),
        *(Setting(4, prompts, 8e-3) for prompts in (8, 16)),
    ]
    staged = [Setting(8, 8, 8e-3, 2), Setting(8, 8, 16e-3, 2), Setting(8, 4, 8e-3, 2)]
    means = [
        {str(setting): mean_of(trial, setting, level)[0] for setting in several}
        for several in (staged, plain)
    ]
    ours, other = (min(several.values()) for several in means)
    # As text, for JSON has no infinity.
    shown = [{name: f"{mean:.0f}" for name, mean in several.items()} for several in means]
    details = {"staged": shown[0], "all": shown[1]}
    return Measurement(ours / other, details, judged=not trial.quick)


STRICT = (
    f"{BANDIT} The best of 3 staged settings against the best of 7 of GRPO (groups of 4 and 8, 4 to 16"
    " prompts, learning rates 4e-3 to 16e-3): more updates per rollout explain a part of the saving, not this"
    " one."
)


@claim(
    "economies.strict-80",
    statement="Staged rollouts against the best-tuned GRPO: rollouts to .80",
    source=OWN,
    setting=STRICT,
    at_most=0.88,
)
def strict_80(trial: Trial) -> Measurement:
    return _best(trial, "0.8")


@claim(
    "economies.strict-90",
    statement="Staged rollouts against the best-tuned GRPO: rollouts to .90",
    source=OWN,
    setting=STRICT,
    at_most=0.75,
)
def strict_90(trial: Trial) -> Measurement:
    return _best(trial, "0.9")


CHANCE = (
    f"{BANDIT} The control stops as many groups, drawn at random: what it saves is the effect of more updates"
    " per rollout, not of the choice."
)


@claim(
    "economies.chance-80",
    statement="Groups stopped at random: rollouts to .80 over those of GRPO (no claim; a control)",
    source=OWN,
    setting=CHANCE,
)
def chance_80(trial: Trial) -> Measurement:
    return _compare(trial, "chance", "0.8")


@claim(
    "economies.chance-90",
    statement="Groups stopped at random: rollouts to .90 over those of GRPO (no claim; a control)",
    source=OWN,
    setting=CHANCE,
)
def chance_90(trial: Trial) -> Measurement:
    return _compare(trial, "chance", "0.9")


@claim(
    "economies.choice-90",
    statement="Solved groups stopped instead of random ones: rollouts to .90 over those of the control",
    source=OWN,
    setting=CHANCE,
)
def choice_90(trial: Trial) -> Measurement:
    return _compare(trial, "staged", "0.9", other="chance")


HALF = f"{BANDIT} 8 prompts of 8 rollouts, learning rate 8e-3, 4 in the first stage (half, as recommended)."


@claim(
    "economies.default-80",
    statement="With half of the rollouts in the first stage: rollouts to .80 over those of GRPO",
    source=OWN,
    setting=HALF,
    at_most=0.88,
)
def default_80(trial: Trial) -> Measurement:
    return _compare(trial, "default", "0.8")


@claim(
    "economies.default-90",
    statement="With half of the rollouts in the first stage: rollouts to .90 over those of GRPO",
    source=OWN,
    setting=HALF,
    at_most=0.82,
)
def default_90(trial: Trial) -> Measurement:
    return _compare(trial, "default", "0.9")


@claim(
    "economies.default-final",
    statement="With half of the rollouts in the first stage the reward at the end is not lower: difference",
    source=OWN,
    setting=HALF,
    at_least=0.0,
)
def default_final(trial: Trial) -> Measurement:
    return _compare(trial, "default", "final")
