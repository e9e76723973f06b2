"""The pictures and figures of a report on reconstructed images."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from lowdim.report.png import png_uri

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from plotly.graph_objects import Figure

    from lowdim.inverse import InverseResult

__all__ = [
    "MEASURED",
    "SOLVERS",
    "TRUTH",
    "best",
    "chosen",
    "curves",
    "effort",
    "error_maps",
    "layers",
    "named",
    "residuals",
]

SOLVERS = {
    "dcdp": "DCDP",
    "dcdp-without-noise": "DCDP without noise",
    "resample": "ReSample",
    "dps": "DPS",
    "ddrm": "DDRM",
    "diffpir": "DiffPIR",
    "tv": "TV",
    "pinv": "pseudo-inverse",
}
"""Solvers as people read them; what else they are called stands as it is."""

TRUTH, MEASURED = "truth", "measured"

IMAGES = {
    *("blur", "sr", "inpaint", "denoise", "saturate"),
    *("Inpainting", "CircularBlur", "Pooling", "BlurDecimation"),
}
"""Operators whose measurements are images; a sinogram or a spectrum of the same size is none."""

SHOWN, SIDE, CELLS = 6, 768, 96
"""Images on a page at most, their pixels a side at most, and those of a map of errors."""


def named(solver: str) -> str:
    """Return a solver's name as people read it.

    Examples
    --------
    >>> named("dps-steps=50-zeta=1.0")
    'DPS, steps 50, zeta 1.0'
    """
    kind, *options = re.split(r"-(?=[a-z]\w*=)", solver)
    return ", ".join([SOLVERS.get(kind, kind), *(option.replace("=", " ", 1) for option in options)])


def best(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the record of the solver nearest to the truth, or of the first where the truth is not known."""
    known = [one for one in report["solvers"] if one.get("psnr") is not None]
    found: Mapping[str, Any] = max(known, key=lambda one: one["psnr"]) if known else report["solvers"][0]
    return found


def chosen(report: Mapping[str, Any], *, most: int = SHOWN) -> list[int]:
    """Return which images are shown: all of few; else from worst to best, by the PSNR of the best solver."""
    names, solver = report["names"], best(report)["name"]
    rows = [row for row in report.get("rows") or [] if row["solver"] == solver]
    scores = {row["image"]: row["psnr"] for row in rows if row.get("psnr") is not None}
    order = list(range(len(names)))
    if len(names) <= most:
        return order
    if len(scores) < len(names):
        return order[:most]
    order.sort(key=lambda i: scores[names[i]])
    return [order[round(k * (len(order) - 1) / (most - 1))] for k in range(most)]


def layers(result: InverseResult, index: int) -> dict[str, str]:
    """Return what there is to see of an image: truth, measurement and every reconstruction, as addresses.

    Parameters
    ----------
    result : InverseResult
    index : int

    Returns
    -------
    dict of str to str
        A measurement that is no image, such as a sinogram, is not in it.
    """
    span = result.report["value_range"]
    found = {}
    first = next(iter(result.images.values()))[index]
    if result.truth is not None:
        found[TRUTH] = result.truth[index]
    seen = result.measurements[index]
    pictured = (result.report.get("operator") or {}).get("name") in IMAGES
    if pictured and seen.ndim == 3 and not seen.is_complex() and len(seen) == len(first):
        (h, w), (H, W) = seen.shape[-2:], first.shape[-2:]
        if h * W == w * H and H % h == 0:
            found[MEASURED] = seen
    for solver, images in result.images.items():
        found[named(solver)] = images[index]
    return {name: png_uri(_levels(_thinned(image.numpy(), SIDE), span)) for name, image in found.items()}


