"""The model card README.md of a compressed model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

__all__ = ["model_card"]

_QUALITY = {
    "cosine": "mean cosine to the original embedding",
    "cosine_q05": "its 5 % quantile",
    "top1": "same nearest neighbor",
    "top10": "shared ten nearest neighbors",
    "perplexity_before": "perplexity of the original",
    "perplexity_after": "perplexity",
    "kl": "Kullback-Leibler divergence (nats)",
    "agreement": "agreement with the original class",
    "relative_error": "relative output error",
}


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _loading(model: nn.Module, dense: bool) -> str:
    name = type(model).__name__
    if not hasattr(model, "save_pretrained"):
        return (
            "from lowdim.compress import load_weights\n\n"
            f"model = load_weights({name}(...), FOLDER)  # built as before compression"
        )
    first = "" if dense else "import lowdim  # teaches transformers the compressed layers\n"
    return f"{first}from transformers import {name}\n\nmodel = {name}.from_pretrained(FOLDER)"


def model_card(model: nn.Module, report: Mapping[str, Any], *, dense: bool = False) -> str:
    """Return the Markdown text of the model card: how to load it, and what it gained and lost.

    Parameters
    ----------
    model : nn.Module
    report : mapping
        The contents of report.json, or a part of it.
    dense : bool
        The folder holds ordinary dense layers.

    Returns
    -------
    str
    """
    name = Path(str(report.get("model", type(model).__name__))).name
    rows: list[tuple[str, Any, Any]] = []
    for key, label in (("parameters", "parameters"), ("bytes", "weight file, bytes")):
        entry = report.get(key)
        if isinstance(entry, Mapping) and {"before", "after"} <= entry.keys():
            rows.append((label, entry["before"], entry["after"]))
    speed = report.get("speed")
    for batch, entry in (speed if isinstance(speed, Mapping) else {}).items():
        if isinstance(entry, Mapping) and {"before_ms", "after_ms"} <= entry.keys():
            rows.append((f"milliseconds per forward, batch {batch}", entry["before_ms"], entry["after_ms"]))
    lines = [
        "---",
        "library_name: transformers" if hasattr(model, "save_pretrained") else "library_name: pytorch",
        "tags:",
        "- lowdim",
        "- model-compression",
        "---",
        "",
        f"# {name}, compressed with lowdim",
        "",
    ]
    if "method" in report:
        kept = f", {100 * report['keep']:.0f} % of the weights kept" if "keep" in report else ""
        lines += [f"Method: {report['method']}{kept}.", ""]
    lines += ["```python", _loading(model, dense), "```", ""]
    if dense:
        lines += [
            "All layers are multiplied out: ordinary dense weights, of the original's size and speed.",
            "",
        ]
    if rows:
        lines += ["| | original | compressed |", "|---|---:|---:|"]
        lines += [f"| {label} | {_number(before)} | {_number(after)} |" for label, before, after in rows]
        lines.append("")
    quality = report.get("quality")
    figures = [
        (label, quality[key])
        for key, label in _QUALITY.items()
        if isinstance(quality, Mapping) and isinstance(quality.get(key), int | float)
    ]
    if figures:
        lines += ["| on held-out inputs | |", "|---|---:|"]
        lines += [f"| {label} | {_number(value)} |" for label, value in figures]
        lines.append("")
    lines += ["Every figure with its setting is in `report.json`.", ""]
    return "\n".join(lines)
