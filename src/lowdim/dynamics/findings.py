"""What a watched training tells, in plain sentences with the numbers they rest on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lowdim.dynamics.runfile import DynamicsRun
from lowdim.dynamics.standing import HOVERS, NEAR, crossing, first_above, flip

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Finding", "findings"]

SETTLED = 10
"""So many last reports say where a training has settled."""

UNMOVED = 0.02
"""A smaller relative change of a rank or of a balancing gap is told as none."""

MUCH = 0.1
"""From this share of the time on it is said how probes take less."""


@dataclass(frozen=True)
class Finding:
    """One thing that a training tells.

    Parameters
    ----------
    topic : str
        "Loss", "Sharpness", "Oscillation", "Layers", "Balance" or "Probes".
    sentence : str
    numbers : dict
        What the sentence rests on; None where something did not happen.
    """

    topic: str
    sentence: str
    numbers: dict[str, Any] = field(default_factory=dict)


def findings(run: DynamicsRun) -> list[Finding]:
    """Say what a training tells, topic by topic.

    Parameters
    ----------
    run : DynamicsRun

    Returns
    -------
    list of Finding
        Only what was measured is told of.

    Examples
    --------
    >>> import pandas as pd
    >>> from lowdim.dynamics.runfile import DynamicsRun
    >>> ratio = [0.5, 0.9, 1.02, 0.99, 1.01]
    >>> table = pd.DataFrame({"time": 1.0, "dyn/sharpness_ratio": ratio}, index=[0, 100, 200, 300, 400])
    >>> for found in findings(DynamicsRun("run.jsonl", ({},), table)):
    ...     print(found.sentence)
    The sharpness first passes its threshold between steps 100 and 200.
    """
    told = [*_loss(run), *_sharpness(run), *_oscillation(run), *_period(run)]
    return [*told, *_ranks(run), *_drift(run), *_balance(run), *_probes(run)]


def _loss(run: DynamicsRun) -> list[Finding]:
    loss = run.series("dyn/loss")
    if len(loss) < 2:
        return []
    first, last, least = float(loss.iloc[0]), float(loss.iloc[-1]), float(loss.min())
    rises, intervals = int((loss.diff().dropna() > 0).sum()), len(loss) - 1
    text = f"The loss went from {first:.3g} to {last:.3g} in {loss.index[-1] - loss.index[0]:,} steps"
    if last - least > 0.01 * (first - least):
        text += f", and was {least:.3g} at step {loss.idxmin():,}"
    text += f"; it rose in {rises} of the {intervals} intervals between reports." if rises else "."
    numbers = {"first": first, "last": last, "least": least, "rises": rises, "intervals": intervals}
    told = [Finding("Loss", text, numbers)]
    rates = run.series("dyn/lr")
    if len(rates) and not _close(float(rates.min()), float(rates.max()), 1e-6):
        before, now = float(rates.iloc[0]), float(rates.iloc[-1])
        text = f"The learning rate went from {before:.3g} to {now:.3g}, and the threshold with it."
        told.append(Finding("Loss", text, {"lr_first": before, "lr_last": now}))
    return told


def _sharpness(run: DynamicsRun) -> list[Finding]:
    ratio = run.series("dyn/sharpness_ratio")
    if ratio.empty:
        return []
    name, its, passed = str(run.header.get("label") or "sharpness"), _threshold(run), crossing(run)
    first, last, greatest = float(ratio.iloc[0]), float(ratio.iloc[-1]), float(ratio.max())
    if passed is None:
        text = f"The {name} never passes its threshold{its}: it starts at {first:.3g} of it, reaches "
        text += f"{greatest:.3g} at most (step {ratio.idxmax():,}) and ends at {last:.3g}."
    elif passed[0] is None:
        text = f"The {name} is above its threshold{its} from the first report on, at {first:.3g} of it."
    else:
        text = f"The {name} first passes its threshold{its} between steps {passed[0]:,} and {passed[1]:,}."
    numbers = {"first": first, "last": last, "greatest": greatest, "greatest_at": int(ratio.idxmax())}
    told = [Finding("Sharpness", text, {**numbers, "crossed_at": passed[1] if passed else None})]
    if passed is not None and len(after := ratio.loc[passed[1] :]) > SETTLED:
        told.append(_settled(after.iloc[-SETTLED:], greatest))
    lowest = run.series("dyn/lowest_curvature")
    if len(lowest) and lowest.min() < 0:
        text = f"The most negative curvature seen is {lowest.min():.3g}, at step {lowest.idxmin():,}; the "
        text += "probe looks at the largest, so there may be more negative ones."
        told.append(Finding("Sharpness", text, {"lowest": float(lowest.min()), "at": int(lowest.idxmin())}))
    return told


def _threshold(run: DynamicsRun) -> str:
    """Return rule and value of the threshold in parentheses, as far as they are known and do not change."""
    values = run.series("dyn/threshold")
    constant = len(values) and _close(float(values.min()), float(values.max()), 1e-6)
    parts = [run.header.get("threshold_rule"), f"{values.iloc[-1]:.4g}" if constant else None]
    known = [str(part) for part in parts if part]
    return f" ({' = '.join(known)})" if known else ""


def _settled(last: pd.Series, greatest: float) -> Finding:
    mean, low, high = float(last.mean()), float(last.min()), float(last.max())
    span = f"{mean:.3f} of the threshold on average in the last {len(last)} reports ({low:.3f} to {high:.3f})"
    if mean < HOVERS[0]:
        text = f"It has come down from the edge again: {span}."
    elif mean > HOVERS[1]:
        text = f"It stays above the edge: {span}."
    else:
        text = f"It hovers at the edge: {span}, {greatest:.3f} at most."
    return Finding(
        "Sharpness", text, {"mean": mean, "low": low, "high": high, "hovers": HOVERS[0] <= mean <= HOVERS[1]}
    )


def _oscillation(run: DynamicsRun) -> list[Finding]:
    swing, told = run.series("dyn/alternation"), []
    if len(swing):
        flipped, passed = flip(run), crossing(run)
        if flipped is None:
            text = f"Successive steps do not undo each other (alternation score {swing.max():+.2f} at most)"
            # Averaged gradients go on while the weights oscillate in a few directions.
            text += "; with momentum they may oscillate all the same." if passed else "."
        elif flipped[0] is None:
            text = (
                f"Successive steps undo each other from the start (alternation score {swing.iloc[0]:+.2f})."
            )
        else:
            before, after = swing.loc[: flipped[0]].mean(), swing.loc[flipped[1] :].mean()
            text = f"Steps begin to undo each other between steps {flipped[0]:,} and {flipped[1]:,}: the "
            text += f"alternation score is {before:+.2f} on average before, {after:+.2f} after."
        numbers = {"first": float(swing.iloc[0]), "last": float(swing.iloc[-1])}
        told.append(Finding("Oscillation", text, {**numbers, "flipped_at": flipped[1] if flipped else None}))
        if flipped and passed and flipped[0] is not None and passed[0] is not None:
            told.append(_agreement(flipped[1] - passed[1]))
    alarm = first_above(run.series("dyn/edge"), above=0.5)
    if alarm is not None:
        text = "The edge detector, which needs no Hessian, gives its alarm first in the report of step "
        text += f"{alarm[1]:,}."
        ratio = run.series("dyn/sharpness_ratio").loc[: alarm[1]]
        if len(ratio) and ratio.iloc[-1] < NEAR:
            text += (
                f" The sharpness is {ratio.iloc[-1]:.3g} of its threshold there, so this is not the edge: "
            )
            text += " steps that cross the kinks of ReLU to and fro ring it, too, and so do small batches."
        told.append(Finding("Oscillation", text, {"alarm_at": alarm[1]}))
    return told


def _agreement(later: int) -> Finding:
    if later == 0:
        text = "In the same report the sharpness is first seen above its threshold."
    else:
        when = "after" if later > 0 else "before"
        text = f"That is {abs(later):,} steps {when} the sharpness is first seen above its threshold."
    return Finding("Oscillation", text, {"steps_after_crossing": later})


def _period(run: DynamicsRun) -> list[Finding]:
    period = run.series("dyn/period").iloc[-SETTLED:]
    if period.empty:
        return []
    most = int(period.mode().iloc[0])
    same = period.index[period == most]
    ranks = run.series("dyn/osc_rank")
    ranks = ranks.loc[ranks.index.intersection(same)]
    rank = None if ranks.empty else int(ranks.median())
    where = f" in {rank} direction{'' if rank == 1 else 's'}" if rank else ""
    of = f"in {len(same)} of the last {len(period)} reports"
    if most == 0:
        text = f"The weights return to no earlier state {of}: "
        text += f"they move on while they oscillate{where}." if rank else "they move on, or wander."
    elif most == 1:
        text = f"The weights stand still {of}."
    else:
        text = f"The weights return after {most} steps, {of}{', and move' if rank else ''}{where}."
    numbers = {"period": most, "share": len(same) / len(period), "osc_rank": rank}
    return [Finding("Oscillation", text, numbers)]


def _ranks(run: DynamicsRun) -> list[Finding]:
    first, last = _ends(run.family("dyn/erank"))
    change = (last / first - 1).dropna().sort_values(kind="stable")
    if change.empty:
        return []
    median = float(change.median())
    lost = {str(name): float(change[name]) for name in change.index[:3] if change[name] < -UNMOVED}
    if not lost:
        text = f"No layer lost more than {_percent(UNMOVED)} of the effective rank of its weights."
    else:
        each = [f"{name} ({first[name]:.3g} to {last[name]:.3g})" for name in lost]
        text = f"Most effective rank was lost by {_listed(each)}"
        if len(change) > 3:
            text += f"; the median layer {'lost' if median < 0 else 'gained'} {_percent(abs(median))}"
        text += "."
    return [Finding("Layers", text, {"median_change": median, "layers": len(change), "most": lost})]


def _drift(run: DynamicsRun) -> list[Finding]:
    _, angles = _ends(run.family("dyn/drift_deg"))
    angles = angles.dropna().sort_values(ascending=False, kind="stable")
    if angles.empty:
        return []
    most = {str(name): float(angles[name]) for name in angles.index[:3]}
    text = f"The leading subspace turned most in {_listed([f'{n} ({a:.1f})' for n, a in most.items()])}"
    text += ", in degrees since the first step"
    text += f"; the median layer by {angles.median():.1f}" if len(angles) > 3 else ""
    return [Finding("Layers", f"{text}.", {"median": float(angles.median()), "most": most})]


def _balance(run: DynamicsRun) -> list[Finding]:
    gaps, told = run.family("dyn/balance_gap"), []
    for chain in gaps.columns[:3]:
        gap = gaps[chain].dropna()
        first, last = float(gap.iloc[0]), float(gap.iloc[-1])
        if len(gap) < 2:
            continue
        if _close(first, last, UNMOVED):
            text = f"The balancing gap of {chain} is kept, as gradient flow would: {last:.3g}."
        elif last < first:
            by = f", by a factor of {first / last:.3g}" if last > 0 else ""
            text = f"The balancing gap of {chain} shrinks from {first:.3g} to {last:.3g}{by}."
        else:
            text = f"The balancing gap of {chain} grows from {first:.3g} to {last:.3g}."
        told.append(Finding("Balance", text, {"chain": str(chain), "first": first, "last": last}))
    if len(gaps.columns) > 3:
        rest = len(gaps.columns) - 3
        told.append(Finding("Balance", f"{rest} more chain{'s are' if rest > 1 else ' is'} in the figure."))
    return told


def _probes(run: DynamicsRun) -> list[Finding]:
    seconds, products = run.series("dyn/seconds"), run.series("dyn/hvps")
    if seconds.empty:
        return []
    spent, whole = float(seconds.sum()), float(run.table["time"].max())
    share = spent / whole if whole > spent else None
    text = f"The probes took {_time(spent)}"
    text += f" of {_time(whole)} ({_percent(share)})" if share is not None else ""
    numbers: dict[str, Any] = {"seconds": spent, "of": whole, "share": share, "reports": len(seconds)}
    if len(products):
        numbers |= {"products": int(products.sum()), "products_per_report": float(products.mean())}
        text += f"; a report took {products.mean():.1f} Hessian products on average"
    if share is not None and share > MUCH:
        text += "; fewer reports (a larger every, a smaller probe batch) take less"
    return [Finding("Probes", f"{text}.", numbers)]


def _ends(family: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Return the first and the last value of each column."""
    import pandas as pd

    if family.empty:
        return pd.Series(dtype=float), pd.Series(dtype=float)
    return family.bfill().iloc[0], family.ffill().iloc[-1]


def _close(a: float, b: float, relative: float) -> bool:
    return abs(a - b) <= relative * max(abs(a), abs(b))


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.3g} %"


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 60 else f"{int(seconds // 60)} min {seconds % 60:.0f} s"
