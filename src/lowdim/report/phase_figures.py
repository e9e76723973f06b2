"""The figures of a report on recovered frames, each from the dictionary of report.json."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["METHODS", "film", "loss", "per_frame", "pictures", "spectra", "transition"]

METHODS = {"tucker": "Tucker", "lowrank": "low rank", "rwf": "frame by frame"}
"""Methods as people read them."""

COLORS = {"tucker": "var(--after)", "lowrank": "var(--warm)", "rwf": "var(--before)"}


def pictures(report: Mapping[str, Any]) -> tuple[Figure, int] | None:
    """Return some images, true, recovered and their difference below each other; and the height in pixels."""
    from plotly.subplots import make_subplots

    record = report.get("pictures")
    if not record:
        return None
    rows = [name for name in ("truth", "recovered", "difference") if name in record[0]]
    low, high = _range(value for image in record for name in rows[:2] for row in image[name] for value in row)
    reach = max(
        (abs(value) for image in record for row in image.get("difference", []) for value in row), default=0
    )
    figure = make_subplots(
        rows=len(rows),
        cols=len(record),
        subplot_titles=[f"Frame {image['frame']}" for image in record],
        row_titles=[name.capitalize() for name in rows] if len(rows) > 1 else None,
        horizontal_spacing=0.02,
        vertical_spacing=0.03,
    )
    real = bool(report.get("real", True))
    for column, image in enumerate(record, start=1):
        for row, name in enumerate(rows, start=1):
            apart = name == "difference"
            figure.add_heatmap(
                z=image[name],
                zmin=-reach if apart and real else 0 if apart else low,
                zmax=(reach or 1) if apart else high,
                colorscale="RdBu" if apart and real else "Gray",
                showscale=False,
                hovertemplate="row %{y}, column %{x}: %{z:.4g}<extra>" + name + "</extra>",
                row=row,
                col=column,
            )
            _square(figure, (row - 1) * len(record) + column)
    _bare(figure)
    figure.update_annotations(font={"size": 12})
    figure.update_layout(margin={"l": 8, "r": 30, "t": 30, "b": 8})
    return figure, 50 + len(rows) * 200


def film(report: Mapping[str, Any]) -> tuple[Figure, int] | None:
    """Return the film with a slider, beside the true one where that is known; and the height in pixels."""
    import numpy as np
    from plotly.subplots import make_subplots

    record = report.get("film")
    if not record:
        return None
    shown = [name for name in ("truth", "recovered") if record.get(name)]
    count, shape = len(record["frames"]), tuple(record["shape"])
    figure = make_subplots(
        rows=1,
        cols=len(shown),
        subplot_titles=[name.capitalize() for name in shown] if len(shown) > 1 else None,
        horizontal_spacing=0.04,
    )
    for column, name in enumerate(shown, start=1):
        levels = np.frombuffer(base64.b64decode(record[name]), dtype=np.uint8).reshape(count, *shape)
        for number, image in enumerate(levels):
            figure.add_heatmap(
                z=image,
                zmin=0,
                zmax=255,
                colorscale="Gray",
                showscale=False,
                hoverinfo="skip",
                visible=number == 0,
                row=1,
                col=column,
            )
        _square(figure, column)
    _bare(figure)
    steps = [
        {
            "method": "restyle",
            "label": str(frame),
            "args": [{"visible": [number == step for _ in shown for number in range(count)]}],
        }
        for step, frame in enumerate(record["frames"])
    ]
    slider = {
        "active": 0,
        "steps": steps,
        "currentvalue": {"prefix": "Frame ", "xanchor": "left"},
        "pad": {"t": 12, "b": 4},
        "ticklen": 0,
        "minorticklen": 0,
        "font": {"size": 11, "color": "var(--soft)"},
        "bgcolor": "var(--line)",
        "activebgcolor": "var(--accent)",
        "bordercolor": "var(--line)",
    }
    figure.update_layout(sliders=[slider], margin={"l": 8, "r": 8, "t": 30, "b": 8})
    return figure, 440


def per_frame(report: Mapping[str, Any]) -> Figure | None:
    """Return the error of every frame, where the truth is known, and what stays unexplained of it."""
    from plotly.graph_objects import Figure

    lines = [
        ("Error", (report.get("error") or {}).get("per_frame"), "var(--after)"),
        ("Unexplained magnitudes", (report.get("unexplained") or {}).get("per_frame"), "var(--before)"),
    ]
    drawn = [(name, values, color) for name, values, color in lines if values]
    if not drawn:
        return None
    figure = Figure()
    for name, values, color in drawn:
        figure.add_scatter(
            x=list(range(len(values))),
            y=values,
            mode="lines+markers" if len(values) <= 60 else "lines",
            name=name,
            line={"width": 2, "color": color},
            hovertemplate="frame %{x}: %{y:.3%}<extra>" + name + "</extra>",
        )
    figure.update_xaxes(title_text="Frame")
    figure.update_yaxes(title_text="Relative size", tickformat=".2~%", rangemode="tozero")
    figure.update_layout(showlegend=len(drawn) > 1)
    return figure


def loss(report: Mapping[str, Any]) -> Figure | None:
    """Return what stayed unexplained after every sweep, on a logarithmic scale."""
    from plotly.graph_objects import Figure

    values = [math.sqrt(value) if value and value > 0 else None for value in report.get("loss") or []]
    if len(values) < 2:
        return None
    figure = Figure()
    figure.add_scatter(
        x=list(range(1, len(values) + 1)),
        y=values,
        mode="lines+markers",
        line={"width": 2, "color": "var(--after)"},
        hovertemplate="sweep %{x}: %{y:.3~%}<extra></extra>",
    )
    figure.update_xaxes(title_text="Sweep")
    _logarithmic(figure, "Unexplained")
    return figure


def spectra(report: Mapping[str, Any]) -> Figure | None:
    """Return the singular values of every mode, on a logarithmic scale."""
    from plotly.graph_objects import Figure

    record = report.get("singular_values")
    if not record:
        return None
    figure = Figure()
    for number, mode in enumerate(record, start=1):
        values = [value for value in mode["values"] if value > 1e-8]  # the others are rounding
        figure.add_scatter(
            x=list(range(1, len(values) + 1)),
            y=values,
            mode="lines+markers",
            name=mode["mode"],
            line={"width": 2, "color": f"var(--c{(number - 1) % 8 + 1})"},
            hovertemplate="%{x}: %{y:.3g}<extra>" + mode["mode"] + "</extra>",
        )
    figure.update_xaxes(title_text="Number")
    _logarithmic(figure, "Singular value, relative")
    return figure


def transition(report: Mapping[str, Any]) -> Figure | None:
    """Return the error of every method over measurements per pixel: the median of draws, and each draw."""
    from plotly.graph_objects import Figure

    rows = [row for row in report.get("rows") or [] if row.get("error") is not None]
    if not rows:
        return None
    figure = Figure()
    for name in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == name]
        ratios = sorted({row["measurements"] for row in own})
        # Exact to rounding is exact: a lower floor would only stretch the axis.
        errors = {
            ratio: [max(row["error"], 1e-12) for row in own if row["measurements"] == ratio]
            for ratio in ratios
        }
        look: dict[str, Any] = {"name": METHODS.get(name, name), "legendgroup": name}
        color = COLORS.get(name, "var(--c4)")
        figure.add_scatter(
            x=ratios,
            y=[median(errors[ratio]) for ratio in ratios],
            mode="lines+markers",
            line={"width": 2.5, "color": color},
            marker={"size": 8},
            hovertemplate="m/n %{x}: %{y:.2g}<extra>" + METHODS.get(name, name) + "</extra>",
            **look,
        )
        if any(len(given) > 1 for given in errors.values()):
            figure.add_scatter(
                x=[ratio for ratio in ratios for _ in errors[ratio]],
                y=[value for ratio in ratios for value in errors[ratio]],
                mode="markers",
                marker={"size": 5, "color": color, "opacity": 0.5},
                showlegend=False,
                hoverinfo="skip",
                **look,
            )
    figure.update_xaxes(title_text="Measurements per pixel, m / n")
    _logarithmic(figure, "Relative error")
    return figure


def _logarithmic(figure: Figure, title: str) -> None:
    """Label decades only, where there are several."""
    values = [value for trace in figure.data for value in trace.y if value]
    decades = math.log10(max(values) / min(values)) if values else 0.0
    dtick = "D2" if decades < 2 else max(1, round(decades / 6))
    figure.update_yaxes(title_text=title, type="log", dtick=dtick, exponentformat="power")


def _square(figure: Figure, place: int) -> None:
    """Draw an image from the top, with square pixels."""
    suffix = "" if place == 1 else str(place)
    figure.layout[f"yaxis{suffix}"].update(autorange="reversed", scaleanchor=f"x{suffix}", constrain="domain")


def _bare(figure: Figure) -> None:
    figure.update_xaxes(showticklabels=False, showgrid=False, zeroline=False, constrain="domain", ticks="")
    figure.update_yaxes(showticklabels=False, showgrid=False, zeroline=False, ticks="")
    figure.update_layout(plot_bgcolor="rgba(0,0,0,0)")


def _range(values: Any) -> tuple[float, float]:
    """Return the ends of the grays: all but one in two hundred values on either side."""
    found: Sequence[float] = sorted(values)
    if not found:
        return 0.0, 1.0
    cut = math.floor(0.005 * len(found))
    low, high = found[cut], found[-1 - cut]
    return (low, high) if low < high else (low - 1, high + 1)
