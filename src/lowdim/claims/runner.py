"""run: measure claims over their seeds and keep one result file for each."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from lowdim.claims.declare import Claim, Measurement, Trial, Unavailable
from lowdim.claims.machine import machine
from lowdim.claims.store import Store
from lowdim.errors import MissingExtra, RunError
from lowdim.runs import atomic_json, plain

__all__ = ["Result", "Status", "load", "run"]

Status = Literal["pass", "short", "reported", "skipped"]
FORMAT = 1


@dataclass(frozen=True)
class Result:
    """What measuring a claim gave.

    Parameters
    ----------
    id : str
        The claim.
    status : {"pass", "short", "reported", "skipped"}
        See :mod:`lowdim.claims`.
    value : float or None
        Mean over the seeds; None when nothing was measured.
    spread : float or None
        Sample standard deviation over the seeds; None for one seed.
    values : tuple of float
        One value per seed.
    seeds : tuple of int
        The seeds measured.
    quick : bool
        Whether the small experiment was run.
    threshold, paper : str
        As declared when it was measured.
    seconds : float
        Wall-clock time; an experiment shared by several claims counts for
        the first that asked.
    reason : str
        Why it was skipped, or what broke.
    details : tuple of dict
        Further figures, one dictionary per seed.
    measured_at : str
        Date and time (UTC).
    machine : dict
        See :func:`lowdim.claims.machine.machine`.

    Examples
    --------
    >>> result = Result("demo.half", "pass", 0.5, None, (0.5,), (0,), False, "<= 0.6", "none", 0.1)
    >>> Result.from_dict(result.to_dict()) == result
    True
    """

    id: str
    status: Status
    value: float | None
    spread: float | None
    values: tuple[float, ...]
    seeds: tuple[int, ...]
    quick: bool
    threshold: str
    paper: str
    seconds: float
    reason: str = ""
    details: tuple[dict[str, Any], ...] = ()
    measured_at: str = ""
    machine: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as a JSON-ready dictionary."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Result:
        """Rebuild a result from :meth:`to_dict`.

        Parameters
        ----------
        stored : dict
            The dictionary.

        Returns
        -------
        Result
            The result.

        Raises
        ------
        RunError
            If the format is unknown or a field is missing.
        """
        if stored.get("format") != FORMAT:
            raise RunError(
                f"claims: a stored result has format {stored.get('format')!r}, this version reads {FORMAT}. "
                "Measure the claim again."
            )
        try:
            fields = {name: stored[name] for name in cls.__dataclass_fields__}
        except KeyError as missing:
            raise RunError(f"claims: a stored result lacks {missing}. Measure the claim again.") from None
        for name in ("values", "seeds", "details"):
            fields[name] = tuple(fields[name])
        return cls(**fields)


def load(results: Path) -> dict[str, Result]:
    """Read the results that runs have left in a folder.

    Parameters
    ----------
    results : Path
        The folder; it need not exist.

    Returns
    -------
    dict of str to Result
        By claim id.

    Raises
    ------
    RunError
        If a file is damaged; the message names it.
    """
    found = {}
    for path in sorted(results.glob("*.json")):
        try:
            found[path.stem] = Result.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (json.JSONDecodeError, RunError) as error:
            raise RunError(
                f"claims: {path} is no readable result ({error}). Delete it or measure again."
            ) from error
    return found


def run(
    claims: Iterable[Claim],
    *,
    quick: bool = False,
    results: Path | None = None,
    resume: bool = False,
    callback: Callable[[Claim, Result | None], None] | None = None,
) -> list[Result]:
    """Measure claims, one after the other.

    Parameters
    ----------
    claims : iterable of Claim
        What to measure.
    quick : bool, default False
        Take the first seed only and let the experiments be smaller.
    results : Path, optional
        Folder for one JSON file per claim, written when the claim is done;
        results of other claims in it stay.
    resume : bool, default False
        Keep the results (and shared experiments) that an earlier run with
        the same `quick` and seeds has left in `results`.
    callback : callable, optional
        ``callback(claim, None)`` before and ``callback(claim, result)`` after
        each claim.

    Returns
    -------
    list of Result
        In the order of `claims`.

    Raises
    ------
    RunError
        If `resume` is asked without `results`, or a stored result is damaged.

    Examples
    --------
    >>> from lowdim.claims import Claim
    >>> half = Claim("demo.half", "A half is small.", "none", "none", lambda trial: 0.5, at_most=0.6)
    >>> [result.status for result in run([half])]
    ['pass']
    """
    if resume and results is None:
        raise RunError("claims: --resume needs the folder of the earlier results. Name it with --results.")
    known = load(results) if results is not None and resume else {}
    store = Store(None if results is None else results / ".work", resume=resume)
    description = machine()
    done = []
    for declared in claims:
        seeds = declared.seeds[:1] if quick else declared.seeds
        result = known.get(declared.id)
        if result is None or not _still_valid(result, declared, seeds, quick):
            if callback is not None:
                callback(declared, None)
            result = _measure(declared, seeds, quick, store, description)
            if results is not None:
                results.mkdir(parents=True, exist_ok=True)
                atomic_json(results / f"{declared.id}.json", result.to_dict())
        if callback is not None:
            callback(declared, result)
        done.append(result)
    return done


def _still_valid(result: Result, declared: Claim, seeds: tuple[int, ...], quick: bool) -> bool:
    measured = result.status in ("pass", "short", "reported") and not result.reason
    same = result.quick == quick and result.seeds == seeds and result.threshold == declared.threshold
    return measured and same


def _measure(
    declared: Claim, seeds: tuple[int, ...], quick: bool, store: Store, description: dict[str, Any]
) -> Result:
    values: list[float] = []
    details: list[dict[str, Any]] = []
    gated = declared.gated
    status: Status = "short"
    reason = ""
    start = time.perf_counter()
    try:
        for seed in seeds:
            measured = declared.measure(Trial(seed=seed, quick=quick, store=store))
            if not isinstance(measured, Measurement):
                measured = Measurement(float(measured))
            values.append(float(measured.value))
            details.append(plain(measured.details))  # JSON knows no infinity
            gated &= measured.judged
    except (Unavailable, MissingExtra) as error:
        status, reason = "skipped", str(error)
    except Exception as error:  # one broken claim must not stop the others, nor look like a success
        reason = f"broke with {type(error).__name__}: {error}"
    complete = len(values) == len(seeds)
    value = statistics.fmean(values) if complete else None
    if value is not None and not math.isfinite(value):
        value, values, reason = None, [], f"measured {', '.join(map(str, values))}: no finite figure"
    if value is not None and (declared.met_by(value) or not gated):
        status = "pass" if gated else "reported"
    return Result(
        id=declared.id,
        status=status,
        value=value,
        spread=statistics.stdev(values) if complete and len(values) > 1 else None,
        values=tuple(values),
        seeds=seeds,
        quick=quick,
        threshold=declared.threshold,
        paper=declared.paper,
        seconds=round(time.perf_counter() - start, 3),
        reason=reason,
        details=tuple(details),
        measured_at=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        machine=description,
    )
