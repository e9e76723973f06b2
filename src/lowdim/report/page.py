"""A page: one HTML file that shows a result and needs nothing else.

The file carries its styles, its script, its data and plotly.js (compressed,
once), forbids itself every network request by its content security policy,
follows the reader's light or dark preference, and prints.
"""

from __future__ import annotations

import base64
import functools
import gzip
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

import lowdim
from lowdim.errors import DataError
from lowdim.report.cells import Format, Head, cell, shown, top
from lowdim.runs import atomic_write

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure

__all__ = ["Card", "Page"]


@dataclass(frozen=True)
class Card:
    """One main number of a result.

    Parameters
    ----------
    label : str
        What it is ("File size").
    value : str
        The number with its unit, as people read it ("43.2 MB").
    note : str
        What it is to be compared with ("was 90.9 MB").
    share : float, optional
        A fraction in [0, 1] drawn as a small bar under the value.

    Examples
    --------
    >>> Card("File size", "43.2 MB", "was 90.9 MB", share=0.475).value
    '43.2 MB'
    """

    label: str
    value: str
    note: str = ""
    share: float | None = None


@dataclass(frozen=True)
class _Block:
    """One element of the page: the name of its template macro and what it shows."""

    kind: str
    content: dict[str, Any]


class Page:
    """A self-contained report page, built from top to bottom.

    Every method adds one element and returns the page, so that calls can be
    chained. All text is escaped: a layer named ``<script>`` is shown, not run.

    Parameters
    ----------
    title : str
        The heading and the window title.
    subtitle : str, optional
        One line below it.
    eyebrow : str, optional
        One short line above it: which command made the page.

    Examples
    --------
    >>> page = Page("Two numbers").lead("Both are small.").cards([("One", "1", ""), ("Two", "2", "")])
    >>> page.html().startswith("<!doctype html>")
    True
    """

    def __init__(self, title: str, *, subtitle: str = "", eyebrow: str = "lowdim") -> None:
        self.title = title
        self.subtitle = subtitle
        self.eyebrow = eyebrow
        self._blocks: list[_Block] = []
        self._sections: list[tuple[str, str]] = []

    def lead(self, text: str) -> Page:
        """Add the sentences that a reader in a hurry reads.

        Parameters
        ----------
        text : str

        Returns
        -------
        Page
            This page.
        """
        return self._add("lead", text=text)

    def cards(self, cards: Iterable[Card | tuple[Any, ...]]) -> Page:
        """Add the main numbers.

        Parameters
        ----------
        cards : iterable of Card or of (label, value, note) or (label, value, note, share)

        Returns
        -------
        Page
            This page.
        """
        return self._add("cards", cards=[card if isinstance(card, Card) else Card(*card) for card in cards])

    def section(self, title: str, *, intro: str = "") -> Page:
        """Begin a section; its title appears in the navigation.

        Parameters
        ----------
        title : str
        intro : str
            A paragraph below the title.

        Returns
        -------
        Page
            This page.
        """
        anchor = f"section-{len(self._sections) + 1}"
        self._sections.append((anchor, title))
        return self._add("section", anchor=anchor, title=title, intro=intro)

    def text(self, text: str) -> Page:
        """Add a paragraph.

        Parameters
        ----------
        text : str

        Returns
        -------
        Page
            This page.
        """
        return self._add("text", text=text)

    def sentences(self, sentences: Iterable[str]) -> Page:
        """Add a list of plain sentences.

        Parameters
        ----------
        sentences : iterable of str

        Returns
        -------
        Page
            This page.
        """
        return self._add("sentences", sentences=list(sentences))

    def statements(self, statements: Iterable[tuple[str, Sequence[str]]]) -> Page:
        """Add sentences by topic.

        Parameters
        ----------
        statements : iterable of (str, sequence of str)
            A topic and its sentences.

        Returns
        -------
        Page
            This page.
        """
        return self._add("statements", statements=[(topic, list(given)) for topic, given in statements])

    def verdicts(self, verdicts: Iterable[tuple[bool, str]]) -> Page:
        """Add quality gates.

        Parameters
        ----------
        verdicts : iterable of (bool, str)
            Whether the gate was passed, and its sentence.

        Returns
        -------
        Page
            This page.
        """
        return self._add("verdicts", verdicts=list(verdicts))

    def facts(self, facts: Iterable[tuple[str, Any]]) -> Page:
        """Add pairs of a name and a value (settings, versions).

        Parameters
        ----------
        facts : iterable of (str, object)

        Returns
        -------
        Page
            This page.
        """
        return self._add("facts", facts=[(name, shown(value, None)) for name, value in facts])

    def code(self, text: str, *, caption: str = "") -> Page:
        """Add code with a button that copies it.

        Parameters
        ----------
        text : str
            The code; blank lines around it are dropped.
        caption : str
            What it is for.

        Returns
        -------
        Page
            This page.
        """
        return self._add("code", text=text.strip("\n"), caption=caption)

    def figure(self, figure: Figure, *, caption: str, height: int = 360) -> Page:
        """Add a Plotly figure.

        Colors given as ``var(--name)`` are taken from the page's palette
        (``--before``, ``--after``, ``--warm``, ``--accent``, ``--c1`` ... ``--c8``), so
        that the figure follows light and dark.

        Parameters
        ----------
        figure : plotly.graph_objects.Figure
        caption : str
            What it shows; also its description for screen readers.
        height : int
            In pixels.

        Returns
        -------
        Page
            This page.
        """
        shown = json.loads(figure.to_json())
        # The page has its own template; Plotly's default one is 7 kB in every figure.
        shown["layout"].pop("template", None)
        return self._add("figure", json=_json(shown), caption=caption, height=height)

    def sliders(
        self,
        pictures: Iterable[tuple[str, Mapping[str, str]]],
        *,
        before: Sequence[str],
        after: Sequence[str],
        caption: str,
    ) -> Page:
        """Add images over each other, with a line between them that the mouse and the arrow keys move.

        Parameters
        ----------
        pictures : iterable of (str, mapping of str to str)
            A title, and by name the addresses (see `png_uri`) of images that show the same.
        before, after : sequence of str
            Names to choose from for the left and for the right of the line, the first ones shown; of a
            picture that lacks one, the next.
        caption : str
            What they show, for screen readers.

        Returns
        -------
        Page
            This page.
        """
        sides = (("before", "Left", list(before)), ("after", "Right", list(after)))
        shown = [(title, dict(layers)) for title, layers in pictures]
        return self._add("sliders", pictures=shown, sides=sides, caption=caption)

    def table(
        self,
        rows: pd.DataFrame | Sequence[Mapping[str, Any]],
        *,
        caption: str,
        formats: Mapping[str, Format] | None = None,
        bars: Iterable[str] = (),
        narrow: bool = False,
    ) -> Page:
        """Add a table that sorts by a click (or Enter) on a column's heading.

        Parameters
        ----------
        rows : pandas.DataFrame or sequence of mappings
            The columns appear in the order of the frame or of the first
            appearance of a key; a missing value is an empty cell and sorts last.
        caption : str
            What the table holds.
        formats : mapping of str to str or callable, optional
            How a column's values are shown: a format string (``"{:.3f}"``) or a
            function. Sorting uses the values themselves.
        bars : iterable of str
            Columns of non-negative numbers that get a bar behind the number.
        narrow : bool
            Whether a table of few short columns keeps to half of the width.

        Returns
        -------
        Page
            This page.

        Raises
        ------
        DataError
            If `formats` or `bars` name a column that the rows do not have.
        """
        records = list(rows.to_dict("records")) if hasattr(rows, "to_dict") else [dict(row) for row in rows]
        columns = list(dict.fromkeys(str(key) for row in records for key in row))
        formats, bars = dict(formats or {}), set(bars)
        unknown = sorted((set(formats) | bars) - set(columns)) if records else []
        if unknown:
            raise DataError(
                f"Page.table: the rows have no column {unknown[0]!r}. Columns: {', '.join(columns)}."
            )
        heads = [Head(name, records) for name in columns]
        tops = {name: top(records, name) for name in bars}
        body = [
            [cell(row.get(head.name), formats.get(head.name), tops.get(head.name)) for head in heads]
            for row in records
        ]
        return self._add("table", heads=heads, body=body, caption=caption, narrow=narrow)

    def html(self) -> str:
        """Return the whole page as text.

        Returns
        -------
        str
        """
        figures = any(block.kind == "figure" for block in self._blocks)
        page = (
            _templates()
            .get_template("page.html.j2")
            .render(
                title=self.title,
                subtitle=self.subtitle,
                eyebrow=self.eyebrow,
                sections=self._sections,
                blocks=self._blocks,
                plotly=_plotly() if figures else None,
                css=_asset("page.css"),
                script=_asset("page.js"),
                version=lowdim.__version__,
            )
        )
        return page.lstrip()

    def write(self, path: str | Path) -> Path:
        """Write the page beside `path` and rename it into place.

        Parameters
        ----------
        path : str or Path
            Usually ``OUT/report.html``.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        RunError
            If it cannot be written; no half file is left.
        """
        atomic_write(Path(path), self.html())
        return Path(path)

    def _add(self, kind: str, **content: Any) -> Page:
        self._blocks.append(_Block(kind, content))
        return self


def _json(value: Any) -> str:
    """Return JSON that may stand inside a script element."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _tied(text: str) -> str:
    """Tie numbers to their units, so that no line breaks between them."""
    return re.sub(r"(?<=[0-9]) (?=(%|[kMG]?B|ms|s|min|h|[KMB])(?![A-Za-z]))", "\N{NO-BREAK SPACE}", text)


@functools.cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("lowdim.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["tied"] = _tied
    return environment


@functools.cache
def _asset(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


@functools.cache
def _plotly() -> str:
    """Return plotly.js for the page, gzipped and in base64: 2 MB in place of 5.

    The plotly package ships the full distribution only; browsers since 2023
    unpack it themselves (DecompressionStream).
    """
    from plotly.offline import get_plotlyjs

    packed = gzip.compress(get_plotlyjs().encode(), compresslevel=9, mtime=0)
    return base64.b64encode(packed).decode("ascii")
