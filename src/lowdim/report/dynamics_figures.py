"""The figures of a dynamics report, each from the dictionary of report.json."""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lowdim.report.dynamics_words import METRICS

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["balance", "cost", "drawn", "layers", "lines", "training"]

FEW = 8
"""Up to so many layers are drawn as lines, more as a map."""

PERIODS = {
    0: ("no period", "light gray"),
    1: ("at rest", "gray"),
    2: ("period 2", "orange"),
    4: ("period 4", "purple"),
    8: ("period 8", "red"),
}
"""Periods in words, and the color of each."""

_SHADES = ["var(--line)", "var(--before)", "var(--warm)", "var(--c4)", "var(--c7)"]
ROWS = {"loss": 1.0, "lr": 0.5, "sharpness_ratio": 1.3, "alternation": 1.0, "period": 0.16, "osc_rank": 0.45}


def training(report: Mapping[str, Any]) -> tuple[Figure, int] | None:
    """Return loss, sharpness ratio, alternation, period and oscillation rank, one below the other.

    Parameters
    ----------
    report : mapping

    Returns
    -------
    tuple of (Figure, int), or None
        The figure and its height in pixels; None if none of them was measured.
    """
    from plotly.subplots import make_subplots

    series, shown = report.get("series") or {}, drawn(report)
    if not shown:
        return None
    heights = [ROWS[name] for name in shown]
    figure = make_subplots(
        rows=len(shown), cols=1, shared_xaxes=True, row_heights=heights, vertical_spacing=0.035
    )
    draw = {"loss": _loss, "lr": _rate, "sharpness_ratio": _ratio, "alternation": _alternation}
    draw |= {"period": _strip, "osc_rank": _rank}
    for row, name in enumerate(shown, start=1):
        draw[name](figure, series, row)
        figure.update_xaxes(showticklabels=row == len(shown), tickformat=",", row=row, col=1)
    for name, between in (("sharpness_ratio", report.get("crossing")), ("alternation", report.get("flip"))):
        if name in shown and between:
            _mark(figure, between, name, shown.index(name) + 1)
    figure.update_xaxes(title_text="Step", row=len(shown), col=1)
    figure.update_layout(showlegend=False, hovermode="x", margin={"t": 10})
    return figure, int(70 + 175 * sum(heights))


def drawn(report: Mapping[str, Any]) -> list[str]:
    """Return which series `training` draws: all that were measured, and do not say the same all the time."""
    series = report.get("series") or {}
    found = [name for name in ROWS if _any(series.get(name))]
    flat = {name for name in ("lr", "osc_rank") if len(set(series.get(name) or ()) - {None}) == 1}
    return [name for name in found if name not in flat]


def layers(report: Mapping[str, Any], family: str) -> tuple[Figure, int] | None:
    """Return one kind of layer metric over the steps: few layers as lines, many as a map.

    Parameters
    ----------
    report : mapping
    family : str
        Such as "erank" or "drift_deg".

    Returns
    -------
    tuple of (Figure, int), or None
        The figure and its height in pixels. A map of ranks shows them relative to the first report.
    """
    found = (report.get("families") or {}).get(family)
    if not found or not found["names"]:
        return None
    if len(found["names"]) <= FEW:
        return lines(found, family), 320
    return _map(found, family), int(min(1100, 110 + 13 * len(found["names"])))


def lines(found: Mapping[str, Any], family: str, *, logarithmic: bool = False) -> Figure:
    """Return one line per layer or chain.

    Parameters
    ----------
    found : mapping
        ``names``, ``steps`` and ``values``.
    family : str
    logarithmic : bool
        Whether values that differ by much have a logarithmic axis, if none is zero.

    Returns
    -------
    Figure
    """
    from plotly.graph_objects import Figure

    metric = METRICS[family]
    figure = Figure()
    for number, (name, values) in enumerate(zip(found["names"], found["values"], strict=True)):
        figure.add_scatter(
            x=found["steps"],
            y=values,
            mode="lines",
            name=_short(name),
            line={"width": 2, "color": f"var(--c{number % 8 + 1})"},
            hovertemplate=f"step %{{x:,}}: %{{y:.4g}} {metric.unit}<extra>{_safe(name)}</extra>",
        )
    known = [value for line in found["values"] for value in line if value is not None]
    if logarithmic and min(known) > 0 and max(known) > 20 * min(known):
        figure.update_yaxes(type="log", tickformat="~g", nticks=5)
    elif family == "drift_deg":
        figure.update_yaxes(range=[0, 92], dtick=30)
    figure.update_yaxes(
        title_text=f"{metric.title}, {metric.unit}" if len(metric.title) < 20 else metric.unit
    )
    figure.update_xaxes(title_text="Step", tickformat=",")
    figure.update_layout(showlegend=True)
    return figure


