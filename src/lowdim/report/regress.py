"""The page of ``lowdim regress``: how well is predicted, by which coefficients, of what rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lowdim.errors import DataError
from lowdim.report import regress_figures as figures
from lowdim.report.page import Card, Page
from lowdim.report.wording import by, count, duration, percent

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["coefficient_map", "regress_page"]

FORMS = {"cp": "CP", "tucker": "Tucker", "vector": "plain vector"}

SETTINGS = {
    "task": "Task asked for",
    "ranks": "Ranks tried",
    "alphas": "Penalties tried",
    "loss": "Loss",
    "folds": "Folds",
    "n_init": "Starts",
}


def regress_page(report: Mapping[str, Any]) -> Page:
    """Return the page of a fitted tensor model.

    Parameters
    ----------
    report : mapping
        The contents of report.json. Only ``task`` and ``assessment`` must be there; what else is missing is
        left out.

    Returns
    -------
    Page
        Call ``.write(path)`` or ``.html()``.

    Raises
    ------
    DataError
        If ``task`` or ``assessment`` is missing.

    Examples
    --------
    >>> found = {"score": 0.94, "plain_score": 0.91, "gain": 0.03, "gain_error": 0.01}
    >>> page = regress_page({"source": "faces", "task": "classification", "assessment": found})
    >>> "94.0 %" in page.html().replace(chr(160), " ")
    True
    """
    missing = [key for key in ("task", "assessment") if key not in report]
    if missing:
        raise DataError(
            f"regress_page: the report has no {missing[0]!r}. Give the contents of a report.json written by "
            "`lowdim regress fit`."
        )
    page = Page(str(report.get("source", "Samples")), subtitle=_subtitle(report), eyebrow="Learned by lowdim")
    if report.get("sentence"):
        page.lead(str(report["sentence"]))
    page.cards(_cards(report))
    _coefficients(page, report)
    _predictions(page, report)
    _choice(page, report)
    if report.get("output"):
        page.section("Use it").code(_loading(report), caption="Go on with the model in Python:")
        page.code(
            f"lowdim regress predict {report['output']} FILE", caption="Or predict new samples from a file:"
        )
    _made(page, report)
    return page


def coefficient_map(model: Any) -> Figure:
    """Return the coefficients of a fitted model as a figure: pictures, of volumes the strongest slices.

    Parameters
    ----------
    model : TensorRegressor or TensorClassifier
        Fitted.

    Returns
    -------
    plotly.graph_objects.Figure
        Call ``.show()`` or ``.write_html(path)``.

    Examples
    --------
    >>> import numpy as np
    >>> from lowdim.regress import TensorRegressor
    >>> X = np.random.default_rng(0).normal(size=(60, 6, 5))
    >>> coefficient_map(TensorRegressor(1).fit(X, X[:, 2, 3])).data[0].type
    'heatmap'
    """
    from lowdim.regress.record import maps_record

    names = [str(label) for label in getattr(model, "classes_", range(len(model.coef_)))]
    record = {"maps": maps_record(model.coef_, model.shape_, names)}
    record["features"] = list(getattr(model, "feature_names_in_", ()))
    drawn = figures.maps(record)
    assert drawn is not None  # a fitted model has coefficients
    return drawn[0]


def _subtitle(report: Mapping[str, Any]) -> str:
    form = FORMS.get(str(report.get("form")), "")
    rank = report.get("rank")
    rank = by(rank) if isinstance(rank, list) else rank
    parts = [
        report["task"],
        f"{form} form of rank {rank}" if rank is not None else form,
        str(report["created"])[:10] if report.get("created") else None,
    ]
    return " · ".join(str(part) for part in parts if part)


def _cards(report: Mapping[str, Any]) -> list[Card]:
    found = report["assessment"]
    classifier = report["task"] == "classification"
    plain = "logistic regression" if classifier else "ridge regression"
    note = f"{plain}: {percent(found['plain_score'])}" if found.get("plain_score") is not None else ""
    cards = []
    if found.get("score") is not None:
        cards.append(
            Card(
                "Correct on held-out samples" if classifier else "Variance explained",
                percent(found["score"]),
                note,
            )
        )
    if report.get("parameters") is not None:
        places = report.get("places")
        classes = len(report.get("classes") or [])
        per = classes if classes > 2 else 1
        plain_count = report.get("plain_parameters") or (per * places if places else None)
        vector = report.get("form") == "vector"
        note = f"one per place: {plain_count:,}" if plain_count and not vector else ""
        cards.append(Card("Parameters", f"{report['parameters']:,}", note))
    if report.get("rank") is not None:
        rank = report["rank"]
        shown = by(rank) if isinstance(rank, list) else str(rank)
        cards.append(Card("Rank", shown, f"{FORMS.get(str(report.get('form')), '')} form"))
    if report.get("samples") is not None:
        shape = report.get("shape") or []
        inside = ", masked" if report.get("masked") else ""
        cards.append(Card("Samples", f"{report['samples']:,}", f"of {by(shape)}{inside}" if shape else ""))
    return cards


def _coefficients(page: Page, report: Mapping[str, Any]) -> None:
    drawn = figures.maps(report)
    if drawn is None:
        return
    figure, height = drawn
    intro = "What a place adds to the prediction per unit of its value: red raises it, blue lowers it."
    if len(report.get("shape") or []) == 3:
        intro += " Of every mode the slice with the largest coefficients is shown."
    page.section("Coefficients", intro=intro)
    page.figure(figure, caption="Coefficients", height=height)


def _predictions(page: Page, report: Mapping[str, Any]) -> None:
    figure = figures.confusion(report) or figures.agreement(report)
    if figure is None:
        return
    folds = (report.get("settings") or {}).get("folds")
    parts = f"cut into {folds} parts" if folds else "cut into parts"
    page.section(
        "Held-out samples",
        intro=f"The samples were {parts}; each was predicted by a fit to the others, rank and penalty chosen "
        "there.",
    )
    classifier = report["task"] == "classification"
    page.figure(figure, caption="True and predicted classes" if classifier else "True and predicted values")
    found = report["assessment"]
    if found.get("gain") is not None:
        what = "share of correct labels" if classifier else "explained variance"
        other = "logistic" if classifier else "ridge"
        page.text(
            f"Difference in the {what} from {other} regression on all places: {100 * found['gain']:+.1f} "
            f"points, standard error {100 * found['gain_error']:.1f}."
        )


def _choice(page: Page, report: Mapping[str, Any]) -> None:
    figure = figures.curve(report)
    if figure is None:
        return
    page.section("Rank and penalty", intro="Chosen by cross-validation on all samples: the lowest point.")
    page.figure(figure, caption="Loss on held-out samples by rank and penalty", height=340)
    record = report["comparison"]
    score = "Correct" if report["task"] == "classification" else "Variance explained"
    columns = {"rank": "Rank", "alpha": "Penalty", "mean_loss": "Loss", "std_loss": "Spread over folds"}
    columns["mean_score"] = score
    names = [key for key in columns if record.get(key)]
    rows = [
        {
            columns[key]: by(value) if isinstance(value, list) else value
            for key, value in zip(names, line, strict=True)
        }
        for line in zip(*(record[key] for key in names), strict=True)
    ]
    formats = {"Penalty": "{:.3g}", "Loss": "{:.4g}", "Spread over folds": "{:.3g}", score: percent}
    page.table(
        rows,
        caption="All candidates",
        formats={name: form for name, form in formats.items() if name in rows[0]},  # type: ignore[misc]
    )


def _loading(report: Mapping[str, Any]) -> str:
    return (
        "from lowdim.regress import RegressResult\n\n"
        f"result = RegressResult.load({str(report['output'])!r})\n"
        "result.model.coef_        # the coefficients, as a tensor\n"
        "result.predict(new)       # a file, a folder, a table or an array\n"
        "result.model.to_tensorly()"
    )


def _made(page: Page, report: Mapping[str, Any]) -> None:
    page.section("How it was made")
    if report.get("command"):
        page.code(str(report["command"]), caption="The command:")
    settings = report.get("settings") or {}
    facts: list[tuple[str, Any]] = [
        (title, ", ".join(map(str, value)) if isinstance(value, list) else value)
        for key, title in SETTINGS.items()
        if (value := settings.get(key)) is not None and (key != "loss" or report["task"] == "classification")
    ]
    facts += [
        (title, report[key])
        for key, title in {
            "alpha": "Penalty",
            "scale": "Samples were divided by",
            "seed": "Seed",
            "created": "Written",
        }.items()
        if report.get(key) is not None
    ]
    facts += [
        (f"Time to {phase}", duration(value))
        for phase, value in (report.get("seconds") or {}).items()
        if value
    ]
    if report.get("steps") is not None:
        facts.append(("Steps of the fit", count(report["steps"], "step")))
    page.facts(facts)
    if report.get("notes"):
        page.sentences(str(note) for note in report["notes"])
    if report.get("versions"):
        page.text("Versions:").facts(report["versions"].items())
