"""The page of ``lowdim incontext``: risk over the angle, over the examples, and over the rank of adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lowdim.errors import DataError
from lowdim.report import incontext_figures as figures
from lowdim.report.page import Card, Page
from lowdim.report.wording import count, duration, millions, percent

__all__ = ["incontext_page"]

MODELS = {
    "optimal": "linear attention, best weights",
    "linear": "linear attention, trained",
    "gpt2": "a small GPT-2",
}

SETTINGS = {
    "d": "Dimension of inputs",
    "r": "Dimension of a subspace",
    "subspaces": "Subspaces in training",
    "noise": "Standard deviation of noise",
    "family": "Functions",
    "n": "Examples in training",
    "toward": "Turned",
    "steps": "Steps of training",
    "batch": "Prompts per step",
    "lr": "Learning rate",
    "prompts": "Prompts per angle at test",
    "adapt_steps": "Steps of an adapter",
    "seeds": "Repetitions",
    "seed": "Seed",
}
SIZES = {"n_layer": "Layers", "n_head": "Heads", "n_embd": "Width", "tokens": "Tokens"}


def incontext_page(report: Mapping[str, Any], *others: Mapping[str, Any], names: Sequence[str] = ()) -> Page:
    """Return the page of one study, or of several together.

    Parameters
    ----------
    report : mapping
        The contents of report.json. Only ``settings`` (with ``model``) and ``risks`` must be there.
    others : mapping
        Further studies, drawn in the same figures.
    names : sequence of str
        Names of the studies, if there are several; numbers by default.

    Returns
    -------
    Page
        Call ``.write(path)`` or ``.html()``.

    Raises
    ------
    DataError
        If ``settings`` or ``risks`` is missing, or names are not as many as studies, or repeat.

    Examples
    --------
    >>> row = {"seed": 0, "predictor": "model", "angle_deg": 0.0, "n": 9, "risk": 0.2, "relative": 0.1}
    >>> page = incontext_page({"settings": {"model": "linear"}, "risks": [row]})
    >>> "10.0" in page.html()
    True
    """
    reports = (report, *others)
    for one in reports:
        missing = [key for key in ("settings", "risks") if not one.get(key)]
        if missing or "model" not in one["settings"]:
            raise DataError(
                f"incontext_page: a report has no {(missing or ['model'])[0]!r}. Give the contents of a "
                "report.json written by `lowdim incontext run`."
            )
    if names and (len(names) != len(reports) or len(set(names)) != len(names)):
        raise DataError(
            f"incontext_page: {len(set(names))} different names for {len(reports)} studies. Give each one."
        )
    given = list(names) or [f"study {number}" for number in range(1, len(reports) + 1)]
    runs = dict(zip(given, reports, strict=True)) if others else {"": report}
    model = MODELS.get(report["settings"]["model"], str(report["settings"]["model"]))
    title = "In-context learning under a shift" if others else f"In-context learning: {model}"
    page = Page(title, subtitle=_subtitle(reports), eyebrow="Measured by lowdim")
    if others:
        page.statements([(name, [one["sentence"]]) for name, one in runs.items() if one.get("sentence")])
    else:
        if report.get("sentence"):
            page.lead(str(report["sentence"]))
        page.cards(_cards(report))
    _shift(page, runs)
    _contexts(page, runs)
    _adapters(page, runs)
    _loss(page, runs)
    if report.get("output") and not others:
        page.section("Use it").code(_loading(report), caption="Go on with the result in Python:")
    for name, one in runs.items():
        _made(page, name, one)
    return page


def _subtitle(reports: Sequence[Mapping[str, Any]]) -> str:
    if len(reports) > 1:
        return count(len(reports), "study", "studies")
    report, settings = reports[0], reports[0]["settings"]
    parts = [
        f"{settings['family']} functions" if settings.get("family") else None,
        count(settings["subspaces"], "training subspace") if settings.get("subspaces") else None,
        f"r = {settings['r']} of d = {settings['d']}" if settings.get("r") and settings.get("d") else None,
        str(report["created"])[:10] if report.get("created") else None,
    ]
    return " · ".join(part for part in parts if part)


def _cards(report: Mapping[str, Any]) -> list[Card]:
    exact = any(row["predictor"] == "theory" for row in report["risks"])
    rows = [row for row in report["risks"] if row["predictor"] == ("theory" if exact else "model")]
    cards = []
    if rows:
        longest = max(row["n"] for row in rows)
        own = [row for row in rows if row["n"] == longest]
        for angle in dict.fromkeys(pick(row["angle_deg"] for row in own) for pick in (min, max)):
            found = [row["relative"] for row in own if row["angle_deg"] == angle]
            mean = sum(found) / len(found)
            note = f"of the variance of labels, {count(longest, 'example')}"
            cards.append(Card(f"Risk at {angle:g}°", percent(mean), note, min(mean, 1.0)))
    adapters = report.get("adapters") or []
    if adapters:
        rank = max(row["rank"] for row in adapters)
        method = "closed form" if any(row["method"] == "closed form" for row in adapters) else "trained"
        found = [row["relative"] for row in adapters if row["rank"] == rank and row["method"] == method]
        mean = sum(found) / len(found)
        cards.append(
            Card(f"After an adapter of rank {rank}", percent(mean), "of the variance", min(mean, 1.0))
        )
    if report.get("parameters"):
        cards.append(Card("Parameters", millions(report["parameters"]), "of the model"))
    return cards


def _shift(page: Page, runs: figures.Runs) -> None:
    page.section(
        "Shift",
        intro="Risk is the mean squared error at the query against labels without noise, over the variance "
        "of a label: 1 is that of always predicting 0. At 0 degrees tasks are from the first subspace.",
    )
    figure = figures.shift(runs)
    if figure is not None:
        page.figure(figure, caption="Risk over the angle between training and test", height=400)
    rows = [
        {
            **({"Study": name} if name else {}),
            "Predictor": figures.PREDICTORS.get(row["predictor"], row["predictor"]),
            "Degrees": row["angle_deg"],
            "Examples": row["n"],
            "Seed": row.get("seed"),
            "Risk": row["risk"],
            "Standard error": row.get("se"),
            "Relative": row["relative"],
        }
        for name, report in runs.items()
        for row in report["risks"]
    ]
    page.table(
        rows,
        caption="All risks",
        formats={"Degrees": "{:g}", "Risk": "{:.4g}", "Standard error": "{:.1g}", "Relative": "{:.4g}"},
    )


def _contexts(page: Page, runs: figures.Runs) -> None:
    figure = figures.contexts(runs)
    if figure is None:
        return
    page.section(
        "Examples",
        intro="Where a model fails because tasks lie elsewhere, more examples do not help; least squares and "
        "the oracle, which knows the subspace, are fitted to every prompt anew.",
    )
    page.figure(figure, caption="Risk over the number of examples in the prompt", height=400)


def _adapters(page: Page, runs: figures.Runs) -> None:
    figure = figures.adapters(runs)
    if figure is None:
        return
    degrees = {row["angle_deg"] for report in runs.values() for row in report.get("adapters") or []}
    where = " and ".join(f"{angle:g}" for angle in sorted(degrees))
    page.section(
        "Adapters",
        intro=f"The model was adapted to tasks at {where} degrees by a low-rank update. In linear "
        "attention rank r moves the subspace, and rank 2 r also removes what served the old one.",
    )
    page.figure(figure, caption="Risk after adaptation over the rank of the adapter", height=360)


def _loss(page: Page, runs: figures.Runs) -> None:
    figure = figures.loss(runs)
    if figure is not None:
        page.section("Training").figure(figure, caption="Loss over the steps of training", height=320)


def _loading(report: Mapping[str, Any]) -> str:
    return (
        "from lowdim.incontext import StudyResult\n\n"
        f"result = StudyResult.load({str(report['output'])!r})\n"
        "result.risks     # one row per predictor, angle and context length\n"
        "result.model()   # the model, with its weights"
    )


def _made(page: Page, name: str, report: Mapping[str, Any]) -> None:
    page.section(f"How it was made: {name}" if name else "How it was made")
    if report.get("command"):
        page.code(str(report["command"]), caption="The command:")
    settings = report["settings"]
    facts = [("Model", MODELS.get(settings["model"], settings["model"]))]
    optimal = settings["model"] == "optimal"
    facts += [
        (title, settings[key])
        for key, title in SETTINGS.items()
        if settings.get(key) is not None and not (optimal and key in ("steps", "batch", "lr"))
    ]
    facts += [
        (title, report["sizes"][key]) for key, title in SIZES.items() if (report.get("sizes") or {}).get(key)
    ]
    if report.get("created"):
        facts.append(("Written", report["created"]))
    facts += [
        (f"Time to {phase}", duration(value))
        for phase, value in (report.get("seconds") or {}).items()
        if value
    ]
    page.facts(facts)
    if report.get("versions"):
        page.text("Versions:").facts(report["versions"].items())
