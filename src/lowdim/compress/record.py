"""The record of a compression: the parts of report.json, and the quality gates."""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from lowdim.errors import DataError

__all__ = [
    "check_gates",
    "dtype_name",
    "final_quality",
    "final_speed",
    "gates",
    "in_int8",
    "library_of",
    "machine",
    "plain",
]


def plain(value: Any) -> Any:
    """Return a JSON-ready copy; numbers that are not finite become None.

    Parameters
    ----------
    value : object
        Nested dictionaries, lists and numbers.

    Returns
    -------
    object

    Examples
    --------
    >>> plain({"perplexity_after": float("inf"), "inputs": 3.0})
    {'perplexity_after': None, 'inputs': 3.0}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def machine(device: torch.device) -> dict[str, Any]:
    """Return what the figures were measured on.

    Parameters
    ----------
    device : torch.device

    Returns
    -------
    dict
    """
    cuda = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "cuda": cuda,
    }


def _processor() -> str:
    """Return the name of the processor; Linux tells it in a file only."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            found = next((line for line in file if line.startswith("model name")), "")
    except OSError:
        found = ""
    return found.partition(":")[2].strip() or platform.processor() or platform.machine()


def check_gates(
    task: str, name: str, min_cosine: float | None, max_perplexity_increase: float | None
) -> None:
    """Refuse a gate that this kind of model has no figure for.

    Parameters
    ----------
    task : str
        From `task_of`.
    name : str
        Class of the model.
    min_cosine, max_perplexity_increase : float or None
        The gates.

    Raises
    ------
    DataError
        If the gate does not fit the model or its threshold is impossible.
    """
    if min_cosine is not None:
        if not -1 <= min_cosine <= 1:
            raise DataError(f"compress: min_cosine={min_cosine} must be in [-1, 1], for example 0.9.")
        if task != "embedding":
            raise DataError(
                f"compress: the gate min_cosine compares embeddings, and {name} is measured as {task!r}. "
                + ("Use max_perplexity_increase." if task in ("causal", "masked") else "Leave it out.")
            )
    if max_perplexity_increase is not None:
        if not max_perplexity_increase >= 0:
            raise DataError(
                f"compress: max_perplexity_increase={max_perplexity_increase} must not be negative; 0.1 is "
                "10 %."
            )
        if task not in ("causal", "masked"):
            raise DataError(
                f"compress: the gate max_perplexity_increase is for language models, and {name} is measured "
                f"as {task!r}. {'Use min_cosine.' if task == 'embedding' else 'Leave it out.'}"
            )


def gates(
    quality: Mapping[str, Any], min_cosine: float | None, max_perplexity_increase: float | None
) -> list[dict[str, Any]]:
    """Judge the quality gates.

    Parameters
    ----------
    quality : mapping
        "quality" of the report. A figure that is missing or not finite fails its gate.
    min_cosine, max_perplexity_increase : float or None
        Thresholds; None is no gate.

    Returns
    -------
    list of dict
        name, threshold, value, passed.

    Examples
    --------
    >>> gates({"cosine": 0.93}, 0.9, None)
    [{'name': 'min-cosine', 'threshold': 0.9, 'value': 0.93, 'passed': True}]
    """
    judged = []
    if min_cosine is not None:
        value = quality.get("cosine")
        passed = value is not None and value >= min_cosine
        judged.append({"name": "min-cosine", "threshold": min_cosine, "value": value, "passed": passed})
    if max_perplexity_increase is not None:
        value = quality.get("perplexity_increase")
        passed = value is not None and value <= max_perplexity_increase
        judged.append(
            {
                "name": "max-perplexity-increase",
                "threshold": max_perplexity_increase,
                "value": value,
                "passed": passed,
            }
        )
    return judged


def in_int8(report: Mapping[str, Any]) -> bool:
    """Whether the model that was written holds its factors in int8, and was measured so.

    "quality" and "speed" of the report are of the float factors even then; `final_quality` and `final_speed`
    give those of the written model.

    Parameters
    ----------
    report : mapping
        The contents of report.json.

    Returns
    -------
    bool

    Examples
    --------
    >>> in_int8({"quantize": None}), in_int8({"quantize": "int8", "int8": {"compressed": {"bytes": 9}}})
    (False, True)
    """
    return bool(report.get("quantize") and (report.get("int8") or {}).get("compressed"))


def final_speed(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the times of the model that was written: in int8, if that was asked for.

    Parameters
    ----------
    report : mapping
        The contents of report.json.

    Returns
    -------
    mapping
        Batch size -> before_ms, after_ms, ratio (that of a measurement turn by turn).

    Examples
    --------
    >>> speed = {"1": {"before_ms": 4.0, "after_ms": 2.0, "ratio": 2.0}}
    >>> quantized = {"compressed": {"speed": {"1": {"ms": 5.0, "ratio": 0.8}}}}
    >>> final_speed({"quantize": "int8", "speed": speed, "int8": quantized})
    {'1': {'before_ms': 4.0, 'after_ms': 5.0, 'ratio': 0.8}}
    """
    speed = report.get("speed") or {}
    if not in_int8(report):
        return speed
    rows = report["int8"]["compressed"].get("speed") or {}
    return {
        size: {"before_ms": speed[size]["before_ms"], "after_ms": row["ms"], "ratio": row["ratio"]}
        for size, row in rows.items()
        if size in speed
    }


def final_quality(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the figures of the model that was written: in int8, if that was asked for.

    Parameters
    ----------
    report : mapping
        The contents of report.json.

    Returns
    -------
    mapping
    """
    if report.get("int8"):
        return report["int8"]["compressed"]["quality"]
    return report["quality"]


def library_of(model: nn.Module) -> Literal["transformers", "diffusers", "pytorch"]:
    """Return the library whose files the model is saved as and loaded from.

    Parameters
    ----------
    model : Module

    Returns
    -------
    {"transformers", "diffusers", "pytorch"}
        "pytorch" for whatever is neither, also if it has a ``save_pretrained`` of its own.

    Examples
    --------
    >>> library_of(nn.Linear(2, 2))
    'pytorch'
    """
    # Where there is a model of transformers, this is imported; for other models transformers is not needed.
    modeling = sys.modules.get("transformers.modeling_utils")
    if modeling is not None and isinstance(model, modeling.PreTrainedModel):
        return "transformers"
    if any(base.__module__.partition(".")[0] == "diffusers" for base in type(model).__mro__):
        return "diffusers"
    return "pytorch"


def dtype_name(model: nn.Module) -> str:
    """Return the dtype of most parameters, without the name of the library.

    Parameters
    ----------
    model : Module

    Returns
    -------
    str

    Examples
    --------
    >>> dtype_name(nn.Linear(2, 2))
    'float32'
    """
    counts: dict[torch.dtype, int] = {}
    for parameter in model.parameters():
        counts[parameter.dtype] = counts.get(parameter.dtype, 0) + parameter.numel()
    return str(max(counts, key=lambda kind: counts[kind])).removeprefix("torch.") if counts else "none"
