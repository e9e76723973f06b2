"""The figures of a policy report, each from dictionaries of report.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = [
    "Runs",
    "accuracy",
    "entropy",
    "groups",
    "ledger",
    "ratios",
    "reward",
    "sample_size",
    "who",
    "work_of",
]

Runs = Mapping[str, Mapping[str, Any]]
"""Reports by the name of their run; the first one is the report's own."""

WORK = {
    "hint": "hints by the large model",
    "generate": "generation",
    "reward": "rewards",
    "score_small": "scoring, small",
    "score_large": "scoring, large",
    "update_small": "update, small",
    "update_large": "update, large",
    "update": "update, the only model",
    "sync": "weights to the engine",
}
"""Kinds of work as people read them."""

ALONE = ("grpo", "pods")
"""Methods with one model."""

SMOOTH = 40
"""Points of a smoothed curve."""

MODEL_COLORS = {"small": "var(--after)", "large": "var(--warm)"}


def who(report: Mapping[str, Any], model: str) -> str:
    """Return how a model is called in its run: "small", "large", or "the model" where there is one only."""
    return "the model" if report["settings"]["method"] in ALONE else model


def work_of(report: Mapping[str, Any], phase: str) -> str:
    """Return the kind of work of a row of the ledger; a run of one model knows one update only."""
    alone = report["settings"]["method"] in ALONE
    return "update" if alone and phase == "update_small" else phase


def accuracy(runs: Runs) -> Figure | None:
    """Return accuracy over steps of every evaluated model, with standard errors; None without evaluations."""
    from plotly.graph_objects import Figure

    figure = Figure()
    for number, (name, report) in enumerate(runs.items()):
        rows = report.get("evaluations") or []
        alone = report["settings"]["method"] in ALONE
        ends = (report.get("steps") or {}).get("train") or 0
        for model in ("small", "large"):
            own = [row for row in rows if row["model"] == model]
            if not own:
                continue
            label = f"{name}" if alone else f"{name}, {model}"
            color = f"var(--c{number + 4})" if number else MODEL_COLORS[model]
            figure.add_scatter(
                x=[row["step"] + (ends if row["phase"] == "continue" else 0) for row in own],
                y=[row["accuracy"] for row in own],
                error_y={"array": [row.get("error") or 0.0 for row in own], "thickness": 1, "width": 3},
                mode="lines+markers",
                name=label,
                marker={"size": 7, "color": color},
                line={"width": 2, "color": color, "dash": "dot" if number else "solid"},
                hovertemplate="step %{x}: %{y:.1%}<extra>" + label + "</extra>",
            )
    if not figure.data:
        return None
    figure.update_xaxes(title_text="Step", rangemode="tozero")
    figure.update_yaxes(title_text="Accuracy", rangemode="tozero", tickformat=".0%")
    figure.update_layout(showlegend=True)
    return _with_end(figure, next(iter(runs.values())))


def reward(runs: Runs) -> Figure | None:
    """Return the mean reward of the rollouts of training over steps, smoothed."""
    return _lines(runs, {"reward": "reward of the rollouts"}, "Mean reward")


def groups(report: Mapping[str, Any]) -> Figure | None:
    """Return the shares of prompts of which all, none, or equally rewarded rollouts came."""
    keys = {
        "hybrid/frac_groups_all_zero": "all rollouts wrong",
        "hybrid/frac_groups_all_one": "all rollouts right",
        "hybrid/frac_groups_flat": "all rewards equal",
        "frac_reward_zero_std": "all rewards equal (TRL)",
    }
    if any("hybrid/frac_groups_flat" in row for row in report.get("metrics") or []):
        keys.pop("frac_reward_zero_std")
    return _lines({"": report}, keys, "Share of prompts", tickformat=".0%")


def ratios(report: Mapping[str, Any]) -> Figure | None:
    """Return importance ratios of the large model over steps: largest, 99 % quantile, mean."""
    keys = {
        "large/ratio/max": "largest",
        "large/ratio/p99": "99 % are below",
        "large/ratio/mean": "mean",
    }
    figure = _lines({"": report}, keys, "Ratio of probabilities, large to small", log=True)
    return figure


