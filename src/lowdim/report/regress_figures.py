"""The figures of a report on tensor regression, each from the dictionary of report.json."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["agreement", "confusion", "curve", "maps"]

BARS = 40
"""Coefficients of a table that are shown, the largest."""

ACROSS = 3
"""Maps side by side."""


def maps(report: Mapping[str, Any]) -> tuple[Figure, int] | None:
    """Return the coefficients as pictures, blue below zero and red above; and the height in pixels."""
    record = report.get("maps") or []
    if not record:
        return None
    if len(record[0]["values"]) == 1:
        return _bars(record, report.get("features") or [])
    from plotly.subplots import make_subplots

    columns = min(ACROSS, len(record))
    rows = -(-len(record) // columns)
    largest = max((abs(value) for one in record for row in one["values"] for value in row), default=0) or 1
    figure = make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=[_safe(one["title"]) if len(record) > 1 else "" for one in record],
        horizontal_spacing=0.06,
        vertical_spacing=0.12,
    )
    for number, one in enumerate(record):
        place = {"row": number // columns + 1, "col": number % columns + 1}
        figure.add_heatmap(
            z=one["values"],
            zmin=-largest,
            zmax=largest,
            colorscale="RdBu",
            reversescale=True,
            showscale=number == 0,
            colorbar={"orientation": "h", "y": -0.2, "thickness": 10, "outlinewidth": 0, "nticks": 5},
            hovertemplate="row %{y}, column %{x}: %{z:.4g}<extra></extra>",
            **place,
        )
        at = "" if number == 0 else str(number + 1)
        figure.layout[f"yaxis{at}"].update(autorange="reversed", scaleanchor=f"x{at}", constrain="domain")
    figure.update_xaxes(showgrid=False, zeroline=False, constrain="domain", showticklabels=False, ticks="")
    figure.update_yaxes(showgrid=False, zeroline=False, showticklabels=False, ticks="")
    figure.update_annotations(font={"size": 12})
    figure.update_layout(margin={"l": 8, "r": 8, "t": 30, "b": 70})
    return figure, 110 + rows * (300 if columns < ACROSS else 240)


def _bars(record: Sequence[Mapping[str, Any]], features: Sequence[str]) -> tuple[Figure, int]:
    """Return the largest coefficients of vectors as bars."""
    from plotly.graph_objects import Figure

    values = [one["values"][0] for one in record]
    size = [max(abs(line[i]) for line in values) for i in range(len(values[0]))]
    largest = sorted(sorted(range(len(size)), key=lambda i: -size[i])[:BARS])
    named = len(features) == len(size)
    figure = Figure()
    for number, one in enumerate(record):
        figure.add_bar(
            x=[_safe(features[i]) if named else str(i) for i in largest],
            y=[values[number][i] for i in largest],
            name=_safe(one["title"]),
            marker_color=f"var(--c{number % 8 + 1})",
            hovertemplate="%{x}: %{y:.4g}<extra></extra>",
        )
    figure.update_xaxes(type="category", nticks=20)
    figure.update_yaxes(title_text="Coefficient")
    figure.update_layout(showlegend=len(record) > 1)
    return figure, 340


def curve(report: Mapping[str, Any]) -> Figure | None:
    """Return the loss on held-out samples over the penalty, one line per rank."""
    from plotly.graph_objects import Figure

    record = report.get("comparison") or {}
    rows = list(zip(*(record.get(key) or [] for key in ("rank", "alpha", "mean_loss")), strict=True))
    if len(rows) < 2:
        return None
    figure = Figure()
    ranks = list(dict.fromkeys(str(rank) for rank, _, _ in rows))
    for number, name in enumerate(ranks):
        own = sorted((alpha, loss) for rank, alpha, loss in rows if str(rank) == name)
        chosen = name == str(report.get("rank")) or len(ranks) == 1
        label = f"rank {name}" if report.get("form") != "vector" else "no structure"
        figure.add_scatter(
            x=[alpha for alpha, _ in own],
            y=[loss for _, loss in own],
            mode="lines+markers",
            name=label,
            line={"width": 3 if chosen else 1.5, "color": f"var(--c{number % 8 + 1})"},
            marker={"size": 9 if chosen else 6},
            hovertemplate="penalty %{x:.3g}: %{y:.4g}<extra>" + label + "</extra>",
        )
    alphas = [alpha for _, alpha, _ in rows]
    if min(alphas) > 0:
        figure.update_xaxes(type="log", tickformat=".1g")
        if max(alphas) >= 10 * min(alphas):
            figure.update_xaxes(dtick=1)
    figure.update_xaxes(title_text="Penalty")
    figure.update_yaxes(title_text="Loss on held-out samples")
    figure.update_layout(showlegend=len(ranks) > 1)
    return figure


def agreement(report: Mapping[str, Any]) -> Figure | None:
    """Return predicted over true numbers of held-out samples, with the line where they are equal."""
    from plotly.graph_objects import Figure

    points = (report.get("assessment") or {}).get("points")
    if not points or not points["true"]:
        return None
    low, high = (pick(points["true"] + points["predicted"]) for pick in (min, max))
    figure = Figure()
    figure.add_scatter(
        x=[low, high],
        y=[low, high],
        mode="lines",
        line={"color": "var(--before)", "width": 1},
        hoverinfo="skip",
        showlegend=False,
    )
    figure.add_scatter(
        x=points["true"],
        y=points["predicted"],
        mode="markers",
        marker={"size": 6, "color": "var(--after)", "opacity": 0.7},
        showlegend=False,
        hovertemplate="true %{x:.4g}, predicted %{y:.4g}<extra></extra>",
    )
    figure.update_xaxes(title_text="True")
    figure.update_yaxes(title_text="Predicted")
    return figure


def confusion(report: Mapping[str, Any]) -> Figure | None:
    """Return how often a class was taken for another."""
    from plotly.graph_objects import Figure

    record = (report.get("assessment") or {}).get("confusion")
    if not record:
        return None
    names = [_safe(name) for name in record["classes"]]
    figure = Figure()
    figure.add_heatmap(
        z=record["counts"],
        x=names,
        y=names,
        text=record["counts"],
        texttemplate="%{text}",
        colorscale="Blues",
        zmin=0,
        showscale=False,
        hovertemplate="true %{y}, predicted %{x}: %{z}<extra></extra>",
    )
    figure.update_xaxes(title_text="Predicted", type="category", showgrid=False)
    figure.update_yaxes(title_text="True", type="category", autorange="reversed", showgrid=False)
    return figure


def _safe(text: Any) -> str:
    """Return text for a figure, which reads a little HTML."""
    return html.escape(str(text), quote=False)