def error_maps(result: InverseResult, indices: Sequence[int]) -> tuple[Figure, int] | None:
    """Return where reconstructions are wrong, a row per image, a column per solver; and the height."""
    import numpy as np
    from plotly.subplots import make_subplots

    if result.truth is None:
        return None
    low, high = result.report["value_range"]
    solvers = list(result.images)
    maps = [
        [
            _thinned(np.abs(result.images[s][i].numpy() - result.truth[i].numpy()), CELLS).mean(0)
            / (high - low)
            for s in solvers
        ]
        for i in indices
    ]
    most = max(float(one.max()) for row in maps for one in row)
    # A few pixels that are all wrong must not hide the others.
    top = float(np.quantile(np.concatenate([one.ravel() for row in maps for one in row]), 0.995)) or most
    figure = make_subplots(
        rows=len(indices),
        cols=len(solvers),
        column_titles=[named(s).replace(", ", "<br>", 1) for s in solvers],
        row_titles=[_short(result.names[i]) for i in indices],
        horizontal_spacing=0.02,
        vertical_spacing=min(0.03, 0.3 / max(len(indices), 1)),
    )
    for row, several in enumerate(maps, start=1):
        for column, one in enumerate(several, start=1):
            first = row == column == 1
            figure.add_heatmap(
                z=one.astype(np.float32),
                zmin=0,
                zmax=top or 1,
                colorscale="Magma",
                showscale=first,
                colorbar={"thickness": 12, "tickformat": ".0%", "len": min(1.0, 240 / (200 * len(indices)))}
                if first
                else None,
                hovertemplate="row %{y}, column %{x}: %{z:.1%}<extra>"
                + named(solvers[column - 1])
                + "</extra>",
                row=row,
                col=column,
            )
            place = (row - 1) * len(solvers) + column
            suffix = "" if place == 1 else str(place)
            figure.layout[f"yaxis{suffix}"].update(
                autorange="reversed", scaleanchor=f"x{suffix}", constrain="domain"
            )
    figure.update_xaxes(showticklabels=False, showgrid=False, zeroline=False, constrain="domain", ticks="")
    figure.update_yaxes(showticklabels=False, showgrid=False, zeroline=False, ticks="")
    figure.update_annotations(font={"size": 12})
    figure.update_layout(plot_bgcolor="rgba(0,0,0,0)", margin={"l": 8, "r": 30, "t": 44, "b": 8})
    return figure, 70 + 200 * len(indices)


def curves(report: Mapping[str, Any]) -> Figure | None:
    """Return the residual of data-consistent images over outer steps, the median over images per solver."""
    from plotly.graph_objects import Figure

    figure = Figure()
    drawn = False
    for number, (solver, several) in enumerate((report.get("curves") or {}).items()):
        steps = min((len(curve) for curve in several if curve), default=0)
        if steps < 2:
            continue
        values = [
            [curve[k] for curve in several if curve and curve[k] is not None and curve[k] > 0]
            for k in range(steps)
        ]
        figure.add_scatter(
            x=[k / (steps - 1) for k in range(steps)],
            y=[median(found) if found else None for found in values],
            customdata=[k + 1 for k in range(steps)],
            mode="lines+markers" if steps <= 60 else "lines",
            name=named(solver),
            line={"width": 2, "color": _color(number)},
            hovertemplate="step %{customdata} of "
            + str(steps)
            + ": %{y:.3g}<extra>"
            + named(solver)
            + "</extra>",
        )
        drawn = True
    if not drawn:
        return None
    if report.get("sigma"):
        _noise_line(figure, [0, 1])
    figure.update_xaxes(title_text="Share of the solver's steps", tickformat=".0%")

    _logarithmic(figure, _residual_title(report))
    return figure


def residuals(report: Mapping[str, Any]) -> Figure | None:
    """Return the final residual of every image, a bar per solver."""
    from plotly.graph_objects import Figure

    rows = [row for row in report.get("rows") or [] if row.get("residual") is not None]
    if len(rows) < 2:
        return None
    figure = Figure()
    solvers = list(dict.fromkeys(row["solver"] for row in rows))
    many = len(rows) > 24 * len(solvers)
    for number, solver in enumerate(solvers):
        own = [row for row in rows if row["solver"] == solver]
        look = {"name": named(solver), "marker": {"color": _color(number)}}
        if many:
            figure.add_box(
                y=[row["residual"] for row in own], boxpoints="outliers", line={"width": 1.5}, **look
            )
        else:
            figure.add_bar(
                x=[_short(row["image"]) for row in own],
                y=[row["residual"] for row in own],
                hovertemplate="%{x}: %{y:.3g}<extra>" + named(solver) + "</extra>",
                **look,
            )
    if report.get("sigma"):
        figure.add_hline(y=1, line={"width": 1.5, "dash": "dot", "color": "var(--soft)"})

    figure.update_yaxes(title_text=_residual_title(report), rangemode="tozero")
    figure.update_xaxes(type="category")
    figure.update_layout(showlegend=len(solvers) > 1 and not many)
    return figure


