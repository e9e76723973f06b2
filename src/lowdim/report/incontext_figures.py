"""The figures of an incontext report, each from dictionaries of report.json."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["PREDICTORS", "adapters", "contexts", "loss", "shift"]

Runs = Mapping[str, Mapping[str, Any]]
"""Reports by the name of their run, which is empty where there is one only."""

PREDICTORS = {
    "model": "measured",
    "theory": "theory",
    "zero": "always 0",
    "ridge": "ridge",
    "least squares": "least squares",
    "oracle": "oracle (knows the subspace)",
}
"""Predictors as people read them."""

COLORS = {
    "model": "var(--after)",
    "theory": "var(--after)",
    "zero": "var(--before)",
    "ridge": "var(--c2)",
    "least squares": "var(--c4)",
    "oracle": "var(--c3)",
}

TINY = 1e-12
"""Risks of exact predictors are drawn here, on axes that know no 0."""


def shift(runs: Runs) -> Figure | None:
    """Return risk over the angle at the longest context: points measured, lines of theory, baselines."""
    rows = {name: _longest(report) for name, report in runs.items()}
    if max((len({row["angle_deg"] for row in own}) for own in rows.values()), default=0) < 2:
        return None
    figure = _over("angle_deg", rows)
    figure.update_xaxes(title_text="Angle between training and test, degrees", dtick=15)
    figure.update_yaxes(title_text="Risk / variance of labels", rangemode="tozero")
    return figure


def contexts(runs: Runs) -> Figure | None:
    """Return risk over the number of examples, one line per angle (least and largest); None of one."""
    rows = {}
    for name, report in runs.items():
        own = report.get("risks") or []
        if len({row["n"] for row in own}) < 2:
            continue
        angles = sorted({row["angle_deg"] for row in own})
        for angle in dict.fromkeys((angles[0], angles[-1])):
            label = f"{name}, {angle:g} degrees" if name else f"{angle:g} degrees"
            rows[label] = [row for row in own if row["angle_deg"] == angle and row["predictor"] != "zero"]
    if not rows:
        return None
    figure = _over("n", rows)
    figure.update_xaxes(title_text="Examples in the prompt")
    figure.update_yaxes(title_text="Risk / variance of labels", type="log", exponentformat="power", dtick=1)
    return figure


def adapters(runs: Runs) -> Figure | None:
    """Return risk after adaptation over the rank of the adapter; None if no adapter was tried."""
    from plotly.graph_objects import Figure

    figure = Figure()
    for number, (name, report) in enumerate(runs.items()):
        rows = report.get("adapters") or []
        for method in dict.fromkeys(row["method"] for row in rows):
            own = [row for row in rows if row["method"] == method]
            ranks, means, _ = _means(own, "rank")
            label = ", ".join(part for part in (_safe(name), method) if part)
            trained = method == "trained"
            figure.add_scatter(
                x=ranks,
                y=means,
                mode="markers" if trained and len(rows) > len(own) else "lines+markers",
                name=label,
                marker={"size": 9, "symbol": "circle-open" if trained else "circle"},
                line={"width": 2, "color": f"var(--c{number % 8 + 1})"},
                hovertemplate="rank %{x}: %{y:.4g}<extra>" + label + "</extra>",
            )
    if not figure.data:
        return None
    figure.update_xaxes(title_text="Rank of the adapter", rangemode="tozero")
    figure.update_yaxes(title_text="Risk / variance of labels", rangemode="tozero")
    figure.update_layout(showlegend=True)
    return figure


def loss(runs: Runs) -> Figure | None:
    """Return the loss of training over its steps, one line per seed; None of models that are not trained."""
    from plotly.graph_objects import Figure

    figure = Figure()
    for name, report in runs.items():
        steps = (report.get("settings") or {}).get("steps") or 0
        for seed, values in (report.get("losses") or {}).items():
            if not values:
                continue
            label = ", ".join(part for part in (_safe(name), f"seed {_safe(seed)}") if part)
            figure.add_scatter(
                x=[round(steps * (i + 1) / len(values)) for i in range(len(values))],
                y=[max(value, TINY) for value in values],
                mode="lines",
                name=label,
                line={"width": 1.5, "color": f"var(--c{len(figure.data) % 8 + 1})"},
            )
    if not figure.data:
        return None
    figure.update_xaxes(title_text="Step")
    figure.update_yaxes(title_text="Loss", type="log", exponentformat="power")
    figure.update_layout(showlegend=len(figure.data) > 1)
    return figure


def _over(key: str, groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Return risks over a column; the groups differ in their dashes or, if they are runs, in their colors."""
    from plotly.graph_objects import Figure

    figure = Figure()
    several = len(groups) > 1
    for number, (group, rows) in enumerate(groups.items()):
        for predictor in dict.fromkeys(row["predictor"] for row in rows):
            if number and predictor not in ("model", "theory"):
                continue  # the baselines of one group are enough
            own = [row for row in rows if row["predictor"] == predictor]
            x, means, errors = _means(own, key)
            label = ", ".join(
                part for part in (_safe(group), PREDICTORS.get(predictor, _safe(predictor))) if part
            )
            measured = predictor == "model"
            both = measured and any(row["predictor"] == "theory" for row in rows)
            color = COLORS.get(predictor, "var(--c5)")
            if several and predictor in ("model", "theory"):
                color = f"var(--c{number % 8 + 1})"
            figure.add_scatter(
                x=x,
                y=means,
                error_y={"array": errors, "thickness": 1, "width": 3} if measured else None,
                mode="markers" if both else "lines+markers" if measured else "lines",
                name=label,
                marker={"size": 8, "color": color},
                line={
                    "width": 2 if predictor in ("model", "theory") else 1.3,
                    "color": color,
                    "dash": ("solid", "dash", "dot", "dashdot")[number % 4]
                    if predictor in ("model", "theory")
                    else "dot",
                },
                hovertemplate="%{x}: %{y:.4g}<extra>" + label + "</extra>",
            )
    figure.update_layout(showlegend=True)
    return figure


def _means(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float], list[float]]:
    """Return values of a column, mean relative risks over seeds, and their errors.

    The error is the standard deviation over seeds, or of one seed the standard error of its measurement.
    """
    x = sorted({row[key] for row in rows})
    means, errors = [], []
    for value in x:
        own = [row for row in rows if row[key] == value]
        risks = [row["relative"] for row in own]
        mean = fmean(risks)
        if len(risks) > 1:
            error = (sum((risk - mean) ** 2 for risk in risks) / (len(risks) - 1)) ** 0.5
        else:
            scale = own[0]["relative"] / own[0]["risk"] if own[0].get("risk") else 0.0
            error = (own[0].get("se") or 0.0) * scale
        means.append(max(mean, TINY))
        errors.append(error)
    return x, means, errors


def _longest(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    rows = report.get("risks") or []
    longest = max((row["n"] for row in rows), default=0)
    return [row for row in rows if row["n"] == longest]


def _safe(text: Any) -> str:
    """Return text for a figure, which reads a little HTML."""
    return html.escape(str(text), quote=False)
