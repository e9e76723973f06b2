"""The figures of a compress report, each from the dictionary of report.json."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lowdim.report.compress_words import MEASURES, main_measure, variants
from lowdim.report.wording import by, bytes_text, millions, ms, percent

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["errors", "groups", "kinds", "quality", "recovery", "speed", "tradeoff"]

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon")


def kinds(names: list[str]) -> list[tuple[int | None, str]]:
    """Return for every layer name its place in the stack and its kind.

    Parameters
    ----------
    names : list of str
        Names of modules, ``encoder.layer.3.attention.self.query``.

    Returns
    -------
    list of (int or None, str)
        The first number in the name, and what follows it without further numbers.

    Examples
    --------
    >>> kinds(["encoder.layer.3.attention.self.query", "layers.0", "head"])
    [(3, 'attention.self.query'), (0, 'layers'), (None, 'head')]
    """
    found = []
    for name in names:
        parts = name.split(".")
        at = next((position for position, part in enumerate(parts) if part.isdigit()), None)
        after = [part for part in parts[(at or 0) + (at is not None) :] if not part.isdigit()]
        before = [part for part in parts[: at or 0] if not part.isdigit()]
        kind = ".".join(after or before[-1:]) or "layer"
        found.append((int(parts[at]) if at is not None else None, kind))
    return found


def errors(layers: list[Mapping[str, Any]]) -> tuple[Figure, int] | None:
    """Return the error of every layer over its depth, one line per kind, and the height in pixels."""
    from plotly.subplots import make_subplots

    panels = [
        (key, title)
        for key, title in (("output_error", "Output error"), ("weight_error", "Weight error"))
        if any(layer.get(key) is not None for layer in layers)
    ]
    if not panels:
        return None
    placed = kinds([layer["name"] for layer in layers])
    depths = {place for place, _ in placed}
    by_depth = None not in depths and len(depths) > 1
    order = list(dict.fromkeys(kind for _, kind in placed)) if by_depth else [""]
    figure = make_subplots(rows=len(panels), cols=1, shared_xaxes=True, vertical_spacing=0.09)
    for row, (key, title) in enumerate(panels, start=1):
        for number, kind in enumerate(order):
            chosen = [
                (place if by_depth else position, layer)
                for position, ((place, layer_kind), layer) in enumerate(
                    zip(placed, layers, strict=True), start=1
                )
                if layer.get(key) is not None and (not by_depth or layer_kind == kind)
            ]
            chosen.sort(key=lambda pair: pair[0] or 0)
            figure.add_scatter(
                x=[place for place, _ in chosen],
                y=[layer[key] for _, layer in chosen],
                customdata=[_hover(layer) for _, layer in chosen],
                hovertemplate="%{customdata}<extra></extra>",
                mode="lines+markers" if by_depth else "markers",
                name=_safe(kind),
                legendgroup=kind,
                showlegend=by_depth and row == 1,
                marker={
                    "size": 8,
                    "color": f"var(--c{number % 8 + 1})",
                    "symbol": SYMBOLS[(number // 8 + number) % 8],
                },
                line={"width": 1.5, "color": f"var(--c{number % 8 + 1})"},
                row=row,
                col=1,
            )
        figure.update_yaxes(title_text=title, rangemode="tozero", tickformat=".0%", row=row, col=1)
    label = "Number in the layer's name" if by_depth else "Layer, in the order of the network"
    whole = len({place for place, _ in placed}) if by_depth else len(layers)
    figure.update_xaxes(title_text=label, row=len(panels), col=1)
    figure.update_xaxes(dtick=max(1, whole // 12), zeroline=False)
    return figure, 90 + 200 * len(panels)


def groups(report: Mapping[str, Any]) -> tuple[Figure, int] | None:
    """Return the parameters of every kind of layer before and after, and the height in pixels."""
    from plotly.graph_objects import Figure

    layers = report["layers"]
    totals: dict[str, list[float]] = {}
    for (_, kind), layer in zip(kinds([layer["name"] for layer in layers]), layers, strict=True):
        before = layer.get("parameters_before") or layer["shape"][0] * layer["shape"][1]
        after = layer.get("parameters_after")
        after = before * layer["kept"] if after is None and layer.get("kept") is not None else after
        if after is None:
            return None
        total = totals.setdefault(kind, [0.0, 0.0])
        total[0] += before
        total[1] += after
    parameters = report.get("parameters") or {}
    if all(key in parameters for key in ("before", "after", "compressible_before", "compressible_after")):
        rest = [
            parameters["before"] - parameters["compressible_before"],
            parameters["after"] - parameters["compressible_after"],
        ]
        for table in report.get("embeddings") or []:
            sizes = [table["parameters_before"], table["parameters_after"]]
            rest = [whole - part for whole, part in zip(rest, sizes, strict=True)]
            totals[table["name"]] = sizes
        totals["everything else"] = rest
    if not totals:
        return None
    names = list(totals)[::-1]
    figure = Figure()
    for side, name, color in ((1, "After", "var(--after)"), (0, "Before", "var(--before)")):
        values = [totals[kind][side] for kind in names]
        figure.add_bar(
            orientation="h",
            x=values,
            y=[_safe(kind) for kind in names],
            name=name,
            marker_color=color,
            text=[millions(value) for value in values],
            textposition="outside",
            cliponaxis=False,
            hovertemplate="%{y}: %{text} parameters<extra>" + name + "</extra>",
        )
    figure.update_layout(
        barmode="group", legend={"traceorder": "reversed"}, margin={"l": 8, "r": 64}, xaxis_title="Parameters"
    )
    return figure, 120 + 46 * len(names)


def quality(report: Mapping[str, Any]) -> tuple[Figure, int, str] | None:
    """Return the quality of every variant as bars, the height in pixels, and a caption."""
    from plotly.graph_objects import Figure

    rows = variants(report)
    measure = main_measure(report)
    if measure is None or len(rows) < 2:
        return None
    shares = [
        entry
        for entry in MEASURES
        if entry.key in ("cosine", "cosine_q05", "top1", "top10", "agreement")
        and any(_has(row, entry.key) for name, row in rows if name != "Original")
    ]
    figure = Figure()
    if shares:
        # The original is 1 in each of these by definition: a dotted line says so, a bar would only repeat it.
        compared = rows[1:]
        for name, row in compared[::-1]:
            given = [entry for entry in shares[::-1] if _has(row, entry.key)]
            values = [row["quality"][entry.key] for entry in given]
            figure.add_bar(
                orientation="h",
                y=[_wrapped(entry.label) for entry in given],
                x=values,
                name=name,
                marker_color=row["color"],
                text=[f"{value:.3f}" for value in values],
                textposition="outside",
                cliponaxis=False,
                hovertemplate="%{y}: %{x:.4f}<extra>" + name + "</extra>",
            )
        figure.add_vline(x=1, layer="below", line={"color": "var(--before)", "width": 1.5, "dash": "dot"})
        figure.update_xaxes(range=[0, 1.02], tickvals=[0, 0.25, 0.5, 0.75, 1])
        figure.update_layout(
            barmode="group",
            bargap=0.28,
            margin={"l": 8, "r": 48},
            legend_traceorder="reversed",
            showlegend=len(compared) > 1,
        )
        height = 80 + len(shares) * (26 + 22 * len(compared))
        return figure, height, "Agreement with the original on held-out inputs (dotted: the original itself)"
    given_rows = [(name, row) for name, row in rows if _has(row, measure.key)]
    if measure.key != "perplexity_after":
        given_rows = given_rows[1:]
    if len(given_rows) < 2:
        return None
    values = [row["quality"][measure.key] for _, row in given_rows]
    figure.add_bar(
        x=[_wrapped(name) for name, _ in given_rows],
        y=values,
        marker_color=[row["color"] for _, row in given_rows],
        text=[measure.shown(value) for value in values],
        textposition="outside",
        cliponaxis=False,
        hovertemplate="%{x}: %{text}<extra></extra>",
    )
    figure.update_yaxes(title_text=measure.label, rangemode="tozero")
    return figure, 340, f"{measure.label} on held-out inputs, lower is better"


def tradeoff(report: Mapping[str, Any]) -> Figure | None:
    """Return quality against file size, where at least three variants have both."""
    from plotly.graph_objects import Figure

    measure = main_measure(report)
    points = [
        (name, row)
        for name, row in variants(report)
        if measure and _has(row, measure.key) and row.get("bytes")
    ]
    if measure is None or len(points) < 3:
        return None
    figure = Figure()
    for name, row in points:
        figure.add_scatter(
            x=[row["bytes"] / 1e6],
            y=[row["quality"][measure.key]],
            name=name,
            mode="markers+text",
            marker={"size": 14, "color": row["color"]},
            customdata=[name],
            texttemplate="%{customdata}",
            # int8 lies left of its dense twin: labels on different sides never meet.
            textposition="middle left" if "int8" in name else "bottom center",
            cliponaxis=False,
            text=f"{name}<br>{bytes_text(row['bytes'])}<br>{measure.label} "
            f"{measure.shown(row['quality'][measure.key])}",
            hovertemplate="%{text}<extra></extra>",
        )
    widest = max(row["bytes"] for _, row in points) / 1e6
    figure.update_xaxes(title_text="Weight file, MB", range=[0, 1.15 * widest])
    values = [row["quality"][measure.key] for _, row in points]
    room = 0.2 * (max(values) - min(values)) or 0.1
    figure.update_yaxes(title_text=measure.label, range=[min(values) - 1.5 * room, max(values) + room])
    figure.update_layout(showlegend=False)
    return figure


def speed(report: Mapping[str, Any]) -> tuple[Figure, int] | None:
    """Return the time per forward pass of every variant at every batch size, and the height in pixels."""
    from plotly.subplots import make_subplots

    timed = [(name, row) for name, row in variants(report) if any(v is not None for v in row["ms"].values())]
    batches = list(
        dict.fromkeys(batch for _, row in timed for batch, value in row["ms"].items() if value is not None)
    )
    if not timed or not batches:
        return None
    figure = make_subplots(
        rows=len(batches),
        cols=1,
        subplot_titles=[f"Batch size {_safe(batch)}" for batch in batches],
        vertical_spacing=0.3 / len(batches),
    )
    for number, batch in enumerate(batches, start=1):
        given = [(name, row) for name, row in timed if row["ms"].get(batch) is not None][::-1]
        values = [row["ms"][batch] for _, row in given]
        figure.add_bar(
            orientation="h",
            x=values,
            y=[name for name, _ in given],
            marker_color=[row["color"] for _, row in given],
            text=[ms(value) for value in values],
            textposition="outside",
            cliponaxis=False,
            showlegend=False,
            hovertemplate="%{y}: %{text}<extra></extra>",
            row=number,
            col=1,
        )
    figure.update_xaxes(rangemode="tozero", showticklabels=False, showgrid=False)
    figure.update_xaxes(title_text="Median time (shorter is faster)", row=len(batches), col=1)
    figure.update_annotations(x=0, xanchor="left", font={"size": 13})
    figure.update_layout(margin={"l": 8, "r": 72, "t": 28})
    return figure, 70 + len(batches) * (56 + 34 * len(timed))


def recovery(report: Mapping[str, Any]) -> Figure | None:
    """Return the loss of the recovery over its steps, with its moving mean."""
    from plotly.graph_objects import Figure

    record = report.get("recovery") or {}
    points = [
        (step, value)
        for step, value in enumerate(record.get("objective") or [])
        if isinstance(value, int | float)
    ]
    if len(points) < 2:
        return None
    every = record.get("every") or 1
    steps, values = [every * step for step, _ in points], [value for _, value in points]
    figure = Figure()
    width = max(1, len(values) // 20)
    if width > 1:
        figure.add_scatter(
            x=steps,
            y=values,
            mode="lines",
            name="Loss",
            line={"color": "var(--before)", "width": 1},
            hoverinfo="skip",
        )
    window = [values[max(0, at - width // 2) : at + width // 2 + 1] for at in range(len(values))]
    figure.add_scatter(
        x=steps,
        y=[sum(part) / len(part) for part in window],
        mode="lines",
        name=f"Mean of {2 * (width // 2) + 1}" if width > 1 else "Loss",
        line={"color": "var(--after)", "width": 2.5},
        hovertemplate="step %{x}: %{y:.4g}<extra></extra>",
    )
    figure.update_xaxes(title_text="Step")
    figure.update_yaxes(title_text="Distillation loss", rangemode="tozero")
    if min(values) > 0 and max(values) > 50 * min(values):
        figure.update_yaxes(type="log", rangemode="normal")
    figure.update_layout(showlegend=width > 1)
    return figure


def _has(row: Mapping[str, Any], key: str) -> bool:
    return isinstance(row["quality"].get(key), int | float)


def _hover(layer: Mapping[str, Any]) -> str:
    lines = [f"<b>{_safe(layer['name'])}</b>", by(layer.get("shape", ()))]
    if layer.get("rank") is not None:
        lines.append(f"{_safe(layer.get('structure', ''))}, rank {_safe(layer['rank'])}")
    for key, label in (("kept", "kept"), ("output_error", "output error"), ("weight_error", "weight error")):
        if layer.get(key) is not None:
            lines.append(f"{label} {percent(layer[key])}")
    return "<br>".join(line for line in lines if line)


def _safe(text: Any) -> str:
    """Return text for a figure, which reads a little HTML."""
    return html.escape(str(text), quote=False)


def _wrapped(text: str) -> str:
    """Break a label at its middle space, so that bars stand side by side on a phone."""
    words = text.split(" ")
    if len(text) < 14 or len(words) < 2:
        return text
    cut = min(range(1, len(words)), key=lambda at: abs(len(" ".join(words[:at])) - len(text) / 2))
    return f"{' '.join(words[:cut])}<br>{' '.join(words[cut:])}"
