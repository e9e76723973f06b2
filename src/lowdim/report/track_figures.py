"""The figures of a track report, each from the dictionary of report.json."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["angles", "errors", "panel", "pictures"]

MODELS = {
    "static": "at rest",
    "geodesic": "geodesic",
    "piecewise": "several geodesics",
    "grouse": "GROUSE",
    "petrels": "PETRELS",
    "grasta": "GRASTA",
    "window": "sliding window",
}
"""Models as people read them."""

COLORS = {"static": "var(--before)", "geodesic": "var(--after)", "piecewise": "var(--c2)"}


def angles(report: Mapping[str, Any]) -> Figure | None:
    """Return the angles from the first subspace over time, one line per component; None if none is there."""
    from plotly.graph_objects import Figure

    record = report.get("angles") or {}
    lines = list(zip(*record.get("degrees") or [], strict=True))
    if not lines or report.get("model") == "static":
        return None
    figure = Figure()
    for number, line in enumerate(lines, start=1):
        figure.add_scatter(
            x=record["times"],
            y=line,
            mode="lines",
            name=f"angle {number}",
            line={"width": 2.5 if number == 1 else 1.5, "color": f"var(--c{(number - 1) % 8 + 1})"},
            hovertemplate="%{x}: %{y:.1f} degrees<extra>angle " + str(number) + "</extra>",
        )
    figure.update_yaxes(title_text="Angle, degrees", rangemode="tozero")
    figure.update_xaxes(title_text=_time_title(report))
    figure.update_layout(showlegend=len(lines) > 1)
    return figure


def panel(report: Mapping[str, Any]) -> Figure | None:
    """Return heat maps of the panel with its gaps and, beside it, filled in; None if there is none."""
    from plotly.subplots import make_subplots

    record = report.get("panel")
    if not record:
        return None
    shown = [("Observed", _with_gaps(record))]
    if report.get("missing"):
        shown.append(("Filled in", record["values"]))
    low, high = _range(value for row in record["values"] for value in row)
    figure = make_subplots(
        rows=1,
        cols=len(shown),
        subplot_titles=[title for title, _ in shown],
        shared_yaxes=True,
        horizontal_spacing=0.08,
    )
    names = [_safe(name) for name in record["names"]]
    for column, (title, values) in enumerate(shown, start=1):
        figure.add_heatmap(
            z=[list(line) for line in zip(*values, strict=True)],
            x=record["times"],
            y=names,
            zmin=low,
            zmax=high,
            colorscale="Viridis",
            showscale=column == len(shown),
            colorbar={"orientation": "h", "y": -0.32, "thickness": 10, "outlinewidth": 0},
            hoverongaps=False,
            hovertemplate=f"%{{x}}, %{{y}}: %{{z:.4g}}<extra>{title}</extra>",
            row=1,
            col=column,
        )
    figure.update_xaxes(
        title_text=_time_title(report), showgrid=False, nticks=3, tickangle=0, tickfont_size=10
    )
    # Numbers as names are places, not quantities.
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False, nticks=12)
    figure.update_annotations(font={"size": 13})
    figure.update_layout(margin={"t": 30, "b": 90})
    return figure


def pictures(report: Mapping[str, Any]) -> tuple[Figure, int] | None:
    """Return images of the stack with gaps in a warm color, filled in below; and the height in pixels."""
    from plotly.subplots import make_subplots

    record = report.get("pictures")
    if not record:
        return None
    gaps = bool(report.get("missing"))
    low, high = _range(value for image in record for row in image["values"] for value in row)
    figure = make_subplots(
        rows=1 + gaps,
        cols=len(record),
        subplot_titles=[_safe(_frame_title(report, image["time"])) for image in record],
        horizontal_spacing=0.02,
        vertical_spacing=0.04,
    )
    for column, image in enumerate(record, start=1):
        for row, values in enumerate([_with_gaps(image), image["values"]][: 1 + gaps], start=1):
            figure.add_heatmap(
                z=values,
                zmin=low,
                zmax=high,
                colorscale="Gray",
                showscale=False,
                hoverongaps=False,
                hovertemplate="row %{y}, column %{x}: %{z:.4g}<extra></extra>",
                row=row,
                col=column,
            )
            axis = figure.layout[f"yaxis{'' if (at := (row - 1) * len(record) + column) == 1 else at}"]
            axis.update(autorange="reversed", scaleanchor=f"x{'' if at == 1 else at}", constrain="domain")
    figure.update_xaxes(showticklabels=False, showgrid=False, zeroline=False, constrain="domain", ticks="")
    figure.update_yaxes(showticklabels=False, showgrid=False, zeroline=False, ticks="")
    figure.update_annotations(font={"size": 12})
    figure.update_layout(plot_bgcolor="var(--warm)", margin={"l": 8, "r": 8, "t": 30, "b": 8})
    return figure, 60 + (1 + gaps) * 220


def errors(report: Mapping[str, Any]) -> Figure | None:
    """Return the error on hidden entries over the number of components, one line per model."""
    from plotly.graph_objects import Figure

    rows = (report.get("comparison") or {}).get("table") or []
    if not rows:
        return None
    figure = Figure()
    for number, name in enumerate(dict.fromkeys(row["model"] for row in rows)):
        own = sorted((row for row in rows if row["model"] == name), key=lambda row: row["n_components"])
        figure.add_scatter(
            x=[row["n_components"] for row in own],
            y=[row["relative"] for row in own],
            mode="lines+markers",
            name=MODELS.get(name, _safe(name)),
            line={"width": 2, "color": COLORS.get(name, f"var(--c{number % 8 + 3})")},
            marker={"size": 9},
            hovertemplate="%{x} components: %{y:.1%}<extra>" + MODELS.get(name, _safe(name)) + "</extra>",
        )
    figure.update_xaxes(title_text="Components", dtick=1)
    figure.update_yaxes(title_text="Error on hidden entries", tickformat=".0%", rangemode="tozero")
    return figure


def _time_title(report: Mapping[str, Any]) -> str:
    time = report.get("time") or {}
    return "Frame" if time.get("kind", "order") == "order" else _safe(time.get("name") or "Time")


def _frame_title(report: Mapping[str, Any], moment: Any) -> str:
    return f"Frame {moment}" if (report.get("time") or {}).get("kind", "order") == "order" else str(moment)


def _with_gaps(record: Mapping[str, Any]) -> list[list[float | None]]:
    """Return the values of a panel or image with None where nothing was seen."""
    return [
        [value if mark == "1" else None for value, mark in zip(row, marks, strict=True)]
        for row, marks in zip(record["values"], record["seen"], strict=True)
    ]


def _range(values: Any) -> tuple[float, float]:
    """Return the ends of the colors: all but one in a hundred values on either side."""
    found: Sequence[float] = sorted(value for value in values if value is not None)
    if not found:
        return 0.0, 1.0
    cut = math.floor(0.01 * len(found))
    low, high = found[cut], found[-1 - cut]
    return (low, high) if low < high else (low - 1, high + 1)


def _safe(text: Any) -> str:
    """Return text for a figure, which reads a little HTML."""
    return html.escape(str(text), quote=False)
