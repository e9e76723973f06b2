"""The model card README.md of a compressed model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from lowdim.compress.record import final_quality, final_speed, in_int8, library_of

__all__ = ["ARCHITECTURE", "model_card"]

ARCHITECTURE = "architecture"
"""Folder in that of a compressed diffusers model: the config.json from which diffusers builds the model."""

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
    name, library = type(model).__name__, library_of(model)
    if library == "diffusers":
        module = type(model).__module__
        first = f"from {'diffusers' if module.startswith('diffusers.') else module} import {name}\n"
        if dense:
            return f"{first}\nmodel = {name}.from_pretrained(FOLDER)"
        return (
            f"{first}from lowdim.compress import load_weights\n\n"
            f'config = {name}.load_config(FOLDER, subfolder="{ARCHITECTURE}")\n'
            f"model = load_weights({name}.from_config(config), FOLDER)"
        )
    if library == "pytorch":
        return (
            "from lowdim.compress import load_weights\n\n"
            f"model = load_weights({name}(...), FOLDER)  # built as before compression"
        )
    first = "" if dense else "import lowdim  # teaches transformers the compressed layers\n"
    return f"{first}from transformers import {name}\n\nmodel = {name}.from_pretrained(FOLDER)"


def _costs(report: Mapping[str, Any]) -> list[tuple[str, list[Any]]]:
    """Size and time of the original, of the model in the folder and, where that is int8, of the floats."""
    rows: list[tuple[str, list[Any]]] = []
    quantized = in_int8(report)
    for key, label in (("parameters", "parameters"), ("bytes", "weight file, bytes")):
        entry = report.get(key)
        if isinstance(entry, Mapping) and {"before", "after"} <= entry.keys():
            cells = [entry["before"], entry["after"]]
            # int8 has as many numbers as the float factors, in fewer bytes.
            rows.append((label, [*cells, entry.get("float", entry["after"])] if quantized else cells))
    speed = report.get("speed")
    speed = speed if isinstance(speed, Mapping) else {}
    for batch, entry in final_speed({**report, "speed": speed}).items():
        if isinstance(entry, Mapping) and {"before_ms", "after_ms"} <= entry.keys():
            cells = [entry["before_ms"], entry["after_ms"]]
            cells += [speed[batch]["after_ms"]] if quantized else []
            rows.append((f"milliseconds per forward, batch {batch}", cells))
    return rows


def _table(header: list[str], rows: list[tuple[str, list[Any]]]) -> list[str]:
    if not rows:
        return []
    return [
        f"| {' | '.join(header)} |",
        f"|---|{'---:|' * (len(header) - 1)}",
        *(f"| {label} | {' | '.join(map(_number, cells))} |" for label, cells in rows),
        "",
    ]


def _table_line(row: Mapping[str, Any]) -> str:
    """Return what became of an embedding table, in one line."""
    form = "in int8" if row["how"] == "int8" else f"as a product of rank {row['rank']}"
    size = row["bytes"]
    return (
        f"Embedding table `{row['name']}` {form}: {size['before']:,} to {size['after']:,} bytes, relative "
        f"error {row['relative_error']:.2%}."
    )


def model_card(model: nn.Module, report: Mapping[str, Any], *, dense: bool = False) -> str:
    """Return the Markdown text of the model card: how to load it, and what it gained and lost.

    Parameters
    ----------
    model : nn.Module
    report : mapping
        The contents of report.json, or a part of it.
    dense : bool
        The folder holds ordinary dense layers; the size and speed in the report are not those of this folder.

    Returns
    -------
    str
    """
    name = Path(str(report.get("model", type(model).__name__))).name
    library = library_of(model)
    # The Hub would tell people to load a compressed diffusers model with diffusers alone.
    shown = library if library == "transformers" or dense else "pytorch"
    lines = [
        "---",
        f"library_name: {shown}",
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
        integers = ", factors in int8" if report.get("quantize") and not dense else ""
        lines += [f"Method: {report['method']}{kept}{integers}.", ""]
    if not dense:
        lines += [line for row in report.get("embeddings") or [] for line in (_table_line(row), "")]
    lines += ["```python", _loading(model, dense), "```", ""]
    if dense:
        lines += [
            "All layers are multiplied out: ordinary dense weights, of the original's size and speed.",
            "",
        ]
    further = in_int8(report) and not dense
    names = ["compressed, int8 (this folder)", "float factors"] if further else ["compressed"]
    if not dense:
        lines += _table(["", "original", *names], _costs(report))
    quality = report.get("quality")
    if isinstance(quality, Mapping):
        final = final_quality(report)
        figures = [
            (label, [final[key], quality.get(key)] if further else [final[key]])
            for key, label in _QUALITY.items()
            if isinstance(final.get(key), int | float)
        ]
        lines += _table(["on held-out inputs", *(names if further else [""])], figures)
    lines += ["Every figure with its setting is in `report.json`.", ""]
    return "\n".join(lines)
