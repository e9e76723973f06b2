"""The page of ``lowdim compress``: what was kept, what was lost, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lowdim.errors import DataError
from lowdim.report import compress_figures as figures
from lowdim.report import compress_words as words
from lowdim.report.page import Card, Page
from lowdim.report.wording import bytes_text, count, duration, millions, percent, signed_percent

__all__ = ["compress_page"]


TIMES = ("dense_ms", "compressed_ms", "seconds")


def compress_page(report: Mapping[str, Any]) -> Page:
    """Return the page of a compress run.

    Parameters
    ----------
    report : mapping
        The contents of report.json. Only ``model`` and ``layers`` must be
        there; what else is missing (recovery, speed, int8 ...) is left out.

    Returns
    -------
    Page
        Call ``.write(path)`` or ``.html()``.

    Raises
    ------
    DataError
        If ``model`` or ``layers`` is missing.

    Examples
    --------
    >>> layer = {"name": "fc", "shape": [64, 64], "structure": "blast", "rank": 16, "weight_error": 0.2}
    >>> page = compress_page({"model": "tiny", "method": "blast", "layers": [layer]})
    >>> "tiny was compressed with BLAST." in page.html()
    True
    """
    missing = [key for key in ("model", "layers") if key not in report]
    if missing:
        raise DataError(
            f"compress_page: the report has no {missing[0]!r}. Give the contents of a report.json written by "
            "`lowdim compress`."
        )
    page = Page(words.model_name(report), subtitle=_subtitle(report), eyebrow="Compressed by lowdim")
    page.lead(words.headline(report))
    cards = _cards(report)
    if cards:
        page.cards(cards)
    _gates(page, report)
    sentences = words.losses(report)
    if sentences:
        page.section("Kept and lost").statements(sentences)
    _quality(page, report)
    _speed(page, report)
    _size(page, report)
    _layers(page, report)
    _recovery(page, report)
    _left_alone(page, report)
    page.section("Use it").code(words.loading(report), caption="Load the compressed model:")
    _made(page, report)
    return page


def _subtitle(report: Mapping[str, Any]) -> str:
    method = words.METHODS.get(str(report.get("method")), report.get("method"))
    parts = [
        method,
        f"keep {report['keep']:g}" if report.get("keep") is not None else None,
        str(report["created"])[:10] if report.get("created") else None,
        words.span(report),
    ]
    return " · ".join(part for part in parts if part)


def _cards(report: Mapping[str, Any]) -> list[Card]:
    cards = []
    size, parameters = report.get("bytes") or {}, report.get("parameters") or {}
    if size.get("before") and size.get("after"):
        change = signed_percent(size["after"] / size["before"] - 1)
        note = f"was {bytes_text(size['before'])} ({change})"
        cards.append(
            Card("Weight file", bytes_text(size["after"]), note, _share(size["after"], size["before"]))
        )
    if parameters.get("compressible_before"):
        kept = parameters["compressible_after"] / parameters["compressible_before"]
        note = f"of {millions(parameters['compressible_before'])} in the compressed layers"
        cards.append(Card("Parameters kept", percent(kept), note, _share(kept, 1.0)))
    written = words.written(report)
    measure = words.main_measure(written)
    if measure is not None:
        cards.append(_quality_card(measure, written, report))
    for batch, entry in (written.get("speed") or {}).items():
        if entry.get("ratio"):
            ratio, label = entry["ratio"], f"Speed, batch {batch}"
            note = "the speed of the original, slower" if ratio < 0.97 else "the speed of the original"
            cards.append(Card(label, f"{ratio:.2f}\N{MULTIPLICATION SIGN}", note))
    return cards


def _quality_card(measure: words.Measure, written: Mapping[str, Any], report: Mapping[str, Any]) -> Card:
    quality = written["quality"]
    value = quality[measure.key]
    before = (quality.get("before_recovery") or {}).get(measure.key)
    undone = (report.get("recovery") or {}).get("kept") is False
    note = "on held-out inputs"
    if before is not None and not undone:
        note = f"{measure.shown(before)} before recovery"
    if measure.key == "perplexity_after" and quality.get("perplexity_before"):
        was = quality["perplexity_before"]
        note = f"was {was:.2f} ({signed_percent(value / was - 1)})"
    unrounded = (report.get("quality") or {}).get(measure.key)
    if words.in_int8(report) and unrounded is not None:
        note = f"in int8; {measure.shown(unrounded)} with float factors"
    share = _share(value, 1.0) if measure.key in ("cosine", "agreement") else None
    return Card(measure.label, measure.shown(value), note, share)


def _gates(page: Page, report: Mapping[str, Any]) -> None:
    gates = [gate for gate in report.get("gates") or [] if gate.get("passed") is not None]
    if gates:
        page.verdicts((bool(gate["passed"]), words.verdict(gate)) for gate in gates)


def _quality(page: Page, report: Mapping[str, Any]) -> None:
    measure = words.main_measure(report)
    if measure is None:
        return
    text = (report.get("quality") or {}).get("text")
    page.section("Quality", intro=f"Measured on held-out text. {_sentence(str(text))}" if text else "")
    drawn = figures.quality(report)
    if drawn is not None:
        figure, height, caption = drawn
        page.figure(figure, caption=caption, height=height)
    tradeoff = figures.tradeoff(report)
    if tradeoff is not None:
        page.figure(tradeoff, caption="Quality against the size of the weight file")
    rows = []
    for name, variant in words.variants(report):
        row: dict[str, Any] = {"Model": name, "Weight file": variant.get("bytes")}
        given = {entry.label: variant["quality"].get(entry.key) for entry in words.MEASURES}
        rows.append(row | given)
    formats = {entry.label: entry.form for entry in words.MEASURES} | {"Weight file": bytes_text}
    filled = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    page.table(
        [{name: row[name] for name in filled} for row in rows],
        caption="Every variant, compared with the original on the same held-out inputs",
        formats={name: form for name, form in formats.items() if name in filled},
    )


def _speed(page: Page, report: Mapping[str, Any]) -> None:
    drawn = figures.speed(report)
    if drawn is None:
        return
    figure, height = drawn
    machine = report.get("machine") or {}
    where = f" on {machine['cpu']}" if machine.get("cpu") else ""
    threads = f" with {count(report['threads'], 'thread')}" if report.get("threads") else ""
    page.section("Speed", intro=f"Measured turn by turn{where}{threads}.")
    page.figure(figure, caption="Time of one forward pass", height=height)
    rows = []
    in_int8, unrounded = words.in_int8(report), report.get("speed") or {}
    after = "Working memory after" + (", float factors" if in_int8 else "")
    for batch, entry in (words.written(report).get("speed") or {}).items():
        row = {
            "Batch size": int(batch) if str(batch).isdigit() else str(batch),
            "Original, ms": entry.get("before_ms"),
            "Compressed, ms": entry.get("after_ms"),
            "Times as fast": entry.get("ratio"),
        }
        plain = unrounded.get(batch) or {}
        if in_int8:
            row["Float factors, ms"] = plain.get("after_ms")
        if plain.get("peak_bytes_before") is not None:
            row["Working memory before"] = plain["peak_bytes_before"]
            row[after] = plain.get("peak_bytes_after")
        rows.append(row)
    if rows:
        memory: dict[str, Any] = {
            name: bytes_text for name in ("Working memory before", after) if name in rows[0]
        }
        memory |= {"Float factors, ms": "{:.4g}"} if in_int8 else {}
        page.table(
            rows,
            caption="Medians; working memory is the most that intermediate results take",
            formats={"Original, ms": "{:.4g}", "Compressed, ms": "{:.4g}", "Times as fast": "{:.2f}"}
            | memory,
        )


def _size(page: Page, report: Mapping[str, Any]) -> None:
    drawn = figures.groups(report)
    if drawn is not None:
        figure, height = drawn
        page.section("Parameters")
        page.figure(figure, caption="Parameters before and after, by kind of layer", height=height)


def _layers(page: Page, report: Mapping[str, Any]) -> None:
    layers = report["layers"]
    if not layers:
        return
    intro = (
        "Weight error is the relative Frobenius error of the matrix. Output error is the relative error of "
        "what the layer computes on the calibration inputs; it is what counts. Both are from factorization, "
        "before any recovery. A large weight error beside a small output error is no contradiction: "
        "directions that the inputs hardly use are given up first."
    )
    if words.in_int8(report):
        intro += " Errors and times are of the float factors."
    page.section("Layers", intro=intro)
    drawn = figures.errors(layers)
    if drawn is not None:
        figure, height = drawn
        page.figure(figure, caption="Relative error of every compressed layer", height=height)
    columns = {
        "name": "Layer",
        "shape": "Shape",
        "structure": "Structure",
        "blocks": "Blocks",
        "rank": "Rank",
        "kept": "Kept",
        "weight_error": "Weight error",
        "output_error": "Output error",
        "dense_ms": "Dense, ms",
        "compressed_ms": "Structured, ms",
        "seconds": "Seconds",
    }
    present = {
        key: title for key, title in columns.items() if any(layer.get(key) is not None for layer in layers)
    }
    fractions = {
        title: percent for key, title in present.items() if key in ("kept", "weight_error", "output_error")
    }
    page.table(
        [{title: layer.get(key) for key, title in present.items()} for layer in layers],
        caption=f"All {len(layers)} compressed layers",
        formats=fractions | {title: "{:.2f}" for key, title in present.items() if key in TIMES},
        bars=[title for title in ("Weight error", "Output error") if title in fractions],
    )


def _recovery(page: Page, report: Mapping[str, Any]) -> None:
    figure = figures.recovery(report)
    if figure is None:
        return
    record = report["recovery"]
    page.section(
        "Recovery", intro="Distillation: the compressed model learns from the original on the same text."
    )
    page.figure(figure, caption="Loss of the recovery, step by step", height=300)
    names = {"steps": "Steps", "lr": "Learning rate", "batch_size": "Batch size"}
    facts = [(title, record[key]) for key, title in names.items() if record.get(key) is not None]
    if record.get("seconds") is not None:
        facts.append(("Time", duration(record["seconds"])))
    page.facts(facts)


def _left_alone(page: Page, report: Mapping[str, Any]) -> None:
    rows = report.get("left_alone") or []
    if rows:
        page.section("Left alone", intro="These layers were not compressed, each for the reason given.")
        columns = {"name": "Layer", "shape": "Shape", "parameters": "Parameters", "reason": "Reason"}
        present = {
            key: title for key, title in columns.items() if any(row.get(key) is not None for row in rows)
        }
        page.table(
            [{title: row.get(key) for key, title in present.items()} for row in rows],
            caption="What was not touched, and why",
            formats={"Parameters": "{:,}"} if "parameters" in present else {},
        )


def _made(page: Page, report: Mapping[str, Any]) -> None:
    page.section("How it was made")
    if report.get("command"):
        page.code(str(report["command"]), caption="The command:")
    calibration = report.get("calibration") or {}
    facts: list[tuple[str, Any]] = [("Model", report["model"])]
    note = calibration.get("text") or calibration.get("note") or calibration.get("name")
    if note:
        facts.append(("Calibration text", note))
    if calibration.get("paragraphs") is not None:
        facts.append(("Paragraphs used", f"{calibration['paragraphs']:,}"))
    if calibration.get("tokens") is not None:
        facts.append(("Calibration tokens", f"{calibration['tokens']:,}"))
    settings = {
        "keep": "Keep",
        "blocks": "Blocks",
        "sweeps": "Sweeps",
        "allocation": "Allocation",
        "sequential": "Sequential calibration",
        "seed": "Seed",
        "dtype": "Stored as",
        "device": "Device",
        "threads": "Threads",
        "created": "Written",
    }
    facts += [(title, _plain(report[key])) for key, title in settings.items() if report.get(key) is not None]
    if report.get("allocations"):
        facts.append(("Allocation kept", report["allocations"].get("chosen")))
    machine = report.get("machine") or {}
    facts += [(f"Machine: {key}", _plain(value)) for key, value in machine.items() if value is not None]
    page.facts(facts)
    if report.get("notes"):
        page.sentences(str(note) for note in report["notes"])
    seconds = [(phase, value) for phase, value in (report.get("seconds") or {}).items() if value]
    if seconds:
        page.table(
            [{"Phase": phase, "Seconds": value} for phase, value in seconds],
            caption="Time per phase",
            formats={"Seconds": "{:.1f}"},
            bars=["Seconds"],
            narrow=True,
        )
    if report.get("versions"):
        page.text("Versions:").facts(report["versions"].items())


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _share(part: float, whole: float) -> float:
    return max(0.0, min(1.0, part / whole))
