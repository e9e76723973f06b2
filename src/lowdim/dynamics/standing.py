"""Where a watched training stands: below, at or beyond the edge of stability, by what was measured of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowdim.dynamics.runfile import DynamicsRun

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FLIPS", "HOVERS", "NEAR", "State", "crossing", "first_above", "flip", "newest", "state"]

HOVERS = (0.9, 1.15)
"""The mean ratio of the last reports lies between these where the sharpness hovers at its threshold."""

NEAR = 0.8
"""From this ratio on a training is near the edge."""

FLIPS = 0.5
"""An alternation score above it says that successive steps point against each other."""


@dataclass(frozen=True)
class State:
    """Where a training stands.

    Parameters
    ----------
    name : str
        "waiting" (no report yet), "diverged", "oscillating", "above", "edge", "near", "below", or "unknown"
        where nothing was measured that tells.
    sentence : str
        The same for people.
    """

    name: str
    sentence: str


def state(run: DynamicsRun) -> State:
    """Say where a training stands at its last report.

    Parameters
    ----------
    run : DynamicsRun

    Returns
    -------
    State

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"time": [1.0], "dyn/sharpness_ratio": [0.4]}, index=[100])
    >>> state(DynamicsRun("run.jsonl", ({},), table)).sentence
    'Below the edge: the sharpness is 0.4 of what the learning rate can bear.'
    """
    if not len(run.table):
        return State("waiting", "No report yet.")
    if run.lost and _nothing_finite(run):
        loss = run.series("dyn/loss")
        since = f"after step {loss.index[-1]:,}" if len(loss) else "in the first report"
        return State("diverged", f"Diverged: the loss is not finite any more {since}.")
    ratio, swing, period = (
        newest(run, f"dyn/{name}") for name in ("sharpness_ratio", "alternation", "period")
    )
    swings = period in (2, 4, 8) or (swing is not None and swing > FLIPS)
    how = _how(run, period, swing) if swings else ""
    if ratio is None:
        if swings:
            return State("oscillating", f"At or beyond the edge, as far as steps tell: {how}.")
        if swing is None:
            return State("unknown", "Neither sharpness nor alternation was measured: nothing tells the edge.")
        if newest(run, "dyn/edge"):
            return State("oscillating", "The detector rang: at or beyond the edge, or at kinks of ReLU.")
        return State("below", "Nothing alternates: below the edge, as far as steps tell.")
    if ratio >= NEAR and swings:
        return State("oscillating", f"{_where(ratio)}: {how}; sharpness {ratio:.3g} of the threshold.")
    if ratio > HOVERS[1]:
        return State(
            "above", f"Above the edge: the sharpness is {ratio:.3g} times what the learning rate can bear."
        )
    still = "" if swing is None else ", and steps point the same way" if swing < -FLIPS else ""
    if ratio >= HOVERS[0]:
        return State("edge", f"At the edge: the sharpness is {ratio:.3g} of its threshold{still}.")
    where = "Near" if ratio >= NEAR else "Below"
    sentence = f"{where} the edge: the sharpness is {ratio:.3g} of what the learning rate can bear"
    return State(where.lower(), f"{sentence}; {how}." if swings else f"{sentence}{still}.")


def crossing(run: DynamicsRun) -> tuple[int | None, int] | None:
    """Return the steps between which the sharpness first passes its threshold.

    Parameters
    ----------
    run : DynamicsRun

    Returns
    -------
    tuple of (int or None, int), or None
        The last report below and the first one above; None before it if the first report is above, and None
        if it never passes.
    """
    return first_above(run.series("dyn/sharpness_ratio"), above=1.0)


def flip(run: DynamicsRun) -> tuple[int | None, int] | None:
    """Return the steps between which successive steps begin to undo each other.

    Parameters
    ----------
    run : DynamicsRun

    Returns
    -------
    tuple of (int or None, int), or None
        The last report with a score of zero or less, and the first one above `FLIPS`; None before it if there
        was none, and None if no score is that large.
    """
    swing = run.series("dyn/alternation")
    found = first_above(swing, above=FLIPS)
    if found is None:
        return None
    going_on = swing.loc[: found[1]]
    going_on = going_on[going_on <= 0]
    return (int(going_on.index[-1]) if len(going_on) else None), found[1]


def first_above(series: pd.Series, *, above: float) -> tuple[int | None, int] | None:
    """Return the last step before a series first exceeds a value, and the step at which it does.

    Parameters
    ----------
    series : pandas.Series
        By step, without gaps.
    above : float

    Returns
    -------
    tuple of (int or None, int), or None
        None before it if the series begins above; None if it never exceeds the value.
    """
    over = (series > above).to_numpy()
    if not over.any():
        return None
    at = int(over.argmax())
    return (int(series.index[at - 1]) if at else None), int(series.index[at])


def _how(run: DynamicsRun, period: float | None, swing: float | None) -> str:
    """Return how the training oscillates, as part of a sentence."""
    rank = newest(run, "dyn/osc_rank")
    where = f" in {rank:.0f} direction{'' if rank == 1 else 's'}" if rank else ""
    if period in (2, 4, 8):
        return f"oscillates with period {period:.0f}{where}"
    return f"successive steps undo each other{where} (alternation {swing:+.2f})"


def _where(ratio: float) -> str:
    if ratio > HOVERS[1]:
        return "Above the edge"
    return "At the edge" if ratio >= HOVERS[0] else "Near the edge"


def newest(run: DynamicsRun, metric: str) -> float | None:
    """Return the newest value of a metric, measured less often than others perhaps; None if there is none."""
    series = run.series(metric)
    return float(series.iloc[-1]) if len(series) else None


def _nothing_finite(run: DynamicsRun) -> bool:
    """Whether the last report measures nothing finite of the weights: a loss may be lost for one step."""
    kinds = ("sharpness", "erank/", "srank/", "drift_deg/", "balance_gap/")
    state_of = [name for name in run.table.columns if name.startswith(tuple(f"dyn/{kind}" for kind in kinds))]
    return bool(run.table.iloc[-1][state_of].isna().all())
