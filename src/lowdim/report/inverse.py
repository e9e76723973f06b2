"""The page of ``lowdim inverse``: images before and after, where they are wrong, and what solvers took."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lowdim.errors import DataError
from lowdim.report import inverse_figures as figures
from lowdim.report.page import Card, Page
from lowdim.report.wording import by, count, duration

if TYPE_CHECKING:
    from lowdim.inverse import InverseResult

__all__ = ["inverse_page"]

MAPS = 4
"""Images whose errors are mapped, at most."""

OPERATORS = {
    "blur": "a blur",
    "sr": "small images",
    "inpaint": "hidden pixels",
    "denoise": "noise",
    "saturate": "a blur that saturates",
    "ct": "projections",
}

MEASURES = {
    "psnr": ("PSNR, dB", "{:.2f}"),
    "ssim": ("SSIM", "{:.3f}"),
    "lpips": ("LPIPS", "{:.3f}"),
    "residual": ("Residual", "{:.3g}"),
    "network_calls": ("Network calls", "{:,.0f}"),
    "decoder_calls": ("Decoder calls", "{:,.0f}"),
    "iterations": ("Iterations", "{:,.0f}"),
    "seconds": ("Seconds", "{:.3g}"),
}
"""Columns of the tables, and how their numbers are written."""


def inverse_page(report: Mapping[str, Any], *, result: InverseResult | None = None) -> Page:
    r"""Return the page of reconstructed images.

    Parameters
    ----------
    report : mapping
        The contents of report.json. Only ``solvers`` and ``names`` must be there; what else is missing is
        left out.
    result : InverseResult, optional
        What the report is of; without it no image is shown.

    Returns
    -------
    Page
        Call ``.write(path)`` or ``.html()``.

    Raises
    ------
    DataError
        If ``solvers`` or ``names`` is missing.

    Examples
    --------
    >>> solver = {"name": "dcdp", "psnr": 31.25, "network_calls": 20}
    >>> "31.2 dB" in inverse_page({"names": ["a"], "solvers": [solver]}).html().replace("\xa0", " ")
    True
    """
    missing = [key for key in ("solvers", "names") if not report.get(key)]
    if missing:
        raise DataError(
            f"inverse_page: the report has no {missing[0]!r}. Give the contents of a report.json written by "
            "`lowdim inverse reconstruct`."
        )
    title = report.get("source") or report.get("measurement") or "Images"
    page = Page(str(title), subtitle=_subtitle(report), eyebrow="Reconstructed by lowdim")
    if report.get("sentence"):
        page.lead(str(report["sentence"]))
    gate = report.get("gate")
    if gate:
        page.verdicts([(gate["passed"], f"The best solver must reach {gate['min_psnr']:g} dB on average.")])
    page.cards(_cards(report))
    if result is not None:
        _pictures(page, report, result)
    _solvers(page, report)
    if result is not None:
        _maps(page, report, result)
    _residuals(page, report)
    _images(page, report)
    if report.get("output"):
        page.section("Use it").code(
            "from lowdim.inverse import InverseResult\n\n"
            f"result = InverseResult.load({str(report['output'])!r})\n"
            f"result.images[{report['solvers'][0]['name']!r}]   # (channels, height, width) each\n"
            "result.table()          # a row per image and solver",
            caption="Go on with the result in Python:",
        )
    _made(page, report)
    return page


def _subtitle(report: Mapping[str, Any]) -> str:
    operator = dict(report.get("operator") or {})
    name = operator.pop("name", None)
    options = ", ".join(f"{key} {value}" for key, value in operator.items() if value is not None)
    seen = f"{OPERATORS.get(name, name)}{f' ({options})' if options else ''}" if name else None
    sigma = report.get("sigma")
    parts = [
        f"seen through {seen}" if seen else None,
        f"noise {sigma:g}" if sigma is not None else None,
        f"prior: {report['prior']}" if report.get("prior") else None,
        str(report["created"])[:10] if report.get("created") else None,
    ]
    return " · ".join(part for part in parts if part)


def _cards(report: Mapping[str, Any]) -> list[Card]:
    best = figures.best(report)
    who = f"{figures.named(best['name'])}, " if len(report["solvers"]) > 1 else ""
    mean = "mean over images" if len(report["names"]) > 1 else "of the image"
    cards = []
    if best.get("psnr") is not None:
        cards.append(Card("PSNR", f"{best['psnr']:.1f} dB", f"{who}{mean}"))
    if best.get("lpips") is not None:
        cards.append(Card("LPIPS", f"{best['lpips']:.3f}", f"{who}{mean}; 0 is alike"))
    elif best.get("ssim") is not None:
        cards.append(Card("SSIM", f"{best['ssim']:.3f}", f"{who}{mean}; 1 is equal"))
    if best.get("residual") is not None:
        unit = "of the noise; 1 fits the data" if report.get("sigma") else "mean square"
        cards.append(Card("Residual", f"{best['residual']:.3g}", f"{who}{unit}"))
    if best.get("network_calls") is not None:
        cards.append(Card("Network calls", f"{best['network_calls']:,.0f}", f"{who}per image"))
    if best.get("seconds") is not None:
        cards.append(Card("Time", duration(best["seconds"]), f"{who}per image"))
    return cards


def _pictures(page: Page, report: Mapping[str, Any], result: InverseResult) -> None:
    indices = figures.chosen(report)
    shown = [(_title(report, i), figures.layers(result, i)) for i in indices]
    solvers = [figures.named(one["name"]) for one in report["solvers"]]
    own = [name for name in (figures.MEASURED, figures.TRUTH) if any(name in one for _, one in shown)]
    before, after = [*own, *(solvers[1:] if own else solvers[1:2])], solvers
    of = count(len(report["names"]), "image")
    which = "from worst to best" if result.truth is not None else "the first"
    told = f" {len(shown)} of {of}, {which}." if len(shown) < len(report["names"]) else ""
    page.section(
        "Before and after",
        intro=f"Pull the line, or move it with the arrow keys.{told}",
    )
    page.sliders(shown, before=before, after=after, caption="Images before and after reconstruction")


def _title(report: Mapping[str, Any], index: int) -> str:
    name = report["names"][index]
    best = figures.best(report)["name"]
    for row in report.get("rows") or []:
        if row["image"] == name and row["solver"] == best and row.get("psnr") is not None:
            return f"{name}, {row['psnr']:.1f} dB by {figures.named(best)}"
    return str(name)


def _solvers(page: Page, report: Mapping[str, Any]) -> None:
    solvers = report["solvers"]
    if len(solvers) < 2:
        return
    page.section(
        "Solvers",
        intro="Means over images. A network call is one evaluation of the diffusion model on one image; the "
        "residual is the mean squared one over that of the noise, 1 where the data are met.",
    )
    page.table(
        [{"Solver": figures.named(one["name"]), **_measures(one, solvers)} for one in solvers],
        caption="What solvers reach, and what it takes",
        formats=_formats(solvers),
        bars=[name for name in ("Network calls", "Seconds") if name in _formats(solvers)],
    )
    figure = figures.effort(report)
    if figure is not None:
        page.figure(figure, caption="Quality and effort: up and to the left is better", height=340)


def _maps(page: Page, report: Mapping[str, Any], result: InverseResult) -> None:
    indices = figures.chosen(report, most=MAPS)
    drawn = figures.error_maps(result, indices)
    if drawn is None:
        return
    figure, height = drawn
    page.section(
        "Where it is wrong",
        intro="The absolute error of every pixel, of channels their mean, in parts of the range from black "
        "to white. All maps have one scale.",
    )
    page.figure(figure, caption="Error by pixel", height=height)


def _residuals(page: Page, report: Mapping[str, Any]) -> None:
    curve, bars = figures.curves(report), figures.residuals(report)
    if curve is None and bars is None:
        return
    page.section(
        "Data consistency",
        intro="How far measurements of the reconstruction are from the given ones. Far below the noise, the "
        "noise itself is fitted; far above, the data are not met.",
    )
    if curve is not None:
        page.figure(curve, caption="Residual after every step, median over images", height=320)
    if bars is not None:
        page.figure(bars, caption="Residual of every finished image", height=300)


def _images(page: Page, report: Mapping[str, Any]) -> None:
    rows = report.get("rows") or []
    if not rows:
        return
    page.section("Images")
    several = len(report["solvers"]) > 1
    page.table(
        [
            {
                "Image": row["image"],
                **({"Solver": figures.named(row["solver"])} if several else {}),
                **_measures(row, rows),
            }
            for row in rows
        ],
        caption="Every image",
        formats=_formats(rows),
    )


def _measures(record: Mapping[str, Any], records: Any) -> dict[str, Any]:
    """Return the numbers of a record under the headings of those that are of interest."""
    return {title: record.get(key) for key, (title, _) in MEASURES.items() if _telling(key, records)}


def _formats(records: Any) -> dict[str, str]:
    return {title: form for key, (title, form) in MEASURES.items() if _telling(key, records)}


def _telling(key: str, records: Any) -> bool:
    """Whether any record has such a number, other than 0."""
    return any(one.get(key) for one in records)


def _made(page: Page, report: Mapping[str, Any]) -> None:
    page.section("How it was made")
    if report.get("command"):
        page.code(str(report["command"]), caption="The command:")
    shapes = report.get("shapes") or []
    facts: list[tuple[str, Any]] = [("Images", len(report["names"]))]
    if shapes:
        alike = all(shape == shapes[0] for shape in shapes)
        facts.append(("Channels, height, width", by(shapes[0]) if alike else "of several sizes"))
    if report.get("simulated") is not None:
        facts.append(("Measurements", "simulated" if report["simulated"] else "given"))
    facts += [
        (title, report[key])
        for key, title in {"prior": "Prior", "sigma": "Noise", "seed": "Seed", "created": "Written"}.items()
        if report.get(key) is not None
    ]
    page.facts(facts)
    for one in report["solvers"]:
        if one.get("settings"):
            page.text(f"Settings of {figures.named(one['name'])}:")
            page.facts((key, _fact(value)) for key, value in one["settings"].items() if value is not None)
    if report.get("notes"):
        page.sentences(str(note) for note in report["notes"])
    if report.get("versions"):
        page.text("Versions:").facts(report["versions"].items())


def _fact(value: Any) -> Any:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
