"""A watched training in a terminal: a gauge of the sharpness, small charts, the last values, one sentence."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lowdim.report.dynamics_words import METRICS
from lowdim.report.wording import duration, millions

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

__all__ = ["chart", "gauge", "terminal_view"]

BLOCKS = " ▁▂▃▄▅▆▇█"
PLAIN = " .:-=+*#@"
"""For terminals without block characters; eighths of a cell as well."""

STYLES = {"diverged": "bold red", "above": "bold red", "oscillating": "bold yellow", "edge": "bold yellow"}
STYLES |= {"near": "bold cyan", "below": "bold green"}
CHARTS = (
    ("loss", (None, None), "default"),
    ("sharpness_ratio", (0.0, None), "cyan"),
    ("alternation", (-1.0, 1.0), "blue"),
)
"""What is drawn, the ends of its scale where they are given, and its color."""

_WIDEST = 100
_LABELS = 9  # characters beside a chart


def terminal_view(
    report: Mapping[str, Any], *, width: int = 80, low: bool = False, blocks: bool = True, note: str = ""
) -> RenderableType:
    """Return where a training stands, for a terminal.

    Parameters
    ----------
    report : mapping
        The contents of report.json.
    width : int
        Columns of the terminal.
    low : bool
        Whether to make do with 24 lines.
    blocks : bool
        Whether it can show block characters.
    note : str
        A last line, dim.

    Returns
    -------
    rich renderable

    Examples
    --------
    >>> from rich.console import Console
    >>> report = {"source": "run.jsonl", "state": {"name": "below", "sentence": "Below the edge."}}
    >>> with (console := Console()).capture() as shown:
    ...     console.print(terminal_view(report))
    >>> "Below the edge." in shown.get()
    True
    """
    from rich.console import Group
    from rich.text import Text

    wide = max(24, min(width, _WIDEST))
    series, last = report.get("series") or {}, report.get("last") or {}
    parts: list[RenderableType] = [Text(_title(report), style="dim")]
    parts.append(Text(report["state"]["sentence"], style=STYLES.get(report["state"]["name"], "bold")))
    if "sharpness_ratio" in last:
        parts.append(_gauge_text(last["sharpness_ratio"]["value"], wide, blocks))
    for name, scale, style in CHARTS:
        values = series.get(name) or []
        if sum(value is not None for value in values) > 1:
            parts.append(_chart_text(name, values, scale, style, wide, 2 if low else 3, blocks))
    if last:
        parts.append(_values(last, wide))
    if note:
        parts.append(Text(note, style="dim"))
    if not low:  # an empty line between all but the title and the sentence
        parts = parts[:1] + [part for shown in parts[1:] for part in (shown, Text())][:-1]
    return Group(*parts)


def chart(
    values: Sequence[float | None],
    *,
    width: int,
    height: int = 3,
    low: float | None = None,
    high: float | None = None,
    blocks: bool = True,
) -> list[str]:
    """Return a column chart as lines of characters, the newest value at the right.

    Parameters
    ----------
    values : sequence of float or None
        None leaves its column empty. More values than columns are averaged.
    width, height : int
        In characters.
    low, high : float, optional
        Ends of the scale; those of the values by default. The lowest value still has the smallest block.
    blocks : bool
        Whether to use block characters.

    Returns
    -------
    list of str
        From the top to the bottom.

    Examples
    --------
    >>> chart([0, 1, 2, 4, None, 8], width=6, height=1)
    ['▁▁▂▄ █']
    """
    columns = _squeezed(values, width)
    known = [value for value in columns if value is not None]
    if not known:
        return [" " * width] * height
    bottom = min(known) if low is None else low
    top = max(max(known) if high is None else high, bottom)
    shades = BLOCKS if blocks else PLAIN
    lines = []
    for row in reversed(range(height)):
        line = ""
        for value in columns:
            share = 0.0 if value is None or top == bottom else (value - bottom) / (top - bottom)
            eighths = 0 if value is None else max(1, round(8 * height * min(max(share, 0.0), 1.0)))
            line += shades[min(max(eighths - 8 * row, 0), 8)]
        lines.append(line.rjust(width))
    return lines


def gauge(ratio: float, *, width: int, blocks: bool = True) -> tuple[str, int]:
    """Return a bar for a ratio with a mark at 1, at two thirds of its width.

    Parameters
    ----------
    ratio : float
        Full at 1.5.
    width : int
        In characters.
    blocks : bool
        Whether to use block characters.

    Returns
    -------
    tuple of (str, int)
        The bar, and the place of the mark in it.

    Examples
    --------
    >>> gauge(0.75, width=12)
    ('██████░░│░░░', 8)
    """
    full, empty, mark = ("█", "░", "│") if blocks else ("#", "-", "|")
    filled = round(width * min(max(ratio / 1.5, 0.0), 1.0))
    edge = round(width / 1.5)
    bar = full * filled + empty * (width - filled)
    return bar[:edge] + mark + bar[edge + 1 :], edge


def _title(report: Mapping[str, Any]) -> str:
    header = (report.get("headers") or [{}])[-1]
    rate, parameters = header.get("lr"), header.get("parameters")
    series = report.get("series") or {}
    parts = [
        report.get("source"),
        header.get("optimizer"),
        None if rate is None else f"lr {rate:g}",
        None if parameters is None else f"{millions(parameters)} parameters",
        f"step {series['step'][-1]:,}" if series.get("step") else None,
        duration(series["time"][-1]) if series.get("time") and series["time"][-1] is not None else None,
    ]
    return " | ".join(str(part) for part in parts if part)


def _gauge_text(value: float, width: int, blocks: bool) -> Text:
    from rich.text import Text

    bar, edge = gauge(value, width=width - _LABELS - 1, blocks=blocks)
    style = "red" if value > 1.15 else "yellow" if value >= 0.9 else "green"
    text = Text()
    text.append(f"{METRICS['sharpness_ratio'].title}, the edge at 1\n", style="bold")
    text.append(f"{value:>{_LABELS}.3f} ", style="default")
    text.append(bar[:edge], style=style)
    text.append(bar[edge], style="bold default")
    text.append(bar[edge + 1 :], style="red")
    return text


def _chart_text(
    name: str,
    values: Sequence[float | None],
    scale: tuple[float | None, float | None],
    style: str,
    width: int,
    height: int,
    blocks: bool,
) -> Text:
    from rich.text import Text

    low, high = scale
    known = [value for value in values if value is not None]
    title = METRICS[name].title
    if low is None and min(known) > 0 and max(known) > 20 * min(known):
        # A loss that falls by decades is a line along the bottom otherwise.
        values = [None if value is None else math.log(value) for value in values]
        title += ", logarithmic"
    bottom = min(known) if low is None else low
    top = max(known) if high is None else high
    marks = [f"{top:.3g}", *[""] * (height - 2), f"{bottom:.3g}"]
    text = Text()
    text.append(title, style="bold")
    drawn = chart(values, width=width - _LABELS - 1, height=height, low=low, high=high, blocks=blocks)
    for mark, line in zip(marks, drawn, strict=True):
        text.append(f"\n{mark:>{_LABELS}} ", style="dim")
        text.append(line, style=style)
    return text


def _values(last: Mapping[str, Any], width: int) -> Table:
    """Return the last values, as many pairs of name and value beside each other as there is room for."""
    from rich.table import Table

    table = Table.grid(padding=(0, 1), collapse_padding=True)
    pairs = max(1, width // 30)
    for _ in range(pairs):
        table.add_column(style="dim", no_wrap=True, width=17)
        table.add_column(no_wrap=True, width=9)
    cells = [cell for name, found in last.items() for cell in (METRICS[name].title, f"{found['value']:.4g}")]
    for start in range(0, len(cells), 2 * pairs):
        table.add_row(*cells[start : start + 2 * pairs])
    return table


def _squeezed(values: Sequence[float | None], width: int) -> list[float | None]:
    """Return at most `width` values: means of neighbors if there are more."""
    if len(values) <= width:
        return list(values)
    edges = [round(at * len(values) / width) for at in range(width + 1)]
    means = []
    for start, end in itertools.pairwise(edges):
        known = [value for value in values[start:end] if value is not None]
        means.append(sum(known) / len(known) if known else None)
    return means
