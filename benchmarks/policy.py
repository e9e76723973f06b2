"""The time of a training step where decoding dominates: Hybrid-GRPO against GRPO on the large model."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.harness import Options, Row, Table, Timing, ratio
from lowdim.claims.steps import CANDIDATES, KEEP, LARGE, SMALL, Case, llama, measure

NAME = "policy"
DESCRIPTION = (
    "One step of `HybridGRPOTrainer` (a large and a small Llama with random weights, M = 14, G = 8) against "
    "one of TRL's `GRPOTrainer` on the large model (G = 8): prompts of 16 tokens, completions that always "
    "have their full length, rewards that leave no group flat, compaction off, float32, no checkpointing, "
    "one thread, transformers' generation. Saved is 1 - hybrid / GRPO over the paired repetitions: median "
    "(quartiles); the paper reports 18 % on H100s. Planned is what `lowdim policy plan` predicts from "
    "short probes, taken in every repetition. Seconds are those of the processor, which other work stretches "
    "less than the clock's."
)

CASES = (
    *((16, ("4:1", "8:1", "16:1"), 1), (64, ("4:1", "8:1", "16:1"), 1), (128, ("8:1",), 1)),
    *((256, ("8:1",), 1), (512, ("8:1",), 1), (64, ("8:1",), 4)),
)
"""Tokens of a completion, sizes, prompts of a step."""

WITHIN = 0.15
"""The plan is to be right within this part of the measured time."""


def run(options: Options) -> Table:
    """Measure all lengths and sizes."""
    cases = [
        case
        for length, sizes, prompts in (CASES[:2] if options.quick else CASES)
        for case in measure(length, sizes=sizes, repeats=options.repeats(3), prompts_per_step=prompts)
    ]
    return Table(NAME, DESCRIPTION, (*map(_row, cases), *_gpu(options)), _notes())


def _row(case: Case) -> Row:
    grpo, hybrid = Timing(case.grpo_large), Timing(case.hybrid)
    both = Timing(tuple(a + b for a, b in zip(case.grpo_large, case.grpo_small, strict=True)))
    saved, of_both = ratio(hybrid, other=grpo), ratio(hybrid, other=both)
    off = {method: case.off(method) for method in ("hybrid", "grpo_large", "grpo_small")}
    lengths = [plan.break_even for plan in case.plans if plan.break_even is not None]
    most = len(lengths) > len(case.plans) / 2
    prompts = "" if case.prompts == 1 else f", {case.prompts} prompts"
    return Row(
        case=f"{case.length} tokens, {case.sizes}{prompts}",
        cells={
            "GRPO large, s": f"{grpo.median:.2f}",
            "Hybrid-GRPO, s": f"{hybrid.median:.2f}",
            "saved, %": f"{_saved(saved.median)} ({_saved(saved.low)} to {_saved(saved.high)})",
            "planned, %": f"{100 * case.planned_saving:.0f}",
            "saved of GRPO on both, %": _saved(of_both.median),
            "plan off by, % (Hybrid, GRPO)": f"{100 * off['hybrid']:+.0f}, {100 * off['grpo_large']:+.0f}",
            "pays from, tokens": f"{statistics.median(lengths):.0f}" if most else "never",
        },
        figures={
            "length": case.length,
            "sizes": case.sizes,
            "prompts": case.prompts,
            "grpo_large": case.grpo_large,
            "grpo_small": case.grpo_small,
            "hybrid": case.hybrid,
            "wall": case.wall,
            "saving": case.saving,
            "planned_saving": case.planned_saving,
            "off": off,
            "phases": case.phases,
            "planned": [plan.step_seconds for plan in case.plans],
            "break_even": [plan.break_even for plan in case.plans],
        },
        met=max(abs(off["hybrid"]), abs(off["grpo_large"])) <= WITHIN,
    )


def _saved(times_faster: float) -> str:
    return f"{100 * (1 - 1 / times_faster):.0f}"


def _notes() -> tuple[str, ...]:
    def count(shape: Sequence[int]) -> str:
        return f"{sum(p.numel() for p in llama(*shape).parameters()) / 1e6:.2f}M"

    small = ", ".join(f"{name} {count(shape)}" for name, shape in SMALL.items())
    return (
        f"Threshold: the plan is right within {WITHIN:.0%} for both methods. The saving is reported.",
        f"Large: {count(LARGE)} parameters, width {LARGE[0]}, {LARGE[1]} layers. Small: {small}; as wide, "
        "and less deep.",
        "Each decoding step reads the weights, copies the keys and values of all rows, and calls some dozen "
        "kernels per layer, for few numbers each: that is why it takes long, and why Hybrid-GRPO saves. An "
        "inference engine, or more rows at once, makes decoding cheaper, and the saving smaller.",
    )


def _gpu(options: Options) -> tuple[Row, ...]:
    """Plan the paper's shapes on a GPU: Qwen2.5 1.5B and 7B, random weights, bfloat16, LoRA on the large."""
    if not torch.cuda.is_available():
        return ()
    from peft import LoraConfig
    from transformers import Qwen2Config

    from lowdim.policy import plan

    def qwen(width: int, inner: int, heads: int, keys: int, words: int, *, tied: bool) -> Any:
        return Qwen2Config(
            vocab_size=words,
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=28,
            num_attention_heads=heads,
            num_key_value_heads=keys,
            tie_word_embeddings=tied,
            max_position_embeddings=4096,
            pad_token_id=0,
            eos_token_id=1,
        )

    found = plan(
        qwen(1536, 8960, 12, 2, 151936, tied=True),
        qwen(3584, 18944, 28, 4, 152064, tied=False),
        [256],
        reward=None,
        candidates=CANDIDATES,
        keep_rollouts=KEEP,
        max_completion_length=512 if options.quick else 3072,
        prompts_per_step=8,
        dtype="bfloat16",
        large_peft_config=LoraConfig(r=64, target_modules="all-linear", task_type="CAUSAL_LM"),
        clock=time.perf_counter,
    )
    return (
        Row(
            case=f"planned on {torch.cuda.get_device_name()}: Qwen2.5 7B with LoRA and 1.5B, bfloat16",
            cells={
                "GRPO large, s": f"{found.total('grpo_large'):.1f}",
                "Hybrid-GRPO, s": f"{found.total('hybrid'):.1f}",
                "planned, %": f"{100 * found.saving:.0f}",
                "pays from, tokens": str(found.break_even or "never"),
            },
            figures={"planned": found.to_dict()},
        ),
    )
