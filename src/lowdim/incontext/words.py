"""Words: the finding of a study in two sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["sentence"]

MODELS = {
    "optimal": "The best linear attention",
    "linear": "Trained linear attention",
    "gpt2": "The transformer",
}


def sentence(report: Mapping[str, Any]) -> str:
    """Return what the report says of risk over the angle, and of adapters.

    Parameters
    ----------
    report : mapping
        With settings, variance, risks and adapters.

    Returns
    -------
    str
    """
    settings, variance = report["settings"], report["variance"]
    # Of linear attention the risk is known, and need not be estimated.
    exact = any(row["predictor"] == "theory" for row in report["risks"])
    own = [row for row in report["risks"] if row["predictor"] == ("theory" if exact else "model")]
    longest = max(row["n"] for row in own)
    own = [row for row in own if row["n"] == longest]
    least, most = (pick(row["angle_deg"] for row in own) for pick in (min, max))

    def at(angle: float) -> float:
        found = [row["risk"] for row in own if row["angle_deg"] == angle]
        return sum(found) / len(found) / variance

    count, r = settings["subspaces"], settings["r"]
    where = f"one subspace of {r} dimensions" if count == 1 else f"{count} subspaces of {r} dimensions each"
    if r == 1:
        where = "one line" if count == 1 else f"{count} lines"
    found = (
        f"{MODELS[settings['model']]} for tasks in {where} leaves {at(least):.1%} of the variance of labels "
        f"unexplained"
    )
    found += f" at {least:g} degrees from the first" if least or len(own) > 1 else ""
    if most > least:
        found += f", and {at(most):.1%} at {most:g} degrees"
    found += f" ({longest} examples)."
    adapters = report.get("adapters") or []
    if adapters:
        found += " " + _adapted(adapters)
    return found


def _adapted(rows: list[dict[str, Any]]) -> str:
    method = "closed form" if any(row["method"] == "closed form" for row in rows) else "trained"
    rows = [row for row in rows if row["method"] == method]
    ranks = sorted({row["rank"] for row in rows})

    def at(rank: int) -> float:
        found = [row["relative"] for row in rows if row["rank"] == rank]
        return sum(found) / len(found)

    best = ranks[-1]
    of = f"an adapter of rank {best}" if len(ranks) == 1 else f"adapters of rank {ranks[0]} to {best}"
    told = f"{at(best):.1%}" if len(ranks) == 1 else f"{at(ranks[0]):.1%} to {at(best):.1%}"
    return f"With {of}, adapted to {rows[0]['angle_deg']:g} degrees, that is {told} there."