def effort(report: Mapping[str, Any]) -> Figure | None:
    """Return what solvers reach and what it takes: PSNR over network calls."""
    from plotly.graph_objects import Figure

    shown = [
        (number, one)
        for number, one in enumerate(report.get("solvers") or [])
        if one.get("psnr") is not None and one.get("network_calls") is not None
    ]
    if len(shown) < 2:
        return None
    figure = Figure()
    for number, one in shown:
        figure.add_scatter(
            x=[max(one["network_calls"], 1)],
            y=[one["psnr"]],
            mode="markers",
            marker={"size": 13, "color": _color(number)},
            name=named(one["name"]),
            hovertemplate="%{x:,} network calls, %{y:.2f} dB<extra>" + named(one["name"]) + "</extra>",
        )
    calls = sorted({max(one["network_calls"], 1) for _, one in shown})
    room = 0.15 * (math.log10(max(calls) / min(calls)) or 1)
    figure.update_xaxes(
        title_text="Network calls per image",
        type="log",
        range=[math.log10(min(calls)) - room, math.log10(max(calls)) + room],
        tickvals=calls,
        ticktext=[f"{number:,.0f}" for number in calls],
    )
    found = [one["psnr"] for _, one in shown]
    room = max(0.25 * (max(found) - min(found)), 0.5)
    figure.update_yaxes(title_text="PSNR, dB", range=[min(found) - room, max(found) + room])
    return figure


def _levels(image: NDArray, span: Sequence[float]) -> NDArray[np.uint8]:
    """Return (C, H, W) as colors of 3 channels, or as gray: of 2 the magnitude, of others the mean."""
    import numpy as np

    low, high = span
    shares = np.clip((image - low) / (high - low), 0, 1)
    if len(image) == 2:
        shares = np.clip(np.hypot(image[0], image[1]) / max(abs(low), abs(high)), 0, 1)[None]
    shown = np.rint(255 * (np.moveaxis(shares, 0, -1) if len(image) == 3 else shares.mean(0)))
    return np.ascontiguousarray(shown.astype(np.uint8))


def _thinned(image: NDArray, side: int) -> NDArray:
    """Return means of blocks of (C, H, W), so that no side has more pixels than `side`."""
    block = math.ceil(max(image.shape[-2:]) / side)
    if block == 1:
        return image
    h, w = (n // block * block or n for n in image.shape[-2:])
    rows, columns = (min(block, n) for n in (h, w))
    blocks = image[..., :h, :w].reshape(len(image), h // rows, rows, w // columns, columns)
    return blocks.mean((2, 4))


def _residual_title(report: Mapping[str, Any]) -> str:
    per_noise = " / \N{GREEK SMALL LETTER SIGMA}\N{SUPERSCRIPT TWO}"
    return f"Residual{per_noise if report.get('sigma') else ''}"


def _short(name: str) -> str:
    return name if len(name) <= 18 else f"{name[:8]}\N{HORIZONTAL ELLIPSIS}{name[-9:]}"


def _color(number: int) -> str:
    return f"var(--c{number % 8 + 1})"


def _noise_line(figure: Figure, ends: Sequence[float]) -> None:
    figure.add_scatter(
        x=list(ends),
        y=[1, 1],
        mode="lines",
        name="the noise",
        line={"width": 1.5, "dash": "dot", "color": "var(--soft)"},
        hoverinfo="skip",
    )


def _logarithmic(figure: Figure, title: str) -> None:
    """Label decades only, where there are several."""
    values = [value for trace in figure.data for value in trace.y if value]
    decades = math.log10(max(values) / min(values)) if values else 0.0
    dtick = "D2" if decades < 2 else max(1, round(decades / 6))
    figure.update_yaxes(title_text=title, type="log", dtick=dtick, exponentformat="power")
