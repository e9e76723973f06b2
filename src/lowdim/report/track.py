"""The page of ``lowdim track``: does the subspace move, how far, and what was filled in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lowdim.errors import DataError
from lowdim.report import track_figures as figures
from lowdim.report.page import Card, Page
from lowdim.report.wording import by, count, duration, percent

__all__ = ["track_page"]

SETTINGS = {
    "held_out": "Fraction hidden for the comparison",
    "ridge": "Ridge",
    "n_init": "Starts",
    "draws": "Draws",
    "n_components": "Components asked for",
    "model": "Model asked for",
}


def track_page(report: Mapping[str, Any]) -> Page:
    """Return the page of a tracked panel.

    Parameters
    ----------
    report : mapping
        The contents of report.json. Only ``model`` and ``comparison`` must be there; what else is missing is
        left out.

    Returns
    -------
    Page
        Call ``.write(path)`` or ``.html()``.

    Raises
    ------
    DataError
        If ``model`` or ``comparison`` is missing.

    Examples
    --------
    >>> row = {"model": "static", "n_components": 1, "error": 0.1, "relative": 0.2, "unknowns": 9}
    >>> found = {"table": [row], "sentence": "No motion is needed."}
    >>> page = track_page({"source": "sales.csv", "model": "static", "comparison": found})
    >>> "No motion is needed." in page.html()
    True
    """
    missing = [key for key in ("model", "comparison") if key not in report]
    if missing:
        raise DataError(
            f"track_page: the report has no {missing[0]!r}. Give the contents of a report.json written by "
            "`lowdim track`."
        )
    page = Page(str(report.get("source", "Frames")), subtitle=_subtitle(report), eyebrow="Followed by lowdim")
    page.lead(" ".join([report["comparison"].get("sentence", ""), *_filled(report)]).strip())
    cards = _cards(report)
    if cards:
        page.cards(cards)
    _motion(page, report)
    _data(page, report)
    _errors(page, report)
    if report.get("output"):
        page.section("Use it").code(_loading(report), caption="Go on with the result in Python:")
    _made(page, report)
    return page


def _subtitle(report: Mapping[str, Any]) -> str:
    time = report.get("time") or {}
    span = f"{time['first']} to {time['last']}" if time.get("kind", "order") != "order" else None
    model = figures.MODELS.get(report["model"], report["model"])
    parts = [f"model: {model}", span, str(report["created"])[:10] if report.get("created") else None]
    return " · ".join(str(part) for part in parts if part)


def _filled(report: Mapping[str, Any]) -> list[str]:
    """Return what was done about the gaps, in a sentence."""
    if report.get("missing") == 0:
        return ["Nothing was missing."]
    if not report.get("filled"):
        return []
    left = f" {count(report['left_empty'], 'gap')} stayed empty." if report.get("left_empty") else ""
    return [f"{count(report['filled'], 'gap')} filled in.{left}"]


def _cards(report: Mapping[str, Any]) -> list[Card]:
    cards = []
    if report.get("error") is not None:
        rest = report.get("error_at_rest")
        note = "of the size of the hidden entries"
        if rest is not None and report["model"] != "static":
            note = f"best subspace at rest: {percent(rest)}"
        cards.append(Card("Error on hidden entries", percent(report["error"]), note))
    if report.get("turned") is not None and report["model"] != "static":
        cards.append(Card("Turned by", f"{report['turned']:.1f}°", "from the first time to the last"))
    if report.get("n_components") is not None:
        cards.append(Card("Components", str(report["n_components"]), "dimensions of the subspace"))
    if report.get("missing") is not None:
        missing = report["missing"]
        cards.append(Card("Missing", percent(missing), f"{report.get('filled', 0):,} filled in", missing))
    if report.get("frames") is not None:
        shape = report.get("shape") or []
        features = report.get("features")
        what = f"of {count(features, 'feature')}" if features is not None else ""
        what = f"images of {by(shape[1:])}" if len(shape) == 3 else what
        cards.append(Card("Frames", f"{report['frames']:,}", what))
    return cards


def _motion(page: Page, report: Mapping[str, Any]) -> None:
    figure = figures.angles(report)
    if figure is None:
        return
    page.section(
        "Motion",
        intro="Principal angles between the subspace at the first time and at each: 0 degrees is the same "
        "subspace, 90 degrees a direction that was not in it.",
    )
    page.figure(figure, caption="How far the subspace has turned", height=340)


def _data(page: Page, report: Mapping[str, Any]) -> None:
    gaps = bool(report.get("missing"))
    drawn = figures.pictures(report)
    if drawn is not None:
        figure, height = drawn
        page.section("Images")
        caption = "Observed (gaps in orange), and below filled in" if gaps else "Some of the images"
        page.figure(figure, caption=caption, height=height)
        return
    panel = figures.panel(report)
    if panel is not None:
        page.section("The panel", intro=_thinned(report))
        caption = "Observed (gaps are blank), and beside it filled in" if gaps else "The panel, as observed"
        page.figure(panel, caption=caption, height=460)


def _thinned(report: Mapping[str, Any]) -> str:
    panel = report["panel"]
    rows, columns = len(panel["times"]), len(panel["names"])
    if rows == report.get("frames", rows) and columns == report.get("features", columns):
        return ""
    of_frames, of_features = count(report["frames"], "frame"), count(report["features"], "feature")
    return f"{rows} of {of_frames} and {columns} of {of_features} are shown, evenly picked."


def _errors(page: Page, report: Mapping[str, Any]) -> None:
    found = report["comparison"]
    rows = found.get("table") or []
    figure = figures.errors(report)
    if figure is None:
        return
    hidden = found.get("held_out")
    how = f"{count(hidden, 'observed entry', 'observed entries')} were" if hidden else "Some entries were"
    page.section(
        "Comparison",
        intro=f"{how} hidden, filled in by every model, and compared with what they are. An error of 100 % "
        "is that of filling in zeros. A subspace at rest is tried with twice as many components, too: a "
        "geodesic lives in a space of twice its dimension.",
    )
    page.figure(figure, caption="Error on hidden entries by model and number of components", height=340)
    columns = {
        "model": "Model",
        "n_components": "Components",
        "error": "Error (root mean square)",
        "relative": "Relative error",
        "unknowns": "Unknowns",
    }
    named = [{**row, "model": figures.MODELS.get(row["model"], row["model"])} for row in rows]
    page.table(
        [{title: row.get(key) for key, title in columns.items()} for row in named],
        caption="All models on the same hidden entries",
        formats={"Relative error": percent, "Unknowns": "{:,}"},
        bars=["Relative error"],
    )


def _loading(report: Mapping[str, Any]) -> str:
    return (
        "from lowdim.track import TrackResult\n\n"
        f"result = TrackResult.load({str(report['output'])!r})\n"
        "result.imputed   # frames without gaps, (frames, features)\n"
        "result.angles    # in radians, (frames, components)\n"
        "result.model     # basis(), transform(), impute()"
    )


def _made(page: Page, report: Mapping[str, Any]) -> None:
    page.section("How it was made")
    if report.get("command"):
        page.code(str(report["command"]), caption="The command:")
    settings = report.get("settings") or {}
    facts = [(title, settings[key]) for key, title in SETTINGS.items() if settings.get(key) is not None]
    facts += [
        (title, report[key])
        for key, title in {"seed": "Seed", "created": "Written"}.items()
        if report.get(key) is not None
    ]
    seconds = report.get("seconds") or {}
    facts += [(f"Time to {phase}", duration(value)) for phase, value in seconds.items() if value]
    page.facts(facts)
    if report.get("notes"):
        page.sentences(str(note) for note in report["notes"])
    if report.get("versions"):
        page.text("Versions:").facts(report["versions"].items())
