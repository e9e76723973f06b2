"""Settings of a run: what the user says, what the trainer's defaults are, and named recipes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch

from lowdim.errors import DataError

__all__ = ["METHODS", "PAIRED", "PRESETS", "grpo_of", "managed", "preset", "settings_of", "telling"]

METHODS = ("hybrid", "kdrl", "pods", "grpo")
PAIRED = ("hybrid", "kdrl")
"""Methods with two models."""

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"candidates": 14, "keep_rollouts": 8, "alpha": 1.0, "selection": "both", "kd_estimator": "k1"},
    "improved": {
        "candidates": 14,
        "keep_rollouts": 8,
        "alpha": 1.0,
        "large_ratio": "truncated",
        "ratio_cap": 2.0,
    },
    "math-1.5b": {
        "candidates": 14,
        "keep_rollouts": 8,
        "alpha": 1.0,
        "learning_rate": 5e-6,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        "max_completion_length": 3072,
    },
    "llama-1b": {
        "candidates": 12,
        "keep_rollouts": 8,
        "alpha": 1.0,
        "learning_rate": 1e-7,
        "lr_scheduler_type": "constant",
        "max_completion_length": 3072,
    },
}
"""Values of the paper's table 4, for Qwen2.5-Math 1.5B and 7B, and for Llama 3.2-1B and 3.1-8B; "improved" is
ours: truncated ratios, with the large model at half the learning rate (see the claims)."""

LARGE_SHARE = {"improved": 0.5}
"""Learning rate of the large model as a share of the small one's, by preset."""

TRL_RATE = 1e-6
"""TRL's learning rate, where none is given."""

GRPO = {"loss_type": "dr_grpo", "scale_rewards": "none", "disable_dropout": True, "beta": 0.0}
"""Plain GRPO in the form that the method is compared with; TRL's own defaults are others."""

OURS = {"logging_steps": 1, "save_steps": 50, "report_to": "none", "max_steps": 100}
"""What a run does where the settings say nothing."""

MANAGED = ("output_dir", "disable_tqdm", "eval_strategy", "save_strategy", "log_completions", "push_to_hub")
"""Settings that a run directory decides itself."""

SILENT = {"output_dir", "logging_dir", "run_name", "report_to", "hub_token", "generation_batch_size"}
"""Settings that do not decide the result, or follow from others."""

PAIR_ONLY = {
    *("train_large", "alpha", "hint_tokens", "hint_epochs", "hint_ratio", "kd_place", "kd_estimator"),
    *("selection", "center", "large_ratio", "large_learning_rate", "large_scale_rewards", "ratio_cap"),
    *("score", "large_model_init_kwargs", "offload_large", "num_generations", "candidates"),
}
"""Settings that mean nothing where one model learns from all of its own rollouts."""


def preset(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a preset, under those that are given.

    Parameters
    ----------
    name : {"paper", "improved", "math-1.5b", "llama-1b"}
    given : mapping
        Settings that go before the preset's.

    Returns
    -------
    dict

    Raises
    ------
    DataError
        If there is no such preset.

    Examples
    --------
    >>> preset("improved", {"learning_rate": 2e-6})["large_learning_rate"]
    1e-06
    """
    if name not in PRESETS:
        raise DataError(f"--preset {name}: unknown. Use one of {', '.join(PRESETS)}.")
    found = {**PRESETS[name], **given}
    if name in LARGE_SHARE:
        rate = LARGE_SHARE[name] * found.get("learning_rate", TRL_RATE)
        found.setdefault("large_learning_rate", rate)
    return found


def settings_of(config: Any, kind: Any) -> dict[str, Any]:
    """Return the settings that differ from the trainer's defaults, by name."""
    if config is None:
        found: dict[str, Any] = {}
    elif isinstance(config, Mapping):
        known = {one.name for one in fields(kind)}
        if unknown := sorted(set(config) - known):
            raise DataError(
                f"codistill: config has no setting {unknown[0]!r}. Use those of HybridGRPOConfig, such as "
                "candidates, alpha, learning_rate, max_steps."
            )
        found = dict(config)
    elif isinstance(config, kind):
        found = {
            one.name: getattr(config, one.name) for one in fields(kind) if one.init and _differs(config, one)
        }
        found.pop("generation_batch_size", None)  # follows from steps_per_generation
    else:
        raise DataError(
            f"codistill: config is a {type(config).__name__}, expected a HybridGRPOConfig or a mapping."
        )
    for name in MANAGED:
        found.pop(name, None)
    if found.get("method") == "grpo" and not isinstance(config, kind):
        found = {**GRPO, **found}
    ours = {**OURS, "bf16": _bf16()} if not found.get("fp16") else dict(OURS)
    if "num_train_epochs" in found:
        ours.pop("max_steps")
    return {**{name: value for name, value in ours.items() if name not in found}, **found}


def _bf16() -> bool:
    """Whether to compute in bfloat16: on GPUs that know it; on CPUs it is slow."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def _differs(config: Any, one: Any) -> bool:
    value = getattr(config, one.name)
    default = one.default_factory() if one.default_factory is not MISSING else one.default
    return bool(value != default)


def managed() -> dict[str, Any]:
    """Return the settings that make a run silent and resumable."""
    return {"disable_tqdm": True, "eval_strategy": "no", "save_strategy": "steps", "save_total_limit": 2}


def grpo_of(args: Any, steps: int, folder: Path) -> Any:
    """Return settings of GRPO on one model, with G rollouts of as many prompts as before."""
    kind = type(args)
    found = {name: value for name, value in settings_of(args, kind).items() if name not in PAIR_ONLY}
    rows = args.per_device_train_batch_size * args.keep_rollouts // args.candidates
    found |= {**GRPO, "method": "grpo", "max_steps": steps, "keep_rollouts": args.keep_rollouts}
    found |= {"per_device_train_batch_size": max(1, rows)}
    found |= {"learning_rate": args.large_learning_rate or args.learning_rate}
    return kind(str(folder), **{**found, **managed()})


def telling(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that decide the result."""
    return {name: value for name, value in settings.items() if name not in SILENT}