def sample_size(report: Mapping[str, Any]) -> Figure | None:
    """Return the effective sample size and the share of clipped tokens over steps."""
    keys = {
        "hybrid/ess": "effective sample size",
        "large/clip_ratio/low_mean": "clipped, bad rollouts",
        "large/clip_ratio/high_mean": "clipped, good rollouts",
    }
    return _lines({"": report}, keys, "Share", tickformat=".0%")


def entropy(report: Mapping[str, Any]) -> Figure | None:
    """Return the entropies of both models over steps, in nats per token."""
    keys = {"entropy": "small", "large/entropy": "large"}
    return _lines({"": report}, keys, "Entropy, nats per token")


def ledger(runs: Runs, quantity: str = "seconds") -> Figure | None:
    """Return where seconds (or operations) went: one bar per run, one part per kind of work."""
    from plotly.graph_objects import Figure

    figure = Figure()
    totals = {
        name: {
            work: sum(
                row[quantity] or 0.0
                for row in report.get("ledger") or []
                if work_of(report, row["phase"]) == work
            )
            for work in WORK
        }
        for name, report in runs.items()
    }
    scale = 1e9 if quantity == "flops" else 1.0
    for number, (work, label) in enumerate(WORK.items()):
        values = [totals[name][work] / scale for name in totals]
        if not any(values):
            continue
        figure.add_bar(
            y=list(totals),
            x=values,
            name=label,
            orientation="h",
            marker={"color": f"var(--c{number % 8 + 1})"},
            hovertemplate="%{x:.3g}<extra>" + label + "</extra>",
        )
    if not figure.data:
        return None
    figure.update_layout(barmode="stack", showlegend=True)
    figure.update_xaxes(title_text="Seconds" if quantity == "seconds" else "Operations, billions")
    figure.update_yaxes(automargin=True, autorange="reversed")
    return figure


def _lines(
    runs: Runs, keys: Mapping[str, str], title: str, *, tickformat: str | None = None, log: bool = False
) -> Figure | None:
    """Return logged figures over steps, one smoothed line each; None if none was logged."""
    from plotly.graph_objects import Figure

    figure = Figure()
    for number, (name, report) in enumerate(runs.items()):
        rows = report.get("metrics") or []
        for place, (key, label) in enumerate(keys.items()):
            for phase in ("train", "continue"):
                own = [row for row in rows if row.get("phase") == phase and row.get(key) is not None]
                if not own:
                    continue
                offset = (report.get("steps") or {}).get("train") or 0
                x = [row["step"] + (offset if phase == "continue" else 0) for row in own]
                label = who(report, label) if label in MODEL_COLORS else label
                shown = ", ".join(part for part in (name, label if len(keys) > 1 else "") if part) or label
                if phase == "continue":  # there the trainer's only model is the large one
                    shown = shown.replace("small", "large") + ", continued"
                steps, values = _smoothed(x, [row[key] for row in own])
                figure.add_scatter(
                    x=steps,
                    y=values,
                    mode="lines" if len(steps) > 1 else "markers",
                    name=shown,
                    line={
                        "width": 2,
                        "color": f"var(--c{(place + number) % 8 + 1})",
                        "dash": "dot" if phase == "continue" else "solid",
                    },
                    hovertemplate="step %{x}: %{y:.3g}<extra>" + shown + "</extra>",
                )
    if not figure.data:
        return None
    figure.update_xaxes(title_text="Step", rangemode="tozero")
    figure.update_yaxes(title_text=title, tickformat=tickformat)
    if log:
        figure.update_yaxes(type="log", dtick="D2")
    else:
        figure.update_yaxes(rangemode="tozero")
    figure.update_layout(showlegend=len(figure.data) > 1)
    return figure


def _smoothed(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return means over windows, so that at most `SMOOTH` points are left."""
    size = max(1, -(-len(x) // SMOOTH))
    chunks = [range(start, min(start + size, len(x))) for start in range(0, len(x), size)]
    return (
        [float(x[chunk[-1]]) for chunk in chunks],
        [sum(y[i] for i in chunk) / len(chunk) for chunk in chunks],
    )


def _with_end(figure: Figure, report: Mapping[str, Any]) -> Figure:
    """Mark where the method ended and the large model went on alone."""
    steps = report.get("steps") or {}
    if "continue" in steps:
        figure.add_vline(
            x=steps["train"],
            line={"width": 1, "dash": "dot"},
            annotation={"text": "continued alone", "showarrow": False},
        )
    return figure
