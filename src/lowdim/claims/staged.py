"""Claims about staged rollouts through TRL: half of the rollouts first, and what is forgotten."""

from __future__ import annotations

import statistics
from typing import Any

from lowdim.claims.declare import Measurement, Trial, claim
from lowdim.claims.economies import OWN, TEXT, world

__all__: list[str] = []

EVERY = 10
"""Steps from look to look."""


def _curves(trial: Trial, first: int | None, *, steps: int, seeds: int, **options: Any) -> list[Any]:
    """Return the curves of several seeds."""
    from lowdim.claims.products import staged_run

    steps, seeds = (10, 1) if trial.quick else (steps, seeds)
    return [
        staged_run(world(), first, steps=steps, seed=seed, every=EVERY, **options) for seed in range(seeds)
    ]


HALF = (
    f"{TEXT} 8 prompts of 8 rollouts, 4 of them in the first stage (half, as recommended), 210 steps; all "
    f"rollouts: 150 steps; both with compaction; 5 seeds, looked at every {EVERY} steps."
)


def _halves(trial: Trial) -> dict[str, Any]:
    def compute() -> dict[str, Any]:
        shape = {"group": 8, "prompts": 8, "seeds": 5}
        every, half = _curves(trial, None, steps=150, **shape), _curves(trial, 4, steps=210, **shape)
        # Both got this far, on every seed.
        tokens = min(curve.tokens[-1] for curve in every + half)
        return {
            "tokens": tokens,
            **{
                name: {
                    "tokens of the run": [curve.tokens[-1] for curve in curves],
                    "at equal tokens": [curve.at(tokens) for curve in curves],
                    "final": [curve.rewards[-1] for curve in curves],
                    "fall": [curve.fall for curve in curves],
                    "alarms": [curve.alarms for curve in curves],
                }
                for name, curves in (("all", every), ("half", half))
            },
        }

    found: dict[str, Any] = trial.share("staged-half", compute, seeded=False)
    return found


@claim(
    "staged.half-tokens",
    statement="With half of the rollouts in the first stage the reward at equal tokens is not below that of "
    "all rollouts by more than .02: difference",
    source=OWN,
    setting=HALF,
    at_least=-0.02,
)
def half_tokens(trial: Trial) -> Measurement:
    found = _halves(trial)
    ours, theirs = (statistics.fmean(found[name]["at equal tokens"]) for name in ("half", "all"))
    return Measurement(ours - theirs, found, judged=not trial.quick)


@claim(
    "staged.half-fall",
    statement="With half of the rollouts in the first stage the reward does not fall by more than .05 below "
    "its running best: largest fall of five runs",
    source=OWN,
    setting=HALF,
    at_most=0.05,
)
def half_fall(trial: Trial) -> Measurement:
    found = _halves(trial)
    return Measurement(max(found["half"]["fall"]), found, judged=not trial.quick)


@claim(
    "staged.forgetting",
    statement="With a quarter of the rollouts in the first stage a policy may forget what it could do; it "
    "was seen once in preparation and is not here: largest fall below the running best of three runs with "
    "the guard (without it, and of all rollouts, in the details)",
    source=OWN,
    setting=f"{TEXT.replace('1e-3', '5e-4')} 12 prompts of 8 rollouts, 2 in the first stage, 150 steps, all "
    f"with compaction; 3 seeds, looked at every {EVERY} steps.",
)
def forgetting(trial: Trial) -> Measurement:
    shape: dict[str, Any] = {"group": 8, "prompts": 12, "learning_rate": 5e-4, "seeds": 3}
    runs = {
        "all": _curves(trial, None, steps=150, **shape),
        "guarded": _curves(trial, 2, steps=150, **shape),
        "alone": _curves(trial, 2, steps=150, guarded=False, stage_audit=0.0, **shape),
    }
    details = {
        name: {
            "tokens": [curve.tokens[-1] for curve in curves],
            "best": [max(curve.rewards) for curve in curves],
            "final": [curve.rewards[-1] for curve in curves],
            "fall": [curve.fall for curve in curves],
            "alarms": [curve.alarms for curve in curves],
        }
        for name, curves in runs.items()
    }
    return Measurement(max(details["guarded"]["fall"]), details, judged=not trial.quick)