def balance(report: Mapping[str, Any]) -> tuple[Figure, int] | None:
    """Return the balancing gaps; many chains as a map."""
    found = (report.get("families") or {}).get("balance_gap")
    if not found or not found["names"]:
        return None
    if len(found["names"]) > FEW:
        return layers(report, "balance_gap")
    return lines(found, "balance_gap", logarithmic=True), 320


def cost(report: Mapping[str, Any]) -> Figure | None:
    """Return what each report took: Hessian products and seconds."""
    from plotly.subplots import make_subplots

    series = report.get("series") or {}
    shown = [name for name in ("hvps", "seconds") if _any(series.get(name))]
    if not shown:
        return None
    figure = make_subplots(rows=len(shown), cols=1, shared_xaxes=True, vertical_spacing=0.12)
    for row, name in enumerate(shown, start=1):
        metric = METRICS[name]
        figure.add_scatter(
            x=series["step"],
            y=series[name],
            mode="lines",
            line={"width": 1.5, "color": "var(--c2)" if name == "hvps" else "var(--c8)", "shape": "hvh"},
            fill="tozeroy",
            hovertemplate=f"step %{{x:,}}: %{{y:.3g}} {metric.unit}<extra>{metric.title}</extra>",
            row=row,
            col=1,
        )
        title = "Products" if name == "hvps" else "Seconds"
        figure.update_yaxes(title_text=title, rangemode="tozero", row=row, col=1)
    figure.update_xaxes(title_text="Step", tickformat=",", row=len(shown), col=1)
    figure.update_layout(showlegend=False)
    return figure


def _loss(figure: Figure, series: Mapping[str, Any], row: int) -> None:
    values = series["loss"]
    _line(figure, series, row, "loss", "var(--ink)")
    finite = [value for value in values if value is not None]
    if min(finite) > 0:
        few = max(finite) / min(finite) < 30  # within a decade or so, 1, 2 and 5 are marked, too
        figure.update_yaxes(
            type="log", row=row, col=1, tickformat="~g", dtick="D2" if few else None, nticks=5
        )
    figure.update_yaxes(title_text="Loss", row=row, col=1)


def _rate(figure: Figure, series: Mapping[str, Any], row: int) -> None:
    _line(figure, series, row, "lr", "var(--c8)")
    figure.update_yaxes(title_text="Rate", rangemode="tozero", nticks=3, tickformat="~g", row=row, col=1)


def _ratio(figure: Figure, series: Mapping[str, Any], row: int) -> None:
    _line(figure, series, row, "sharpness_ratio", "var(--c1)")
    figure.add_hline(y=1, line={"color": "var(--warm)", "width": 1.5, "dash": "dash"}, row=row, col=1)
    top = max(1.2, 1.06 * max(value for value in series["sharpness_ratio"] if value is not None))
    low = min(0.0, *(value for value in series["sharpness_ratio"] if value is not None))
    figure.update_yaxes(title_text="Sharpness / threshold", range=[low, top], nticks=5, row=row, col=1)


def _alternation(figure: Figure, series: Mapping[str, Any], row: int) -> None:
    figure.add_hline(y=0, line={"color": "var(--before)", "width": 1}, row=row, col=1)
    _line(figure, series, row, "alternation", "var(--c2)")
    figure.update_yaxes(
        title_text="Alternation",
        range=[-1.08, 1.08],
        tickvals=[-1, 0, 1],
        ticktext=["\N{MINUS SIGN}1", "0", "+1"],
        row=row,
        col=1,
    )


def _strip(figure: Figure, series: Mapping[str, Any], row: int) -> None:
    """Draw the period as one row of colored cells."""
    order = list(PERIODS)
    codes = [order.index(int(p)) if p is not None and int(p) in order else None for p in series["period"]]
    scale = [(edge / 5, shade) for at, shade in enumerate(_SHADES) for edge in (at, at + 1)]
    figure.add_heatmap(
        x=series["step"],
        y=["Period"],
        z=[codes],
        zmin=-0.5,
        zmax=4.5,
        colorscale=scale,
        showscale=False,
        hoverongaps=False,
        text=[[None if code is None else PERIODS[order[code]][0] for code in codes]],
        hovertemplate="step %{x:,}: %{text}<extra></extra>",
        row=row,
        col=1,
    )
    figure.update_yaxes(showgrid=False, row=row, col=1)


