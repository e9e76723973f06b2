"""Claims about `policy plan`: is its prediction right, and what does Hybrid-GRPO save."""

from __future__ import annotations

from typing import Any

from lowdim.claims.declare import Measurement, Trial, claim

__all__: list[str] = []

SETTING = (
    "Llamas with random weights, 12.7M (large) and 1.6M parameters, float32, one thread; one prompt of 16 "
    "tokens a step, M = 14, G = 8, {length} tokens in every completion; TRL's GRPOTrainer and "
    "HybridGRPOTrainer in turn, {repeats} times, seconds of the processor."
)
LENGTH, REPEATS = 96, 5


def steps(trial: Trial) -> dict[str, Any]:
    """Return savings and errors of the plan, measured once for both claims."""

    def compute() -> dict[str, Any]:
        from lowdim.claims.steps import measure

        (case,) = measure(LENGTH, sizes=("8:1",), repeats=3 if trial.quick else REPEATS)
        return {
            "saving": case.saving,
            "planned": case.planned_saving,
            "off": {method: case.off(method) for method in ("grpo_large", "grpo_small", "hybrid")},
            "seconds": {
                "grpo_large": case.grpo_large,
                "grpo_small": case.grpo_small,
                "hybrid": case.hybrid,
            },
            "break_even": [plan.break_even for plan in case.plans],
            "phases": case.phases,
            "planned_parts": [plan.step_seconds for plan in case.plans],
        }

    return dict(trial.share("plan-steps", compute, seeded=False))


@claim(
    "plan.prediction",
    statement="`policy plan` predicts the time of a step from short probes: largest relative error of GRPO on"
    " the large model and Hybrid-GRPO (median over the repetitions)",
    source="own measurement; the arithmetic is ours",
    setting=SETTING.format(length=LENGTH, repeats=REPEATS),
    at_most=0.15,
)
def prediction(trial: Trial) -> Measurement:
    found = steps(trial)
    return Measurement(max(abs(found["off"][name]) for name in ("grpo_large", "hybrid")), found)


@claim(
    "plan.saving",
    statement="Share of the time of a step of GRPO on the large model that Hybrid-GRPO saves where decoding"
    " dominates",
    source="Kwon et al., CoDistill-GRPO, 2026",
    setting=SETTING.format(length=LENGTH, repeats=REPEATS)
    + " The paper's figure is for 7B and 1.5B parameters on H100s. Longer completions and other sizes are in"
    " benchmarks/results/policy.md.",
    paper="0.18",
)
def saving(trial: Trial) -> Measurement:
    found = steps(trial)
    return Measurement(found["saving"], found)
