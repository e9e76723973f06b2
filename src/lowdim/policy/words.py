"""What a run found, in sentences, and the card that goes with each model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["NAMES", "model_card", "sentence"]

NAMES = {
    "hybrid": "Hybrid-GRPO (CoDistill-GRPO in the paper)",
    "kdrl": "KDRL (a frozen large model as the teacher)",
    "pods": "PODS (one model, on G of its M rollouts)",
    "grpo": "GRPO (one model)",
}
"""Methods as people read them."""


def sentence(report: Mapping[str, Any]) -> str:
    """Return the finding of a run in a few sentences.

    Parameters
    ----------
    report : mapping
        The contents of report.json.

    Returns
    -------
    str

    Examples
    --------
    >>> row = {"phase": "train", "model": "small", "error": 0.01}
    >>> rows = [{**row, "step": 0, "accuracy": 0.2}, {**row, "step": 100, "accuracy": 0.5}]
    >>> sentence({"settings": {"method": "grpo"}, "steps": {"train": 100}, "evaluations": rows})
    "GRPO for 100 steps: the model's accuracy went from 20.0 % to 50.0 % (standard error 1.0)."
    """
    settings, steps = report["settings"], report.get("steps") or {}
    method = NAMES.get(settings["method"], settings["method"]).partition(" (")[0]
    alone = settings["method"] in ("grpo", "pods")
    rows = report.get("evaluations") or []
    told = []
    for name in ("small", "large"):
        own = [row for row in rows if row["model"] == name and row["phase"] == "train"]
        who = "the model" if alone else f"the {name} model"
        if len(own) > 1:
            told.append(
                f"{who}'s accuracy went from {_percent(own[0])} to {_percent(own[-1])}{_error(own[-1])}"
            )
        elif own:
            told.append(f"{who} was frozen at {_percent(own[0])}")
    trained = f"{method} for {_steps(steps.get('train', 0))}"
    text = f"{trained}: {', '.join(told)}." if told else f"{trained}; nothing was evaluated."
    after = [row for row in rows if row["phase"] == "continue"]
    if after:
        text += (
            f" After {_steps(steps['continue'], 'more ')} of GRPO on its own rollouts the large model's is "
            f"{_percent(after[-1])}{_error(after[-1])}."
        )
    if report.get("stopped"):
        text += f" The run was stopped: {report['stopped']}."
    return text


def model_card(report: Mapping[str, Any], name: str) -> str:
    """Return the Markdown text that lies beside a trained model.

    Parameters
    ----------
    report : mapping
        The contents of report.json.
    name : {"small", "large"}

    Returns
    -------
    str
    """
    settings = report["settings"]
    source = settings.get(name) or settings.get("small")
    lines = ["---", "library_name: transformers", "tags:", "- lowdim", "- reinforcement-learning", "---", ""]
    lines += [f"# {Path(str(source)).name}, trained by {NAMES[settings['method']].partition(' (')[0]}", ""]
    lines += [report["sentence"], ""]
    lines += [f"Method: {NAMES[settings['method']]}. Rewards: {', '.join(settings['rewards'])}.", ""]
    own = [row for row in report["evaluations"] if row["model"] == name]
    if own:
        lines += ["| phase | step | accuracy | greedy |", "|---|---:|---:|---:|"]
        for row in own:
            greedy = "" if row.get("greedy") is None else f"{row['greedy']:.3f}"
            lines.append(f"| {row['phase']} | {row['step']} | {row['accuracy']:.3f} | {greedy} |")
        lines.append("")
    lines += ["```python", "import lowdim  # for models that lowdim compress has made", ""]
    lines += ["from transformers import AutoModelForCausalLM", ""]
    lines += ["model = AutoModelForCausalLM.from_pretrained(FOLDER)", "```", ""]
    return "\n".join(lines)


def _steps(count: int, which: str = "") -> str:
    return f"{count:,} {which}{'step' if count == 1 else 'steps'}"


def _percent(row: Mapping[str, Any]) -> str:
    return f"{100 * row['accuracy']:.1f} %"


def _error(row: Mapping[str, Any]) -> str:
    error = row.get("error")
    return "" if error is None else f" (standard error {100 * error:.1f})"
