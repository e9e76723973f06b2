"""The page of ``lowdim dynamics``: where a training stands, and what its layers do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lowdim.errors import DataError
from lowdim.report import dynamics_figures as figures
from lowdim.report.dynamics_words import METRICS
from lowdim.report.page import Card, Page
from lowdim.report.wording import count, duration, millions, percent

__all__ = ["dynamics_page"]

HEADER = {
    "optimizer": "Optimizer",
    "lr": "Learning rate",
    "threshold_rule": "Threshold",
    "label": "Sharpness is",
    "every": "Steps between reports",
    "started": "Begun",
}


def dynamics_page(report: Mapping[str, Any]) -> Page:
    """Return the page of a watched training.

    Parameters
    ----------
    report : mapping
        The contents of report.json. Only ``state`` must be there; what else is missing is left out.

    Returns
    -------
    Page
        Call ``.write(path)`` or ``.html()``.

    Raises
    ------
    DataError
        If ``state`` is missing.

    Examples
    --------
    >>> page = dynamics_page({"state": {"name": "below", "sentence": "Below the edge."}})
    >>> "Below the edge." in page.html()
    True
    """
    if "state" not in report:
        raise DataError(
            "dynamics_page: the report has no 'state'. Give the contents of a report.json written by "
            "`lowdim dynamics watch RUN.jsonl -o OUT`."
        )
    page = Page(
        str(report.get("source", "Training")), subtitle=_subtitle(report), eyebrow="Watched by lowdim"
    )
    page.lead(report["state"]["sentence"])
    cards = _cards(report)
    if cards:
        page.cards(cards)
    _found(page, report)
    _training(page, report)
    _layers(page, report)
    _balance(page, report)
    _cost(page, report)
    _numbers(page, report)
    _glossary(page, report)
    if report.get("source"):
        page.section("Use it").code(_loading(report), caption="Go on with the numbers in Python:")
    _made(page, report)
    return page


def _header(report: Mapping[str, Any]) -> Mapping[str, Any]:
    return (report.get("headers") or [{}])[-1]


def _subtitle(report: Mapping[str, Any]) -> str:
    header = _header(report)
    rate, parameters = header.get("lr"), header.get("parameters")
    optimizer = " ".join(
        part for part in (header.get("optimizer"), None if rate is None else f"lr {rate:g}") if part
    )
    steps = (report.get("series") or {}).get("step")
    parts = [
        optimizer,
        None if parameters is None else f"{millions(parameters)} parameters",
        f"{steps[-1]:,} steps" if steps else None,
        str(report["created"])[:10] if report.get("created") else None,
    ]
    return " · ".join(part for part in parts if part)


def _cards(report: Mapping[str, Any]) -> list[Card]:
    last, numbers = report.get("last") or {}, _by_topic(report)
    cards = []
    if "sharpness_ratio" in last:
        ratio = last["sharpness_ratio"]["value"]
        sharp, limit = last.get("sharpness"), last.get("threshold")
        note = f"{sharp['value']:.4g} of {limit['value']:.4g}" if sharp and limit else "1 is the edge"
        cards.append(Card("Sharpness / threshold", f"{ratio:.3g}", note, min(max(ratio, 0.0), 1.0)))
    sharpness = numbers.get("Sharpness", {})
    if "crossed_at" in sharpness:
        crossed = sharpness["crossed_at"]
        note = f"{sharpness['greatest']:.3g} of the threshold at most"
        cards.append(Card("Reached the edge", "never" if crossed is None else f"step {crossed:,}", note))
    if "alternation" in last:
        swing = last["alternation"]["value"]
        note = (
            "steps undo each other" if swing > 0.5 else "steps go on" if swing < -0.5 else "no clear pattern"
        )
        cards.append(Card("Alternation", f"{swing:+.2f}".replace("-", "\N{MINUS SIGN}"), note))
    if "loss" in last:
        first = numbers.get("Loss", {}).get("first")
        cards.append(
            Card("Loss", f"{last['loss']['value']:.3g}", "" if first is None else f"was {first:.3g}")
        )
    probes = numbers.get("Probes", {})
    if probes.get("share") is not None:
        note = f"{duration(probes['seconds'])} in {count(probes['reports'], 'report')}"
        cards.append(Card("Probe time", percent(probes["share"]), note, probes["share"]))
    return cards


def _by_topic(report: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the numbers that the first finding of each topic rests on."""
    found: dict[str, Mapping[str, Any]] = {}
    for finding in report.get("findings") or []:
        found.setdefault(finding["topic"], finding.get("numbers") or {})
    return found


def _found(page: Page, report: Mapping[str, Any]) -> None:
    topics: dict[str, list[str]] = {}
    for finding in report.get("findings") or []:
        topics.setdefault(finding["topic"], []).append(finding["sentence"])
    if topics:
        page.section("Findings").statements(topics.items())