def _rank(figure: Figure, series: Mapping[str, Any], row: int) -> None:
    values = [value for value in series["osc_rank"] if value is not None]
    _line(figure, series, row, "osc_rank", "var(--c4)", shape="hv")
    figure.update_yaxes(
        title_text="Rank", range=[-0.2, max(1, *values) + 0.3], nticks=3, tickformat="d", row=row, col=1
    )


def _line(
    figure: Figure, series: Mapping[str, Any], row: int, name: str, color: str, shape: str = "linear"
) -> None:
    few = sum(value is not None for value in series[name]) < 40
    figure.add_scatter(
        x=series["step"],
        y=series[name],
        mode="lines+markers" if few else "lines",
        connectgaps=True,
        line={"width": 2, "color": color, "shape": shape},
        marker={"size": 5},
        hovertemplate=f"step %{{x:,}}: %{{y:.4g}}<extra>{METRICS[name].title}</extra>",
        row=row,
        col=1,
    )


def _mark(figure: Figure, between: Sequence[int | None], name: str, row: int) -> None:
    """Mark the reports between which something happened."""
    before, after = between
    if before is None:
        return
    figure.add_vrect(
        x0=before, x1=after, fillcolor="var(--warm)", opacity=0.22, line_width=0, row="all", col=1
    ) if name == "sharpness_ratio" else None
    figure.add_annotation(
        x=after,
        y=0.04 if name == "sharpness_ratio" else 0,
        text=f"passes 1 at step {after:,}" if name == "sharpness_ratio" else f"flips by step {after:,}",
        showarrow=False,
        xanchor="left",
        yanchor="bottom",
        font={"size": 12, "color": "var(--warm)" if name == "sharpness_ratio" else "var(--c2)"},
        row=row,
        col=1,
    )


def _map(found: Mapping[str, Any], family: str) -> Figure:
    """Return a map of layers over steps; ranks relative to where they began, on a scale around 1."""
    from plotly.graph_objects import Figure

    metric, relative = METRICS[family], family != "drift_deg"
    values = found["values"]
    z = [_relative(line) for line in values] if relative else values
    flat = sorted(abs(value) for line in z for value in line if value is not None)
    reach = max(flat[int(0.99 * (len(flat) - 1))], 1.0) if flat else 1.0
    scale = (
        {"colorscale": "RdBu", "zmin": -reach, "zmax": reach}
        if relative
        else {"colorscale": "Viridis", "zmin": 0, "zmax": 90}
    )
    figure = Figure()
    figure.add_heatmap(
        x=found["steps"],
        y=[_safe(name) for name in found["names"]],
        z=z,
        customdata=values,
        hovertemplate=f"%{{y}}, step %{{x:,}}: %{{customdata:.4g}} {metric.unit}<extra></extra>",
        hoverongaps=False,
        colorbar={
            "title": {"text": "%" if relative else "\N{DEGREE SIGN}", "side": "top"},
            "thickness": 10,
            "outlinewidth": 0,
            "len": 1,
            "y": 0.5,
        },
        **scale,
    )
    names = found["names"]
    shared = _shared(names)
    every = max(1, math.ceil(len(names) / 45))
    figure.update_yaxes(
        type="category",
        autorange="reversed",
        showgrid=False,
        tickvals=list(range(0, len(names), every)),
        ticktext=[_short(name.removeprefix(shared)) for name in names[::every]],
        tickfont_size=10,
    )
    figure.update_xaxes(title_text="Step", tickformat=",", showgrid=False)
    return figure


def _shared(names: Sequence[str]) -> str:
    """Return the modules that all names begin with."""
    parts = zip(*(name.split(".")[:-1] for name in names), strict=False)
    same = list(itertools.takewhile(lambda part: len(set(part)) == 1, parts))
    return "".join(f"{part[0]}." for part in same)


def _relative(line: Sequence[float | None]) -> list[float | None]:
    first = next((value for value in line if value), None)
    return [None if value is None or first is None else round(100 * (value / first - 1), 2) for value in line]


def _any(values: Sequence[float | None] | None) -> bool:
    return bool(values) and any(value is not None for value in values or ())


def _short(name: Any, longest: int = 34) -> str:
    """Return a layer's name for an axis: its end tells more than its beginning."""
    text = str(name)
    return _safe(text if len(text) <= longest else f"\N{HORIZONTAL ELLIPSIS}{text[1 - longest :]}")


def _safe(text: Any) -> str:
    """Return text for a figure, which reads a little HTML."""
    return html.escape(str(text), quote=False)
