"""markdown: the table of claims from the stored results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lowdim.claims.declare import Claim
from lowdim.claims.machine import describe
from lowdim.claims.runner import Result

__all__ = ["figure", "markdown"]


def figure(result: Result, *, unit: str = "") -> str:
    """Write the value of a result with its spread over the seeds.

    Parameters
    ----------
    result : Result
        The result.
    unit : str
        Unit put behind the value.

    Returns
    -------
    str
        For instance ``"0.856 ± 0.001"``; empty when nothing was measured.
    """
    if result.value is None:
        return ""
    text = f"{result.value:.4g}{unit}"
    return text if result.spread is None else f"{text} ± {result.spread:.2g}"


def markdown(claims: Iterable[Claim], *, results: Mapping[str, Result]) -> str:
    """Write the table of claims.

    Parameters
    ----------
    claims : iterable of Claim
        The rows, in order.
    results : mapping of str to Result
        By claim id; a claim without a result is shown as not measured.

    Returns
    -------
    str
        A Markdown page: per system a table and what each row was measured on,
        and the machines at the end.

    Examples
    --------
    >>> from lowdim.claims import Claim
    >>> half = Claim("demo.half", "A half is small.", "none", "none", lambda trial: 0.5, at_most=0.6)
    >>> "| `demo.half` | A half is small. | not measured |" in markdown([half], results={})
    True
    """
    rows = list(claims)
    shown = [results[declared.id] for declared in rows if declared.id in results]
    count = {status: 0 for status in ("pass", "short", "reported", "skipped")}
    for result in shown:
        count[result.status] += 1
    machines = list(dict.fromkeys(describe(result.machine) for result in shown if result.machine))
    lines = [
        "# Claims",
        "",
        "What the papers claim and what lowdim shows, measured by `make claims` and `make claims-long`"
        " (`lowdim claims run --output docs/claims.md`).",
        "The value is the mean over the seeds, ± the standard deviation over them. *pass*: it meets our"
        " threshold;"
        " *short*: it does not;",
        "*reported*: measured and shown, not gated; *skipped*: not measurable on that machine. Seconds are"
        " wall-clock;"
        " an experiment that several rows share counts for the first.",
        "",
        f"{count['pass']} pass, {count['short']} short, {count['reported']} reported, {count['skipped']}"
        " skipped,"
        f" {len(rows) - len(shown)} not measured; {sum(result.seconds for result in shown) / 60:.0f}"
        " minutes.",
    ]
    if any(result.quick for result in shown):
        lines += [
            "",
            "Rows marked *quick* come from a smaller experiment with one seed: they are no evidence.",
        ]
    for system in dict.fromkeys(declared.system for declared in rows):
        members = [declared for declared in rows if declared.system == system]
        lines += ["", f"## {system}", "", *_rows(members, results), "", *_settings(members, results)]
    lines += ["", "## Machine", ""]
    lines += [f"- {line}" for line in machines] or ["Nothing was measured yet."]
    if shown:
        lines += [
            "",
            f"Measured from {min(r.measured_at for r in shown)} to {max(r.measured_at for r in shown)}.",
        ]
    return "\n".join(lines) + "\n"


def _rows(members: list[Claim], results: Mapping[str, Result]) -> list[str]:
    lines = [
        "| id | claim | status | measured | threshold | paper | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for declared in members:
        result = results.get(declared.id)
        cells = [f"`{declared.id}`", declared.statement]
        if result is None:
            cells += ["not measured", "", declared.threshold, declared.paper, ""]
        else:
            status = f"{result.status} (quick)" if result.quick else result.status
            cells += [status, figure(result, unit=declared.unit), result.threshold, declared.paper]
            cells += [f"{result.seconds:.0f}" if result.seconds >= 10 else f"{result.seconds:.1f}"]
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return lines


def _settings(members: list[Claim], results: Mapping[str, Result]) -> list[str]:
    lines = []
    for declared in members:
        result = results.get(declared.id)
        seeds = len(result.seeds) if result is not None else len(declared.seeds)
        line = f"- `{declared.id}`: {declared.setting} {seeds} {'seed' if seeds == 1 else 'seeds'}."
        line += f" Source: {declared.source}."
        if result is not None and result.reason:
            line += f" **{result.status}**: {result.reason}."
        lines.append(line)
    return lines