def _training(page: Page, report: Mapping[str, Any]) -> None:
    drawn = figures.training(report)
    if drawn is None:
        return
    figure, height = drawn
    page.section(
        "Training",
        intro="The dashed line is the edge of stability: there the sharpness is what the optimizer bears at "
        "its learning rate. The shaded reports are those between which it is first passed.",
    )
    names = [METRICS[name].title.lower() for name in figures.drawn(report)]
    caption = f"{', '.join(names).capitalize()} over the steps"
    page.figure(figure, caption=f"{caption}{_periods(report)}", height=height)


def _periods(report: Mapping[str, Any]) -> str:
    """Say what the colors of the periods that occur mean."""
    there = {int(period) for period in report["series"].get("period") or [] if period is not None}
    told = [f"{color}: {words}" for period, (words, color) in figures.PERIODS.items() if period in there]
    return f" ({', '.join(told)})" if told else ""


def _layers(page: Page, report: Mapping[str, Any]) -> None:
    families = ("erank", "srank", "erank_grad", "erank_update", "drift_deg")
    drawn = [(name, found) for name in families if (found := figures.layers(report, name)) is not None]
    if not drawn:
        return
    page.section(
        "Layers", intro="Ranks say how many directions a matrix uses; the drift, how far they turned."
    )
    for name, (figure, height) in drawn:
        many = len(report["families"][name]["names"]) > figures.FEW
        how = " (change since the first report)" if many and name != "drift_deg" else ""
        page.figure(figure, caption=f"{METRICS[name].title}{how}", height=height)
    rows = report.get("layers") or []
    titles = {
        "layer": "Layer",
        "erank_first": "Effective rank, first",
        "erank_last": "Effective rank, last",
        "srank_first": "Stable rank, first",
        "srank_last": "Stable rank, last",
        "drift_deg_last": "Drift, degrees",
    }
    shown = {key: title for key, title in titles.items() if any(key in row for row in rows)}
    if rows:
        page.table(
            [{title: row.get(key) for key, title in shown.items()} for row in rows],
            caption="All layers, from the first report to the last",
            formats={title: "{:.3g}" for key, title in shown.items() if key != "layer"},
            bars=[titles["drift_deg_last"]] if "drift_deg_last" in shown else [],
        )


def _balance(page: Page, report: Mapping[str, Any]) -> None:
    drawn = figures.balance(report)
    if drawn is None:
        return
    figure, height = drawn
    page.section("Balance", intro=METRICS["balance_gap"].meaning)
    page.figure(figure, caption="Balancing gap of consecutive layers", height=height)


def _cost(page: Page, report: Mapping[str, Any]) -> None:
    figure = figures.cost(report)
    if figure is not None:
        page.section("Cost", intro="What watching took.")
        page.figure(figure, caption="Hessian products and seconds of each report", height=260)


def _numbers(page: Page, report: Mapping[str, Any]) -> None:
    """Add the table of reports, evenly thinned."""
    series = report.get("series") or {}
    steps = series.get("step") or []
    if not steps:
        return
    names = [name for name in ("loss", "sharpness", "sharpness_ratio", *_REST) if name in series]
    every = max(1, -(-len(steps) // 100))
    places = sorted({*range(len(steps) - 1, -1, -every)})
    page.section("Numbers")
    page.table(
        [
            {"Step": steps[at], "Time, s": series["time"][at]}
            | {METRICS[name].title: series[name][at] for name in names}
            for at in places
        ],
        caption="Reports" if every == 1 else f"Every {every}th report; all of them are in the JSONL file",
        formats={"Step": "{:,}"},
    )


_REST = (
    *("sharpness_raw", "sharpness_residual", "lowest_curvature", "alternation", "period", "osc_rank"),
    *("hvps", "seconds"),
)


def _glossary(page: Page, report: Mapping[str, Any]) -> None:
    known = {*(report.get("series") or {}), *(report.get("families") or {})}
    entries = [(metric.title, metric) for name, metric in METRICS.items() if name in known]
    if entries:
        page.section("Words").statements(
            (title, [f"{metric.meaning}{f' Unit: {metric.unit}.' if metric.unit else ''}"])
            for title, metric in entries
        )


def _loading(report: Mapping[str, Any]) -> str:
    return (
        "from lowdim.dynamics.runfile import read_run\n\n"
        f"run = read_run({str(report['source'])!r})\n"
        "run.table               # pandas, one row per report\n"
        'run.family("dyn/erank") # one column per layer'
    )


def _made(page: Page, report: Mapping[str, Any]) -> None:
    page.section("How it was made")
    if report.get("command"):
        page.code(str(report["command"]), caption="The command:")
    header, headers = _header(report), report.get("headers") or []
    facts = [(title, header[key]) for key, title in HEADER.items() if header.get(key) is not None]
    if header.get("probes"):
        facts.append(("Probes", ", ".join(header["probes"])))
    if report.get("reports") is not None:
        facts.append(("Reports", f"{report['reports']:,}"))
    if len(headers) > 1:
        facts.append(("Resumed", count(len(headers) - 1, "time")))
    if report.get("torn"):
        facts.append(("Lines cut off", report["torn"]))
    page.facts(facts)
    if report.get("versions"):
        page.text("Versions:").facts(report["versions"].items())
