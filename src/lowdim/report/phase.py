"""The pages of ``lowdim phase``: what was recovered and how well, and how many measurements it takes."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from lowdim.errors import DataError
from lowdim.report import phase_figures as figures
from lowdim.report.page import Card, Page
from lowdim.report.wording import by, count, duration, percent

__all__ = ["phase_page", "transition_page"]

SETTINGS = {
    "ranks": "Ranks asked for",
    "init": "First start",
    "n_init": "Starts at most",
    "max_iter": "Sweeps at most",
    "robust": "Outliers weighted down",
    "real": "Frames said to be real",
}

TRIED = {
    "ranks": "Tucker ranks",
    "rank": "Rank of the matrix",
    "kind": "Map",
    "noise": "Noise",
    "seeds": "Draws of the map",
    "n_init": "Starts at most",
    "max_iter": "Sweeps at most",
}


def phase_page(report: Mapping[str, Any]) -> Page:
    """Return the page of recovered frames.

    Parameters
    ----------
    report : mapping
        The contents of report.json. Only ``method`` and ``unexplained`` must be there; what else is missing
        is left out.

    Returns
    -------
    Page
        Call ``.write(path)`` or ``.html()``.

    Raises
    ------
    DataError
        If ``method`` or ``unexplained`` is missing.

    Examples
    --------
    >>> page = phase_page({"source": "film.npz", "method": "tucker", "unexplained": {"total": 0.059}})
    >>> "5.9" in page.html()
    True
    """
    missing = [key for key in ("method", "unexplained") if key not in report]
    if missing:
        raise DataError(
            f"phase_page: the report has no {missing[0]!r}. Give the contents of a report.json written by "
            "`lowdim phase recover`."
        )
    page = Page(
        str(report.get("source", "Frames")), subtitle=_subtitle(report), eyebrow="Recovered by lowdim"
    )
    if report.get("sentence"):
        page.lead(str(report["sentence"]))
    gate = report.get("gate")
    if gate:
        page.verdicts([(gate["passed"], f"At most {percent(gate['max_unexplained'])} may stay unexplained.")])
    page.cards(_cards(report))
    _video(page, report)
    _errors(page, report)
    _ranks(page, report)
    _convergence(page, report)
    if report.get("output"):
        page.section("Use it").code(
            _loading(report, "PhaseResult"), caption="Go on with the result in Python:"
        )
    _made(page, report, SETTINGS)
    return page


def transition_page(report: Mapping[str, Any]) -> Page:
    """Return the page of a phase transition: errors of methods over measurements per pixel.

    Parameters
    ----------
    report : mapping
        The contents of report.json. Only ``rows`` must be there.

    Returns
    -------
    Page
        Call ``.write(path)`` or ``.html()``.

    Raises
    ------
    DataError
        If ``rows`` is missing.

    Examples
    --------
    >>> row = {"method": "tucker", "measurements": 0.5, "seed": 0, "error": 0.01}
    >>> "Tucker" in transition_page({"source": "film.tif", "rows": [row]}).html()
    True
    """
    if not report.get("rows"):
        raise DataError(
            "transition_page: the report has no 'rows'. Give the contents of a report.json written by "
            "`lowdim phase transition`."
        )
    shape = report.get("image_shape")
    told = [f"{count(report['frames'], 'frame')} of {by(shape)}" if shape and report.get("frames") else None]
    told.append(str(report["created"])[:10] if report.get("created") else None)
    page = Page(
        str(report.get("source", "Frames")),
        subtitle=" · ".join(text for text in told if text),
        eyebrow="How many measurements it takes, tried by lowdim",
    )
    page.lead(_threshold(report))
    figure = figures.transition(report)
    if figure is not None:
        page.section(
            "Transition",
            intro="The relative error of all frames: 0 is exact, 1 is that of frames of 0, and a wrong end "
            "has about 1.2. Lines join the medians over draws of the map.",
        )
        page.figure(figure, caption="Error by method and number of measurements", height=400)
    columns = {
        "method": "Method",
        "measurements": "m / n",
        "seed": "Draw",
        "error": "Relative error",
        "unexplained": "Unexplained",
        "seconds": "Seconds",
    }
    page.table(
        [
            {title: figures.METHODS.get(row.get(key), row.get(key)) for key, title in columns.items()}
            for row in report["rows"]
        ],
        caption="All tries",
        formats={"Relative error": "{:.2g}", "Unexplained": "{:.2g}", "Seconds": "{:.2f}"},
    )
    if report.get("output"):
        page.section("Use it").code(
            _loading(report, "Transition"), caption="Go on with the result in Python:"
        )
    _made(page, report, TRIED)
    return page


def _subtitle(report: Mapping[str, Any]) -> str:
    method = figures.METHODS.get(report["method"], report["method"])
    ranks = report.get("ranks")
    parts = [
        f"method: {method}",
        f"ranks {', '.join(map(str, ranks))}" if ranks else None,
        f"measured by {report['map']}" if report.get("map") else None,
        str(report["created"])[:10] if report.get("created") else None,
    ]
    return " · ".join(str(part) for part in parts if part)


def _cards(report: Mapping[str, Any]) -> list[Card]:
    cards, error = [], report.get("error")
    if error and error.get("total") is not None:
        cards.append(Card("Error", percent(error["total"]), "of the norm of the true frames"))
    total = report["unexplained"].get("total")
    if total is not None:
        cards.append(Card("Unexplained", percent(total), "of the norm of the magnitudes", min(total, 1.0)))
    if report.get("ratio") is not None:
        of = f"{report['measurements']:,} per frame" if report.get("measurements") else ""
        cards.append(Card("Magnitudes per pixel", f"{report['ratio']:.2g}", of))
    if report.get("frames") is not None:
        shape = report.get("image_shape")
        cards.append(Card("Frames", f"{report['frames']:,}", f"of {by(shape)} pixels" if shape else ""))
    if report.get("unknowns") is not None:
        data = report.get("measurements", 0) * report.get("frames", 0)
        cards.append(Card("Unknowns", f"{report['unknowns']:,}", f"{data:,} magnitudes" if data else ""))
    return cards


def _video(page: Page, report: Mapping[str, Any]) -> None:
    drawn, moving = figures.pictures(report), figures.film(report)
    if drawn is None and moving is None:
        return
    truth = bool(report.get("error"))
    intro = "" if report.get("real", True) else "Complex images are shown by their magnitudes. "
    intro += (
        "Every frame is turned by the unit factor that brings it nearest to the true one."
        if truth
        else "Every frame is known up to a unit factor, chosen here to be nearest to the frame before."
    )
    page.section("Video", intro=intro)
    if drawn is not None:
        figure, height = drawn
        caption = "True, recovered, and the difference in its own colors" if truth else "Some of the frames"
        page.figure(figure, caption=caption, height=height)
    if moving is not None:
        figure, height = moving
        page.figure(figure, caption=f"The film{_thinned(report)}: pull the slider", height=height)


def _thinned(report: Mapping[str, Any]) -> str:
    shown, frames = len(report["film"]["frames"]), report.get("frames")
    return f", {shown} of {count(frames, 'frame')}" if frames and frames != shown else ""


def _errors(page: Page, report: Mapping[str, Any]) -> None:
    figure = figures.per_frame(report)
    if figure is None:
        return
    page.section(
        "Frame by frame",
        intro="What stays unexplained of a frame, the norm of |Ax| - y over that of y, needs no truth. "
        "A wrong frame explains its magnitudes badly, unless they are fewer than its unknowns.",
    )
    what = "Error and unexplained magnitudes" if report.get("error") else "Unexplained magnitudes"
    page.figure(figure, caption=f"{what} of every frame", height=320)


def _ranks(page: Page, report: Mapping[str, Any]) -> None:
    figure, choice = figures.spectra(report), report.get("choice")
    if figure is None and not choice:
        return
    page.section(
        "Ranks",
        intro="Singular values of the recovered frames, laid out by rows, by columns and by frames. Those "
        "beyond the rank are not there; a curve that ends high may want a larger rank.",
    )
    if figure is not None:
        page.figure(figure, caption="Singular values of every mode", height=320)
    if choice:
        rows = [
            {
                "Ranks": ", ".join(map(str, row["ranks"])),
                "Unknowns": row.get("unknowns"),
                "Unexplained": None if row.get("held_out") is None else row["held_out"] ** 0.5,
                "Chosen": "yes" if row["ranks"] == choice.get("ranks") else "",
            }
            for row in choice.get("candidates", [])
        ]
        page.table(
            rows,
            caption=f"Ranks that were tried, judged by {count(choice['held_out'], 'magnitude')} left out of "
            "the fits: the fewest unknowns that are as good as the best"
            if choice.get("held_out")
            else "Ranks that were tried",
            formats={"Unknowns": "{:,}", "Unexplained": percent},
            bars=["Unexplained"],
        )


def _convergence(page: Page, report: Mapping[str, Any]) -> None:
    figure = figures.loss(report)
    if figure is None:
        return
    end = {True: "The loss stood still at the end.", False: "The loss had not come to a stand at the end."}
    page.section("Convergence", intro=end.get(report.get("converged"), ""))  # type: ignore[arg-type]
    page.figure(figure, caption="Unexplained magnitudes after every sweep of the best start", height=320)


def _threshold(report: Mapping[str, Any]) -> str:
    """Say from how many measurements on each method has an error below a tenth."""
    told = []
    for name in dict.fromkeys(row["method"] for row in report["rows"]):
        own = [row for row in report["rows"] if row["method"] == name]
        ratios = sorted({row["measurements"] for row in own}, reverse=True)
        enough = None
        for ratio in ratios:
            errors = [row["error"] for row in own if row["measurements"] == ratio]
            if any(error is None for error in errors) or median(errors) >= 0.1:
                break
            enough = ratio
        what = figures.METHODS.get(name, name)
        if enough is None:
            told.append(f"{what} needs more than {max(ratios):g}")
        else:
            told.append(f"{what} needs {'at most ' if enough == min(ratios) else ''}{enough:g}")
    return f"Measurements per pixel for an error below 10 %: {'; '.join(told)}."


def _loading(report: Mapping[str, Any], kind: str) -> str:
    start = f"from lowdim.phase import {kind}\n\nresult = {kind}.load({str(report['output'])!r})\n"
    if kind == "Transition":
        return f"{start}result.table       # one row per method, m/n and draw\nresult.medians()"
    model = "" if report["method"] == "rwf" else "\nresult.model    # its factors"
    return f"{start}result.frames   # (frames, height, width){model}"


def _made(page: Page, report: Mapping[str, Any], titles: Mapping[str, str]) -> None:
    page.section("How it was made")
    if report.get("command"):
        page.code(str(report["command"]), caption="The command:")
    settings = report.get("settings") or {}
    facts = [(title, _fact(settings[key])) for key, title in titles.items() if settings.get(key) is not None]
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


def _fact(value: Any) -> Any:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
